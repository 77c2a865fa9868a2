"""Graded rollouts of a policy on a task, and what they say: accuracy, pass@k and maj@k, with intervals."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from ..credit.provenance import answer_claims, is_supported
from ..policy.model import Policy
from ..rollout.engine import RolloutEngine
from ..rollout.protocol import ToolProtocol, load_protocol
from ..rollout.settings import SamplingSettings
from ..sandbox import Sandbox
from ..tasks.task import Task
from ..train.metrics import describe_rollouts, mean
from ..types import Trajectory
from .stats import Interval, pass_at_k, t_interval, wilson_interval


class Group(NamedTuple):
    """The G rollouts of one problem, and their grades."""

    rollouts: list[Trajectory]
    correct: list[bool | float]


def sample(
    policy: Policy,
    task: Task,
    problems: int = 1,
    group_size: int = 8,
    seed: int = 0,
    settings: SamplingSettings | None = None,
    protocol: ToolProtocol | None = None,
    sandbox: Sandbox | None = None,
    finished: Callable[[Group], None] | None = None,
) -> list[Group]:
    """Roll a policy out on a task's first problems, and grade the answers.

    Args:
        policy, task, problems, group_size: who solves what, how many and how often; both at least 1.
        settings, seed: how to sample (None: the defaults), and with which random numbers.
        protocol, sandbox: None takes fenced code, and a sandbox of its own.
        finished: called with each group as soon as it is whole and graded.

    Returns one `Group` a problem, in the task's order. Raises ValueError for no problems or an empty group, a prompt
    that does not fit, or a grader that fails.

    >>> from gtpo_mini import load_policy, load_task
    >>> groups = sample(load_policy("tiny"), load_task("branching"), problems=2, group_size=3)
    >>> [len(rollouts) for rollouts, correct in groups]
    [3, 3]
    """
    if problems < 1:
        raise ValueError(f"problems={problems}: must be at least 1")
    stopped: dict[int, dict[int, Trajectory]] = {}
    graded: dict[int, Group] = {}

    def grade(number: int, rollout: Trajectory) -> None:
        place = number // group_size
        group = stopped.setdefault(place, {})
        group[number] = rollout
        if len(group) == group_size and place not in graded:  # out of GPU memory, the engine begins again
            rollouts = [group[number] for number in sorted(group)]
            graded[place] = Group(rollouts, [task.grade(rollout.problem, rollout.answer) for rollout in rollouts])
            if finished is not None:
                finished(graded[place])

    with ExitStack() as stack:
        sandbox = sandbox or stack.enter_context(Sandbox())
        engine = RolloutEngine(policy, protocol or load_protocol(), sandbox, settings)
        engine.generate(task.problems[:problems], group_size, seed, grade, task)
    return [graded[place] for place in sorted(graded)]


@dataclass(frozen=True)
class Evaluation:
    """Results of P problems with k samples each."""

    problems: tuple[str, ...]  #: ids (P,)
    correct: tuple[tuple[bool | float, ...], ...]  #: (P, k); numbers where the task grades so
    answers: tuple[tuple[str | None, ...], ...]  #: (P, k)
    majority_correct: tuple[bool, ...]  #: (P,): is each problem's most frequent answer right
    behaviour: dict[str, float]  #: the rollout metrics of a training step, and `describe_support`
    guess_rate: float = 0.0  #: share of the task's problems that a guess gets right

    @property
    def accuracy(self) -> float:
        """Mean over all samples."""
        return mean([right for row in self.correct for right in row])

    @property
    def above_guessing(self) -> float:
        """The accuracy less what guesses give: 0 for a policy that only guesses, 1 where all is right."""
        return (self.accuracy - self.guess_rate) / (1 - self.guess_rate)

    @property
    def interval(self) -> Interval:
        """The accuracy with its 95 % interval over problems: Wilson's at one sample a problem, else Student's t."""
        return _over_problems([mean(row) for row in self.correct])

    def __str__(self) -> str:
        """Accuracy, and with several samples pass@k and maj@k, with their 95 % intervals."""
        samples = len(self.correct[0])
        found = {"accuracy": self.interval}
        found |= {f"pass@{k}": self.pass_interval(k) for k in powers_of_two(samples) if k > 1}
        found |= {f"maj@{samples}": self.majority_interval} if samples > 1 else {}
        parts = [f"{name} {i.estimate:.3f} [{i.low:.3f}, {i.high:.3f}]" for name, i in found.items()]
        if self.guess_rate:
            parts.append(f"{self.above_guessing:.3f} above guessing (a guess is right in {self.guess_rate:.0%})")
        return ", ".join(parts)

    def pass_at(self, k: int) -> float:
        """Unbiased estimate that at least one of k samples is right; k at most the number of samples."""
        return self.pass_interval(k).estimate

    def pass_interval(self, k: int) -> Interval:
        """pass@k with its 95 % interval over problems."""
        return _over_problems([pass_at_k(len(row), sum(grade == 1 for grade in row), k) for row in self.correct])

    @property
    def majority(self) -> float:
        """maj@k: share of problems whose most frequent answer is right."""
        return mean(self.majority_correct)

    @property
    def majority_interval(self) -> Interval:
        """maj@k with its 95 % interval over problems."""
        return _over_problems([float(right) for right in self.majority_correct])

    def record(self) -> dict:
        """As plain data for a recorded run; per problem, so that two evaluations can be paired."""
        return {
            "accuracy": self.accuracy,
            "above_guessing": self.above_guessing,
            "interval": list(self.interval[1:]),
            "pass_at": {str(k): list(self.pass_interval(k)) for k in powers_of_two(len(self.correct[0]))},
            "majority": self.majority,
            "majority_interval": list(self.majority_interval[1:]),
            "per_problem": {key: mean(row) for key, row in zip(self.problems, self.correct, strict=True)},
            "behaviour": self.behaviour,
        }


def _over_problems(scores: Sequence[float]) -> Interval:
    """Mean of one score a problem: Wilson's interval where all are 0 or 1, else Student's t."""
    if set(scores) <= {0.0, 1.0}:
        return wilson_interval(round(sum(scores)), len(scores))
    return t_interval(scores, share=True) if len(scores) > 1 else Interval(scores[0], 0.0, 1.0)


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... and ``most`` itself."""
    return sorted({*(2**i for i in range(most.bit_length())), most})


def evaluate(
    policy: Policy,
    task: Task,
    settings: SamplingSettings | None = None,
    samples: int = 1,
    problems: int | None = None,
    protocol: ToolProtocol | None = None,
    sandbox: Sandbox | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    header: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Roll a policy out on a task and grade it: `sample`, counted.

    Args:
        policy, task, seed, protocol, sandbox: as in `sample`.
        settings: how to sample; ``temperature=0`` is greedy.
        samples, problems: k >= 1 rollouts for each of the task's first P problems; None: for all.
        output: a new JSON-lines file for `compare`: a header (with what ``header`` holds), a line a problem as soon as
            its samples are graded (a call that is killed leaves those), and the totals.

    Returns an `Evaluation` of P problems. Raises ValueError for no samples or no problems, or for a file that is there
    already or cannot be written.
    """
    for name, number in (("samples", samples), ("problems", problems)):
        if number is not None and number < 1:
            raise ValueError(f"{name}={number}: must be at least 1")
    chosen = task.problems[:problems]
    right, graded = 0.0, 0  # so far
    bar = tqdm(total=len(chosen), desc=f"{task.name} ({task.split})", unit="problem", leave=False)
    lines: dict[int, dict[str, Any]] = {}  # of each group, by the object: ids of an own task may repeat
    with bar, open(require_new(output) if output else os.devnull, "a", encoding="utf-8") as file:

        def write(kind: str, facts: Mapping[str, Any]) -> None:
            if output:
                print(json.dumps({"kind": kind, **facts}), file=file, flush=True)

        def finished(group: Group) -> None:
            problem, answers = group.rollouts[0].problem, [rollout.answer for rollout in group.rollouts]
            digest = hashlib.sha256(problem.question.encode()).hexdigest()[:16]  # one id may name two questions
            line = {"id": problem.id, "question": digest, "gold": problem.answer, "correct": group.correct}
            counts = Counter(answer.strip() for answer in answers if answer is not None)
            most_frequent = counts.most_common(1)[0][0] if counts else None  # of several, the one given first
            majority = task.grade(problem, most_frequent)
            lines[id(group)] = {**line, "answers": answers, "majority_correct": majority}
            write("problem", lines[id(group)])
            nonlocal right, graded
            right, graded = right + sum(group.correct), graded + len(group.correct)
            bar.set_postfix(accuracy=f"{right / graded:.3f}", refresh=False)
            bar.update()

        facts = {"task": task.name, "split": task.split, **(header or {}), "problems": len(chosen), "samples": samples}
        write("header", facts)
        groups = sample(policy, task, len(chosen), samples, seed, settings, protocol, sandbox, finished)
        rows = [lines[id(group)] for group in groups]
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        grades = [grade for row in rows for grade in row["correct"]]
        result = Evaluation(
            problems=tuple(problem.id for problem in chosen),
            correct=tuple(tuple(row["correct"]) for row in rows),
            answers=tuple(tuple(row["answers"]) for row in rows),
            majority_correct=tuple(row["majority_correct"] for row in rows),
            behaviour=describe_rollouts(rollouts, grades) | describe_support(rollouts, grades),
            guess_rate=task.guess_rate,
        )
        write("totals", {key: value for key, value in result.record().items() if key != "per_problem"})
    return result


def describe_support(rollouts: Sequence[Trajectory], grades: Sequence[bool | float]) -> dict[str, float]:
    """Share of the answers that rest on the tool (`is_supported`), and the accuracy of those and of the others.

    Of an answer that is itself a program it says little: its numbers are few, and seldom printed.
    """
    claims = [answer_claims(rollout) for rollout in rollouts]
    pairs = [(is_supported(found), grade) for found, grade in zip(claims, grades, strict=True) if found]
    sides = {kind: [grade for supported, grade in pairs if supported == kind] for kind in (True, False)}
    return {
        "answer/supported": len(sides[True]) / max(1, len(pairs)),
        "answer/right_if_supported": mean(sides[True]),
        "answer/right_if_not": mean(sides[False]),
    }


def require_new(path: str | Path) -> Path:
    """The path of a file that can be made, or a ValueError, before hours of work; its folder is made."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("x").close()
        path.unlink()
    except OSError as error:
        why = f"cannot be written ({error.strerror}); choose another file"
        if isinstance(error, FileExistsError) and path.exists():
            why = "is a folder; name a file" if path.is_dir() else "is there already; choose another file"
        raise ValueError(f"output={str(path)!r}: {why}") from error
    return path
