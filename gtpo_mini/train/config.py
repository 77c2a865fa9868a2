"""What decides a run: `TrainConfig`, and the profiles that fit it to a machine."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from ..credit.arms import ARMS
from ..credit.credit import Credit, CreditAssignment
from ..credit.later import LATER
from ..rollout.settings import SamplingSettings


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run, but for the policy and the task.

    >>> TrainConfig(group_size=1)
    Traceback (most recent call last):
    ValueError: group_size=1: must be at least 2: a group of one has nothing to be compared with
    """

    credit: CreditAssignment = ARMS["gtpo"]  #: an arm (`ARMS`), a `Credit`, or an own function of its shape
    steps: int = 60  #: optimisation steps, each on fresh rollouts
    problems_per_step: int = 8  #: groups a step
    group_size: int = 8  #: rollouts a problem, compared with each other
    learning_rate: float = 1e-4  #: of AdamW, constant
    minibatches: int = 1  #: optimiser steps that share one batch of rollouts
    clip_low: float = 0.2  #: the ratio is clipped below 1 minus this
    clip_high: float = 0.28  #: and above 1 plus this
    importance_cap: float | None = 2.0  #: of the weights where sampler and trainer differ; None: no weights
    kl_coefficient: float = 0.0  #: of the distance to the starting policy; 0: no reference policy is kept
    max_grad_norm: float = 1.0  #: longer gradients are shortened to it
    tokens_per_pass: int = 4096  #: tokens of one forward and backward pass, at most
    gradient_checkpointing: bool = False  #: compute activations again in the backward pass: less memory, more time
    temperature: float = 1.0  #: of the sampling
    max_turns: int = 6  #: policy turns a rollout
    max_turn_tokens: int = 256  #: policy tokens a turn
    max_context: int | None = None  #: tokens a rollout, prompt included; None: the model's own limit
    max_output: int = 2000  #: characters of a tool's output that the policy sees; of more, beginning and end
    select_output: bool = False  #: of more, rather the lines that say most about the question
    seed: int = 0  #: of problems and sampling

    def __post_init__(self) -> None:
        def check(rule: str, holds: Callable[[Any], bool], *names: str) -> None:
            for name in names:
                if not holds(value := getattr(self, name)):
                    raise ValueError(f"{name}={value!r}: must be {rule}")

        check("a Credit or a function of its shape; an arm by its name is ARMS[name]", callable, "credit")
        check("at least 2: a group of one has nothing to be compared with", lambda n: n >= 2, "group_size")
        check("in [0, 1]", lambda x: 0 <= x <= 1, "clip_low")
        check("a finite number from 0 up", lambda x: 0 <= x < math.inf, "kl_coefficient", "clip_high")
        check("at least 1", lambda n: n >= 1, "steps", "problems_per_step", "minibatches", "tokens_per_pass")
        above = ("learning_rate", "temperature", "max_grad_norm")
        check("a finite number above 0", lambda x: 0 < x < math.inf, *above)
        rollouts = self.problems_per_step * self.group_size
        check(f"at most the {rollouts} rollouts of a step", lambda n: n <= rollouts, "minibatches")
        check("above 0, or None", lambda x: x is None or 0 < x < math.inf, "importance_cap")
        check("at least 0", lambda n: n >= 0, "seed")
        self.sampling()

    def sampling(self, **changes) -> SamplingSettings:
        """The rollout's part of the configuration, with changes."""
        rows = min(64, self.problems_per_step * self.group_size)
        own = {name: getattr(self, name) for name in SamplingSettings.__dataclass_fields__ if hasattr(self, name)}
        return replace(SamplingSettings(**own, rows=rows), **changes)

    def record(self) -> dict[str, Any]:
        """As plain data, for a run's header; an own function stands there by its name.

        >>> TrainConfig(credit=ARMS["grpo"]).record()["credit"]["rewards"]
        'trajectory'
        """
        return {**vars(self), "credit": _record_credit(self.credit)}

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The configuration of a recorded run; a ValueError if its credit was an own function, known by its name only.

        >>> TrainConfig.from_record(TrainConfig(steps=3).record()) == TrainConfig(steps=3)
        True
        """
        if not isinstance(values["credit"], Mapping):
            for credit in LATER.values():
                if _record_credit(credit) == values["credit"]:
                    return cls(**{**values, "credit": credit})
            raise ValueError(f"credit={values['credit']!r} is an own function: give it to TrainConfig yourself")
        return cls(**{**values, "credit": Credit(**values["credit"])})


def _record_credit(credit: CreditAssignment) -> dict[str, Any] | str:
    if isinstance(credit, Credit):
        return asdict(credit)
    if is_dataclass(credit):  # with its settings: a run goes on under the same ones only
        return f"{type(credit).__module__}:{credit!r}"
    kind = credit if hasattr(credit, "__qualname__") else type(credit)
    return f"{kind.__module__}:{kind.__qualname__}"


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
_ONE_GPU = TrainConfig(steps=150, learning_rate=1e-5, max_turns=4, max_context=1024, gradient_checkpointing=True)
_T4 = Profile(
    "t4", "Qwen/Qwen2.5-1.5B-Instruct", "gsm8k", replace(_ONE_GPU, tokens_per_pass=2048), "nf4", 16, device="cuda"
)
_RTX = replace(_T4, name="rtx", train=replace(_ONE_GPU, max_context=2048))
_PROFILES = {profile.name: profile for profile in (_CPU, _T4, _RTX)}


def load_profile(name: str | None = None) -> Profile:
    """The defaults for a machine: "cpu", "t4" (16 GB, no bf16) or "rtx" (24 GB).

    None takes ``GTPO_PROFILE``, or else "cpu". A ValueError names what is unknown, or a GPU profile where torch finds
    no CUDA GPU.

    >>> load_profile("cpu").model
    'tiny'
    """
    name = name or os.environ.get("GTPO_PROFILE") or "cpu"
    if name not in _PROFILES:
        raise ValueError(f"unknown profile {name!r}; known: {', '.join(_PROFILES)}")
    if _PROFILES[name].device == "cuda":
        import torch  # here: reading options and help must not wait for it

        if not torch.cuda.is_available():
            raise ValueError(f"profile {name!r} needs a CUDA GPU, and torch finds none; use the profile 'cpu'")
    return _PROFILES[name]


def results_folder() -> Path:
    """Where figures and other results go: ``GTPO_RESULTS``, or else ``results`` beside the notebooks' folder."""
    return Path(os.environ.get("GTPO_RESULTS") or Path(__file__).resolve().parents[2] / "results")
