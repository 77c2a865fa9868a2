"""`Credit`: groups by problem, every part counts, and an own estimator is code like any other."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtpo_mini import (
    ARMS,
    Credit,
    ExecutionResult,
    Problem,
    StopReason,
    Trainer,
    Trajectory,
    Turn,
    load_policy,
    load_task,
)
from gtpo_mini.credit import assign_credit, gtpo_advantages
from gtpo_mini.credit.arms import credit_name
from gtpo_mini.train.config import TrainConfig, load_profile

CODES = ("print(1)", "print(1 + 2)", "x = 3\nprint(x)", "print('a')")


def rollout(problem: str, *calls: str | None, answer: str = "1") -> Trajectory:
    """One turn a call, then the answer's turn; "!" is code that failed."""
    turns = []
    for code in calls:
        failed = code.startswith("!")
        turns.append(Turn("t", code=code.lstrip("!"), result=ExecutionResult(ok=not failed, stdout="1\n")))
    turns.append(Turn("end"))
    count = len(turns)
    return Trajectory(
        problem=Problem(problem, f"question {problem}", "1"),
        token_ids=tuple(range(count + 1)),
        prompt_length=1,
        loss_mask=(0, *[1] * count),
        turn_index=(-1, *range(count)),
        logprobs=(0.0, *[-1.0] * count),
        turns=tuple(turns),
        stop=StopReason.ANSWER,
        answer=answer,
    )


@st.composite
def batches(draw):
    """Whole groups of several problems, in order, and their grades."""
    size, problems = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    calls = st.lists(st.sampled_from([*CODES, *("!" + code for code in CODES)]), max_size=3)
    rollouts = [rollout(f"p{p}", *draw(calls)) for p in range(problems) for _ in range(size)]
    return rollouts, [draw(st.booleans()) for _ in rollouts], size


@given(
    batch=batches(), arm=st.sampled_from([name for name in ARMS if name != "similarity_embedding"]), seed=st.integers()
)
def test_groups_are_those_of_the_problems_in_whatever_order_rollouts_come(batch, arm, seed):
    rollouts, correct, size = batch
    rewards, advantages = ARMS[arm](rollouts, correct, size)
    order = list(range(len(rollouts)))
    random.Random(seed).shuffle(order)
    mixed = ARMS[arm]([rollouts[i] for i in order], [correct[i] for i in order], size)
    assert mixed[0] == [pytest.approx(rewards[i]) for i in order]
    assert mixed[1] == [pytest.approx(advantages[i], abs=1e-9) for i in order]


def test_where_nothing_is_right_penalties_may_be_spared():
    group = [rollout("p", "!x"), rollout("p", "x = 1"), rollout("q", "!x"), rollout("q", "x = 1")]
    correct = [False, False, False, True]
    spared = replace(ARMS["gtpo"], spare_hopeless=True, alpha=0.0)(group, correct, 2)[0]
    always = replace(ARMS["gtpo"], alpha=0.0)(group, correct, 2)[0]
    assert spared == [[0.0, 0.0], [0.0, 0.0], [-0.1, 0.0], [0.0, 1.0]]
    assert always == [[-0.1, 0.0], *spared[1:]]


def test_two_problems_are_never_normalised_together():
    """Interleaved, of groups of another size, or with a rollout dropped: each problem stands for itself."""
    first = [rollout("a", "print(1)"), rollout("a", "print(1)", answer="2")]
    second = [rollout("b", "print(2)"), rollout("b", "print(2)", answer="2"), rollout("b", "!print(", answer="2")]
    for credit in (ARMS["grpo_accuracy"], ARMS["gtpo"], ARMS["+turn_rewards"]):
        alone = credit(first, [True, False], 2)[1], credit(second, [True, False, False], 3)[1]
        for size in (2, 3, 5, 8):
            mixed = [second[0], first[0], second[1], first[1], second[2]]
            found = credit(mixed, [True, True, False, False, False], size)[1]
            assert [found[1], found[3]] == alone[0] and [found[0], found[2], found[4]] == alone[1], size


def test_a_problem_that_is_drawn_twice_has_two_groups():
    right, wrong = rollout("a", "print(1)"), rollout("a", "print(1)", answer="2")
    _, advantages = ARMS["grpo_accuracy"]([right, wrong, right, right], [True, False, True, True], 2)
    assert advantages == [[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0], [0.0, 0.0]]


def test_every_earlier_penalty_counts_in_a_rollout_s_sum():
    """Two failed calls, then right: 1 - 0.2; one failed call, then right: 1 - 0.1; a wrong one: 0."""
    rollouts = [rollout("a", "!x", "!y"), rollout("a", "!x", "print(1)"), rollout("a", "print(1)")]
    rewards, advantages = ARMS["+turn_rewards"](rollouts, [True, True, False], 3)
    assert rewards == [[-0.1, -0.1, 1.0], [-0.1, 0.0, 1.0], [0.0, 0.0]]
    sums = [0.8, 0.9, 0.0]
    expected = [(value - fmean(sums)) / pstdev(sums) for value in sums]
    assert [row[0] for row in advantages] == pytest.approx(expected)
    assert all(len(set(row)) == 1 for row in advantages)


def test_the_potential_is_discounted_as_the_returns_are():
    """gamma Phi(next) - Phi(now): with gamma 0.5 and Phi 0, 0.5, the first turn gains 0.25 and the last pays 0.5."""
    alike = [rollout("a", "print(1)") for _ in range(3)]
    rewards, _ = Credit(gamma=0.5, shaping="potential")(alike, [True, True, False], 3)
    assert rewards == [[0.25, 0.5], [0.25, 0.5], [0.25, -0.5]]
    # Over a rollout the discounted gains sum to minus the first potential: nothing is to be had by likeness.
    bare, _ = Credit(gamma=0.5, alpha=0.0)(alike, [True, True, False], 3)
    gains = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(rewards, bare, strict=True)]
    assert [row[0] + 0.5 * row[1] for row in gains] == pytest.approx([0.0, 0.0, 0.0])


@pytest.mark.parametrize("arm", ["grpo", "+turn_rewards", "+returns", "gtpo", "normalize_turn", "normalize_first"])
def test_a_group_in_which_nothing_differs_leaves_the_others_as_they_are(arm):
    silent = [rollout("s", "print(1)", answer="2") for _ in range(2)]
    mixed = [rollout("m", "print(1)"), rollout("m", "!print(1", answer="2")]
    _, alone = ARMS[arm](mixed, [True, False], 2)
    _, found = ARMS[arm]([*silent, *mixed], [False, False, True, False], 2)
    assert found[2:] == alone and any(map(any, alone))
    if arm in ("grpo", "+turn_rewards", "normalize_turn"):
        assert found[:2] == [[0.0, 0.0], [0.0, 0.0]]


def test_first_takes_the_first_turns_returns_for_all_turns():
    """Returns [0.25, 0.5, 1] and [-0.1, 0]: the reference is {0.25, -0.1}, mean 0.075, std 0.175."""
    rewards = [[0.0, 0.0, 1.0], [-0.1, 0.0]]
    found = gtpo_advantages(rewards, gamma=0.5, normalize="first")
    expected = [[(r - 0.075) / 0.175 for r in row] for row in ([0.25, 0.5, 1.0], [-0.1, 0.0])]
    assert found == [pytest.approx(row) for row in expected]


def test_a_grade_between_0_and_1_is_an_outcome():
    rollouts = [rollout("a", "print(1)"), rollout("a", "print(1)"), rollout("a", "'other'")]
    rewards, _ = Credit()(rollouts, [1.0, 0.25, 0.75], 3)
    assert [row[-1] for row in rewards] == [1.0, 0.5, pytest.approx(0.75)]  # likeness can only add
    for bad in (1.5, -0.1, float("nan"), "wrong"):
        with pytest.raises(ValueError, match=r"correct\[1\] must be a finite number in \[0, 1\]"):
            Credit()(rollouts, [1.0, bad, 0.0], 3)
    with pytest.raises(ValueError, match="one entry a rollout: expected 3, got 2"):
        Credit()(rollouts, [1.0, 0.0], 3)


def centred(rollouts, correct, group_size):
    """An own estimator: outcomes less their mean, without the division by the std."""
    mean = sum(correct) / len(correct)
    rewards = [[0.0] * (len(r.turns) - 1) + [float(c)] for r, c in zip(rollouts, correct, strict=True)]
    return rewards, [[c - mean] * len(r.turns) for r, c in zip(rollouts, correct, strict=True)]


SMALL = replace(load_profile("cpu").train, steps=1, problems_per_step=2, group_size=4)


def test_an_own_estimator_trains(sandbox, tmp_path):
    config = replace(SMALL, credit=centred)
    trainer = Trainer(load_policy("tiny", device="cpu"), load_task("branching"), config, tmp_path, sandbox=sandbox)
    trainer.train()
    rollouts, rewards, advantages = trainer.last
    correct = [trainer.task.grade(r.problem, r.answer) for r in rollouts]
    assert (rewards, advantages) == centred(rollouts, correct, 4)
    assert '"credit": "test_credit:centred"' in (tmp_path / "metrics.jsonl").read_text().replace("tests.", "")
    with pytest.raises(ValueError, match="credit was 'test_credit:centred' and is"):
        other = replace(config, credit=ARMS["gtpo"])
        Trainer(load_policy("tiny", device="cpu"), load_task("branching"), other, tmp_path, resume=True).train()


def fails(rollouts, correct, group_size):
    raise KeyError("turn 3")


@pytest.mark.parametrize(
    ("credit", "message"),
    [
        (fails, r"credit 'fails' raised KeyError: 'turn 3'"),
        (lambda r, c, g: None, r"credit '<lambda>': must return \(rewards, advantages\), got NoneType"),
        (lambda r, c, g: ([[0.0] * len(x.turns) for x in r], [[0.0]]), r"advantages must hold 8 lists, one a rollout"),
        (lambda r, c, g: ([[0.0]] * 8, [[0.0]] * 8), r"rewards\[\d\] must hold \d numbers, one a turn, got 1"),
        (
            lambda r, c, g: ([[0.0] * len(x.turns) for x in r], [[float("nan")] * len(x.turns) for x in r]),
            r"credit '<lambda>': advantages\[0\]\[0\] must be a finite number, got nan",
        ),
    ],
)
def test_an_own_estimator_that_fails_is_one_error_with_its_name(credit, message, sandbox, tmp_path):
    config = replace(SMALL, credit=credit)
    trainer = Trainer(load_policy("tiny", device="cpu"), load_task("branching"), config, sandbox=sandbox)
    with pytest.raises(ValueError, match=message) as caught:
        trainer.train()
    assert "learning_rate" not in str(caught.value)


def test_an_own_estimator_that_fails_later_loses_nothing(sandbox, tmp_path):
    calls = []

    def tires(rollouts, correct, group_size):
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("tired")
        return centred(rollouts, correct, group_size)

    config = replace(SMALL, steps=4, credit=tires)
    trainer = Trainer(load_policy("tiny", device="cpu"), load_task("branching"), config, tmp_path, sandbox=sandbox)
    with pytest.raises(
        ValueError, match=r"credit 'tires' raised RuntimeError: tired; the last checkpoint is .*step-000002"
    ):
        trainer.train()
    assert (tmp_path / "checkpoints" / "step-000002" / "manifest.json").is_file()


def test_tensors_and_arrays_are_lists_of_numbers_too():
    torch = pytest.importorskip("torch")
    rollouts = [rollout("a", "print(1)"), rollout("a")]
    found = assign_credit(
        lambda r, c, g: ([torch.zeros(2), [0.0]], [torch.ones(2), torch.ones(1)]), rollouts, [1, 0], 2
    )
    assert found == ([[0.0, 0.0], [0.0]], [[1.0, 1.0], [1.0]])


def test_names_of_arms():
    assert credit_name(ARMS["grpo"]) == "grpo" and credit_name(centred) == "centred"
    assert credit_name(Credit(gamma=0.3)) == "Credit" and credit_name(max) == "max"
    assert len({credit_name(credit) for credit in ARMS.values()}) == len(ARMS)  # no two arms are the same


def test_an_own_function_is_known_by_its_name_only():
    with pytest.raises(ValueError, match="is an own function"):
        TrainConfig.from_record(TrainConfig(credit=centred).record())
