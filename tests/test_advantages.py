"""Returns and advantages against a slow, obvious reference, and against cases worked by hand."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo_mini.credit.advantages import NORMALIZE, grpo_advantages, gtpo_advantages, turn_returns
from gtpo_mini.credit.checks import finite_number

relaxed = settings(deadline=None)  # a busy machine is no failure

# Eighths keep spreads well away from the threshold, so that no case hangs on a rounding.
reward = st.integers(-16, 16).map(lambda n: n / 8)
rollout = st.lists(reward, min_size=1, max_size=6)
gammas = st.sampled_from([0.0, 0.5, 0.9, 1.0])


@st.composite
def batches(draw):
    rewards = draw(st.lists(rollout, min_size=1, max_size=8))
    groups = draw(st.lists(st.integers(0, 2), min_size=len(rewards), max_size=len(rewards)))
    return rewards, groups


def reference_returns(rewards, gamma):
    """Eq. 6, term by term."""
    result = []
    for j in range(len(rewards)):
        total = 0.0
        for m in range(j, len(rewards)):
            total += gamma ** (m - j) * rewards[m]
        result.append(total)
    return result


def reference_advantages(turn_rewards, gamma, normalize, groups, eps=1e-6):
    """Eq. 7: for every single turn, collect its set again and divide."""
    returns = [reference_returns(rewards, gamma) for rewards in turn_rewards]
    if normalize == "centred":
        pooled = {g: [x for row, h in zip(returns, groups, strict=True) if h == g for x in row] for g in groups}
        returns = [[x - statistics.fmean(pooled[g]) for x in row] for row, g in zip(returns, groups, strict=True)]
        normalize = "batch"
    result = []
    for i in range(len(returns)):
        row = []
        for j in range(len(returns[i])):
            members = []
            for other in range(len(returns)):
                for k in range(len(returns[other])):
                    same_problem = groups[other] == groups[i]
                    if (
                        (normalize == "group" and same_problem)
                        or normalize == "batch"
                        or (normalize == "turn" and same_problem and k == j)
                        or (normalize == "first" and same_problem and k == 0)
                    ):
                        members.append(returns[other][k])
            std = statistics.pstdev(members)
            row.append(0.0 if std < eps else (returns[i][j] - statistics.fmean(members)) / std)
        result.append(row)
    return result


def assert_close(actual, expected, tolerance=1e-7):
    assert [len(row) for row in actual] == [len(row) for row in expected]
    for row, expected_row in zip(actual, expected, strict=True):
        assert row == pytest.approx(expected_row, rel=tolerance, abs=tolerance)


@relaxed
@given(rollout, gammas)
def test_returns_equal_the_sum_term_by_term(rewards, gamma):
    assert turn_returns(rewards, gamma) == pytest.approx(reference_returns(rewards, gamma), abs=1e-12)


@pytest.mark.parametrize("normalize", NORMALIZE)
@relaxed
@given(batch=batches(), gamma=gammas)
def test_gtpo_equals_the_reference(normalize, batch, gamma):
    rewards, groups = batch
    assert_close(
        gtpo_advantages(rewards, gamma, normalize, groups),
        reference_advantages(rewards, gamma, normalize, groups),
    )


@relaxed
@given(st.lists(reward, min_size=1, max_size=12), st.data())
def test_grpo_equals_the_reference_and_gtpo_at_one_turn(rewards, data):
    groups = data.draw(st.lists(st.integers(0, 2), min_size=len(rewards), max_size=len(rewards)))
    grpo = [[advantage] for advantage in grpo_advantages(rewards, groups)]
    one_turn = [[value] for value in rewards]
    assert_close(grpo, reference_advantages(one_turn, 1.0, "group", groups))
    for normalize in ("group", "turn", "first"):
        assert gtpo_advantages(one_turn, 0.9, normalize, groups) == grpo


@pytest.mark.parametrize("normalize", NORMALIZE)
@relaxed
@given(batch=batches(), order=st.randoms(use_true_random=False))
def test_order_and_names_of_rollouts_do_not_matter(normalize, batch, order):
    rewards, groups = batch
    places = list(range(len(rewards)))
    order.shuffle(places)
    renamed = {0: 17, 1: -3, 2: 99}
    moved = gtpo_advantages([rewards[i] for i in places], 0.9, normalize, [renamed[groups[i]] for i in places])
    straight = gtpo_advantages(rewards, 0.9, normalize, groups)
    assert moved == [straight[i] for i in places]  # to the last bit


@pytest.mark.parametrize("normalize", NORMALIZE)
@relaxed
@given(batch=batches(), scale=st.sampled_from([0.25, 3.0, 1000.0]))
def test_a_positive_scale_of_all_rewards_changes_nothing(normalize, batch, scale):
    rewards, groups = batch
    scaled = [[scale * value for value in row] for row in rewards]
    assert_close(gtpo_advantages(scaled, 0.9, normalize, groups), gtpo_advantages(rewards, 0.9, normalize, groups))


@relaxed
@given(batch=batches(), shift=st.sampled_from([-2.0, 0.5, 8.0]))
def test_a_shift_changes_nothing_where_returns_shift_alike(batch, shift):
    rewards, groups = batch
    shifted = [[value + shift for value in row] for row in rewards]
    for normalize in NORMALIZE:  # gamma 0: a return is the turn's own reward
        assert_close(gtpo_advantages(shifted, 0.0, normalize, groups), gtpo_advantages(rewards, 0.0, normalize, groups))
    firsts = [row[0] for row in rewards]
    moved = grpo_advantages([value + shift for value in firsts], groups)
    assert moved == pytest.approx(grpo_advantages(firsts, groups), abs=1e-7)


def test_centred_keeps_a_group_small_whose_rollouts_differ_by_penalties_alone():
    rewards, groups = [[-0.1, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [0, 0, 1, 1]
    by_group = gtpo_advantages(rewards, 1.0, "group", groups)
    centred = gtpo_advantages(rewards, 1.0, "centred", groups)
    assert max(map(abs, by_group[0])) > 1 and max(map(abs, centred[0])) < 0.25
    assert centred[2][1] == pytest.approx(1.41, abs=0.01)
    assert gtpo_advantages([[0.0, 1.0], [0.0, 1.0]], 1.0, "centred", [0, 1]) == [[0.0, 0.0]] * 2


def test_a_shift_of_turn_rewards_does_change_multi_turn_advantages():
    """Longer rollouts collect a constant more often: not a property to rely on."""
    assert gtpo_advantages([[0, 1], [0]])[0] != pytest.approx(gtpo_advantages([[5, 6], [5]])[0], abs=1e-2)


@relaxed
@given(batches())
def test_group_advantages_have_mean_zero_and_spread_one(batch):
    rewards, groups = batch
    rows = gtpo_advantages(rewards, 0.9, "group", groups)
    for problem in set(groups):
        pooled = [a for row, g in zip(rows, groups, strict=True) if g == problem for a in row]
        assert statistics.fmean(pooled) == pytest.approx(0.0, abs=1e-7)
        assert statistics.pstdev(pooled) == pytest.approx(1.0, abs=1e-9) or not any(pooled)


def test_the_first_turn_of_a_correct_six_turn_rollout():
    assert turn_returns([0, 0, 0, 0, 0, 1], 0.9)[0] == pytest.approx(0.9**5)
    assert round(0.9**5, 2) == 0.59


def test_discounting_prefers_short_rollouts_and_keeps_a_gradient_when_all_are_correct():
    long, *short = gtpo_advantages([[0, 0, 0, 0, 0, 1], [1], [1], [1]])
    assert long[0] < 0 < short[0][0]  # all four are correct
    assert grpo_advantages([1, 1, 1, 1]) == [0, 0, 0, 0]


def test_discounting_prefers_short_rollouts_by_hand():
    # Returns 0.5, 1, 1: mean 5/6, std sqrt(1/18).
    std = math.sqrt(1 / 18)
    rows = gtpo_advantages([[0, 1], [1]], gamma=0.5)
    assert_close(rows, [[(0.5 - 5 / 6) / std, (1 - 5 / 6) / std], [(1 - 5 / 6) / std]])


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, 1.0, -7.3, 1e300, 1e-300])
def test_an_all_equal_group_gives_zeros(normalize, value):
    rows = gtpo_advantages([[value]] * 3, 0.9, normalize)
    assert rows == [[0.0]] * 3
    assert all(math.copysign(1, a) == 1 for row in rows for a in row)
    assert grpo_advantages([value] * 7, eps=0) == [0.0] * 7


def test_sets_by_hand_for_every_reading():
    rewards, groups = [[2.0], [0.0, 4.0], [10.0], [30.0]], [0, 0, 1, 1]  # gamma 0: returns = rewards
    half = math.sqrt(1.5)
    expected = {
        "group": [[0], [-half, half], [-1], [1]],  # {2, 0, 4}: mean 2, std sqrt(8/3); {10, 30}: 20, 10
        "turn": [[1], [-1, 0], [-1], [1]],  # {2, 0}, {4} alone, {10, 30}
        "first": [[1], [-1, 3], [-1], [1]],  # {2, 0}: mean 1, std 1, also for the 4
    }
    for normalize, rows in expected.items():
        assert_close(gtpo_advantages(rewards, 0.0, normalize, groups), rows)
    pooled = gtpo_advantages(rewards, 0.0, "batch", groups)
    assert pooled == gtpo_advantages(rewards, 0.0, "batch")  # the groups play no part
    assert pooled == gtpo_advantages(rewards, 0.0, "group")


def test_a_group_without_spread_is_silent_beside_one_with():
    assert grpo_advantages([1, 1, 0, 1], ["x", "x", "y", "y"]) == [0, 0, -1, 1]


def test_eps_is_a_threshold_and_no_summand():
    assert grpo_advantages([0.0, 2e-3], eps=1e-3) == pytest.approx([-1, 1], abs=1e-12)  # std is eps
    assert grpo_advantages([0.0, 1.9e-3], eps=1e-3) == [0, 0]
    assert gtpo_advantages([[0.0], [1.9e-3]], eps=1e-3) == [[0], [0]]


@pytest.mark.parametrize("size", [1e300, 1.7e308, 1e-300])
def test_huge_and_tiny_rewards_keep_finite_advantages(size):
    assert grpo_advantages([size, -size], eps=0.0) == [1, -1]
    expected = grpo_advantages([1.0, 1.0, 1.0, -1.0])
    assert grpo_advantages([size, size, size, -size], eps=0.0) == pytest.approx(expected)
    assert gtpo_advantages([[size], [-size]], eps=0.0, normalize="first") == [[1], [-1]]


def test_minus_zero_never_comes_back():
    rows = [grpo_advantages([-0.0, 1.0, -1.0]), turn_returns([-0.0, -0.0], 1.0), [finite_number("x", -0.0)]]
    assert all(math.copysign(1, x) == 1 for row in rows for x in row if x == 0)


def test_inputs_are_left_alone():
    rewards = [[0.0, 1.0], [0.5]]
    gtpo_advantages(rewards)
    assert rewards == [[0.0, 1.0], [0.5]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "one"])
def test_a_bad_reward_is_named(bad):
    with pytest.raises(ValueError, match=r"rewards\[1\] must be a finite number"):
        turn_returns([0.0, bad], 0.9)
    with pytest.raises(ValueError, match=r"turn_rewards\[1\]\[0\] must be a finite number"):
        gtpo_advantages([[0.0], [bad]])
    with pytest.raises(ValueError, match=r"rewards\[0\] must be a finite number"):
        grpo_advantages([bad])


@pytest.mark.parametrize("gamma", [-0.1, 1.0001, math.nan, math.inf, "0.9", None])
def test_a_bad_gamma_is_named(gamma):
    for call in (lambda: turn_returns([1.0], gamma), lambda: gtpo_advantages([[1.0]], gamma)):
        with pytest.raises(ValueError, match=r"gamma must be a finite number in \[0, 1\]"):
            call()


@pytest.mark.parametrize("eps", [-1e-9, math.nan, math.inf])
def test_a_bad_eps_is_named(eps):
    for call in (lambda: gtpo_advantages([[1.0]], eps=eps), lambda: grpo_advantages([1.0], eps=eps)):
        with pytest.raises(ValueError, match="eps must be a finite number of at least 0"):
            call()


def test_other_bad_input_is_named():
    cases = [
        (lambda: turn_returns([], 0.9), r"rewards must hold at least 1"),
        (lambda: gtpo_advantages([[1.0], []]), r"turn_rewards\[1\] must hold at least 1"),
        (lambda: gtpo_advantages([]), "turn_rewards must hold at least one rollout"),
        (lambda: gtpo_advantages([1.0, 2.0]), r"turn_rewards\[0\] must be a list"),
        (lambda: grpo_advantages([]), "rewards must hold at least 1"),
        (lambda: gtpo_advantages([[1.0]], normalize="token"), "group, batch, turn, first, centred, got 'token'"),
        (lambda: gtpo_advantages([[1.0]], normalize=["group"]), "normalize must be one of"),
        (lambda: gtpo_advantages([[1.0]], groups=[0, 1]), "expected 1 entries, got 2"),
        (lambda: gtpo_advantages([[1.0], [2.0]], groups=[0], normalize="batch"), "expected 2 entries, got 1"),
        (lambda: grpo_advantages([1.0, 2.0], groups=[]), "expected 2 entries, got 0"),
        (lambda: turn_returns([1.7e308, 1.7e308], 1.0), "too large"),
        (lambda: gtpo_advantages([[0, 1e308], [1e-2, 0]], 0.0, "first"), "differ too much"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_long_batch_stays_fast_and_exact():
    generator = random.Random(0)
    rewards = [[generator.choice([-0.1, 0.0, 1.0]) for _ in range(6)] for _ in range(64)]
    groups = [i // 8 for i in range(64)]
    assert_close(gtpo_advantages(rewards, groups=groups), reference_advantages(rewards, 0.9, "group", groups), 1e-9)
