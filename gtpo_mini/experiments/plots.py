"""Figures: an arm has the same colour and marker everywhere, thin lines are seeds, bands are t-intervals."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..train.config import results_folder
from ..train.metrics import mean
from ..train.record import RecordedRun
from .compare import Difference, by_arm
from .report import ROOT, RUNS, first_step, load_regime_runs, regime_differences
from .stats import Interval, t_interval

#: Okabe-Ito colours, which colour-blind readers tell apart, and a marker of its own for each arm.
ARM_STYLE = {
    "grpo": ("#0072B2", "o", "GRPO"),
    "gtpo": ("#D55E00", "s", "GTPO"),
    "grpo_accuracy": ("#56B4E9", "v", "GRPO, accuracy only"),
    "+turn_rewards": ("#009E73", "^", "+ turn rewards"),
    "+returns": ("#CC79A7", "D", "+ returns"),
    "potential": ("#000000", "P", "potential"),
    "+progress": ("#E69F00", "*", "+ progress (ours)"),
}
_OTHER = ("#777777", "x")
LABELS = {
    "reward/outcome": "accuracy (sampled, training problems)",
    "rollout/calls": "tool calls a rollout",
    "rollout/invalid_calls": "invalid share of tool calls",
    "rollout/turns": "turns a rollout",
}


def _finish(axes: Axes, grid: bool = True) -> None:
    if grid:
        axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _bar(axes: Axes, row: float, interval: Interval, **style: object) -> None:
    """An interval in points, as a line."""
    axes.plot([100 * end for end in interval[1:]], [row] * 2, **style)


def plot_metric(axes: Axes, runs: Sequence[RecordedRun], key: str = "reward/outcome", window: int = 5) -> None:
    """One metric as a moving average over the steps: thin lines are seeds, the bold one their mean in its t-band."""
    share = key in ("reward/outcome", "rollout/invalid_calls")
    for arm, mine in by_arm(runs).items():
        colour, marker, label = ARM_STYLE.get(arm, (*_OTHER, arm))
        series_ST = [run.series(key) for run in mine]
        steps = range(1, len(series_ST[0]) + 1)
        curves_ST = [[mean(s[max(0, t - window) : t]) for t in range(1, len(s) + 1)] for s in series_ST]
        for curve in curves_ST:
            axes.plot(steps, curve, color=colour, linewidth=0.6, alpha=0.5)
        if len(mine) < 2:
            need = "an interval needs at least 2: gtpo-mini experiment makes them"
            raise ValueError(f"arm {arm!r} has one seed, and {need}")
        bands = [t_interval(column, share=share) for column in zip(*curves_ST, strict=True)]
        axes.fill_between(steps, [b.low for b in bands], [b.high for b in bands], color=colour, alpha=0.15, linewidth=0)
        every, centre = max(1, len(steps) // 8), [b.estimate for b in bands]
        axes.plot(steps, centre, color=colour, linewidth=2, marker=marker, markevery=every, label=label)
    axes.set(xlabel="training step", ylabel=LABELS.get(key, key))
    axes.set_ylim(bottom=0)
    if share:
        axes.set_ylim(top=min(1.0, max(0.1, axes.get_ylim()[1])))
    _finish(axes)


def plot_learning_curves(runs: Sequence[RecordedRun], title: str, note: str = "") -> Figure:
    """Accuracy, tool calls and invalid calls of all arms, with a caption that says what the bands are."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    for axes, key in zip(panels, LABELS, strict=False):
        plot_metric(axes, runs, key)
    panels[0].legend(frameon=False)
    config = runs[0].header["config"]
    counts = sorted({len(mine) for mine in by_arm(runs).values()})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    caption = (
        f"{seeds} seeds an arm (thin lines); bold: mean of a 5-step moving average; band: 95 % t-interval over "
        f"seeds. {config['problems_per_step']} problems x {config['group_size']} rollouts a step. {note}"
    )
    figure.suptitle(title)
    figure.supxlabel(textwrap.fill(caption, 150), fontsize=8, color="#555555")
    return figure


def plot_differences(found: Sequence[Difference], title: str) -> Figure:
    """Each difference: its interval over seeds (bold) and over problems (thin), and what could not be seen (grey)."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.42 * len(found)), layout="constrained")
    for row, d in enumerate(found):
        colour = ARM_STYLE.get(d.arm, _OTHER)[0]
        axes.barh(row, 200 * d.detectable, left=-100 * d.detectable, height=0.8, color="#000000", alpha=0.06)
        _bar(axes, row + 0.22, d.over_problems, color=colour, linewidth=1)
        _bar(axes, row, d.over_seeds, color=colour, linewidth=3)
        axes.plot(100 * d.over_seeds.estimate, row, "o", color=colour, markersize=7)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), [f"{d.arm} − {d.base}  ({d.seeds} seeds)" for d in found])
    axes.invert_yaxis()
    axes.set(xlabel="difference of held-out accuracy, points", title=title)
    _finish(axes, grid=False)
    bars = "bold: 95 % t-interval over paired seeds; thin: bootstrap over problems; grey: too small to see (80 % power)"
    figure.supxlabel(bars, fontsize=8, color="#555555")
    return figure


def plot_meters(meters: Mapping[str, Mapping[str, Any]]) -> Figure:
    """How near each arm's praise lies to the true worth of turns, a row a start: records of `load_meters`."""
    arms = ("grpo", "grpo_accuracy", "+turn_rewards", "+returns", "gtpo", "potential", "+progress")
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.55 * len(meters)), layout="constrained")
    for row, record in enumerate(meters.values()):
        first = row == 0  # which alone is named in the legend
        axes.plot(record["ceiling"], row, "|", color="grey", markersize=16, label="most possible" if first else None)
        for place, arm in enumerate(arms):
            colour, marker, label = ARM_STYLE[arm]
            estimate, *ends = record["credits"][arm]["correlation"]
            height = row + 0.11 * (place - (len(arms) - 1) / 2)
            axes.plot(ends, [height] * 2, color=colour, linewidth=1)
            axes.plot(estimate, height, marker, color=colour, markersize=5, label=label if first else None)
    axes.set_yticks(range(len(meters)), list(meters))
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("correlation of a turn's advantage with its true worth (95 % bootstrap interval over groups)")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _finish(axes)
    return figure


def plot_regimes(regimes: Mapping[str, Sequence[RecordedRun]]) -> Figure:
    """GTPO minus GRPO in every regime, the accuracy before and after, and the tool calls a rollout."""
    size = (12, 2.0 + 0.42 * len(regimes))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=size, sharey=True, layout="constrained")
    panels = {left: "GTPO minus GRPO, points", middle: "held-out accuracy, %", right: LABELS["rollout/calls"]}
    for row, (name, d) in enumerate(regime_differences(regimes).items()):
        _bar(left, row, d.over_seeds, color="#555555", linewidth=3)
        left.plot(100 * d.over_seeds.estimate, row, "o", color="black")
        middle.plot(100 * first_step(regimes[name], "reward/outcome"), row, "|", color="black", markersize=14)
        right.plot(first_step(regimes[name]), row, "|", color="black", markersize=14)
        for shift, arm in ((-0.12, "grpo"), (0.12, "gtpo")):
            colour, marker, _ = ARM_STYLE[arm]
            ends = [run.footer["sampled"] for run in by_arm(regimes[name])[arm]]
            shown = [100 * e["accuracy"] for e in ends], [e["behaviour"]["rollout/calls"] for e in ends]
            for axes, values in zip((middle, right), shown, strict=True):
                axes.plot(values, [row + shift] * len(ends), marker, color=colour, alpha=0.6)
    left.axvline(0, color="black", linewidth=0.8)
    left.set_yticks(range(len(regimes)), list(regimes))
    left.invert_yaxis()
    for colour, marker, label in (ARM_STYLE["grpo"], ARM_STYLE["gtpo"]):
        middle.plot([], [], marker, color=colour, label=label)
    middle.plot([], [], "|", color="black", markersize=12, label="at the start")
    figure.legend(*middle.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    for axes, label in panels.items():
        axes.set_xlabel(label)
        _finish(axes)
    figure.suptitle("Where does GTPO differ from GRPO? One dot a seed; intervals: 95 % t over paired seeds")
    return figure


def save_figure(figure: Figure, name: str, runs: Sequence[RecordedRun] = (), folder: str | Path | None = None) -> Path:
    """Write ``name``.svg, .png (its path comes back) and .json, where the data came from; byte for byte the same."""
    folder = Path(folder or results_folder())
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
    timed = ("time/", "memory/")  # they differ from run to run; what was learned does not
    kept = [{k: v for k, v in step.items() if not k.startswith(timed)} for run in runs for step in run.steps]
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


def readme_figures(folder: Path = RUNS, output: Path = ROOT / "docs") -> list[Path]:
    """The README's figures, from the recorded runs alone."""
    regimes = load_regime_runs(folder)
    main = [run for run in regimes["(shipped)"] if run.arm in ("grpo", "gtpo")]
    curves = plot_learning_curves(main, "A small policy learns to use a Python tool over several turns")
    return [
        save_figure(curves, "side_by_side", main, output),
        save_figure(plot_regimes(regimes), "regimes", [run for runs in regimes.values() for run in runs], output),
    ]
