"""A trained adapter and its base model made one: a plain transformers folder, with a card of the run."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoTokenizer

from ..policy.load import base_of, policy_folder, put_adapter, quiet, read_model
from .record import clear_disk_errors, read_lines

_SHOWN = ("reward/outcome", "reward/turn_mean", "rollout/turns", "rollout/tokens", "policy/entropy")
_CARD = Path(__file__).resolve().parents[1] / "assets" / "card.md"  # a Jinja template


def merge(adapter: str | Path, output: str | Path, base: str | None = None) -> Path:
    """Merge an adapter into its base model (``base``, or the one that it names), in the base's own precision.

    Returns ``output``, a new folder that `load_policy` and plain transformers load; its card tells of the run whose
    record lies beside the adapter. A ValueError names an adapter, an output folder or a base that does not do.
    """
    adapter, output = policy_folder(adapter), Path(output)
    if (adapter / "config.json").is_file() and not (adapter / "adapter_config.json").is_file():
        raise ValueError(f"adapter {str(adapter)!r}: is a whole model already, nothing is to be merged")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output={str(output)!r}: is there already; choose a new folder")
    name = base or base_of(adapter)
    try:
        model = put_adapter(read_model(name, dtype="auto")[1], adapter, name).merge_and_unload()
    except ValueError as error:
        raise ValueError(f"{error}; name another base (--base)") from error
    lines, cold = [], None
    with contextlib.suppress(OSError, ValueError):
        cold = json.loads((adapter.parent / "imitation.json").read_text(encoding="utf-8"))
    with contextlib.suppress(FileNotFoundError, ValueError):  # none, or some other metrics.jsonl
        lines, _ = read_lines(adapter.parent / "metrics.jsonl")
    new = output.with_name(output.name + ".writing")
    with clear_disk_errors(output), quiet():
        shutil.rmtree(new, ignore_errors=True)
        model.save_pretrained(new)
        AutoTokenizer.from_pretrained(adapter).save_pretrained(new)
        model_card(name, lines, cold).save(new / "README.md")
        new.replace(output)  # all of it or nothing
    return output


def model_card(base: str, lines: list[dict], cold: dict | None = None) -> ModelCard:
    """The card of a merged model, from the lines of ``metrics.jsonl`` and a cold start's ``imitation.json``."""
    header = lines[0] if lines else {}
    method = "GRPO" if str(header.get("arm", "gtpo")).startswith("grpo") else "GTPO"
    method = "cold start" if cold and not lines else method
    # A folder of this machine tells a reader nothing, and a hub would look for it.
    name = base if base.count("/") == 1 and not Path(base).exists() else None
    tags = [method.lower().replace(" ", "-")]
    return ModelCard.from_template(
        ModelCardData(library_name="transformers", base_model=name, tags=tags),
        template_path=_CARD,
        short=Path(base).name,
        method=method,
        header=header,
        steps=[line for line in lines if line["kind"] == "step"],
        settings=json.dumps(header.get("config"), indent=1),
        cold=cold,
        shown=_SHOWN,
    )
