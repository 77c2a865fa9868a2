from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import save_model

from gtpo_mini.policy.load import load_policy
from gtpo_mini.train import loss
from gtpo_mini.train.loss import Packing, clipped_surrogate, token_logprobs
from gtpo_mini.types import Turn


def naive_logprobs(policy, trajectories, temperature=1.0) -> torch.Tensor:
    """One rollout at a time, all logits at once, a log-softmax: nothing to get wrong."""
    found = []
    for trajectory in trajectories:
        ids = torch.tensor(trajectory.token_ids)[None]
        logprobs = torch.log_softmax(policy.model(ids).logits[0].float() / temperature, -1)
        found += [logprobs[t - 1, ids[0, t]] for t in range(ids.shape[1]) if trajectory.loss_mask[t]]
    return torch.stack(found)


def rollouts(make_trajectory):
    last = Turn("end")
    return [
        make_trajectory(([7, 8], [0, 0, 9], last), ([10], [], last)),  # tool output that looks like padding
        make_trajectory(([11], [], last)),
        make_trajectory(([0, 12, 2], [3], last), ([4, 5, 6], [1], last), ([2], [], last)),
    ]


def test_values_and_gradients_equal_the_naive_ones(random_policy, make_trajectory, monkeypatch):
    trajectories = rollouts(make_trajectory)
    parameters = random_policy.trainable_parameters()
    for temperature, chunk in ((1.0, None), (0.7, None), (1.0, 700)):
        if chunk:  # a few tokens a chunk
            monkeypatch.setattr(loss, "_CHUNK_LOGITS", chunk)
        ours, naive = (f(random_policy, trajectories, temperature) for f in (token_logprobs, naive_logprobs))
        assert ours.shape == (sum(sum(t.loss_mask) for t in trajectories),)
        torch.testing.assert_close(ours, naive, atol=1e-5, rtol=1e-5)
        weights = torch.linspace(-1, 1, len(ours))
        gradients = [torch.autograd.grad((values * weights).sum(), parameters) for values in (ours, naive)]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3"])
def test_a_shared_prompt_run_once_gives_the_naive_values_and_gradients(kind, make_trajectory, tmp_path, monkeypatch):
    """Groups of unequal size and prompt, refused and single-token rollouts among them; grouped-query attention."""
    policy = load_policy(save_model(tmp_path, kind), device="cpu")
    last, prompts = Turn("end"), [tuple(range(3, 40)), tuple(range(50, 72))]
    trajectories = [
        make_trajectory(([7, 8], [0, 0, 9], last), ([10], [], last), prompt=prompts[0]),
        make_trajectory(([11], [], last), prompt=prompts[1]),
        make_trajectory(([0, 12, 2], [3], last), ([4, 5, 6], [1], last), ([2], [], last), prompt=prompts[0]),
        make_trajectory(([0, 12, 2], [3], last), prompt=prompts[1]),
        make_trajectory(([11], [], last), prompt=prompts[0]),
    ]
    seen = []
    monkeypatch.setattr(loss, "Packing", lambda *args: seen.append(1) or Packing(*args))
    parameters = policy.trainable_parameters()
    for options in ({}, {"checkpointing": True}):
        if options:
            policy.checkpoint_gradients()
        policy.model.train()
        ours, naive = token_logprobs(policy, trajectories, 0.9), naive_logprobs(policy, trajectories, 0.9)
        torch.testing.assert_close(ours, naive, atol=1e-5, rtol=1e-5)
        weights = torch.linspace(-1, 1, len(ours))
        gradients = [torch.autograd.grad((values * weights).sum(), parameters) for values in (ours, naive)]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert len(seen) == 2  # it was packed both times


def test_only_a_prompt_that_is_shared_is_packed(random_policy, make_trajectory, monkeypatch):
    monkeypatch.setattr(loss, "Packing", None)
    last = Turn("end")
    token_logprobs(random_policy, [make_trajectory(([7] * 9, [], last), prompt=(5, n)) for n in range(4)])
    with pytest.raises(TypeError):  # and this one would have been
        token_logprobs(random_policy, [make_trajectory(([7] * 9, [], last), prompt=(5,) * 20) for n in range(4)])
    random_policy.takes_attend = False
    token_logprobs(random_policy, [make_trajectory(([7] * 9, [], last), prompt=(5,) * 20) for n in range(4)])


def test_tool_tokens_are_read_but_not_trained(random_policy, make_trajectory):
    last = Turn("end")
    one = make_trajectory(([7, 8], [9, 9], last), ([10], [], last))
    other = make_trajectory(([7, 8], [9, 20], last), ([10], [], last))
    a, b = token_logprobs(random_policy, [one]), token_logprobs(random_policy, [other])
    assert len(a) == 3 and torch.equal(a[:2], b[:2])  # the first turn comes before the tool's words
    assert a[2] != b[2]  # the second has read them


def test_surrogate_by_hand():
    old = torch.zeros(5)
    now = torch.log(torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5]))
    advantages = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0])
    values, clipped = clipped_surrogate(now, old, advantages)
    torch.testing.assert_close(values, torch.tensor([-2.0, -1.28, 1.5, -0.5, 0.8]))
    assert clipped.tolist() == [False, True, False, False, True]


@given(st.floats(-2, 2), st.floats(-3, 3))
def test_surrogate_never_promises_more_than_the_plain_ratio(shift, advantage):
    now = torch.tensor([shift], requires_grad=True)
    values, clipped = clipped_surrogate(now, torch.zeros(1), torch.tensor([advantage]))
    values.sum().backward()
    assert values.item() >= -(torch.tensor(shift).exp() * advantage).item() - 1e-5
    if clipped.item():
        assert now.grad.item() == 0.0
