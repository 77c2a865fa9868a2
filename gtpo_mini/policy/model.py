"""A transformers causal LM with its tokenizer: plain, with LoRA, or 4-bit with LoRA (QLoRA). One path for all."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from . import architecture

# On a CPU with AVX512-BF16 bitsandbytes says at import that it lacks a kernel, which `Policy` would not use anyway.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda line: "kernels-community" not in str(line.msg))

TINY_FOLDER = Path(__file__).resolve().parents[2] / "data" / "tiny_policy"


class Policy:
    """A model that acts: token ids in, logits out, and the tokenizer that goes with it.

    Args:
        model: a decoder-only ``transformers`` model, or a peft model around one.
        tokenizer: with a chat template and a pad token.

    Raises:
        ValueError: no chat template or pad token; an architecture that the rollout cannot cache.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str = "policy") -> None:
        if not tokenizer.chat_template:
            raise ValueError(
                f"model {name!r}: its tokenizer has no chat template; use an instruction-tuned model, or set "
                "tokenizer.chat_template and save the tokenizer with the model"
            )
        if tokenizer.pad_token_id is None:
            raise ValueError(
                f"model {name!r}: its tokenizer has no pad token; set one (tokenizer.pad_token = tokenizer.eos_token "
                "will do, padding is never read from ids) and save the tokenizer with the model"
            )
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.is_lora = hasattr(model, "peft_config")
        self.eos_ids = self._eos_ids()
        for module in model.modules():  # what would show the update another policy than the one that sampled
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "support_avx512bf16_for_cpu"):  # a 4-bit layer: it would repack its weights for bf16
                module.support_avx512bf16_for_cpu = False
        self.context_length = architecture.context_length(self._plain.config.get_text_config(), name)
        self.takes_attend = architecture.install(self._plain)  #: rollouts can share their group's prompt
        self._frozen: nn.Module | None = None

    @property
    def _plain(self) -> nn.Module:
        return self.model.get_base_model() if self.is_lora else self.model

    @property
    def device(self) -> torch.device:
        """Where the model's first weight lies."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings, and so of what flows through the model (quantised weights have another)."""
        return self.model.get_input_embeddings().weight.dtype

    def _eos_ids(self) -> frozenset[int]:
        found = getattr(self._plain.generation_config, "eos_token_id", None)
        ids = set(found if isinstance(found, list) else [found]) | {self.tokenizer.eos_token_id}
        ids.discard(None)
        if not ids:
            raise ValueError(f"model {self.name!r}: no end-of-sequence token; set tokenizer.eos_token and save it")
        return frozenset(ids)

    def encode_chat(self, messages: Sequence[dict[str, str]], tools: list[dict] | None = None) -> list[int]:
        """Token ids of a chat, up to and including the header of the assistant's turn; the template shows ``tools``."""
        return self.tokenizer.apply_chat_template(
            list(messages), tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; what looks like a special token stays text, so tool output cannot forge one."""
        # Lone surrogates can come out of a tool, but no tokenizer takes them.
        text = text.encode("utf-8", "replace").decode("utf-8")
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without end and padding tokens; other special tokens stay (``<tool_call>`` may be one)."""
        kept = [i for i in ids if i not in self.eos_ids and i != self.tokenizer.pad_token_id]
        return self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def hidden_states(self, input_ids: torch.Tensor, **kwargs) -> torch.Tensor:
        """Last hidden states (B, T, D) of ids (B, T); `logits` turns chosen ones into logits."""
        return self._plain.get_decoder()(input_ids=input_ids, **kwargs).last_hidden_state  # (B, T, D)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits (..., V) of hidden states (..., D)."""
        return self._plain.get_output_embeddings()(hidden).float()

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the optimiser changes: all weights, or the adapter's."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def train_in_float32(self) -> None:
        """Weights that are to change become float32: in 16 bits small steps are lost, and AdamW divides by zero."""
        if not self.is_lora:  # peft keeps an adapter in float32 by itself
            self.model.float()

    def make_optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """AdamW without weight decay; on a 4-bit base bitsandbytes' 8-bit form, whose moments a GPU can page out."""
        self.train_in_float32()
        kind = torch.optim.AdamW
        if getattr(self._plain, "is_loaded_in_4bit", False):
            from bitsandbytes import optim

            kind = optim.PagedAdamW8bit if self.device.type == "cuda" else optim.AdamW8bit
        return kind(self.trainable_parameters(), lr=learning_rate, weight_decay=0.0)

    def checkpoint_gradients(self) -> None:
        """Keep only each layer's input in a training pass, and compute the layer again in the backward pass."""
        self._plain.activation_checkpointing_enable({"use_reentrant": False})

    def keep_reference(self) -> None:
        """Remember the present weights as the reference policy; LoRA needs no copy."""
        if not self.is_lora:
            self._frozen = copy.deepcopy(self.model).requires_grad_(False).eval()

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[Policy]:
        """The reference policy: this model with the adapter off, or the copy made by `keep_reference`."""
        if self.is_lora:
            with self.model.disable_adapter():
                yield self
        elif self._frozen is not None:
            yield Policy(self._frozen, self.tokenizer, self.name)
        else:
            raise RuntimeError("call keep_reference() before the first update")

    def save(self, folder: str | os.PathLike) -> None:
        """Write weights (or the adapter) as safetensors, and the tokenizer, to ``folder``."""
        with quiet():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_policy(
    name: str | os.PathLike = "tiny",
    quantize: str | None = None,
    lora_rank: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
) -> Policy:
    """Load a policy.

    Args:
        name: "tiny" (the checkpoint in ``data/``), a model folder, or a name on the Hugging Face hub.
        quantize: None, or "nf4": 4-bit NF4 weights with double quantisation, and LoRA (rank 16 unless given).
        lora_rank: train a LoRA adapter of this rank on all linear layers instead of all weights.
        device: "cpu", "cuda", ...; None takes CUDA if there is one.
        dtype: "float32", "bfloat16" or "float16"; None takes float32 on CPU, bfloat16 (or float16) on a GPU.
        seed: of the adapter's first weights.

    Raises:
        ValueError: nothing to load under that name; no chat template or pad token; unknown quantize or dtype; an
            architecture that the rollout cannot go on from a cache with.

    >>> policy = load_policy("tiny")
    >>> policy.decode(policy.encode("print(6 * 7)"))
    'print(6 * 7)'
    """
    name = str(name)
    if quantize not in (None, "nf4"):
        raise ValueError(f"quantize={quantize!r}: must be None or 'nf4'")
    if lora_rank is not None and lora_rank < 1:
        raise ValueError(f"lora_rank={lora_rank}: must be at least 1")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: torch finds no CUDA GPU here; use device='cpu' (profile 'cpu')")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r}: torch has no such device here; use 'cpu' or 'cuda'") from error
    kind = _dtype(dtype, device)
    folder = TINY_FOLDER if name == "tiny" else Path(name)
    if name == "tiny" and not folder.is_dir():
        raise ValueError(f"no tiny policy in {folder}; make it with: python -m gtpo_mini coldstart")
    options = {"dtype": kind, "attn_implementation": "sdpa"}
    if quantize:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=kind,
        )
        options["device_map"] = {"": device}
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"model {name!r}: is an adapter, and a new one cannot go on top; make a model of it and its base first: "
            f"python -m gtpo_mini merge {name} --output FOLDER"
        )
    source = str(folder) if folder.is_dir() else name
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, **options)
    except Exception as error:  # a broken folder raises whatever its reader happens to raise
        where = "the folder" if folder.is_dir() else "neither a folder here nor a model that the hub gave:"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"model {name!r}: {where} {source!r} cannot be loaded ({reason})") from error
    if not quantize:
        model = model.to(device)
    if quantize or lora_rank:
        model = _add_lora(model, lora_rank or 16, seed)
    policy = Policy(model.eval(), tokenizer, name)
    architecture.check(policy._plain, name)
    return policy


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bar for reading weights: the bars that matter are those of the steps."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _dtype(dtype: str | None, device: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is None:
        if not device.startswith("cuda"):
            return torch.float32
        # A T4 emulates bf16, slowly: ask for the real thing.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if dtype not in known:
        raise ValueError(f"dtype={dtype!r}: must be one of {', '.join(known)}")
    return known[dtype]


def _add_lora(model: nn.Module, rank: int, seed: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, config)
