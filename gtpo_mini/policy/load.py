"""A policy with a trained LoRA adapter, for evaluation: `load_policy` makes new adapters, this reads saved ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

from peft import PeftModel

from .model import Policy, load_policy


def base_of(adapter: str | os.PathLike) -> str:
    """Folder or hub name of the model that an adapter was trained on.

    Raises:
        ValueError: no adapter there, or one that names no base model.
    """
    try:
        settings = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
        return settings["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"adapter {str(adapter)!r}: no adapter_config.json there that names a base model (which can be named: "
            "merge --base, evaluate --model)"
        ) from error


def load_policy_with_adapter(
    model: str | os.PathLike | None,
    adapter: str | os.PathLike | None = None,
    quantize: str | None = None,
    device: str | None = None,
    seed: int = 0,
) -> Policy:
    """Load a base model, and put an adapter on it if there is one.

    Args:
        model: as in `load_policy`; a folder that holds an adapter stands for it and its base model; None takes the
            adapter's base model.
        adapter: folder that `Policy.save` or peft wrote.
        quantize, device, seed: as in `load_policy`.

    Raises:
        ValueError: no adapter there; its base model cannot be loaded, or is not the one it was trained on.
    """
    if adapter is None and model is not None and (Path(model) / "adapter_config.json").is_file():
        model, adapter = None, model
    if adapter is None:
        return load_policy(model or "tiny", quantize, device=device, seed=seed)
    base = model or base_of(adapter)
    # Without an adapter of its own: load_policy would add one to a quantised base.
    policy = load_policy(base, quantize, device=device, seed=seed)
    plain = policy.model.unload() if policy.is_lora else policy.model
    try:
        trained = PeftModel.from_pretrained(plain, str(adapter)).eval()
    except Exception as error:  # wrong shapes, missing files, other kinds of adapter
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"adapter {str(adapter)!r} does not fit the model {str(base)!r} ({reason})") from error
    return Policy(trained, policy.tokenizer, f"{policy.name} + {Path(adapter).name}")
