"""A key-value cache that is allocated once and in which every row stands at a place of its own.

`transformers` calls ``update`` once a layer and a forward pass; `RowCache.aim` tells it beforehand which rows
and places that pass writes. Any decoder with a standard cache works, plain, LoRA or 4-bit.
"""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class _RowLayer(CacheLayerMixin):
    """One layer's keys and values: (rows, heads, length, head_dim)."""

    is_sliding = False

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, length = self.cache.size
        self.keys = key_states.new_zeros(rows, key_states.shape[1], length, key_states.shape[-1])
        self.values = value_states.new_zeros(rows, value_states.shape[1], length, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, places, width = self.cache.rows, self.cache.places, self.cache.width
        self.keys[rows[:, None], :, places] = key_states.transpose(1, 2)  # (R, Q, H, D)
        self.values[rows[:, None], :, places] = value_states.transpose(1, 2)
        # Rows 0..R-1 are read in place; any other choice (a prefill of some rows) is a copy of theirs.
        chosen = slice(0, len(rows)) if self.cache.leading else rows
        return self.keys[chosen, :, :width], self.values[chosen, :, :width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.width, 0

    def get_seq_length(self) -> int:
        return self.cache.width if self.is_initialized else 0

    def get_max_length(self) -> int:
        return self.cache.size[1]


class RowCache(Cache):
    """Keys and values of ``rows`` rollouts of up to ``length`` tokens, for all ``layers`` of a model."""

    def __init__(self, layers: int, rows: int, length: int) -> None:
        self.size = (rows, length + 1)  # the last place takes what padding writes, and is never read
        self.rows = self.places = torch.zeros(0, dtype=torch.long)
        self.width, self.leading = 0, True
        super().__init__(layers=[_RowLayer(self) for _ in range(layers)])

    @property
    def padding_place(self) -> int:
        """Where padding is written: no query ever reads it."""
        return self.size[1] - 1

    def aim(self, rows: torch.Tensor, places: torch.Tensor, width: int, leading: bool) -> None:
        """The next forward pass writes ``places`` (R, Q) of ``rows`` (R,) and reads the first ``width`` places.

        ``leading``: the rows are 0..R-1.
        """
        self.rows, self.places, self.width, self.leading = rows, places, width, leading

    def take_prefix(self, row: int, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A copy of the first ``length`` places of a row: (heads, length, head_dim) twice a layer."""
        return [(layer.keys[row, :, :length].clone(), layer.values[row, :, :length].clone()) for layer in self.layers]

    def put_prefix(self, rows: list[int], prefix: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Write what `take_prefix` gave to the beginning of ``rows``."""
        for layer, (keys, values) in zip(self.layers, prefix, strict=True):
            layer.keys[rows, :, : keys.shape[1]] = keys
            layer.values[rows, :, : values.shape[1]] = values

    def keep_rows(self, rows: list[int], width: int) -> None:
        """Move ``rows`` to the front, in this order; ``width``: how many places are in use."""
        for layer in self.layers:
            layer.keys[: len(rows), :, :width] = layer.keys[rows, :, :width]
            layer.values[: len(rows), :, :width] = layer.values[rows, :, :width]
