"""A transformers causal LM with its tokenizer: plain, with LoRA, or 4-bit with LoRA (QLoRA). One path for all."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from . import attention
from .decoder import FastDecoder, fast_decoder

CANNOT_GO_ON_TOP = (
    "a trained adapter is not trained further, and a new one cannot go on top; make a model of it and its base first: "
    "gtpo-mini merge ADAPTER --output FOLDER"
)


class Policy:
    """A model that acts: token ids in, logits out, and the tokenizer that goes with it.

    Args:
        model: a decoder-only ``transformers`` model, or a peft model around one.
        tokenizer: with a chat template, a pad token and an end token, and no more tokens than the model embeds.

    Raises:
        ValueError: the tokenizer lacks one of these; an architecture that the rollout cannot cache.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str = "policy") -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.is_lora = hasattr(model, "peft_config")
        found = getattr(self.plain.generation_config, "eos_token_id", None)
        self.eos_ids = frozenset({*(found if isinstance(found, list) else [found]), tokenizer.eos_token_id} - {None})
        self._silent = self.eos_ids | {tokenizer.pad_token_id}
        # A tokenizer's class may add a token for unknown text, which a byte-level tokenizer never meets.
        size = 1 + max({*tokenizer.get_vocab().values()} - {tokenizer.unk_token_id})
        rows = model.get_input_embeddings().weight.shape[0]
        for wrong, fault in (
            (not tokenizer.chat_template, "no chat template; use an instruction-tuned model, or set chat_template"),
            (
                tokenizer.pad_token_id is None,
                "no pad token; set one (tokenizer.pad_token = tokenizer.eos_token will do)",
            ),
            (not self.eos_ids, "no end-of-sequence token; set tokenizer.eos_token"),
            (
                size > rows,
                f"{size} tokens, but its embedding only {rows}; model.resize_token_embeddings(len(tokenizer))",
            ),
        ):
            if wrong:
                raise ValueError(f"model {name!r}: its tokenizer has {fault}, and save the tokenizer with the model")
        for module in model.modules():  # what would show the update another policy than the one that sampled
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "support_avx512bf16_for_cpu"):  # a 4-bit layer: it would repack its weights for bf16
                module.support_avx512bf16_for_cpu = False
        self.context_length = attention.context_length(self.plain.config.get_text_config(), name)
        self.takes_attend = attention.install(self.plain)  #: rollouts can share their group's prompt
        self._fast = fast_decoder(self.plain) is not None
        self._reference: Policy | None = None

    @property
    def plain(self) -> nn.Module:
        """The transformers model, without its adapter."""
        return self.model.get_base_model() if self.is_lora else self.model

    @property
    def device(self) -> torch.device:
        """Where the model's first weight lies."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings, and so of what flows through the model (quantised weights have another)."""
        return self.model.get_input_embeddings().weight.dtype

    def encode_chat(self, messages: Sequence[dict[str, str]], tools: list[dict] | None = None) -> list[int]:
        """Token ids of a chat, up to and including the header of the assistant's turn; the template shows ``tools``."""
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # a template raises whatever it likes
            roles, reason = ", ".join(message["role"] for message in messages), first_line(error)
            raise ValueError(f"model {self.name!r}: its chat template refuses the roles {roles} ({reason})") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; what looks like a special token stays text, so tool output cannot forge one."""
        # Lone surrogates can come out of a tool, but no tokenizer takes them.
        text = text.encode("utf-8", "replace").decode("utf-8")
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without end and padding tokens; other special tokens stay (``<tool_call>`` may be one)."""
        kept = [i for i in ids if i not in self._silent]
        return self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def hidden_states(self, input_ids: torch.Tensor, **kwargs) -> torch.Tensor:
        """Last hidden states (B, T, D) of ids (B, T); `logits` turns chosen ones into logits."""
        return self.plain.get_decoder()(input_ids=input_ids, **kwargs).last_hidden_state  # (B, T, D)

    def fast_decoder(self) -> FastDecoder | None:
        """The same pass for decoding, made from the modules as they are now; None where this model has none."""
        return FastDecoder(self.plain.get_decoder()) if self._fast else None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits (..., V) of hidden states (..., D)."""
        return self.plain.get_output_embeddings()(hidden).float()

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the optimiser changes: all weights, or a new adapter's; of a trained adapter nothing, an error."""
        if not (parameters := [p for p in self.model.parameters() if p.requires_grad]):
            raise ValueError(f"model {self.name!r}: {CANNOT_GO_ON_TOP}")
        return parameters

    def train_in_float32(self) -> None:
        """Weights that are to change become float32: in 16 bits small steps are lost, and AdamW divides by zero."""
        if not self.is_lora:  # peft keeps an adapter in float32 by itself
            self.model.float()

    def make_optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """AdamW without weight decay; on a 4-bit base bitsandbytes' 8-bit form, whose moments a GPU can page out."""
        self.train_in_float32()
        kind = torch.optim.AdamW
        if getattr(self.plain, "is_loaded_in_4bit", False):
            from bitsandbytes import optim

            kind = optim.PagedAdamW8bit if self.device.type == "cuda" else optim.AdamW8bit
        fused = {"fused": True} if kind is torch.optim.AdamW else {}
        return kind(self.trainable_parameters(), lr=learning_rate, weight_decay=0.0, **fused)

    def checkpoint_gradients(self) -> None:
        """Keep only each layer's input in a training pass, and compute the layer again in the backward pass."""
        enable = getattr(self.plain, "activation_checkpointing_enable", None)
        enable = enable or self.plain.gradient_checkpointing_enable  # its name in older versions of transformers
        enable({"use_reentrant": False})

    def keep_reference(self) -> None:
        """Remember the present weights as the reference policy; LoRA needs no copy."""
        if not self.is_lora:
            self._reference = Policy(copy.deepcopy(self.model).requires_grad_(False).eval(), self.tokenizer, self.name)

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[Policy]:
        """The reference policy: this model with the adapter off, or the copy made by `keep_reference`."""
        if self.is_lora:
            with self.model.disable_adapter():
                yield self
        elif self._reference is None:
            raise RuntimeError("call keep_reference() before the first update")
        else:
            yield self._reference

    def save(self, folder: str | os.PathLike) -> None:
        """Write weights (or the adapter) as safetensors, and the tokenizer, to ``folder``."""
        with quiet():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bar for reading weights, and no warning that peft asks transformers for an old name."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
