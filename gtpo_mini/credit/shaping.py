"""Self-supervised reward shaping: a wrong rollout earns by how much its code is like the correct ones'."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .checks import finite_number
from .similarity import Similarity


def shape_outcomes(
    codes: Sequence[str], correct: Sequence[bool], similarity: Similarity, alpha: float = 0.5
) -> list[float]:
    """Outcome of each rollout of one group, with partial credit for the wrong ones.

    With P the correct rollouts, a wrong rollout i gets (alpha / |P|) * sum over p in P of sim(c_i, c_p).
    A correct one keeps 1. With P empty nothing is shaped: all get 0.

    Args:
        codes: c_i, the code of all turns of rollout i, concatenated (``Trajectory.code``); G entries. Pass
            "" for code that must earn nothing (it did not run, say): a syntax error looks like its twin.
        correct: whether rollout i's final answer is correct; G entries.
        similarity: (code, code) -> a number in [0, 1], for instance from ``load_similarity``.
        alpha: the most that a wrong rollout can get, in [0, 1]; 0 is no shaping.

    Returns: G outcomes in [0, 1]: acc of each rollout's last turn.
    Raises: ValueError for no rollout, lengths that differ, an entry that is no text or no truth value, or alpha or a
        similarity outside [0, 1].
    Source: [C] (Section 3.4; alpha = 0.5).

    One of three is correct; similarity counts equal first letters here:

    >>> shape_outcomes(["ab", "ac", "xy"], [True, False, False], lambda a, b: float(a[0] == b[0]))
    [1.0, 0.5, 0.0]
    """
    alpha = finite_number("alpha", alpha, low=0.0, high=1.0)
    codes, correct = list(codes), list(correct)
    if not codes or len(codes) != len(correct):
        found = f"{len(codes)} codes and {len(correct)} in correct"
        raise ValueError(f"codes and correct must hold one entry a rollout, at least one, got {found}")
    for index, (code, is_correct) in enumerate(zip(codes, correct, strict=True)):
        if not isinstance(code, str):
            raise ValueError(f"codes[{index}] must be text (use '' for no code), got {code!r}")
        if is_correct not in (True, False):
            raise ValueError(f"correct[{index}] must be True or False, got {is_correct!r}")

    right_codes = [code for code, is_correct in zip(codes, correct, strict=True) if is_correct]
    if not right_codes or alpha == 0.0:
        return [float(is_correct) for is_correct in correct]
    outcomes = []
    for code, is_correct in zip(codes, correct, strict=True):
        likeness = [] if is_correct else _likeness(code, right_codes, similarity)
        outcomes.append(alpha * (math.fsum(likeness) / len(likeness)) if likeness else 1.0)  # the one division by |P|
    return outcomes


def turn_potentials(
    codes_by_turn: Sequence[Sequence[str]], correct: Sequence[bool], similarity: Similarity, alpha: float = 0.5
) -> list[list[float]]:
    """A potential of each turn's state: alpha times how much the code so far is like the correct rollouts' code.

    Added to the rewards as gamma * Phi(next) - Phi(now), with Phi = 0 after the end, it credits progress but
    leaves the best policy alone: over a rollout it sums to -Phi(start) = 0. A correct rollout is compared with
    the other correct ones, so that Phi does not give its own outcome away.

    Args: codes_by_turn: each rollout's ``Trajectory.code_before_turns``; the others as in `shape_outcomes`.
    Returns: one potential in [0, alpha] a turn; all 0 where no (other) rollout is correct.
    Raises: ValueError for alpha or a similarity outside [0, 1].
    Source: [D]; the idea of potentials: Ng, Harada and Russell (ICML 1999).

    >>> turn_potentials([["", "ab"], ["", "ax"]], [True, False], lambda a, b: float(a[:1] == b[:1] != ""))
    [[0.0, 0.0], [0.0, 0.5]]
    """
    alpha = finite_number("alpha", alpha, low=0.0, high=1.0)
    whole, potentials = [codes[-1] for codes in codes_by_turn], []
    for i, codes in enumerate(codes_by_turn):
        others = [whole[p] for p, right in enumerate(correct) if right and p != i]
        likeness = [_likeness(code, others, similarity) for code in codes]
        potentials.append([alpha * math.fsum(row) / len(row) if row else 0.0 for row in likeness])
    return potentials


def _likeness(code: str, others: Sequence[str], similarity: Similarity) -> list[float]:
    found = [similarity(code, other) for other in others]
    for value in found:  # a cosine may miss 1 or 0 by rounding; anything farther out is not a similarity
        if not -1e-6 <= finite_number("similarity", value) <= 1.0 + 1e-6:
            raise ValueError(f"similarity must return a number in [0, 1], got {value!r}; clip or rescale it")
    return [min(1.0, max(0.0, float(value))) for value in found]
