"""Some steps of `GTPOTrainer` on the tiny policy, in one process or several: python trl_steps.py OUTPUT BATCH STEPS.

Started by tests/test_trl.py, alone and by ``accelerate launch``; BATCH is each process's share of the rollouts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from gtpo_mini import load_policy, load_profile, load_task
from gtpo_mini.train.trl import GRPOConfig, GTPOTrainer


def make(output: Path, batch: int, steps: int, **changes) -> GTPOTrainer:
    args = GRPOConfig(
        str(output), per_device_train_batch_size=batch, num_generations=8, max_steps=steps, learning_rate=1e-4,
        lr_scheduler_type="constant", use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
        save_strategy="no", logging_steps=1, disable_tqdm=True, seed=3, **changes,
    )  # fmt: skip
    settings = load_profile("cpu").train.sampling()
    policy, task = load_policy("tiny", device="cpu"), load_task("branching", size=64)
    return GTPOTrainer.for_task(policy, task, args, settings=settings)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, batch, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    trainer, seen = make(folder, batch, steps), []
    score = trainer._generate_and_score_completions

    def keep(inputs):
        out = score(inputs)
        rollouts = trainer.rollouts
        rows = [row[: len(r.token_ids) - r.prompt_length] for row, r in zip(out["advantages"], rollouts, strict=True)]
        seen.extend((r.token_ids, row) for r, row in zip(rollouts, rows, strict=True))
        return out

    trainer._generate_and_score_completions = keep
    trainer.train()
    rank = trainer.accelerator.process_index
    weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    torch.save({"seen": seen, "weights": weights}, folder / f"rank{rank}.pt")
