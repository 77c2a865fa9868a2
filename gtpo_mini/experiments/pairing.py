"""Differences between arms, paired by seed and by problem, with both kinds of luck stated.

Seeds are one kind of luck (Student's t over the paired differences), held-out problems the other (bootstrap over
problems of the difference averaged over seeds). Beside each difference stands the smallest one that as many seeds
show with 80 % power, and a p-value corrected by Holm for the comparisons of its table.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import stdev

from scipy.stats import ttest_1samp

from ..train.metrics import mean
from ..train.record import RecordedRun
from .stats import Interval, holm, minimum_detectable_effect, paired_bootstrap, t_interval


@dataclass(frozen=True)
class Difference:
    """An arm's held-out accuracy minus the base arm's, as a fraction; over the seeds that both have."""

    arm: str
    base: str
    seeds: int
    over_seeds: Interval
    over_problems: Interval
    detectable: float  #: smallest true difference that as many seeds show with 80 % power
    p: float  #: of the paired t-test over seeds, two-sided
    p_holm: float  #: corrected for all comparisons made together

    @property
    def verdict(self) -> str:
        """Better, worse, or no difference shown: at 5 % over seeds after the correction, and over problems too."""
        if self.p_holm >= 0.05 or self.over_problems.low <= 0 <= self.over_problems.high:
            return "no difference shown"
        return "better" if self.over_seeds.estimate > 0 else "worse"


def accuracies(runs: Sequence[RecordedRun], arm: str, kind: str = "sampled") -> dict[int, float]:
    """Held-out accuracy of each of an arm's seeds; ``kind`` is "sampled" or "greedy"."""
    return {run.seed: run.footer[kind]["accuracy"] for run in runs if run.arm == arm}


def differences(
    runs: Sequence[RecordedRun], arms: Sequence[str], base: str = "grpo", kind: str = "sampled"
) -> list[Difference]:
    """Each arm against the base arm, paired by seed and by problem; p-values corrected over all arms given.

    An arm's runs that never moved are one policy graded with one set of draws: only the first of them counts.

    Args:
        runs: recorded runs with an evaluation, of all these arms.
        arms: whom to compare with ``base``.
        base: the arm they are compared with.
        kind: "sampled" or "greedy".

    Raises:
        ValueError: fewer than two common seeds that count; evaluations of which none is a part of all others.
    """
    found = []
    theirs = {run.seed: run for run in runs if run.arm == base}
    for arm in arms:
        pairs = _distinct([(run, theirs[run.seed]) for run in runs if run.arm == arm and run.seed in theirs])
        if len(pairs) < 2:
            raise ValueError(
                f"{arm} against {base}: {len(pairs)} common seeds (of runs that never moved, one counts); "
                "at least two are needed"
            )
        scores = _scores(pairs, kind)
        gaps = [mean(mine) - mean(other) for mine, other in scores]
        spread = stdev(gaps)
        found.append(
            Difference(
                *(arm, base, len(pairs), t_interval(gaps), _over_problems(scores)),
                # One number a pair: the paired formula, whatever the pairs are.
                detectable=minimum_detectable_effect(len(gaps), sd=spread, over="problems") if spread else math.nan,
                p=float(ttest_1samp(gaps, 0.0).pvalue) if spread else 1.0,
                p_holm=1.0,
            )
        )
    return correct(found)


def correct(found: Sequence[Difference]) -> list[Difference]:
    """The same differences, their p-values corrected (Holm) for all of them together."""
    corrected = holm([difference.p for difference in found]) if found else []
    return [replace(difference, p_holm=p) for difference, p in zip(found, corrected, strict=True)]


def _distinct(pairs: Sequence[tuple[RecordedRun, RecordedRun]]) -> list[tuple[RecordedRun, RecordedRun]]:
    """The pairs without those in which an arm stands once more with its untouched starting policy."""
    kept, still = [], set()
    for pair in pairs:
        here = {run.arm for run in pair if not run.moved}
        if not here & still:
            kept.append(pair)
        still |= here
    return kept


def _scores(pairs: Sequence[tuple[RecordedRun, RecordedRun]], kind: str) -> list[tuple[list[float], list[float]]]:
    """Each pair's scores on the problems that all of these runs were evaluated on, in one order."""
    found = [[run.footer[kind]["per_problem"] for run in pair] for pair in pairs]
    least = min((score for pair in found for score in pair), key=len)
    if any(problem not in score for pair in found for score in pair for problem in least):
        raise ValueError("the runs were evaluated on different problems; only equal ones can be paired")
    return [tuple([score[problem] for problem in least] for score in pair) for pair in found]


def _over_problems(scores: Sequence[tuple[list[float], list[float]]]) -> Interval:
    sides = [[mean(column) for column in zip(*side, strict=True)] for side in zip(*scores, strict=True)]
    with warnings.catch_warnings():  # equal everywhere: the seeds' interval says what there is to say
        warnings.simplefilter("ignore", RuntimeWarning)
        return paired_bootstrap(*sides)


def points(interval: Interval) -> str:
    """A difference in points, e.g. "-0.5 [-3.6, +2.6]".

    >>> points(Interval(-0.005, -0.036, 0.026))
    '-0.5 [-3.6, +2.6]'
    """
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in interval))


def percent(values: Sequence[float]) -> str:
    """Mean of seeds with its t-interval in percent, e.g. "73.2 [69.7, 76.7]".

    >>> percent([0.7, 0.8])
    '75.0 [11.5, 138.5]'
    """
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * value for value in t_interval(values)))
