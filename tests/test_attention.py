from __future__ import annotations

import pytest
import torch
from small_models import save_model
from torch.nn.functional import pad, scaled_dot_product_attention

from gtpo_mini.policy import attention
from gtpo_mini.policy.attention import SharedPrefixes, attend_part
from gtpo_mini.policy.load import load_policy


@pytest.fixture(params=["fused", "plain"])
def either_way(request, monkeypatch):
    """The CPU's fused operation, and the plain one that other devices run."""
    monkeypatch.setattr(attention, "_SHORT", 10**9 if request.param == "plain" else 0)
    return request.param


@pytest.mark.parametrize("heads, shared", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("queries", [1, 5])
def test_two_parts_equal_one_attention_over_both(heads, shared, queries, either_way):
    torch.manual_seed(0)
    dim, own = 8, 7
    lengths, chosen = [5, 11, 2], [1, 0, 1, 1, 2, 0]  # unequal prompts, unequal groups, in no order
    rows, longest = len(chosen), max(lengths)
    prefixes = [[torch.randn(2, shared, n, dim) for n in lengths] for _ in range(2)]  # (keys and values) a layer
    stacked = [
        tuple(torch.stack([pad(x[part], (0, 0, 0, longest - x.shape[2])) for x in layer]) for part in range(2))
        for layer in prefixes
    ]
    q, k, v = torch.randn(rows, heads, queries, dim), *torch.randn(2, rows, shared, own, dim)
    seen = torch.arange(own)[None] <= torch.randint(0, own, (rows, queries, 1))  # (R, Q, W)
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]
    attend = SharedPrefixes(stacked, lengths, chosen)
    for layer in range(2):
        found = attend(layer, q, k, v, mask, 0.3)
        assert found.shape == q.shape
        for row, prefix in enumerate(chosen):
            keys, values = (torch.cat([prefixes[layer][prefix][i], x[row]], 1)[None] for i, x in enumerate((k, v)))
            expected = scaled_dot_product_attention(
                q[row][None], keys, values, pad(mask[row], (lengths[prefix], 0)), scale=0.3, enable_gqa=True
            )
            torch.testing.assert_close(found[row], expected[0], atol=1e-6, rtol=1e-5)


def test_the_denominator_is_the_sum_of_exponentials(either_way):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 4, 8), *torch.randn(2, 2, 3, 5, 8)
    mask = torch.zeros(2, 1, 1, 5)
    mask[0, ..., 3:] = torch.finfo(torch.float32).min
    _, log_sum = attend_part(q, k, v, mask)
    expected = (q @ k.transpose(2, 3) + mask).logsumexp(-1, keepdim=True)
    torch.testing.assert_close(log_sum, expected, atol=1e-5, rtol=1e-5)


def test_large_scores_do_not_overflow(either_way):
    q, k = torch.full((1, 1, 1, 4), 100.0), torch.full((1, 1, 3, 4), 100.0)
    v = torch.arange(12.0).view(1, 1, 3, 4)
    mean, log_sum = attend_part(q, k, v, None)
    torch.testing.assert_close(mean[0, 0, 0], v[0, 0].mean(0))
    assert torch.isfinite(log_sum).all()


def test_half_precision_is_close(either_way):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 4, 8), *torch.randn(2, 2, 3, 5, 8)
    mask = torch.zeros(2, 1, 1, 5)
    mask[..., 4:] = torch.finfo(torch.bfloat16).min
    found, _ = attend_part(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), attend_part(q, k, v, mask)[0], atol=0.05, rtol=0.05)


def test_the_model_itself_is_not_changed_by_it(tmp_path):
    """Without ``attend=`` the logits are those of plain attention, to the bit, and nothing of it is saved."""
    policy = load_policy(save_model(tmp_path), device="cpu")
    assert policy.takes_attend
    ids = torch.arange(30)[None]
    ours = policy.model(ids).logits
    policy.model.set_attn_implementation("sdpa")
    assert torch.equal(policy.model(ids).logits, ours)
    policy.save(tmp_path / "again")
    assert attention.NAME not in (tmp_path / "again" / "config.json").read_text()
