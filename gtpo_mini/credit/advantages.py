"""From turn rewards to advantages: discounted returns, then every reading of the normalisation, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from .checks import finite_number, finite_numbers

NORMALIZE = ("group", "batch", "turn", "first", "centred")


def turn_returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """Discount the turn rewards of one rollout: R_ij = sum over m >= j of gamma^(m-j) r_im (Eq. 6).

    Args:
        rewards: N >= 1 turn rewards, in the order of the turns.
        gamma: discount a turn (not a token), in [0, 1].

    Returns: N returns. With gamma < 1 an early turn of a correct rollout gets less: 0.9^5 = 0.59 at six turns.
    Raises: ValueError for an empty rollout, NaN, infinity, gamma outside [0, 1], or a sum too large for a float.
    Source: [B], [C] (Eq. 6; gamma = 0.9 is what [C] calls the paper's optimum).

    >>> turn_returns([0.0, 0.0, 1.0], gamma=0.5)
    [0.25, 0.5, 1.0]
    """
    return _returns("rewards", rewards, finite_number("gamma", gamma, low=0.0, high=1.0))


def gtpo_advantages(
    turn_rewards: Sequence[Sequence[float]],
    gamma: float = 0.9,
    normalize: str = "group",
    groups: Sequence[int] | None = None,
    eps: float = 1e-6,
) -> list[list[float]]:
    """Turn-level advantages: A_ij = (R_ij - mean) / std (Eq. 7), std being the population's.

    Over which set mean and std are taken is disputed, so it is a setting, ``normalize``:

    - "group": all turns of all rollouts of one problem; is GRPO when every rollout has one turn
    - "batch": all turns of all rollouts of the batch; ``groups`` is checked but plays no part
    - "turn": same problem and same turn index; biased where the policy decides when to stop
    - "first": R_i1 of the rollouts of one problem, used for every turn; drifts with the turn index
    - "centred": the mean of the problem's turns, and the std of the whole batch once centred so: a problem whose
      rollouts differ by penalties alone stays as small as they are

    Args:
        turn_rewards: one inner list a rollout, of N_i >= 1 turn rewards; the lengths may differ.
        gamma: discount a turn, in [0, 1].
        groups: ``groups[i]`` names rollout i's problem; None: all rollouts are of one problem.
        eps: a set whose std is below this has no spread, and all that it normalises gets 0. It is never
            added to the std, so that a set with spread comes out with a std of exactly 1.

    Returns: advantages in the shape of ``turn_rewards``; all policy tokens of a turn share the turn's.
    Raises: ValueError for no rollout, an empty one, a number that is not finite or out of its range, an unknown
        ``normalize``, ``groups`` of another length, or a result too large for a float.
    Source: [B], [C] (Eq. 7). The set: "group" and "batch" one re-implementation each, "turn" and "first"
        public variants. "centred" and the threshold eps: [D].

    Returns [0.5, 1], [0]: mean 0.5, so the first turn of the correct rollout gets nothing. First returns 0.5 and 0:
    mean 0.25, std 0.25, and the last turn is three of them above the mean.

    >>> [[round(a, 3) for a in row] for row in gtpo_advantages([[0.0, 1.0], [0.0]], gamma=0.5)]
    [[0.0, 1.225], [-1.225]]
    >>> gtpo_advantages([[0.0, 1.0], [0.0]], gamma=0.5, normalize="first")
    [[1.0, 3.0], [-1.0]]
    """
    gamma = finite_number("gamma", gamma, low=0.0, high=1.0)
    eps = finite_number("eps", eps, low=0.0)
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZE)}, got {normalize!r}")
    rollouts = list(turn_rewards)
    if not rollouts:
        raise ValueError("turn_rewards must hold at least one rollout, got an empty batch")
    problems: list[Hashable] = [0] * len(rollouts) if groups is None else list(groups)
    if (count := len(problems)) != len(rollouts):
        raise ValueError(f"groups must name one problem a rollout: expected {len(rollouts)} entries, got {count}")
    returns = [_returns(f"turn_rewards[{i}]", rewards, gamma) for i, rewards in enumerate(rollouts)]
    if normalize == "centred":
        returns, normalize = _centre(returns, problems), "batch"

    sets: dict[Hashable, list[tuple[int, int]]] = {}  # what is normalised together: (rollout, turn) places
    for i, returns_N in enumerate(returns):
        for j in range(len(returns_N)):
            key = {"batch": None, "turn": (problems[i], j)}.get(normalize, problems[i])
            sets.setdefault(key, []).append((i, j))

    advantages = [[0.0] * len(returns_N) for returns_N in returns]
    for places in sets.values():
        values = [returns[i][j] for i, j in places]
        reference = [returns[i][0] for i, j in places if j == 0] if normalize == "first" else values
        for (i, j), advantage in zip(places, _standardise(values, reference, eps), strict=True):
            advantages[i][j] = advantage
    return advantages


def grpo_advantages(rewards: Sequence[float], groups: Sequence[int] | None = None, eps: float = 1e-6) -> list[float]:
    """Group-relative advantages, one a rollout: A_i = (r_i - mean_group r) / std_group r.

    Args:
        rewards: one reward a rollout.
        groups, eps: as in `gtpo_advantages`.

    Returns: one advantage a rollout, for every policy token of it.
    Raises: ValueError for no rollout, NaN, infinity, ``groups`` of another length, or eps below 0.
    Source: [B]. The threshold eps: [D].

    One of two is correct in problem 7; problem 8 is solved by both, which teaches nothing:

    >>> grpo_advantages([1.0, 0.0, 1.0, 1.0], groups=[7, 7, 8, 8])
    [1.0, -1.0, 0.0, 0.0]
    """
    eps = finite_number("eps", eps, low=0.0)  # a rollout of one turn is its own return, whatever gamma is
    values = finite_numbers("rewards", rewards)
    return [advantage for (advantage,) in gtpo_advantages([[value] for value in values], groups=groups, eps=eps)]


def _returns(field: str, rewards: Sequence[float], gamma: float) -> list[float]:
    running, returns = 0.0, []
    for reward in reversed(finite_numbers(field, rewards)):
        running = reward + gamma * running
        returns.append(running)
    if not all(math.isfinite(value) for value in returns):
        raise ValueError(f"{field} is too large: its discounted sum is no finite number; scale it down")
    return returns[::-1]


def _centre(returns: Sequence[Sequence[float]], problems: Sequence[Hashable]) -> list[list[float]]:
    """Returns less the mean of their problem's; exactly 0 where a problem has no spread."""
    pooled: dict[Hashable, list[float]] = {}
    for problem, returns_N in zip(problems, returns, strict=True):
        pooled.setdefault(problem, []).extend(returns_N)
    even = {problem: min(values) == max(values) for problem, values in pooled.items()}
    means = {problem: math.fsum(value / len(values) for value in values) for problem, values in pooled.items()}
    return [
        [0.0 if even[problem] else value - means[problem] for value in returns_N]
        for problem, returns_N in zip(problems, returns, strict=True)
    ]


def _standardise(values: Sequence[float], reference: Sequence[float], eps: float) -> list[float]:
    """(value - mean) / std with mean and population std of ``reference``; zeros where it has no spread."""
    if min(reference) == max(reference):  # rounding of the mean must not look like spread
        return [0.0] * len(values)
    # Dividing all by one power of two is exact and keeps the squares of huge or tiny rewards in range.
    exponent = math.frexp(max(abs(value) for value in reference))[1]
    try:
        scaled, basis = ([math.ldexp(value, -exponent) for value in numbers] for numbers in (values, reference))
        mean = math.fsum(basis) / len(basis)  # fsum: the same bits in any order of the rollouts
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in basis) / len(basis))
        if std == 0.0 or math.ldexp(std, exponent) < eps:
            return [0.0] * len(values)
        result = [(value - mean) / std + 0.0 for value in scaled]  # + 0.0 turns -0.0 into 0.0
    except OverflowError:
        result = [math.inf]
    if not all(math.isfinite(value) for value in result):
        raise ValueError("turn_rewards differ too much: an advantage is no finite number; scale them down")
    return result
