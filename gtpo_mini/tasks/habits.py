"""Habits of a simulated solver, whose solutions a cold start imitates: what it gets wrong, and how steadily.

Errors drawn anew at every token are noise that a greedy policy does not have: nothing is left to learn. So a wrong
idea belongs to a kind of step, is held for the whole rollout, and is more often wrong than not where it is to be
learned: the greedy policy has it too.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from dataclasses import dataclass

from ..types import ExecutionResult

#: A simulated solver at work: it yields the text of each turn, and is sent the result of its call.
Texts = Generator[str, ExecutionResult | None, None]


@dataclass(frozen=True)
class Habits:
    """How a simulated solver errs; chances in [0, 1]."""

    mistaken: Mapping[str, float]  #: kind of step -> chance that a rollout has a wrong idea of it; others: never
    broken: float = 0.1  #: a call does not run (an unclosed bracket, a wrong name); the next one is whole
    revise: float = 0.5  #: a wrong idea is given up where the tool's output shows that something is wrong


class Solver:
    """One rollout's mind: a wrong idea stays until it is revised.

    >>> solver = Solver(Habits({"times": 1.0}), random.Random(0))
    >>> solver.mistakes("times"), solver.mistakes("plus")
    (True, False)
    """

    def __init__(self, habits: Habits, rng: random.Random) -> None:
        self.habits, self.rng, self._mistakes = habits, rng, dict[str, bool]()

    def mistakes(self, kind: str) -> bool:
        """Whether this rollout has a wrong idea of a kind of step."""
        if kind not in self._mistakes:
            self._mistakes[kind] = self.rng.random() < self.habits.mistaken.get(kind, 0.0)
        return self._mistakes[kind]

    def breaks(self) -> bool:
        """Whether this call is one that does not run."""
        return self.rng.random() < self.habits.broken

    def reconsiders(self) -> None:
        """The tool's output shows that something is wrong: each wrong idea may go."""
        for kind, wrong in self._mistakes.items():
            self._mistakes[kind] = wrong and self.rng.random() >= self.habits.revise
