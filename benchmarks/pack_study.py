"""Put the runs of the study (docs/protocol.md) into one compact file a regime: ``python benchmarks/pack_study.py``.

Reads ``results/study/REGIME/ARM-seedN`` and adds to what ``data/runs/study/REGIME.jsonl.gz`` holds; a run that both
have stays as it was recorded first. Of the metrics only those are kept that a table, a figure or a replay needs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gtpo_mini.experiments.report import RUNS
from gtpo_mini.train.config import results_folder
from gtpo_mini.train.record import load_runs, save_runs

KEPT = {
    *("step", "reward/outcome", "rollout/calls", "rollout/turns", "rollout/invalid_calls", "rollout/guesses"),
    *("rollout/turn_tokens", "rollout/progress", "group/silent", "group/hopeless", "advantage/hopeless_share"),
    *("grad/norm", "policy/entropy", "loss/sampler_mismatch", "time/score", "time/step"),
}


def main(made: Path, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    for folder in sorted(path for path in made.iterdir() if path.is_dir()):
        path = kept / f"{folder.name}.jsonl.gz"
        runs = load_runs(folder) if any(folder.rglob("metrics.jsonl")) else []
        old = load_runs(path) if path.exists() else []
        names = {(run.arm, run.seed) for run in old}
        new = [run for run in runs if (run.arm, run.seed) not in names]
        if new:
            save_runs(sorted([*old, *new], key=lambda run: (run.arm, run.seed)), path, KEPT)
        print(f"{folder.name}: {len(old)} runs and {len(new)} new ones")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    main(results_folder() / "study", RUNS / "study")
