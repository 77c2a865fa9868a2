"""What a person can set on a command line, in groups: which policy, what is asked, credit, optimiser, run.

Options are fields of dataclasses, and their comments are the help. A default may depend on another option's value.
"""

from __future__ import annotations

import inspect
import itertools
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Annotated, Any

import tyro

from .config import TrainConfig, load_profile

SAMPLING = ("temperature", "max_turns", "max_turn_tokens", "max_context", "max_output", "select_output")
ROLLOUT = (*SAMPLING, "problems_per_step", "group_size")
RUN = ("steps", "seed")
OPTIMISER = tuple(f.name for f in fields(TrainConfig) if f.name not in (*ROLLOUT, *RUN, "credit"))


@dataclass(frozen=True)
class Model:
    """Which policy."""

    profile: str | None = None  # cpu, t4 or rtx: where the other defaults come from (GTPO_PROFILE, or cpu)
    model: str = "tiny"  # tiny, tiny-programs, tiny-facts, a model folder, a run, or a hub name
    quantize: str | None = None  # nf4: 4-bit base weights, and LoRA
    device: str = "cpu"  # cpu, cuda, ...
    lora_rank: int | None = None  # train a new LoRA adapter of this rank
    adapter: str | None = None  # folder or run of a trained LoRA adapter

    def load(self, seed: int) -> Any:
        """The `Policy`."""
        from ..policy.load import load_policy  # here: help must not wait for torch

        return load_policy(self.model, self.quantize, self.lora_rank, self.device, seed=seed, adapter=self.adapter)


@dataclass(frozen=True)
class Asked:
    """What is asked, and how answers are sampled."""

    task: str = "branching"  # a task's name, jsonl:FILE, reasoning_gym:NAME, or MODULE:NAME
    protocol: str = "fenced"  # fenced; hermes: the model's own tool calls; or MODULE:NAME


@dataclass(frozen=True)
class Arm:
    """How credit is assigned: an arm, and changes of it."""

    arm: str = "gtpo"  # the arm's name, or MODULE:NAME for an own function


@dataclass(frozen=True)
class Kept:
    """How long, and what is kept."""

    output: str | None = None  # folder for metrics.jsonl, checkpoints and the trained policy
    checkpoint_every: int = 10  # steps between checkpoints
    resume: bool = False  # go on with the run in --output, if it holds one
    trackers: tuple[str, ...] = ()  # where metrics go as well: tensorboard, wandb, ...
    record_rollouts: bool = False  # write rollouts.jsonl there too, for view


@dataclass(frozen=True)
class Graded:
    """How much of which split."""

    split: str = "test"  # train or test
    problems: int | None = None  # how many, from the first; all unless given
    samples: int = 1  # rollouts a problem
    output: str | None = None  # JSON-lines file for the results, per problem


@dataclass(frozen=True)
class Imitated:
    """What is imitated, and how."""

    output: str  # a new folder for traces.jsonl, imitation.json and the policy
    traces: str | None = None  # JSON lines with question, answer and turns; rejection sampling unless given
    problems: int = 256  # training problems to sample from
    samples: int = 8  # rollouts a problem
    steps: int = 100  # updates
    batch: int = 16  # traces an update
    learning_rate: float = 1e-4  # its peak
    gradient_checkpointing: bool = False  # less memory, more time


def given(argv: list[str], option: str) -> str | None:
    """The value of an option on a command line that has not been parsed yet: other defaults depend on it."""
    found = [b for a, b in itertools.pairwise(argv) if a == option]
    found += [word.partition("=")[2] for word in argv if word.startswith(f"{option}=")]
    return found[0] if found else None


def group(*parts: tuple[Any, Iterable[str] | None], doc: str | None = None) -> Any:
    """A group of options from (dataclass object, names of its fields, or None for all); comments are their help."""
    made = []
    for values, names in parts:
        kind = type(values)
        notes = dict(re.findall(r"^    (\w+): [^#\n]*#:? (.*)$", inspect.getsource(kind), re.MULTILINE))
        for name, hint in typing.get_type_hints(kind).items():
            if names is None or name in names:
                hint = Annotated[hint, tyro.conf.arg(help=notes.get(name))]
                made.append((name, hint, field(default=getattr(values, name))))
    options = make_dataclass("Options", made, frozen=True)
    options.__doc__ = doc or type(parts[0][0]).__doc__
    return options()


def defaults(argv: list[str], *without: str) -> tuple[TrainConfig, Any, str]:
    """The profile's training settings, the options of its policy, and its task."""
    profile = load_profile(given(argv, "--profile"))
    name, config = given(argv, "--model") or profile.model, profile.train
    if profile.model == "tiny" and name != "tiny":  # the tiny policy's short turns are for it alone
        config = replace(config, max_turn_tokens=TrainConfig.max_turn_tokens, max_context=None)
    own = {"quantize": profile.quantize, "lora_rank": profile.lora_rank} if name == profile.model else {}
    model = Model(profile.name, name, device=profile.device, **own)
    return config, group((model, [f.name for f in fields(Model) if f.name not in without])), profile.task


def taken(kind: type, *groups: Any) -> dict[str, Any]:
    """The values of a dataclass's fields that stand in the groups."""
    return {key: value for group in groups for key, value in vars(group).items() if key in kind.__dataclass_fields__}
