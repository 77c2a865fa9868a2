"""Intervals, powers and corrections against scipy, exact sums and simulation."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import warnings

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo_mini.experiments.stats import (
    holm,
    minimum_detectable_effect,
    paired_bootstrap,
    pass_at_k,
    random_effects,
    t_interval,
    wilson_interval,
)

relaxed = settings(deadline=None)
scores = st.integers(-20, 20).map(lambda n: n / 4)


@relaxed
@given(st.lists(scores, min_size=2, max_size=12).filter(lambda v: len(set(v)) > 1), st.floats(0.5, 0.999))
def test_t_interval_is_that_of_a_one_sample_test(values, confidence):
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    interval = t_interval(values, confidence)
    assert interval.estimate == pytest.approx(statistics.fmean(values), abs=1e-12)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)


def test_t_interval_covers_what_it_says_at_three_seeds():
    generator = random.Random(1)
    hits = 0
    for _ in range(2000):
        interval = t_interval([generator.gauss(5, 2) for _ in range(3)])
        hits += interval.low <= 5 <= interval.high
    assert 0.93 < hits / 2000 < 0.97  # the percentile bootstrap would cover 73 %


@relaxed
@given(st.integers(1, 60), st.data())
def test_wilson_ends_solve_the_score_equation(n, data):
    successes = data.draw(st.integers(0, n))
    z = statistics.NormalDist().inv_cdf(0.975)
    interval = wilson_interval(successes, n)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    for end in (interval.low, interval.high):
        assert (interval.estimate - end) ** 2 == pytest.approx(z * z * end * (1 - end) / n, abs=1e-9)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3, 0.5, 0.8])
def test_wilson_covers_its_rate_on_average(rate):
    n, covered = 60, 0.0
    for successes in range(n + 1):  # exact: the sum over all outcomes, weighted by their chance
        interval = wilson_interval(successes, n)
        if interval.low <= rate <= interval.high:
            covered += math.comb(n, successes) * rate**successes * (1 - rate) ** (n - successes)
    assert 0.92 < covered < 0.985


def test_paired_bootstrap_agrees_with_the_normal_interval_on_many_problems():
    generator = random.Random(3)
    a = [float(generator.random() < 0.5) for _ in range(2000)]
    b = [x if generator.random() < 0.7 else float(generator.random() < 0.5) for x in a]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = statistics.fmean(differences)
    half = 1.96 * statistics.pstdev(differences) / math.sqrt(len(differences))
    interval = paired_bootstrap(a, b)
    assert interval.estimate == pytest.approx(mean)
    assert interval.low == pytest.approx(mean - half, abs=0.1 * half)
    assert interval.high == pytest.approx(mean + half, abs=0.1 * half)


def test_pairing_narrows_the_interval():
    easy_and_hard = [0.0, 1.0] * 200
    better = [min(1.0, x + 0.1) if i % 3 == 0 else x for i, x in enumerate(easy_and_hard)]
    paired = paired_bootstrap(better, easy_and_hard)
    shuffled = random.Random(0).sample(easy_and_hard, len(easy_and_hard))
    unpaired = paired_bootstrap(better, shuffled)
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 5


def test_paired_bootstrap_is_seeded_and_changes_sign_with_the_arms():
    a, b = [1, 0, 1, 1, 0, 1, 1] * 20, [0, 0, 1, 0, 1, 1, 1] * 20
    assert paired_bootstrap(a, b, seed=5) == paired_bootstrap(a, b, seed=5)
    ends = {paired_bootstrap(a, b, seed=seed)[1:] for seed in range(6)}
    assert len(ends) > 1
    forth, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert (forth.estimate, forth.low, forth.high) == pytest.approx((-back.estimate, -back.high, -back.low), abs=0.02)
    assert paired_bootstrap(a, b, confidence=0.5).low > forth.low


def test_paired_bootstrap_warns_where_it_knows_nothing():
    with pytest.warns(RuntimeWarning, match="all 4 paired differences are equal"):
        assert paired_bootstrap([1, 1, 0, 0], [1, 1, 0, 0]) == (0, 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paired_bootstrap([1, 1, 0, 0], [1, 1, 0, 1])


def test_detectable_effect_of_paired_problems_is_the_textbook_formula():
    z = statistics.NormalDist().inv_cdf
    for n in (500, 1740, 10_000):
        expected = (z(0.975) + z(0.8)) * math.sqrt(0.2 / n)
        assert minimum_detectable_effect(n) == pytest.approx(expected, rel=2e-3)
    assert minimum_detectable_effect(1740) == pytest.approx(0.03, abs=1e-4)


@pytest.mark.parametrize("n", [3, 5])
def test_detectable_effect_of_seeds_is_seen_in_four_of_five_simulations(n):
    effect = minimum_detectable_effect(n, sd=2.0, over="seeds")
    generator = random.Random(7)
    first = [[generator.gauss(effect, 2.0) for _ in range(n)] for _ in range(4000)]
    second = [[generator.gauss(0.0, 2.0) for _ in range(n)] for _ in range(4000)]
    seen = scipy.stats.ttest_ind(first, second, axis=1).pvalue < 0.05
    assert seen.mean() == pytest.approx(0.8, abs=0.025)


def test_detectable_effect_moves_as_it_must():
    base = minimum_detectable_effect(10, sd=1.0, over="seeds")
    assert minimum_detectable_effect(20, sd=1.0, over="seeds") < base
    assert minimum_detectable_effect(10, sd=3.0, over="seeds") == pytest.approx(3 * base)
    assert minimum_detectable_effect(10, sd=1.0, over="seeds", power=0.9) > base
    assert minimum_detectable_effect(10, sd=1.0, over="seeds", confidence=0.99) > base
    assert minimum_detectable_effect(10, sd=1.0) < base  # paired: half the variance, and no second arm
    assert math.isfinite(minimum_detectable_effect(2, power=0.99, confidence=0.999))


@relaxed
@given(st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_rule_rejects(p_values):
    adjusted = holm(p_values)
    assert all(raw <= new <= 1 for raw, new in zip(p_values, adjusted, strict=True))
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if p_values[index] * (len(p_values) - step) > level:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected


@relaxed
@given(st.integers(1, 7), st.data())
def test_pass_at_k_counts_every_subset(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(subset) for subset in subsets) / len(subsets))


def test_pass_at_k_stays_exact_for_many_samples():
    assert pass_at_k(100_000, 0, 10) == 0
    assert pass_at_k(100_000, 1, 10) == pytest.approx(1e-4)
    assert pass_at_k(5, 3, 3) == 1  # only two are wrong


def test_bad_input_is_named():
    cases = [
        (lambda: t_interval([0.5]), r"values \(one a seed\) must hold at least 2"),
        (lambda: t_interval([]), "at least 2"),
        (lambda: t_interval([0.5, math.nan]), r"\[1\] must be a finite number, got nan"),
        (lambda: t_interval([0.5, 0.6], confidence=95), r"confidence must lie between 0 and 1 .*got 95"),
        (lambda: t_interval([0.5, 0.6], confidence=1.0), "confidence must lie between"),
        (lambda: wilson_interval(0, 0), "n must be a finite number of at least 1, got 0"),
        (lambda: wilson_interval(5, 4), r"successes must be a finite number in \[0, 4\], got 5"),
        (lambda: wilson_interval(-1, 4), "successes must"),
        (lambda: wilson_interval(1.5, 4), "successes must be a whole number, got 1.5"),
        (lambda: paired_bootstrap([1.0], [1.0]), "a must hold at least 2"),
        (lambda: paired_bootstrap([1.0, 0.0], [1.0, 0.0, 1.0]), "same problems: got 2 and 3"),
        (lambda: paired_bootstrap([1.0, math.inf], [1.0, 0.0]), r"a\[1\] must be a finite number"),
        (lambda: paired_bootstrap([1.0, 0.0], [1.0, 1.0], resamples=10), "resamples must .* at least 100"),
        (lambda: paired_bootstrap([1.0, 0.0], [1.0, 1.0], seed=-1), "seed must"),
        (lambda: minimum_detectable_effect(1), "n must .* at least 2"),
        (lambda: minimum_detectable_effect(5, over="seeds"), "sd must be given over seeds"),
        (lambda: minimum_detectable_effect(5, sd=0.0), "sd must be above 0"),
        (lambda: minimum_detectable_effect(5, over="runs"), "over must be problems or seeds, got 'runs'"),
        (lambda: minimum_detectable_effect(5, power=80), "power must lie between 0 and 1"),
        (lambda: minimum_detectable_effect(5, power=0.02), "power must be above 0.025"),
        (lambda: holm([]), "p_values must hold at least 1"),
        (lambda: holm([0.1, 1.1]), r"p_values\[1\] must be a finite number in \[0, 1\], got 1.1"),
        (lambda: pass_at_k(4, 5, 1), r"c must be a finite number in \[0, 4\], got 5"),
        (lambda: pass_at_k(4, 1, 5), r"k must be a finite number in \[1, 4\], got 5"),
        (lambda: pass_at_k(4, 1, 0), "k must"),
        (lambda: pass_at_k(0, 0, 1), "n must"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


@relaxed
@given(st.lists(st.tuples(scores, st.integers(1, 8)), min_size=2, max_size=9))
def test_pooling_agrees_with_its_equations(studies):
    effects, errors = [e for e, _ in studies], [s / 4 for _, s in studies]
    found = random_effects(effects, errors)
    weights = [1 / (s * s + found.sd**2) for s in errors]
    mean = sum(w * e for w, e in zip(weights, effects, strict=True)) / sum(weights)
    assert found.over_studies.estimate == pytest.approx(mean, abs=1e-6)
    spread = sum(w * (e - mean) ** 2 for w, e in zip(weights, effects, strict=True))
    assert found.sd == 0 or spread == pytest.approx(len(effects) - 1, rel=1e-3)  # Paule and Mandel's condition
    error = max(1 / math.sqrt(sum(weights)), math.sqrt(spread / (len(effects) - 1) / sum(weights)))
    half = scipy.stats.t.ppf(0.975, len(effects) - 1) * error
    ends = (found.over_studies.low, found.over_studies.high)
    assert ends == pytest.approx((mean - half, mean + half), rel=1e-3, abs=1e-5)
    assert 0 <= found.share <= 1 and 0 <= found.p_same <= 1


def test_pooled_intervals_cover_the_mean_of_regimes_that_differ():
    generator, hits = random.Random(0), 0
    for _ in range(400):
        errors = [generator.uniform(0.5, 2) for _ in range(9)]
        effects = [generator.gauss(1.0, 1.5) + generator.gauss(0, s) for s in errors]
        low, high = random_effects(effects, errors).over_studies[1:]
        hits += low <= 1.0 <= high
    assert 0.91 < hits / 400 < 0.99


def test_too_few_studies_or_one_without_an_error():
    for effects, errors in (([1.0], [1.0]), ([1.0, 2.0], [1.0, 0.0]), ([1.0, 2.0], [1.0] * 3)):
        with pytest.raises(ValueError, match=r"effects|errors"):
            random_effects(effects, errors)
