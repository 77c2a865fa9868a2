"""Which model trains in 12, 16 or 24 GB? Computed from shapes; ``--measure`` runs a step of each on a GPU.

    python benchmarks/memory_table.py
    python benchmarks/memory_table.py --measure --shapes Qwen2.5-0.5B Qwen2.5-1.5B --contexts 1024

QLoRA as the profiles ``t4`` and ``rtx`` have it: NF4 base with double quantisation, LoRA of rank 16 on all linear
layers, gradient checkpointing, 8 x 8 rollouts. Parameters are counted on models built without memory (torch's device
"meta"); the rest follows from the sizes named in `peak_gib`. A measured step samples random weights, so its rollouts
fill the context in one turn: the most that a step can need.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path

import hermes
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gtpo_mini.credit import ARMS
from gtpo_mini.experiments.coldstart import train_tokenizer
from gtpo_mini.policy.load import load_policy
from gtpo_mini.rollout.engine import RolloutEngine
from gtpo_mini.rollout.protocol import FencedProtocol
from gtpo_mini.sandbox import Sandbox
from gtpo_mini.train.config import TrainConfig
from gtpo_mini.train.loss import _CHUNK_LOGITS
from gtpo_mini.train.metrics import run_header
from gtpo_mini.train.trainer import Trainer
from gtpo_mini.types import Problem

ROWS, GROUPS, RANK = 64, 8, 16
RESULTS = Path(__file__).parent / "results"
COMMON = {"vocab_size": 151_936, "max_position_embeddings": 32_768}
#: As their config.json files say.
_SIZES = {
    "Qwen2.5-0.5B": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                         num_key_value_heads=2, tie_word_embeddings=True),
    "Qwen2.5-1.5B": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
                         num_key_value_heads=2, tie_word_embeddings=True),
    "Qwen2.5-3B": dict(hidden_size=2048, intermediate_size=11_008, num_hidden_layers=36, num_attention_heads=16,
                       num_key_value_heads=2, tie_word_embeddings=True),
    "Qwen2.5-7B": dict(hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
                       num_key_value_heads=4, tie_word_embeddings=False, vocab_size=152_064),
}  # fmt: skip
SHAPES = {name: {**COMMON, **sizes} for name, sizes in _SIZES.items()}
#: Tokens of a training pass at each context, as the profiles have it.
PASSES = {1024: 2048, 2048: 4096, 4096: 4096}
PROMPT = 300


def peak_gib(shape: dict, context: int, tokens_per_pass: int) -> dict[str, float]:
    """GiB of each part, and the peak: weights and adapter, plus the larger of rollout and training pass."""
    config = AutoConfig.for_model("qwen2", **shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = [m.weight for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    total, quantised = sum(p.numel() for p in model.parameters()), sum(weight.numel() for weight in linear)
    adapter = sum(RANK * sum(weight.shape) for weight in linear)
    heads, layers, hidden = config.num_key_value_heads, config.num_hidden_layers, config.hidden_size
    head = hidden // config.num_attention_heads
    weights = 0.516 * quantised + 2 * (total - quantised)  # NF4 with doubly quantised scales; the rest in 16 bits
    trained = adapter * (4 + 4 + 8)  # float32 weight and gradient, AdamW's two moments
    # Keys and values in 16 bits; the cache grows by doubling, so up to twice what is used.
    cache = 2 * 2 * layers * heads * head * (ROWS * (context - PROMPT) * 2 + GROUPS * PROMPT)
    kept = 2 * tokens_per_pass * hidden * layers  # each layer's input, in 16 bits
    # One layer computed again: its inside with gradients, LoRA's float32 copies of inputs, a dequantised weight.
    inside = tokens_per_pass * (2 * (12 * hidden + 6 * config.intermediate_size) + 4 * 2 * hidden)
    dequantised = 2 * hidden * config.intermediate_size
    logits = 3 * 4 * _CHUNK_LOGITS + 4 * tokens_per_pass * hidden
    parts = {"weights": weights, "adapter and optimiser": trained, "rollout": cache,
             "training pass": kept + inside + dequantised + logits}  # fmt: skip
    parts["peak"] = weights + trained + max(cache, parts["training pass"])
    return {name: round(value / 2**30, 2) for name, value in parts.items()}


def measure(shape: dict, context: int, tokens_per_pass: int, prompt: int = PROMPT) -> dict[str, float]:
    """GiB that torch held at most in a step of training, and seconds of its parts; random weights."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = train_tokenizer(["so many"], vocabulary=300)
    with tempfile.TemporaryDirectory() as folder:
        hermes.new_model(shape, tokenizer, device).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        gc.collect()
        policy = load_policy(folder, "nf4", lora_rank=RANK, device=device)
    words = "so many " * prompt
    while len(policy.encode_chat(FencedProtocol().messages(Problem("", words, "")))) > prompt:
        words = words[: -max(1, len(words) // 50)]
    config = TrainConfig(
        credit=ARMS["grpo"], problems_per_step=GROUPS, group_size=ROWS // GROUPS, max_turns=1,
        max_turn_tokens=context, max_context=context, tokens_per_pass=tokens_per_pass, gradient_checkpointing=True,
    )  # fmt: skip
    task = hermes.CoinTask("coin", tuple(Problem(str(i), words, "0") for i in range(2 * GROUPS)))
    trainer = Trainer(policy, task, config)
    with Sandbox() as sandbox:
        engine = RolloutEngine(policy, FencedProtocol(), sandbox, config.sampling())
        for number in range(2):  # the first makes the optimiser's state, and is a warm-up
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            found = trainer.step(engine, number)
    times = {f"{part}_s": found[f"time/{part}"] for part in ("rollout", "update", "step")}
    return {"peak": found["memory/peak_gib"], **times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="run a step of each on this machine's GPU")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--contexts", nargs="+", type=int, choices=PASSES, default=list(PASSES))
    args = parser.parse_args()
    if args.measure and not torch.cuda.is_available():
        parser.error("--measure: torch finds no CUDA GPU here; without it the table is computed")
    table, rows = {}, ["| model | context | peak, GiB | trains in |", "|---|---|---|---|"]
    for name in args.shapes:
        for context in args.contexts:
            found = (measure if args.measure else peak_gib)(SHAPES[name], context, PASSES[context])
            table[f"{name} at {context}"] = found
            # A gibibyte for the CUDA context and fragments.
            fits = next((f"{card} GB" for card in (12, 16, 24) if found["peak"] + 1 < card / 1.0737), "none of these")
            rows.append(f"| {name} | {context} | {found['peak']:.2f} | {fits} |")
            print(rows[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    kind = "measured" if args.measure else "table"
    record = {
        "command": " ".join(["python", "benchmarks/memory_table.py", *sys.argv[1:]]),
        "computed": not args.measure,
    }
    if args.measure:
        header = run_header(TrainConfig(), "random weights", "coin", "cuda")
        facts = {key: header[key] for key in ("commit", "versions")}
        record |= {**facts, "device": torch.cuda.get_device_name()}
    record |= {"rollouts": ROWS, "gib": table}
    (RESULTS / f"memory_{kind}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
