"""Token log-probabilities, computed in packed passes and only where the loss mask is on, and the clipped surrogate.

A pass runs a prompt that several rollouts share once, without padding; its logits are computed in chunks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from ..policy.model import Policy
from ..types import Trajectory

_CHUNK_LOGITS = 2**24  # logits held at a time: 64 MiB in float32
_PAYS = 0.85  # packing costs some sorting of tokens: it must save more than that
_TOGETHER = 16  # rollouts of about one length whose attention is one operation: more of them would mostly be padding


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


def prompt_of(rollout: Trajectory) -> tuple[int, ...]:
    """The ids that rollouts of one group share."""
    return rollout.token_ids[: rollout.prompt_length]


def packed_tokens(rollouts: Sequence[Trajectory]) -> int:
    """Tokens of one packed pass: each prompt once, and all that came after."""
    prompts = {prompt_of(rollout) for rollout in rollouts}
    return sum(map(len, prompts)) + sum(len(r.token_ids) - r.prompt_length - 1 for r in rollouts)


def passes(rollouts: Sequence[Trajectory], members: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Split rollouts into passes of at most ``tokens`` tokens (or one rollout); those of one prompt go together.

    The longest go first: if one does not fit into memory, that shows in the first pass.
    """
    ordered = sorted(members, key=lambda i: (-len(rollouts[i].token_ids), i))
    longest = {prompt_of(rollouts[i]): len(rollouts[i].token_ids) for i in reversed(ordered)}
    ordered.sort(key=lambda i: (-longest[prompt_of(rollouts[i])], prompt_of(rollouts[i])))
    batch: list[int] = []
    for i in ordered:
        if batch and packed_tokens([rollouts[j] for j in (*batch, i)]) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def per_token(
    rollouts: Sequence[Trajectory], advantages: Sequence[Sequence[float]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The sampler's log-probability and the advantage of each policy token: (M,), (M,), as `token_logprobs`."""
    sampled, advantage = [], []
    for rollout, advantages_N in zip(rollouts, advantages, strict=True):
        for logprob, turn, is_policy in zip(rollout.logprobs, rollout.turn_index, rollout.loss_mask, strict=True):
            if is_policy:
                sampled.append(logprob)
                advantage.append(advantages_N[turn])
    return torch.tensor(sampled, device=device), torch.tensor(advantage, device=device)


class Packing:
    """One line of N tokens: U prompts, then what followed in each of B rollouts; called as the pass's ``attend=``.

    All of the model but attention sees tokens one by one, so it needs no padding and sees a prompt once. Attention
    sorts them into (U, L) prompts and (B, Q) continuations, which see their prompt and themselves.
    """

    def __init__(self, rollouts: Sequence[Trajectory], device: torch.device) -> None:
        prompts = list(dict.fromkeys(map(prompt_of, rollouts)))
        chosen, cut = [prompts.index(prompt_of(rollout)) for rollout in rollouts], len(prompts)
        # A rollout's last token is predicted, but predicts nothing.
        parts = [*prompts, *(rollout.token_ids[rollout.prompt_length : -1] for rollout in rollouts)]
        starts = [0] * cut + [rollout.prompt_length for rollout in rollouts]
        places = [start + k for start, part in zip(starts, parts, strict=True) for k in range(len(part))]
        self.ids = torch.tensor([[token for part in parts for token in part]], device=device)  # (1, N)
        self.positions = torch.tensor([places], device=device)  # (1, N)
        offsets = [0, *itertools.accumulate(map(len, parts))]
        targets, before = [], []
        for rollout, prompt, offset in zip(rollouts, chosen, offsets[cut:-1], strict=True):
            for t in range(rollout.prompt_length, len(rollout.token_ids)):
                if rollout.loss_mask[t]:
                    own = t - rollout.prompt_length  # a rollout's first token follows its prompt's last
                    targets.append(rollout.token_ids[t])
                    before.append(offset + own - 1 if own else offsets[prompt + 1] - 1)
        self.targets = torch.tensor(targets, device=device)  # (M,)
        self.before = torch.tensor(before, device=device)  # (M,): the place of the token before each target
        self.prompts, in_prompt = _padded(offsets[:cut], parts[:cut], device)  # (U, L), (U, L)
        lines, real, self.batches = [self.prompts.flatten()], [in_prompt.flatten()], []
        order = sorted(range(len(rollouts)), key=lambda i: len(parts[cut + i]))
        for batch in (order[i : i + _TOGETHER] for i in range(0, len(order), _TOGETHER)):
            own, in_own = _padded([offsets[cut + i] for i in batch], [parts[cut + i] for i in batch], device)  # (b, Q)
            shared = torch.tensor([chosen[i] for i in batch], device=device)  # (b,): whose prompt
            queries = own.shape[1]
            causal = torch.ones(queries, queries, dtype=torch.bool, device=device).tril().expand(len(batch), -1, -1)
            seen = torch.cat([in_prompt[shared][:, None].expand(-1, queries, -1), causal], -1)
            self.batches.append((own, shared, seen[:, None]))  # seen: (b, 1, Q, L + Q)
            lines.append(own.flatten())
            real.append(in_own.flatten())
        found = torch.cat(real).nonzero()[:, 0]
        self.back = torch.empty_like(found)  # (N,): where each token stands among the padded ones
        self.back[torch.cat(lines)[found]] = found
        # What the model is given in place of a mask: it only has to be one, or the model would make an (N, N) one.
        self.mask = torch.zeros(1, 1, 1, 1, device=device)

    def __call__(self, layer: int, query, key, value, mask, scaling: float) -> Tensor:
        """(1, H, N, D) of queries (1, H, N, D), keys and values (1, K, N, D)."""
        heads, dim = query.shape[1], value.shape[-1]
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, H or K, D)
        repeat = heads // key.shape[1]

        def attend(q: Tensor, k: Tensor, v: Tensor, **how) -> Tensor:
            k, v = (x.repeat_interleave(repeat, 1) if repeat > 1 else x for x in (k, v))
            return scaled_dot_product_attention(q, k, v, scale=scaling, **how).transpose(1, 2).reshape(-1, heads, dim)

        prompt_query, *shared = (x[self.prompts].transpose(1, 2) for x in (query, key, value))  # (U, H or K, L, D)
        found = [attend(prompt_query, *shared, is_causal=True)]
        for places, whose, seen in self.batches:
            own_query, *own = (x[places].transpose(1, 2) for x in (query, key, value))  # (b, H or K, Q, D)
            both = [torch.cat([x[whose], y], 2) for x, y in zip(shared, own, strict=True)]  # (b, K, L + Q, D)
            found.append(attend(own_query, *both, attn_mask=seen))
        return torch.cat(found)[self.back].transpose(0, 1)[None]


def _padded(offsets: Sequence[int], parts: Sequence, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places (B, Q) of parts that begin at ``offsets``, and which of them are real; the others are place 0."""
    starts, sizes = (torch.tensor(x, device=device)[:, None] for x in (offsets, list(map(len, parts))))  # (B, 1)
    steps = torch.arange(max(1, *map(len, parts)), device=device)  # (Q,)
    return torch.where(steps < sizes, starts + steps, 0), steps < sizes
