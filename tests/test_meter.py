"""The credit meter: its states are the rollout's own, its truth is what continuations say, its figures are by hand."""

from __future__ import annotations

import numpy as np
import pytest

from gtpo_mini import ARMS, Problem, Task, load_policy, load_profile, load_task, sample
from gtpo_mini.experiments import meter as meters
from gtpo_mini.experiments.meter import Meter, credit_meter
from gtpo_mini.rollout.engine import RolloutEngine
from gtpo_mini.rollout.protocol import load_protocol
from gtpo_mini.rollout.settings import SamplingSettings

SETTINGS = load_profile("cpu").train.sampling()


def made(truth, **advantages) -> Meter:
    count = len(truth)
    return Meter(
        group=np.arange(count) // 2,
        kind=np.array(["right", "last"] * (count // 2)),
        truth=np.array([truth, truth], float),
        advantages={name: np.array(values, float) for name, values in advantages.items()},
        tokens=np.arange(1, count + 1),
        hopeless=np.arange(count) < 2,
    )


def test_figures_by_hand():
    found = made([1, 0, -1, 0.5], same=[2, 0, -2, 1], against=[-1, 0, 1, -0.5], silent=[0, 0, 0, 0])
    assert found.correlation("same").estimate == pytest.approx(1) and found.correlation("silent") == (0, 0, 0)
    assert found.correlation("against", "right").estimate == pytest.approx(-1)
    assert found.ceiling == pytest.approx(1)
    assert found.hopeless_share("same") == pytest.approx((2 * 1) / (2 * 1 + 2 * 3 + 1 * 4))
    assert found.hopeless_share("silent") == 0
    record = found.record()
    assert record["groups"] == 2 and record["turns"] == {"broken": 0, "wrong": 0, "right": 2, "last": 2}
    assert "| `against` | -1.00" in found.table()


def test_noisy_truth_lowers_the_ceiling():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=4000)
    halves = signal + rng.normal(size=(2, 4000))  # each half: half signal, half noise
    found = made(signal, perfect=signal)
    found = Meter(**{**vars(found), "truth": halves})
    assert found.ceiling == pytest.approx(found.correlation("perfect").estimate, abs=0.03)
    assert found.ceiling == pytest.approx(np.sqrt(2 / 3), abs=0.03)


def test_a_continuation_begins_with_the_states_ids_and_its_session(sandbox):
    policy, task = load_policy("tiny", device="cpu"), load_task("branching", "test", size=4)
    ((rollouts, _),) = sample(policy, task, group_size=4, seed=3, settings=SETTINGS, sandbox=sandbox)
    rollout = max(rollouts, key=lambda r: len(r.turns))
    state = meters._State(rollout, 2)
    assert state.ids == rollout.token_ids[: len(state.ids)] and rollout.turn_index[len(state.ids)] == 2
    engine = meters._Continuing(policy, load_protocol(), sandbox, SETTINGS)
    asked = Problem("x", "?", "", {"state": state})
    for other in engine.generate([asked], 3, task=meters._Replayed(task, SamplingSettings())):
        assert other.token_ids[: other.prompt_length] == state.ids
    assert meters._State(rollouts[0], 0).key == meters._State(rollouts[1], 0).key

    replayed = meters._Replayed(Task("t", (asked,), setup=lambda problem: "y = 1"), SamplingSettings())
    state.codes = ["x = 41", "1 / 0", "x += y"]
    with replayed.session(sandbox, asked) as session:
        assert session.run("print(x)").stdout == "42\n"


def test_the_meter_agrees_with_a_plain_computation(sandbox):
    """A rollout's true advantages add up to its outcome less V of its group's start, whatever the states between."""
    policy, task = load_policy("tiny", device="cpu"), load_task("branching", "test", size=4)
    arms = {name: ARMS[name] for name in ("grpo_accuracy", "gtpo", "normalize_batch")}
    how = {"settings": SETTINGS, "sandbox": sandbox, "seed": 2}
    found = credit_meter(policy, task, arms, problems=2, continuations=8, group_size=4, **how)
    groups = sample(policy, task, 2, 4, **how)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    correct = [right for group in groups for right in group.correct]
    assert len(found.group) == sum(len(rollout.turns) for rollout in rollouts)
    for name in arms:
        plain = [a for row in ARMS[name](rollouts, correct, 4)[1] for a in row]
        assert found.advantages[name].tolist() == plain
    ends = np.cumsum([len(rollout.turns) for rollout in rollouts])
    sums = [found.truth[:, end - len(r.turns) : end].sum(1) for end, r in zip(ends, rollouts, strict=True)]
    starts = [right - total for right, total in zip(correct, sums, strict=True)]
    for group in (starts[:4], starts[4:]):
        np.testing.assert_allclose(group, np.broadcast_to(group[0], (4, 2)), atol=1e-12)  # one V for all four
        assert ((group[0] >= 0) & (group[0] <= 1)).all()
    assert set(found.kind) <= set(meters.KINDS) and (found.kind == "last").sum() == 8
    again = credit_meter(policy, task, arms, problems=2, continuations=8, group_size=4, **how)
    assert again.record() == found.record()


def test_the_turns_that_are_left_are_the_rollouts_own(monkeypatch, sandbox):
    seen = []

    def generate(self, problems, *rest, **named):
        seen.extend((self.settings.max_turns, problem.metadata["state"].turns) for problem in problems)
        return RolloutEngine.generate(self, problems, *rest, **named)

    monkeypatch.setattr(meters._Continuing, "generate", generate)
    policy, task = load_policy("tiny", device="cpu"), load_task("branching", "test", size=2)
    settings = SamplingSettings(max_turns=3, max_turn_tokens=24)
    credit_meter(policy, task, {"grpo": ARMS["grpo"]}, 1, 2, 4, settings=settings, sandbox=sandbox)
    assert set(seen) == {(3, 0), (2, 1), (1, 2)}


def test_an_odd_number_of_continuations_is_refused():
    with pytest.raises(ValueError, match="continuations=3: must be even"):
        credit_meter(None, None, {}, continuations=3)
