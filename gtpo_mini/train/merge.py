"""A trained adapter and its base model made one: a plain transformers folder, with a card of the run."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from pathlib import Path

from transformers import AutoTokenizer

from ..policy.load import base_of, policy_folder, put_adapter, quiet, read_model
from .record import Record, clear_disk_errors

_SHOWN = ("reward/outcome", "reward/turn_mean", "rollout/turns", "rollout/tokens", "policy/entropy")


def merge(adapter: str | Path, output: str | Path, base: str | None = None) -> Path:
    """Merge an adapter into its base model, in the base's own precision.

    Args:
        adapter: the folder that training wrote; if ``metrics.jsonl`` of the run lies beside it, the card tells of it.
        output: a new folder.
        base: folder or hub name of the base model; None: the one that the adapter names.

    Returns:
        ``output``, which `load_policy` and plain transformers load.

    Raises:
        ValueError: no adapter there; an output folder that holds something; a base that cannot be loaded.
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
    with contextlib.suppress(ValueError):  # some other metrics.jsonl
        lines, _ = Record(adapter.parent).read()
    new = output.with_name(output.name + ".writing")
    with clear_disk_errors(output), quiet():
        shutil.rmtree(new, ignore_errors=True)
        model.save_pretrained(new)
        AutoTokenizer.from_pretrained(adapter).save_pretrained(new)
        (new / "README.md").write_text(model_card(name, lines, cold), encoding="utf-8")
        new.replace(output)  # all of it or nothing
    return output


def model_card(base: str, lines: list[dict], cold: dict | None = None) -> str:
    """The model's README, from the record of its run.

    Args:
        base: name of the base model; of a folder only its last part is told.
        lines: of ``metrics.jsonl``; none: the card says that there is no record.
        cold: ``imitation.json`` of a cold start, where the adapter comes from one.

    >>> print(model_card("org/small", []).splitlines()[6])
    # small, trained by GTPO
    """
    header = lines[0] if lines else {}
    if cold and not lines:
        return _cold_card(Path(base).name, cold)
    config, steps = header.get("config", {}), [line for line in lines if line["kind"] == "step"]
    method = "GRPO" if str(header.get("arm", "gtpo")).startswith("grpo") else "GTPO"
    short = Path(base).name
    # A folder of this machine tells a reader nothing, and a hub would look for it.
    front = [f"base_model: {base}"] if base.count("/") == 1 and not Path(base).exists() else []
    card = ["---", "library_name: transformers", *front, "tags:", f"- {method.lower()}", "---"]
    card += [
        f"# {short}, trained by {method}",
        "",
        f"A LoRA adapter merged into {short}. It was trained by gtpo_mini, a reference implementation of Group Turn "
        "Policy Optimization (arXiv 2511.14846), to solve problems over several turns with a Python tool.",
        "",
    ]
    if not lines:
        return "\n".join([*card, "No record of the run lay beside the adapter.", ""])
    card += ["## The run", ""]
    card += [f"- {key}: {header[key]}" for key in ("task", "arm", "seed", "commit", "device") if key in header]
    card += [f"- versions: {', '.join(f'{k} {v}' for k, v in header.get('versions', {}).items())}"]
    card += [f"- command: `{header.get('command', 'unknown')}`", f"- steps: {len(steps)} of {config.get('steps')}", ""]
    if steps:
        card += ["| metric | first step | last step |", "|---|---|---|"]
        card += [f"| {key} | {steps[0][key]:.3f} | {steps[-1][key]:.3f} |" for key in _SHOWN if key in steps[0]]
        card += ["", "Measured on training problems as they were sampled, not on a benchmark.", ""]
    card += ["## Settings", "", "```json", json.dumps(config, indent=1), "```", ""]
    card += ["If the base was 4-bit in training, merged weights differ a little from what was trained.", ""]
    return "\n".join(card)


def _cold_card(short: str, cold: dict) -> str:
    losses = cold.get("losses") or [math.nan]
    return "\n".join(
        [
            *("---", "library_name: transformers", "---", f"# {short} after a cold start", ""),
            f"A LoRA adapter merged into {short}: supervised training on {cold.get('traces')} traces of the task "
            f"{cold.get('task')} (protocol {cold.get('protocol')}), by gtpo_mini; a start for reinforcement learning.",
            "",
            f"- loss: {losses[0]:.3f} to {losses[-1]:.3f} nats a token in {len(losses)} steps",
            *(f"- {key}: {cold.get(key)}" for key in ("command", "commit")),
            "",
        ]
    )
