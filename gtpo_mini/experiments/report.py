"""From recorded runs to the tables of README and docs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template

from ..credit.credit import ARMS, VARIANTS
from ..tasks.starts import REGIMES
from ..train.metrics import mean
from ..train.record import RecordedRun, load_runs
from .compare import Difference, accuracies, by_arm, corrected, differences, percent, points
from .stats import t_interval

_NAMES = {"grpo": "GRPO", "gtpo": "GTPO"}
ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "data" / "runs"
BEGIN, END = "<!-- made by: gtpo-mini report -->", "<!-- end of what is made -->"


def markdown_table(columns: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; ``columns`` are titles with " | " between them."""
    lines = [f"| {columns} |", "|---" * (columns.count("|") + 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def _ends(runs: Sequence[RecordedRun], key: str = "rollout/calls") -> list[float]:
    """What the final evaluation saw of each run, sampled."""
    return [run.footer["sampled"]["behaviour"][key] for run in runs]


def first_step(runs: Sequence[RecordedRun], key: str = "rollout/calls") -> float:
    """Mean over the runs' first steps."""
    return mean([run.steps[0][key] for run in runs])


def _cells(d: Difference) -> tuple[str, str, str]:
    """Points over the seeds, the detectable ones (nothing where no seed differs from the others), and p."""
    return points(d.over_seeds), "" if math.isnan(d.detectable) else f"{100 * d.detectable:.1f}", f"{d.p_holm:.2g}"


def _over_problems(d: Difference) -> str:
    """Only the interval: the estimate is the same over seeds."""
    return points(d.over_problems).partition(" ")[2]


def _in_words(found: Iterable[Difference]) -> str:
    words = "`{}` minus `{}` {} points, p {:.2g}"
    return "; ".join(words.format(d.arm, d.base, points(d.over_seeds), d.p_holm) for d in found)


def _against(runs: Sequence[RecordedRun], base: str = "grpo") -> dict[str, Difference | None]:
    """Every arm's difference from the base arm, p-values corrected for all of them; None for the base itself."""
    arms = [arm for arm in ARMS if len(accuracies(runs, arm)) > 1]
    found = {d.arm: d for d in differences(runs, [arm for arm in arms if arm != base], base)}
    return {arm: found.get(arm) for arm in arms}


def arms_table(runs: Sequence[RecordedRun], base: str = "grpo") -> str:
    """Markdown: every arm's accuracy, behaviour and difference from the base arm."""
    rows, arms = [], by_arm(runs)
    for arm, d in _against(runs, base).items():
        mine = arms[arm]
        accuracy = [percent(accuracies(mine, arm, kind).values()) for kind in ("sampled", "greedy")]
        calls, invalid = mean(_ends(mine)), 100 * mean(_ends(mine, "rollout/invalid_calls"))
        rate = "{:g}".format(mine[0].header["config"]["learning_rate"])
        seeds, *more = _cells(d) if d else [""] * 3
        rest = [seeds, _over_problems(d) if d else "", *more]
        rows.append([f"`{arm}`", len(mine), rate, *accuracy, f"{calls:.2f}", f"{invalid:.1f}", *rest])
    columns = "arm | seeds | rate | sampled, % | greedy, % | calls | invalid, %"
    return markdown_table(f"{columns} | minus {base}, points: seeds | problems | detectable | p (Holm)", rows)


def broke_down(runs: Sequence[RecordedRun]) -> list[str]:
    """Runs that ended, sampled and held out, below their first step's accuracy: e.g. "`gtpo` seed 5 (25 to 16 %)"."""
    pairs = [(run, 100 * run.steps[0]["reward/outcome"], 100 * run.footer["sampled"]["accuracy"]) for run in runs]
    return [f"`{run.arm}` seed {run.seed} ({start:.0f} to {end:.0f} %)" for run, start, end in pairs if end <= start]


def load_regime_runs(folder: Path = RUNS, kind: str = "regimes") -> dict[str, list[RecordedRun]]:
    """The recorded runs of GRPO, GTPO and our variants in every regime, the shipped policy's own first.

    ``kind`` "regimes_3e-4": those at half the learning rate, without the shipped policy's.
    """
    recorded = {name: folder / kind / name for name in REGIMES}
    regimes = {name: load_runs(path) for name, path in recorded.items() if path.exists()}
    if kind != "regimes":
        return regimes
    shipped = [run for run in load_runs(folder / "ablation") if run.arm in ("grpo", "gtpo", *VARIANTS)]
    return {"(shipped)": shipped, **regimes}


def regime_differences(regimes: Mapping[str, Sequence[RecordedRun]]) -> dict[str, Difference]:
    """GTPO minus GRPO in every regime of `load_regime_runs`, p-values corrected over the regimes."""
    return dict(zip(regimes, corrected([differences(runs, ["gtpo"])[0] for runs in regimes.values()]), strict=True))


def regimes_table(regimes: Mapping[str, Sequence[RecordedRun]]) -> str:
    """Markdown: GTPO minus GRPO in every regime of `load_regime_runs`."""
    rows, kinds = [], ("sampled", "greedy")
    for name, d in regime_differences(regimes).items():
        special = REGIMES[name].special if name in REGIMES else "the shipped policy and task"
        sides = {arm: by_arm(regimes[name])[arm] for arm in ("grpo", "gtpo")}
        shares = [[100 * mean(accuracies(side, arm, kind).values()) for kind in kinds] for arm, side in sides.items()]
        ends = ["{:.1f} ({:.1f})".format(*each) for each in shares]
        calls = [first_step(sides["grpo"]), *(mean(_ends(side)) for side in sides.values())]
        first = f"{100 * first_step(sides['grpo'], 'reward/outcome'):.0f}"
        rows.append([name, special, d.seeds, first, *ends, *_cells(d), ", ".join(f"{c:.1f}" for c in calls)])
    columns = "regime | what is special | seeds | first step, % | GRPO, % (greedy) | GTPO, % (greedy)"
    columns += " | GTPO minus GRPO, points | detectable | p (Holm) | calls at the start, GRPO, GTPO"
    return markdown_table(columns, rows)


def variants_table(regimes: Mapping[str, Sequence[RecordedRun]]) -> str:
    """Markdown: GTPO and each variant of ours minus GRPO, in every regime in which the variant was run twice.

    The p-values are corrected for all rows of this table.
    """
    found = []
    for name, runs in regimes.items():
        tried = [arm for arm in VARIANTS if len(by_arm(runs).get(arm, [])) > 1]
        found += [(name, d) for d in (differences(runs, ["gtpo", *tried]) if tried else [])]
    rows = []
    for (name, _), d in zip(found, corrected([d for _, d in found]), strict=True):
        mine = by_arm(regimes[name])[d.arm]
        rows.append([name, f"`{d.arm}`", d.seeds, *_cells(d), f"{first_step(mine):.1f}, {mean(_ends(mine)):.1f}"])
    return markdown_table(
        "regime | arm | seeds | minus GRPO, points | detectable | p (Holm) | calls at the start, end", rows
    )


def without_penalties(regimes: Mapping[str, Sequence[RecordedRun]]) -> str:
    """What taking the penalties away does to GTPO, e.g. "weak +13.5 [+5.0, +22.0], p 0.02"; p-values corrected."""
    tried = {name: runs for name, runs in regimes.items() if len(by_arm(runs).get("no_penalty", [])) > 1}
    found = corrected([differences(runs, ["no_penalty"], "gtpo")[0] for runs in tried.values()])
    parts = zip(tried, found, strict=True)
    return "; ".join(f"{name} {points(d.over_seeds)}, p {d.p_holm:.2g}" for name, d in parts) or "not run"


def seen_again(runs: Sequence[RecordedRun], first: int = 4) -> str:
    """What the seeds say that were added because of what the ``first`` seeds had shown; these are left out."""
    fresh = [run for run in runs if run.seed >= first]
    found = [*differences(fresh, ["gtpo", "potential"]), *differences(fresh, ["no_penalty"], "gtpo")]
    return _in_words(corrected(found))


def at_one_rate(folder: Path = RUNS) -> str:
    """The two steps of the ladder in which the searched rates differ, made again at the neighbours' rate."""
    others = [run for run in load_runs(folder / "ablation") if run.arm in ("+turn_rewards", "gtpo")]
    runs = [*others, *load_runs(folder / "one_rate")]
    (rate,) = {run.header["config"]["learning_rate"] for run in runs}
    steps = pairwise(["+turn_rewards", "+returns", "gtpo"])
    found = corrected([differences(runs, [new], old)[0] for old, new in steps])
    broken = "; ".join(broke_down(by_arm(runs)["+returns"])) or "none"
    return f"all at {rate:g} ({found[0].seeds} seeds): {_in_words(found)} (broke down: {broken})"


def unmoved(regimes: Mapping[str, Sequence[RecordedRun]]) -> list[str]:
    """Where some of an arm's runs never moved: "GRPO in hopeless (3 of 4 seeds)"."""
    return [
        f"{_NAMES.get(arm, arm)} in {name} ({still} of {len(mine)} seeds)"
        for name, runs in regimes.items()
        for arm, mine in by_arm(runs).items()
        if (still := sum(not run.moved for run in mine))
    ]


def given_up(regimes: Mapping[str, Sequence[RecordedRun]]) -> list[str]:
    """Where an arm ended with less than half of its calls: "GTPO in long (6.6 to 1.9 [1.0, 2.8] calls a rollout)"."""
    text = "{} in {} ({:.1f} to {:.1f} [{:.1f}, {:.1f}] calls a rollout)"
    return [
        text.format(_NAMES.get(arm, arm), name, first_step(runs), *t_interval(_ends(mine)))
        for name, runs in regimes.items()
        for arm, mine in by_arm(runs).items()
        if mean(_ends(mine)) < first_step(runs) / 2
    ]


def headline(runs: Sequence[RecordedRun]) -> str:
    """One sentence: GTPO against GRPO after as many steps, with both kinds of luck and what would have been seen."""
    (d,) = differences(runs, ["gtpo"])
    problems, steps = len(runs[0].footer["sampled"]["per_problem"]), runs[0].header["config"]["steps"]
    return (
        f"**GTPO minus GRPO: {points(d.over_seeds)} points** of held-out accuracy after {steps} steps ({d.seeds} "
        f"paired seeds, 95 % t-interval; over the {problems} problems {_over_problems(d)}): {d.verdict}. A true "
        f"difference of {100 * d.detectable:.1f} points would most likely have been seen."
    )


def ladder_table(runs: Sequence[RecordedRun]) -> str:
    """Markdown, for the README: from GRPO to GTPO, one part a step."""
    found, rows = _against(runs), []
    for arm in ("grpo", "+turn_rewards", "+returns", "gtpo"):
        difference, _, p = _cells(d) if (d := found.get(arm)) else [""] * 3
        rows.append([f"`{arm}`", percent(accuracies(runs, arm).values()), difference, p])
    return markdown_table("arm | held-out accuracy, % | minus GRPO, points | p (Holm)", rows)


def load_meters(folder: str | Path = RUNS / "meter") -> dict[str, dict[str, Any]]:
    """The records of `gtpo-mini meter` in a folder, by regime, in the order of `REGIMES`."""
    paths = {name: Path(folder, f"{name}.json") for name in REGIMES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def meters_table(folder: Path) -> str:
    """Markdown: the correlation of each arm's advantages with the true ones, a line an arm, a column a start."""
    meters = load_meters(folder / "meter")
    arms = [arm for arm in ARMS if all(arm in record["credits"] for record in meters.values())]
    rows = [[f"`{arm}`", *(f"{m['credits'][arm]['correlation'][0]:.2f}" for m in meters.values())] for arm in arms]
    rows.append(["most possible", *(f"{record['ceiling']:.2f}" for record in meters.values())])
    for arm in ("gtpo", "normalize_batch", "normalize_centred"):
        shares = (f"{100 * record['credits'][arm]['hopeless_share']:.0f} %" for record in meters.values())
        rows.append([f"`{arm}` from groups with nothing right", *shares])
    return markdown_table(" | ".join(["arm", *meters]), rows)


def results_text(folder: Path = RUNS) -> str:
    """``docs/results.md``, from the recorded runs alone; its template calls the functions of this module."""
    template = (ROOT / "gtpo_mini" / "assets" / "results.md").read_text(encoding="utf-8")
    runs = {"ablation": load_runs(folder / "ablation"), "regimes": load_regime_runs(folder), "folder": folder}
    runs["slower"] = load_regime_runs(folder, "regimes_3e-4")
    return Template(template, undefined=StrictUndefined, keep_trailing_newline=True).render(globals() | runs)


def write_report(root: Path = ROOT, folder: Path = RUNS) -> Path:
    """Write ``docs/results.md``, and headline and ladder between the README's two marks, which must be there."""
    readme, results = root / "README.md", root / "docs" / "results.md"
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme.name}: lacks the marks {BEGIN} and {END}, between which the results go")
    runs = load_runs(folder / "ablation")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n{headline(runs)}\n\n{ladder_table(runs)}\n{END}{after}", encoding="utf-8")
    results.parent.mkdir(exist_ok=True)
    results.write_text(results_text(folder), encoding="utf-8")
    return results
