"""Rewards of one rollout: one a turn (GTPO), or one for the whole trajectory (the GRPO baseline)."""

from __future__ import annotations

from ..types import Trajectory
from .checks import finite_number


def turn_rewards(trajectory: Trajectory, outcome: float, format_penalty: float = 0.1) -> list[float]:
    """Reward every turn of one rollout: r_ij = acc_ij + fmt_ij (Eq. 5).

    acc_ij is ``outcome`` on the last turn, else 0. fmt_ij is ``-format_penalty`` on a turn that holds an
    invalid tool call, and on a first turn that makes no tool call, else 0. No turn is penalised twice.

    Args:
        trajectory: one rollout of N >= 1 turns; only ``turns[*].invalid_call`` and ``.calls_tool`` are read.
        outcome: acc of the last turn, in [0, 1]: 1 if the final answer is correct, else 0 or, with shaping,
            the fraction that ``shape_outcomes`` gave.
        format_penalty: size of the penalty, at least 0.

    Returns: N rewards, one a turn.
    Raises: ValueError for no turn, ``outcome`` outside [0, 1], or a negative penalty (which would be a bonus).
    Source: [B], [C] (Eq. 5).

    A call that crashes, then the right answer; and the right answer at once, which pays for the missing call:

    >>> from types import SimpleNamespace
    >>> crash = SimpleNamespace(calls_tool=True, invalid_call=True)
    >>> answer = SimpleNamespace(calls_tool=False, invalid_call=False)
    >>> [turn_rewards(SimpleNamespace(turns=turns), outcome=1.0) for turns in ([crash, answer], [answer])]
    [[-0.1, 1.0], [0.9]]
    """
    outcome = _checked(trajectory, outcome)
    penalty = finite_number("format_penalty", format_penalty, low=0.0)
    rewards = []
    for index, turn in enumerate(trajectory.turns):
        format_error = turn.invalid_call or (index == 0 and not turn.calls_tool)
        rewards.append(0.0 - penalty if format_error else 0.0)
    rewards[-1] += outcome
    return rewards


def trajectory_reward(trajectory: Trajectory, outcome: float) -> float:
    """Reward a whole rollout as the baseline does: r_i = min(r_acc_i, r_format_i).

    r_format_i is 1 if no turn holds an invalid tool call, else 0. A first turn without a call is no format
    error here: that rule belongs to the turn rewards (Eq. 5).

    Args: as `turn_rewards` takes them; ``outcome`` is r_acc.
    Returns: one reward in [0, 1].
    Raises: ValueError for no turn, or ``outcome`` outside [0, 1].
    Source: [B] for the minimum; [D] for what counts as a format error.

    >>> from types import SimpleNamespace
    >>> crash, answer = (SimpleNamespace(calls_tool=bad, invalid_call=bad) for bad in (True, False))
    >>> [trajectory_reward(SimpleNamespace(turns=turns), outcome=1.0) for turns in ([crash, answer], [answer])]
    [0.0, 1.0]
    """
    accuracy = _checked(trajectory, outcome)
    valid = not any(turn.invalid_call for turn in trajectory.turns)
    return min(accuracy, 1.0 if valid else 0.0)


def _checked(trajectory: Trajectory, outcome: float) -> float:
    if len(trajectory.turns) == 0:
        raise ValueError("trajectory.turns must hold at least one turn, got an empty rollout")
    return finite_number("outcome", outcome, low=0.0, high=1.0)
