"""One loader of a policy: a model of a folder or the hub, whole, in 4 bits, under a new adapter or a trained one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from huggingface_hub import HfApi
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from . import attention
from .model import CANNOT_GO_ON_TOP, Policy, first_line, quiet

_PACKAGE = Path(__file__).resolve().parents[1]
_DATA = _PACKAGE if (_PACKAGE / "tiny_policy").is_dir() else _PACKAGE.parent / "data"  # of a wheel, or of a checkout
TINY_FOLDER = _DATA / "tiny_policy"
#: The policies of this package by name: for the tasks branching, programs and facts.
TINY = {"tiny": TINY_FOLDER, "tiny-programs": _DATA / "tiny_programs", "tiny-facts": _DATA / "tiny_facts"}
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_HUB_SECONDS = 5  # for the question whether it has a model


def load_policy(
    name: str | os.PathLike | None = None,
    quantize: str | None = None,
    lora_rank: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    adapter: str | os.PathLike | None = None,
) -> Policy:
    """Load a policy: one to train, or a trained one.

    Args:
        name: "tiny", "tiny-programs" or "tiny-facts" (the checkpoints of this package), a name on the Hugging Face hub,
            or a folder: of a model, of a trained adapter (its base model comes with it) or of a run (its ``policy/``).
            None: the base model of ``adapter``, or "tiny".
        quantize: None, or "nf4": 4-bit NF4 weights with double quantisation, and LoRA (rank 16 unless given).
        lora_rank: train a new LoRA adapter of this rank on all linear layers instead of all weights.
        device: "cpu", "cuda", ...; None takes CUDA if there is one.
        dtype: "float32", "bfloat16" or "float16"; None takes float32 on CPU, bfloat16 (or float16) on a GPU.
        seed: of a new adapter's first weights.
        adapter: folder (or run) of a trained adapter; it is not trained further, and no new one goes on top.

    Raises:
        ValueError: nothing to load there; weights that are no finite numbers; a tokenizer or an architecture that
            cannot be rolled out; an adapter on top of another; unknown quantize, dtype or device.

    >>> policy = load_policy("tiny")
    >>> policy.decode(policy.encode("print(6 * 7)"))
    'print(6 * 7)'
    """
    if quantize not in (None, "nf4"):
        raise ValueError(f"quantize={quantize!r}: must be None or 'nf4'")
    if lora_rank is not None and lora_rank < 1:
        raise ValueError(f"lora_rank={lora_rank}: must be at least 1")
    device = _device(device)
    dtype = _dtype(dtype, device)
    adapter = policy_folder(adapter) if adapter else None
    if adapter is None and _is_adapter(folder := policy_folder(name or "tiny")):
        name, adapter = None, folder
    name = str(name or (base_of(adapter) if adapter else "tiny"))
    if (adapter and lora_rank) or _is_adapter(policy_folder(name)):
        raise ValueError(f"model {str(adapter or name)!r}: {CANNOT_GO_ON_TOP}")
    options = {"dtype": dtype, "attn_implementation": "sdpa"}
    if quantize:
        nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
        options |= {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **nf4), "device_map": {"": device}}
    tokenizer, model = read_model(name, **options)
    if not quantize:
        model = model.to(device)
    if adapter:
        model, name = put_adapter(model, adapter, name), f"{name} + {adapter.name}"
    elif quantize or lora_rank:
        from peft import LoraConfig, get_peft_model  # here: plain models do without it

        rank = lora_rank or 16
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        with torch.random.fork_rng(), quiet():
            torch.manual_seed(seed)
            model = get_peft_model(model, config)
    _check_finite(model, name)
    policy = Policy(model.eval(), tokenizer, name)
    attention.check(policy.plain, name)
    return policy


def base_of(adapter: str | os.PathLike) -> str:
    """Folder or hub name of the model that an adapter was trained on; ValueError where none is named."""
    try:
        settings = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
        return settings["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"adapter {str(adapter)!r}: no adapter_config.json there that names a base model (which can be named: "
            "merge --base, evaluate --model)"
        ) from error


def put_adapter(model: PreTrainedModel, adapter: Path, name: str) -> nn.Module:
    """The model of that name under the trained adapter in a folder, which has to fit it (else ValueError)."""
    from peft import PeftModel

    try:
        with quiet():
            return PeftModel.from_pretrained(model, str(adapter))
    except Exception as error:  # wrong shapes, missing files, other kinds of adapter
        reason = first_line(error)
        raise ValueError(f"adapter {str(adapter)!r} does not fit the model {name!r} ({reason})") from error


def policy_folder(name: str | os.PathLike) -> Path:
    """The folder that a name stands for: of `TINY`, of a run its ``policy/``, others for themselves."""
    folder = TINY.get(str(name), Path(name))
    records = folder / "metrics.jsonl", folder / "imitation.json"
    if (folder / "config.json").is_file() or not any(map(Path.is_file, records)):
        return folder
    if not (folder / "policy").is_dir():
        raise ValueError(f"model {str(name)!r}: the run in this folder has saved no policy yet")
    return folder / "policy"


def read_model(name: str, **options) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The tokenizer and the model of a folder or of the hub; ``options`` go to the model's ``from_pretrained``.

    Raises:
        ValueError: neither holds a model of that name; what a folder lacks.
    """
    folder, unknown = policy_folder(name), None
    source, where = str(folder), "the folder cannot be loaded"
    if not folder.is_dir():
        source, where = name, "no such folder here, and the hub does not offer it"
        try:  # one question: a download that finds no hub, or no such name, would try for 47 seconds
            HfApi().model_info(name, timeout=_HUB_SECONDS)
        except Exception as error:
            unknown = error
    elif not (folder / "config.json").is_file():
        raise ValueError(f"model {name!r}: {where} (it holds no config.json: no model, and no run with a policy)")
    else:
        missing = [] if any((folder / file).is_file() for file in _VOCABULARIES) else ["tokenizer.json"]
        missing += [] if (folder / "tokenizer_config.json").is_file() else ["tokenizer_config.json"]
        if missing:
            raise ValueError(
                f"model {name!r}: {where} (no {' and no '.join(missing)}); save the tokenizer with the model: "
                "tokenizer.save_pretrained(FOLDER)"
            )
    options["local_files_only"] = unknown is not None
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=options["local_files_only"])
            return tokenizer, AutoModelForCausalLM.from_pretrained(source, **options)
    except Exception as error:  # a broken folder raises whatever its reader happens to raise
        raise ValueError(f"model {name!r}: {where} ({first_line(unknown or error)})") from error


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _check_finite(model: nn.Module, name: str) -> None:
    """Raise where a weight's largest or smallest number is not finite; of a 4-bit weight its scales' mean tells."""
    for key, weight in model.named_parameters():
        seen = weight if weight.is_floating_point() else getattr(getattr(weight, "quant_state", None), "offset", None)
        if seen is not None and seen.numel() and not torch.stack(seen.aminmax()).isfinite().all():
            key = key.removeprefix("base_model.model.").replace(".base_layer", "")
            raise ValueError(f"model {name!r}: NaN or infinity in the weight {key!r}; its files are damaged")


def _device(device: str | None) -> str:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and "LOCAL_RANK" in os.environ:  # each process of a host has its own GPU
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        what = "no CUDA GPU" if device.startswith("cuda") else "no such device"
        raise ValueError(f"device={device!r}: torch finds {what} here; use device='cpu' (profile 'cpu')") from error
    return device


def _dtype(dtype: str | None, device: str) -> torch.dtype:
    if dtype is None and not device.startswith("cuda"):
        dtype = "float32"
    elif dtype is None:  # a T4 emulates bf16, slowly: ask for the real thing
        dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if dtype not in (known := ("float32", "bfloat16", "float16")):
        raise ValueError(f"dtype={dtype!r}: must be one of {', '.join(known)}")
    return getattr(torch, dtype)
