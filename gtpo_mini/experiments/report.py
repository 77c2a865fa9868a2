"""From recorded runs to the tables of README and docs."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import StrictUndefined, Template
from scipy.stats import rankdata

from ..credit.arms import ARMS, VARIANTS
from ..credit.later import LATER
from ..tasks.starts import REGIMES
from ..train.metrics import mean
from ..train.record import RecordedRun, load_runs
from .compare import (
    Asked,
    Difference,
    Study,
    accuracies,
    area,
    asked,
    blind_share,
    by_arm,
    collapsed,
    corrected,
    differences,
    held_out,
    in_starts,
    over_starts,
    percent,
    plateau,
    points,
    span,
    steps_to,
    still_rising,
)
from .stats import Interval, Pooled, random_effects

LADDER = ("grpo", "grpo_accuracy", "+turn_rewards", "+returns", "gtpo")
_LESS_HOPELESS = ("normalize_batch", "normalize_centred", "spare_hopeless")
_READINGS = ("normalize_batch", "normalize_centred", "normalize_turn", "normalize_first")
_OURS = tuple(arm for arm in VARIANTS if arm not in _READINGS)
_PARTS = [("+turn_rewards", "grpo_accuracy"), ("gtpo", "grpo"), ("+returns", "+turn_rewards"), ("gtpo", "+returns")]
#: Questions of docs/protocol.md, as `asked` takes them: which arm minus which other, and in which starts.
QUESTIONS: dict[str, tuple[Any, ...]] = {
    "c": ([(new, old) for old, new in pairwise(LADDER)], "_20"),  # each step of the ladder
    "d": ([(arm, "gtpo") for arm in _READINGS], "_20", "_5"),  # the set that is normalised over
    "e": ([(arm, "gtpo") for arm in _OURS], "_20", "_5"),  # variants of ours
    "f": (list(product(_LESS_HOPELESS, ("gtpo", "grpo"))), "_5"),  # is it groups with nothing right?
    "g": (list(product(LATER, ("gtpo", "grpo"))), "_20"),  # estimators of other papers
    "i": (_PARTS, "rare_clean", "wasted", "near_misses"),  # each part of GTPO where it claims to help
    "j": ([("gtpo", "grpo"), ("normalize_centred", "grpo"), ("normalize_centred", "gtpo")], "smollm2"),  # a real model
}
#: Folders of runs: nine regimes, starts where one part of GTPO claims to help, and (d) and (e) on a second CPU model.
STUDIES = ("study", "parts", "variants")
ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "data" / "runs"
BEGIN, END = "<!-- made by: gtpo-mini report -->", "<!-- end of what is made -->"


def markdown_table(columns: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; ``columns`` are titles with " | " between them."""
    lines = [f"| {columns} |", "|---" * (columns.count("|") + 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def last_evaluation(runs: Sequence[RecordedRun], key: str = "rollout/calls") -> list[float]:
    """What the final evaluation saw of each run, sampled."""
    return [run.footer["sampled"]["behaviour"][key] for run in runs]


def first_step(runs: Sequence[RecordedRun], key: str = "rollout/calls") -> float:
    """Mean over the runs' first steps."""
    return mean([run.steps[0][key] for run in runs])


def _cells(d: Difference) -> tuple[str, str, str]:
    """Points over the seeds, the detectable ones (nothing where no seed differs from the others), and p."""
    return points(d.over_seeds), "" if math.isnan(d.detectable) else f"{100 * d.detectable:.1f}", f"{d.p_holm:.2g}"


def load_study(folder: Path = RUNS, which: str = "study") -> dict[str, list[RecordedRun]]:
    """The recorded runs to the plateau of one of `STUDIES` (docs/protocol.md) by regime, in the order of `REGIMES`."""
    paths = {name: folder / which / f"{name}.jsonl.xz" for name in REGIMES}
    return {name: load_runs(path) for name, path in paths.items() if path.exists()}


def over_regimes(
    study: Study, kind: str | Callable[[RecordedRun], float] = area, arm: str = "gtpo", base: str = "grpo"
) -> dict[str, Difference]:
    """An arm minus another in every regime of the study, p-values corrected over the regimes."""
    gaps = [differences(runs, [arm], base, kind)[0] for runs in study.values()]
    return dict(zip(study, corrected(gaps), strict=True))


def study_verdict(d: Difference, claim: float = 0.03) -> str:
    """What a regime says of the paper's claim, by the rule of docs/protocol.md.

    A gain that is shown is "reproduced", or "a smaller gain" where its interval lies below the claimed one; a loss is
    "the opposite"; an interval below the claim without either is "not reproduced"; all else is "cannot tell".
    """
    if d.p_holm < 0.05:
        if d.over_seeds.estimate < 0:
            return "the opposite"
        return "reproduced" if d.over_seeds.high >= claim else "a smaller gain"
    return "not reproduced" if d.over_seeds.high < claim else "cannot tell"


def by_verdict(found: Mapping[str, Difference]) -> dict[str, list[str]]:
    """The regimes that say the same of the paper's claim, by what they say."""
    said = {name: study_verdict(d) for name, d in found.items()}
    return {verdict: [name for name in said if said[name] == verdict] for verdict in dict.fromkeys(said.values())}


def pooled(found: Mapping[str, Difference]) -> Pooled:
    """One estimate over the regimes (`random_effects`); pairs that are all alike by luck take the smallest error."""
    least = min(d.error for d in found.values() if d.error)
    return random_effects([d.over_seeds.estimate for d in found.values()], [d.error or least for d in found.values()])


def study_table(study: Study) -> str:
    """Markdown: in every regime the area under both curves, and what GTPO adds to it, to the plateau and to speed."""
    rows, ends = [], over_regimes(study, held_out)
    for name, d in over_regimes(study).items():
        grpo, gtpo = (by_arm(study[name])[arm] for arm in ("grpo", "gtpo"))
        level = 0.9 * mean([plateau(run) for run in grpo])
        areas = [f"{100 * mean([area(run) for run in runs]):.1f}" for runs in (grpo, gtpo)]
        steps = " / ".join(f"{mean([steps_to(run, level) for run in runs]):.0f}" for runs in (grpo, gtpo))
        levels = " / ".join(
            f"{100 * mean([held_out(run) for run in runs]):.1f}{' (still rising)' if still_rising(runs) else ''}"
            for runs in (grpo, gtpo)
        )
        rows.append([name, d.seeds, *areas, *_cells(d), study_verdict(d), steps, levels, points(ends[name].over_seeds)])
    columns = "regime | seeds | area GRPO, % | GTPO, % | minus, points | detectable | p (Holm) | the claim of +3"
    return markdown_table(f"{columns} | steps to 90 % of GRPO's plateau | held out at the end, % | minus, points", rows)


def headline(study: Study, variants: Study | None = None) -> str:
    """In a few words: GTPO minus GRPO pooled over the regimes, what it says of the claim, and why it is lowest."""
    found = over_regimes(study)
    over = pooled(found).over_studies
    what = "loses to" if over.high < 0 else "gains on" if over.low > 0 else "shows no gain on"
    seeds = f"{span(d.seeds for d in found.values())} paired seeds in each"
    said = ", ".join(f"{word} in {len(names)}" for word, names in by_verdict(found).items())
    text = (
        f"**GTPO {what} GRPO here: {points(over)} points of area under the learning curve, pooled over {len(found)} "
        f"regimes** ({seeds}). Of the claimed +3: {said}."
    )
    if weak := in_starts(study, "_5").values():
        least, most = (100 * end(map(blind_share, weak)) for end in (min, max))
        text += f" It is lowest from the starts of 5 % right: {least:.0f} to {most:.0f} % of its early credit "
        text += "comes from groups in which nothing is right, where GRPO is silent."
    if "`" in (told := shown_readings(study, variants)):
        text += f" It depends on what is normalised over: minus GTPO's own reading, {told}."
    return text


def study_sentence(study: Study) -> str:
    """What the headline leaves out: the regimes by name, what is excluded, and what becomes of the weak starts."""
    found = over_regimes(study)
    said = [
        f"{word} in {', '.join(f'`{name}` ({points(found[name].over_seeds)})' for name in names)}"
        for word, names in by_verdict(found).items()
    ]
    small, spread = sum(d.p_within(0.02) < 0.05 for d in found.values()), 100 * pooled(found).sd
    text = f"By regime: {'; '.join(said)}. The standard deviation of their true effects is {spread:.1f}; "
    text += f"differences of 2 points are excluded in {small}."
    if spared := [one.mean for one in asked(study, *QUESTIONS["f"]) if one.mean.arm == "spare_hopeless"]:
        over, against = (points(d.over_seeds) for d in spared)
        text += f" Without penalties in groups with nothing right (`--arm spare_hopeless`, {spared[0].seeds} seeds, "
        text += f"the starts of 5 % alone): {over} over GTPO, {against} against GRPO."
    return text


def shown_readings(study: Study, variants: Study | None = None) -> str:
    """Which other sets to normalise over are shown to differ from GTPO's own (question (d)), or that none is."""
    told: dict[str, list[str]] = {}  # by start
    for one in asked(study, *QUESTIONS["d"], elsewhere=variants):
        if one.mean.p_holm < 0.05:
            told.setdefault(one.start[1:], []).append(f"`{one.mean.arm}` {points(one.mean.over_seeds)}")
    return "; ".join(f"from {start} % {', '.join(arms)}" for start, arms in told.items()) or "none is shown to differ"


def asked_tables(found: Sequence[Asked], meters: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Markdown: what `asked` found, a table a start; with ``meters`` also by how much an arm's praise lies nearer."""
    tables = []
    for start in dict.fromkeys(one.start for one in found):
        rows, mine = [], [one for one in found if one.start == start]
        *each, over = [*mine[0].by_regime, "mean of them"] if len(mine[0].by_regime) > 1 else mine[0].by_regime
        for one in mine:
            arm, base = one.mean.arm, one.mean.base
            gains, blind = [points(one.by_regime[name].over_seeds) for name in each], f"{100 * one.blind:.0f}"
            read = [f"{mean(nearer({n: meters[n] for n in one.by_regime}, [arm], base)[arm]):+.2f}"] if meters else []
            rows.append([f"`{arm}`", blind, f"`{base}`", *read, one.mean.seeds, *gains, *_cells(one.mean)])
        columns = ["arm | early credit from groups with nothing right, % | minus"]
        columns += ["meter, minus the base's"] if meters else []
        columns += ["seeds", *each, over]
        tables.append(markdown_table(f"{' | '.join(columns)} | detectable | p (Holm)", rows))
    return "\n\n".join(tables)


def supported_share(run: RecordedRun) -> float:
    """Share of the held-out problems that a run ends up answering rightly and with support, sampled."""
    seen = run.footer["sampled"]["behaviour"]
    return seen["rollout/stop_answer"] * seen["answer/supported"] * seen["answer/right_if_supported"]


def supported_table(runs: Sequence[RecordedRun]) -> str:
    """Markdown: what pays an answer only where a tool output supports it, beside its base; ends, held out, sampled."""
    found = [differences(runs, [f"{base}_supported"], base, supported_share)[0] for base in ("grpo", "gtpo")]
    rows, both = [], corrected(found)
    for arm, mine in by_arm(runs).items():
        ends = [percent(accuracies(mine, arm).values()), percent([supported_share(run) for run in mine])]
        calls = f"{first_step(mine):.2f} to {mean(last_evaluation(mine)):.2f}"
        rests = 100 * mean(last_evaluation(mine, "answer/supported"))
        gap = next((_cells(d) for d in both if d.arm == arm), [""] * 3)
        rows.append([f"`{arm}`", len(mine), calls, f"{rests:.0f}", *ends, *gap])
    columns = "arm | seeds | calls a rollout | answers with support, % | right, % | right and supported, %"
    return markdown_table(f"{columns} | minus the base's, points | detectable | p (Holm)", rows)


def load_meters(folder: str | Path = RUNS / "meter", after: int = 0) -> dict[str, dict[str, Any]]:
    """The records of `gtpo-mini meter` in a folder, ``after`` steps of GRPO, by regime, in the order of `REGIMES`."""
    paths = {name: Path(folder, f"{name}-after{after}.json" if after else f"{name}.json") for name in REGIMES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def nearer(meters: Mapping[str, Mapping[str, Any]], arms: Iterable[str], base: str = "gtpo") -> dict[str, list[float]]:
    """By how much an arm's praise correlates better with turns' true worth than the base's, in each of some starts."""
    read = {arm: [meter["credits"][arm]["correlation"][0] for meter in meters.values()] for arm in (base, *arms)}
    return {arm: [mine - theirs for mine, theirs in zip(read[arm], read[base], strict=True)] for arm in arms}


def meters_table(folder: Path) -> str:
    """Markdown: the correlation of each arm's advantages with the true ones, a line an arm, a column a start."""
    meters = load_meters(folder / "meter")
    arms = [arm for arm in (*ARMS, *LATER) if all(arm in record["credits"] for record in meters.values())]
    rows = [[f"`{arm}`", *(f"{m['credits'][arm]['correlation'][0]:.2f}" for m in meters.values())] for arm in arms]
    rows.append(["most possible", *(f"{record['ceiling']:.2f}" for record in meters.values())])
    for arm in ("gtpo", "normalize_batch", "normalize_centred"):
        shares = (f"{100 * record['credits'][arm]['hopeless_share']:.0f} %" for record in meters.values())
        rows.append([f"`{arm}` from groups with nothing right", *shares])
    return markdown_table(" | ".join(["arm", *meters]), rows)


def observation_table(folder: Path = RUNS) -> str:
    """Markdown: what a scripted reader makes of a plain cut and of selected lines, a line a view."""
    views, rows = json.loads((folder / "observation.json").read_text(encoding="utf-8"))["views"], []
    for ask, name, view in ((ask, *one) for ask, found in views.items() for one in found.items()):
        accuracy = "{:.0f} [{:.0f}, {:.0f}]".format(*(100 * share for share in view["accuracy"]))
        gain = "{:+.0f} [{:+.0f}, {:+.0f}]".format(*(100 * share for share in view["gain"])) if "gain" in view else ""
        tokens = "{:.0f} [{:.0f}, {:.0f}]".format(*view["tokens"])
        rows.append((ask, name, accuracy, gain, tokens, f"{view['turns']:.1f}", f"{view['asked_for_the_rest']:.1f}"))
    columns = (
        "asked | shown, characters | right, % | minus the cut, points | tokens a rollout | turns | calls for the rest"
    )
    return markdown_table(columns, rows)


def ladder_table(study: Study) -> str:
    """Markdown, for the README: from GRPO to GTPO, means over the three 20 % starts, as far as they have the arms."""
    rows, starts, kinds = [], in_starts(study, "_20").values(), (area, held_out)
    for arm in LADDER:
        found = [over_starts(starts, arm, "grpo", kind) for kind in kinds]
        if all(found):
            levels = [mean([mean([kind(run) for run in by_arm(runs)[arm]]) for runs in starts]) for kind in kinds]
            gain = points(found[0][-1].over_seeds) if arm != "grpo" else ""
            rows.append([f"`{arm}`", found[0][-1].seeds, *(f"{100 * level:.1f}" for level in levels), gain])
    columns = "arm | seeds | area under the curve, % | held out at the end, % | area minus GRPO's, points"
    return markdown_table(columns, rows)


def broken_runs(study: Study) -> list[str]:
    """Runs that broke down, by the protocol's rule: "gtpo in facts_5: 1 of 10"."""
    counted = {
        (arm, name): sum(map(collapsed, mine)) for name, runs in study.items() for arm, mine in by_arm(runs).items()
    }
    return [f"`{arm}` in {name}: {n} of {len(by_arm(study[name])[arm])}" for (arm, name), n in counted.items() if n]


def curve_table(runs: Sequence[RecordedRun], steps: int = 10) -> str:
    """Markdown: each arm's accuracy in its first steps, in its last ones, and in all; means of its seeds."""
    rows, parts = [], (slice(steps), slice(-steps, None), slice(None))
    for arm, mine in by_arm(runs).items():
        levels = [mean([mean(run.series("reward/outcome")[part]) for run in mine]) for part in parts]
        rows.append([f"`{arm}`", len(mine), *(f"{100 * level:.1f}" for level in levels)])
    return markdown_table(f"arm | seeds | first {steps} steps, % | last {steps} steps, % | all (area), %", rows)


class Dot(NamedTuple):
    """An arm in a regime, both numbers as differences from GRPO there."""

    arm: str
    regime: str
    meter: float  #: correlation with the true advantage at the start
    gain: float  #: area under the learning curve
    error: float  #: standard error of the gain


def prediction(meters: Mapping[str, Mapping[str, Any]], study: Study) -> list[Dot]:
    """What the meter said of an arm before training, and what training brought; of regimes that have both."""
    dots = []
    for regime, runs in study.items():
        if regime in meters:
            read = {arm: found["correlation"][0] for arm, found in meters[regime]["credits"].items()}
            arms = [arm for arm, mine in by_arm(runs).items() if arm != "grpo" and arm in read and len(mine) > 1]
            for d in differences(runs, arms, kind=area):
                dots.append(Dot(d.arm, regime, read[d.arm] - read["grpo"], d.over_seeds.estimate, d.error))
    return dots


def rank_correlation(dots: Sequence[Dot], draws: int = 2000) -> Interval:
    """Spearman's of meter and gain; its 95 % bootstrap interval draws regimes, for a regime's dots share their GRPO."""
    by_regime = [[dot for dot in dots if dot.regime == regime] for regime in dict.fromkeys(dot.regime for dot in dots)]
    rng, found = random.Random(0), []

    def spearman(chosen: Iterable[Dot]) -> float:
        ranks = [rankdata(values) for values in zip(*((dot.meter, dot.gain) for dot in chosen), strict=True)]
        return float(np.corrcoef(*ranks)[0, 1]) if all(len(set(rank)) > 1 for rank in ranks) else 0.0

    for _ in range(draws):
        found.append(spearman(chain(*rng.choices(by_regime, k=len(by_regime)))))
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(spearman(dots), float(low), float(high))


def prediction_sentence(study: Study, folder: Path = RUNS) -> str:
    """How far the meter ranks what was learned: read before training, and after some steps of GRPO."""
    told = []
    for after, when in ((0, "before training"), (20, "after 20 steps of GRPO"), (60, "after 60 steps")):
        if study.keys() <= (meters := load_meters(folder / "meter", after)).keys():
            dots = prediction(meters, study)
            told.append("{} {:+.2f} [{:+.2f}, {:+.2f}], {} pairs".format(when, *rank_correlation(dots), len(dots)))
    return (
        "Does credit that lies nearer the truth learn faster? A meter says how near it lies (notebook 08). Rank "
        "correlation of meter and area, both minus GRPO's, over pairs of an arm and a regime (bootstrap over "
        f"regimes), the meter read {'; '.join(told)}."
    )


def results_text(folder: Path = RUNS) -> str:
    """``docs/results.md``, from the recorded runs alone; its template calls the functions of this module."""
    template = (ROOT / "gtpo_mini" / "assets" / "results.md").read_text(encoding="utf-8")
    runs = {name: load_study(folder, name) for name in STUDIES} | {"real": load_runs(folder / "smollm2")}
    text = Template(template, undefined=StrictUndefined, keep_trailing_newline=True)
    return text.render(globals() | runs | {"folder": folder})


def write_report(root: Path = ROOT, folder: Path = RUNS) -> Path:
    """Write ``docs/results.md``, and what the study says between the README's two marks, which must be there."""
    readme, results = root / "README.md", root / "docs" / "results.md"
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme.name}: lacks the marks {BEGIN} and {END}, between which the results go")
    study, variants = load_study(folder), load_study(folder, "variants")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n{headline(study, variants)}\n\n{ladder_table(study)}\n{END}{after}", "utf-8")
    results.parent.mkdir(exist_ok=True)
    results.write_text(results_text(folder), encoding="utf-8")
    return results
