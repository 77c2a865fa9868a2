"""Accuracy, pass@k and maj@k of a policy on held-out problems, with intervals and per-problem results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from ..policy.model import Policy
from ..rollout.engine import RolloutEngine, SamplingSettings
from ..rollout.protocol import ToolProtocol, load_protocol
from ..sandbox import Sandbox
from ..tasks.task import Task
from ..train.metrics import describe_rollouts, mean
from ..types import Problem, Trajectory
from .stats import Interval, pass_at_k, t_interval, wilson_interval


@dataclass(frozen=True)
class Evaluation:
    """Results of P problems with k samples each."""

    problems: tuple[str, ...]  #: ids (P,)
    correct: tuple[tuple[bool, ...], ...]  #: (P, k)
    answers: tuple[tuple[str | None, ...], ...]  #: (P, k)
    majority_correct: tuple[bool, ...]  #: (P,): is each problem's most frequent answer right
    behaviour: dict[str, float]  #: the rollout metrics of a training step

    @property
    def accuracy(self) -> float:
        """Mean over all samples."""
        return mean([right for row in self.correct for right in row])

    @property
    def interval(self) -> Interval:
        """The accuracy with its 95 % interval over problems: Wilson's at one sample a problem, else Student's t."""
        return _over_problems([mean(row) for row in self.correct])

    def pass_at(self, k: int) -> float:
        """Unbiased estimate that one of k samples is right; k at most the number of samples."""
        return self.pass_interval(k).estimate

    def pass_interval(self, k: int) -> Interval:
        """pass@k with its 95 % interval over problems."""
        return _over_problems([pass_at_k(len(row), sum(row), k) for row in self.correct])

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
    return t_interval(scores) if len(scores) > 1 else Interval(scores[0], 0.0, 1.0)


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
) -> Evaluation:
    """Roll a policy out on a task and grade it.

    Args:
        policy, task: who solves what.
        settings: how to sample; ``temperature=0`` is greedy.
        samples: k rollouts a problem, at least 1.
        problems: how many of the task's problems, from the first; None: all.
        protocol, sandbox: as in `Trainer`; None takes fenced code, and a sandbox of its own.
        seed: of the sampling.

    Returns:
        An `Evaluation` of P problems.

    Raises:
        ValueError: no samples, or no problems.
    """
    for name, number in (("samples", samples), ("problems", problems)):
        if number is not None and number < 1:
            raise ValueError(f"{name}={number}: must be at least 1")
    chosen: Sequence[Problem] = task.problems[:problems]
    with ExitStack() as stack:
        sandbox = sandbox or stack.enter_context(Sandbox())
        engine = RolloutEngine(policy, protocol or load_protocol(), sandbox, settings)
        rollouts = engine.generate(chosen, samples, seed)
    groups = [rollouts[i : i + samples] for i in range(0, len(rollouts), samples)]
    correct = tuple(tuple(task.grade(r.problem, r.answer) for r in group) for group in groups)
    return Evaluation(
        problems=tuple(problem.id for problem in chosen),
        correct=correct,
        answers=tuple(tuple(r.answer for r in group) for group in groups),
        majority_correct=tuple(task.grade(group[0].problem, _most_frequent(group)) for group in groups),
        behaviour=describe_rollouts(rollouts, [right for row in correct for right in row]),
    )


def _most_frequent(group: Sequence[Trajectory]) -> str | None:
    """The most frequent answer; of several, the one given first."""
    counts = Counter(r.answer.strip() for r in group if r.answer is not None)
    return counts.most_common(1)[0][0] if counts else None
