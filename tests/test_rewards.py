"""Turn rewards and the baseline's trajectory reward, on real turns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo_mini.credit.rewards import trajectory_reward, turn_rewards
from gtpo_mini.types import ExecutionResult, Problem, StopReason, Trajectory, Turn

relaxed = settings(deadline=None)

VALID = Turn("call", code="print(1)", result=ExecutionResult(ok=True, stdout="1\n"))
CRASH = Turn("call", code="1/0", result=ExecutionResult(ok=False, error="ZeroDivisionError"))
MALFORMED = Turn("<tool", malformed=True)
NO_CALL = Turn("The answer is 1.")


def trajectory(*turns: Turn) -> Trajectory:
    return Trajectory(Problem("p", "1 + 0?", "1"), (), 0, (), (), (), turns, StopReason.ANSWER, "1")


def reference_turn_rewards(turns, outcome, penalty):
    """Eq. 5, turn by turn."""
    result = []
    for j in range(len(turns)):
        accuracy = outcome if j == len(turns) - 1 else 0.0
        invalid = turns[j].malformed or (turns[j].result is not None and not turns[j].result.ok)
        no_first_call = j == 0 and turns[j].code is None and not turns[j].malformed
        result.append(accuracy + (-penalty if invalid or no_first_call else 0.0))
    return result


turns_lists = st.lists(st.sampled_from([VALID, CRASH, MALFORMED, NO_CALL]), min_size=1, max_size=6)


@relaxed
@given(turns_lists, st.floats(0, 1), st.floats(0, 2))
def test_turn_rewards_equal_the_reference(turns, outcome, penalty):
    assert turn_rewards(trajectory(*turns), outcome, penalty) == reference_turn_rewards(turns, outcome, penalty)


@relaxed
@given(turns_lists, st.floats(0, 1))
def test_trajectory_reward_is_the_minimum_of_accuracy_and_format(turns, outcome):
    clean = all(turn in (VALID, NO_CALL) for turn in turns)
    assert trajectory_reward(trajectory(*turns), outcome) == (outcome if clean else 0.0)


@pytest.mark.parametrize(
    ("turns", "outcome", "per_turn", "whole"),
    [
        ((VALID, VALID, NO_CALL), 1.0, [0.0, 0.0, 1.0], 1.0),
        ((VALID, CRASH, NO_CALL), 1.0, [0.0, -0.1, 1.0], 0.0),
        ((CRASH, MALFORMED), 0.0, [-0.1, -0.1], 0.0),
        ((NO_CALL,), 1.0, [0.9], 1.0),
        ((NO_CALL, NO_CALL), 0.0, [-0.1, 0.0], 0.0),
        ((VALID, NO_CALL), 0.25, [0.0, 0.25], 0.25),
        ((VALID, CRASH), 0.5, [0.0, 0.4], 0.0),
    ],
)
def test_by_hand(turns, outcome, per_turn, whole):
    assert turn_rewards(trajectory(*turns), outcome) == pytest.approx(per_turn)
    assert trajectory_reward(trajectory(*turns), outcome) == whole


def test_the_first_turn_is_penalised_once_when_both_rules_apply():
    @dataclass
    class Odd:
        invalid_call: bool = True
        calls_tool: bool = False

    @dataclass
    class OddTrajectory:
        turns: tuple

    assert turn_rewards(OddTrajectory((Odd(),)), 0.0) == [-0.1]


def test_without_a_penalty_no_minus_zero_comes_back():
    rewards = turn_rewards(trajectory(CRASH, NO_CALL), -0.0, format_penalty=0.0)
    assert rewards == [0, 0]
    assert all(math.copysign(1, reward) == 1 for reward in rewards)


@pytest.mark.parametrize("outcome", [math.nan, math.inf, -0.1, 1.1, None, "1"])
def test_a_bad_outcome_is_named(outcome):
    for call in (turn_rewards, trajectory_reward):
        with pytest.raises(ValueError, match=r"outcome must be a finite number in \[0, 1\]"):
            call(trajectory(VALID), outcome)


@pytest.mark.parametrize("penalty", [-0.1, math.nan, math.inf])
def test_a_bad_penalty_is_named(penalty):
    with pytest.raises(ValueError, match="format_penalty must be a finite number of at least 0"):
        turn_rewards(trajectory(VALID), 1.0, penalty)


def test_an_empty_rollout_is_named():
    for call in (turn_rewards, trajectory_reward):
        with pytest.raises(ValueError, match=r"trajectory\.turns must hold at least one turn"):
            call(trajectory(), 1.0)
