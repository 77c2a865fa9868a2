"""What a step reports, under fixed keys, where it is sent, and the header that says where a run came from."""

from __future__ import annotations

import contextlib
import functools
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from ..credit.credit import group_numbers
from ..credit.provenance import answer_claims, is_supported
from ..types import StopReason, Trajectory
from .config import TrainConfig

Rows = Sequence[Sequence[float]]  # one list a rollout, one number a turn
_TURNS = 6  # turn indices that the metrics tell apart


def mean(values: Sequence[float]) -> float:
    """Mean, 0 for nothing."""
    return sum(values) / len(values) if values else 0.0


def describe_rollouts(rollouts: Sequence[Trajectory], correct: Sequence[bool]) -> dict[str, float]:
    """Rates and means over R rollouts, the keys being the same whatever happened.

    ``rollout/guesses``, answers that do not rest on the tool (`is_supported`), shows first that a policy gives it up.
    """
    turns = [turn for rollout in rollouts for turn in rollout.turns]
    calls = [turn for turn in turns if turn.calls_tool]
    answered = [rollout for rollout in rollouts if rollout.answer is not None]
    guesses = [not is_supported(answer_claims(rollout)) for rollout in answered]
    return {
        "reward/outcome": mean(correct),
        "rollout/turns": mean([len(rollout.turns) for rollout in rollouts]),
        "rollout/calls": len(calls) / len(rollouts),
        "rollout/progress": sum(turn.progress for turn in turns) / len(rollouts),  # what the task gave its turns
        "rollout/invalid_calls": mean([turn.invalid_call for turn in calls]),
        "rollout/guesses": mean(guesses),
        "rollout/turn_tokens": sum(sum(r.loss_mask) for r in rollouts) / max(1, len(turns)),
        "rollout/tokens": mean([len(rollout.token_ids) for rollout in rollouts]),
        "rollout/tokens_max": max(len(rollout.token_ids) for rollout in rollouts),
        "rollout/truncated": mean([rollout.stop.truncated for rollout in rollouts]),
        **{f"rollout/stop_{reason}": mean([r.stop == reason for r in rollouts]) for reason in StopReason},
    }


def describe_advantages(rollouts: Sequence[Trajectory], correct: Sequence[float], advantages: Rows) -> dict[str, float]:
    """Mean advantage of right and of wrong rollouts' turns, by turn index (the sixth holds all later ones too),
    and of the turns with an invalid call; 0 where there is no such turn.
    """
    keys = [f"advantage/{kind}_turn_{j}" for kind in ("right", "wrong") for j in range(1, _TURNS + 1)]
    found: dict[str, list[float]] = {key: [] for key in (*keys, "advantage/invalid_calls")}
    for rollout, right, advantages_N in zip(rollouts, correct, advantages, strict=True):
        for j, (turn, advantage) in enumerate(zip(rollout.turns, advantages_N, strict=True), 1):
            found[f"advantage/{'right' if right == 1 else 'wrong'}_turn_{min(j, _TURNS)}"].append(advantage)
            found["advantage/invalid_calls"] += [advantage] if turn.invalid_call else []
    return {key: mean(values) for key, values in found.items()}


def describe_step(
    rollouts: Sequence[Trajectory], correct: Sequence[float], rewards: Rows, advantages: Rows, group_size: int
) -> dict[str, float]:
    """The metrics of a step but for the update's: of rollouts, of their turn rewards and advantages, of groups."""
    silent: dict[int, bool] = {}  # a group: has none of its rollouts an advantage
    hopeless: dict[int, bool] = {}  # a group: is none of its rollouts right
    weights: dict[int, float] = {}  # a group: sum of abs(advantage) over policy tokens
    of_each = zip(group_numbers(rollouts, group_size), rollouts, correct, advantages, strict=True)
    for group, rollout, right, advantages_N in of_each:
        silent[group] = silent.get(group, True) and not any(advantages_N)
        hopeless[group] = hopeless.get(group, True) and right != 1
        said = zip(rollout.loss_mask, rollout.turn_index, strict=True)
        weights[group] = weights.get(group, 0.0) + sum(abs(advantages_N[j]) for mask, j in said if mask)
    blind = sum(weight for group, weight in weights.items() if hopeless[group])
    return {
        **describe_rollouts(rollouts, correct),
        "reward/turn_mean": mean([reward for rewards_N in rewards for reward in rewards_N]),
        **describe_advantages(rollouts, correct, advantages),
        "advantage/mean_abs": mean([abs(a) for advantages_N in advantages for a in advantages_N]),
        "advantage/hopeless_share": blind / (sum(weights.values()) or 1.0),  # of abs(advantage) over tokens
        "group/silent": mean(list(silent.values())),
        "group/hopeless": mean(list(hopeless.values())),  # nothing in it is right
    }


def few(steps: int) -> int:
    """Of how many steps a run's summary takes the mean at either end: a tenth of them, so that the ends never meet."""
    return max(1, steps // 10)


def describe_history(history: Sequence[dict[str, float]], steps: int) -> str:
    """What the last step says: accuracy with its trend over up to ten steps, behaviour, and the time that is left.

    >>> past = {"rollout/calls": 2.0, "group/silent": 0.25, "time/step": 3.0}
    >>> describe_history([{"reward/outcome": 0.2, **past}] * 10 + [{"reward/outcome": 0.4, **past}] * 10, 60)
    'step 20/60: accuracy 0.40 (+0.20 in 10 steps), 2.0 calls a rollout, 25 % of groups silent; 0:02:00 left'
    """
    now, half = history[-1], min(10, len(history) // 2)
    accuracy, trend = [step["reward/outcome"] for step in history[-2 * half or -1 :]], ""
    if half:
        gain = mean(accuracy[half:]) - mean(accuracy[:half])
        trend = f" ({gain:+.2f} in {half} step{'s' if half > 1 else ''})"
    left = (steps - len(history)) * mean([step["time/step"] for step in history[-10:]])
    behaviour = f"{now['rollout/calls']:.1f} calls a rollout, {100 * now['group/silent']:.0f} % of groups silent"
    ends = f"{timedelta(seconds=round(left))} left"
    return f"step {len(history)}/{steps}: accuracy {accuracy[-1]:.2f}{trend}, {behaviour}; {ends}"


def peak_gib() -> float:
    """Peak memory of this process so far in GiB: the GPU's where there is one, else the main memory's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@functools.cache
def _commit() -> str:
    """The commit of the source tree, "+" behind it if files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _command() -> str:
    """How this process was started, without the folders of this machine."""
    path = Path(sys.argv[0])
    name = f"-m {path.parent.name}" if path.name == "__main__.py" else path.name
    if name.startswith(("ipykernel", "-m ipykernel")):
        return "a notebook"
    start = "gtpo-mini" if name in ("gtpo-mini", "-m gtpo_mini") else f"python {name}"
    return " ".join([start, *sys.argv[1:]])


def open_trackers(wanted: Sequence[str | GeneralTracker], folder: Path | None) -> list[GeneralTracker]:
    """TensorBoard, Weights & Biases and others by the names that accelerate knows, or `GeneralTracker` objects.

    A ValueError names a tracker that is unknown, not installed, or needs a folder and has none.
    """
    if wanted:
        PartialState()  # the trackers' own log messages ask it which process they are in
    return [found if isinstance(found, GeneralTracker) else _tracker(found, folder) for found in wanted]


def _tracker(name: str, folder: Path | None) -> GeneralTracker:
    if name not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"unknown tracker {name!r}; known: {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
    if name not in map(str, get_available_trackers()):
        raise ValueError(f"tracker {name!r}: its package is not installed; pip install {name}")
    kind = LOGGER_TYPE_TO_CLASS[name]
    if not kind.requires_logging_directory:
        return kind("gtpo_mini")
    if folder is None:
        raise ValueError(f"tracker {name!r} writes files: give the run an output folder")
    return kind("gtpo_mini", logging_dir=str(folder))


@functools.cache
def cpu_model() -> str:
    """The processor's name, and its numbers where the name says little: bits of a result may depend on the model."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")
        facts = dict(re.findall(r"^(.*?)\s*: ?(.*?)\s*$", first, re.MULTILINE))
    parts = [facts.get("model name") or platform.processor() or platform.machine()]
    parts += [f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    parts += [f"torch uses {torch.backends.cpu.get_cpu_capability()}"]
    parts += ["has avx512_bf16"] if "avx512_bf16" in facts.get("flags", "") else []
    return ", ".join(parts)


def run_header(config: TrainConfig, policy_name: str, task_name: str, device: str) -> dict:
    """Where a run came from: configuration, command, commit, versions, device, threads."""
    packages = ("torch", "transformers", "peft", "numpy")
    return {
        "config": config.record(),
        "policy": policy_name,
        "task": task_name,
        "seed": config.seed,
        "command": _command(),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else f"cpu ({cpu_model()})",
        "threads": torch.get_num_threads(),
    }
