"""The update and what is drawn for it: slips that leave a run running, and wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_rollout import OftenCalls, assert_equals_a_fresh_forward, problems

from gtpo_mini import (
    Problem,
    SamplingSettings,
    Task,
    Trainer,
    load_policy,
    load_profile,
    load_protocol,
    load_task,
    sample,
)
from gtpo_mini.rollout.engine import RolloutEngine
from gtpo_mini.train.loss import token_logprobs
from gtpo_mini.train.update import Update

SMALL = replace(load_profile("cpu").train, steps=2, problems_per_step=2, group_size=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def rollouts(sandbox):
    groups = sample(load_policy("tiny"), load_task("branching"), 2, 4, settings=SMALL.sampling(), sandbox=sandbox)
    return [rollout for group in groups for rollout in group.rollouts]


def moved_policy(policy):
    """A policy that has left its reference behind."""
    policy.keep_reference()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.trainable_parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return policy


class Counted(torch.optim.SGD):
    """Changes nothing, so that gradients can be looked at, and counts."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.0)
        self.steps = 0

    def step(self, closure=None):
        self.steps += 1


def gradients(policy) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in policy.trainable_parameters()])


def updated(policy, config, rollouts, advantages):
    update = Update(policy, config, Counted(policy.trainable_parameters()))
    return update(rollouts, advantages, step=0), update


def zeros(rollouts):
    return [[0.0] * len(r.turns) for r in rollouts]


def test_the_kl_term_is_that_of_the_reference_and_never_negative(rollouts):
    policy = moved_policy(load_policy("tiny", device="cpu"))
    config = replace(SMALL, kl_coefficient=1.0, max_grad_norm=1e9)
    metrics, _ = updated(policy, config, rollouts, zeros(rollouts))
    found = gradients(policy)
    with torch.no_grad(), policy.as_reference() as reference:
        base = token_logprobs(reference, rollouts)
    now = token_logprobs(policy, rollouts)
    ratio = base - now  # log of reference over policy, at tokens that the policy sampled
    kl = ratio.exp() - ratio - 1
    assert metrics["loss/kl"] == pytest.approx(kl.mean().item(), rel=1e-4) and kl.min() >= 0
    expected = torch.autograd.grad(kl.mean(), policy.trainable_parameters())
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in expected]), atol=1e-5, rtol=1e-3)


def test_the_gradient_is_clipped_and_its_norm_before_that_is_told(rollouts):
    advantages = [[1.0 if i % 2 else -1.0] * len(r.turns) for i, r in enumerate(rollouts)]
    free_policy, clipped_policy = (load_policy("tiny", device="cpu") for _ in range(2))
    free, _ = updated(free_policy, replace(SMALL, max_grad_norm=1e9), rollouts, advantages)
    clipped, _ = updated(clipped_policy, replace(SMALL, max_grad_norm=1e-3), rollouts, advantages)
    assert clipped["grad/norm"] == pytest.approx(free["grad/norm"], rel=1e-6) and free["grad/norm"] > 0.01
    assert gradients(free_policy).norm().item() == pytest.approx(free["grad/norm"], rel=1e-4)
    assert gradients(clipped_policy).norm().item() == pytest.approx(1e-3, rel=1e-3)
    direction = torch.nn.functional.cosine_similarity(gradients(free_policy), gradients(clipped_policy), dim=0)
    assert direction > 0.9999


@pytest.mark.parametrize("tokens", [200, 4096])
def test_the_loss_is_a_mean_over_all_policy_tokens_however_passes_are_cut(tokens, rollouts):
    """Every turn weighs by its tokens; a rollout without advantage counts as tokens too."""
    advantages = [[float(j + i) for j in range(len(r.turns))] for i, r in enumerate(rollouts)]
    advantages[3] = [0.0] * len(rollouts[3].turns)
    policy = load_policy("tiny", device="cpu")
    metrics, _ = updated(policy, replace(SMALL, tokens_per_pass=tokens, max_grad_norm=1e9), rollouts, advantages)
    total = sum(sum(r.loss_mask) for r in rollouts)
    flat = [
        advantages[i][turn]
        for i, r in enumerate(rollouts)
        for turn, mine in zip(r.turn_index, r.loss_mask, strict=True)
        if mine
    ]
    # The first update starts from the sampler: each ratio is 1, and the loss is minus the mean advantage.
    expected = torch.autograd.grad(
        -(token_logprobs(policy, rollouts) * torch.tensor(flat)).sum() / total, policy.trainable_parameters()
    )
    torch.testing.assert_close(gradients(policy), torch.cat([g.flatten() for g in expected]), atol=2e-4, rtol=1e-3)
    taught = total - sum(rollouts[3].loss_mask)
    assert metrics["loss/policy"] == pytest.approx(-sum(flat) / taught, rel=1e-4)


def test_minibatches_hold_each_rollout_once_in_an_order_of_their_step(rollouts):
    policy, seen = load_policy("tiny", device="cpu"), []
    config = replace(SMALL, minibatches=3)
    update = Update(policy, config, Counted(policy.trainable_parameters()))
    plain = update._gradient

    def spy(batch, advantages, members, before):
        seen.append(list(members))
        return plain(batch, advantages, members, before)

    update._gradient = spy
    ones = [[1.0] * len(r.turns) for r in rollouts]
    for step in range(2):
        update(rollouts, ones, step)
    first, second = seen[:3], seen[3:]
    assert update.optimizer.steps == 6 and first != second
    for parts in (first, second):
        assert sorted(i for part in parts for i in part) == list(range(len(rollouts)))


def test_later_minibatches_are_clipped_against_the_policy_that_sampled(sandbox):
    """Their ratios start from the log-probabilities before the first of them, not from their own."""
    config = replace(SMALL, minibatches=4, learning_rate=2e-2, steps=1)
    trainer = Trainer(load_policy("tiny", device="cpu"), load_task("branching"), config, sandbox=sandbox)
    (metrics,) = trainer.train()
    assert metrics["loss/clip_fraction"] > 0.05 and metrics["loss/sampler_mismatch"] < 1e-5


# What is drawn


def tokens_of_turns(rollout) -> list[tuple[int, ...]]:
    found: dict[int, list[int]] = {}
    for token, mine, turn in zip(rollout.token_ids, rollout.loss_mask, rollout.turn_index, strict=True):
        if mine:
            found.setdefault(turn, []).append(token)
    return [tuple(ids) for ids in found.values()]


def test_every_turn_rollout_and_seed_draws_its_own_random_numbers(random_policy, sandbox):
    """Every token is as likely as any other: what is drawn shows the random numbers themselves."""
    plain = random_policy.logits
    random_policy.logits = lambda hidden: torch.zeros_like(plain(hidden))
    engine = RolloutEngine(random_policy, OftenCalls(), sandbox, SamplingSettings(max_turns=4, max_turn_tokens=40))
    drawn = []
    for seed in (0, 1):
        for rollout in engine.generate(problems(2), group_size=3, seed=seed):
            drawn += [ids[:5] for ids in tokens_of_turns(rollout) if len(ids) >= 5]
    assert len(drawn) >= 30 and len(set(drawn)) == len(drawn)
    again = engine.generate(problems(2), group_size=3, seed=0)
    assert [tokens_of_turns(r) for r in again] == [tokens_of_turns(r) for r in engine.generate(problems(2), 3, 0)]


def test_every_step_and_every_seed_of_a_run_samples_anew(sandbox, tmp_path):
    """One problem only, so that nothing but the sampling can differ."""
    task = Task("one", load_task("branching").problems[:1])
    drawn = set()
    for seed in (0, 1):
        config = replace(SMALL, seed=seed, steps=3, problems_per_step=1, learning_rate=1e-12)
        trainer = Trainer(load_policy("tiny", device="cpu"), task, config, sandbox=sandbox)
        engine = RolloutEngine(trainer.policy, load_protocol(), sandbox, config.sampling())
        for step in range(3):
            trainer.step(engine, step)
            drawn.add(tuple(r.token_ids for r in trainer.last[0]))
    assert len(drawn) == 6


def test_seeds_see_the_problems_in_orders_of_their_own(tiny_policy):
    task = Task("mine", tuple(Problem(str(i), f"q{i}", "1") for i in range(20)))
    orders = [
        [p.id for step in range(4) for p in Trainer(tiny_policy, task, replace(SMALL, seed=seed)).problems(step)]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_log_probabilities_are_kept_at_the_temperature_of_the_sampling(temperature, random_policy, sandbox):
    settings = SamplingSettings(max_turns=2, max_turn_tokens=16, temperature=temperature)
    rollouts = RolloutEngine(random_policy, OftenCalls(), sandbox, settings).generate(problems(2), 2)
    kept = torch.tensor([p for r in rollouts for p, mine in zip(r.logprobs, r.loss_mask, strict=True) if mine])
    with torch.no_grad():
        torch.testing.assert_close(token_logprobs(random_policy, rollouts, temperature), kept, atol=1e-5, rtol=0)
        assert not torch.allclose(token_logprobs(random_policy, rollouts, 1.0), kept, atol=1e-2)


def test_greedy_keeps_log_probabilities_at_temperature_1(random_policy, sandbox):
    settings = SamplingSettings(max_turns=2, max_turn_tokens=16, temperature=0.0)
    assert_equals_a_fresh_forward(
        random_policy, RolloutEngine(random_policy, OftenCalls(), sandbox, settings).generate(problems(2), 1)
    )
