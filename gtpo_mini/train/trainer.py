"""The training loop, readable from top to bottom: roll out, reward, shape, advantages, loss, step."""

from __future__ import annotations

import functools
import random
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..credit.scoring import score
from ..policy.model import Policy
from ..rollout.engine import RolloutEngine
from ..rollout.protocol import PROTOCOLS, ToolProtocol, load_protocol
from ..rollout.transcript import record_rollouts
from ..sandbox import Sandbox
from ..tasks.task import Task
from ..types import Problem, Trajectory
from .config import TrainConfig
from .interrupt import Interrupts
from .journal import Journal, identify
from .metrics import describe_advantages, describe_rollouts, mean, peak_gib, run_header
from .trackers import Trackers
from .update import TrainingStopped, Update, within_memory

__all__ = ["TrainConfig", "Trainer", "TrainingStopped", "score"]


class Trainer:
    """Trains a policy on a task.

    Args:
        policy, task: what learns, and from what.
        config: how.
        output: folder for ``metrics.jsonl`` (a header, one line a step, a footer) and ``checkpoints``; None writes
            nothing.
        protocol: how turns are written; None takes fenced code.
        sandbox: where code runs; None starts one for the time of `train`.
        header: more facts for the run's header (its arm, say).
        checkpoint_every: steps from one checkpoint to the next; the last step, Ctrl-C and SIGTERM make one too.
            None: no checkpoints.
        resume: go on with the run in ``output``, from its newest checkpoint that is whole and its own, or begin one if
            there is none. On a CPU what follows is to the bit what it would have been without the stop.
        trackers: names that accelerate knows ("tensorboard", "wandb"): where metrics are sent to as well.
        record_rollouts: write each step's rollouts to ``rollouts.jsonl`` in ``output``, for `rollouts_page`.

    Raises:
        ValueError: the output folder already holds a run, and ``resume`` is not set; a tracker that is not installed;
            rollouts to be recorded without a folder.
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
        if record_rollouts and output is None:
            raise ValueError("record_rollouts=True: needs an output folder to write rollouts.jsonl to (--output)")
        self.journal = Journal(output, checkpoint_every, resume)
        self.trackers = Trackers(trackers, self.journal.folder)
        self.transcripts = self.journal.folder / "rollouts.jsonl" if record_rollouts else None
        self.history: list[dict[str, float]] = []
        self.last: tuple[list[Trajectory], list[list[float]], list[list[float]]] = ([], [], [])  #: of the last step
        if self.config.gradient_checkpointing:
            policy.checkpoint_gradients()
        self.optimizer = policy.make_optimizer(self.config.learning_rate)
        if self.config.kl_coefficient:
            policy.keep_reference()  # in the precision that the optimiser asked for
        self._update = Update(policy, self.config, self.optimizer)
        self._interrupts = Interrupts()
        self._settled = True  # the weights are those after the last step in `history`

    def train(self, footer: Callable[[], dict] | None = None) -> list[dict[str, float]]:
        """Run all steps; returns the metrics of each, which are also written as they come.

        Args:
            footer: called at the end; what it returns closes ``metrics.jsonl`` (an evaluation, say).

        Raises:
            ValueError: a prompt that does not fit; an output folder with another run than the one to go on with, or
                where another process is at work.
            TrainingStopped: out of memory, or NaN, with no way on; the message says why.
            KeyboardInterrupt: Ctrl-C or SIGTERM, after the last finished step is saved.
            RuntimeError: the disk is full; the last checkpoint is whole.
        """
        with ExitStack() as held:
            self._run(held)
            end = footer() if footer and not self.journal.finished else {}
            self.journal.close({"steps": len(self.history), **end})
        return self.history

    def _run(self, held: ExitStack) -> None:
        """All steps; what the run keeps from other processes goes to ``held``, until the footer is written too."""
        config, device = self.config, str(self.policy.device)
        header = {**self.header, **run_header(config, self.policy.name, self.task.name, device)}
        with ExitStack() as stack:
            sandbox = self.sandbox or stack.enter_context(Sandbox())
            engine = RolloutEngine(self.policy, self.protocol, sandbox, config.sampling())
            # A prompt that does not fit must show now, not at the step that draws it.
            for problem in {p.id: p for step in range(config.steps) for p in self._problems(step)}.values():
                engine.encode_prompt(problem)
            identity = identify(self.policy, self.task, config, self.protocol)
            held.enter_context(self.journal.alone())
            self.history = self.journal.begin(header, identity, self.policy, self.optimizer, self._update)
            stack.enter_context(self.trackers).start(header["config"])
            self._interrupts = stack.enter_context(Interrupts())
            name, steps, done = f"{config.method} seed {config.seed}", config.steps, len(self.history)
            bar = stack.enter_context(tqdm(range(done, steps), desc=name, unit="step", initial=done, total=steps))
            try:
                for step in bar:
                    metrics = self.step(engine, step)
                    bar.set_postfix(
                        accuracy=f"{metrics['reward/outcome']:.2f}", turns=f"{metrics['rollout/turns']:.1f}"
                    )
                    if self.journal.due(step + 1, steps):
                        self._save()
                    self._interrupts.check()
            except KeyboardInterrupt:
                if self._settled:
                    self._save()
                raise KeyboardInterrupt(
                    f"stopped after {len(self.history)} of {steps} steps; {self.journal.words()}"
                ) from None
            except TrainingStopped as error:
                raise TrainingStopped(f"{error}; {self.journal.words()}") from error

    def step(self, engine: RolloutEngine, step: int) -> dict[str, float]:
        """One step on fresh rollouts; returns its metrics.

        Raises:
            TrainingStopped: as in `train`.
        """
        config, begin = self.config, time.perf_counter()
        with self._interrupts.at_once():
            rollouts = self._roll_out(engine, step)
            rolled_out = time.perf_counter()
            correct = [self.task.grade(rollout.problem, rollout.answer) for rollout in rollouts]
            rewards, advantages = score(config, rollouts, correct)
        scored = time.perf_counter()
        self._settled = False
        update = self._update(rollouts, advantages, step)
        silent = [
            not any(map(any, advantages[i : i + config.group_size])) for i in range(0, len(rollouts), config.group_size)
        ]
        self.last = (rollouts, rewards, advantages)
        if self.transcripts is not None:
            gamma = config.gamma if config.method == "gtpo" else None
            graded = (rollouts, correct, rewards, advantages)
            record_rollouts(self.transcripts, step, *graded, self.policy, config.group_size, gamma)
        metrics = {
            "step": step,
            **describe_rollouts(rollouts, correct),
            "reward/turn_mean": mean([r for rewards_N in rewards for r in rewards_N]),
            **describe_advantages(rollouts, correct, advantages),
            "advantage/mean_abs": mean([abs(a) for advantages_N in advantages for a in advantages_N]),
            "group/silent": mean(silent),
            **update,
            "time/rollout": rolled_out - begin,
            "time/score": scored - rolled_out,
            "time/update": time.perf_counter() - scored,
            "time/step": time.perf_counter() - begin,
            "memory/peak_gib": peak_gib(),
        }
        self._warn(metrics, rollouts)
        self.journal.step(metrics)
        self.history.append(metrics)
        self._settled = True
        self.trackers.log(metrics, step)
        self._update.check(step)
        return metrics

    def _roll_out(self, engine: RolloutEngine, step: int) -> list[Trajectory]:
        """The step's rollouts; out of memory, fewer are decoded at once, for the rest of the run."""

        def fewer_rows() -> None:
            rows = engine.settings.rows
            if rows == 1:
                raise TrainingStopped(
                    "out of GPU memory while one rollout is decoded; use a shorter max_context or max_turn_tokens, a "
                    "4-bit base (quantize nf4) or a smaller model"
                )
            engine.settings = replace(engine.settings, rows=rows // 2)
            warnings.warn(f"out of GPU memory: {rows // 2} rollouts are decoded at once, not {rows}", stacklevel=5)

        def work() -> list[Trajectory]:
            seed = self.config.seed * 10**6 + step
            return engine.generate(self._problems(step), self.config.group_size, seed=seed)

        return within_memory(work, fewer_rows)

    def _save(self) -> None:
        self.journal.save(len(self.history), self.policy, self.optimizer, self._update)

    def _problems(self, step: int) -> list[Problem]:
        """The step's problems: all of them in a fresh order each epoch, fixed by the seed."""
        count, total = self.config.problems_per_step, len(self.task.problems)
        places = [divmod(place, total) for place in range(step * count, (step + 1) * count)]
        orders = {epoch: _order(self.config.seed, epoch, total) for epoch, _ in places}
        return [self.task.problems[orders[epoch][index]] for epoch, index in places]

    def _warn(self, metrics: dict[str, float], rollouts: list[Trajectory]) -> None:
        where = f"step {metrics['step']} of {self.config.method}"
        cut = mean([rollout.stop.truncated for rollout in rollouts])
        if metrics["group/silent"] == 1.0:
            warnings.warn(
                f"{where} teaches nothing: every group's rollouts got the same reward "
                f"(accuracy {metrics['reward/outcome']:.2f}); the problems are too hard or too easy for this policy",
                stacklevel=3,
            )
        if cut > 0.5:
            warnings.warn(
                f"{where}: {cut:.0%} of the rollouts were cut off before they ended; raise max_turn_tokens "
                f"({self.config.max_turn_tokens}) or max_context ({self.config.max_context})",
                stacklevel=3,
            )
        if not self.history and not metrics["rollout/calls"]:
            texts = [turn.text for rollout in rollouts for turn in rollout.turns]
            others = [name for name in PROTOCOLS if any(load_protocol(name).read(text).code for text in texts)]
            hint = f"; its turns hold calls of protocol {others[0]!r}" if others else ""
            warnings.warn(
                f"{where}: none of {len(rollouts)} rollouts called the tool{hint}; likely cause: protocol "
                f"{self.protocol.name!r} is not the one this model was taught (known: {', '.join(PROTOCOLS)}), or the "
                "model needs a cold start (imitate)",
                stacklevel=3,
            )
        # Rounding alone gives 1e-6 in float32, and 0.01 or so where 16 bits flow through the model.
        gap, usual = metrics["loss/sampler_mismatch"], 1e-4 if self.policy.dtype == torch.float32 else 0.1
        if gap > usual:
            warnings.warn(
                f"{where}: the update sees another policy than the one that sampled, by {gap:.2g} nats a token "
                f"(rounding: up to {usual:g}); does the model compute otherwise token by token, or in training?",
                stacklevel=3,
            )


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, total: int) -> list[int]:
    return random.Random(f"{seed}-{epoch}").sample(range(total), total)
