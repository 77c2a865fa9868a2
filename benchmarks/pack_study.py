"""Put the runs of the studies (docs/protocol.md) into one compact file a regime: ``python benchmarks/pack_study.py``.

Reads ``results/STUDY/REGIME/ARM-seedN`` and adds to what ``data/runs/STUDY/REGIME.jsonl.xz`` holds an arm's seeds that
are finished in all regimes in which that arm was begun; a run that both have stays as it was recorded first. Of the
metrics only those are kept that a table, a figure or a replay needs. A regime's runs with the same seed are compared,
so they must be of one CPU model: where another made its start, the start is another policy.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from gtpo_mini.experiments.report import RUNS, STUDIES
from gtpo_mini.train.config import results_folder
from gtpo_mini.train.record import load_runs, save_runs

KEPT = {
    *("step", "reward/outcome", "rollout/calls", "rollout/turns", "rollout/invalid_calls", "rollout/progress"),
    *("group/silent", "group/hopeless", "advantage/hopeless_share", "grad/norm", "loss/sampler_mismatch"),
    *("time/score", "time/step"),
}


def main(made: Path, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    folders = sorted(path for path in made.iterdir() if path.is_dir())
    runs = {folder.name: {(run.arm, run.seed): run for run in load_runs(folder)} for folder in folders}
    begun = Counter(
        arm for folder in folders for arm in {path.name.rpartition("-seed")[0] for path in folder.iterdir()}
    )
    made = Counter(key for found in runs.values() for key in found)
    whole = {key for key, count in made.items() if count == begun[key[0]]}  # in all regimes where the arm was begun
    for name, found in runs.items():
        path = kept / f"{name}.jsonl.xz"
        old = {(run.arm, run.seed): run for run in load_runs(path)} if path.exists() else {}
        new = {key: found[key] for key in whole & found.keys() - old.keys()}
        both = {**old, **new}
        for seed in {run.seed for run in new.values()}:
            devices = {run.header["device"] for run in both.values() if run.seed == seed}
            if len(devices) > 1:
                raise ValueError(f"{name}, seed {seed}: its runs were made on different CPU models: {devices}")
        if new:
            save_runs([both[key] for key in sorted(both)], path, KEPT)
        print(f"{name}: {len(old)} runs and {len(new)} new ones; {len(found.keys() - whole)} wait for other regimes")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    for study in STUDIES:
        if (results_folder() / study).is_dir():
            main(results_folder() / study, RUNS / study)
