"""Attention in which many rollouts read one prompt once, plugged into transformers' own attention interface.

A rollout's queries see two parts: the prompt that its group shares, and its own tokens. Each part is one plain
softmax attention over fewer places; because a softmax is a ratio of sums, the two results merge by the
logarithms of their denominators (Hydragen, arXiv 2402.05099; cascade attention). No model code is copied: a
decoder that looks its attention up by name finds `NAME`, and hands on the keyword ``attend`` that we pass to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "shared_prefix"
_IDS = 6  # tokens of the short passes
_SHORT = 8  # queries up to which two matrix products are faster than torch's one operation, on a CPU


def _dispatch(module, query, key, value, mask, scaling=None, attend=None, **kwargs) -> tuple[torch.Tensor, None]:
    """Plain scaled dot product attention, unless the caller of the model passed ``attend=``."""
    if attend is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(module.layer_idx, query, key, value, mask, scaling).transpose(1, 2), None


AttentionInterface.register(NAME, _dispatch)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attend_part(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention, and the logarithm of its denominator.

    Args:
        query: (B, H, Q, D), already scaled.
        key, value: (B, H, W, D).
        mask: additive, broadcast to (B, H, Q, W); None: every place is seen.

    Returns:
        (B, H, Q, D) and float32 (B, H, Q, 1).

    >>> q, k, v = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 3, 2), torch.tensor([[[[0.0, 3], [1, 3], [2, 3]]]])
    >>> mean, log_sum = attend_part(q, k, v, None)
    >>> mean.tolist(), round(log_sum.exp().item(), 3)
    ([[[[1.0, 3.0]]]], 3.0)
    """
    if query.shape[2] > _SHORT and query.device.type == "cpu" and key.shape[-1] == value.shape[-1]:
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # it gives the denominator too
        result, log_sum = fused(query, key, value, attn_mask=mask, scale=1.0)
        return result, log_sum[..., None]
    batches = query.shape[:2]
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))  # (B * H, Q or W, D)
    weights = torch.bmm(query, key.transpose(1, 2)).float()  # (B * H, Q, W)
    if mask is not None:
        weights.view(*batches, *weights.shape[1:]).add_(mask)
    shares = weights.softmax(-1)  # (B * H, Q, W)
    # The largest share is e^(the largest weight) over the denominator.
    log_sum = weights.amax(-1, keepdim=True) - shares.amax(-1, keepdim=True).log_()  # (B * H, Q, 1)
    result = torch.bmm(shares.to(value.dtype), value)  # (B * H, Q, D)
    return result.view(*batches, *result.shape[1:]), log_sum.view(*batches, -1, 1)


class SharedPrefixes:
    """The ``attend=`` of a pass over R rows, each of which continues one of U cached prefixes.

    Args:
        prefixes: a layer's (keys, values) of all U prefixes, each (U, H, L, D), padded on the right.
        lengths: of the U prefixes, each at most L.
        chosen: which of the U prefixes each of the R rows continues.
    """

    def __init__(
        self, prefixes: Sequence[tuple[torch.Tensor, torch.Tensor]], lengths: Sequence[int], chosen: Sequence[int]
    ) -> None:
        self.prefixes = prefixes
        device = prefixes[0][0].device
        members: list[list[int]] = [[] for _ in lengths]
        for row, prefix in enumerate(chosen):
            members[prefix].append(row)
        self.most = max(map(len, members))
        # A prefix with fewer rows than another is filled up with row 0, whose second result nobody takes.
        rows = [m + [0] * (self.most - len(m)) for m in members]
        self.rows = torch.tensor(rows, device=device).flatten()  # (U * M,)
        place = {row: i * self.most + j for i, m in enumerate(members) for j, row in enumerate(m)}
        self.back = torch.tensor([place[row] for row in range(len(chosen))], device=device)  # (R,)
        self.mask = None
        if min(lengths) < (longest := prefixes[0][0].shape[2]):
            padding = torch.arange(longest, device=device) >= torch.tensor(lengths, device=device)[:, None]  # (U, L)
            self.mask = padding[:, None, None] * torch.finfo(torch.float32).min  # (U, 1, 1, L)

    def __call__(self, layer: int, query, key, value, mask, scaling: float) -> torch.Tensor:
        """(R, H, Q, D) of queries (R, H, Q, D) and own keys and values (R, K, W, D) under mask (R, 1, Q, W)."""
        rows, heads, length, dim = query.shape
        shared, repeat = key.shape[1], heads // key.shape[1]
        # Query heads that share a key head stand in line as more queries of it: (R, K, repeat * Q, D)
        query = (query * scaling).reshape(rows, shared, repeat * length, dim)
        if length > 1 and repeat > 1:
            mask = mask.repeat(1, 1, repeat, 1)
        own, own_sum = attend_part(query, key, value, mask)
        # All rows of a prefix stand in line too, so that its keys are read once: (U, K, M * repeat * Q, D)
        groups, lines = len(self.rows) // self.most, self.most * repeat * length
        query = query[self.rows].view(groups, self.most, shared, -1, dim).transpose(1, 2)
        prefix, prefix_sum = attend_part(query.reshape(groups, shared, lines, dim), *self.prefixes[layer], self.mask)
        prefix, prefix_sum = (
            x.view(groups, shared, self.most, repeat * length, -1).transpose(1, 2).flatten(0, 1)[self.back]
            for x in (prefix, prefix_sum)
        )
        # a e^p + b e^o over e^p + e^o: a sigmoid decides.
        share = torch.sigmoid(prefix_sum - own_sum).to(own.dtype)  # (R, K, repeat * Q, 1)
        return torch.lerp(own, prefix, share).view(rows, heads, length, -1)


def context_length(config: PreTrainedConfig, name: str = "model") -> int:
    """How many tokens a model sees in full; ValueError where some layers see less, or keep no keys and values.

    >>> context_length(PreTrainedConfig(max_position_embeddings=4096, sliding_window=512))
    512
    """
    types = getattr(config, "layer_types", None) or ()
    if other := set(types) - {"full_attention"}:
        raise ValueError(f"model {name!r}: layers of type {sorted(other)}; the rollout caches full attention only")
    # Where no list tells the layers apart (Mistral), a window holds for all; up to its length, it is full attention.
    window = None if types else getattr(config, "sliding_window", None)
    places = getattr(config, "max_position_embeddings", None) or 2048
    return min(places, window or places)


def install(model: PreTrainedModel) -> bool:
    """Let a model take ``attend=``; False (and nothing is changed) if its attention is of another kind."""
    if model.config._attn_implementation == "sdpa" and model._supports_attention_backend:
        model.set_attn_implementation(NAME)
        # A model may claim it and drop the keyword on its way to a layer, or attend to other keys than it caches.
        if not _continues(model, shared=True):
            model.set_attn_implementation("sdpa")
    return model.config._attn_implementation == NAME


@torch.no_grad()
def check(model: PreTrainedModel, name: str = "model") -> None:
    """Try what would be silently wrong otherwise; no list of model names decides.

    Raises:
        ValueError: no rows of a cache at places of their own; logits that are more than the head's product.
    """
    if model.config._attn_implementation != NAME and not _continues(model, shared=False):
        raise ValueError(f"model {name!r}: its attention cannot go on from a cache under a mask of ours; not supported")
    ids = torch.arange(_IDS, device=model.device)[None]  # (1, 6)
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state  # (1, 6, D)
    # Some scale or cap their logits after the head: the fused loss would not.
    if not torch.allclose(model.get_output_embeddings()(hidden), model(input_ids=ids).logits, atol=1e-2, rtol=1e-2):
        raise ValueError(f"model {name!r}: its logits are more than head(hidden states); not supported")


@torch.no_grad()
def _continues(model: PreTrainedModel, shared: bool) -> bool:
    """Whether a pass behind a cached prefix, with a place of padding before it, gives what one whole pass does.

    ``shared``: the prefix is read through `SharedPrefixes`; otherwise it stands in the pass's own cache.
    """
    decoder, before, device = model.get_decoder(), _IDS // 2, model.device
    ids = torch.arange(_IDS, device=device)[None]  # (1, 6)
    whole = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, before:].float()  # (1, 3, D)
    mask = torch.full((_IDS - before + 1, _IDS + 1), torch.finfo(model.dtype).min, dtype=model.dtype, device=device)
    mask = mask.triu(before + 1)  # (4, 7)
    mask[1:, before] = torch.finfo(model.dtype).min
    mask = mask[:, before if shared else 0 :][None, None]  # (1, 1, 4, 4) or (1, 1, 4, 7)
    padded = torch.cat([ids[:, :1], ids[:, before:]], 1)  # (1, 4); as it is 0, 3, 4, 5, these are its positions too
    try:
        cache = DynamicCache()
        decoder(input_ids=ids[:, :before], past_key_values=cache, use_cache=True)
        how = {"past_key_values": cache, "use_cache": True}
        if shared:
            prefix = SharedPrefixes([(x.keys, x.values) for x in cache.layers], [before], [0])
            how = {"attend": prefix, "use_cache": False}
        part = decoder(input_ids=padded, position_ids=padded, attention_mask=mask, **how).last_hidden_state[:, 1:]
    except Exception:  # what cannot do it raises whatever it happens to raise
        return False
    return bool((part.float() - whole).norm() < torch.finfo(model.dtype).eps ** 0.5 * whole.norm())
