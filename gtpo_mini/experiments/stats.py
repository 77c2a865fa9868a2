"""How sure we may be: intervals over seeds and problems, what could have been seen, pass@k.

A few seeds take Student's t (a percentile bootstrap covers 73 % at three of them), a rate takes Wilson's interval, a
difference over hundreds of paired problems takes the bootstrap.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize
from scipy import stats as distributions

from ..credit.checks import finite_number, finite_numbers, open_fraction, whole_number


class Interval(NamedTuple):
    """An estimate with both ends of its confidence interval, in the unit of the values."""

    estimate: float
    low: float
    high: float


def t_interval(values: Sequence[float], confidence: float = 0.95, share: bool = False) -> Interval:
    """Mean over seeds with Student's t interval: mean +- t(S - 1) * s / sqrt(S), s being the sample std.

    Args: S >= 2 values of independent runs, one a seed; the coverage, in (0, 1); share: the values are shares (an
        accuracy), so that the interval does not leave [0, 1]. Returns: the mean and its interval.
    Raises: ValueError for fewer than two seeds, NaN or infinity, or a confidence outside (0, 1).
    Source: [D]; Student (1908). Two seeds, mean 1, s = sqrt(2): the half width is t(1) = 12.7 itself.

    >>> [round(x, 1) for x in t_interval([0.0, 2.0])]
    [1.0, -11.7, 13.7]
    >>> [round(x, 2) for x in t_interval([0.7, 0.8], share=True)]
    [0.75, 0.11, 1.0]
    """
    confidence = open_fraction("confidence", confidence)
    numbers = finite_numbers("values (one a seed)", values, at_least=2)
    mean, error = float(np.mean(numbers)), float(distributions.sem(numbers))
    half = error * float(distributions.t.ppf((1 + confidence) / 2, df=len(numbers) - 1))
    low, high = mean - half, mean + half
    return Interval(mean, max(0.0, low), min(1.0, high)) if share else Interval(mean, low, high)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """A rate with Wilson's score interval, which holds near 0 and 1 too.

    Args: successes among n >= 1 independent trials (not rollouts of the same problem); the coverage, in (0, 1).
    Returns: successes / n and its interval, within [0, 1].
    Raises: ValueError for no trial, successes outside [0, n], or a confidence outside (0, 1).
    Source: [D]; Wilson (1927). No success in four: the upper end is z^2 / (n + z^2) = 3.84 / 7.84.

    >>> [round(x, 2) for x in wilson_interval(0, 4)]
    [0.0, 0.0, 0.49]
    """
    confidence, n = open_fraction("confidence", confidence), whole_number("n", n, low=1)
    successes = whole_number("successes", successes, low=0, high=n)
    ends = distributions.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(successes / n, float(ends.low), float(ends.high))


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of a - b over the same problems, with a percentile bootstrap interval over problems.

    Only for a hundred problems or more; over a few seeds it is far too narrow.

    Args: each side's score (say, its share of correct rollouts) of the same P >= 2 problems in the same order; the
        coverage, in (0, 1); how often the problems are drawn again, at least 100 times; the seed of the draws.
    Returns: the mean difference and its interval; with a warning if all differences are the same.
    Raises: ValueError for fewer than two problems, lengths that differ, NaN or infinity, or a bad setting.
    Source: [D]; Efron (1979).

    >>> paired_bootstrap([1, 1, 0, 1] * 25, [0, 1, 0, 1] * 25).estimate
    0.25
    """
    confidence = open_fraction("confidence", confidence)
    resamples, seed = whole_number("resamples", resamples, low=100), whole_number("seed", seed, low=0)
    scores_a, scores_b = finite_numbers("a", a, at_least=2), finite_numbers("b", b, at_least=2)
    if len(scores_a) != len(scores_b):
        raise ValueError(f"a and b must score the same problems: got {len(scores_a)} and {len(scores_b)}")
    differences = [x - y for x, y in zip(scores_a, scores_b, strict=True)]
    mean = math.fsum(differences) / len(differences)
    if min(differences) == max(differences):
        text = f"all {len(differences)} paired differences are equal: an interval without width is not certainty; "
        warnings.warn(text + "state minimum_detectable_effect beside it", RuntimeWarning, stacklevel=2)
        return Interval(mean, mean, mean)
    batch = max(1, 2_000_000 // len(differences))  # 16 MB of draws at a time
    how = {"n_resamples": resamples, "batch": batch, "confidence_level": confidence, "method": "percentile"}
    result = distributions.bootstrap((np.array(differences),), np.mean, **how, rng=np.random.default_rng(seed))
    return Interval(mean, *map(float, result.confidence_interval))


def minimum_detectable_effect(
    n: int, sd: float | None = None, over: str = "problems", power: float = 0.8, confidence: float = 0.95
) -> float:
    """Smallest true difference of two arms that n units show with the given power, two-sided.

    Args: n >= 2 units; over "problems" (both arms answer the same n), or over "seeds" (each arm has n runs of its own).
        sd > 0: over problems the std of the per-problem difference, by default sqrt(0.2), that of 0/1 scores where the
        arms disagree on 20 % of the problems; over seeds the std between an arm's seeds, which must be given.
        power: chance to see an effect of this size; confidence: 1 - the chance to see one that is not there.
    Returns: the effect, in the unit of ``sd`` (0.03 is three points of accuracy).
    Raises: ValueError for n below 2, sd missing or not above 0, an unknown ``over``, a bad power or confidence.
    Source: [D]; power of the t-test by the noncentral t distribution. Three points take about 1,740 paired problems;
        three seeds an arm see only three times the spread between seeds.

    >>> round(minimum_detectable_effect(1740), 3), round(minimum_detectable_effect(3, sd=1.0, over="seeds"), 1)
    (0.03, 3.1)
    """
    n = whole_number("n", n, low=2)
    power, confidence = open_fraction("power", power), open_fraction("confidence", confidence)
    if power <= (1 - confidence) / 2:
        raise ValueError(f"power must be above {(1 - confidence) / 2:g}, the false alarms, got {power!r}")
    if over not in ("problems", "seeds"):
        raise ValueError(f"over must be problems or seeds, got {over!r}")
    if sd is None and over == "seeds":
        raise ValueError("sd must be given over seeds: the std between the seeds of one arm")
    # By default that of a difference of 0/1 scores, where arms disagree on a fifth of the problems.
    sd = finite_number("sd", math.sqrt(0.2) if sd is None else sd, low=0.0)
    if sd == 0.0:
        raise ValueError("sd must be above 0, got 0.0: no spread would mean that any effect is seen")
    arms = 1 if over == "problems" else 2
    freedom, standard_error = arms * (n - 1), math.sqrt(arms / n)
    critical = float(distributions.t.ppf((1 + confidence) / 2, df=freedom))

    # statsmodels' solver agrees to 1e-6 only, and its power is NaN in places.
    def surplus(shift: float) -> float:  # an effect seen with the wrong sign is not seen
        return float(distributions.nct.sf(critical, freedom, shift)) - power

    high = critical + 2.0
    while surplus(high) < 0:
        high *= 2.0
    return float(optimize.brentq(surplus, 0.0, high)) * sd * standard_error


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of comparisons by Holm's step-down rule.

    Args: m >= 1 p-values in [0, 1], in any order.
    Returns: m adjusted p-values in that order, to be compared with the level as they are.
    Raises: ValueError for none, or one outside [0, 1].
    Source: [D]; Holm (1979): the k-th smallest of m times m - k + 1; none may be below a smaller one's, none above 1.

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    for index, value in enumerate(finite_numbers("p_values", p_values)):
        finite_number(f"p_values[{index}]", value, low=0.0, high=1.0)
    from statsmodels.stats.multitest import multipletests  # here: it takes a second

    return multipletests(p_values, method="holm")[1].tolist()


class Pooled(NamedTuple):
    """One effect over several studies, each with its own true effect."""

    over_studies: Interval  #: the mean true effect
    sd: float  #: between the studies' true effects (tau)
    share: float  #: of the estimates' variance that is between studies, not noise (I squared)
    p_same: float  #: of Cochran's Q test that all studies have one true effect


def random_effects(effects: Sequence[float], errors: Sequence[float]) -> Pooled:
    """Pool the effects of K >= 2 studies, here regimes, by a random-effects model (Paule and Mandel).

    Args: each study's estimate, and its standard error, above 0.
    Returns: the mean effect with its 95 % interval (Student's t over studies; Hartung and Knapp's error where it is the
        wider one), and how much the studies differ.
    Raises: ValueError for fewer than two studies, lengths that differ, or an error of 0.
    Source: [D]; Paule and Mandel (1982), Hartung and Knapp (2001), by statsmodels.

    >>> found = random_effects([0.1, 0.3], [0.05, 0.05])
    >>> round(found.over_studies.estimate, 2), round(found.sd, 2)
    (0.2, 0.13)
    """
    effects, errors = finite_numbers("effects", effects, at_least=2), finite_numbers("errors", errors, at_least=2)
    if len(effects) != len(errors) or min(errors) <= 0:
        raise ValueError(f"errors must be one above 0 for each of the {len(effects)} effects, got {errors}")
    from statsmodels.stats.meta_analysis import combine_effects

    found = combine_effects(np.array(effects), np.square(errors), method_re="iterated", use_t=True)
    error = max(float(found.sd_eff_w_re), float(found.sd_eff_w_re_hksj))  # alike by luck is no certainty
    half = float(distributions.t.ppf(0.975, len(effects) - 1)) * error
    mean, apart = float(found.mean_effect_re), max(0.0, float(found.q) - len(effects) + 1)
    return Pooled(
        Interval(mean, mean - half, mean + half),
        math.sqrt(max(0.0, float(found.tau2))),
        apart / float(found.q) if apart else 0.0,
        float(distributions.chi2.sf(found.q, len(effects) - 1)),
    )


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that at least one of k samples is correct: 1 - C(n - c, k) / C(n, k).

    Args: n >= 1 samples of one problem, 0 <= c <= n of them correct; 1 <= k <= n that a user would draw.
    Returns: a probability for one problem; average it over problems.
    Raises: ValueError for a number that is not whole or out of range.
    Source: [D]; Chen et al. (2021), the HumanEval paper. One of four correct: a pair misses it in 3 of 6 cases.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    n = whole_number("n", n, low=1)
    c, k = whole_number("c", c, low=0, high=n), whole_number("k", k, low=1, high=n)
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
