"""What a run keeps on disk, its record and its checkpoints, and how it goes on from them after a crash."""

from __future__ import annotations

import json
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from ..policy.model import Policy
from ..rollout.protocol import ToolProtocol
from ..tasks.task import Task
from .checkpoint import Checkpoints, difference, fingerprint, fingerprint_task
from .config import TrainConfig
from .record import Record, alone
from .update import Update

#: Settings that a run may go on with changed: they touch neither what is drawn nor what is asked for.
MAY_CHANGE = ("steps", "learning_rate", "max_grad_norm", "tokens_per_pass", "gradient_checkpointing")


def identify(policy: Policy, task: Task, config: TrainConfig, protocol: ToolProtocol) -> dict:
    """What makes a run this one and no other: plain data, taken before the first step.

    Args:
        policy: as it begins.
        task, config, protocol: of the run; of config all but `MAY_CHANGE`.
    """
    return {
        "policy": fingerprint(policy),
        "task": fingerprint_task(task),
        "protocol": type(protocol).__name__,
        "config": {name: value for name, value in asdict(config).items() if name not in MAY_CHANGE},
    }


class Journal:
    """The folder of a run.

    Args:
        folder: where all lies; None: nothing is kept.
        every: steps from one checkpoint to the next, at least 1; None: no checkpoints.
        resume: go on with the run in ``folder``, if there is one.

    Raises:
        ValueError: ``every`` below 1; a run in ``folder`` without ``resume``; ``resume`` without a folder.
    """

    def __init__(self, folder: str | Path | None, every: int | None, resume: bool) -> None:
        if every is not None and every < 1:
            raise ValueError(f"checkpoint_every={every}: must be at least 1, or None for no checkpoints")
        if resume and folder is None:
            raise ValueError("--resume (resume=True): needs the output folder of the run that is to go on")
        self.folder, self.every, self.resume = None if folder is None else Path(folder), every, resume
        self.finished = False  #: the run has its footer
        self.saved: Path | None = None  #: the last checkpoint
        if self.folder is None:
            return
        self.record = Record(self.folder)
        if (self.folder / "imitation.json").exists():
            raise ValueError(f"output={str(folder)!r}: holds a cold start; choose another folder")
        if not resume and (self.record.path.exists() or (self.folder / "checkpoints").exists()):
            raise ValueError(
                f"output={str(folder)!r}: holds a run already (metrics.jsonl, checkpoints); go on with it by "
                "--resume (resume=True), or choose another folder"
            )

    def alone(self) -> AbstractContextManager:
        """Keeps other processes from the folder meanwhile; `record.alone` says what it raises."""
        return nullcontext() if self.folder is None else alone(self.folder)

    def begin(
        self, header: dict, identity: dict, policy: Policy, optimizer: torch.optim.Optimizer, update: Update
    ) -> list[dict[str, float]]:
        """Write the header, or put everything back as it was after the last checkpoint.

        Args:
            header: of the run as it is started now.
            identity: from `identify`.
            policy, optimizer, update: as at the beginning of the run; changed in place.

        Returns:
            The metrics of the steps that need not be done again.

        Raises:
            ValueError: the folder holds another run.
        """
        if self.folder is None:
            return []
        header, identity = json.loads(json.dumps([{"kind": "header", **header, "identity": identity}, identity]))
        self.checkpoints = Checkpoints(self.folder / "checkpoints", identity)
        lines = self.record.read()
        if lines and (other := difference(identity, lines[0].get("identity"))):
            raise ValueError(
                f"{self.record.path}: holds another run than the one to go on with: {other}; use the settings it was "
                "begun with, or another output folder"
            )
        steps = [line for n, line in enumerate(lines[1:]) if line.get("kind") == "step" and line.get("step") == n]
        self.saved = self.checkpoints.newest(len(steps)) if self.resume else None
        if not lines:
            self.record.rewrite([header])
            return []
        done, wanted = 0, header["config"]["steps"]
        if self.saved is not None:
            done = int(self.saved.name.removeprefix("step-"))
            if done > wanted:
                raise ValueError(f"steps={wanted}: the run in {self.folder} has {done} already; use at least as many")
            state = self.checkpoints.load(self.saved, policy, optimizer)
            update.tokens_per_pass = min(update.tokens_per_pass, state["tokens_per_pass"])
            for group in optimizer.param_groups:
                group["lr"] = header["config"]["learning_rate"]
        self.finished = done == wanted and lines[-1].get("kind") == "footer"
        if not self.finished:
            self.record.rewrite([self._header(lines[0], header, done), *steps[:done]])
        return [{key: value for key, value in line.items() if key != "kind"} for line in steps[:done]]

    def step(self, metrics: dict[str, float]) -> None:
        """Write a step's metrics."""
        if self.folder is not None:
            self.record.append("step", metrics)

    def close(self, footer: dict) -> None:
        """Write the footer, unless the run has one."""
        if self.folder is not None and not self.finished:
            self.record.append("footer", footer)

    def save(self, done: int, policy: Policy, optimizer: torch.optim.Optimizer, update: Update) -> None:
        """A checkpoint after ``done`` steps, if that is more than none and there is none of them yet."""
        if self.folder is None or self.every is None or not done:
            return
        # Weights whose last update was skipped may be broken: they do not take the place of good ones.
        if update.skipped or (self.saved is not None and self.saved.name == f"step-{done:06d}"):
            return
        self.saved = self.checkpoints.save(done, policy, optimizer, {"tokens_per_pass": update.tokens_per_pass})

    def due(self, done: int, steps: int) -> bool:
        """Is it time for a checkpoint after ``done`` of ``steps`` steps?"""
        return self.every is not None and (done % self.every == 0 or done == steps)

    def words(self) -> str:
        """Where to go on from, for a message."""
        if self.folder is None:
            return "nothing was saved: the run has no output folder"
        if self.saved is None:
            return "there is no checkpoint yet; --resume begins again"
        return f"the last checkpoint is {self.saved}; go on from it with --resume"

    def _header(self, old: dict, new: dict, done: int) -> dict:
        """The first header, with a note of where and how the run went on; and the settings that hold now."""
        was, now = old["config"], new["config"]
        changed = {name: [was.get(name), now[name]] for name in MAY_CHANGE if was.get(name) != now[name]}
        if changed:
            text = ", ".join(f"{name} {a} -> {b}" for name, (a, b) in changed.items())
            warnings.warn(f"{self.folder} goes on with other settings than before: {text}", stacklevel=4)
        note = {key: new[key] for key in ("command", "commit", "versions", "device", "threads") if key in new}
        note |= {"step": done, "changed": changed}
        return {**old, "config": now, "resumed": [*old.get("resumed", []), note]}
