"""Accuracy, pass@k and maj@k of a policy on held-out problems, with intervals; per-problem results in a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..policy.model import Policy
from ..rollout.protocol import ToolProtocol
from ..rollout.settings import SamplingSettings
from ..sandbox import Sandbox
from ..tasks.task import Task
from ..train.metrics import describe_rollouts, mean
from ..types import Problem, Trajectory
from .sample import Group, sample
from .stats import Interval, pass_at_k, t_interval, wilson_interval


@dataclass(frozen=True)
class Evaluation:
    """Results of P problems with k samples each; intervals are 95 %, over problems."""

    problems: tuple[str, ...]  #: ids (P,)
    correct: tuple[tuple[bool | float, ...], ...]  #: (P, k)
    answers: tuple[tuple[str | None, ...], ...]  #: (P, k)
    majority_correct: tuple[bool | float, ...]  #: (P,): is each problem's most frequent answer right
    behaviour: dict[str, float]  #: the rollout metrics of a training step

    @property
    def accuracy(self) -> float:
        """Mean over all samples."""
        return mean([right for row in self.correct for right in row])

    @property
    def interval(self) -> Interval:
        """The accuracy with its interval: Wilson's at one sample a problem, else Student's t."""
        return _over_problems([mean(row) for row in self.correct])

    def pass_at(self, k: int) -> float:
        """Unbiased estimate that one of k samples is right; k at most the number of samples."""
        return self.pass_interval(k).estimate

    def pass_interval(self, k: int) -> Interval:
        """pass@k with its interval."""
        return _over_problems([pass_at_k(len(row), sum(right == 1 for right in row), k) for row in self.correct])

    @property
    def majority(self) -> float:
        """maj@k: share of problems whose most frequent answer is right."""
        return mean(self.majority_correct)

    @property
    def majority_interval(self) -> Interval:
        """maj@k with its interval."""
        return _over_problems([float(right) for right in self.majority_correct])

    def record(self) -> dict[str, Any]:
        """As plain data for a recorded run; per problem, so that two evaluations can be paired."""
        return {
            "accuracy": self.accuracy,
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
    """1, 2, 4, ... and ``most`` itself.

    >>> powers_of_two(6)
    [1, 2, 4, 6]
    """
    return [*(k for k in (2**i for i in range(most.bit_length())) if k < most), most]


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
    """Roll a policy out on a task and grade it.

    Args:
        policy, task: who solves what.
        settings: how to sample; ``temperature=0`` is greedy.
        samples: k rollouts a problem, at least 1.
        problems: how many of the task's problems, from the first; None: all.
        protocol, sandbox: as in `Trainer`; None takes fenced code, and a sandbox of its own.
        seed: of the sampling.
        output: a new JSON-lines file, for `compare`: a header, then a line a problem as soon as its samples are graded
            (a call that is killed leaves those), in the end all of them in order under a header with the totals.
        header: more facts for that header.

    Returns:
        An `Evaluation` of P problems.

    Raises:
        ValueError: no samples or no problems; an output file that is there already, or cannot be written.
    """
    for name, number in (("samples", samples), ("problems", problems)):
        if number is not None and number < 1:
            raise ValueError(f"{name}={number}: must be at least 1")
    chosen = task.problems[:problems]
    facts = {"kind": "header", "task": task.name, "split": task.split, "samples": samples, **(header or {})}
    facts["problems"] = len(chosen)
    lines: dict[str, dict] = {}
    with ExitStack() as stack:
        if output is not None:
            require_new_file(output)
            file = stack.enter_context(Path(output).open("w", encoding="utf-8"))
            file.write(json.dumps(facts) + "\n")

        def finished(group: Group) -> None:
            problem = group.rollouts[0].problem
            lines[problem.id] = _line(problem, group, task)
            if output is not None:
                file.write(json.dumps(lines[problem.id]) + "\n")
                file.flush()

        groups = sample(policy, task, len(chosen), samples, seed, settings, protocol, sandbox, finished)
    rows = [lines[problem.id] for problem in chosen]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    found = Evaluation(
        problems=tuple(problem.id for problem in chosen),
        correct=tuple(tuple(row["correct"]) for row in rows),
        answers=tuple(tuple(row["answers"]) for row in rows),
        majority_correct=tuple(row["majority_correct"] for row in rows),
        behaviour=describe_rollouts(rollouts, [right for group in groups for right in group.correct]),
    )
    if output is not None:
        totals = {key: value for key, value in found.record().items() if key != "per_problem"}
        new = Path(f"{output}.new")
        new.write_text("".join(json.dumps(line) + "\n" for line in ({**facts, **totals}, *rows)), encoding="utf-8")
        os.replace(new, output)
    return found


def require_new_file(path: str | Path) -> None:
    """Before hours of work: is there room for their results? Nothing is left there.

    Raises:
        ValueError: a file is there already, or none can be written.
    """
    path = Path(path)
    if path.is_file():
        raise ValueError(f"output={str(path)!r}: is there already; choose another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("x").close()
        path.unlink()
    except OSError as error:
        raise ValueError(f"output={str(path)!r}: cannot be written ({error.strerror}); choose another file") from error


def _line(problem: Problem, group: Group, task: Task) -> dict[str, Any]:
    """A problem's line of a results file; a digest of the question, so that equal ids of other problems show."""
    return {
        "kind": "problem",
        "id": problem.id,
        "question": hashlib.sha256(problem.question.encode()).hexdigest()[:16],
        "gold": problem.answer,
        "correct": group.correct,
        "answers": [rollout.answer for rollout in group.rollouts],
        "majority_correct": task.grade(problem, _most_frequent(group.rollouts)),
    }


def _most_frequent(rollouts: Sequence[Trajectory]) -> str | None:
    """The most frequent answer; of several, the one given first."""
    counts = Counter(rollout.answer.strip() for rollout in rollouts if rollout.answer is not None)
    return counts.most_common(1)[0][0] if counts else None
