"""Where training starts: families of offline problems, their tiny policies, and regimes, other starts and variants.

A start decides what can be learned. The shipped policy of 'branching' (`noisy`) errs by chance: greedy, it is right
four times in five, so that training mostly takes noise away. The others hold wrong ideas, more often than right ones,
of some kinds of step: greedy they are hardly more often right than sampled, and there is something to learn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..types import Problem
from . import branching, facts, programs
from .branching import TraceNoise
from .habits import Habits, Texts


@dataclass(frozen=True)
class Stage:
    """One stage of the cold start: how many traces to imitate, for how many steps of AdamW (warm-up, then cosine)."""

    traces: int
    steps: int
    learning_rate: float
    noise: TraceNoise | Habits
    task: Mapping[str, object] = field(default_factory=dict)  #: options of `draw_problems`: steps, ask


def ideas(
    kinds: Sequence[str], wrong: Sequence[str], chance: float, revise: float = 0.2, others: float = 0.03
) -> Habits:
    """Habits of a solver that has a wrong idea of the kinds ``wrong`` with that chance, and seldom of the others."""
    return Habits({kind: chance if kind in wrong else others for kind in kinds}, revise=revise)


def _skill(kinds: Sequence[str]) -> Stage:
    """A first stage: some mistakes of every kind, so that putting them right is learned too."""
    return Stage(20000, 3000, 3e-3, Habits(dict.fromkeys(kinds, 0.12), revise=0.9))


@dataclass(frozen=True)
class Family:
    """A family of offline problems: how they are drawn, how a simulated solver writes, and its tiny policy."""

    model: str  #: of `load_policy`
    draw: Callable[..., tuple[Problem, ...]]
    write: Callable[[Problem, random.Random, Any], Texts]
    stages: tuple[Stage, ...]  #: of its cold start: first the skill, then habits, so that there is something to unlearn


FAMILIES = {
    "branching": Family(
        "tiny",
        branching.draw_problems,
        branching.write_turns,
        (
            Stage(20000, 3000, 3e-3, TraceNoise(bad_call=0.3, recover=0.6)),
            Stage(5000, 300, 1e-3, TraceNoise(bad_call=0.5, recover=0.5, invalid=0.5)),
        ),
    ),
    "programs": Family(
        "tiny-programs",
        programs.draw_problems,
        programs.write_turns,
        (_skill(programs.KINDS), Stage(5000, 300, 1e-3, ideas(programs.KINDS, programs.KINDS, 0.9, 0.1))),
    ),
    "facts": Family(
        "tiny-facts",
        facts.draw_problems,
        facts.write_turns,
        (_skill(facts.KINDS), Stage(5000, 300, 1e-3, ideas(facts.KINDS, ("boss", "owner", "guard"), 0.6))),
    ),
}

_BASE = FAMILIES["branching"].stages[-1].noise  # the shipped policy's own habits
_WEAK = replace(_BASE, bad_call=0.7, recover=0.3)
_BROKEN_GUESSES = replace(_BASE, bad_call=0.6, recover=0.3, invalid=0.8, skip=0.15)
_LONG = ({"steps": 5}, {"max_turns": 9, "max_context": 512})
_PARITY = {"ask": "parity"}
_branching, _programs, _facts = (partial(ideas, of.KINDS) for of in (branching, programs, facts))
_IN_PROGRAMS = {"family": "programs", "changes": {"max_turn_tokens": 96, "max_context": 512}}
_IN_FACTS = {"family": "facts", "changes": {"max_turns": 8, "max_turn_tokens": 48, "max_context": 384}}


@dataclass(frozen=True)
class Regime:
    """A start, and a variant of the task."""

    special: str  #: what is special here
    noise: TraceNoise | Habits | None  #: the habits that its starting policy imitates; None: the family's own policy
    task: dict = field(default_factory=dict)  #: options of the family's task
    changes: dict = field(default_factory=dict)  #: of the training configuration
    family: str = "branching"


REGIMES: dict[str, Regime] = {
    "no_broken": Regime("bad calls run, and print something wrong", replace(_BASE, invalid=0.0)),
    "all_broken": Regime("every bad call is broken", replace(_BASE, invalid=1.0)),
    "weak": Regime("few right answers at the start", _WEAK),
    "strong": Regime("mostly right at the start", replace(_BASE, bad_call=0.2)),
    "long": Regime("five steps instead of three", _BASE, *_LONG),
    "hopeless": Regime("five steps, hardly ever right", _WEAK, *_LONG),
    "guess": Regime("even or odd: half of all guesses are right", replace(_BASE, skip=0.15), _PARITY),
    "guess_broken": Regime("guesses pay, and most bad calls are broken", _BROKEN_GUESSES, _PARITY),
    "rare_clean": Regime(
        "more than half of all calls are broken, and each is written again",
        TraceNoise(bad_call=0.65, recover=1.0, invalid=1.0),
        changes={"max_turns": 9, "max_context": 448},
    ),
    "facts_guess": Regime(
        "yes or no: one rollout in five guesses, and the tool is asked with wrong ideas",
        Habits({**dict.fromkeys((*facts.PROPERTIES, "exception"), 0.25), "guess": 0.2}),
        {"hops": 2, "ask": "yes_no"},
        **_IN_FACTS,
    ),
    "noisy": Regime("the shipped policy: it errs by chance, greedy it is mostly right", None),
    # About 5, 20 and 50 % right when sampled, and at most 15 points more when greedy (benchmarks/starts.py).
    "branching_5": Regime("wrong ideas of four kinds of step", _branching(("*", "-", "even", "large"), 0.6)),
    "branching_20": Regime("wrong ideas of two kinds of step", _branching(("*", "-"), 0.55)),
    "branching_50": Regime("a wrong idea of one kind of step", _branching(("*",), 0.52, others=0.0)),
    "programs_5": Regime("wrong ideas of all kinds of step", _programs(programs.KINDS, 0.98, 0.02), **_IN_PROGRAMS),
    "programs_20": Regime("the shipped policy of this family", None, **_IN_PROGRAMS),
    "programs_50": Regime("wrong ideas of ten kinds of step", _programs(programs.KINDS[:10], 0.75), **_IN_PROGRAMS),
    "facts_5": Regime("wrong ideas of all properties", _facts(tuple(facts.PROPERTIES), 0.62), **_IN_FACTS),
    "facts_20": Regime("the shipped policy of this family", None, **_IN_FACTS),
    "facts_50": Regime("a wrong idea of one property", _facts(("boss",), 0.7), **_IN_FACTS),
    # Where an innovation of GTPO claims to help, beside "rare_clean": question (i) of docs/protocol.md.
    "programs_rare_clean": Regime(
        "the first program rarely runs, and is written again",
        replace(_programs(programs.KINDS[:10], 0.75), broken=0.9),
        **_IN_PROGRAMS,
    ),
    "facts_rare_clean": Regime(
        "a look-up rarely runs at once, and is written again", replace(_facts(("boss",), 0.6), broken=0.9), **_IN_FACTS
    ),
    "wasted": Regime(
        "more than half of all calls are made twice, and one turn is to spare",
        Habits({f"idle {step}": 0.6 for step in (1, 2, 3)}, broken=0.02),
        changes={"max_turns": 5},
    ),
    "near_misses": Regime(
        "wrong ideas of two kinds of step, seldom both given up: most wrong rollouts miss one step",
        _branching(("*", "last"), 0.65, others=0.05),
    ),
}


def load_regime(name: str) -> Regime:
    """A regime by name."""
    if name not in REGIMES:
        raise ValueError(f"unknown regime {name!r}; known: {', '.join(REGIMES)}")
    return REGIMES[name]
