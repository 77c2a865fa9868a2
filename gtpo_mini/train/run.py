"""The context of a run: its folder and lock, its record and checkpoints, signals, and the steps that are left."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..policy.model import Policy
from ..rollout.memory import TrainingStopped
from .checkpoint import Checkpoints, difference
from .metrics import open_trackers
from .record import append_line, clear_disk_errors, locked, read_lines, rewrite_lines
from .update import Update, processes

#: Settings that a run may go on with changed: they touch neither what is drawn nor what is asked for.
MAY_CHANGE = ("steps", "learning_rate", "max_grad_norm", "tokens_per_pass", "gradient_checkpointing")


class Run:
    """One run in one folder (None: nothing is kept), entered for the time of its steps.

    A checkpoint is written after ``every`` steps; None: none, and no policy at the end. ``resume`` goes on with the run
    in the folder, if there is one; ``trackers``, by the names that accelerate knows, get the metrics as well. Of
    several processes only the first writes.

    >>> with Run(folder=None) as run:
    ...     for step in run.remaining(2):
    ...         with run.sampling():  # Ctrl-C acts at once; elsewhere it waits until the step is whole
    ...             pass
    ...         _ = run.log({"step": step, "reward/outcome": 0.5, "rollout/turns": 2.0})
    >>> len(run.history)
    2
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        every: int | None = 10,
        resume: bool = False,
        trackers: Sequence[str] = (),
    ) -> None:
        if every is not None and every < 1:
            raise ValueError(f"checkpoint_every={every}: must be at least 1, or None for no checkpoints")
        if resume and folder is None:
            raise ValueError("--resume (resume=True): needs the output folder of the run that is to go on")
        self.folder, self.every = None if folder is None else Path(folder), every
        self.name = "run"
        self.history: list[dict[str, Any]] = []  #: metrics of each step that is done
        self.finished = False  #: the run has its footer
        self.saved: Path | None = None  #: the last checkpoint
        self._learner: tuple[Policy, torch.optim.Optimizer, Update] | None = None
        self._steps = 0
        self._settled = True  # the weights are those after the last step in `history`
        self._interrupts, self._waiting = 0, True  # signals so far; whether they wait for the end of the step
        self._handlers, self._held = contextlib.ExitStack(), contextlib.ExitStack()
        self.writes = processes()[0] == 0  #: nothing is written by other processes than the first
        self.trackers = open_trackers(trackers if self.writes else (), self.folder)
        if self.folder is None:
            return
        self.record = self.folder / "metrics.jsonl"
        again = "go on with it by --resume (resume=True), or choose another folder"
        begun = self.record.exists() or (self.folder / "checkpoints").exists()
        for holds, fault in (
            (self.folder.exists() and not self.folder.is_dir(), "is a file; name a folder"),
            ((self.folder / "imitation.json").exists(), "holds a cold start; choose another folder"),
            (begun and not resume, f"holds a run already; {again}"),
        ):
            if holds:
                raise ValueError(f"output={str(folder)!r}: {fault}")

    def __enter__(self) -> Run:
        """Lock the folder, or raise a ValueError if another process is at work there."""
        if self.folder is not None and self.writes:
            self._held.enter_context(locked(self.folder))
        return self

    def begin(
        self, header: dict, identity: dict, policy: Policy, optimizer: torch.optim.Optimizer, update: Update
    ) -> None:
        """Write the header, or put policy, optimizer and update back as they were after the run's last checkpoint."""
        for tracker in self.trackers:
            tracker.start()
            self._held.callback(tracker.finish)
            tracker.store_init_configuration(header["config"])
        if self.folder is None:
            return
        _wait_for_all()  # all have seen the folder as it was
        self._learner = (policy, optimizer, update)
        header, identity = json.loads(json.dumps([{"kind": "header", **header, "identity": identity}, identity]))
        self.checkpoints = Checkpoints(self.folder / "checkpoints", identity)
        lines, damaged = read_lines(self.record) if self.record.exists() else ([], [])
        if len(lines) == 1 and not damaged and not any(self.checkpoints.folder.glob("step-*")):
            lines = []  # it failed in its first step: nothing that other settings would spoil
        first = lines[0] if lines else header
        if other := difference(identity, first.get("identity")):
            fix = "use the settings it was begun with, or another output folder"
            raise ValueError(f"{self.record}: holds another run than the one to go on with: {other}; {fix}")
        done, wanted = 0, header["config"]["steps"]
        self.saved = self.checkpoints.newest()
        if self.saved is not None:
            done = int(self.saved.name.removeprefix("step-"))
            if done > wanted:
                raise ValueError(f"steps={wanted}: the run in {self.folder} has {done} already; use at least as many")
            state = self.checkpoints.load(self.saved, policy, optimizer)
            if self.writes:
                tqdm.write(f"going on from {self.saved}, with step {done + 1} of {wanted}")
            self.history = state["history"]
            update.tokens_per_pass = min(update.tokens_per_pass, state["tokens_per_pass"])
            for group in optimizer.param_groups:
                group["lr"] = header["config"]["learning_rate"]
        if damaged:
            where = f"{self.record}: line {', '.join(map(str, damaged))}"
            warnings.warn(f"{where} is damaged; steps come from the checkpoint", stacklevel=3)
        self.finished = done == wanted and bool(lines) and lines[-1].get("kind") == "footer"
        _wait_for_all()  # all have read it
        if not self.finished and self.writes:
            steps = [{"kind": "step", **metrics} for metrics in self.history]
            rewrite_lines(self.record, [self._resumed(first, header, done) if lines or done else header, *steps])

    def remaining(self, steps: int) -> Iterator[int]:
        """The steps that are left, with a bar; between two of them, checkpoints are written and signals heard."""
        self._steps, done = steps, len(self.history)
        if threading.current_thread() is threading.main_thread():  # Python takes signals in no other
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers.callback(signal.signal, number, signal.signal(number, self._interrupt))
        look = {"desc": self.name, "unit": "step", "initial": done, "total": steps}
        look |= {} if self.writes else {"disable": True}
        for step in (bar := tqdm(range(done, steps), **look)):
            yield step
            last = self.history[-1]
            bar.set_postfix(accuracy=f"{last['reward/outcome']:.2f}", turns=f"{last['rollout/turns']:.1f}")
            if self.every and (len(self.history) % self.every == 0 or len(self.history) == steps):
                self._save()
            self._hear()
        self._handlers.close()

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """The part of a step that changes nothing yet: a signal ends it at once. After it, the step must be logged."""
        self._hear()
        self._waiting = False
        try:
            yield
        finally:
            self._waiting = True
        self._settled = False

    def log(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Keep a step's metrics, which closes the step; returns them."""
        if self.folder is not None and self.writes:
            append_line(self.record, "step", metrics)
        self.history.append(metrics)
        self._settled = True
        for tracker in self.trackers:
            tracker.log(metrics, step=metrics["step"])
        return metrics

    def close(self, policy: Policy, footer: dict) -> None:
        """After the last step: the policy, then the footer, unless the run has one."""
        if self.folder is None or not self.writes:
            return
        if self.every is not None:
            new, place = self.folder / "policy.writing", self.folder / "policy"
            with clear_disk_errors(place):
                shutil.rmtree(new, ignore_errors=True)
                policy.save(new)
                shutil.rmtree(place, ignore_errors=True)
                new.replace(place)  # all of it or nothing
        if not self.finished:
            append_line(self.record, "footer", footer)
            self.finished = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Save what is whole, and say where to go on from."""
        self._handlers.close()
        with self._held:
            if isinstance(error, KeyboardInterrupt | ValueError) and self._settled:
                self._save()
            if self._learner is None and self.folder is not None:
                return  # it had not begun
            where = "nothing was saved: the run has no output folder"
            if self.folder is not None:
                where = "there is no checkpoint yet; --resume begins again"
            if self.saved is not None:
                where = f"the last checkpoint is {self.saved}; go on from it with --resume"
            if isinstance(error, KeyboardInterrupt) and self._steps:
                done = f"stopped after {len(self.history)} of {self._steps} steps"
                raise KeyboardInterrupt(f"{done}; {where}") from None
            if isinstance(error, TrainingStopped) or (isinstance(error, ValueError) and self.history):
                kind = TrainingStopped if isinstance(error, TrainingStopped) else ValueError
                raise kind(f"{error}; {where}") from error

    def _save(self) -> None:
        """A checkpoint after the steps that are done, if that is more than none and there is none of them yet."""
        done = len(self.history)
        if self._learner is None or self.every is None or not done or not self.writes:
            return
        policy, optimizer, update = self._learner
        # Weights whose last update was skipped may be broken: they do not take the place of good ones.
        if update.skipped or (self.saved is not None and self.saved.name == f"step-{done:06d}"):
            return
        state = {"tokens_per_pass": update.tokens_per_pass, "history": self.history}
        self.saved = self.checkpoints.save(done, policy, optimizer, state)

    def _resumed(self, old: dict, new: dict, done: int) -> dict:
        """The first header, with a note of where and how the run went on; and the settings that hold now."""
        was, now = old["config"], new["config"]
        changed = {name: [was.get(name), now[name]] for name in MAY_CHANGE if was.get(name) != now[name]}
        if changed.keys() - {"steps"}:  # more steps alone are told where the run goes on
            text = ", ".join(f"{name} {a} -> {b}" for name, (a, b) in changed.items())
            warnings.warn(f"{self.folder} goes on with other settings than before: {text}", stacklevel=4)
        note = {key: new[key] for key in ("command", "commit", "versions", "device", "threads") if key in new}
        note |= {"step": done, "changed": changed}
        return {**old, "config": now, "resumed": [*old.get("resumed", []), note]}

    def _interrupt(self, number: int, frame: object) -> None:
        """Ctrl-C and SIGTERM are held back until a step is whole; a second one does not wait."""
        self._interrupts += 1
        if not self._waiting or self._interrupts > 1:
            raise KeyboardInterrupt

    def _hear(self) -> None:
        if self._interrupts:
            raise KeyboardInterrupt


def _wait_for_all() -> None:
    """Until every process is here."""
    if processes()[1] > 1:
        torch.distributed.barrier()
