"""Several processes train as one does: the same rollouts, advantages and weights, and one record."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gtpo_mini.rollout.transcript import load_rollouts
from gtpo_mini.train.record import load_runs

HERE = Path(__file__).parent
# Without GPUs ``accelerate launch`` starts several processes only where it is told that there are some.
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no", "--main_process_port", "0", "--num_processes"]


def train(folder: Path, processes: int, steps: int, minibatches: int = 1) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    script = [str(HERE / "ddp_steps.py"), str(folder), str(steps), str(minibatches)]
    words = script if processes == 1 else [*LAUNCH, str(processes), *script]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=300)


def same(a: dict, b: dict) -> None:
    assert a["ids"] == b["ids"]
    for one, other in zip(a["advantages"], b["advantages"], strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    for name, weight in a["weights"].items():
        torch.testing.assert_close(weight, b["weights"][name], atol=2e-5, rtol=1e-4)
    for one, other in zip(a["history"], b["history"], strict=True):
        keys = [key for key in one if not key.startswith(("time/", "memory/"))]
        assert [one[key] for key in keys] == pytest.approx([other[key] for key in keys], abs=1e-4)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_two_processes_give_the_result_of_one_also_after_a_stop(tmp_path, minibatches):
    for name, calls in (("one", [(1, 4)]), ("two", [(2, 2), (2, 4)])):
        for processes, steps in calls:
            done = train(tmp_path / name, processes, steps, minibatches)
            assert done.returncode == 0, done.stderr[-2000:]
    alone = torch.load(tmp_path / "one" / "rank0.pt")
    for rank in (0, 1):
        same(torch.load(tmp_path / "two" / f"rank{rank}.pt"), alone)
    assert len(alone["history"]) == 4 and "going on from" in done.stdout and done.stdout.count("going on") == 1
    (run,) = load_runs(tmp_path / "two" / "run")  # one record, of whole steps
    assert [step["step"] for step in run.steps] == [0, 1, 2, 3] and run.footer["steps"] == 4
    assert len(load_rollouts(tmp_path / "two" / "run" / "rollouts.jsonl")) == 4 * 16


def test_problems_that_cannot_be_shared_are_named(tmp_path):
    done = train(tmp_path, 3, 1)
    assert done.returncode != 0
    assert "problems_per_step=4: must be a multiple of the processes (3)" in done.stderr
