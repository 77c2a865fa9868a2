from __future__ import annotations

import json
import math
import warnings
from dataclasses import fields, replace
from statistics import fmean, pstdev

import pytest
import torch
from small_models import save_model

from gtpo_mini import sample
from gtpo_mini.credit import ARMS, Credit
from gtpo_mini.policy.load import load_policy
from gtpo_mini.rollout.engine import RolloutEngine
from gtpo_mini.rollout.protocol import load_protocol
from gtpo_mini.tasks.task import Task, load_task
from gtpo_mini.train.config import TrainConfig, load_profile
from gtpo_mini.train.loss import passes, per_token, token_logprobs
from gtpo_mini.train.metrics import describe_step
from gtpo_mini.train.trainer import Trainer
from gtpo_mini.types import ExecutionResult, Problem, StopReason, Turn

SMALL = replace(load_profile("cpu").train, steps=2, problems_per_step=4, group_size=4, learning_rate=1e-3)
FAILED = Turn("call", code="print(", result=ExecutionResult(ok=False, error="SyntaxError"))
END = Turn("end")


def run(config=SMALL, policy=None, task=None, **options) -> Trainer:
    trainer = Trainer(policy or load_policy("tiny", device="cpu"), task or load_task("branching"), config, **options)
    trainer.train()
    return trainer


def learned(trainer: Trainer) -> list[dict]:
    """The metrics but for times and memory."""
    return [{k: v for k, v in m.items() if not k.startswith(("time/", "memory/"))} for m in trainer.history]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(sandbox):
    first, second = run(sandbox=sandbox), run(sandbox=sandbox)
    assert learned(first) == learned(second)
    for a, b in zip(first.policy.trainable_parameters(), second.policy.trainable_parameters(), strict=True):
        assert torch.equal(a, b)
    assert learned(run(replace(SMALL, seed=1), sandbox=sandbox)) != learned(first)


def test_arms_see_the_same_problems_and_part_ways_only_by_the_method(sandbox):
    gtpo, grpo = run(sandbox=sandbox), run(replace(SMALL, credit=ARMS["grpo"]), sandbox=sandbox)
    assert learned(gtpo)[0]["reward/outcome"] == learned(grpo)[0]["reward/outcome"]
    assert learned(gtpo)[0]["reward/turn_mean"] != learned(grpo)[0]["reward/turn_mean"]
    assert [r.problem for r in gtpo.last[0]] == [r.problem for r in grpo.last[0]]


def test_metrics_file_has_header_steps_and_footer_with_fixed_keys(tmp_path, sandbox):
    trainer = run(output=tmp_path / "a" / "b", sandbox=sandbox)
    lines = [json.loads(line) for line in (tmp_path / "a" / "b" / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["header", "step", "step", "footer"]
    assert {"config", "seed", "commit", "versions", "device", "command", "task", "policy"} <= set(lines[0])
    assert [{"kind": "step", **metrics} for metrics in trainer.history] == lines[1:3]
    keys = {
        "reward/outcome", "reward/turn_mean", "loss/policy", "loss/clip_fraction", "loss/sampler_mismatch", "loss/kl",
        "rollout/turns", "rollout/calls", "rollout/invalid_calls", "rollout/guesses", "group/silent", "grad/norm",
        "group/hopeless", "advantage/hopeless_share",
        "policy/entropy", "time/rollout", "time/score", "time/update", "time/step", "memory/peak_gib",
        *(f"rollout/stop_{reason}" for reason in StopReason),
    }  # fmt: skip
    assert keys <= set(lines[1]) and set(lines[1]) == set(lines[2])
    assert sum(lines[1][f"rollout/stop_{reason}"] for reason in StopReason) == pytest.approx(1)
    assert lines[1]["loss/sampler_mismatch"] < 1e-5
    with pytest.raises(ValueError, match="holds a run already"):
        Trainer(trainer.policy, trainer.task, SMALL, tmp_path / "a" / "b")


def test_the_share_of_credit_where_nothing_is_right_by_hand(sandbox):
    policy, task = load_policy("tiny", device="cpu"), load_task("branching")
    groups = sample(policy, task, 2, 2, seed=1, settings=SMALL.sampling(), sandbox=sandbox)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    advantages = [[0.5 * (-1) ** j for j in range(len(rollout.turns))] for rollout in rollouts]
    tokens = [sum(rollout.loss_mask) for rollout in rollouts]
    told = describe_step(rollouts, [0, 0.9, 0, 1], advantages, advantages, 2)
    assert told["group/hopeless"] == 0.5  # a grade below 1 is not right
    assert told["advantage/hopeless_share"] == pytest.approx(sum(tokens[:2]) / sum(tokens))
    silent = [[0.0] * len(rollout.turns) for rollout in rollouts]
    assert describe_step(rollouts, [0, 0, 0, 0], silent, silent, 2)["advantage/hopeless_share"] == 0


def test_the_step_follows_the_advantages(sandbox):
    """After one step the tokens of turns with positive advantage are likelier, the others less likely."""
    config = replace(SMALL, steps=1, problems_per_step=8, learning_rate=1e-4)
    trainer = run(config, sandbox=sandbox)
    rollouts, _, advantages = trainer.last
    old, advantage = per_token(rollouts, advantages, torch.device("cpu"))
    with torch.no_grad():
        change = token_logprobs(trainer.policy, rollouts) - old
    assert (change * advantage).mean() > 0


def test_minibatches_kl_and_lora_learn_too(sandbox):
    clipped = run(replace(SMALL, minibatches=4, learning_rate=5e-3), sandbox=sandbox)
    assert max(m["loss/clip_fraction"] for m in clipped.history) > 0
    kl = run(replace(SMALL, kl_coefficient=0.1, learning_rate=1e-2), sandbox=sandbox)
    assert kl.history[0]["loss/kl"] == pytest.approx(0, abs=1e-6) and kl.history[1]["loss/kl"] > 0
    policy = load_policy("tiny", lora_rank=8, device="cpu")
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    run(policy=policy, sandbox=sandbox)
    changed = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all("lora" in name for name in changed)


def test_kl_holds_the_policy_back(sandbox):
    def distance(coefficient: float) -> float:
        config = replace(SMALL, steps=6, learning_rate=1e-3, kl_coefficient=coefficient)  # 3e-3 is chaos
        trainer = run(config, sandbox=sandbox)
        return trainer.history[-1]["loss/kl"]

    assert 0 < distance(5.0) < distance(1e-9)


def test_a_random_model_in_nf4_takes_steps_and_is_told_that_nothing_is_taught(model_folder, sandbox):
    policy = load_policy(model_folder, quantize="nf4", device="cpu")
    config = TrainConfig(steps=1, problems_per_step=2, group_size=2, max_turn_tokens=8)
    task = Task("mine", (Problem("1", "1 + 1?", "2"),))
    with pytest.warns(UserWarning) as caught:
        trainer = run(config, policy, task, sandbox=sandbox)
    assert any("cut off" in str(w.message) and "max_turn_tokens (8)" in str(w.message) for w in caught)
    assert trainer.history[0]["group/silent"] == 1.0 and trainer.history[0]["grad/norm"] == 0.0
    assert any("teaches nothing" in str(w.message) for w in caught)


def test_a_learning_rate_that_breaks_the_policy_is_named(sandbox):
    with pytest.warns(UserWarning) as caught:
        trainer = run(replace(SMALL, steps=2, problems_per_step=8, learning_rate=5.0), sandbox=sandbox)
    assert trainer.history[0]["reward/outcome"] > 0 == trainer.history[1]["reward/outcome"]
    told = [str(w.message) for w in caught]
    assert any(text.startswith("step 2 of gtpo: accuracy fell from 0.") and "(5)" in text for text in told)
    assert not any("raise max_turn_tokens" in text for text in told)


def test_qlora_trains_with_8_bit_moments_and_an_untouched_base(sandbox):
    policy = load_policy("tiny", quantize="nf4", lora_rank=8, device="cpu")
    before = {name: weight.detach().clone() for name, weight in policy.model.named_parameters()}
    trainer = run(replace(SMALL, steps=2, problems_per_step=8), policy, sandbox=sandbox)
    assert type(trainer.optimizer).__name__ == "AdamW8bit"
    changed = {name for name, weight in policy.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed and all("lora" in name for name in changed)
    assert all(math.isfinite(m["grad/norm"]) and m["loss/sampler_mismatch"] < 1e-4 for m in trainer.history)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_that_are_trained_are_float32_whatever_a_gpu_loads(dtype, sandbox):
    policy = load_policy("tiny", device="cpu", dtype=dtype)
    trainer = run(replace(SMALL, steps=3), policy, sandbox=sandbox)
    assert not any(m["update/skipped"] for m in trainer.history)  # float16 moments gave NaN after one step
    assert {weight.dtype for weight in policy.trainable_parameters()} == {torch.float32}
    adapted = load_policy("tiny", lora_rank=2, device="cpu", dtype=dtype)
    adapted.train_in_float32()
    assert {weight.dtype for weight in adapted.trainable_parameters()} == {torch.float32}
    assert adapted.dtype == getattr(torch, dtype)  # the base, which nobody changes, stays as it is


def test_a_step_that_teaches_does_not_warn(sandbox):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(replace(SMALL, steps=1, problems_per_step=8), sandbox=sandbox)


def test_score_by_hand(make_trajectory, good_call):
    """Two rollouts: a failed call, a good one and the right answer; a good call and a wrong answer."""
    right = make_trajectory(([1], [2], FAILED), ([3], [4], good_call), ([5], [], END))
    wrong = make_trajectory(([1], [2], good_call), ([3], [], END), answer="2")
    rewards, advantages = Credit(alpha=0.5)([right, wrong], [True, False], 2)
    assert rewards == [[-0.1, 0.0, 1.0], [0.0, 0.5]]  # the codes that ran are the same: all the credit there is
    returns = [-0.1 + 0.81, 0.9, 1.0, 0.45, 0.5]
    mean = sum(returns) / 5
    std = (sum((r - mean) ** 2 for r in returns) / 5) ** 0.5
    assert [a for row in advantages for a in row] == pytest.approx([(r - mean) / std for r in returns])
    rewards, advantages = ARMS["grpo"]([right, wrong], [True, False], 2)
    assert rewards == [[0.0, 0.0, 0.0], [0.0, 0.0]] and not any(map(any, advantages))  # min(accuracy, format)


def test_every_arm_by_hand(make_trajectory, good_call):
    """Right after a broken call, against a good call and wrong: returns 0.8, 1 and 0, 0 in full GTPO."""
    right = make_trajectory(([1], [2], FAILED), ([3], [], END))
    wrong = make_trajectory(([1], [2], good_call), ([3], [], END), answer="2")
    arms = set(ARMS) - {"similarity_embedding"}
    rewards = {arm: ARMS[arm]([right, wrong], [True, False], 2)[0] for arm in arms}
    assert rewards["grpo"] == rewards["no_turn_rewards"] == [[0.0, 0.0], [0.0, 0.0]]  # min(1, 0), and min(0, 1)
    assert rewards["grpo_accuracy"] == [[0.0, 1.0], [0.0, 0.0]]
    assert rewards["+turn_rewards"] == rewards["+returns"] == rewards["gtpo"] == [[-0.1, 1.0], [0.0, 0.0]]
    assert rewards["no_penalty"] == [[0.0, 1.0], [0.0, 0.0]]
    advantages = {arm: ARMS[arm]([right, wrong], [True, False], 2)[1] for arm in arms}
    assert advantages["grpo"] == [[0.0, 0.0], [0.0, 0.0]]
    assert advantages["grpo_accuracy"] == advantages["+turn_rewards"] == [[1.0, 1.0], [-1.0, -1.0]]
    returns = [0.8, 1.0, 0.0, 0.0]
    expected = [(value - fmean(returns)) / pstdev(returns) for value in returns]
    assert [a for row in advantages["+returns"] for a in row] == pytest.approx(expected)
    assert advantages["+returns"] == advantages["gtpo"]  # the right one's code did not run: nothing to be like
    assert advantages["gamma_1.0"][0][0] > advantages["gtpo"][0][0] > advantages["gamma_0.5"][0][0]


def test_the_potential_moves_credit_but_not_the_sum(make_trajectory, good_call):
    credit = Credit(gamma=1.0, shaping="potential")
    rollouts = [make_trajectory(([1], [2], good_call), ([3], [], END)) for _ in range(3)]
    rewards, _ = credit(rollouts, [True, True, False], 3)
    assert rewards == [[0.5, 0.5], [0.5, 0.5], [0.5, -0.5]]


def test_score_shapes_inside_groups_only(make_trajectory, good_call):
    right = make_trajectory(([1], [2], good_call), ([3], [], END))
    wrong = make_trajectory(([1], [2], good_call), ([3], [], END), answer="2")
    rewards, _ = Credit()([right, wrong, wrong, wrong], [True, False, False, False], 2)
    assert [r[-1] for r in rewards] == [1.0, 0.5, 0.0, 0.0]
    plain, _ = Credit(alpha=0.0)([right, wrong], [True, False], 2)
    assert [r[-1] for r in plain] == [1.0, 0.0]


def test_grpo_is_gtpo_where_every_rollout_has_one_turn(make_trajectory):
    rollouts = [make_trajectory(([1], [], END)) for _ in range(4)]
    correct = [True, False, False, True]
    _, gtpo = Credit(alpha=0.0, format_penalty=0.0)(rollouts, correct, 4)
    _, grpo = ARMS["grpo"](rollouts, correct, 4)
    assert gtpo == grpo == [[1.0], [-1.0], [-1.0], [1.0]]


def test_passes_hold_every_rollout_once_and_the_longest_first(make_trajectory):
    lengths = (3, 50, 10, 4, 30, 2, 9)
    rollouts = [make_trajectory(([1] * n, [], END), prompt=range(3 + i % 2, 20)) for i, n in enumerate(lengths)]
    batches = list(passes(rollouts, range(7), 64))
    assert sorted(i for batch in batches for i in batch) == list(range(7)) and batches[0][0] == 1
    for batch in batches:
        # A prompt of 17 or 16 tokens once, and all that follows but the last token, which predicts nothing.
        prompts = sum({len(range(3 + i % 2, 20)) for i in batch})
        assert len(batch) == 1 or prompts + sum(lengths[i] - 1 for i in batch) <= 64


@pytest.mark.parametrize("changes", [{"minibatches": 2}, {"gradient_checkpointing": True}, {"importance_cap": None}])
def test_in_float32_these_change_nothing_but_time(changes, sandbox):
    """One step: the sampler is the trainer, so weights are 1, and a recomputed activation is the same activation."""
    base, other = (
        run(replace(SMALL, steps=1, clip_low=0.9, clip_high=9.0, **c), sandbox=sandbox) for c in ({}, changes)
    )
    if "minibatches" in changes:  # two updates are not one, but both start from the same policy
        assert other.history[0]["loss/sampler_mismatch"] < 1e-5
        return
    assert base.history[0]["loss/policy"] == pytest.approx(other.history[0]["loss/policy"], abs=1e-6)
    assert base.history[0]["grad/norm"] == pytest.approx(other.history[0]["grad/norm"], rel=1e-4)


def test_a_sampler_that_differs_is_weighed_and_capped(tiny_policy, sandbox):
    """Sampled log-probabilities that are 0.5 too low weigh each token by e^0.5; 5 too low, by the cap."""
    norms = {}
    for shift in (0.0, 0.5, 5.0):
        trainer = Trainer(load_policy("tiny", device="cpu"), load_task("branching"), SMALL, sandbox=sandbox)
        engine = RolloutEngine(trainer.policy, load_protocol(), sandbox, SMALL.sampling())
        rollouts = engine.generate(trainer.problems(0), 4, seed=1)
        rollouts = [replace(r, logprobs=tuple(x - shift for x in r.logprobs)) for r in rollouts]
        advantages = [[1.0 if i % 2 else -1.0] * len(r.turns) for i, r in enumerate(rollouts)]
        metrics = trainer.update(rollouts, advantages, 0)
        norms[shift] = metrics["grad/norm"]
        assert metrics["loss/sampler_mismatch"] == pytest.approx(shift, abs=1e-4)
    assert norms[0.5] == pytest.approx(norms[0.0] * math.exp(0.5), rel=1e-3)
    assert norms[5.0] == pytest.approx(norms[0.0] * 2.0, rel=1e-3)


def test_dropout_does_not_part_the_update_from_the_sampler(tmp_path, sandbox):
    folder = save_model(tmp_path, "phi", resid_pdrop=0.3, embd_pdrop=0.3)
    config = replace(SMALL, steps=1, problems_per_step=2, max_context=800, kl_coefficient=1e-9)
    metrics = run(config, load_policy(folder, device="cpu"), sandbox=sandbox).history[0]
    assert 0 < metrics["loss/sampler_mismatch"] < 1e-5


def test_an_update_that_sees_another_policy_is_told(sandbox):
    policy = load_policy("tiny", device="cpu")
    norm = policy.model.get_decoder().norm
    norm.register_forward_hook(lambda module, _, hidden: hidden * (1.1 if module.training else 1.0))
    with pytest.warns(UserWarning, match=r"sees another policy than the one that sampled, by 0\.\d+ nats a token"):
        run(replace(SMALL, steps=1), policy, sandbox=sandbox)


def test_problems_come_once_an_epoch_in_an_order_that_the_seed_fixes(tiny_policy):
    task = Task("mine", tuple(Problem(str(i), f"q{i}", "1") for i in range(10)))
    trainer = Trainer(tiny_policy, task, replace(SMALL, problems_per_step=4))
    order = [p.id for step in range(5) for p in trainer.problems(step)]
    assert sorted(order[:10]) == sorted(order[10:]) == [str(i) for i in range(10)] and order[:10] != order[10:]


def test_a_prompt_that_does_not_fit_shows_before_the_first_step(tmp_path, tiny_policy, sandbox):
    problems = [*load_task("branching", size=30).problems, Problem("long", "so many " * 300, "1")]
    config = replace(SMALL, steps=8)
    trainer = Trainer(tiny_policy, Task("mine", tuple(problems)), config, tmp_path / "run", sandbox=sandbox)
    with pytest.raises(ValueError, match=r"problem 'long'.*context holds 320"):
        trainer.train()
    assert not trainer.history and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"normalize": "rollout"}, {"gamma": 1.1}, {"gamma": float("nan")}, {"alpha": -0.1}, {"similarity": "bleu"},
        {"rewards": "step"}, {"shaping": "phi"}, {"format_penalty": -1.0},
        {"group_size": 1}, {"steps": 0}, {"learning_rate": 0.0}, {"learning_rate": float("inf")}, {"credit": "gtpo"},
        {"temperature": 0.0}, {"max_turns": 0}, {"kl_coefficient": -1.0}, {"seed": -1}, {"importance_cap": 0.0},
    ],
)  # fmt: skip
def test_bad_configuration_names_field_and_value(changes):
    (name, value), = changes.items()  # fmt: skip
    kind = Credit if name in {field.name for field in fields(Credit)} else TrainConfig
    with pytest.raises(ValueError, match=name) as caught:
        kind(**changes)
    assert str(value) in str(caught.value)


def test_profiles(monkeypatch):
    assert load_profile().name == "cpu"
    monkeypatch.setenv("GTPO_PROFILE", "cpu")
    assert load_profile().model == "tiny"
    with pytest.raises(ValueError, match=r"unknown profile 'tpu'.*cpu, t4, rtx"):
        load_profile("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        load_profile("t4")
