"""Every notebook keeps the rules, and the rules see each slip when it is planted."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from notebook_rules import problems, source

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebooks yet")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    assert problems(read(path), setup_source=source(read(NOTEBOOKS[0])["cells"][1])) == []


def test_notebooks_are_numbered_in_reading_order():
    numbers = [path.stem[:3] for path in NOTEBOOKS]
    assert all(number[:2].isdigit() and number[2] == "_" for number in numbers), numbers
    assert len(set(numbers)) == len(numbers), "two notebooks share a number"


SETUP = "import gtpo_mini"
OUTPUT = {"output_type": "stream", "name": "stdout", "text": "3"}
TITLE = "# Title\n\n**Question.** Why?\n\n**Answer in one sentence.** So.\n\n**Runtime.** 1 s"


def code(name: str, text: str, **metadata) -> dict:
    return {
        "cell_type": "code",
        "id": name,
        "metadata": metadata,
        "source": text,
        "outputs": [],
        "execution_count": None,
    }


def good() -> dict:
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "cells": [
            {"cell_type": "markdown", "id": "a", "metadata": {}, "source": TITLE},
            code("b", SETUP),
            {**code("c", "SEEDS = 3", tags=["parameters"]), "outputs": [OUTPUT]},
            code("d", "assert SEEDS == 3"),
        ],
    }


def test_a_good_notebook_has_no_problem():
    assert problems(good(), SETUP) == []
    as_lines = copy.deepcopy(good())
    as_lines["cells"][1]["source"] = [SETUP]
    assert problems(as_lines, SETUP) == []


def drop(*keys):
    def change(notebook):
        target = notebook
        for key in keys[:-1]:
            target = target[key]
        del target[keys[-1]]

    return change


def put(value, *keys):
    def change(notebook):
        target = notebook
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 8 + "\nassert f"
LONG_CELL = "x = 1\n" * 26 + "assert x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(3, "cells", 1, "nonsense"), "not a valid notebook"),
        (drop("cells", 1, "metadata"), "not a valid notebook"),
        (drop("cells", 2, "id"), "id of its own"),
        (put("a", "cells", 2, "id"), "id of its own"),
        (put(4, "nbformat_minor"), "not a valid notebook"),
        (put([OUTPUT], "cells", 1, "outputs"), "cell 1: output that was to be cleared"),
        (put(["parameters", "clear"], "cells", 2, "metadata", "tags"), "cell 2: output that was to be cleared"),
        (put([], "cells", 2, "outputs"), "no output is kept"),
        (put(7, "cells", 2, "execution_count"), "cell 2: execution_count"),
        (put([{**OUTPUT, "name": "stderr"}], "cells", 2, "outputs"), "an error, a warning or a bar"),
        (put([{**OUTPUT, "text": "in /tmp/x"}], "cells", 2, "outputs"), "cell 2: a path"),
        (put([{**OUTPUT, "text": ["<A at ", "0x7f>"]}], "cells", 2, "outputs"), "cell 2: an address"),
        (put([{**OUTPUT, "text": "on 2026-11-27"}], "cells", 2, "outputs"), "cell 2: a date"),
        (put([{**OUTPUT, "text": "a turn: 0.12 ms"}], "cells", 2, "outputs"), "cell 2: a time"),
        (put([{**OUTPUT, "text": "UserWarning: x"}], "cells", 2, "outputs"), "cell 2: a warning"),
        (put([{**OUTPUT, "text": "9 " * 400_000}], "cells", 2, "outputs"), "more than 600,000 bytes"),
        (put(SETUP + "\n1" * 9, "cells", 1, "source"), "the setup cell has more than 8 lines"),
        (put("plt.plot(1)\n" * 9 + "assert True", "cells", 3, "source"), "plots in 10 lines, at most 8"),
        (put("_ = plot_study(s)\n" * 9 + "assert True", "cells", 3, "source"), "plots in 10 lines, at most 8"),
        (put("gtpo", "metadata", "kernelspec", "name"), "kernel must be python3, got gtpo"),
        (put("Title", "cells", 0, "source"), "begin with a title"),
        (put(TITLE.replace("Question.", "Q."), "cells", 0, "source"), "lacks **Question.**"),
        (put(TITLE.replace("in one sentence", ""), "cells", 0, "source"), "lacks **Answer in one sentence.**"),
        (put(TITLE.replace("Runtime", "Time"), "cells", 0, "source"), "lacks **Runtime.**"),
        (put(SETUP + "\n", "cells", 1, "source"), "setup cell differs"),
        (put([], "cells", 2, "metadata", "tags"), "tagged parameters, found 0"),
        (put(["parameters"], "cells", 3, "metadata", "tags"), "tagged parameters, found 2"),
        (put("!ls\nassert True", "cells", 3, "source"), "'!ls' is no Python"),
        (put("if True:\n    %time 1\nassert True", "cells", 3, "source"), "is no Python"),
        (put("assert (", "cells", 3, "source"), "cell 3: '(' was never closed"),
        (put(["hide-input"], "cells", 3, "metadata", "tags"), "tag hide-input hides"),
        (put(["remove_cell"], "cells", 3, "metadata", "tags"), "tag remove_cell hides"),
        (put({"source_hidden": True}, "cells", 3, "metadata", "jupyter"), "source_hidden hides"),
        (put("form", "cells", 3, "metadata", "cellView"), "cellView hides"),
        (put(LONG_CELL, "cells", 3, "source"), "27 lines, at most 25"),
        (put(LONG_FUNCTION, "cells", 3, "source"), "f has 9 lines, at most 8"),
        (put("# assert\nprint('assert')", "cells", 3, "source"), "must assert"),
        (put({"user": {"displayName": "X"}}, "cells", 3, "metadata", "executionInfo"), "displayName names a person"),
        (put([{"name": "X"}], "metadata", "authors"), "authors names a person"),
        (put({"state": {}}, "metadata", "widgets"), "state of widgets"),
    ],
)
def test_a_planted_slip_is_seen(change, message):
    notebook = good()
    change(notebook)
    assert any(message in problem for problem in problems(notebook, SETUP)), problems(notebook, SETUP)
