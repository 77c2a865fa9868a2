"""The training loop, readable from top to bottom: roll out, reward, shape, advantages, loss, step."""

from __future__ import annotations

import json
import platform
import random
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .advantages import NORMALIZE, grpo_advantages, gtpo_advantages
from .loss import clipped_surrogate, token_logprobs
from .policy import Policy
from .protocol import ToolProtocol, load_protocol
from .rewards import trajectory_reward, turn_rewards
from .rollout import RolloutEngine, SamplingSettings
from .sandbox import Sandbox
from .shaping import load_similarity, shape_outcomes
from .tasks import Task
from .types import StopReason, Trajectory

METHODS = ("gtpo", "grpo")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run, but for the policy and the task.

    ``method="grpo"`` is the paper's baseline: one reward a rollout, min(accuracy, format), normalised in the
    group. ``method="gtpo"`` is all three parts: turn rewards, discounted returns as advantages, shaped outcomes.
    """

    method: str = "gtpo"  #: "gtpo" or "grpo"
    gamma: float = 0.9  #: discount a turn, in [0, 1] (gtpo)
    normalize: str = "group"  #: what returns are normalised over: group, batch, turn or first (gtpo)
    alpha: float = 0.5  #: size of the partial credit, in [0, 1]; 0 switches shaping off (gtpo)
    similarity: str = "ngram"  #: how codes are compared for it (gtpo)
    format_penalty: float = 0.1  #: taken from a turn with an invalid call, at least 0 (gtpo)
    steps: int = 60
    problems_per_step: int = 8
    group_size: int = 8
    learning_rate: float = 1e-4
    minibatches: int = 1  #: optimiser steps that share one batch of rollouts
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_coefficient: float = 0.0  #: 0: no reference policy is kept
    max_grad_norm: float = 1.0
    tokens_per_pass: int = 16384  #: padded tokens of one forward and backward pass, at most
    temperature: float = 1.0
    max_turns: int = 6
    max_turn_tokens: int = 256
    max_context: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        def check(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be {rule}")

        check(self.method in METHODS, "method", f"one of {', '.join(METHODS)}")
        check(self.normalize in NORMALIZE, "normalize", f"one of {', '.join(NORMALIZE)}")
        check(self.group_size >= 2, "group_size", "at least 2: a group of one has nothing to be compared with")
        for name in ("gamma", "alpha"):
            check(0 <= getattr(self, name) <= 1, name, "in [0, 1]")
        for name in ("format_penalty", "kl_coefficient", "clip_low", "clip_high"):
            check(0 <= getattr(self, name) < float("inf"), name, "a number from 0 up")
        for name in ("steps", "problems_per_step", "minibatches", "tokens_per_pass"):
            check(getattr(self, name) >= 1, name, "at least 1")
        for name in ("learning_rate", "temperature", "max_grad_norm"):
            check(0 < getattr(self, name) < float("inf"), name, "above 0")
        load_similarity(self.similarity)
        self.sampling()

    def sampling(self) -> SamplingSettings:
        """The rollout's part of the configuration."""
        rows = min(64, self.problems_per_step * self.group_size)
        return SamplingSettings(self.temperature, self.max_turns, self.max_turn_tokens, self.max_context, rows)


class Trainer:
    """Trains a policy on a task.

    Args:
        policy, task: what learns, and from what.
        config: how.
        output: folder for ``metrics.jsonl`` (a header, one line a step, a footer); None writes nothing.
        protocol: how turns are written; None takes fenced code.
        sandbox: where code runs; None starts one for the time of `train`.
        progress: called after each step with its metrics.

    Raises:
        ValueError: the output folder already holds a run.
    """

    def __init__(
        self,
        policy: Policy,
        task: Task,
        config: TrainConfig | None = None,
        output: str | Path | None = None,
        protocol: ToolProtocol | None = None,
        sandbox: Sandbox | None = None,
        progress: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self.policy, self.task, self.config = policy, task, config or TrainConfig()
        self.protocol, self.sandbox, self.progress = protocol or load_protocol(), sandbox, progress
        self.path = Path(output) / "metrics.jsonl" if output is not None else None
        if self.path is not None and self.path.exists():
            raise ValueError(f"output={str(output)!r}: holds a run already (metrics.jsonl); choose another folder")
        self.history: list[dict[str, float]] = []
        self.last_rollouts: list[Trajectory] = []
        self._silent_steps = 0
        if self.config.kl_coefficient:
            policy.keep_reference()
        self.optimizer = torch.optim.AdamW(
            policy.trainable_parameters(), lr=self.config.learning_rate, weight_decay=0.0
        )

    def train(self, footer: Callable[[], dict] | None = None) -> list[dict[str, float]]:
        """Run all steps; returns the metrics of each, which are also written as they come.

        Args:
            footer: called at the end; what it returns closes ``metrics.jsonl`` (an evaluation, say).
        """
        self._write({"kind": "header", **run_header(self.config, self.policy, self.task)})
        own = self.sandbox is None
        sandbox = Sandbox().__enter__() if own else self.sandbox
        try:
            engine = RolloutEngine(self.policy, self.protocol, sandbox, self.config.sampling())
            bar = tqdm(range(self.config.steps), desc=f"{self.config.method} seed {self.config.seed}", unit="step")
            for step in bar:
                metrics = self.step(engine, step)
                bar.set_postfix(accuracy=f"{metrics['reward/outcome']:.2f}", turns=f"{metrics['rollout/turns']:.1f}")
        finally:
            if own:
                sandbox.__exit__(None, None, None)
        self._write({"kind": "footer", "steps": len(self.history), **(footer() if footer else {})})
        return self.history

    def step(self, engine: RolloutEngine, step: int) -> dict[str, float]:
        """One step on fresh rollouts: the whole method in six lines, and its metrics."""
        begin = time.perf_counter()
        rollouts = engine.generate(self._problems(step), self.config.group_size, seed=self.config.seed * 10**6 + step)
        rolled_out = time.perf_counter()
        correct = [self.task.grade(rollout.problem, rollout.answer) for rollout in rollouts]
        groups = [i // self.config.group_size for i in range(len(rollouts))]
        rewards, advantages = turn_advantages(self.config, rollouts, correct, groups)
        rewarded = time.perf_counter()
        update = self._update(rollouts, advantages)
        self.last_rollouts = rollouts
        metrics = {
            "step": step,
            **describe_rollouts(rollouts, correct),
            "reward/turn_mean": _mean([r for rewards_N in rewards for r in rewards_N]),
            "advantage/mean_abs": _mean([abs(a) for advantages_N in advantages for a in advantages_N]),
            "group/constant": _constant_groups(advantages, groups),
            **update,
            "time/rollout": rolled_out - begin,
            "time/rewards": rewarded - rolled_out,
            "time/update": time.perf_counter() - rewarded,
            "time/step": time.perf_counter() - begin,
            "memory/peak_gib": _peak_gib(),
        }
        self._warn_if_silent(metrics)
        self.history.append(metrics)
        self._write({"kind": "step", **metrics})
        if self.progress:
            self.progress(metrics)
        return metrics

    def _problems(self, step: int) -> list:
        """The step's problems: a fresh order of all of them each epoch, fixed by the seed."""
        chosen, total = [], len(self.task.problems)
        for place in range(step * self.config.problems_per_step, (step + 1) * self.config.problems_per_step):
            epoch, index = divmod(place, total)
            order = random.Random(f"{self.config.seed}-{epoch}").sample(range(total), total)
            chosen.append(self.task.problems[order[index]])
        return chosen

    def _update(self, rollouts: Sequence[Trajectory], advantages: Sequence[Sequence[float]]) -> dict[str, float]:
        """Optimiser steps on one batch. The loss is a mean over the policy tokens of the (mini)batch."""
        config, sums = self.config, dict.fromkeys(("loss/policy", "loss/kl", "loss/clip_fraction"), 0.0)
        sums |= {"loss/sampler_mismatch": 0.0, "loss/entropy": 0.0}
        norms, all_tokens = [], sum(sum(r.loss_mask) for r in rollouts)
        order = random.Random(f"{config.seed}-{len(self.history)}-minibatches").sample(
            range(len(rollouts)), len(rollouts)
        )
        for part in range(config.minibatches):
            members = order[part :: config.minibatches]
            tokens = sum(sum(rollouts[i].loss_mask) for i in members)
            self.optimizer.zero_grad()
            for batch in self._passes(rollouts, members):
                logprobs = token_logprobs(self.policy, [rollouts[i] for i in batch], config.temperature)  # (M,)
                old, advantage = _per_token([rollouts[i] for i in batch], [advantages[i] for i in batch])  # (M,), (M,)
                old, advantage = old.to(logprobs.device), advantage.to(logprobs.device)
                loss, clipped = clipped_surrogate(logprobs, old, advantage, config.clip_low, config.clip_high)  # (M,)
                total = loss.sum()
                if config.kl_coefficient:
                    with torch.no_grad(), self.policy.as_reference() as reference:
                        base = token_logprobs(reference, [rollouts[i] for i in batch], config.temperature)  # (M,)
                    kl = (base - logprobs).exp() - (base - logprobs) - 1  # (M,): the k3 estimate, never negative
                    total = total + config.kl_coefficient * kl.sum()
                    sums["loss/kl"] += kl.sum().item() / all_tokens
                if total.requires_grad:
                    (total / tokens).backward()
                sums["loss/policy"] += loss.sum().item() / all_tokens
                sums["loss/clip_fraction"] += clipped.sum().item() / all_tokens
                sums["loss/sampler_mismatch"] += (logprobs - old).abs().sum().item() / all_tokens
                sums["loss/entropy"] -= logprobs.sum().item() / all_tokens
            norms.append(
                torch.nn.utils.clip_grad_norm_(self.policy.trainable_parameters(), config.max_grad_norm).item()
            )
            self.optimizer.step()
        return {**sums, "grad/norm": _mean(norms)}
