"""The GPU day, rehearsed: the blocks of benchmarks/gpu.py run here with small shapes, and go on where they stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
#: Every block but those that differ from one of these in a shape or a length only.
REHEARSED = ("step-1.5B", "equality", "trl-short", "engines", "smollm-facts", "smollm-chain_sum", "seeds")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    return gpu


@pytest.fixture
def day(gpu, tmp_path):
    return gpu.Day(tmp_path / "records", tmp_path / "work", "cpu", rehearsal=True)


def lines(day, name):
    return [json.loads(line) for line in (day.records / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REHEARSED)
def test_a_block_runs_on_a_cpu_with_small_shapes_and_once_only(gpu, day, name, capsys):
    gpu.run_block(name, day)
    found = lines(day, name)
    assert [line["part"] for line in found] == [part for part, _ in gpu.BLOCKS[name](day)]
    for line in found:
        assert line["rehearsal"] and line["device"].startswith("cpu") and line["versions"]["torch"]
        if line["part"] == "vllm":
            assert line["skipped"].startswith("missing here: package vllm")
        else:
            assert line["figures"], line
    figures = {line["part"]: line.get("figures") for line in found}
    if name == "step-1.5B":
        assert all(0 < part["rollout_s"] < part["step_s"] for part in figures.values())
        assert all(0 < part["sampler_mismatch"] < 0.01 for part in figures.values())
    elif name == "equality":
        assert figures["float32"]["mismatch_max"] < 1e-5 < figures["nf4-bfloat16"]["mismatch_max"] < 0.1
        assert figures["graphs"] == {"same": 16, "of": 16, "graphs": False}
    capsys.readouterr()
    gpu.run_block(name, day)
    assert capsys.readouterr().out.count("there already") == sum(part is not None for part in figures.values())


def test_a_warning_stands_in_the_record_and_another_device_measures_anew(gpu, day, monkeypatch):
    def warned():
        warnings.warn("rows cut to 8", stacklevel=1)
        return {"n": 1}

    monkeypatch.setitem(gpu.BLOCKS, "one", lambda day: iter([("part", warned)]))
    assert gpu.run_block("one", day) and gpu.run_block("one", day)
    (line,) = lines(day, "one")
    assert line["warnings"] == ["rows cut to 8"]
    path = day.records / "one.jsonl"
    path.write_text(json.dumps({**line, "device": "another"}) + "\n", encoding="utf-8")
    assert gpu.run_block("one", day) and len(lines(day, "one")) == 2


def test_a_folder_that_is_made_is_whole_or_not_there(gpu, tmp_path):
    def stops(folder):
        folder.mkdir()
        raise gpu.TimeUp

    with pytest.raises(gpu.TimeUp):
        gpu.make_once(tmp_path / "model", stops)
    assert not (tmp_path / "model").exists()
    assert gpu.make_once(tmp_path / "model", Path.mkdir).is_dir()


def test_every_shape_case_and_task_has_a_block(gpu):
    assert set(REHEARSED) < set(gpu.BLOCKS)
    others = {"step-0.5B", "step-3B", "step-7B", "trl-middle", "trl-long", "smollm-programs"}
    assert set(gpu.BLOCKS) == set(REHEARSED) | others


def test_a_failure_ends_its_part_alone_and_is_tried_again(gpu, day, monkeypatch):
    tries = []

    def fails():
        tries.append(1)
        raise torch.OutOfMemoryError("no room\nfor this")

    monkeypatch.setitem(gpu.BLOCKS, "two", lambda day: iter([("one", fails), ("other", lambda: {"figure": 1})]))
    assert not gpu.run_block("two", day) and not gpu.run_block("two", day)
    assert [line.get("failed", line.get("figures")) for line in lines(day, "two")] == [
        "OutOfMemoryError: no room",
        {"figure": 1},
        "OutOfMemoryError: no room",
    ] and len(tries) == 2


def test_when_the_time_is_over_the_next_call_goes_on(gpu, day, monkeypatch):
    naps = iter([30, 0])

    def long():
        try:
            return {"figure": time.sleep(next(naps))}
        except Exception:  # what a part survives
            return {"figure": "swallowed"}

    parts = [("short", lambda: {"figure": 1}), ("long", long), ("last", dict)]
    monkeypatch.setitem(gpu.BLOCKS, "three", lambda day: iter(parts))
    begin = time.monotonic()
    assert not gpu.run_block("three", day, limit=1) and time.monotonic() - begin < 20
    assert [line["part"] for line in lines(day, "three")] == ["short", "long"] and "stopped" in lines(day, "three")[-1]
    assert gpu.run_block("three", day, limit=60)
    assert [line["part"] for line in lines(day, "three")] == ["short", "long", "long", "last"]


@pytest.mark.parametrize(
    "words, told",
    [(["step-9B", "--rehearse"], "unknown block step-9B; known: step-0.5B"), (["seeds"], "torch finds no CUDA GPU")],
)
def test_what_cannot_run_is_said_in_one_line(gpu, monkeypatch, capsys, words, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    with pytest.raises(SystemExit):
        gpu.main()
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_the_pack_holds_what_a_gpu_machine_lacks_and_is_small(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_pack

    assert 5e6 < gpu_pack.pack(tmp_path / "pack", "130") < gpu_pack.MOST
    libraries = {path.name for path in (tmp_path / "pack" / "bitsandbytes").glob("*.so")}
    assert libraries == {"libbitsandbytes_cuda130.so", "libbitsandbytes_cpu.so"}
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'pack')!r})\nimport dill, math_verify, typeguard, tyro\n"
    code += "for name in ('dill', 'math_verify', 'typeguard', 'tyro'): print(sys.modules[name].__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(line.startswith(str(tmp_path)) for line in done.stdout.splitlines())
