"""The forward pass of a common decoder without module calls, for the steps in which Python is much of the time.

It is used only where it gives what the model's own pass gives (`fast_decoder` asks both); that stays for all others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_ROPES = ("default", "linear", "llama3", "yarn")  # whose frequencies do not depend on the length


class FastDecoder:
    """A decoder of the Llama family (Llama, SmolLM, Mistral, Qwen2, Qwen3), plain, with LoRA or in 4 bits."""

    def __init__(self, decoder: nn.Module) -> None:
        self.decoder, self.rope = decoder, decoder.rotary_emb
        self.layers = [self._operations(layer) for layer in decoder.layers]
        self.norm = _norm(decoder.norm)

    @staticmethod
    def _operations(layer: nn.Module) -> tuple:
        attention, mlp = layer.self_attn, layer.mlp
        heads = [_norm(getattr(attention, name, None)) for name in ("q_norm", "k_norm")]
        return (
            _norm(layer.input_layernorm),
            *(_linear(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
            *heads,
            _norm(layer.post_attention_layernorm),
            *(_linear(getattr(mlp, name)) for name in ("gate_proj", "up_proj", "down_proj")),
            mlp.act_fn,
            attention.head_dim,
            attention.scaling,
        )

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: Cache, attend: Callable | None
    ) -> torch.Tensor:
        """Last hidden states (B, Q, D) of ids and positions (B, Q), under an additive mask (B, 1, Q, W)."""
        rows, length = ids.shape
        hidden = functional.embedding(ids.flatten(), self.decoder.embed_tokens.weight)  # (N, D), N = B * Q
        angles = positions.flatten()[:, None, None] * self.rope.inv_freq  # (N, 1, head_dim / 2)
        cos, sin = angles.cos(), angles.sin()
        if self.rope.attention_scaling != 1.0:
            cos, sin = cos * self.rope.attention_scaling, sin * self.rope.attention_scaling
        cos, sin = torch.cat((cos, cos), -1).to(hidden.dtype), torch.cat((-sin, sin), -1).to(hidden.dtype)
        for i, layer in enumerate(self.layers):
            before, q_proj, k_proj, v_proj, o_proj, q_norm, k_norm, after, gate, up, down, act, dim, scaling = layer
            x = before(hidden)
            query, key, value = (project(x).view(rows * length, -1, dim) for project in (q_proj, k_proj, v_proj))
            query, key = (
                _turn(y if norm is None else norm(y), cos, sin) for y, norm in ((query, q_norm), (key, k_norm))
            )
            query, key, value = (y.view(rows, length, -1, dim).transpose(1, 2) for y in (query, key, value))
            key, value = cache.update(key, value, i)
            if attend is not None:
                x = attend(i, query, key, value, mask, scaling)
            else:
                x = functional.scaled_dot_product_attention(
                    query, key, value, mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
                )
            hidden = hidden + o_proj(x.transpose(1, 2).reshape(rows * length, -1))
            x = after(hidden)
            hidden = hidden + down(act(gate(x)) * up(x))
        return self.norm(hidden).view(rows, length, -1)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions for x (N, H, head_dim); ``sin`` holds the sign of the half that it meets."""
    half = x.shape[-1] // 2
    return torch.addcmul(x * cos, torch.cat((x[..., half:], x[..., :half]), -1), sin)  # `roll` takes four times as long


def _linear(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    if type(module) is not nn.Linear:  # an adapter, or 4 bits
        return module
    return functools.partial(functional.linear, weight=module.weight, bias=module.bias)


def _norm(module: nn.Module | None) -> Callable[[torch.Tensor], torch.Tensor] | None:
    if module is None or module.weight.dtype != torch.float32:  # in 16 bits the order of the roundings would differ
        return module
    return functools.partial(
        functional.rms_norm,
        normalized_shape=tuple(module.weight.shape),
        weight=module.weight,
        eps=module.variance_epsilon,
    )


def fast_decoder(model: PreTrainedModel) -> FastDecoder | None:
    """A model's fast pass, or None where it has other parts, or where the two differ by more than rounding."""
    decoder = model.get_decoder()
    try:
        same_parts = all(
            {*dict(layer.named_children())} == _LAYER
            and {*dict(layer.self_attn.named_children())} - {"q_norm", "k_norm"} == _ATTENTION
            and {*dict(layer.mlp.named_children())} == _MLP
            for layer in decoder.layers
        )
        if not same_parts or decoder.rotary_emb.rope_type not in _ROPES:
            return None
        found = FastDecoder(decoder)
        places = torch.arange(6, device=model.device)[None]  # (1, 6); these are the ids too
        mask = torch.full((1, 1, 6, 6), torch.finfo(model.dtype).min, dtype=model.dtype, device=model.device).triu(1)
        fast = found(places, places, mask, DynamicCache(), attend=None).float()
    except (AttributeError, TypeError):  # other names than this family's
        return None
    plain = decoder(input_ids=places, use_cache=False).last_hidden_state.float()
    return found if bool((fast - plain).norm() < torch.finfo(model.dtype).eps ** 0.75 * plain.norm()) else None
