"""Which rollouts go through one training pass, and how: a prompt that several share is run once, without padding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..types import Trajectory

_TOGETHER = 16  # rollouts of about one length whose attention is one operation: more of them would mostly be padding


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
) -> tuple[torch.Tensor, torch.Tensor]:
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

    def __call__(self, layer: int, query, key, value, mask, scaling: float) -> torch.Tensor:
        """(1, H, N, D) of queries (1, H, N, D), keys and values (1, K, N, D)."""
        heads, dim = query.shape[1], value.shape[-1]
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, H or K, D)
        repeat = heads // key.shape[1]

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how) -> torch.Tensor:
            k, v = (x.repeat_interleave(repeat, 1) if repeat > 1 else x for x in (k, v))
            return scaled_dot_product_attention(q, k, v, scale=scaling, **how).transpose(1, 2).reshape(-1, heads, dim)

        prompt_query, *shared = (x[self.prompts].transpose(1, 2) for x in (query, key, value))  # (U, H or K, L, D)
        found = [attend(prompt_query, *shared, is_causal=True)]
        for places, whose, seen in self.batches:
            own_query, *own = (x[places].transpose(1, 2) for x in (query, key, value))  # (b, H or K, Q, D)
            both = [torch.cat([x[whose], y], 2) for x, y in zip(shared, own, strict=True)]  # (b, K, L + Q, D)
            found.append(attend(own_query, *both, attn_mask=seen))
        return torch.cat(found)[self.back].transpose(0, 1)[None]


def _padded(offsets: Sequence[int], parts: Sequence, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Places (B, Q) of parts that begin at ``offsets``, and which of them are real; the others are place 0."""
    starts, sizes = (torch.tensor(x, device=device)[:, None] for x in (offsets, list(map(len, parts))))  # (B, 1)
    steps = torch.arange(max(1, *map(len, parts)), device=device)  # (Q,)
    return torch.where(steps < sizes, starts + steps, 0), steps < sizes
