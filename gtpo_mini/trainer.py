"""The training loop, readable from top to bottom: roll out, reward, shape, advantages, loss, step."""

from __future__ import annotations

import functools
import json
import random
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .advantages import grpo_advantages, gtpo_advantages
from .config import TrainConfig
from .loss import clipped_surrogate, importance_weights, token_logprobs
from .metrics import describe_rollouts, mean, peak_gib, run_header
from .packing import passes, per_token
from .policy import Policy
from .protocol import ToolProtocol, load_protocol
from .rewards import trajectory_reward, turn_rewards
from .rollout import RolloutEngine
from .sandbox import Sandbox
from .shaping import load_similarity, shape_outcomes
from .tasks import Task
from .transcript import record_rollouts
from .types import Problem, Trajectory

__all__ = ["TrainConfig", "Trainer", "score"]


def score(
    config: TrainConfig, rollouts: Sequence[Trajectory], correct: Sequence[bool]
) -> tuple[list[list[float]], list[list[float]]]:
    """From graded rollouts to rewards and advantages: the whole method.

    Args:
        config: method, gamma, normalize, alpha, similarity, format_penalty and group_size count.
        rollouts: whole groups of ``group_size``, one after the other.
        correct: whether each final answer is right.

    Returns:
        (rewards, advantages), each one list a rollout and one number a turn. Under GRPO the rollout's reward
        stands at its last turn, and every turn has the rollout's advantage.
    """
    size = config.group_size
    groups = [i // size for i in range(len(rollouts))]
    if config.method == "grpo":
        rewards = [trajectory_reward(rollout, float(right)) for rollout, right in zip(rollouts, correct, strict=True)]
        advantages = grpo_advantages(rewards, groups)
        turns = [len(rollout.turns) for rollout in rollouts]
        return (
            [[0.0] * (n - 1) + [reward] for n, reward in zip(turns, rewards, strict=True)],
            [[advantage] * n for n, advantage in zip(turns, advantages, strict=True)],
        )
    similarity = load_similarity(config.similarity)
    outcomes: list[float] = []
    for start in range(0, len(rollouts), size):
        codes = [rollout.code for rollout in rollouts[start : start + size]]
        outcomes += shape_outcomes(codes, correct[start : start + size], similarity, config.alpha)
    rewards = [turn_rewards(r, outcome, config.format_penalty) for r, outcome in zip(rollouts, outcomes, strict=True)]
    return rewards, gtpo_advantages(rewards, config.gamma, config.normalize, groups)


class Trainer:
    """Trains a policy on a task.

    Args:
        policy, task: what learns, and from what.
        config: how.
        output: folder for ``metrics.jsonl`` (a header, one line a step, a footer); None writes nothing.
        protocol: how turns are written; None takes fenced code.
        sandbox: where code runs; None starts one for the time of `train`.
        header: more facts for the run's header (its arm, say).
        record_rollouts: write each step's rollouts to ``rollouts.jsonl`` in ``output``, for `rollouts_page`.

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
        header: dict | None = None,
        record_rollouts: bool = False,
    ) -> None:
        self.policy, self.task, self.config = policy, task, config or TrainConfig()
        self.protocol, self.sandbox, self.header = protocol or load_protocol(), sandbox, header or {}
        self.path = Path(output) / "metrics.jsonl" if output is not None else None
        self.transcripts = self.path.with_name("rollouts.jsonl") if record_rollouts and self.path else None
        if self.path is not None and self.path.exists():
            raise ValueError(f"output={str(output)!r}: holds a run already (metrics.jsonl); choose another folder")
        self.history: list[dict[str, float]] = []
        self.last: tuple[list[Trajectory], list[list[float]], list[list[float]]] = ([], [], [])  #: of the last step
        if self.config.kl_coefficient:
            policy.keep_reference()
        if self.config.gradient_checkpointing:
            policy.checkpoint_gradients()
        self.optimizer = torch.optim.AdamW(
            policy.trainable_parameters(), lr=self.config.learning_rate, weight_decay=0.0
        )

    def train(self, footer: Callable[[], dict] | None = None) -> list[dict[str, float]]:
        """Run all steps; returns the metrics of each, which are also written as they come.

        Args:
            footer: called at the end; what it returns closes ``metrics.jsonl`` (an evaluation, say).
        """
        config, device = self.config, str(self.policy.device)
        header = {**self.header, **run_header(config, self.policy.name, self.task.name, device)}
        with ExitStack() as stack:
            sandbox = self.sandbox or stack.enter_context(Sandbox())
            engine = RolloutEngine(self.policy, self.protocol, sandbox, config.sampling())
            # A prompt that does not fit must show now, not at the step that draws it.
            for problem in {p.id: p for step in range(config.steps) for p in self._problems(step)}.values():
                engine.encode_prompt(problem)
            self._write("header", header)
            bar = tqdm(range(config.steps), desc=f"{config.method} seed {config.seed}", unit="step")
            for step in bar:
                metrics = self.step(engine, step)
                bar.set_postfix(accuracy=f"{metrics['reward/outcome']:.2f}", turns=f"{metrics['rollout/turns']:.1f}")
        self._write("footer", {"steps": len(self.history), **(footer() if footer else {})})
        return self.history

    def step(self, engine: RolloutEngine, step: int) -> dict[str, float]:
        """One step on fresh rollouts; returns its metrics."""
        config, begin = self.config, time.perf_counter()
        rollouts = engine.generate(self._problems(step), config.group_size, seed=config.seed * 10**6 + step)
        rolled_out = time.perf_counter()
        correct = [self.task.grade(rollout.problem, rollout.answer) for rollout in rollouts]
        rewards, advantages = score(config, rollouts, correct)
        scored = time.perf_counter()
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
            "advantage/mean_abs": mean([abs(a) for advantages_N in advantages for a in advantages_N]),
            "group/silent": mean(silent),
            **update,
            "time/rollout": rolled_out - begin,
            "time/score": scored - rolled_out,
            "time/update": time.perf_counter() - scored,
            "time/step": time.perf_counter() - begin,
            "memory/peak_gib": peak_gib(),
        }
        self._warn_if_nothing_is_taught(metrics, rollouts)
        self.history.append(metrics)
        self._write("step", metrics)
        return metrics

    def _problems(self, step: int) -> list[Problem]:
        """The step's problems: all of them in a fresh order each epoch, fixed by the seed."""
        count, total = self.config.problems_per_step, len(self.task.problems)
        places = [divmod(place, total) for place in range(step * count, (step + 1) * count)]
        orders = {epoch: _order(self.config.seed, epoch, total) for epoch, _ in places}
        return [self.task.problems[orders[epoch][index]] for epoch, index in places]

    def _update(self, rollouts: list[Trajectory], advantages: list[list[float]], step: int) -> dict[str, float]:
        """Optimiser steps on one batch; the loss is a mean over the policy tokens of each (mini)batch."""
        config = self.config
        keys = ("loss/policy", "loss/kl", "loss/clip_fraction", "loss/sampler_mismatch", "policy/entropy")
        sums, norms, read = dict.fromkeys(keys, 0.0), [], 0
        order = list(range(len(rollouts)))
        if config.minibatches > 1:
            random.Random(f"{config.seed}-{step}-minibatches").shuffle(order)
        self.policy.model.train()
        before = self._before_update(rollouts, order) if config.minibatches > 1 else {}
        for part in range(config.minibatches):
            members = order[part :: config.minibatches]
            tokens = sum(sum(rollouts[i].loss_mask) for i in members)
            # Without a KL term a rollout with advantage 0 everywhere has no gradient: it only counts as tokens.
            taught = [i for i in members if any(advantages[i]) or config.kl_coefficient]
            self.optimizer.zero_grad()
            for batch in passes(rollouts, taught, config.tokens_per_pass):
                chosen = [rollouts[i] for i in batch]
                logprobs = token_logprobs(self.policy, chosen, config.temperature)  # (M,)
                sampled, advantage = per_token(chosen, [advantages[i] for i in batch], logprobs.device)  # (M,), (M,)
                old = torch.cat([before[i] for i in batch]) if before else logprobs.detach()  # (M,)
                weights = importance_weights(old, sampled, config.importance_cap)  # (M,)
                loss, clipped = clipped_surrogate(logprobs, old, advantage, config.clip_low, config.clip_high)  # (M,)
                total = (weights * loss).sum()
                if config.kl_coefficient:
                    with torch.no_grad(), self.policy.as_reference() as reference:
                        base = token_logprobs(reference, chosen, config.temperature)  # (M,)
                    kl = (base - logprobs).exp() - (base - logprobs) - 1  # (M,): the k3 estimate, never negative
                    total = total + config.kl_coefficient * kl.sum()
                    sums["loss/kl"] += kl.sum().item()
                (total / tokens).backward()
                read += len(logprobs)
                sums["loss/policy"] += (weights * loss).sum().item()
                sums["loss/clip_fraction"] += clipped.sum().item()
                sums["loss/sampler_mismatch"] += (old - sampled).abs().sum().item()
                sums["policy/entropy"] -= logprobs.sum().item()
            norms.append(
                torch.nn.utils.clip_grad_norm_(self.policy.trainable_parameters(), config.max_grad_norm).item()
            )
            self.optimizer.step()
        self.policy.model.eval()
        return {**{key: value / max(1, read) for key, value in sums.items()}, "grad/norm": mean(norms)}

    @torch.no_grad()
    def _before_update(self, rollouts: list[Trajectory], members: list[int]) -> dict[int, torch.Tensor]:
        """Each rollout's log-probabilities (M_i,) under the policy that the coming updates start from."""
        found = {}
        for batch in passes(rollouts, members, self.config.tokens_per_pass):
            logprobs = token_logprobs(self.policy, [rollouts[i] for i in batch], self.config.temperature)  # (M,)
            parts = logprobs.split([sum(rollouts[i].loss_mask) for i in batch])
            found |= dict(zip(batch, parts, strict=True))
        return found

    def _warn_if_nothing_is_taught(self, metrics: dict[str, float], rollouts: list[Trajectory]) -> None:
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

    def _write(self, kind: str, line: dict) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, **line}) + "\n")


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, total: int) -> list[int]:
    return random.Random(f"{seed}-{epoch}").sample(range(total), total)
