"""A key-value cache in which every row stands at a place of its own, and nothing is copied as a row grows.

`transformers` calls ``update`` once a layer and a forward pass; `RowCache.aim` tells it beforehand which rows
and places that pass writes. Any decoder with a standard cache works, plain, LoRA or 4-bit.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad
from transformers.cache_utils import Cache, CacheLayerMixin

_GROW = 128  # places that are allocated at a time, and at least: rows far apart in memory are read more slowly


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
        rows, places, width = self.cache.rows, self.cache.places, self.cache.width
        self.keys[rows[:, None], :, places] = key_states.transpose(1, 2)  # (R, Q, H, D)
        self.values[rows[:, None], :, places] = value_states.transpose(1, 2)
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

    def aim(self, rows: torch.Tensor, places: torch.Tensor, width: int, leading: bool) -> None:
        """The next forward pass writes ``places`` (R, Q) of ``rows`` (R,) and reads the first ``width`` places.

        ``leading``: the rows are 0..R-1. Place -1 is written by padding and read by none.
        """
        self.hold(width)
        self.rows, self.places, self.width, self.leading = rows, places, width, leading

    def hold(self, width: int) -> int:
        """Make room for ``width`` places, and one for padding; returns how many there are."""
        while self.places_held <= width:
            self.places_held *= 2
        return self.places_held

    def move_rows(self, sources: list[int], targets: list[int]) -> None:
        """Copy rows ``sources`` over rows ``targets``."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys[targets], layer.values[targets] = layer.keys[sources], layer.values[sources]
