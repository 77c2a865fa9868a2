"""Which model trains in 12, 16 or 24 GB? Computed from shapes: ``python benchmarks/memory_table.py``.

QLoRA as the profiles ``t4`` and ``rtx`` have it: NF4 base with double quantisation, LoRA of rank 16 on all linear
layers, gradient checkpointing, 8 x 8 rollouts. Parameters are counted on models built without memory (torch's device
"meta"); the rest follows from the sizes named in `peak_gib`. ``python benchmarks/gpu.py step-1.5B`` measures the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gtpo_mini.train.loss import _CHUNK_LOGITS

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


def main() -> None:
    table = {}
    print("| model | context | peak, GiB | trains in |\n|---|---|---|---|")
    for name, shape in SHAPES.items():
        for context, tokens in PASSES.items():
            found = peak_gib(shape, context, tokens)
            table[f"{name} at {context}"] = found
            # A gibibyte for the CUDA context and fragments.
            fits = next((f"{card} GB" for card in (12, 16, 24) if found["peak"] + 1 < card / 1.0737), "none of these")
            print(f"| {name} | {context} | {found['peak']:.2f} | {fits} |", flush=True)
    record = {"command": "python benchmarks/memory_table.py", "computed": True, "rollouts": ROWS, "gib": table}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory_table.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
