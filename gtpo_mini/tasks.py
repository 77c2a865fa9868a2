"""Problems and graders: the offline task, GSM8K, reasoning-gym's generators and the user's own JSON lines."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from .branching import draw_problems
from .types import Problem

_LONGEST_ANSWER = 200  # characters; longer ones are wrong without being parsed


def same_answer(gold: str, answer: str) -> bool:
    """True if both are the same number or expression. Never raises: a strange answer is a wrong one.

    Args:
        gold: the reference answer.
        answer: what the policy wrote; more than 200 characters are wrong.

    >>> same_answer("1430", "1,430.0"), same_answer("3/4", "0.75"), same_answer("42", "43")
    (True, True, False)
    """
    gold, answer = gold.strip(), answer.strip()
    if len(answer) > _LONGEST_ANSWER or not answer:
        return False
    left, right = _number(gold), _number(answer)
    if left is not None and right is not None:
        return left == right
    if gold == answer:
        return True
    # A power tower would compute for minutes; a gold answer of this kind does not occur.
    if answer.count("^") + answer.count("**") > 1 or "!" in answer:
        return False
    try:
        from math_verify import parse, verify

        return bool(verify(parse(f"${gold}$"), parse(f"${answer}$")))
    except Exception:
        return False


def _number(text: str) -> Decimal | None:
    text = text.replace(",", "").replace("$", "").strip().rstrip("%").rstrip(".")
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


@dataclass(frozen=True)
class Task:
    """A named set of problems with a grader. An own task is ``Task(name, problems, grader)``.

    >>> task = Task("mine", (Problem("1", "2 + 2?", "4"),))
    >>> task.grade(task.problems[0], " 4.0 ")
    True
    """

    name: str
    problems: Sequence[Problem]
    grader: Callable[[Problem, str], bool] = lambda problem, answer: same_answer(problem.answer, answer)
    split: str = "train"

    def __post_init__(self) -> None:
        if not self.problems:
            raise ValueError(f"task {self.name!r} ({self.split}) holds no problem")

    def grade(self, problem: Problem, answer: str | None) -> bool:
        """True if ``answer`` is right; None (no answer was given) is wrong."""
        return answer is not None and bool(self.grader(problem, answer))


def _branching(split: str, size: int = 2048, seed: int = 0, steps: int = 3, ask: str = "count") -> Task:
    return Task("branching", draw_problems(size, split, seed, steps, ask), split=split)


def _gsm8k(split: str, size: int | None = None) -> Task:
    folder = os.environ.get("GTPO_DATA_DIR")
    if folder:
        path = Path(folder) / "gsm8k" / f"{split}.jsonl"
        if not path.is_file():
            raise ValueError(f"GTPO_DATA_DIR={folder}: no file gsm8k/{split}.jsonl there; unset it to use the hub")
        rows = _read_json_lines(path)
    else:
        import datasets

        try:
            rows = list(enumerate(datasets.load_dataset("openai/gsm8k", "main", split=split), 1))
        except Exception as error:
            raise ValueError(
                f"task 'gsm8k': the hub could not be read ({type(error).__name__}); set GTPO_DATA_DIR to a folder "
                f"that holds gsm8k/{split}.jsonl"
            ) from error
    problems = _problems("gsm8k", rows[:size], lambda answer: answer.rsplit("####", 1)[-1].strip())
    return Task("gsm8k", problems, split=split)


def _json_lines(path: str, split: str, size: int | None = None) -> Task:
    if not Path(path).is_file():
        raise ValueError(f"task 'jsonl:{path}': no such file")
    return Task(f"jsonl:{path}", _problems(path, _read_json_lines(Path(path))[:size]), split=split)


def _reasoning_gym(generator: str, split: str, size: int = 512, seed: int = 0) -> Task:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ValueError(
            f"task 'reasoning_gym:{generator}' needs the package reasoning-gym: pip install 'gtpo-mini[tasks]'"
        ) from error
    # Seeds of train and test are far apart; a question that the test draw holds is dropped from train.
    try:
        rows = list(reasoning_gym.create_dataset(generator, size=size, seed=seed + 10**6 * (split == "test")))
    except ValueError as error:
        known = ", ".join(sorted(reasoning_gym.factory.DATASETS))
        raise ValueError(f"task 'reasoning_gym:{generator}': unknown generator; known: {known}") from error
    problems = _problems(generator, list(enumerate(rows, 1)))
    return Task(f"reasoning_gym:{generator}", problems, split=split)


def _read_json_lines(path: Path) -> list[tuple[int, dict]]:
    rows, broken = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line.decode("utf-8"))))
        except (ValueError, RecursionError):
            broken.append(number)
    if broken:
        raise ValueError(f"{path}: not a JSON object in UTF-8 on line {_some(broken)}; mend or remove these lines")
    return rows


def _problems(
    source: str, rows: Sequence[tuple[int, dict]], clean: Callable[[str], str] = str.strip
) -> tuple[Problem, ...]:
    problems, bad = [], []
    for number, row in rows:
        question, answer = (row.get("question"), row.get("answer")) if isinstance(row, dict) else (None, None)
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            answer = repr(answer)
        if not (isinstance(question, str) and question.strip() and isinstance(answer, str) and clean(answer)):
            bad.append(number)
            continue
        problems.append(Problem(str(row.get("id", f"{number}")), question.strip(), clean(answer)))
    if bad:
        raise ValueError(
            f"{source}: no usable 'question' and 'answer' on line {_some(bad)}; each line must be an object with both "
            "(text, or a number as answer)"
        )
    ids = [problem.id for problem in problems]
    if twice := sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []:
        raise ValueError(f"{source}: the same 'id' on several lines: {_some(twice)}; ids must be unique (or left out)")
    return tuple(problems)


def _some(items: Sequence) -> str:
    return ", ".join(map(str, items[:8])) + (f" and {len(items) - 8} more" if len(items) > 8 else "")


_TASKS: dict[str, Callable[..., Task]] = {"branching": _branching, "gsm8k": _gsm8k}
_FAMILIES: dict[str, Callable[..., Task]] = {"jsonl": _json_lines, "reasoning_gym": _reasoning_gym}


def list_tasks() -> list[str]:
    """The names that `load_task` knows.

    >>> list_tasks()
    ['branching', 'gsm8k', 'jsonl:PATH', 'reasoning_gym:GENERATOR']
    """
    return [*_TASKS, "jsonl:PATH", "reasoning_gym:GENERATOR"]


def load_task(name: str, split: str = "train", **options) -> Task:
    """Load a task by name.

    Args:
        name: one of `list_tasks`. ``jsonl:PATH`` reads one object a line with ``question`` and ``answer`` (and
            ``id``, if you like); it is the same for every split, so give held-out problems a file of their own.
        split: "train" or "test".
        options: ``size`` (all tasks: how many problems), ``seed`` (generated tasks), ``steps`` (branching, 3-8),
            ``ask`` (branching: "count" or "parity").

    Raises:
        ValueError: unknown name, split or option; a row without question or answer, with its line numbers.

    >>> len(load_task("branching", split="test", size=5).problems)
    5
    """
    family, _, rest = name.partition(":")
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: must be 'train' or 'test'")
    if name in _TASKS:
        make, arguments = _TASKS[name], ()
    elif family in _FAMILIES and rest:
        make, arguments = _FAMILIES[family], (rest,)
    else:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(list_tasks())}")
    if (size := options.get("size")) is not None and size < 1:
        raise ValueError(f"size={size}: must be at least 1")
    try:
        return make(*arguments, split=split, **options)
    except TypeError as error:
        if found := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            raise ValueError(f"task {name!r} has no option {found.group(1)!r}") from error
        raise
