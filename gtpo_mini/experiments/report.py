"""From recorded runs to the tables of README and docs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from jinja2 import StrictUndefined, Template

from ..credit.credit import ARMS, VARIANTS
from ..train.metrics import mean
from ..train.record import RecordedRun, load_runs
from .compare import Difference, accuracies, corrected, differences, percent, points
from .regimes import REGIMES
from .stats import t_interval

_NAMES = {"grpo": "GRPO", "gtpo": "GTPO"}
ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- made by: gtpo-mini report -->", "<!-- end of what is made -->"


def arms_table(runs: Sequence[RecordedRun], base: str = "grpo") -> str:
    """Markdown: every arm's accuracy, behaviour and difference from the base arm."""
    found = _against(runs, base)
    rows = [
        f"| arm | seeds | rate | sampled, % | greedy, % | calls | invalid, % | minus {base}, points: seeds | problems "
        "| detectable | p (Holm) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in (arm for arm in ARMS if len(accuracies(runs, arm)) > 1):
        mine = _of(runs, arm)
        accuracy = [percent(list(accuracies(runs, arm, kind).values())) for kind in ("sampled", "greedy")]
        calls, invalid = mean(_ends(mine)), 100 * mean(_ends(mine, "rollout/invalid_calls"))
        rate = "{:g}".format(mine[0].header["config"]["learning_rate"])
        rest = [""] * 4
        if d := found.get(arm):
            low, high = (f"{100 * end:+.1f}" for end in d.over_problems[1:])
            rest = [points(d.over_seeds), f"[{low}, {high}]", f"{100 * d.detectable:.1f}", f"{d.p_holm:.2g}"]
        rows.append(_row(f"`{arm}`", len(mine), rate, *accuracy, f"{calls:.2f}", f"{invalid:.1f}", *rest))
    return "\n".join(rows)


def _row(*columns: object) -> str:
    return f"| {' | '.join(map(str, columns))} |"


def _of(runs: Sequence[RecordedRun], arm: str) -> list[RecordedRun]:
    return [run for run in runs if run.arm == arm]


def _ends(runs: Sequence[RecordedRun], key: str = "rollout/calls") -> list[float]:
    """What the final evaluation saw of each run, sampled."""
    return [run.footer["sampled"]["behaviour"][key] for run in runs]


def _start(runs: Sequence[RecordedRun], key: str = "rollout/calls") -> float:
    """Mean over the runs' first steps."""
    return mean([run.steps[0][key] for run in runs])


def _against(runs: Sequence[RecordedRun], base: str = "grpo") -> dict[str, Difference]:
    """Every arm's difference from the base arm, p-values corrected for all of them."""
    arms = [arm for arm in ARMS if arm != base and len(accuracies(runs, arm)) > 1]
    return {difference.arm: difference for difference in differences(runs, arms, base)}


def broke_down(runs: Sequence[RecordedRun]) -> list[str]:
    """Runs that ended, sampled and held out, below their first step's accuracy: e.g. "`gtpo` seed 5 (25 to 16 %)"."""
    pairs = [(run, 100 * run.steps[0]["reward/outcome"], 100 * run.footer["sampled"]["accuracy"]) for run in runs]
    return [f"`{run.arm}` seed {run.seed} ({start:.0f} to {end:.0f} %)" for run, start, end in pairs if end <= start]


def load_regime_runs(folder: Path = ROOT / "data" / "runs", kind: str = "regimes") -> dict[str, list[RecordedRun]]:
    """The recorded runs of GRPO, GTPO and our variants in every regime, the shipped policy's own first.

    Args:
        folder: of all recorded runs.
        kind: "regimes", or "regimes_3e-4": those at half the learning rate, without the shipped policy's.
    """
    recorded = {name: folder / kind / name for name in REGIMES}
    regimes = {name: load_runs(path) for name, path in recorded.items() if path.exists()}
    if kind != "regimes":
        return regimes
    shipped = [run for run in load_runs(folder / "ablation") if run.arm in ("grpo", "gtpo", *VARIANTS)]
    return {"(shipped)": shipped, **regimes}


def regime_differences(regimes: Mapping[str, Sequence[RecordedRun]]) -> dict[str, Difference]:
    """GTPO minus GRPO in every regime of `load_regime_runs`, p-values corrected over the regimes."""
    found = {name: differences(runs, ["gtpo"])[0] for name, runs in regimes.items()}
    return dict(zip(found, corrected(list(found.values())), strict=True))


def regimes_table(regimes: Mapping[str, Sequence[RecordedRun]]) -> str:
    """Markdown: GTPO minus GRPO in every regime of `load_regime_runs`."""
    rows = [
        "| regime | what is special | seeds | first step, % | GRPO, % (greedy) | GTPO, % (greedy) "
        "| GTPO minus GRPO, points | detectable | p (Holm) | calls at the start, GRPO, GTPO |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, d in regime_differences(regimes).items():
        special = REGIMES[name].special if name in REGIMES else "the shipped policy and task"
        sides = {arm: _of(regimes[name], arm) for arm in ("grpo", "gtpo")}
        kinds = ("sampled", "greedy")
        shares = [[100 * mean(accuracies(side, arm, kind).values()) for kind in kinds] for arm, side in sides.items()]
        ends = ["{:.1f} ({:.1f})".format(*each) for each in shares]
        calls = [_start(sides["grpo"]), *(mean(_ends(side)) for side in sides.values())]
        first = f"{100 * _start(sides['grpo'], 'reward/outcome'):.0f}"
        found = (points(d.over_seeds), f"{100 * d.detectable:.1f}", f"{d.p_holm:.2g}")
        rows.append(_row(name, special, d.seeds, first, *ends, *found, ", ".join(f"{c:.1f}" for c in calls)))
    return "\n".join(rows)


def variants_table(regimes: Mapping[str, Sequence[RecordedRun]]) -> str:
    """Markdown: GTPO and each variant of ours minus GRPO, in every regime in which the variant was run twice.

    The p-values are corrected for all rows of this table.
    """
    rows = [
        "| regime | arm | seeds | minus GRPO, points | detectable | p (Holm) | calls at the start, end |",
        "|---|---|---|---|---|---|---|",
    ]
    names, found = [], []
    for name, runs in regimes.items():
        tried = [arm for arm in VARIANTS if len(_of(runs, arm)) > 1]
        more = differences(runs, ["gtpo", *tried]) if tried else []
        names, found = [*names, *[name] * len(more)], [*found, *more]
    for name, d in zip(names, corrected(found), strict=True):
        mine = _of(regimes[name], d.arm)
        detectable = "" if math.isnan(d.detectable) else f"{100 * d.detectable:.1f}"
        calls = f"{_start(mine):.1f}, {mean(_ends(mine)):.1f}"
        rows.append(_row(name, f"`{d.arm}`", d.seeds, points(d.over_seeds), detectable, f"{d.p_holm:.2g}", calls))
    return "\n".join(rows)


def without_penalties(regimes: Mapping[str, Sequence[RecordedRun]]) -> str:
    """What taking the penalties away does to GTPO, e.g. "weak +13.5 [+5.0, +22.0], p 0.02"; p-values corrected."""
    tried = {name: runs for name, runs in regimes.items() if len(_of(runs, "no_penalty")) > 1}
    found = corrected([differences(runs, ["no_penalty"], "gtpo")[0] for runs in tried.values()])
    parts = zip(tried, found, strict=True)
    return "; ".join(f"{name} {points(d.over_seeds)}, p {d.p_holm:.2g}" for name, d in parts) or "not run"


def seen_again(runs: Sequence[RecordedRun], first: int = 4) -> str:
    """What the seeds say that were added because of what the ``first`` seeds had shown; these are left out."""
    fresh = [run for run in runs if run.seed >= first]
    found = corrected([*differences(fresh, ["gtpo", "potential"]), *differences(fresh, ["no_penalty"], "gtpo")])
    return "; ".join(map(_in_words, found))


def _in_words(d: Difference) -> str:
    return f"`{d.arm}` minus `{d.base}` {points(d.over_seeds)} points, p {d.p_holm:.2g}"


def at_one_rate(folder: Path = ROOT / "data" / "runs") -> str:
    """The two steps of the ladder in which the searched rates differ, made again at the neighbours' rate."""
    others = [run for run in load_runs(folder / "ablation") if run.arm in ("+turn_rewards", "gtpo")]
    runs = [*others, *load_runs(folder / "one_rate")]
    (rate,) = {run.header["config"]["learning_rate"] for run in runs}
    steps = pairwise(["+turn_rewards", "+returns", "gtpo"])
    found = corrected([differences(runs, [new], old)[0] for old, new in steps])
    broken = "; ".join(broke_down(_of(runs, "+returns"))) or "none"
    return f"all at {rate:g} ({found[0].seeds} seeds): {'; '.join(map(_in_words, found))} (broke down: {broken})"


def unmoved(regimes: Mapping[str, Sequence[RecordedRun]]) -> list[str]:
    """Where some of an arm's runs never moved: "GRPO in hopeless (3 of 4 seeds)"."""
    found = []
    for name, runs in regimes.items():
        for arm in dict.fromkeys(run.arm for run in runs):
            mine = _of(runs, arm)
            if still := sum(not run.moved for run in mine):
                found.append(f"{_NAMES.get(arm, arm)} in {name} ({still} of {len(mine)} seeds)")
    return found


def given_up(regimes: Mapping[str, Sequence[RecordedRun]]) -> list[str]:
    """Where an arm ended with less than half of its calls: "GTPO in long (6.6 to 1.9 [1.0, 2.8] calls a rollout)"."""
    found = []
    for name, runs in regimes.items():
        start = _start(runs)
        for arm in dict.fromkeys(run.arm for run in runs):
            ends = _ends(_of(runs, arm))
            if mean(ends) < start / 2:
                now = "{:.1f} [{:.1f}, {:.1f}]".format(*t_interval(ends))
                found.append(f"{_NAMES.get(arm, arm)} in {name} ({start:.1f} to {now} calls a rollout)")
    return found


def headline(runs: Sequence[RecordedRun]) -> str:
    """One sentence: GTPO against GRPO after as many steps, with both kinds of luck and what would have been seen."""
    (d,) = differences(runs, ["gtpo"])
    low, high = (f"{100 * end:+.1f}" for end in d.over_problems[1:])
    problems = len(runs[0].footer["sampled"]["per_problem"])
    steps = runs[0].header["config"]["steps"]
    return (
        f"**GTPO minus GRPO: {points(d.over_seeds)} points** of held-out accuracy after {steps} steps ({d.seeds} "
        f"paired seeds, 95 % t-interval; over the {problems} problems [{low}, {high}]): {d.verdict}. A true difference "
        f"of {100 * d.detectable:.1f} points would most likely have been seen."
    )


def ladder_table(runs: Sequence[RecordedRun]) -> str:
    """Markdown, for the README: from GRPO to GTPO, one part a step."""
    found = _against(runs)
    rows = ["| arm | held-out accuracy, % | minus GRPO, points | p (Holm) |", "|---|---|---|---|"]
    for arm in ("grpo", "+turn_rewards", "+returns", "gtpo"):
        d = found.get(arm)
        rest = f"{points(d.over_seeds)} | {d.p_holm:.2g}" if d else " | "
        rows.append(f"| `{arm}` | {percent(list(accuracies(runs, arm).values()))} | {rest} |")
    return "\n".join(rows)


def results_text(folder: Path = ROOT / "data" / "runs") -> str:
    """``docs/results.md``, from the recorded runs alone."""
    ablation, regimes = load_runs(folder / "ablation"), load_regime_runs(folder)
    slower = load_regime_runs(folder, "regimes_3e-4")

    def listed(found: Sequence[str]) -> str:
        return "; ".join(found) or "none"

    template = (ROOT / "gtpo_mini" / "assets" / "results.md").read_text(encoding="utf-8")
    return Template(template, undefined=StrictUndefined, keep_trailing_newline=True).render(
        headline=headline(ablation),
        start=f"{100 * _start(ablation, 'reward/outcome'):.0f}",
        arms=arms_table(ablation),
        runs=len(ablation),
        broken=listed(broke_down(ablation)),
        one_rate=at_one_rate(folder),
        regimes=regimes_table(regimes),
        given_up=listed(given_up(regimes)),
        unmoved=listed(unmoved(regimes)),
        seen_again=seen_again(regimes["weak"]),
        slower=regimes_table(slower),
        slower_given_up=listed(given_up(slower)),
        variants=variants_table(regimes),
        without_penalties=without_penalties(regimes),
    )


def write_report(root: Path = ROOT, folder: Path = ROOT / "data" / "runs") -> Path:
    """Write ``docs/results.md``, and the headline with the ladder between the README's two marks.

    Raises:
        ValueError: a mark is missing.
    """
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme.name}: lacks the marks {BEGIN} and {END}, between which the results go")
    runs = load_runs(folder / "ablation")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    made = f"{headline(runs)}\n\n{ladder_table(runs)}"
    readme.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")
    results = root / "docs" / "results.md"
    results.parent.mkdir(exist_ok=True)
    results.write_text(results_text(folder), encoding="utf-8")
    return results
