"""Which decoders can be rolled out and trained: a short pass asks each as it is loaded; no list of names decides."""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from .attention import NAME, SharedPrefixes

_IDS = 6  # tokens of the short passes


def context_length(config: PreTrainedConfig, name: str = "model") -> int:
    """How many tokens a model sees in full.

    Raises:
        ValueError: some of its layers see less than all that came before, or keep another thing than keys and values.

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
    """What of a model would be silently wrong otherwise.

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
