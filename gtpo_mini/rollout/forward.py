"""The model's side of a rollout: prompts are read once a group, rows go on from there, each at its own place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import DynamicCache

from ..policy.attention import SharedPrefixes
from ..policy.model import Policy
from .cache import RowCache
from .cuda_graph import StepReplay

_CHUNK = 512  # tokens of a row that one pass reads at most
_PASS = 2048  # tokens that one pass reads at most: bounds its memory
_ROUND = 16  # cached places are read in multiples of this
_STEADY = 128  # or of this, where each width has a recording of its own


class Reader:
    """Runs the model over ``rows`` rows, each of which continues the prompt of its group.

    Where the model's attention takes it, a group's prompt stays one, and its rows hold only what came after;
    otherwise, or where ``share`` is False, each row begins with a copy of its prompt. ``replay`` takes the steps in
    which all rows read one token.
    """

    def __init__(self, policy: Policy, rows: int, share: bool, replay: StepReplay | None = None) -> None:
        self.policy, self.share, self.replay = policy, share and policy.takes_attend, replay
        self.cache = RowCache(policy.model.config.get_text_config().num_hidden_layers, rows)
        self.prompts: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}  # of a group: (heads, length, dim)
        self.groups = [-1] * rows  # whose prompt a row continues; an empty row keeps what it had
        self.bases = [0] * rows  # tokens of a row that are not in it but in the group's prompt
        self._stack: tuple | None = None

    def read_prompts(self, prompts: dict[int, list[int]]) -> None:
        """Compute the keys and values of each group's prompt, several groups a pass."""
        todo = sorted(prompts, key=lambda group: len(prompts[group]))
        while todo:
            most = max(1, _PASS // len(prompts[todo[-1]]))
            batch, todo = todo[-most:], todo[:-most]  # the longest go together: less padding
            ids = torch.zeros(len(batch), len(prompts[batch[-1]]), dtype=torch.long)  # (U, L)
            for i, group in enumerate(batch):
                # Padding on the right: in a causal model nothing before it can see it.
                ids[i, : len(prompts[group])] = torch.tensor(prompts[group])
            cache = DynamicCache()
            for part in ids.to(self.policy.device).split(_CHUNK, dim=1):
                self.policy.hidden_states(part, past_key_values=cache, use_cache=True)
            for i, group in enumerate(batch):
                n = len(prompts[group])
                self.prompts[group] = [(x.keys[i, :, :n], x.values[i, :, :n]) for x in cache.layers]

    def seat(self, rows: Sequence[int], groups: Sequence[int]) -> None:
        """Let each of ``rows`` begin anew behind the prompt of its group, which has been read."""
        for row, group in zip(rows, groups, strict=True):
            self.groups[row] = group
            self.bases[row] = self.prompts[group][0][0].shape[1] if self.share else 0
        self._stack = None
        if self.share:
            return
        for group in set(groups):
            mine = torch.tensor([r for r, g in zip(rows, groups, strict=True) if g == group])
            length = self.prompts[group][0][0].shape[1]
            places = torch.arange(length).expand(len(mine), length)
            self.cache.aim(mine.to(self.policy.device), places.to(self.policy.device), length, leading=True)
            for layer, part in zip(self.cache.layers, self.prompts[group], strict=True):
                layer.update(*(x[None].expand(len(mine), *x.shape) for x in part))

    def drop_prompts(self, needed: set[int]) -> None:
        """Forget the prompts of groups that no row continues and that are not among ``needed``."""
        needed = needed | set(self.groups) if self.share else needed
        self.prompts = {group: prompt for group, prompt in self.prompts.items() if group in needed}

    def shrink(self, count: int, sources: list[int], targets: list[int]) -> None:
        """Move rows ``sources`` to ``targets``, and go on with rows 0..count-1 only."""
        self.cache.move_rows(sources, targets)
        for source, target in zip(sources, targets, strict=True):
            self.groups[target], self.bases[target] = self.groups[source], self.bases[source]
        del self.groups[count:], self.bases[count:]
        self._stack = None

    def read(self, rows: Sequence[int], chunks: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        """Read a chunk of ids in each of R rows, padded on the left.

        Args:
            rows: R rows, in any order.
            chunks: R lists of up to Q ids.
            starts: the position of each chunk's first id in its rollout.

        Returns:
            Logits (R, V) after each chunk's last id.
        """
        longest = max(map(len, chunks))
        bases = torch.tensor([self.bases[row] for row in rows])[:, None]  # (R, 1)
        if longest == 1:
            ids = torch.tensor(chunks)  # (R, 1)
            positions = torch.tensor(starts)[:, None]  # (R, 1)
            places = positions - bases  # (R, 1)
        else:
            lengths = torch.tensor([len(chunk) for chunk in chunks])[:, None]  # (R, 1)
            ids = torch.tensor([[0] * (longest - len(chunk)) + list(chunk) for chunk in chunks])  # (R, Q)
            index = torch.arange(longest) - (longest - lengths)  # (R, Q), below 0 for padding
            positions = (index + torch.tensor(starts)[:, None]).clamp_(min=0)  # (R, Q)
            places = torch.where(index < 0, -1, positions - bases)  # (R, Q)
        return self._pass(rows, ids, positions, places)

    def _pass(
        self, rows: Sequence[int], ids: torch.Tensor, positions: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        device = self.policy.device
        leading = list(rows) == list(range(len(rows)))
        everyone = leading and len(rows) == len(self.groups)
        steady = self.replay is not None and everyone and ids.shape[1] == 1
        step = _STEADY if steady else _ROUND
        width = -(-(int(places.max()) + 1) // step) * step
        attend = self._shared(rows, everyone) if self.share else None
        # (R,); a tensor that the host fills would be waited for
        chosen = torch.arange(len(rows), device=device) if leading else torch.tensor(rows, device=device)

        def forward(inputs: torch.Tensor) -> torch.Tensor:
            return self._forward(chosen, *inputs, width, leading, attend)

        inputs = torch.stack([ids, positions, places])  # (3, R, Q)
        if not steady:
            return forward(inputs.to(device))
        return self.replay.run((len(rows), width, self.cache.hold(width), attend), inputs, device, forward)

    def _forward(
        self,
        rows: torch.Tensor,
        ids: torch.Tensor,
        positions: torch.Tensor,
        places: torch.Tensor,
        width: int,
        leading: bool,
        attend: SharedPrefixes | None,
    ) -> torch.Tensor:
        """Logits (R, V) of ids (R, Q) at ``positions``, kept in ``places`` of ``rows``: all that the device does."""
        self.cache.aim(rows, places, width, leading)
        dtype = self.policy.dtype
        unseen = torch.arange(width, device=ids.device) > places[..., None]  # (R, Q, W)
        mask = torch.zeros(unseen.shape, dtype=dtype, device=ids.device)
        mask = mask.masked_fill_(unseen, torch.finfo(dtype).min)[:, None]  # (R, 1, Q, W)
        hidden = self.policy.hidden_states(
            ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **({"attend": attend} if attend else {}),
        )
        return self.policy.logits(hidden[:, -1])

    def _shared(self, rows: Sequence[int], everyone: bool) -> SharedPrefixes:
        """Which prompt each of ``rows`` continues; kept for all rows, in their order, until one of them begins anew."""
        if self._stack is None:
            groups = sorted(set(self.groups))
            lengths = [self.prompts[group][0][0].shape[1] for group in groups]
            stack = []
            for parts in zip(*(self.prompts[group] for group in groups), strict=True):
                stack.append(tuple(_stack(tensors, max(lengths)) for tensors in zip(*parts, strict=True)))
            whole = SharedPrefixes(stack, lengths, [groups.index(group) for group in self.groups])
            self._stack = (groups, lengths, stack, whole)
        groups, lengths, stack, whole = self._stack
        if everyone:
            return whole
        some = sorted({self.groups[row] for row in rows})
        slots = [groups.index(group) for group in some]
        if len(slots) < len(groups):
            lengths = [lengths[slot] for slot in slots]
            stack = [(keys[slots, :, : max(lengths)], values[slots, :, : max(lengths)]) for keys, values in stack]
        return SharedPrefixes(stack, lengths, [some.index(self.groups[row]) for row in rows])


def _stack(parts: Sequence[torch.Tensor], longest: int) -> torch.Tensor:
    """(U, H, L, D) of U tensors (H, length, D), with zeros where one is shorter."""
    return torch.stack([torch.nn.functional.pad(x, (0, 0, 0, longest - x.shape[1])) for x in parts])
