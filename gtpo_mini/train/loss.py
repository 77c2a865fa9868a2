"""Token log-probabilities, computed in chunks and only where the loss mask is on, and the clipped surrogate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..policy.model import Policy
from ..types import Trajectory
from .packing import Packing, packed_tokens

_CHUNK_LOGITS = 2**24  # logits held at a time: 64 MiB in float32
_PAYS = 0.85  # packing costs some sorting of tokens: it must save more than that


def token_logprobs(policy: Policy, trajectories: Sequence[Trajectory], temperature: float = 1.0) -> Tensor:
    """Log-probabilities of all M policy tokens, rollout after rollout, at the sampler's temperature: (M,) float32.

    A prompt that several rollouts share is run once where that saves work (`Packing`).
    """
    padded = len(trajectories) * max(len(t.token_ids) for t in trajectories)
    if policy.takes_attend and packed_tokens(trajectories) <= _PAYS * padded:
        packing = Packing(trajectories, policy.device)
        how = {"position_ids": packing.positions, "attention_mask": packing.mask, "attend": packing}
        hidden_MD = policy.hidden_states(packing.ids, **how, use_cache=False)[0, packing.before]
        targets_M = packing.targets
    else:
        hidden_MD, targets_M = _padded_states(policy, trajectories)

    def of_chunk(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = policy.logits(hidden) if temperature == 1.0 else policy.logits(hidden) / temperature  # (m, V)
        return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)  # (m,)

    chunk = max(1, _CHUNK_LOGITS // policy.logits(hidden_MD[:1]).shape[-1])
    if len(targets_M) <= chunk:
        return of_chunk(hidden_MD, targets_M)
    # The logits of a chunk are computed again in the backward pass rather than kept.
    parts = zip(hidden_MD.split(chunk), targets_M.split(chunk), strict=True)
    return torch.cat([checkpoint(of_chunk, h, t, use_reentrant=False) for h, t in parts])


def _padded_states(policy: Policy, trajectories: Sequence[Trajectory]) -> tuple[Tensor, Tensor]:
    """The state before each policy token (M, D) and the token (M,), by one pass over rollouts padded on the right.

    In a causal model what comes after a token cannot touch it: no attention mask is needed.
    """
    width = max(len(t.token_ids) for t in trajectories)
    ids_BT = torch.tensor([[*t.token_ids, *[0] * (width - len(t.token_ids))] for t in trajectories])  # (B, T)
    mask_BT = torch.tensor([[*t.loss_mask, *[0] * (width - len(t.loss_mask))] for t in trajectories]).bool()  # (B, T)
    ids_BT, mask_BT = ids_BT.to(policy.device), mask_BT.to(policy.device)
    hidden_BTD = policy.hidden_states(ids_BT[:, :-1], use_cache=False)  # (B, T-1, D)
    return hidden_BTD[mask_BT[:, 1:]], ids_BT[:, 1:][mask_BT[:, 1:]]


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float = 0.2, clip_high: float = 0.28
) -> tuple[Tensor, Tensor]:
    """The loss of each token (M,), -min(ratio A, clip(ratio, 1 - low, 1 + high) A), and where the clip was active (M,).

    Source: [D]; the paper's clip range is unknown; 0.2 / 0.28 are DAPO's.
    """
    ratio = (logprobs - old_logprobs).exp()  # (M,)
    plain = ratio * advantages  # (M,)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages  # (M,)
    return -torch.minimum(plain, clipped), clipped < plain


def importance_weights(logprobs: Tensor, sampled: Tensor, cap: float | None) -> Tensor:
    """How much likelier the trainer finds a token than the sampler did, at most ``cap`` (M,); 1 where that is None.

    Truncated importance sampling [D], for where the two compute differently; in float32 all weights are 1.
    """
    if cap is None:
        return torch.ones_like(logprobs)
    return (logprobs - sampled).exp().clamp(max=cap)  # (M,)
