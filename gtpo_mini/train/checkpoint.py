"""Checkpoints of a run: written whole or not at all, and read only if they are whole and of the same run.

A folder ``step-000020`` (after 20 steps) has ``weights.safetensors`` (what is trained), ``state.pt`` (optimizer, random
states, metrics; read as plain data) and ``manifest.json`` (whose run it is; size and SHA-256 of each file).
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import random
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ..policy.model import Policy
from ..rollout.protocol import ToolProtocol
from ..tasks.task import Task
from ..types import ExecutionResult
from .record import clear_disk_errors, sync

FORMAT = 2
KEEP = 2  #: whole checkpoints that stay; should the disk spoil the last one, there is another
FILES = ("weights.safetensors", "state.pt")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_WRITING = ".writing"  # ends the name of a folder that is not whole yet, or no longer


def identify(policy: Policy, task: Task, protocol: ToolProtocol, config: dict) -> dict:
    """What makes a run this one and no other: hashes of weights, problems, texts and code; settings that must stay."""
    example = ExecutionResult(ok=False, stdout="1\n", error="ValueError: 2")
    facts = [protocol.messages(task.problems[0]), getattr(protocol, "tools", None), protocol.tool_text(example)]
    return {
        "policy": fingerprint(policy),
        "task": _digest([(p.id, p.question, p.answer, dict(p.metadata)) for p in task.problems]),
        "grader": _digest(_code(task.grader)),
        "setup and turn reward": _digest([_code(one) for one in (task.setup, task.turn_reward)]),
        "protocol": f"{type(protocol).__name__} {_digest([facts, _code(type(protocol))])}",
        "config": config,
    }


def fingerprint(policy: Policy) -> str:
    """What a policy is: names, shapes, types and some values of its weights. Short, and the same on any machine.

    4-bit weights count by their shape alone, because devices may round them differently.
    """
    digest = hashlib.sha256()
    for name, weight in policy.model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {weight.requires_grad}".encode())
        if weight.is_floating_point():
            flat = weight.detach().flatten()
            digest.update(flat[:: max(1, len(flat) // 64)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(value: Any) -> str:
    """Of plain data, and of other objects by what they show of themselves, less their addresses."""

    def shown(other: object) -> object:
        return sorted(map(repr, other)) if isinstance(other, set | frozenset) else _ADDRESS.sub("", repr(other))

    text = json.dumps(value, default=shown, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _code(thing: Any) -> list[str]:
    """Names and source of a function, of a partial's parts, or of an object's class; an own edit shows in it."""
    if isinstance(thing, functools.partial):
        return [*_code(thing.func), repr(thing.args), repr(thing.keywords)]
    kind = thing if inspect.isroutine(thing) or isinstance(thing, type) else type(thing)
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # made at a prompt
        code = getattr(kind, "__code__", None)
        source = "" if code is None else repr((code.co_code, code.co_names))
    state = [] if kind is thing else [repr(thing)]
    return [f"{kind.__module__}:{kind.__qualname__}", source, *state]


def difference(now: dict, then: object) -> str | None:
    """In words, what sets the identity of one run apart from another's; None if nothing does."""
    if not isinstance(then, dict):
        return "it does not say which run it is of"
    found = []
    for key in {**now, **then}:
        mine, other = now.get(key), then.get(key)
        if isinstance(mine, dict) and isinstance(other, dict):
            found.append(difference(mine, other))
        elif mine != other:
            found.append(f"{key} was {other!r} and is {mine!r}")
    return "; ".join(filter(None, found)) or None


class Checkpoints:
    """The checkpoints of one run in ``folder``; ``identity`` says which run, one with another identity is foreign."""

    def __init__(self, folder: Path, identity: dict) -> None:
        self.folder, self.identity = folder, identity

    def save(self, step: int, policy: Policy, optimizer: torch.optim.Optimizer, state: dict) -> Path:
        """Write a checkpoint after ``step`` steps, move it to its place, and drop those that are too many.

        Where the disk is full, a RuntimeError says so; the checkpoints before are as they were.
        """
        place = self.folder / f"step-{step:06d}"
        new = place.with_name(place.name + _WRITING)
        with clear_disk_errors(place):
            try:
                for left in self.folder.glob(f"step-*{_WRITING}"):
                    shutil.rmtree(left, ignore_errors=True)
                new.mkdir(parents=True)
                save_file({name: w.contiguous() for name, w in _trained(policy).items()}, new / FILES[0])
                _save({**state, "optimizer": optimizer.state_dict(), "random": random_state()}, new / FILES[1])
                files = {name: _size_and_hash(new / name) for name in FILES}
                manifest = {"format": FORMAT, "step": step, "identity": self.identity, "files": files}
                (new / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
                for name in (*FILES, "manifest.json", "."):
                    sync(new / name)
                if place.exists():  # it was skipped, or the run would not be here again
                    _drop(place)
                new.rename(place)
                sync(self.folder)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
            # Later ones are broken, or another run's: they are nobody's to count or to remove.
            before = sorted(old for old in self.folder.glob("step-??????") if old.name < place.name)
            for old in before[: 1 - KEEP]:
                _drop(old)
        return place

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole and of this run; warns of every newer one that is not."""
        for place in sorted(self.folder.glob("step-*"), reverse=True):
            reason = self._fault(place)
            if reason is None:
                return place
            warnings.warn(f"checkpoint {place} is skipped: {reason}", stacklevel=3)
        return None

    def load(self, place: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> dict:
        """Put everything back as `save` found it; returns its ``state``."""
        weights = load_file(place / FILES[0])
        with torch.no_grad():
            for name, weight in _trained(policy).items():
                weight.copy_(weights[name])
        state = torch.load(place / FILES[1], map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state.pop("optimizer"))
        set_random_state(state.pop("random"))
        return state

    def _fault(self, place: Path) -> str | None:
        """Why a checkpoint cannot be trusted; None if it can."""
        if place.name.endswith(_WRITING):
            return "the run was stopped while this was written or removed"
        try:
            manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                return f"it has format {manifest['format']!r}, this version reads {FORMAT}"
            if place.name != f"step-{manifest['step']:06d}":
                return f"by its manifest it is of step {manifest['step']}"
            if other := difference(self.identity, manifest["identity"]):
                return f"it is of another run: {other}"
            for name in FILES:
                if not (place / name).is_file():
                    return f"{name} is missing"
                if _size_and_hash(place / name) != manifest["files"][name]:
                    return f"{name} is not as it was written (half-written or changed)"
        except OSError as error:
            return f"it cannot be read ({error.strerror or error})"
        except (ValueError, KeyError, TypeError):
            return "manifest.json is not readable (half-written or changed)"
        return None


def _drop(place: Path) -> None:
    """Remove a checkpoint; its name goes first, so that a crash leaves no half of it under a good name."""
    shutil.rmtree(place.rename(place.with_name(f"{place.name}.old{_WRITING}")), ignore_errors=True)


def random_state() -> dict[str, Any]:
    """Every global random state as plain data: Python's, numpy's, torch's on the CPU and on each GPU."""
    kind, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    numpy = [kind, keys.tolist(), *rest]
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """The opposite of `random_state`; a run that goes on with another number of GPUs leaves theirs alone."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _trained(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in policy.model.named_parameters() if p.requires_grad}


def _save(state: dict, path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's own words for a full disk hide what the file raised
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def _size_and_hash(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
