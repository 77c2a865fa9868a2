"""Which rollouts go through one training pass, and how: a prompt that several share is run once, without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..types import Trajectory


def prompt_of(rollout: Trajectory) -> tuple[int, ...]:
    """The ids that rollouts of one group share."""
    return rollout.token_ids[: rollout.prompt_length]


def packed_tokens(rollouts: Sequence[Trajectory]) -> int:
    """Tokens of one packed pass: each prompt once, and all that came after."""
    prompts = {prompt_of(rollout) for rollout in rollouts}
    return sum(map(len, prompts)) + sum(len(r.token_ids) - r.prompt_length - 1 for r in rollouts)


def passes(rollouts: Sequence[Trajectory], members: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Split rollouts into passes of at most ``tokens`` tokens (or one rollout), the longest first.

    Rollouts of one prompt go together, and their prompt counts once. The longest first: if it does not fit into
    memory, that shows in the first pass.
    """
    longest: dict[tuple[int, ...], int] = {}
    for i in members:
        prompt = prompt_of(rollouts[i])
        longest[prompt] = max(longest.get(prompt, 0), len(rollouts[i].token_ids))

    def order(i: int) -> tuple:
        prompt = prompt_of(rollouts[i])
        return -longest[prompt], prompt, -len(rollouts[i].token_ids), i

    batch: list[int] = []
    for i in sorted(members, key=order):
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
    old, advantage = [], []
    for rollout, advantages_N in zip(rollouts, advantages, strict=True):
        for logprob, turn, is_policy in zip(rollout.logprobs, rollout.turn_index, rollout.loss_mask, strict=True):
            if is_policy:
                old.append(logprob)
                advantage.append(advantages_N[turn])
    return torch.tensor(old, device=device), torch.tensor(advantage, device=device)


class Packing:
    """One line of N tokens: U prompts, then what followed in each of B rollouts; called as the pass's ``attend=``.

    All of the model but attention sees tokens one by one, so it needs no padding and sees a prompt once. Attention
    sorts them into (U, L) prompts and (B, Q) continuations, which see their prompt and themselves.
    """

    def __init__(self, rollouts: Sequence[Trajectory], device: torch.device) -> None:
        prompts = list(dict.fromkeys(map(prompt_of, rollouts)))
        chosen = [prompts.index(prompt_of(rollout)) for rollout in rollouts]
        # A rollout's last token is predicted, but predicts nothing.
        parts = [list(p) for p in prompts] + [list(r.token_ids[r.prompt_length : -1]) for r in rollouts]
        starts = [0] * len(prompts) + [r.prompt_length for r in rollouts]
        self.ids = torch.tensor([[token for part in parts for token in part]], device=device)  # (1, N)
        places = [range(start, start + len(part)) for start, part in zip(starts, parts, strict=True)]
        self.positions = torch.tensor([[p for part in places for p in part]], device=device)  # (1, N)
        offsets = torch.tensor([0, *map(len, parts)]).cumsum(0).tolist()
        targets, before = [], []
        for i, (rollout, prompt) in enumerate(zip(rollouts, chosen, strict=True)):
            own = offsets[len(prompts) + i] - rollout.prompt_length
            last = offsets[prompt + 1] - 1
            for t in range(rollout.prompt_length, len(rollout.token_ids)):
                if rollout.loss_mask[t]:
                    targets.append(rollout.token_ids[t])
                    before.append(last if t == rollout.prompt_length else own + t - 1)
        self.targets = torch.tensor(targets, device=device)  # (M,)
        self.before = torch.tensor(before, device=device)  # (M,): the place of the token before each target
        cut = len(prompts)
        self.prompts, prompt_lengths = _padded(offsets[:cut], list(map(len, parts[:cut])), device)  # (U, L), (U,)
        self.own, own_lengths = _padded(offsets[cut:-1], list(map(len, parts[cut:])), device)  # (B, Q), (B,)
        self.chosen = torch.tensor(chosen, device=device)  # (B,)
        (_, length), (_, queries) = self.prompts.shape, self.own.shape
        places = torch.arange(max(length, queries), device=device)
        real = torch.cat(
            [(places[:length] < prompt_lengths[:, None]).flatten(), (places[:queries] < own_lengths[:, None]).flatten()]
        )
        self.back = real.nonzero()[:, 0]  # (N,): where each token stands among the padded ones
        in_prompt = (places[:length] < prompt_lengths[self.chosen][:, None])[:, None].expand(-1, queries, -1)
        causal = (places[:queries, None] >= places[None, :queries]).expand(len(rollouts), -1, -1)
        # What the model is given in place of a mask: it only has to be one, or the model would make an (N, N) one.
        self.mask = torch.zeros(1, 1, 1, 1, device=device)
        self.seen = torch.cat([in_prompt, causal], -1)[:, None]  # (B, 1, Q, L + Q)

    def __call__(self, layer: int, query, key, value, mask, scaling: float) -> torch.Tensor:
        """(1, H, N, D) of queries (1, H, N, D), keys and values (1, K, N, D)."""
        heads, dim = query.shape[1], value.shape[-1]
        query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)  # (N, H or K, D)
        repeat = heads // key.shape[1]

        def sorted_out(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
            return tokens[places].transpose(1, 2)  # (U or B, H, L or Q, D)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how) -> torch.Tensor:
            k, v = (x.repeat_interleave(repeat, 1) if repeat > 1 else x for x in (k, v))
            return scaled_dot_product_attention(q, k, v, scale=scaling, **how).transpose(1, 2).reshape(-1, heads, dim)

        prompt_key, prompt_value = (sorted_out(x, self.prompts) for x in (key, value))  # (U, K, L, D)
        of_prompts = attend(sorted_out(query, self.prompts), prompt_key, prompt_value, is_causal=True)
        own_key, own_value = (
            torch.cat([x[self.chosen], sorted_out(y, self.own)], 2)  # (B, K, L + Q, D)
            for x, y in ((prompt_key, key), (prompt_value, value))
        )
        of_own = attend(sorted_out(query, self.own), own_key, own_value, attn_mask=self.seen)
        return torch.cat([of_prompts, of_own])[self.back].transpose(0, 1)[None]


def _padded(offsets: Sequence[int], lengths: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Places (B, Q) of parts that begin at ``offsets``; beyond a part's length its first place stands."""
    starts, sizes = (torch.tensor(x, device=device)[:, None] for x in (offsets, lengths))  # (B, 1)
    steps = torch.arange(max(1, *lengths), device=device)  # (Q,)
    return torch.where(steps < sizes, starts + steps, 0), sizes[:, 0]
