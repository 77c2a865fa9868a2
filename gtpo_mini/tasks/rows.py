"""Rows that others wrote, from a file or the hub, as problems; every row that cannot be used is named by its line."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ..types import Problem

_HUB_SECONDS = 5  # for the question whether it has a data set
_DRAWS = 8  # draws a wanted problem, at most: small generators repeat themselves
# Generators whose rows have no answer, because many are right, but hold one in their metadata.
_EXAMPLES = {"graph_color": "possible_answer", "propositional_logic": "example_answer"}
_EXAMPLES |= {"rubiks_cube": "example_correct_answer"}


@dataclass(frozen=True)
class Columns:
    """Which columns of a row make a problem; the others become its metadata."""

    question: tuple[str, ...] = ("question",)  #: their texts are joined by a blank
    answer: str = "answer"
    id: str = "id"  #: left out in a row, its line number is the id
    clean: Callable[[str], str] = str.strip  #: from the answer's text to the gold answer
    adapt: Callable[[dict], dict] = dict  #: from a row to one with these columns; a ValueError names its fault


@dataclass(frozen=True)
class Source:
    """A data set of the hub, and what its files are called in a folder."""

    dataset: str
    config: str | None
    splits: dict[str, str]  #: our split -> the hub's
    columns: Columns
    whole: str | None = None  #: one JSON file with all rows, as its authors publish it
    cut: float = 0  #: of that file: the rows of train, in order, below 1 as a share; the rest is test


_SPLITS = {"train": "train", "test": "test"}
_GSM8K = Columns(id="", clean=lambda answer: answer.rsplit("####", 1)[-1].strip())
SOURCES = {
    "gsm8k": Source("openai/gsm8k", "main", _SPLITS, _GSM8K),
    "svamp": Source("ChilleD/SVAMP", None, _SPLITS, Columns(("Body", "Question"), "Answer", "ID"), "SVAMP.json", 700),
    "math500": Source("HuggingFaceH4/MATH-500", None, {"test": "test"}, Columns(("problem",), id="unique_id")),
    "aime": Source("HuggingFaceH4/aime_2024", None, {"test": "train"}, Columns(("problem",))),
    "mbpp": Source("google-research-datasets/mbpp", "full", _SPLITS, Columns(("text",), "code", "task_id")),
}


def load_source(name: str, split: str, size: int | None = None, source: Source | None = None) -> tuple[Problem, ...]:
    """The first ``size`` problems of a source (None: of `SOURCES`), from ``GTPO_DATA_DIR`` if set, else the hub."""
    source = source or SOURCES[name]
    if split not in source.splits:
        raise ValueError(f"task {name!r} has only the split {', '.join(source.splits)}: it is for evaluation")
    if data := os.environ.get("GTPO_DATA_DIR"):
        path, whole = Path(data) / name / f"{split}.jsonl", Path(data) / name / (source.whole or "")
        if path.is_file():
            return load_json_lines(path, source.columns)[:size]
        if not whole.is_file():
            raise ValueError(f"GTPO_DATA_DIR={data}: no file {name}/{split}.jsonl there; unset it to use the hub")
        try:
            held = json.loads(whole.read_text(encoding="utf-8"))
            rows = list(
                enumerate(held["examples"] if isinstance(held, dict) else held, 1)
            )  # a dict: as BIG-bench has it
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{whole}: holds no list of rows ({type(error).__name__}: {error})") from error
        cut = int(source.cut if source.cut >= 1 else source.cut * len(rows))
        rows = rows[:cut] if split == "train" else rows[cut:]
        return problems_from_rows(str(whole), rows, source.columns)[:size]
    import datasets
    import huggingface_hub

    offline = False
    try:  # one question: a download that finds no hub would try for 25 seconds, aloud
        huggingface_hub.HfApi().dataset_info(source.dataset, timeout=_HUB_SECONDS)
    except Exception:
        offline = True  # what was downloaded before can still be had
    try:
        with ExitStack() as stack:
            for module in (datasets.config, huggingface_hub.constants) if offline else ():
                stack.enter_context(patch.object(module, "HF_HUB_OFFLINE", True))
            rows = list(datasets.load_dataset(source.dataset, source.config, split=source.splits[split]))
    except Exception as error:
        fix = f"set GTPO_DATA_DIR to a folder that holds {name}/{split}.jsonl, with the hub's columns"
        raise ValueError(f"task {name!r}: the hub could not be read ({type(error).__name__}); {fix}") from error
    return problems_from_rows(source.dataset, enumerate(rows, 1), source.columns)[:size]


def load_json_lines(path: Path, columns: Columns = Columns()) -> tuple[Problem, ...]:
    """The problems of a file with one JSON object a line; blank lines are allowed, faults are named together."""
    rows, faults = [], []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line.decode("utf-8"))))
        except UnicodeDecodeError:
            faults.append((number, "not UTF-8"))
        except (ValueError, RecursionError):
            faults.append((number, "not JSON"))
    return problems_from_rows(str(path), rows, columns, faults)


def problems_from_rows(
    source: str, rows: Iterable[tuple[int, Any]], columns: Columns = Columns(), faults: Sequence[tuple[int, str]] = ()
) -> tuple[Problem, ...]:
    """Problems from (line number, row) pairs; one ValueError names every faulty line, also those of ``faults``."""
    problems, faults, seen = [], list(faults), {}
    for number, row in rows:
        try:
            problem = _problem(number, row, columns)
        except ValueError as fault:
            faults.append((number, str(fault)))
            continue
        if (first := seen.setdefault(problem.id, number)) != number:
            faults.append((number, f"its id {problem.id!r} stands on line {first} too"))
        problems.append(problem)
    if not faults:
        return tuple(problems)
    kinds: dict[str, list[int]] = {}
    for number, what in sorted(faults):
        kinds.setdefault(what, []).append(number)
    shown = [f"line {_some(numbers, 8)} ({what})" for what, numbers in kinds.items()]
    count = f"{len(faults)} lines" if len(faults) > 1 else "one line"
    raise ValueError(f"{source}: {count} cannot be used: {_some(shown, 12)}; fix or remove them")


def _problem(number: int, row: object, columns: Columns) -> Problem:
    """The problem in a row, or a ValueError that says what is wrong with it."""

    def check(holds: bool, fault: str) -> None:
        if not holds:
            raise ValueError(fault)

    check(isinstance(row, dict), "no object")
    try:
        row = columns.adapt(row)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no row of this set ({type(error).__name__}: {error})") from None
    parts, answer = [row.get(name) for name in columns.question], row.get(columns.answer)
    for name, part in zip(columns.question, parts, strict=True):
        check(part is not None, f"no {name!r}")
        check(isinstance(part, str) and part.strip(), f"{name!r} is empty or no text")
    check(answer is not None, f"no {columns.answer!r}")
    number_or_text = isinstance(answer, str | int | float) and not isinstance(answer, bool)
    check(number_or_text, f"{columns.answer!r} is neither text nor a number")
    check(not isinstance(answer, float) or math.isfinite(answer), f"{columns.answer!r} is no finite number")
    question, gold = " ".join(map(str.strip, parts)), columns.clean(answer if isinstance(answer, str) else repr(answer))
    check(gold, f"empty {columns.answer!r}")
    name = str(number if row.get(columns.id) is None else row[columns.id])
    halves = any("\ud800" <= character <= "\udfff" for character in question + gold + name)
    check(not halves, "half a surrogate pair, which is no text")
    used = {*columns.question, columns.answer, columns.id}
    return Problem(name, question, gold, {key: value for key, value in row.items() if key not in used})


def _some(items: Sequence, most: int) -> str:
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")


def generated_problems(generator: str, split: str, size: int = 512, seed: int = 0) -> tuple[Problem, ...]:
    """Up to ``size`` different problems of a generator; train holds no question of the test draw of that seed.

    A few generators (boxnet, rush_hour) know no right answer, only how to check one: their gold answer is empty.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        fix = "needs the package reasoning-gym: pip install 'gtpo-mini[tasks]'"
        raise ValueError(f"task 'reasoning_gym:{generator}' {fix}") from error
    known = sorted(set(reasoning_gym.factory.DATASETS) - {"composite"})  # that one mixes others
    if generator not in known:
        raise ValueError(f"task 'reasoning_gym:{generator}': unknown generator; known: {', '.join(known)}")

    seen: set[str] = set()

    def draw(seed: int, seen: set[str]) -> Iterator[Problem]:
        rows = reasoning_gym.create_dataset(generator, size=_DRAWS * size, seed=seed)
        for index in range(_DRAWS * size):
            row = rows[index]
            question, answer = row["question"], row["answer"]
            if answer is None:
                answer = row["metadata"].get(_EXAMPLES.get(generator), "")
            if question not in seen:
                seen.add(question)
                gold = answer if isinstance(answer, str) else json.dumps(answer)
                yield Problem(str(index + 1), question.strip(), gold, row)

    test = tuple(itertools.islice(draw(seed + 10**6, seen), size))
    return test if split == "test" else tuple(itertools.islice(draw(seed, seen), size))
