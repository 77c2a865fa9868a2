"""What the benchmarks share, and what their records say. What a GPU is measured with: test_gpu.py."""

from __future__ import annotations

import doctest
import importlib
import json
import runpy
from pathlib import Path

import pytest

from gtpo_mini.sandbox import Sandbox

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def memory_table(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import memory_table

    return memory_table


def test_more_context_and_more_parameters_need_more_memory(memory_table):
    shapes = memory_table.SHAPES
    peaks = [memory_table.peak_gib(shapes[f"Qwen2.5-{size}"], 1024, 2048)["peak"] for size in ("0.5B", "1.5B", "3B")]
    assert peaks == sorted(peaks) and memory_table.peak_gib(shapes["Qwen2.5-3B"], 2048, 4096)["peak"] > peaks[-1]


def test_both_sides_of_the_comparison_get_the_same_from_the_tool(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import hermes

    protocol = hermes.BenchProtocol()
    with Sandbox() as sandbox:
        sandboxed = hermes.in_sandbox(sandbox)
        for code, printed in (("print(12+34)", "46"), ("print(46 * (2 - 5))", "-138"), ("print(08)", "error")):
            assert sandboxed(code) == hermes.python(code) == protocol.tool_text(sandbox.run(code)) == printed
    assert sandboxed.__name__ == "python" and hermes.python("__import__('os')") == "error"
    assert len(hermes.questions(1, 0, 50)[0].split()) == 53


def test_the_starts_are_what_the_page_says_and_leave_something_to_learn():
    starts = runpy.run_path(str(BENCHMARKS / "starts.py"))
    record = json.loads(starts["RECORD"].read_text(encoding="utf-8"))
    assert tuple(record) == starts["NAMES"]
    page = (BENCHMARKS.parent / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert starts["table"](record) in page, "put the table that benchmarks/starts.py prints there"
    ranges = {"5": (0.02, 0.10), "20": (0.14, 0.28), "50": (0.40, 0.62)}
    for name, found in record.items():
        sampled, greedy = (found[kind]["accuracy"] for kind in ("sampled", "greedy"))
        if (share := name.rpartition("_")[2]) in ranges:
            low, high = ranges[share]
            assert low <= sampled <= high and greedy <= sampled + 0.15, (name, sampled, greedy)
    for name in ("rare_clean", "programs_rare_clean", "facts_rare_clean"):
        assert record[name]["sampled"]["invalid_calls"] > 0.4 and record[name]["sampled"]["accuracy"] > 0.3, name
    assert record["wasted"]["sampled"]["calls"] > 4 and record["near_misses"]["sampled"]["accuracy"] < 0.14


@pytest.mark.parametrize("name", ["gpu_pack", "scaling"])
def test_the_examples_in_the_docstrings_hold(name, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


def test_the_page_on_scaling_has_the_tables_of_its_record(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import scaling

    tables = scaling.table(json.loads(scaling.RECORD.read_text(encoding="utf-8"))).split("\n\n")
    page = (BENCHMARKS.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert all(table in page for table in tables), "put the tables that benchmarks/scaling.py prints there"


def test_whoever_waits_for_fewer_others_waits_less(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import numpy
    import scaling

    record = json.loads(scaling.RECORD.read_text(encoding="utf-8"))
    monkeypatch.setattr(scaling, "BATCHES", 20)
    cost, rng = scaling.pass_costs(record), numpy.random.default_rng(1)
    for facts in record["families"].values():
        found = scaling.simulate(facts["rollouts"], cost, record["update_s"], rng)
        lock, own, free = (found["share"][kind] for kind in ("lock", "own", "async"))
        assert all(0 < a < b < c <= 1 for a, b, c in zip(lock, own, free, strict=True))
        assert own == sorted(own, reverse=True) and found["lag_mean"] <= found["lag_most"]
