"""From recorded runs to the README's tables: differences paired by seed, with both kinds of luck stated.

Seeds are one kind of luck (Student's t over the paired differences), held-out problems the other (bootstrap over
problems of the difference averaged over seeds). Beside each difference stands the smallest one that as many seeds
show with 80 % power, and a p-value corrected by Holm for the comparisons of its table.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import stdev

from scipy.stats import ttest_1samp

from .arms import ARMS, MENDS
from .metrics import mean
from .regimes import REGIMES
from .runs import Run, load_runs
from .stats import Interval, holm, minimum_detectable_effect, paired_bootstrap, t_interval

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- made by: python -m gtpo_mini report -->", "<!-- end of what is made -->"


@dataclass(frozen=True)
class Difference:
    """An arm's held-out accuracy minus the base arm's, as a fraction; over the seeds that both have."""

    arm: str
    base: str
    seeds: int
    over_seeds: Interval
    over_problems: Interval
    detectable: float  #: smallest true difference that as many seeds show with 80 % power
    p: float  #: of the paired t-test over seeds, two-sided
    p_holm: float  #: corrected for all comparisons made together

    @property
    def verdict(self) -> str:
        """Better, worse, or no difference shown: at 5 % over seeds after the correction, and over problems too."""
        if self.p_holm >= 0.05 or self.over_problems.low <= 0 <= self.over_problems.high:
            return "no difference shown"
        return "better" if self.over_seeds.estimate > 0 else "worse"


def accuracies(runs: Sequence[Run], arm: str, kind: str = "sampled") -> dict[int, float]:
    """Held-out accuracy of each of an arm's seeds; ``kind`` is "sampled" or "greedy"."""
    return {run.seed: run.footer[kind]["accuracy"] for run in runs if run.arm == arm}


def differences(
    runs: Sequence[Run], arms: Sequence[str], base: str = "grpo", kind: str = "sampled"
) -> list[Difference]:
    """Each arm against the base arm, paired by seed and by problem; p-values corrected over all arms given.

    Args:
        runs: recorded runs with an evaluation, of all these arms.
        arms: whom to compare with ``base``.
        base: the arm they are compared with.
        kind: "sampled" or "greedy".

    Raises:
        ValueError: fewer than two common seeds; evaluations of which none is a part of all others.
    """
    found = []
    theirs = {run.seed: run for run in runs if run.arm == base}
    for arm in arms:
        pairs = [(run, theirs[run.seed]) for run in runs if run.arm == arm and run.seed in theirs]
        if len(pairs) < 2:
            raise ValueError(f"{arm} against {base}: {len(pairs)} common seeds; at least two are needed")
        scores = _scores(pairs, kind)
        gaps = [mean(mine) - mean(other) for mine, other in scores]
        spread = stdev(gaps)
        found.append(
            Difference(
                *(arm, base, len(pairs), t_interval(gaps), _over_problems(scores)),
                # One number a pair: the paired formula, whatever the pairs are.
                detectable=minimum_detectable_effect(len(gaps), sd=spread, over="problems") if spread else math.nan,
                p=float(ttest_1samp(gaps, 0.0).pvalue) if spread else 1.0,
                p_holm=1.0,
            )
        )
    corrected = holm([difference.p for difference in found])
    return [replace(difference, p_holm=p) for difference, p in zip(found, corrected, strict=True)]


def _scores(pairs: Sequence[tuple[Run, Run]], kind: str) -> list[tuple[list[float], list[float]]]:
    """Each pair's scores on the problems that all of these runs were evaluated on, in one order."""
    found = [[run.footer[kind]["per_problem"] for run in pair] for pair in pairs]
    least = min((score for pair in found for score in pair), key=len)
    if any(problem not in score for pair in found for score in pair for problem in least):
        raise ValueError("the runs were evaluated on different problems; only equal ones can be paired")
    return [tuple([score[problem] for problem in least] for score in pair) for pair in found]


def _over_problems(scores: Sequence[tuple[list[float], list[float]]]) -> Interval:
    sides = [[mean(column) for column in zip(*side, strict=True)] for side in zip(*scores, strict=True)]
    with warnings.catch_warnings():  # equal everywhere: the seeds' interval says what there is to say
        warnings.simplefilter("ignore", RuntimeWarning)
        return paired_bootstrap(*sides)


def points(interval: Interval) -> str:
    """A difference in points, e.g. "-0.5 [-3.6, +2.6]".

    >>> points(Interval(-0.005, -0.036, 0.026))
    '-0.5 [-3.6, +2.6]'
    """
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in interval))


def percent(values: Sequence[float]) -> str:
    """Mean of seeds with its t-interval in percent, e.g. "73.2 [69.7, 76.7]".

    >>> percent([0.7, 0.8])
    '75.0 [11.5, 138.5]'
    """
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * value for value in t_interval(values)))


def arms_table(runs: Sequence[Run], base: str = "grpo") -> str:
    """Markdown: every arm's accuracy, behaviour and difference from the base arm."""
    arms = [arm for arm in ARMS if len(accuracies(runs, arm)) > 1]
    found = {difference.arm: difference for difference in differences(runs, [a for a in arms if a != base], base)}
    rows = [
        f"| arm | seeds | rate | sampled, % | greedy, % | calls | invalid, % | minus {base}, points: seeds | problems "
        "| detectable | p (Holm) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        mine = [run for run in runs if run.arm == arm]
        behaviour = [run.footer["sampled"]["behaviour"] for run in mine]
        cells = [
            f"`{arm}`",
            len(mine),
            "{:g}".format(mine[0].header["config"]["learning_rate"]),
            percent(list(accuracies(runs, arm).values())),
            percent(list(accuracies(runs, arm, "greedy").values())),
            f"{mean([b['rollout/calls'] for b in behaviour]):.2f}",
            f"{100 * mean([b['rollout/invalid_calls'] for b in behaviour]):.1f}",
        ]
        if arm in found:
            d = found[arm]
            low, high = (f"{100 * end:+.1f}" for end in d.over_problems[1:])
            cells += [points(d.over_seeds), f"[{low}, {high}]", f"{100 * d.detectable:.1f}", f"{d.p_holm:.2g}"]
        rows.append("| " + " | ".join(map(str, [*cells, *[""] * (11 - len(cells))])) + " |")
    return "\n".join(rows)


def load_cells(folder: Path = ROOT / "data" / "runs") -> dict[str, list[Run]]:
    """The recorded runs of GRPO, GTPO and the mends in every regime, the shipped policy's own first."""
    shipped = [run for run in load_runs(folder / "ablation") if run.arm in ("grpo", "gtpo", *MENDS)]
    recorded = {name: folder / "regimes" / name for name in REGIMES}
    return {"(shipped)": shipped, **{name: load_runs(path) for name, path in recorded.items() if path.exists()}}


def regime_differences(cells: Mapping[str, Sequence[Run]]) -> dict[str, Difference]:
    """GTPO minus GRPO in every regime of `load_cells`, p-values corrected over the regimes."""
    found = {name: differences(runs, ["gtpo"])[0] for name, runs in cells.items()}
    corrected = holm([d.p for d in found.values()])
    return {name: replace(d, p_holm=p) for (name, d), p in zip(found.items(), corrected, strict=True)}


def regimes_table(cells: Mapping[str, Sequence[Run]]) -> str:
    """Markdown: GTPO minus GRPO in every regime of `load_cells`."""
    rows = [
        "| regime | what is special | start, % | GRPO, % | GTPO, % | GTPO minus GRPO, points | detectable | p (Holm) "
        "| calls at the start, GRPO, GTPO |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, d in regime_differences(cells).items():
        words = REGIMES[name].words if name in REGIMES else "the shipped policy and task"
        sides = [[run for run in cells[name] if run.arm == arm] for arm in ("grpo", "gtpo")]
        ends = [100 * mean([run.footer["sampled"]["accuracy"] for run in side]) for side in sides]
        calls = [mean([run.footer["sampled"]["behaviour"]["rollout/calls"] for run in side]) for side in sides]
        start = [run.steps[0] for run in sides[0]]
        rows.append(
            f"| {name} | {words} | {100 * mean([s['reward/outcome'] for s in start]):.0f} | {ends[0]:.1f} | "
            f"{ends[1]:.1f} | {points(d.over_seeds)} | {100 * d.detectable:.1f} | {d.p_holm:.2g} | "
            f"{mean([s['rollout/calls'] for s in start]):.1f}, {calls[0]:.1f}, {calls[1]:.1f} |"
        )
    return "\n".join(rows)


def mends_table(cells: Mapping[str, Sequence[Run]]) -> str:
    """Markdown: GTPO and each mend minus GRPO, in every regime of `load_cells` in which a mend was run."""
    rows = [
        "| regime | arm | seeds | minus GRPO, points | detectable | p (Holm) | calls at the start, end |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in cells.items():
        tried = [arm for arm in MENDS if any(run.arm == arm for run in runs)]
        for d in differences(runs, ["gtpo", *tried]) if tried else ():
            mine = [run for run in runs if run.arm == d.arm]
            calls = [run.footer["sampled"]["behaviour"]["rollout/calls"] for run in mine]
            start = mean([run.steps[0]["rollout/calls"] for run in mine])
            rows.append(
                f"| {name} | `{d.arm}` | {d.seeds} | {points(d.over_seeds)} | {100 * d.detectable:.1f} "
                f"| {d.p_holm:.2g} | {start:.1f}, {mean(calls):.1f} |"
            )
    return "\n".join(rows)


def given_up(cells: Mapping[str, Sequence[Run]]) -> list[str]:
    """Where an arm ended with less than half of its calls, e.g. "GTPO in hopeless (6.3 to 1.6 calls a rollout)"."""
    found = []
    for name, runs in cells.items():
        start = mean([run.steps[0]["rollout/calls"] for run in runs])
        for arm in ("grpo", "gtpo"):
            ends = [run.footer["sampled"]["behaviour"]["rollout/calls"] for run in runs if run.arm == arm]
            if mean(ends) < start / 2:
                found.append(f"{arm.upper()} in {name} ({start:.1f} to {mean(ends):.1f} calls a rollout)")
    return found


def results_text(folder: Path = ROOT / "data" / "runs") -> str:
    """The README's generated part, from the recorded runs alone."""
    ablation, cells = load_runs(folder / "ablation"), load_cells(folder)
    config, sampled = ablation[0].header["config"], ablation[0].footer["sampled"]
    (gtpo,) = differences(ablation, ["gtpo"])
    start = mean([run.steps[0]["reward/outcome"] for run in ablation])
    return "\n\n".join(
        [
            f"**GTPO minus GRPO: {points(gtpo.over_seeds)} points** of held-out accuracy after {config['steps']} steps "
            f"({gtpo.seeds} paired seeds, 95 % t-interval; over the {len(sampled['per_problem'])} problems "
            f"[{100 * gtpo.over_problems.low:+.1f}, {100 * gtpo.over_problems.high:+.1f}]): {gtpo.verdict}. A true "
            f"difference of {100 * gtpo.detectable:.1f} points would most likely have been seen. Both start at "
            f"{100 * start:.0f} %.",
            arms_table(ablation),
            "**Where does it matter?** Other cold starts and other variants of the task:",
            regimes_table(cells),
            f"The tool was given up by: {'; '.join(given_up(cells)) or 'none'}.",
            "**Two mends of our own**, beside the paper's form: the code's likeness as a potential (`potential`), and "
            "no penalty for failed calls (`no_penalty`):",
            mends_table(cells),
        ]
    )


def write_report(readme: Path = ROOT / "README.md", folder: Path = ROOT / "data" / "runs") -> str:
    """Put `results_text` between the README's two marks.

    Raises:
        ValueError: a mark is missing.
    """
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme.name}: lacks the marks {BEGIN} and {END}, between which the results go")
    made = results_text(folder)
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")
    return made
