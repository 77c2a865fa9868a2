"""What a GPU is measured with runs here too, with a small shape: only its memory is not counted."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from gtpo_mini.sandbox import Sandbox

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SMALL = {
    **{"vocab_size": 2000, "max_position_embeddings": 512, "hidden_size": 64, "intermediate_size": 128},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
}


@pytest.fixture
def memory_table(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import memory_table

    return memory_table


@pytest.mark.filterwarnings("ignore:step . of grpo")
def test_a_step_of_random_weights_in_nf4_fills_the_context(memory_table):
    found = memory_table.measure(SMALL, 96, 512, prompt=60)
    assert 0 < found["rollout_s"] < found["step_s"] and 0 < found["update_s"] < found["step_s"]


def test_more_context_and_more_parameters_need_more_memory(memory_table):
    shapes = memory_table.SHAPES
    peaks = [memory_table.peak_gib(shapes[f"Qwen2.5-{size}"], 1024, 2048)["peak"] for size in ("0.5B", "1.5B", "3B")]
    assert peaks == sorted(peaks) and memory_table.peak_gib(shapes["Qwen2.5-3B"], 2048, 4096)["peak"] > peaks[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would be measured")
def test_without_a_gpu_nothing_is_called_measured(memory_table, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["memory_table.py", "--measure"])
    with pytest.raises(SystemExit):
        memory_table.main()
    assert "torch finds no CUDA GPU here" in capsys.readouterr().err


def test_both_sides_of_the_comparison_get_the_same_from_the_tool(memory_table):
    hermes, protocol = memory_table.hermes, memory_table.hermes.BenchProtocol()
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
        if name != "noisy":
            low, high = ranges[name.rpartition("_")[2]]
            assert low <= sampled <= high and greedy <= sampled + 0.15, (name, sampled, greedy)
