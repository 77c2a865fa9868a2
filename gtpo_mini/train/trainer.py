"""The training loop, readable from top to bottom: roll out, grade, assign credit, update."""

from __future__ import annotations

import functools
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ..credit.advantages import turn_returns
from ..credit.arms import assign_credit, credit_name
from ..credit.credit import Credit
from ..credit.similarity import load_similarity
from ..policy.model import Policy
from ..rollout.engine import RolloutEngine
from ..rollout.protocol import PROTOCOLS, ToolProtocol, load_protocol
from ..rollout.transcript import record_rollouts
from ..sandbox import Sandbox
from ..tasks.task import Task
from ..types import Problem, Trajectory
from .checkpoint import identify
from .config import TrainConfig
from .metrics import describe_step, peak_gib, run_header
from .run import MAY_CHANGE, Run
from .update import Update, processes

_PARTS = ("rollout", "score", "update")  # of a step, whose times are told


class Trainer:
    """Trains a policy on a task.

    Under ``accelerate launch`` or ``torchrun`` each process rolls its share of a step's problems out and computes the
    gradient of its own rollouts; credit is assigned to all of them in each, so that the result is that of one process.

    Args:
        policy, task, config: what learns, from what, and how.
        output: folder for ``metrics.jsonl``, ``checkpoints`` and, at the end, ``policy``; None writes nothing.
        protocol, sandbox: how turns are written (None: fenced code), and where code runs (None: starts one).
        header: more facts for the run's header (its arm, say).
        checkpoint_every: steps from one checkpoint to the next; the last step, Ctrl-C and SIGTERM make one too.
            None: no checkpoints, and no policy at the end.
        resume: go on with the run in ``output``, from its newest checkpoint that is whole and its own, or begin one if
            there is none. On a CPU what follows is to the bit what it would have been without the stop.
        trackers: names that accelerate knows ("tensorboard", "wandb"): where metrics are sent to as well.
        record_rollouts: write each step's rollouts to ``rollouts.jsonl`` in ``output``, for `rollouts_page`.

    Raises ValueError where ``output`` holds a run and ``resume`` is not set, or is needed and not given; or for a
    tracker that is not installed.
    """

    def __init__(
        self,
        policy: Policy,
        task: Task,
        config: TrainConfig | None = None,
        output: str | Path | None = None,
        protocol: ToolProtocol | None = None,
        sandbox: Sandbox | None = None,
        header: dict | None = None,
        checkpoint_every: int | None = 10,
        resume: bool = False,
        trackers: Sequence[str] = (),
        record_rollouts: bool = False,
    ) -> None:
        self.policy, self.task, self.config = policy, task, config or TrainConfig()
        self.protocol, self.sandbox, self.header = protocol or load_protocol(), sandbox, header or {}
        if "LOCAL_RANK" in os.environ:
            PartialState(cpu=policy.device.type == "cpu")  # makes the group of processes
        if self.config.problems_per_step % processes()[1]:
            text = f"problems_per_step={self.config.problems_per_step}: must be a multiple of the processes"
            raise ValueError(f"{text} ({processes()[1]})")
        if record_rollouts and output is None:
            raise ValueError("record_rollouts=True: needs an output folder to write rollouts.jsonl to (--output)")
        self.run = Run(output, checkpoint_every, resume, trackers)
        self.run.name = f"{self.header.get('arm', credit_name(self.config.credit))} seed {self.config.seed}"
        self.transcripts = self.run.folder / "rollouts.jsonl" if record_rollouts else None
        self.last: tuple[list[Trajectory], list[list[float]], list[list[float]]] = ([], [], [])  #: of the last step
        if isinstance(self.config.credit, Credit):
            load_similarity(self.config.credit.similarity)  # packages that it lacks must show now
        if self.config.gradient_checkpointing:
            policy.checkpoint_gradients()
        self.optimizer = policy.make_optimizer(self.config.learning_rate)
        if self.config.kl_coefficient:
            policy.keep_reference()  # in the precision that the optimiser asked for
        self.update = Update(policy, self.config, self.optimizer)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The metrics of each step that is done."""
        return self.run.history

    def train(
        self, footer: Callable[[], dict] | None = None, after_step: Callable[[int], object] | None = None
    ) -> list[dict[str, Any]]:
        """Run all steps; returns the metrics of each, which are also written as they come.

        ``after_step`` is called after each step, with the number of steps done (to evaluate on the way, say). What
        ``footer`` returns, called at the end, closes ``metrics.jsonl``.

        Raises:
            ValueError: a prompt that does not fit; a grader or credit that fails; another run or process in ``output``.
            TrainingStopped: out of memory, or NaN, with no way on; the message says why.
            KeyboardInterrupt: Ctrl-C or SIGTERM, after the last finished step is saved.
            RuntimeError: the disk is full; the last checkpoint is whole.
        """
        config = self.config
        with ExitStack() as stack:
            sandbox = self.sandbox or stack.enter_context(Sandbox())
            engine = RolloutEngine(self.policy, self.protocol, sandbox, config.sampling())
            # A prompt that does not fit must show now, not at the step that draws it.
            for problem in {p.id: p for step in range(config.steps) for p in self.problems(step)}.values():
                engine.encode_prompt(problem)
            settings = {name: value for name, value in config.record().items() if name not in MAY_CHANGE}
            identity = identify(self.policy, self.task, self.protocol, settings)
            header = {**self.header, **run_header(config, self.policy.name, self.task.name, str(self.policy.device))}
            run = stack.enter_context(self.run)
            run.begin(header, identity, self.policy, self.optimizer, self.update)
            for step in run.remaining(config.steps):
                self.step(engine, step)
                if after_step is not None:
                    after_step(len(run.history))
            end = footer() if footer and not run.finished else {}
            run.close(self.policy, {"steps": len(run.history), **end})
        return run.history

    def step(self, engine: RolloutEngine, step: int) -> dict[str, Any]:
        """One step on fresh rollouts; returns its metrics, and raises as `train` does."""
        config, clock = self.config, [time.perf_counter()]
        rank, count = processes()
        share = config.problems_per_step // count
        first = rank * share * config.group_size  # number of this process's first rollout
        with self.run.sampling():
            seed = config.seed * 10**6 + step
            problems = self.problems(step)[rank * share : (rank + 1) * share]
            mine = engine.generate(problems, config.group_size, seed, task=self.task, first=first)
            clock.append(time.perf_counter())
            graded = [(rollout, self.task.grade(rollout.problem, rollout.answer)) for rollout in mine]
            rollouts, correct = map(list, zip(*(graded if count == 1 else gather_object(graded)), strict=True))
            rewards, advantages = assign_credit(config.credit, rollouts, correct, config.group_size)
            clock.append(time.perf_counter())
        found = self.update(rollouts, advantages, step, range(first, first + len(mine)))
        clock.append(time.perf_counter())
        self.last = (rollouts, rewards, advantages)
        if self.transcripts is not None and self.run.writes:
            discounted = isinstance(config.credit, Credit) and config.credit.returns
            returns = [turn_returns(row, config.credit.gamma) for row in rewards] if discounted else None
            earned = (correct, rewards, advantages, returns)
            record_rollouts(self.transcripts, step, rollouts, *earned, self.policy, config.group_size)
        told = describe_step(rollouts, correct, rewards, advantages, config.group_size)
        times = {f"time/{part}": b - a for part, (a, b) in zip(_PARTS, pairwise(clock), strict=True)}
        times |= {"time/step": clock[-1] - clock[0], "memory/peak_gib": peak_gib()}
        metrics = {"step": step, **told, **found, **times}
        for text in self._doubts(metrics, rollouts):
            warnings.warn(f"step {step + 1} of {credit_name(config.credit)}: {text}", stacklevel=2)
        self.run.log(metrics)
        self.update.check(step)
        return metrics

    def problems(self, step: int) -> list[Problem]:
        """The problems of a step: all of the task's in a fresh order each epoch, fixed by the seed."""
        count, total = self.config.problems_per_step, len(self.task.problems)
        places = [divmod(place, total) for place in range(step * count, (step + 1) * count)]
        return [self.task.problems[_order(self.config.seed, epoch, total)[index]] for epoch, index in places]

    def _doubts(self, metrics: dict[str, Any], rollouts: Sequence[Trajectory]) -> Iterator[str]:
        """What makes a run worthless in silence."""
        config, first = self.config, self.history[0] if self.history else metrics
        fell = metrics["reward/outcome"] < first["reward/outcome"] / 2
        if fell and metrics["rollout/truncated"] > first["rollout/truncated"] + 0.3:
            fall = f"accuracy fell from {first['reward/outcome']:.2f} to {metrics['reward/outcome']:.2f}"
            yield f"{fall} and rollouts no longer end; lower learning_rate ({config.learning_rate:g})"
            return
        if metrics["group/silent"] == 1.0:
            accuracy = f"{metrics['reward/outcome']:.2f}; the problems are too hard or too easy for this policy"
            yield f"teaches nothing: every group's rollouts got the same reward (accuracy {accuracy})"
        if metrics["rollout/truncated"] > 0.5:
            limits = f"max_turn_tokens ({config.max_turn_tokens}) or max_context ({config.max_context})"
            yield f"{metrics['rollout/truncated']:.0%} of the rollouts were cut off before they ended; raise {limits}"
        if not self.history and not metrics["rollout/calls"]:
            texts = [turn.text for rollout in rollouts for turn in rollout.turns]
            others = [name for name in PROTOCOLS if any(load_protocol(name).read(text).code for text in texts)]
            hint = f"; its turns hold calls of protocol {others[0]!r}" if others else ""
            cause = (
                f"protocol {self.protocol.name!r} is not the one this model was taught (known: {', '.join(PROTOCOLS)})"
            )
            yield (
                f"none of {len(rollouts)} rollouts called the tool{hint}; likely cause: {cause}, or the model needs a "
                "cold start (imitate)"
            )
        # Rounding alone gives 1e-6 in float32, and 0.01 or so where 16 bits flow through the model.
        gap, usual = metrics["loss/sampler_mismatch"], 1e-4 if self.policy.dtype == torch.float32 else 0.1
        if gap > usual:
            far = f"{gap:.2g} nats a token (rounding: up to {usual:g})"
            yield f"the update sees another policy than the one that sampled, by {far}; does it compute otherwise?"


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, total: int) -> list[int]:
    return random.Random(f"{seed}-{epoch}").sample(range(total), total)
