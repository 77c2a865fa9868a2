"""Arms: credit assignments by name, `ARMS` and `LATER`; and the call of any of them, own ones too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..types import Trajectory, import_named
from .checks import finite_numbers
from .credit import Assigned, Credit, CreditAssignment
from .later import LATER

_GTPO = Credit()
_GRPO = Credit(rewards="trajectory", returns=False, alpha=0.0)

#: Each arm is one line; all but `VARIANTS` are the paper's method, taken apart.
ARMS: dict[str, Credit] = {
    # The ladder: each step adds one part.
    "grpo": _GRPO,  # A_i = norm(min(accuracy_i, format_i))
    "grpo_accuracy": replace(_GRPO, rewards="accuracy"),  # A_i = norm(accuracy_i)
    "+turn_rewards": replace(_GTPO, returns=False, alpha=0.0),  # A_i = norm(sum_j r_ij)
    "+returns": replace(_GTPO, alpha=0.0),  # A_ij = norm(R_ij), R_ij = sum_m gamma^(m-j) r_im
    "gtpo": _GTPO,  # the same, wrong rollouts earning alpha * mean similarity
    # Leave one out of the whole. Without shaping it is "+returns".
    "no_turn_rewards": replace(_GTPO, rewards="trajectory"),
    "no_returns": replace(_GTPO, returns=False),
    # Settings of the whole.
    **{f"gamma_{gamma}": replace(_GTPO, gamma=gamma) for gamma in (0.5, 0.8, 0.95, 1.0)},
    **{f"normalize_{name}": replace(_GTPO, normalize=name) for name in ("batch", "turn", "first")},
    **{f"alpha_{alpha}": replace(_GTPO, alpha=alpha) for alpha in (0.25, 1.0)},
    **{f"similarity_{name}": replace(_GTPO, similarity=name) for name in ("embedding", "structure")},
    # Ours: likeness as a potential, which leaves the best policy alone; and no penalty for a call that fails, so that
    # a group in which nothing is right teaches nothing.
    "potential": replace(_GTPO, shaping="potential"),
    "no_penalty": replace(_GTPO, format_penalty=0.0),
    # Ours: where nothing is right, the penalties of a group stay small, or are none.
    "normalize_centred": replace(_GTPO, normalize="centred"),
    "spare_hopeless": replace(_GTPO, spare_hopeless=True),
    # Ours: turns earn what the task itself can verify (a fact found, an example that passes), besides the paper's.
    "+progress": replace(_GTPO, progress=0.5),
}

#: Arms that are no part of the paper.
VARIANTS = ("potential", "no_penalty", "normalize_centred", "spare_hopeless", "+progress")

_NAMED: dict[str, CreditAssignment] = {**ARMS, **LATER}


def load_arm(name: str) -> CreditAssignment:
    """The credit assignment of an arm, or an own one by ``MODULE:NAME``; a ValueError where there is none."""
    if name in _NAMED:
        return _NAMED[name]
    if ":" not in name:
        raise ValueError(f"unknown arm {name!r}; known: {', '.join(_NAMED)}, MODULE:NAME")
    if not callable(found := import_named("arm", name)):
        raise ValueError(f"arm {name!r}: is a {type(found).__name__}, not a function of credit")
    return found


def credit_name(credit: CreditAssignment) -> str:
    """The name of an arm, or of an own function or class."""
    known = next((name for name, arm in _NAMED.items() if arm == credit), None)
    return known or getattr(credit, "__name__", type(credit).__name__)


def assign_credit(
    credit: CreditAssignment, rollouts: Sequence[Trajectory], correct: Sequence[bool | float], group_size: int
) -> Assigned:
    """Call any credit assignment: an own one is code like any other.

    A ValueError with its name says that it raised, or returned other than finite numbers, one a turn.
    """
    name = credit_name(credit)
    try:
        found: Any = credit(rollouts, correct, group_size)
    except Exception as error:  # an own estimator raises whatever it raises
        raise ValueError(f"credit {name!r} raised {type(error).__name__}: {error}") from error
    try:
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise ValueError(f"must return (rewards, advantages), got {type(found).__name__}")
        return _per_turn("rewards", found[0], rollouts), _per_turn("advantages", found[1], rollouts)
    except ValueError as error:
        raise ValueError(f"credit {name!r}: {error}") from None


def _per_turn(field: str, values: Any, rollouts: Sequence[Trajectory]) -> list[list[float]]:
    found = len(values) if hasattr(values, "__len__") else repr(values)
    if found != len(rollouts):
        raise ValueError(f"{field} must hold {len(rollouts)} lists, one a rollout, got {found}")
    rows = [finite_numbers(f"{field}[{i}]", row, at_least=0) for i, row in enumerate(values)]
    for i, (row, rollout) in enumerate(zip(rows, rollouts, strict=True)):
        if len(row) != len(rollout.turns):
            raise ValueError(f"{field}[{i}] must hold {len(rollout.turns)} numbers, one a turn, got {len(row)}")
    return rows
