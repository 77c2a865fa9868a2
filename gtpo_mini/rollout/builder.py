"""A rollout under way: it grows token by token, and becomes a `Trajectory` when it stops."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ..types import ExecutionResult, Problem, StopReason, Trajectory, Turn


@dataclass(eq=False)
class Ongoing:
    """A rollout under way. ``ids[:cached]`` are in the cache, in row ``row``."""

    number: int
    group: int
    problem: Problem
    prompt_length: int
    ids: list[int]
    mask: list[int]
    index: list[int]
    logprobs: list[float]
    row: int = -1
    cached: int = 0
    turn_start: int = 0
    uniforms: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    turn: Turn | None = None  # the turn that waits for its tool
    pending: Future[ExecutionResult] | None = None
    due: int = 0  # the step at which the tool's result enters
    late: bool = False  # it was not there then: nobody waits for it any more
    session: Any = None
    stop: StopReason | None = None
    answer: str | None = None

    def push(self, token: int, logprob: float) -> None:
        """One token of the policy."""
        self.ids.append(token)
        self.mask.append(1)
        self.index.append(len(self.turns))
        self.logprobs.append(logprob)

    def read_result(self, ids: Sequence[int]) -> None:
        """The tool's text."""
        self.ids.extend(ids)
        self.mask.extend([0] * len(ids))
        self.index.extend([len(self.turns)] * len(ids))
        self.logprobs.extend([0.0] * len(ids))

    def freeze(self) -> Trajectory:
        """What it has become."""
        return Trajectory(
            problem=self.problem,
            token_ids=tuple(self.ids),
            prompt_length=self.prompt_length,
            loss_mask=tuple(self.mask),
            turn_index=tuple(self.index),
            logprobs=tuple(self.logprobs),
            turns=tuple(self.turns),
            stop=self.stop,
            answer=self.answer,
        )
