"""Recorded runs come back from their compact file with the digits that it keeps."""

from __future__ import annotations

import json
import lzma
from dataclasses import asdict
from pathlib import Path

import pytest

from gtpo_mini.credit.arms import ARMS, load_arm
from gtpo_mini.experiments.compare import compare
from gtpo_mini.train.config import TrainConfig
from gtpo_mini.train.record import RecordedRun, load_runs, read_run, save_runs


def make_run(arm: str, seed: int, outcomes: list[float]) -> RecordedRun:
    ids = [f"p{i}" for i in range(len(outcomes))]
    steps = [
        {"kind": "step", "step": i, "loss/kl": 0.0, "reward/outcome": 63 / 64, "grad/norm": norm, "time/step": 1 / 3}
        for i, norm in enumerate((0.1, 0.1 + 0.2, 0.123456789))
    ]
    steps[1]["only/here"] = 1e-300
    evaluation = {"accuracy": sum(outcomes) / len(outcomes), "per_problem": dict(zip(ids, outcomes, strict=True))}
    header = {"kind": "header", "arm": arm, "seed": seed, "task": "t", "config": {"credit": {"gamma": 0.9}}}
    return RecordedRun(header, tuple(steps), {"kind": "footer", "steps": 3, "sampled": evaluation})


@pytest.fixture
def runs() -> list[RecordedRun]:
    return [
        make_run("gtpo", 0, [0.0, 0.0, 1.0] * 30),
        make_run("gtpo", 1, [1.0, 0.0]),
        make_run("grpo", 0, [0.25, 1.0]),
    ]


def test_a_compact_file_holds_six_digits_and_every_outcome(runs, tmp_path):
    path = tmp_path / "deep" / "runs.jsonl.xz"
    path.parent.mkdir()
    save_runs(runs, path)
    for found in (load_runs(path), load_runs(tmp_path)):
        assert [(run.arm, run.seed) for run in found] == [("grpo", 0), ("gtpo", 0), ("gtpo", 1)]
        for run, was in zip(found, [runs[2], *runs[:2]], strict=True):
            assert all(step.pop("time/step") == 0.3333 for step in run.steps)
            assert [step["grad/norm"] for step in run.steps] == [0.1, 0.3, 0.123457]
            others = [{**step, "grad/norm": kept["grad/norm"]} for step, kept in zip(was.steps, run.steps, strict=True)]
            assert list(run.steps) == [{k: v for k, v in step.items() if k != "time/step"} for step in others]
            assert json.dumps([run.header, run.footer]) == json.dumps([was.header, was.footer])
    before = path.read_bytes()
    save_runs(runs, path)
    assert path.read_bytes() == before
    save_runs(runs, path, keys=["grad/norm"])
    assert all(set(step) == {"grad/norm"} for run in load_runs(path) for step in run.steps)
    save_runs(runs[:1], path)
    assert compare(path, runs[0]).difference.estimate == 0
    with pytest.raises(ValueError, match=r"must end in .jsonl.xz"):
        save_runs(runs, tmp_path / "runs.json")


def test_a_folder_may_hold_both_layouts_and_other_files(runs, tmp_path):
    save_runs(runs[:2], tmp_path / "runs.jsonl.xz")
    live = tmp_path / "grpo-seed0" / "metrics.jsonl"
    live.parent.mkdir()
    lines = [json.dumps(line) + "\n" for line in (runs[2].header, *runs[2].steps, runs[2].footer)]
    live.write_text("".join(lines))
    for name, text in (("traces.jsonl", '{"question": "?"}\n{"question": "?"}\n'), ("list.jsonl", "[1]\n[2]\n")):
        (tmp_path / name).write_text(text)
    assert len(load_runs(tmp_path)) == 3 and load_runs(live) == [runs[2]]
    live.write_text("".join(lines)[:-20])  # as a kill leaves it
    assert read_run(live) is None and len(load_runs(tmp_path)) == 2


@pytest.mark.parametrize("cut", [0, 100, -9])
def test_a_damaged_file_is_named(runs, tmp_path, cut):
    path = tmp_path / "runs.jsonl.xz"
    save_runs(runs, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"runs.jsonl.xz'?: no whole file of recorded runs"):
        load_runs(tmp_path)
    path.write_bytes(lzma.compress(b"[1]\n{}\n"))
    with pytest.raises(ValueError, match="no whole file"):
        load_runs(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="no finished run"):
        load_runs(tmp_path)


def test_the_recorded_headers_name_their_credit_and_the_records_stay_small():
    folder = Path(__file__).parents[1] / "data" / "runs"
    runs = load_runs(folder)
    assert len(runs) >= 420
    for run in runs:
        if run.arm in ARMS:
            assert run.header["config"]["credit"] == asdict(ARMS[run.arm])
        assert TrainConfig.from_record(run.header["config"]).credit == load_arm(run.arm)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 5_000_000
