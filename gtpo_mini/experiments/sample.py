"""Graded rollouts of one policy on one task: what notebooks, evaluations and a first look all begin with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from ..policy.model import Policy
from ..rollout.engine import RolloutEngine
from ..rollout.protocol import ToolProtocol, load_protocol
from ..rollout.settings import SamplingSettings
from ..sandbox import Sandbox
from ..tasks.task import Task
from ..types import Trajectory


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
        policy, task: who solves what.
        problems: how many of the task's problems, from the first; at least 1.
        group_size: rollouts a problem, at least 1.
        seed: of the sampling.
        settings: how to sample; None: the defaults.
        protocol, sandbox: None takes fenced code, and a sandbox of its own.
        finished: called with each group as soon as it is whole and graded.

    Returns:
        One `Group` a problem, in the task's order.

    Raises:
        ValueError: no problems or an empty group; a prompt that does not fit; a grader that fails.

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
        engine.generate(task.problems[:problems], group_size, seed, grade)
    return [graded[place] for place in sorted(graded)]
