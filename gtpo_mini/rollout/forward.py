"""The model's side of a rollout: prompts are read once a group, rows go on from there, each at its own place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from ..policy.attention import SharedPrefixes
from ..policy.model import Policy
from .cuda_graph import GraphedSteps

CHUNK = 512  # tokens of a row that one pass reads at most
PASS = 2048  # tokens that one pass reads at most: bounds its memory
_ROUND = 16  # cached places are read in multiples of this
_STEADY = 128  # or of this, where each width has a recording of its own
_GROW = 128  # places that are allocated at a time, and at least: rows far apart in memory are read more slowly


class ForwardPass:
    """Runs the model over ``rows`` rows, each of which continues the prompt of its group.

    Where the model's attention takes it, a group's prompt stays one, and its rows hold only what came after;
    otherwise, or where ``share`` is False, each row begins with a copy of its prompt. ``graphs`` takes the steps in
    which all rows read one token.
    """

    def __init__(self, policy: Policy, rows: int, share: bool, graphs: GraphedSteps | None = None) -> None:
        self.policy, self.share, self.graphs = policy, share and policy.takes_attend, graphs
        self.decoder = policy.fast_decoder()
        self.cache = RowCache(policy.model.config.get_text_config().num_hidden_layers, rows)
        self.prompts: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}  # of a group: (heads, length, dim)
        self.groups = [-1] * rows  # whose prompt a row continues; an empty row keeps what it had
        self.bases = [0] * rows  # tokens of a row that are not in it but in the group's prompt
        self._stack: tuple | None = None  # the prompts that are continued: groups, lengths, keys and values
        self._whole: SharedPrefixes | None = None  # of all rows

    def read_prompts(self, prompts: dict[int, list[int]]) -> None:
        """Compute the keys and values of each group's prompt, several groups a pass."""
        todo = sorted(prompts, key=lambda group: len(prompts[group]))
        while todo:
            most = max(1, PASS // len(prompts[todo[-1]]))
            batch, todo = todo[-most:], todo[:-most]  # the longest go together: less padding
            ids = torch.zeros(len(batch), len(prompts[batch[-1]]), dtype=torch.long)  # (U, L)
            for i, group in enumerate(batch):
                # Padding on the right: in a causal model nothing before it can see it.
                ids[i, : len(prompts[group])] = torch.tensor(prompts[group])
            cache = DynamicCache()
            for part in ids.to(self.policy.device).split(CHUNK, dim=1):
                self.policy.hidden_states(part, past_key_values=cache, use_cache=True)
            for i, group in enumerate(batch):
                n = len(prompts[group])
                self.prompts[group] = [(x.keys[i, :, :n], x.values[i, :, :n]) for x in cache.layers]

    def begin_rows(self, rows: Sequence[int], groups: Sequence[int]) -> None:
        """Let each of ``rows`` begin anew behind the prompt of its group, which has been read."""
        for row, group in zip(rows, groups, strict=True):
            self.groups[row] = group
            self.bases[row] = self.prompts[group][0][0].shape[1] if self.share else 0
        self._whole = None
        if self.share:
            return
        for group in set(groups):
            mine = torch.tensor([r for r, g in zip(rows, groups, strict=True) if g == group])
            length = self.prompts[group][0][0].shape[1]
            places = torch.arange(length).expand(len(mine), length)
            self.cache.select(mine.to(self.policy.device), places.to(self.policy.device), length, leading=True)
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
        self._whole = None

    def read(self, rows: Sequence[int], chunks: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        """Read a chunk of up to Q ids, which begins at position ``start``, in each of R rows, in any order.

        Returns logits (R, V) after each chunk's last id.
        """
        device, longest = self.policy.device, max(map(len, chunks))
        ids, positions, places = [], [], []  # R lists of Q numbers each; padding stands before, in place -1
        for row, chunk, start in zip(rows, chunks, starts, strict=True):
            padding, base = longest - len(chunk), self.bases[row]
            ids.append([0] * padding + list(chunk))
            positions.append([0] * padding + list(range(start, start + len(chunk))))
            places.append([-1] * padding + list(range(start - base, start - base + len(chunk))))
        leading = list(rows) == list(range(len(rows)))  # rows 0..R-1, in their order
        everyone = leading and len(rows) == len(self.groups)
        steady = self.graphs is not None and everyone and longest == 1
        step = _STEADY if steady else _ROUND
        width = -(-(max(place[-1] for place in places) + 1) // step) * step
        attend = self._shared(rows, everyone) if self.share else None
        # (R,); a tensor that the host fills would be waited for
        chosen = torch.arange(len(rows), device=device) if leading else torch.tensor(rows, device=device)

        def forward(inputs: torch.Tensor) -> torch.Tensor:
            """All that the device does, from the ids, positions and places (3, R, Q)."""
            ids, positions, places = inputs
            self.cache.select(chosen, places, width, leading)
            unseen = torch.arange(width, device=device) > places[..., None]  # (R, Q, W)
            mask = torch.zeros(unseen.shape, dtype=self.policy.dtype, device=device)
            mask = mask.masked_fill_(unseen, torch.finfo(mask.dtype).min)[:, None]  # (R, 1, Q, W)
            if self.decoder is not None:
                hidden = self.decoder(ids, positions, mask, self.cache, attend)  # (R, Q, D)
            else:
                how = {"past_key_values": self.cache, "use_cache": True, **({"attend": attend} if attend else {})}
                hidden = self.policy.hidden_states(ids, attention_mask=mask, position_ids=positions, **how)
            return self.policy.logits(hidden[:, -1])

        inputs = torch.tensor([ids, positions, places])  # (3, R, Q)
        if not steady:
            return forward(inputs.to(device))
        return self.graphs.run((len(rows), width, self.cache.hold(width), attend), inputs, device, forward)

    def _shared(self, rows: Sequence[int], everyone: bool) -> SharedPrefixes:
        """Which prompt each of ``rows`` continues; kept for all rows, in their order, until one of them begins anew."""
        if self._whole is None:
            groups = sorted(set(self.groups))
            lengths = [self.prompts[group][0][0].shape[1] for group in groups]
            if self._stack is None or self._stack[0] != groups:
                stack = []
                for parts in zip(*(self.prompts[group] for group in groups), strict=True):
                    stack.append(tuple(_stack(tensors, max(lengths)) for tensors in zip(*parts, strict=True)))
                self._stack = (groups, lengths, stack)
            self._whole = SharedPrefixes(self._stack[2], lengths, [groups.index(group) for group in self.groups])
        groups, lengths, stack = self._stack
        if everyone:
            return self._whole
        some = sorted({self.groups[row] for row in rows})
        slots = [groups.index(group) for group in some]
        if len(slots) < len(groups):
            lengths = [lengths[slot] for slot in slots]
            stack = [(keys[slots, :, : max(lengths)], values[slots, :, : max(lengths)]) for keys, values in stack]
        return SharedPrefixes(stack, lengths, [some.index(self.groups[row]) for row in rows])


def _stack(parts: Sequence[torch.Tensor], longest: int) -> torch.Tensor:
    """(U, H, L, D) of U tensors (H, length, D), with zeros where one is shorter."""
    return torch.stack([torch.nn.functional.pad(x, (0, 0, 0, longest - x.shape[1])) for x in parts])


class _RowLayer(CacheLayerMixin):
    """One layer's keys and values: (rows, heads, places, head_dim). The last place takes what padding writes."""

    is_sliding = False

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # Zeros: what no query may see is weighed with 0, and 0 times what empty memory holds may be NaN.
        self.keys, self.values = (
            x.new_zeros(self.cache.count, x.shape[1], self.cache.places_held, x.shape[-1])
            for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.keys.shape[2] < self.cache.places_held:
            more = self.cache.places_held - self.keys.shape[2]
            self.keys, self.values = (pad(x, (0, 0, 0, more)) for x in (self.keys, self.values))
        rows, width = self.cache.rows, self.cache.width
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            held.view(-1, held.shape[-1]).index_copy_(
                0, self.cache.targets(held.shape[1]), new.reshape(-1, new.shape[-1])
            )
        # Rows 0..R-1 are read in place; any other choice (a prefill of some rows) is a copy of theirs.
        if self.cache.leading:
            return self.keys[: len(rows), :, :width], self.values[: len(rows), :, :width]
        return self.keys[:, :, :width][rows], self.values[:, :, :width][rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.width, 0

    def get_seq_length(self) -> int:
        return self.cache.width if self.is_initialized else 0

    def get_max_length(self) -> int:
        return self.cache.places_held


class RowCache(Cache):
    """Keys and values of ``count`` rows, for all ``layers`` of a model; it grows with the longest row."""

    def __init__(self, layers: int, count: int) -> None:
        self.count, self.places_held = count, _GROW
        self.rows = self.places = torch.zeros(0, dtype=torch.long)
        self.width, self.leading = 0, True
        super().__init__(layers=[_RowLayer(self) for _ in range(layers)])

    def select(self, rows: torch.Tensor, places: torch.Tensor, width: int, leading: bool) -> None:
        """The next forward pass writes ``places`` (R, Q) of ``rows`` (R,) and reads the first ``width`` places.

        ``leading``: the rows are 0..R-1. Place -1 is written by padding and read by none.
        """
        self.hold(width)
        self.rows, self.places, self.width, self.leading = rows, places, width, leading
        self._targets: dict[int, torch.Tensor] = {}

    def targets(self, heads: int) -> torch.Tensor:
        """(R * H * Q,): where the selected places lie in a layer's memory, seen as one list of vectors."""
        if heads not in self._targets:
            row_heads = self.rows[:, None] * heads + torch.arange(heads, device=self.rows.device)  # (R, H)
            places = self.places.remainder(self.places_held)[:, None]  # (R, 1, Q)
            self._targets[heads] = (row_heads[..., None] * self.places_held + places).flatten()
        return self._targets[heads]

    def hold(self, width: int) -> int:
        """Make room for ``width`` places, and one for padding; returns how many there are."""
        while self.places_held <= width:
            self.places_held *= 2
        return self.places_held

    def move_rows(self, sources: list[int], targets: list[int]) -> None:
        """Copy rows ``sources`` over rows ``targets``: all places, for the last pass may have read other rows only."""
        for layer in self.layers:
            if layer.is_initialized:
                for held in (layer.keys, layer.values):
                    held[targets] = held[sources]
