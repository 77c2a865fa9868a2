"""Where the method is tried: variants of the offline task and of the cold start, each with its own starting policy.

A regime's policy is the shipped tiny one after a short imitation of traces with other habits: more or fewer broken
calls, more turns, a weaker or stronger start, answers that can be guessed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..policy.load import TINY_FOLDER, load_policy
from ..sandbox import Sandbox
from ..tasks.branching import TraceNoise
from ..train.config import results_folder
from .coldstart import STAGES, Stage, learn_stage

_BASE = STAGES[-1].noise  # the shipped policy's own habits
_WEAK = replace(_BASE, bad_call=0.7, recover=0.3)
_BROKEN_GUESSES = replace(_BASE, bad_call=0.6, recover=0.3, invalid=0.8, skip=0.15)
_LONG = ({"steps": 5}, {"max_turns": 9, "max_context": 512})
_PARITY = {"ask": "parity"}


@dataclass(frozen=True)
class Regime:
    """A start, and a variant of the task."""

    special: str  #: what is special here
    noise: TraceNoise  #: the habits that its starting policy imitates
    task: dict = field(default_factory=dict)  #: options of the task ``branching``
    changes: dict = field(default_factory=dict)  #: of the training configuration


REGIMES: dict[str, Regime] = {
    "no_broken": Regime("bad calls run, and print something wrong", replace(_BASE, invalid=0.0)),
    "all_broken": Regime("every bad call is broken", replace(_BASE, invalid=1.0)),
    "weak": Regime("few right answers at the start", _WEAK),
    "strong": Regime("mostly right at the start", replace(_BASE, bad_call=0.2)),
    "long": Regime("five steps instead of three", _BASE, *_LONG),
    "hopeless": Regime("five steps, hardly ever right", _WEAK, *_LONG),
    "guess": Regime("even or odd: half of all guesses are right", replace(_BASE, skip=0.15), _PARITY),
    "guess_broken": Regime("guesses pay, and most bad calls are broken", _BROKEN_GUESSES, _PARITY),
}


def load_regime(name: str) -> Regime:
    """A regime by name.

    >>> load_regime("long").task
    {'steps': 5}
    """
    if name not in REGIMES:
        raise ValueError(f"unknown regime {name!r}; known: {', '.join(REGIMES)}")
    return REGIMES[name]


def regime_policy(name: str, folder: Path | None = None) -> Path:
    """The folder of a regime's starting policy; made if it is not there yet (a minute or two, fixed seeds)."""
    regime = load_regime(name)
    made_of = repr(regime).encode() + (TINY_FOLDER / "model.safetensors").read_bytes()
    path = (folder or results_folder() / "policies") / f"{name}-{hashlib.sha256(made_of).hexdigest()[:8]}"
    if not path.exists():
        policy = load_policy(TINY_FOLDER, device="cpu")
        # Imitated long enough for the old habits to go; the skill stays.
        stage = Stage(2500, 300, 1e-3, regime.noise, regime.task)
        with Sandbox() as sandbox:
            learn_stage(policy, stage, number=9, batch=32, seed=0, sandbox=sandbox)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            policy.save(Path(scratch) / "policy")
            if not path.exists():  # another process may have been faster
                os.rename(Path(scratch) / "policy", path)
    return path
