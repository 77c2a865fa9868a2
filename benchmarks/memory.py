"""Peak memory of log-probabilities and their backward pass at a large vocabulary: naive, TRL's, ours.

    python benchmarks/memory.py

One layer of width 64, so that the vocabulary is nearly all there is. Each form runs in a process of its own; its
peak resident memory, less what was held just before, is what the pass took. Writes ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from gtpo_mini.experiments.coldstart import train_tokenizer
from gtpo_mini.policy.model import Policy
from gtpo_mini.train.config import TrainConfig
from gtpo_mini.train.loss import token_logprobs
from gtpo_mini.train.metrics import run_header
from gtpo_mini.types import Problem, StopReason, Trajectory, Turn

VOCABULARY, TOKENS = 152_064, 4096
FORMS = ("naive", "trl", "ours")
RESULTS = Path(__file__).parent / "results"


def measure(form: str) -> None:
    """Print the MiB that one forward and backward pass of ``form`` took."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=TOKENS, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    if form == "trl":
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model)
    policy = Policy(model, train_tokenizer(["a"], vocabulary=300))

    def run(tokens: int) -> None:
        ids = torch.randint(0, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(1))  # (1, T)
        if form == "naive":
            logprobs = torch.log_softmax(model(ids).logits[:, :-1].float(), -1)  # (1, T-1, V)
            chosen = logprobs.gather(-1, ids[:, 1:, None])
        elif form == "trl":
            chosen = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
        else:
            blank = (0,) + (1,) * (tokens - 1)
            rollout = Trajectory(
                Problem("0", "", ""), tuple(ids[0].tolist()), 1, blank, tuple(x - 1 for x in blank), (0.0,) * tokens,
                (Turn(""),), StopReason.ANSWER,
            )  # fmt: skip
            chosen = token_logprobs(policy, [rollout])
        chosen.mean().backward()

    run(16)  # gradients and libraries are there from now on
    held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    run(TOKENS)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=FORMS, help="measure one form only, here")
    args = parser.parse_args()
    if args.form:
        return measure(args.form)
    peaks = {}
    for form in FORMS:
        done = subprocess.run([sys.executable, __file__, "--form", form], capture_output=True, text=True, check=True)
        peaks[form] = round(float(done.stdout.split()[-1]), 1)
        print(f"{form}: {peaks[form]} MiB", flush=True)
    header = run_header(TrainConfig(), "one layer of width 64", "none", "cpu")
    record = {
        "command": "python benchmarks/memory.py",
        "commit": header["commit"],
        "versions": header["versions"],
        "device": "cpu, 1 thread, float32",
        "vocabulary": VOCABULARY,
        "tokens": TOKENS,
        "peak_mib": peaks,
        "ours_over_naive": peaks["ours"] / peaks["naive"],
        "ours_over_trl": peaks["ours"] / peaks["trl"],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"ours / naive {record['ours_over_naive']:.3f}, ours / TRL {record['ours_over_trl']:.2f}")


if __name__ == "__main__":
    main()
