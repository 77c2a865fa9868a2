"""Problems with a grader: the offline task, data sets of the hub, reasoning-gym's generators, JSON lines, your own."""

from __future__ import annotations

import inspect
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from ..sandbox import Sandbox
from ..sandbox.client import Session
from ..types import Problem, Turn, import_named
from . import facts, programs, questions, submissions, workspace
from .branching import draw_problems
from .grading import as_number, generator_accepts, same_answer
from .rows import SOURCES, generated_problems, load_json_lines, load_source

_SECONDS = 60.0  # for one call of a task's own function


class GraderError(ValueError):
    """A function of a task raised, took too long, or returned something else than it has to."""


@dataclass(frozen=True)
class Task:
    """A named set of problems with a grader. An own task is ``Task(name, problems, grader)``.

    ``setup(problem)`` is code that runs first in each rollout's session: facts, functions, examples.
    ``turn_reward(problem, turns)`` is the task's own reward, a number, of the last of the turns so far; it must be
    earned by what the turn did (its code, its result) and not by what it says. Arms with ``progress`` add it.

    >>> task = Task("mine", (Problem("1", "2 + 2?", "4"),))
    >>> task.grade(task.problems[0], " 4.0 ")
    True
    """

    name: str
    problems: Sequence[Problem]
    grader: Callable[[Problem, str], bool | float] = lambda problem, answer: same_answer(problem.answer, answer)
    setup: Callable[[Problem], str] | None = None
    turn_reward: Callable[[Problem, Sequence[Turn]], float] | None = None
    _: KW_ONLY
    split: str = "train"
    partial_credit: bool = False  #: the grader returns a number in [0, 1]
    guess_rate: float = 0.0  #: share of problems that a guess gets right, in [0, 1)
    wrong_answers: Callable[[Problem], Iterable[str]] | None = None  #: for `check_task`; None: made from the gold one

    def __post_init__(self) -> None:
        if not isinstance(self.problems, Sequence) or not all(isinstance(one, Problem) for one in self.problems):
            raise ValueError(f"task {self.name!r}: problems must be a list or tuple of Problem")
        if not self.problems:
            raise ValueError(f"task {self.name!r} ({self.split}) holds no problem")
        if not 0 <= self.guess_rate < 1:
            raise ValueError(f"task {self.name!r}: guess_rate={self.guess_rate}: must be in [0, 1)")

    def grade(self, problem: Problem, answer: str | None) -> bool | float:
        """Whether ``answer`` is right, or with ``partial_credit`` how much of it, in [0, 1]; None (no answer) is wrong.

        A `GraderError` says that the grader raised, took over a minute, or returned neither a bool nor, with
        ``partial_credit``, a grade.
        """
        wanted = "a number in [0, 1]" if self.partial_credit else "a bool (for a number: Task(partial_credit=True))"
        grade = self._call("grader", problem, answer) if answer is not None else False
        if not self.partial_credit and isinstance(grade, bool | np.bool_):
            return bool(grade)
        if self.partial_credit and isinstance(grade, Real | np.bool_) and 0 <= grade <= 1:
            return float(grade)
        raise self._error("grader", problem, f"returned {_shown(grade)}, which is not {wanted}")

    def session(self, sandbox: Sandbox, problem: Problem) -> Session:
        """A session in which the problem's setup has run; a `GraderError` where it cannot."""
        code = self._call("setup", problem) if self.setup is not None else ""
        if not isinstance(code, str):
            raise self._error("setup", problem, f"returned a {type(code).__name__}, which is no code")
        session = sandbox.session()
        if code and not (result := session.prepare(code)).ok:
            session.close()
            reason = result.error.strip().rpartition("\n")[2]
            raise self._error("setup", problem, f"wrote code that does not run: {reason}")
        return session

    def reward_turns(self, problem: Problem, turns: Sequence[Turn]) -> list[Turn]:
        """The turns of a rollout, each with what the task gives for it; a `GraderError` where it gives no number."""
        if self.turn_reward is None:
            return list(turns)
        found = [self._call("turn_reward", problem, turns[: number + 1]) for number in range(len(turns))]
        for reward in found:
            if not isinstance(reward, Real | np.bool_) or not abs(reward) <= sys.float_info.max:
                raise self._error("turn_reward", problem, f"returned {_shown(reward)}, which is no finite number")
        return [replace(turn, progress=float(reward)) for turn, reward in zip(turns, found, strict=True)]

    def _call(self, name: str, problem: Problem, *arguments: Any) -> Any:
        """One of the task's own functions, with every way in which it can fail as one error."""
        try:
            return within(_SECONDS, lambda: getattr(self, name)(problem, *arguments))
        except TimeoutError:
            raise self._error(name, problem, f"did not come back within {_SECONDS:g} seconds") from None
        except (Exception, SystemExit) as error:
            raise self._error(name, problem, f"raised {type(error).__name__}: {_shown(error, str)}") from error

    def _error(self, name: str, problem: Problem, what: str) -> GraderError:
        return GraderError(f"task {self.name!r}, problem {problem.id!r}: the {name} {what}")


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call returns, or a TimeoutError: by a signal where it can be, which also ends a search of ``re``.

    In other threads than the main one, or where a signal is used already, a call that hangs is left behind.
    """

    def stop(*_: Any) -> None:
        raise _Late

    free = hasattr(signal, "SIGALRM") and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    if free and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return call()
        except _Late:
            raise TimeoutError from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def answer() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=answer, daemon=True).start()
    try:
        found, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return found


class _Late(BaseException):
    """Not an Exception: an own function must not take it for one of its own."""


def _shown(value: Any, how: Callable[[Any], str] = repr) -> str:
    """A value as a short line, also where it cannot show itself."""
    try:
        line = how(value).strip().partition("\n")[0]
    except Exception:
        line = f"a {type(value).__name__} that cannot be shown"
    return line if len(line) <= 200 else f"{line[:200]}..."


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

    def __str__(self) -> str:
        found = {
            "whose gold answer is graded wrong": self.gold_fails,
            "wrong answers graded right": [f"{key} {text[:60]!r}" for key, text in self.wrong_passes],
            "without gold answer": self.no_gold,
        }
        parts = [f"{len(ids)} {what}" + (f" (ids: {', '.join(ids[:5])})" if ids else "") for what, ids in found.items()]
        return f"{self.checked} problems, {', '.join(parts)}"


def check_task(task: Task) -> TaskCheck:
    """Grade each problem's gold answer, which must be right, and others, which must be wrong.

    Setup and turn reward are run too. A `GraderError` names a function of the task that fails.

    >>> check_task(Task("mine", (Problem("1", "2 + 2?", "4"), Problem("2", "True?", "True")))).ok
    True
    >>> check_task(Task("lenient", (Problem("1", "2 + 2?", "4"),), lambda problem, answer: True)).wrong_passes[0]
    ('1', '5')
    """
    no_gold, gold_fails, wrong_passes = [], [], []
    if task.setup is not None:
        with Sandbox() as sandbox:
            for problem in task.problems:
                task.session(sandbox, problem).close()
    for problem in task.problems:
        task.reward_turns(problem, [Turn("")])
        if not problem.answer:
            no_gold.append(problem.id)
            continue
        if task.grade(problem, problem.answer) < 1:
            gold_fails.append(problem.id)
        mutated = [problem.answer[: len(problem.answer) // 2], "no idea", ""]
        if task.wrong_answers is not None:
            mutated += task._call("wrong_answers", problem)
        elif (number := as_number(problem.answer)) is not None:
            mutated = [f"{number + 1:f}", f"{10 * number + 7:f}", f"{-number - 1:f}", ""]
        wrong_passes += [(problem.id, wrong) for wrong in mutated if task.grade(problem, wrong) == 1]
    return TaskCheck(len(task.problems), tuple(no_gold), tuple(gold_fails), tuple(wrong_passes))


def _branching(split: str, size: int = 2048, seed: int = 0, steps: int = 3, ask: str = "count") -> Task:
    rate = 0.5 if ask == "parity" else 0.0
    return Task("branching", draw_problems(size, split, seed, steps, ask), split=split, guess_rate=rate)


def _facts(split: str, size: int = 2048, seed: int = 0, hops: int = 3, ask: str = "entity") -> Task:
    problems, rate = facts.draw_problems(size, split, seed, hops, ask), 0.5 if ask == "yes_no" else 0.0
    own = {"turn_reward": facts.turn_reward, "wrong_answers": facts.wrong_answers}
    return Task("facts", problems, facts.grade, facts.setup, **own, split=split, guess_rate=rate)


def _workspace(split: str, size: int = 2048, seed: int = 0, hops: int = 2, ask: str = "value") -> Task:
    problems, rate = workspace.draw_problems(size, split, seed, hops, ask), 0.1 if ask == "fault" else 0.0
    own = {"setup": workspace.setup, "wrong_answers": workspace.wrong_answers}
    return Task("workspace", problems, workspace.grade, **own, split=split, guess_rate=rate)


def _strategyqa(split: str, size: int | None = None) -> Task:
    problems = questions.load_strategyqa(split, size)
    own = {"setup": questions.setup_look_up, "turn_reward": questions.reward_facts}
    return Task("strategyqa", problems, questions.grade_yes_no, **own, split=split, guess_rate=0.5)


def _commonsense_qa(split: str, size: int | None = None) -> Task:
    problems, own = questions.load_commonsense_qa(split, size), {"wrong_answers": questions.wrong_choices}
    return Task("commonsense_qa", problems, questions.grade_choice, **own, split=split, guess_rate=0.2)


def _programs(split: str, size: int = 2048, seed: int = 0, difficulty: int = 2) -> Task:
    problems = programs.draw_problems(size, split, seed, difficulty)
    functions = (submissions.grade, programs.setup, submissions.turn_reward)
    return Task("programs", problems, *functions, split=split, wrong_answers=submissions.wrong_answers)


def _asserted(name: str, split: str, size: int | None = None) -> Task:
    problems = {"humaneval": submissions.load_humaneval, "mbpp": submissions.load_mbpp}[name](split, size)
    functions = (submissions.grade_asserted, programs.setup, submissions.turn_reward)
    return Task(name, problems, *functions, split=split, wrong_answers=submissions.wrong_asserted)


def _from_source(name: str, split: str, size: int | None = None) -> Task:
    return Task(name, load_source(name, split, size), split=split)


def _json_lines(path: str, split: str, size: int | None = None) -> Task:
    if not Path(path).is_file():
        raise ValueError(f"task 'jsonl:{path}': no such file")
    return Task(f"jsonl:{path}", load_json_lines(Path(path))[:size], split=split)


def _reasoning_gym(generator: str, split: str, size: int = 512, seed: int = 0) -> Task:
    def accepts(problem: Problem, answer: str) -> bool:
        return generator_accepts(generator, problem.metadata, answer)

    problems = generated_problems(generator, split, size, seed)
    return Task(f"reasoning_gym:{generator}", problems, accepts, split=split)


_TASKS = {"branching": _branching, "programs": _programs, "facts": _facts, "workspace": _workspace}
_TASKS |= {name: partial(_from_source, name) for name in SOURCES}
_TASKS |= {name: partial(_asserted, name) for name in ("humaneval", "mbpp")}
_TASKS |= {"strategyqa": _strategyqa, "commonsense_qa": _commonsense_qa}
_FAMILIES = {"jsonl": _json_lines, "reasoning_gym": _reasoning_gym}


def list_tasks() -> list[str]:
    """The names that `load_task` knows.

    >>> print(*list_tasks())  # doctest: +NORMALIZE_WHITESPACE
    branching programs facts workspace gsm8k svamp math500 aime mbpp humaneval strategyqa commonsense_qa
    jsonl:PATH reasoning_gym:GENERATOR MODULE:NAME
    """
    return [*_TASKS, "jsonl:PATH", "reasoning_gym:GENERATOR", "MODULE:NAME"]


def load_task(name: str, split: str = "train", **options) -> Task:
    """Load a task by name.

    Args:
        name: one of `list_tasks`, also with options, as in "facts,hops=4,ask=yes_no". ``jsonl:PATH`` reads one object
            a line with ``question`` and ``answer`` (and ``id``, if you like); it is the same for every split, so give
            held-out problems a file of their own.
            ``MODULE:NAME`` is an own `Task`, the same for every split, or a callable that returns one; it gets
            ``split``, if it has a parameter of that name, and ``options``.
        split: "train" or "test".
        options: ``size`` (all tasks: how many problems), ``seed`` (generated tasks), ``steps`` (branching, 3-8),
            ``difficulty`` (programs: steps of a function, 1-4), ``hops`` (facts, 2-4; workspace, 1-4), ``ask``
            (branching: "count" or "parity"; facts: "entity" or "yes_no"; workspace: "value" or "fault").

    Raises ValueError for an unknown name, split or option, or rows without question or answer, with their lines.

    >>> len(load_task("branching", split="test", size=5).problems)
    5
    """
    if "," in name and name.partition(",")[0] in _TASKS:
        name, *parts = name.split(",")
        if not all("=" in part for part in parts):
            raise ValueError(f"task {name!r}: {','.join(parts)!r} must be KEY=VALUE, separated by commas")
        given = dict(part.split("=", 1) for part in parts)
        options = {**options, **{key: int(value) if value.isdecimal() else value for key, value in given.items()}}
    family, _, rest = name.partition(":")
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: must be 'train' or 'test'")
    if name not in _TASKS and not (family and rest):
        raise ValueError(f"unknown task {name!r}; known: {', '.join(list_tasks())}")
    make = _TASKS.get(name) or (partial(_FAMILIES[family], rest) if family in _FAMILIES else _own(name))
    for key in ("size", "seed", "steps", "hops", "difficulty"):
        value = options.get(key)
        if not isinstance(value, int | None) or (key == "size" and value is not None and value < 1):
            raise ValueError(f"{key}={value!r}: must be a whole number" + " from 1 up" * (key == "size"))
    takes = {} if isinstance(make, Task) else inspect.signature(make).parameters
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    size = None if every or "size" in takes else options.pop("size", None)  # an own task's first problems
    if unknown := [] if every else sorted(set(options) - set(takes)):
        raise ValueError(f"task {name!r} has no option {unknown[0]!r}")
    if every or "split" in takes:
        options["split"] = split
    task = make if isinstance(make, Task) else _made(name, make, options)
    if not isinstance(task, Task):
        raise ValueError(f"task {name!r}: returned a {type(task).__name__} and not a Task")
    return task if size is None else replace(task, problems=task.problems[:size])


def _made(name: str, make: Callable[..., Task], options: dict[str, Any]) -> Any:
    try:
        return make(**options)
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"task {name!r}: raised {type(error).__name__}: {_shown(error, str)}") from error


def _own(name: str) -> Task | Callable[..., Task]:
    found = import_named("task", name)
    if isinstance(found, Task) or callable(found):
        return found
    raise ValueError(f"task {name!r}: is a {type(found).__name__}, not a Task or a callable that returns one")
