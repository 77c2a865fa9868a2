"""What came after GTPO: each estimator's equation at hand-worked cases (doctests have more), and what always holds."""

from __future__ import annotations

import random
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_credit import batches, rollout

from gtpo_mini import Trainer, load_policy, load_task
from gtpo_mini.credit import ARMS, LATER, assign_credit, grpo_advantages
from gtpo_mini.credit.arms import credit_name, load_arm
from gtpo_mini.credit.later import (
    IRC,
    SimpleTIR,
    a3_advantages,
    calibrated_rewards,
    dr_grpo_advantages,
    gigpo_advantages,
    hybrid_advantages,
    mt_grpo_advantages,
)
from gtpo_mini.credit.provenance import provenance
from gtpo_mini.experiments.compare import over_starts
from gtpo_mini.experiments.plots import plot_nearer
from gtpo_mini.experiments.report import load_meters, load_study
from gtpo_mini.train.config import TrainConfig, load_profile

outcomes_of_groups = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2)), min_size=1, max_size=9)


@pytest.mark.parametrize("name", LATER)
@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_the_rollouts_plays_no_part(name, batch, rng):
    rollouts, correct, size = batch
    rewards, advantages = assign_credit(LATER[name], rollouts, correct, size)  # finite, one a turn
    places = list(range(len(rollouts)))
    rng.shuffle(places)
    mixed = assign_credit(LATER[name], [rollouts[i] for i in places], [correct[i] for i in places], size)
    for new, old in enumerate(places):
        assert mixed[0][new] == pytest.approx(rewards[old], abs=1e-9)
        assert mixed[1][new] == pytest.approx(advantages[old], abs=1e-9)


@given(outcomes_of_groups)
def test_with_one_turn_each_they_are_grpo_but_for_a_factor(drawn):
    outcomes, groups = map(list, zip(*drawn, strict=True))
    grpo, nothing = grpo_advantages(outcomes, groups), [[0.0] for _ in outcomes]
    earned = [[outcome] for outcome in outcomes]
    for factor, found in (
        (1.0, mt_grpo_advantages(outcomes, nothing, groups)),
        (2.0, gigpo_advantages(outcomes, earned, [[()] for _ in outcomes], groups)),
        (1.3, hybrid_advantages(outcomes, nothing, groups)),
    ):
        assert [row[0] for row in found] == pytest.approx([factor * a for a in grpo], abs=1e-9)


@given(outcomes_of_groups, st.floats(0.1, 1.0))
def test_dr_grpo_is_centred_and_keeps_the_scale(drawn, scale):
    outcomes, groups = map(list, zip(*drawn, strict=True))
    found = dr_grpo_advantages(outcomes, groups)
    for group in groups:
        assert sum(a for a, g in zip(found, groups, strict=True) if g == group) == pytest.approx(0, abs=1e-9)
    assert dr_grpo_advantages([scale * o for o in outcomes], groups) == pytest.approx([scale * a for a in found])


@given(batches())
def test_a3_stays_below_its_bound_and_has_the_sign_of_a_clear_case(batch):
    rollouts, correct, size = batch
    assert all(abs(a) <= 1.1 for row in LATER["a3"](rollouts, correct, size)[1] for a in row)


def test_gigpo_tells_apart_turns_that_began_in_one_state():
    """All call print(1); then one calls print(2) and is right, the other answers at once and is wrong."""
    rollouts = [rollout("p", "print(1)", "print(2)"), rollout("p", "print(1)")]
    _, (right, wrong) = LATER["gigpo"](rollouts, [1, 0], 2)
    # First turns: one state, returns 0.95^2 and 0. Second turns: one state, 0.95 and 0. The third began alone.
    assert right == pytest.approx([2, 2, 1]) and wrong == pytest.approx([-2, -2])


def test_mt_grpo_compares_turns_of_one_number_and_leaves_the_last_to_the_outcome():
    rollouts = [rollout("p", "!print(", "print(1)"), rollout("p", "print(1)", "print(1)")]
    _, advantages = LATER["mt_grpo"](rollouts, [1, 0], 2)
    assert advantages == [pytest.approx([0, 1, 1]), pytest.approx([0, -1, -1])]  # 1 - 1 and -1 + 1 at the first


def test_calibration_pays_what_goes_with_success_and_nothing_where_nothing_is_told():
    tiers, groups = [["ran", "ran", None], ["broken", "ran", None], ["broken", None], ["ran", None]], [0, 0, 1, 1]
    found = calibrated_rewards([1.0, 0.0, 0.0, 1.0], tiers, groups)
    assert found == {"broken": -0.5, "ran": pytest.approx(0.5 / 3**0.5)}  # correlations -1 and 0.577
    assert calibrated_rewards([1.0, 1.0, 0.0, 0.0], [["ran"], ["broken"]] * 2, groups) == {"broken": 0.0, "ran": 0.0}


def test_calibration_goes_on_until_the_signs_agree():
    """A broken call goes with success here, but most of them stand in failed rollouts, so that they are blamed."""
    tiers = [["broken", "broken", None], ["broken", None], [None], ["broken", "broken", None]]
    outcomes, groups = [0.0, 1.0, 0.0, 0.0], [0] * 4

    def praise(earned):
        found = hybrid_advantages(outcomes, [[earned if name else 0.0 for name in row] for row in tiers], groups)
        return sum(
            a for row, names in zip(found, tiers, strict=True) for a, name in zip(row, names, strict=True) if name
        )

    earned = [calibrated_rewards(outcomes, tiers, groups, scale=0.1, rounds=n)["broken"] for n in (0, 1, 2, 3)]
    assert earned == pytest.approx([0.1 / 3, 0.2 / 3, 0.4 / 3, 0.4 / 3])  # doubled twice, then the signs agree
    assert praise(earned[0]) < 0 and praise(earned[1]) < 0 < praise(earned[2])


def test_without_calibration_a_call_that_ran_is_paid_whatever_became_of_it():
    rollouts = [rollout("p", "print(1)"), rollout("p", "!print(")]
    assert IRC(calibrated=False)(rollouts, [0, 1], 2)[0] == [[0.5, 0.0], [-0.5, 1.0]]
    assert IRC()(rollouts, [0, 1], 2)[0] == [[-0.5, 0.0], [0.5, 1.0]]


def test_a_rollout_with_a_void_turn_leaves_the_loss_and_still_counts_in_the_mean():
    rollouts = [rollout("p", "print(1)"), rollout("p", "print(1)", answer=None), rollout("p")]
    base = ARMS["grpo_accuracy"](rollouts, [1, 0, 0], 3)[1]
    found = SimpleTIR()(rollouts, [1, 0, 0], 3)[1]
    assert found == [base[0], [0.0, 0.0], base[2]] and base[1] != [0.0, 0.0]
    unread = replace(rollouts[0].turns[0], code=None, malformed=True, result=None)
    broken = [rollouts[0], replace(rollouts[0], turns=(unread, *rollouts[0].turns[1:]))]
    assert SimpleTIR()(broken, [0, 1], 2)[1][1] == [0.0, 0.0]  # a call that cannot be read holds no code


@pytest.mark.parametrize("code", ["a" + "[0]" * 2000, "(" * 5000, "-" * 3000 + "1", "\0", "if"])
def test_code_that_cannot_be_read_is_data(code):
    rollouts = [rollout("p", code), rollout("p", "print(1)")]
    for credit in LATER.values():
        assign_credit(credit, rollouts, [1, 0], 2)
    assert provenance(rollouts[0])


@given(st.integers(0, 10_000))
def test_a_fork_of_three_actions_is_worked_out_by_the_equation(seed):
    """A second way to compute A3, from its definition, over random trees."""
    import math
    import statistics

    rng = random.Random(seed)
    outcomes = [float(rng.random() < 0.5) for _ in range(5)]
    actions = [[rng.choice("ab") for _ in range(rng.randint(1, 3))] for _ in range(5)]
    found = a3_advantages(outcomes, actions, [0] * 5, chain=1, gamma=0.5)
    middle = statistics.median(outcomes)
    scale = max(0.5, 1.4826 * statistics.median(abs(o - middle) for o in outcomes))
    parts = {"episode": {}, "rest": {}, "tree": {}}

    def through(path):
        return statistics.fmean(o for o, a in zip(outcomes, actions, strict=True) if tuple(a[: len(path)]) == path)

    for i, mine in enumerate(actions):
        for j in range(len(mine)):
            parts["episode"][i, j] = math.tanh((outcomes[i] - middle) / scale)
            same = [outcomes[k] for k, a in enumerate(actions) if k != i and a[j : j + 1] == mine[j : j + 1]]
            parts["rest"][i, j] = outcomes[i] - statistics.fmean(same) if same else 0.0
            steps = range(j, len(mine))
            parts["tree"][i, j] = sum(
                0.5 ** (m - j) * (through(tuple(mine[: m + 1])) - through(tuple(mine[:m]))) for m in steps
            )
    bars = {name: statistics.fmean(map(abs, part.values())) or 1.0 for name, part in parts.items()}
    for i, mine in enumerate(actions):
        for j in range(len(mine)):
            weights = {"episode": 1.0, "rest": 0.65, "tree": 1.0}
            whole = sum(weight * parts[name][i, j] / bars[name] for name, weight in weights.items())
            assert found[i][j] == pytest.approx(1.1 * math.tanh(whole / 1.1), abs=1e-9)


@pytest.mark.parametrize("name", LATER)
def test_a_record_holds_the_estimator_with_its_settings(name):
    config = TrainConfig(credit=LATER[name])
    assert TrainConfig.from_record(config.record()) == config and credit_name(LATER[name]) == name
    assert load_arm(name) is LATER[name]


def test_other_settings_of_one_are_another_record():
    assert TrainConfig(credit=IRC(rounds=1)).record() != TrainConfig(credit=IRC()).record()
    with pytest.raises(ValueError, match="own function"):
        TrainConfig.from_record(TrainConfig(credit=IRC(rounds=1)).record())


@pytest.mark.filterwarnings("ignore:step 1")
def test_equal_fractions_teach_nothing_by_a3():
    """The mean of others that got the same is off by rounding, which must not be scaled up."""
    assert a3_advantages([0.7] * 4, [["z"]] * 4, [0] * 4) == [[pytest.approx(0, abs=1e-9)]] * 4
    found = a3_advantages([1.0, 0.0] + [0.7] * 4, [["x", "e"], ["y", "f"]] + [["z"]] * 4, [0, 0] + [1] * 4)
    assert found[2:] == [[pytest.approx(0, abs=1e-9)]] * 4 and found[0][0] > 0.5


@pytest.mark.parametrize("grades", [[float("nan"), 1], [2, 1], [1]])
def test_a_wrong_grade_is_named_also_of_an_answer_that_nothing_supports(grades):
    with pytest.raises(ValueError, match="correct"):
        LATER["grpo_supported"]([rollout("p"), rollout("p")], grades, 2)


@pytest.mark.parametrize("name", ["gigpo", "irc", "a3"])
def test_it_trains(name, sandbox):
    config = replace(load_profile("cpu").train, credit=load_arm(name), steps=1, problems_per_step=2, group_size=4)
    (step,) = Trainer(load_policy("tiny"), load_task("branching"), config, sandbox=sandbox).train()
    assert step["grad/norm"] > 0


def test_the_figure_of_the_estimators_has_a_row_an_arm():
    meters = load_meters()
    arms = ["gtpo", *(arm for arm in LATER if all(arm in meter["credits"] for meter in meters.values()))]
    assert len(arms) > 7
    study = load_study()
    figure = plot_nearer(meters, arms, "grpo", study)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == arms
    bars = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "|"]
    credits = [record["credits"] for record in meters.values()]
    by_hand = sum(c["gigpo"]["correlation"][0] - c["grpo"]["correlation"][0] for c in credits) / len(credits)
    assert bars[arms.index("gigpo")] == pytest.approx(by_hand)
    alone = plot_nearer(meters, arms, "grpo").axes[0]
    assert bars == [line.get_xdata()[0] for line in alone.lines if line.get_marker() == "|"]
    means = {line.get_ydata()[0]: line.get_xdata()[0] for line in figure.axes[1].lines if line.get_marker() == "o"}
    starts = [runs for name, runs in study.items() if name.endswith("_20")]
    assert means[0] == pytest.approx(100 * over_starts(starts, "gtpo", "grpo")[-1].over_seeds.estimate)
    plt.close("all")


def test_a_guess_that_is_right_is_paid_as_a_miss():
    known, guessed, wrong = rollout("p", "f()"), rollout("p"), rollout("p", "f()", answer="2")
    rewards, advantages = LATER["grpo_supported"]([known, guessed, wrong], [1, 1, 0], 3)
    assert [sum(row) for row in rewards] == [1, 0, 0]
    assert advantages[1][0] == advantages[2][0] < 0 < advantages[0][0]
    assert ARMS["grpo_accuracy"]([known, guessed, wrong], [1, 1, 0], 3)[1][1][0] > 0
