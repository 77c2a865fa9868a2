"""What decides a run: `TrainConfig`, and the profiles that fit it to a machine."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..credit.advantages import NORMALIZE
from ..credit.shaping import load_similarity
from ..rollout.engine import SamplingSettings

METHODS = ("gtpo", "grpo")
REWARDS = ("turn", "trajectory", "accuracy")
SHAPING = ("outcome", "potential")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run, but for the policy and the task.

    ``method="grpo"`` is the paper's baseline: one reward a rollout, min(accuracy, format), normalised in the
    group. ``method="gtpo"`` is all three parts: turn rewards, discounted returns as advantages, shaped outcomes.
    ``rewards``, ``returns`` and ``alpha`` take it apart: `gtpo_mini.credit.arms.ARMS` is the table.

    >>> TrainConfig(gamma=1.5)
    Traceback (most recent call last):
    ValueError: gamma=1.5: must be in [0, 1]
    """

    method: str = "gtpo"  #: "gtpo" or "grpo"
    rewards: str | None = None  #: turn; trajectory: min(accuracy, format) at the end; accuracy. None: the method's own
    gamma: float = 0.9  #: discount a turn, in [0, 1] (gtpo)
    normalize: str = "group"  #: what returns are normalised over: group, batch, turn or first (gtpo)
    returns: bool = True  #: advantages of each turn's return; False: one a rollout, of its summed rewards (gtpo)
    alpha: float = 0.5  #: size of the partial credit, in [0, 1]; 0 switches shaping off (gtpo)
    shaping: str = "outcome"  #: credit at the end (outcome), or a potential of the code so far (potential) (gtpo)
    similarity: str = "ngram"  #: how codes are compared for it (gtpo)
    format_penalty: float = 0.1  #: taken from a turn with an invalid call, at least 0 (gtpo)
    steps: int = 60
    problems_per_step: int = 8
    group_size: int = 8
    learning_rate: float = 1e-4
    minibatches: int = 1  #: optimiser steps that share one batch of rollouts
    clip_low: float = 0.2
    clip_high: float = 0.28
    importance_cap: float | None = 2.0  #: of the weights where sampler and trainer differ; None: no weights
    kl_coefficient: float = 0.0  #: 0: no reference policy is kept
    max_grad_norm: float = 1.0
    tokens_per_pass: int = 4096  #: tokens of one forward and backward pass, at most
    gradient_checkpointing: bool = False  #: compute activations again in the backward pass: less memory, more time
    temperature: float = 1.0
    max_turns: int = 6
    max_turn_tokens: int = 256
    max_context: int | None = None  #: tokens a rollout, prompt included; None: the model's own limit
    seed: int = 0

    def __post_init__(self) -> None:
        def check(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be {rule}")

        check(self.method in METHODS, "method", f"one of {', '.join(METHODS)}")
        check(self.normalize in NORMALIZE, "normalize", f"one of {', '.join(NORMALIZE)}")
        check(self.rewards in (None, *REWARDS), "rewards", f"one of {', '.join(REWARDS)}, or None")
        check(self.shaping in SHAPING, "shaping", f"one of {', '.join(SHAPING)}")
        for name in ("gamma", "alpha"):
            check(0 <= getattr(self, name) <= 1, name, "in [0, 1]")
        check(self.group_size >= 2, "group_size", "at least 2: a group of one has nothing to be compared with")
        for name in ("format_penalty", "kl_coefficient", "clip_low", "clip_high"):
            check(0 <= getattr(self, name) < math.inf, name, "a finite number from 0 up")
        for name in ("steps", "problems_per_step", "minibatches", "tokens_per_pass"):
            check(getattr(self, name) >= 1, name, "at least 1")
        for name in ("learning_rate", "temperature", "max_grad_norm"):
            check(0 < getattr(self, name) < math.inf, name, "a finite number above 0")
        check(self.importance_cap is None or 0 < self.importance_cap < math.inf, "importance_cap", "above 0, or None")
        check(self.seed >= 0, "seed", "at least 0")
        load_similarity(self.similarity)
        self.sampling()

    @property
    def reward_kind(self) -> str:
        """Which rewards count: ``rewards``, or the method's own."""
        return self.rewards or {"gtpo": "turn", "grpo": "trajectory"}[self.method]

    def sampling(self, **changes) -> SamplingSettings:
        """The rollout's part of the configuration, with changes."""
        rows = min(64, self.problems_per_step * self.group_size)
        settings = SamplingSettings(self.temperature, self.max_turns, self.max_turn_tokens, self.max_context, rows)
        return replace(settings, **changes)


@dataclass(frozen=True)
class Profile:
    """A machine's defaults: which policy, which task, how to train."""

    name: str
    model: str
    task: str
    train: TrainConfig
    quantize: str | None = None
    lora_rank: int | None = None
    device: str = "cpu"


_CPU = Profile("cpu", "tiny", "branching", TrainConfig(learning_rate=3e-4, max_turn_tokens=24, max_context=320))
_T4 = Profile(
    "t4",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "gsm8k",
    TrainConfig(
        steps=150, learning_rate=1e-5, max_turns=4, max_context=1024, tokens_per_pass=2048, gradient_checkpointing=True
    ),
    quantize="nf4",
    lora_rank=16,
    device="cuda",
)
_RTX = replace(_T4, name="rtx", train=replace(_T4.train, max_context=2048, tokens_per_pass=4096))
_PROFILES = {profile.name: profile for profile in (_CPU, _T4, _RTX)}


def load_profile(name: str | None = None) -> Profile:
    """The defaults for a machine.

    Args:
        name: "cpu", "t4" (16 GB, no bf16) or "rtx" (24 GB); None takes ``GTPO_PROFILE``, or else "cpu".

    Raises:
        ValueError: unknown name, or a GPU profile where torch finds no CUDA GPU.

    >>> load_profile("cpu").model
    'tiny'
    """
    name = name or os.environ.get("GTPO_PROFILE") or "cpu"
    if name not in _PROFILES:
        raise ValueError(f"unknown profile {name!r}; known: {', '.join(_PROFILES)}")
    if _PROFILES[name].device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"profile {name!r} needs a CUDA GPU, and torch finds none; use the profile 'cpu'")
    return _PROFILES[name]


def results_folder() -> Path:
    """Where figures and other results go: ``GTPO_RESULTS``, or else ``results`` beside the notebooks' folder."""
    return Path(os.environ.get("GTPO_RESULTS") or Path(__file__).resolve().parents[2] / "results")
