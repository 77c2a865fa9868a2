"""Figures: an arm has the same colour and marker everywhere, thin lines are seeds, bands are t-intervals."""

from __future__ import annotations

import hashlib
import io
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..train.config import results_folder
from ..train.metrics import mean
from ..train.record import RecordedRun
from .compare import Difference, Study, by_arm, in_starts, over_starts, span
from .report import (
    ROOT,
    RUNS,
    load_meters,
    load_study,
    nearer,
    over_regimes,
    pooled,
    prediction,
    rank_correlation,
    study_verdict,
)
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
    "normalize_batch": ("#999933", "<", "GTPO, batch"),
    "normalize_centred": ("#882255", ">", "GTPO, centred batch (ours)"),
    "normalize_turn": ("#EE8866", "1", "GTPO, turn"),
    "normalize_first": ("#77AADD", "2", "GTPO, first"),
    "spare_hopeless": ("#332288", "X", "GTPO, hopeless groups spared (ours)"),
    "dr_grpo": ("#88CCEE", "d", "Dr. GRPO"),
    "mt_grpo": ("#44AA99", "p", "MT-GRPO"),
    "gigpo": ("#117733", "h", "GiGPO"),
    "irc": ("#DDCC77", "8", "IRC"),
    "a3": ("#CC6677", "H", "A3"),
    "simpletir": ("#AA4499", "+", "SimpleTIR"),
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


def _bar(axes: Axes, row: float, interval: Interval, colour: str, width: float = 3, marker: str = "o") -> None:
    """An interval in points, as a line, and its estimate."""
    axes.plot([100 * end for end in interval[1:]], [row] * 2, solid_capstyle="butt", color=colour, linewidth=width)
    axes.plot(100 * interval.estimate, row, marker, color=colour, markersize=7, markerfacecolor="white")


def _shows_seeds(runs: Sequence[RecordedRun]) -> bool:
    return len(by_arm(runs)) <= 3


def plot_metric(axes: Axes, runs: Sequence[RecordedRun], key: str = "reward/outcome", window: int = 5) -> None:
    """One metric as a moving average over the steps: thin lines are seeds, the bold one their mean in its t-band.

    Mean and band end with the shortest run of an arm; a single run is the bold line, without a band. Of more than
    three arms no seeds are drawn: they would hide each other.
    """
    share = key in ("reward/outcome", "rollout/invalid_calls")
    for arm, mine in by_arm(runs).items():
        colour, marker, label = ARM_STYLE.get(arm, (*_OTHER, arm))
        series = [run.series(key) for run in mine]
        curves = [[mean(s[max(0, t - window) : t]) for t in range(1, len(s) + 1)] for s in series]
        steps = range(1, min(map(len, curves)) + 1)
        columns = list(zip(*curves, strict=False))
        if len(mine) > 1:
            for curve in curves if _shows_seeds(runs) else ():
                axes.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=0.6, alpha=0.5)
            ends = [t_interval(column, share=share)[1:] for column in columns]
            axes.fill_between(steps, *zip(*ends, strict=True), color=colour, alpha=0.15, linewidth=0)
        centre = [mean(column) for column in columns]
        every = max(1, len(steps) // 8)
        axes.plot(steps, centre, color=colour, linewidth=2, marker=marker, markevery=every, label=label)
    axes.set(xlabel="training step", ylabel=LABELS.get(key, key))
    top = 1.06 * max(0.1, axes.dataLim.y1)
    axes.set_ylim(0, min(1.0, top) if share else top)
    _finish(axes)


def plot_learning_curves(runs: Sequence[RecordedRun], title: str, note: str = "", tall: bool = False) -> Figure:
    """Accuracy, tool calls and invalid calls of all arms, with a caption that says what the bands are."""
    shape, size = ((3, 1), (5.5, 10)) if tall else ((1, 3), (12, 4.2))
    figure, panels = plt.subplots(*shape, figsize=size, layout="constrained")
    for axes, key in zip(panels, LABELS, strict=False):
        plot_metric(axes, runs, key)
    panels[0].legend(frameon=False)
    config = runs[0].header["config"]
    counts = {len(mine) for mine in by_arm(runs).values()}
    seeds = f"{span(counts)} seeds an arm" + " (thin lines)" * _shows_seeds(runs)
    lines = f"{seeds}; bold: mean of a 5-step moving average; band: 95 % t-interval over seeds."
    if counts == {1}:
        lines = "One run an arm: a 5-step moving average, which says nothing of other seeds."
    drawn = f"{config['problems_per_step']} problems x {config['group_size']} rollouts a step."
    figure.suptitle(title)
    figure.supxlabel(textwrap.fill(f"{lines} {drawn} {note}", 70 if tall else 150), fontsize=8, color="#555555")
    return figure


def plot_panels(panels: Study, title: str, window: int = 10) -> Figure:
    """Learning curves of the arms of some runs, a panel for each set of runs, under its name."""
    size = (3.6 * len(panels), 3.8)
    figure, found = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, (name, runs) in zip(found[0], panels.items(), strict=True):
        plot_metric(axes, runs, window=window)
        axes.set_title(name)
        axes.legend(frameon=False, loc="lower right")
        axes.label_outer()
    figure.suptitle(title)
    seeds = span(len(mine) for runs in panels.values() for mine in by_arm(runs).values())
    note = f"mean over {seeds} seeds and {window} steps; band: 95 % t-interval over seeds"
    figure.supxlabel(note, fontsize=8, color="#555555")
    return figure


def plot_bars(panels: Mapping[str, Mapping[str, float]]) -> Figure:
    """A panel for each title, a bar for each arm; what the numbers are stands after the title, behind a colon."""
    figure, found = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), squeeze=False, layout="constrained")
    for axes, (title, values) in zip(found[0], panels.items(), strict=True):
        colours = [ARM_STYLE.get(arm, _OTHER)[0] for arm in values]
        axes.bar_label(axes.bar(list(values), list(values.values()), color=colours), fmt="%.3g", fontsize=8)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(title=title.partition(": ")[0], ylabel=title.partition(": ")[2])
        axes.tick_params(axis="x", labelrotation=15)
        _finish(axes, grid=False)
    return figure


def plot_turns(metrics: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Mean advantage of right and of wrong rollouts by turn index, a panel for each set of metrics."""
    size = (2.6 * len(metrics), 3.4)
    figure, panels = plt.subplots(1, len(metrics), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, (name, found) in zip(panels[0], metrics.items(), strict=True):
        for kind, colour, marker in (("right", "#009E73", "o"), ("wrong", "#D55E00", "s")):
            line = [found[f"advantage/{kind}_turn_{j}"] for j in range(1, 7)]
            axes.plot(range(1, 7), line, color=colour, marker=marker, label=f"{kind} rollouts")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(title=name, xlabel="turn")
        _finish(axes, grid=False)
    panels[0][0].set_ylabel("mean advantage")
    panels[0][0].legend(frameon=False)
    figure.suptitle(title)
    return figure


def plot_likeness(likeness: Mapping[str, Mapping[bool, Sequence[float]]]) -> Figure:
    """How much the code of right (True) and of wrong rollouts resembles the right ones', a panel a similarity."""
    figure, panels = plt.subplots(
        1, len(likeness), figsize=(5 * len(likeness), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (title, found) in zip(panels[0], likeness.items(), strict=True):
        for kind, label, colour in ((True, "right rollouts", "#009E73"), (False, "wrong rollouts", "#D55E00")):
            axes.hist(found[kind], [i / 20 for i in range(21)], density=True, color=colour, alpha=0.5, label=label)
        axes.set(title=title, xlabel="mean similarity to the (other) right rollouts' code")
        _finish(axes, grid=False)
    panels[0][0].set_ylabel("density")
    panels[0][0].legend(frameon=False)
    return figure


def plot_differences(found: Sequence[Difference], title: str) -> Figure:
    """Each difference: its interval over seeds (bold), over problems (thin) if known, and what was too small to see."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.42 * len(found)), layout="constrained")
    for row, d in enumerate(found):
        colour = ARM_STYLE.get(d.arm, _OTHER)[0]
        axes.barh(row, 200 * d.detectable, left=-100 * d.detectable, height=0.8, color="#000000", alpha=0.06)
        if d.over_problems:
            _bar(axes, row + 0.22, d.over_problems, colour, 1, "")
        _bar(axes, row, d.over_seeds, colour)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), [f"{d.arm} − {d.base}  ({d.seeds} seeds)" for d in found])
    axes.invert_yaxis()
    by_problem = any(d.over_problems for d in found)
    what = "held-out accuracy" if by_problem else "the area under the learning curve"
    axes.set(xlabel=f"difference of {what}, points", title=title)
    _finish(axes, grid=False)
    thin = "thin: bootstrap over problems; " if by_problem else ""
    bars = f"bold: 95 % t-interval over paired seeds; {thin}grey: too small to see (80 % power)"
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
            axes.plot(ends, [height] * 2, color=colour, linewidth=1, solid_capstyle="butt")
            axes.plot(estimate, height, marker, color=colour, markersize=5, label=label if first else None)
    axes.set_yticks(range(len(meters)), list(meters))
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("correlation of a turn's advantage with its true worth (95 % bootstrap interval over groups)")
    axes.set_title("How near does an arm's praise lie to what the turn was worth?")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _finish(axes)
    return figure


def plot_nearer(
    meters: Mapping[str, Mapping[str, Any]], arms: Sequence[str], base: str = "gtpo", study: Study | None = None
) -> Figure:
    """How much nearer to the true worth of turns an arm's praise lies than the base's: a dot a start, bar: mean.

    With a ``study`` beside it what training brought: area minus the base's, mean of the 20 % starts, where it was run.
    """
    size, note = (10 if study else 8, 1.5 + 0.35 * len(arms)), "a dot a start, bar: mean of the starts"
    figure, found = plt.subplots(1, 2 if study else 1, figsize=size, sharey=True, squeeze=False, layout="constrained")
    starts, panels = in_starts(study or {}, "_20").values(), found[0]
    for row, (arm, gains) in enumerate(nearer(meters, arms, base).items()):
        colour = ARM_STYLE.get(arm, _OTHER)[0]
        panels[0].plot(gains, [row] * len(gains), "o", color="#777777", markersize=5, alpha=0.6)
        panels[0].plot(mean(gains), row, "|", color=colour, markersize=18, markeredgewidth=4)
        if learned := arm != base and over_starts(starts, arm, base):
            _bar(panels[1], row, learned[-1].over_seeds, colour)
    panels[0].set(yticks=range(len(arms)), yticklabels=arms, ylim=(len(arms) - 0.5, -0.5))
    panels[0].set(
        title="Does its praise lie nearer the truth?", xlabel=f"correlation with a turn's worth, minus {base}'s"
    )
    if study:
        panels[1].set(title="Does it learn faster?", xlabel=f"area under the curve, minus {base}'s, points")
        note = f"left: {note}; right: 95 % t-interval over seeds"
    figure.supxlabel(note, fontsize=8)
    for axes in panels:
        axes.axvline(0, color="black", linewidth=0.8)
        _finish(axes)
    return figure


_VERDICTS = {"reproduced": "#009E73", "a smaller gain": "#009E73", "the opposite": "#D55E00"}  # others: grey


def plot_study(study: Study) -> Figure:
    """GTPO minus GRPO in every regime of `load_study`, marked by what it says of the claim, and pooled."""
    found = over_regimes(study)
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.36 * len(found)), layout="constrained")
    for row, verdict in enumerate(map(study_verdict, found.values())):
        colour = _VERDICTS.get(verdict, "#777777")
        _bar(axes, row, list(found.values())[row].over_seeds, colour)
        axes.text(1.02, row, verdict, color=colour, va="center", transform=axes.get_yaxis_transform())
    rows = [re.sub(r"_(\d+)$", r", from \1 %", name) + f"  ({d.seeds} seeds)" for name, d in found.items()]
    if len(found) > 1:
        _bar(axes, len(found), pooled(found).over_studies, "black", 5, "D")
        rows.append("all regimes")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(3, color="#0072B2", linewidth=1, linestyle="--", label="the paper's claim: +3")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set(xlabel="GTPO minus GRPO, area under the learning curve, points", title="Does GTPO learn faster than GRPO?")
    axes.legend(loc="lower left", frameon=False)
    note = "95 % t-interval over paired seeds; all regimes: a random-effects model"
    figure.supxlabel(note, fontsize=8, color="#555555")
    _finish(axes, grid=False)
    return figure


def plot_hopeless(study: Study, early: int = 20) -> Figure:
    """Share of the credit that comes from groups in which nothing is right: early in training, and over all of it."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 1.4 + 0.34 * len(study)), sharey=True, layout="constrained")
    for axes, (title, steps) in zip(panels, ((f"first {early} steps", early), ("all steps", None)), strict=True):
        for row, runs in enumerate(study.values()):
            for arm, mine in by_arm(runs).items():
                colour, marker, label = ARM_STYLE.get(arm, (*_OTHER, arm))
                shares = [100 * mean(run.series("advantage/hopeless_share")[:steps]) for run in mine]
                named = label in axes.get_legend_handles_labels()[1]
                axes.plot(mean(shares), row, marker, color=colour, label=None if named else label)
        axes.set(title=title, xlabel="% of abs(advantage) over tokens")
        _finish(axes)
    panels[0].set_yticks(range(len(study)), list(study))
    panels[0].invert_yaxis()
    panels[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.suptitle("How much of the credit comes from groups in which nothing is right?")
    return figure


def plot_prediction(meters: Mapping[str, Mapping[str, Mapping[str, Any]]], study: Study) -> Figure:
    """Does the meter predict learning? A panel for each time it was read ("at the start"), a dot an arm and regime."""
    size = (4.6 * len(meters) + 1.5, 4.6)
    figure, panels = plt.subplots(1, len(meters), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, (when, records) in zip(panels[0], meters.items(), strict=True):
        dots = prediction(records, study)
        for arm in dict.fromkeys(dot.arm for dot in dots):
            colour, marker, label = ARM_STYLE.get(arm, (*_OTHER, arm))
            mine = [dot for dot in dots if dot.arm == arm]
            x, y = [dot.meter for dot in mine], [100 * dot.gain for dot in mine]
            axes.errorbar(
                x, y, [100 * dot.error for dot in mine], fmt=marker, color=colour, label=label, elinewidth=0.8
            )
            for dot, *place in zip(mine, x, y, strict=True):
                if abs(place[0]) < 0.12 and abs(place[1]) < 4:
                    continue  # in the thick of them no label can be read
                short = re.sub(r"(\w)[a-z]*_(\d+)$", r"\1\2", dot.regime)
                axes.annotate(short, place, xytext=(4, 3), textcoords="offset points", fontsize=6, color="#555555")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.axvline(0, color="black", linewidth=0.8)
        rho = "rank correlation {:+.2f} [{:+.2f}, {:+.2f}]".format(*rank_correlation(dots))
        axes.set_title(f"{when}: {rho}", fontsize=9)
        axes.set_xlabel("meter, minus GRPO's")
        axes.locator_params(axis="x", nbins=5)
        _finish(axes)
    panels[0][0].set_ylabel("area under the learning curve, minus GRPO's, points")
    arms = panels[0][0].get_legend_handles_labels()
    panels[0][-1].legend(*arms, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.suptitle("Does better credit mean faster learning?")
    note = (
        "b, p, f: branching, programs, facts, and the start in %; bars: standard error over seeds; "
        "interval of the rank correlation: bootstrap over regimes"
    )
    figure.supxlabel(note, fontsize=8, color="#555555")
    return figure


def save_figure(
    figure: Figure,
    name: str,
    runs: Sequence[RecordedRun] | Study = (),
    folder: str | Path | None = None,
) -> Path:
    """Write ``name``.svg, .png (its path comes back) and .json, where the data came from; byte for byte the same."""
    runs = [run for mine in runs.values() for run in mine] if isinstance(runs, Mapping) else runs
    folder = Path(folder or results_folder())
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(png := io.BytesIO(), dpi=150, metadata={"Software": None})
    (folder / f"{name}.png").write_bytes(in_few_colours(png.getvalue()))
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


def in_few_colours(png: bytes) -> bytes:
    """The same picture of at most 256 colours, which is all a plot needs, in a third of the bytes."""
    with Image.open(io.BytesIO(png)) as picture:
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(smaller := io.BytesIO(), "png", optimize=True)
    return smaller.getvalue()


def readme_figures(folder: Path = RUNS, output: Path = ROOT / "docs") -> list[Path]:
    """The study's figures in README and docs, from the recorded runs alone."""
    study = load_study(folder)
    times = {"at the start": 0, "after 20 steps": 20, "after 60 steps": 60}
    meters = {when: found for when, after in times.items() if (found := load_meters(folder / "meter", after))}
    figures = {"study": plot_study(study), "prediction": plot_prediction(meters, study)}
    return [save_figure(figure, name, study, output) for name, figure in figures.items()]
