"""Problems with a grader: the offline task, data sets of the hub, reasoning-gym's generators, your own JSON lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..types import Problem
from .branching import draw_problems
from .grading import as_number, same_answer
from .rows import SOURCES, generated_problems, grade_generated, load_json_lines, load_source


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


@dataclass(frozen=True)
class TaskCheck:
    """What `check_task` found; ids of problems."""

    checked: int
    no_gold: tuple[str, ...]  #: the task knows no right answer, so nothing can be checked
    gold_fails: tuple[str, ...]  #: the gold answer is graded as wrong
    wrong_passes: tuple[tuple[str, str], ...]  #: (id, answer): a mutated answer is graded as right

    @property
    def ok(self) -> bool:
        """True if each gold answer was right and each mutated one wrong, and every problem had one."""
        return not (self.no_gold or self.gold_fails or self.wrong_passes)


def check_task(task: Task) -> TaskCheck:
    """Grade each problem's gold answer, which must be right, and mutated ones, which must be wrong.

    A number is mutated into its successor, ten times itself plus seven, and its negative minus one; other text into its
    first half, and into words that answer nothing. An empty answer is tried too.

    >>> check_task(Task("mine", (Problem("1", "2 + 2?", "4"), Problem("2", "True?", "True")))).ok
    True
    >>> check_task(Task("lenient", (Problem("1", "2 + 2?", "4"),), lambda problem, answer: True)).wrong_passes[0]
    ('1', '5')
    """
    no_gold, gold_fails, wrong_passes = [], [], []
    for problem in task.problems:
        if not problem.answer:
            no_gold.append(problem.id)
            continue
        if not task.grade(problem, problem.answer):
            gold_fails.append(problem.id)
        wrong_passes += [(problem.id, wrong) for wrong in _mutated(problem.answer) if task.grade(problem, wrong)]
    return TaskCheck(len(task.problems), tuple(no_gold), tuple(gold_fails), tuple(wrong_passes))


def _mutated(gold: str) -> list[str]:
    number = as_number(gold)
    if number is None:
        return [gold[: len(gold) // 2], "no idea", ""]
    return [f"{number + 1:f}", f"{10 * number + 7:f}", f"{-number - 1:f}", ""]


def _branching(split: str, size: int = 2048, seed: int = 0, steps: int = 3, ask: str = "count") -> Task:
    return Task("branching", draw_problems(size, split, seed, steps, ask), split=split)


def _from_source(name: str, split: str, size: int | None = None) -> Task:
    return Task(name, load_source(name, split, size), split=split)


def _json_lines(path: str, split: str, size: int | None = None) -> Task:
    if not Path(path).is_file():
        raise ValueError(f"task 'jsonl:{path}': no such file")
    return Task(f"jsonl:{path}", load_json_lines(Path(path))[:size], split=split)


def _reasoning_gym(generator: str, split: str, size: int = 512, seed: int = 0) -> Task:
    problems = generated_problems(generator, split, size, seed)
    return Task(f"reasoning_gym:{generator}", problems, partial(grade_generated, generator), split)


_TASKS: dict[str, Callable[..., Task]] = {
    "branching": _branching,
    **{name: partial(_from_source, name) for name in SOURCES},
}
_FAMILIES: dict[str, Callable[..., Task]] = {"jsonl": _json_lines, "reasoning_gym": _reasoning_gym}


def list_tasks() -> list[str]:
    """The names that `load_task` knows.

    >>> list_tasks()
    ['branching', 'gsm8k', 'svamp', 'math500', 'aime', 'jsonl:PATH', 'reasoning_gym:GENERATOR']
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
