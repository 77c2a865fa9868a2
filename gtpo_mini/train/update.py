"""Optimiser steps on one batch of rollouts, and their defence: too little GPU memory, NaN and infinity."""

from __future__ import annotations

import functools
import math
import random
import warnings
from collections.abc import Callable, Sequence

import torch

from ..policy.model import Policy
from ..rollout.memory import Result, TrainingStopped, within_memory
from ..types import Trajectory
from .config import TrainConfig
from .loss import clipped_surrogate, importance_weights, packed_tokens, passes, per_token, token_logprobs
from .metrics import Rows, mean

MAX_SKIPPED = 3  #: optimiser steps skipped in a row, at which a run stops
_SUMS = ("loss/policy", "loss/kl", "loss/clip_fraction", "loss/sampler_mismatch", "policy/entropy")


def processes() -> tuple[int, int]:
    """The number of this process, and how many train together (``accelerate launch``, ``torchrun``); (0, 1): alone.

    >>> processes()
    (0, 1)
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


class Update:
    """Turns rollouts and their advantages into optimiser steps.

    A pass that does not fit into memory halves ``tokens_per_pass`` for the rest of the run, and its gradient is
    computed again. Where the loss or the gradient is NaN or infinite, the optimiser step is skipped and counted.
    """

    def __init__(self, policy: Policy, config: TrainConfig, optimizer: torch.optim.Optimizer) -> None:
        self.policy, self.config, self.optimizer = policy, config, optimizer
        self.tokens_per_pass = config.tokens_per_pass
        self.skipped = 0  #: optimiser steps skipped in a row
        self._now: list[Trajectory] = []  # of the pass under way
        self._own: range | None = None  # of several processes: the rollouts of this one

    def __call__(
        self, rollouts: Sequence[Trajectory], advantages: Rows, step: int, own: range | None = None
    ) -> dict[str, float]:
        """One batch: the loss is a mean over the policy tokens of each minibatch, whose order ``step`` seeds.

        Of several processes each computes the gradient of its ``own`` rollouts (None: all), and takes the sum of all.
        Returns metrics, the same keys each time and all finite: a skipped optimiser step only adds to
        ``update/skipped``. `TrainingStopped` is raised where a single rollout does not fit into memory.
        """
        config = self.config
        sums, norms, read, skipped = dict.fromkeys(_SUMS, 0.0), [], 0, 0
        order = list(range(len(rollouts)))
        if config.minibatches > 1:
            random.Random(f"{config.seed}-{step}-minibatches").shuffle(order)
        # A broken policy may give every rollout the same reward, and so no loss to see it by.
        sampled = all(math.isfinite(logprob) for rollout in rollouts for logprob in rollout.logprobs)
        self._own = own
        self.policy.model.train()
        try:
            before = self._tried(self._before, rollouts, order) if config.minibatches > 1 else {}
            for part in range(config.minibatches):
                members = order[part :: config.minibatches]
                found, tokens, norm = self._tried(self._gradient, rollouts, advantages, members, before)
                if sampled and all(map(math.isfinite, (norm, *found.values()))):
                    self._apply()
                    self.skipped = 0
                    norms.append(norm)
                    sums, read = {key: sums[key] + found[key] for key in sums}, read + tokens
                else:
                    self.optimizer.zero_grad()
                    self.skipped += 1
                    skipped += 1
        finally:
            self.policy.model.eval()
        means = {key: value / max(1, read) for key, value in sums.items()}
        told = {"grad/norm": mean(norms), "update/skipped": skipped, "update/tokens_per_pass": self.tokens_per_pass}
        return {**means, **told}

    def check(self, step: int) -> None:
        """Raise `TrainingStopped`, with the likely cause, if the last `MAX_SKIPPED` optimiser steps were skipped."""
        if self.skipped < MAX_SKIPPED:
            return
        named = self.policy.model.named_parameters()
        floats = ((name, weight) for name, weight in named if weight.is_floating_point())
        broken = next((name for name, weight in floats if not torch.isfinite(weight).all()), None)
        cause = f"a learning_rate ({self.config.learning_rate:g}) that is too high; lower it or max_grad_norm"
        if self.policy.dtype == torch.float16:
            cause = f"numbers too large for float16; use bfloat16 or float32, or {cause}"
        if broken:
            fix = (
                "go on from the last checkpoint, with a lower learning_rate; at the first step, check the model's files"
            )
            cause = f"the weight {broken} holds NaN or infinity; {fix}"
        what = f"the loss or its gradient was NaN or infinite in {self.skipped} optimiser steps in a row"
        raise TrainingStopped(f"step {step}: {what}, which were skipped; likely cause: {cause}")

    def _apply(self) -> None:
        try:
            self.optimizer.step()
        except torch.OutOfMemoryError as error:  # some weights may have changed: to do it again would not be exact
            fix = "train a LoRA adapter (lora_rank) or a smaller one, or a smaller model"
            raise TrainingStopped(f"out of GPU memory while the optimiser changes the weights; {fix}") from error

    def _gradient(
        self, rollouts: Sequence[Trajectory], advantages: Rows, members: Sequence[int], before: dict[int, torch.Tensor]
    ) -> tuple[dict[str, float], int, float]:
        """The clipped gradient of one (mini)batch; returns sums over its tokens, their number, and the norm."""
        config = self.config
        sums, read = dict.fromkeys(_SUMS, 0.0), 0
        tokens = sum(sum(rollouts[i].loss_mask) for i in members)
        # Without a KL term a rollout with advantage 0 everywhere has no gradient: it only counts as tokens.
        taught = [i for i in self._mine(members) if any(advantages[i]) or config.kl_coefficient]
        self.optimizer.zero_grad()
        for batch in passes(rollouts, taught, self.tokens_per_pass):
            self._now = chosen = [rollouts[i] for i in batch]
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
        *values, read = self._sum_over_processes([*sums.values(), read])
        sums = dict(zip(sums, values, strict=True))
        norm = torch.nn.utils.clip_grad_norm_(self.policy.trainable_parameters(), config.max_grad_norm).item()
        return sums, read, norm

    def _mine(self, members: Sequence[int]) -> list[int]:
        return [i for i in members if self._own is None or i in self._own]

    def _sum_over_processes(self, numbers: list[float]) -> list[float]:
        """Of all processes, in place, the gradients; and what comes back, the numbers."""
        if processes()[1] == 1:
            return numbers
        for weight in self.policy.trainable_parameters():
            if weight.grad is None:  # none of this process's rollouts taught anything
                weight.grad = torch.zeros_like(weight)
            torch.distributed.all_reduce(weight.grad)
        found = torch.tensor(numbers, dtype=torch.float64, device=self.policy.device)
        torch.distributed.all_reduce(found)
        return found.tolist()

    @torch.no_grad()
    def _before(self, rollouts: Sequence[Trajectory], members: Sequence[int]) -> dict[int, torch.Tensor]:
        """Each rollout's log-probabilities (M_i,) under the policy that the coming updates start from."""
        found = {}
        for batch in passes(rollouts, self._mine(members), self.tokens_per_pass):
            self._now = [rollouts[i] for i in batch]
            logprobs = token_logprobs(self.policy, self._now, self.config.temperature)  # (M,)
            found |= zip(batch, logprobs.split([sum(rollout.loss_mask) for rollout in self._now]), strict=True)
        return found

    def _tried(self, work: Callable[..., Result], *arguments) -> Result:
        """The work within memory; says once how small its passes had to become."""
        begin = self.tokens_per_pass
        result = within_memory(functools.partial(work, *arguments), self._halve)
        if self.tokens_per_pass < begin:
            change = f"tokens_per_pass goes from {begin} to {self.tokens_per_pass} for the rest of the run"
            warnings.warn(f"out of GPU memory: {change}; this update was computed again", stacklevel=4)
        return result

    def _halve(self) -> None:
        self.optimizer.zero_grad()
        if len(self._now) < 2:
            fix = "use gradient_checkpointing, a shorter max_context or max_turn_tokens, a 4-bit base (quantize nf4), "
            fix += "a smaller LoRA rank or a smaller model"
            size = sum(len(rollout.token_ids) for rollout in self._now)
            raise TrainingStopped(f"out of GPU memory in a pass of one rollout ({size} tokens); {fix}")
        # A pass may be far smaller than what is allowed: halving that would try the same pass again.
        self.tokens_per_pass = max(1, min(self.tokens_per_pass, packed_tokens(self._now)) // 2)
