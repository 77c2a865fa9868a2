"""Figures: an arm has the same colour and marker everywhere, thin lines are seeds, bands are t-intervals."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .config import results_folder
from .experiments import Run
from .metrics import mean
from .stats import t_interval

#: Okabe-Ito colours, which colour-blind readers tell apart, and a marker of its own for each arm.
ARM_STYLE = {"grpo": ("#0072B2", "o", "GRPO"), "gtpo": ("#D55E00", "s", "GTPO")}
LABELS = {
    "reward/outcome": "accuracy (sampled, training problems)",
    "rollout/calls": "tool calls a rollout",
    "rollout/invalid_calls": "invalid share of tool calls",
    "rollout/turns": "turns a rollout",
}


def smooth(values: Sequence[float], window: int = 5) -> list[float]:
    """Mean over the last ``window`` values (fewer at the beginning).

    >>> smooth([0.0, 1.0, 2.0], window=2)
    [0.0, 0.5, 1.5]
    """
    return [mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]


def plot_metric(axes: Axes, runs: Sequence[Run], key: str = "reward/outcome", window: int = 5) -> None:
    """One metric over the steps: a thin line a seed, the mean over S seeds, and its 95 % t-interval as a band.

    Args:
        axes: where to draw.
        runs: at least two seeds of each arm, of equal length.
        key: of the metric, e.g. "rollout/calls".
        window: steps of the moving average.
    """
    for arm in dict.fromkeys(run.arm for run in runs):
        colour, marker, label = ARM_STYLE[arm]
        curves_ST = [smooth(run.series(key), window) for run in runs if run.arm == arm]
        steps = range(1, len(curves_ST[0]) + 1)
        for curve in curves_ST:
            axes.plot(steps, curve, color=colour, linewidth=0.6, alpha=0.5)
        bands = [t_interval(column) for column in zip(*curves_ST, strict=True)]
        axes.fill_between(steps, [b.low for b in bands], [b.high for b in bands], color=colour, alpha=0.15, linewidth=0)
        every = max(1, len(steps) // 8)
        centre = [b.estimate for b in bands]
        axes.plot(steps, centre, color=colour, linewidth=2, marker=marker, markevery=every, label=label)
    axes.set_xlabel("training step")
    axes.set_ylabel(LABELS.get(key, key))
    axes.set_ylim(bottom=0)
    if key in ("reward/outcome", "rollout/invalid_calls"):
        axes.set_ylim(top=min(1.0, max(0.1, axes.get_ylim()[1])))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def plot_learning_curves(runs: Sequence[Run], title: str, note: str = "") -> Figure:
    """Accuracy, tool calls and invalid calls of all arms, with a caption that says what the bands are."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    for axes, key in zip(panels, ("reward/outcome", "rollout/calls", "rollout/invalid_calls"), strict=True):
        plot_metric(axes, runs, key)
    panels[0].legend(frameon=False)
    config = runs[0].header["config"]
    seeds = len({run.seed for run in runs})
    caption = (
        f"{seeds} seeds an arm (thin lines); bold: mean of a 5-step moving average; band: 95 % t-interval over "
        f"seeds. {config['problems_per_step']} problems x {config['group_size']} rollouts a step. {note}"
    )
    figure.suptitle(title)
    figure.supxlabel(textwrap.fill(caption, 150), fontsize=8, color="#555555")
    return figure


def save_figure(figure: Figure, name: str, runs: Sequence[Run] = (), folder: str | Path | None = None) -> Path:
    """Write ``name``.svg, .png and .json (where the data came from); the same figure gives the same bytes.

    Returns:
        The path of the PNG.
    """
    folder = Path(folder or results_folder())
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
    # Times and memory differ from run to run; what was learned does not.
    kept = [
        {key: value for key, value in step.items() if not key.startswith(("time/", "memory/"))}
        for run in runs
        for step in run.steps
    ]
    header = runs[0].header if runs else {}
    record = {
        "config": header.get("config"),
        "arms": sorted({run.arm for run in runs}),
        "seeds": sorted({run.seed for run in runs}),
        **{key: header.get(key) for key in ("command", "commit", "versions", "device")},
        "data_sha256": hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest(),
    }
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return folder / f"{name}.png"
