"""Two sides compared in pairs: recorded runs by seed and by problem, results files by problem; never by their order.

Seeds are one kind of luck (Student's t over the paired differences), held-out problems the other (bootstrap over
problems of the difference averaged over seeds). Beside each difference stands the smallest one that would most likely
(80 %) have been seen, and, where several are made together, a p-value corrected by Holm.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import stdev
from typing import NamedTuple

from scipy.stats import binomtest, ttest_1samp
from scipy.stats import t as student

from ..train.metrics import mean
from ..train.record import RecordedRun, load_runs, read_run
from .stats import Interval, holm, minimum_detectable_effect, paired_bootstrap, t_interval

Study = Mapping[str, Sequence[RecordedRun]]  #: runs by regime
_WINDOW = 10  # steps over which a curve is smoothed
_PLATEAU = 20  # steps that are called the plateau: the last ones


@dataclass(frozen=True)
class Difference:
    """An arm's held-out accuracy minus the base arm's, as a fraction; over the seeds that both have."""

    arm: str
    base: str
    seeds: int
    over_seeds: Interval
    over_problems: Interval | None  #: None where a run is one number: its area, its plateau
    detectable: float  #: smallest true difference that as many seeds show with 80 % power
    p: float  #: of the paired t-test over seeds, two-sided
    p_holm: float  #: corrected for all comparisons made together

    @property
    def error(self) -> float:
        """Standard error of the difference over seeds."""
        return (self.over_seeds.high - self.over_seeds.low) / 2 / float(student.ppf(0.975, self.seeds - 1))

    def p_within(self, margin: float) -> float:
        """p-value of "the difference is smaller than ``margin`` either way": two one-sided t-tests (Schuirmann, 1987).

        Below 0.05 a claim of no difference holds; that no difference was shown is none.
        """
        nearest = (margin - abs(self.over_seeds.estimate)) / self.error if self.error else math.inf
        return float(student.sf(nearest, self.seeds - 1))

    @property
    def verdict(self) -> str:
        """Better, worse, or no difference shown: at 5 % over seeds after the correction, and over problems too."""
        if self.p_holm >= 0.05 or (self.over_problems and self.over_problems.low <= 0 <= self.over_problems.high):
            return "no difference shown"
        return "better" if self.over_seeds.estimate > 0 else "worse"


def by_arm(runs: Sequence[RecordedRun]) -> dict[str, list[RecordedRun]]:
    """Each arm's runs, in the order in which the arms come."""
    return {arm: [run for run in runs if run.arm == arm] for arm in dict.fromkeys(run.arm for run in runs)}


def span(counts: Iterable[int]) -> str:
    """How many seeds: "8", or "4 to 8" where not all have as many."""
    ends = sorted(counts)
    return " to ".join(map(str, dict.fromkeys((ends[0], ends[-1]))))


def accuracies(runs: Sequence[RecordedRun], arm: str, kind: str = "sampled") -> dict[int, float]:
    """Held-out accuracy of each of an arm's seeds; ``kind`` is "sampled" or "greedy"."""
    return {seed: run.footer[kind]["accuracy"] for seed, run in _by_seed(runs, arm).items()}


def area(run: RecordedRun, steps: int | None = None) -> float:
    """Area under the learning curve: mean accuracy of the rollouts of all (or the first) steps, sampled.

    A step's problems are new to the policy, so this is held-out accuracy, measured at every step at no cost.
    """
    return mean(run.series("reward/outcome")[:steps])


def plateau(run: RecordedRun) -> float:
    """Mean accuracy of the rollouts of the last 20 steps, on problems that were new to the policy."""
    return mean(run.series("reward/outcome")[-_PLATEAU:])


def held_out(run: RecordedRun) -> float:
    """Accuracy of the last evaluation, on held-out problems, sampled."""
    return run.footer["sampled"]["accuracy"]


def still_rising(runs: Sequence[RecordedRun]) -> bool:
    """Whether the last 20 steps lie 3 points or more above the 20 steps that were 40 earlier, over all runs."""
    before = [mean(run.series("reward/outcome")[-3 * _PLATEAU : -2 * _PLATEAU]) for run in runs]
    return mean([plateau(run) for run in runs]) - mean(before) >= 0.03


def steps_to(run: RecordedRun, level: float) -> int:
    """After how many steps the mean of the last ten first reached ``level``; all of its steps if it never did."""
    curve = _smooth(run)
    return next((done for done, value in enumerate(curve, _WINDOW) if value >= level), len(run.steps))


def collapsed(run: RecordedRun) -> bool:
    """Whether a run broke down: its last ten steps lie 15 points or more below its best ten.

    Ten steps of 64 rollouts have a standard error of about three points, and the best of many lies above the truth.
    """
    curve = _smooth(run)
    return max(curve) - curve[-1] >= 0.15


def _smooth(run: RecordedRun) -> list[float]:
    """Mean accuracy of each ten steps in a row."""
    values = run.series("reward/outcome")
    width = min(_WINDOW, len(values))
    return [mean(values[end - width : end]) for end in range(width, len(values) + 1)]


def differences(
    runs: Sequence[RecordedRun],
    arms: Sequence[str],
    base: str = "grpo",
    kind: str | Callable[[RecordedRun], float] = "sampled",
) -> list[Difference]:
    """Each arm against the base arm, paired by seed; p-values corrected over all arms given.

    Compared is the last evaluation, by problem too (``kind`` "sampled" or "greedy"), or any number of a run (`area`).
    An arm's runs that never moved are one policy graded with one set of draws: only the first of them counts.
    Raises ValueError for fewer than two common seeds that count, unlike problems, or two runs of one arm and seed.
    """
    found, theirs = [], _by_seed(runs, base)
    for arm in arms:
        pairs, still = [], set()  # an arm's untouched starting policy is paired once only
        for pair in [(run, theirs[seed]) for seed, run in _by_seed(runs, arm).items() if seed in theirs]:
            here = {run.arm for run in pair if not run.moved}
            if not here & still:
                pairs.append(pair)
            still |= here
        if len(pairs) < 2:
            few = f"{len(pairs)} common seeds (of runs that never moved, one counts)"
            raise ValueError(f"{arm} against {base}: {few}; at least two are needed")
        over_problems = None
        if callable(kind):
            gaps_S = [kind(run) - kind(other) for run, other in pairs]
        else:
            scores_SP = _pair([run.footer[kind]["per_problem"] for pair in pairs for run in pair])
            sides_SP = scores_SP[::2], scores_SP[1::2]
            gaps_S = [mean(mine_P) - mean(their_P) for mine_P, their_P in zip(*sides_SP, strict=True)]
            over_problems = _bootstrap(*([mean(scores_S) for scores_S in zip(*side, strict=True)] for side in sides_SP))
        found.append(_difference(arm, base, gaps_S, over_problems))
    return corrected(found)


def _difference(arm: str, base: str, gaps_S: Sequence[float], over_problems: Interval | None = None) -> Difference:
    spread = stdev(gaps_S)
    # One number a pair: the paired formula, whatever the pairs are.
    detectable = minimum_detectable_effect(len(gaps_S), sd=spread, over="problems") if spread else math.nan
    p = float(ttest_1samp(gaps_S, 0.0).pvalue) if spread else 1.0
    return Difference(arm, base, len(gaps_S), t_interval(gaps_S), over_problems, detectable, p, p_holm=1.0)


def corrected(found: Sequence[Difference]) -> list[Difference]:
    """The same differences, their p-values corrected (Holm) for all of them together."""
    p_values = holm([difference.p for difference in found]) if found else []
    return [replace(difference, p_holm=p) for difference, p in zip(found, p_values, strict=True)]


def over_starts(
    regimes: Iterable[Sequence[RecordedRun]], arm: str, base: str, kind: Callable[[RecordedRun], float] = area
) -> list[Difference]:
    """An arm minus another in each of some regimes, and last in their mean, paired by seed; p-values as they are.

    Of the seeds that all the regimes have of both; nothing where they are fewer than two.
    """
    found = [{one: {s: kind(run) for s, run in _by_seed(runs, one).items()} for one in (arm, base)} for runs in regimes]
    seeds = sorted(set.intersection(*(set(values) for each in found for values in each.values()))) if found else []
    gaps = [[each[arm][seed] - each[base][seed] for seed in seeds] for each in found]
    means = [mean(gaps_R) for gaps_R in zip(*gaps, strict=True)]
    return [_difference(arm, base, gaps_S) for gaps_S in (*gaps, means)] if len(seeds) > 1 else []


def blind_share(runs: Sequence[RecordedRun], arm: str = "gtpo", steps: int = 20) -> float:
    """Share of an arm's credit that comes from groups in which nothing is right, early in training; mean of runs."""
    return mean([mean(run.series("advantage/hopeless_share")[:steps]) for run in by_arm(runs)[arm]])


def in_starts(study: Study, start: str, arms: Sequence[str] = ()) -> dict[str, list[RecordedRun]]:
    """The three regimes whose names end in ``start``, e.g. "_5"; of ``arms`` alone the seeds that all of them have."""
    found = {name: list(runs) for name, runs in study.items() if name.endswith(start)}
    if not arms:
        return found
    for name, runs in found.items():
        mine = [by_arm(runs).get(arm, []) for arm in arms]
        common = set.intersection(*({run.seed for run in each} for each in mine))
        found[name] = [run for each in mine for run in each if run.seed in common]
    return found


class Asked(NamedTuple):
    """An arm minus another in the regimes of a start."""

    start: str  #: as in `in_starts`
    by_regime: dict[str, Difference]
    mean: Difference  #: of these; its p-value is corrected for all that were asked with it
    blind: float  #: `blind_share` of the arm there


def asked(study: Study, pairs: Sequence[tuple[str, str]], *starts: str, elsewhere: Study | None = None) -> list[Asked]:
    """Each pair's first arm minus its second in each start, area; `report.QUESTIONS` are to be asked.

    A pair that ``study`` lacks in a regime of a start is taken from ``elsewhere`` (runs of another CPU model), and left
    out where that lacks it too. p-values are corrected for all the means together.
    """
    found = []
    for start in starts:
        for arm, base in pairs:
            for regimes in (in_starts(study, start), in_starts(elsewhere or {}, start)):
                if gaps := over_starts(regimes.values(), arm, base):
                    blind = mean([blind_share(runs, arm) for runs in regimes.values()])
                    found.append(Asked(start, dict(zip(regimes, gaps, strict=False)), gaps[-1], blind))
                    break
    means = corrected([one.mean for one in found])
    return [one._replace(mean=mean) for one, mean in zip(found, means, strict=True)]


def points(interval: Interval) -> str:
    """A difference in points, e.g. "-0.5 [-3.6, +2.6]"."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in interval))


def percent(shares: Iterable[float]) -> str:
    """Mean of seeds with its t-interval in percent, e.g. "75.0 [11.5, 100.0]"."""
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * value for value in t_interval(list(shares), share=True)))


@dataclass(frozen=True)
class Scores:
    """One score a problem, and where they are from."""

    name: str
    scores: Mapping[str, float]  #: problem id -> share of right samples
    task: str | None = None  #: with its split, where that is known
    questions: Mapping[str, str] = field(default_factory=dict)  #: problem id -> digest, where that is known


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same P problems."""

    a_name: str
    b_name: str
    problems: int
    a: float  #: mean score
    b: float
    difference: Interval  #: b minus a, over problems
    a_better: int  #: problems
    b_better: int
    p_value: float  #: exact sign test (McNemar's) of a_better against b_better
    detectable: float | None  #: the true difference that would be seen with 80 % power; None if no score differs

    @property
    def verdict(self) -> str:
        """Which side is better, if the interval leaves out zero."""
        if self.difference.low <= 0 <= self.difference.high:
            return "no difference shown"
        return f"{self.b_name if self.difference.estimate > 0 else self.a_name} is better"

    def __str__(self) -> str:
        a, b, same = self.a_name, self.b_name, self.problems - self.a_better - self.b_better
        power = "every problem has the same difference: more problems are needed"
        if self.detectable is not None:
            power = f"a true difference of {self.detectable:.3f} would most likely (80 %) have been seen"
        gap = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*self.difference)
        return (
            f"{a}: {self.a:.3f}\n{b}: {self.b:.3f}\n"
            f"{b} minus {a}: {gap} (95 %, paired bootstrap over {self.problems} problems): {self.verdict}\n"
            f"better: {b} on {self.b_better} problems, {a} on {self.a_better}, neither on {same} "
            f"(sign test: p {self.p_value:.2g})\n{power}"
        )


def compare(a: str | Path | RecordedRun | Scores, b: str | Path | RecordedRun | Scores) -> Comparison:
    """The difference b minus a of two evaluations, paired by problem; each as `read_scores` takes it.

    Raises ValueError for a file that cannot be read, other problems in a than in b, or fewer than two problems.

    >>> old, new = Scores("old", {"1": 0, "2": 1, "3": 1}), Scores("new", {"3": 1, "2": 1, "1": 1})
    >>> round(compare(old, new).difference.estimate, 2), round(compare(new, old).difference.estimate, 2)
    (0.33, -0.33)
    """
    first, second = read_scores(a), read_scores(b)
    if first.task != second.task and None not in (first.task, second.task):
        where = f"{first.name!r} is on {first.task}, {second.name!r} on {second.task}"
        raise ValueError(f"{where}: only the same problems can be paired")
    wrong = f"evaluate both on the same problems: {second.name!r} and {first.name!r}"
    for one, other in ((first, second), (second, first)):
        if missing := sorted(set(one.scores) - set(other.scores)):
            shown = ", ".join(missing[:5])
            raise ValueError(f"{other.name!r} lacks {len(missing)} problems of {one.name!r} (id {shown} ...): {wrong}")
    both = set(first.questions) & set(second.questions)
    if unlike := sorted(key for key in both if first.questions[key] != second.questions[key]):
        raise ValueError(f"{len(unlike)} problems have one id but two questions (id {', '.join(unlike[:5])}): {wrong}")
    a_P, b_P = _pair([first.scores, second.scores])
    gaps_P = [after - before for before, after in zip(a_P, b_P, strict=True)]
    difference = _bootstrap(b_P, a_P)
    sd, worse, better = stdev(gaps_P), sum(gap < 0 for gap in gaps_P), sum(gap > 0 for gap in gaps_P)
    return Comparison(
        *(first.name, second.name, len(gaps_P), mean(a_P), mean(b_P), difference, worse, better),
        p_value=float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
        detectable=minimum_detectable_effect(len(gaps_P), sd) if sd else None,
    )


def read_scores(source: str | Path | RecordedRun | Scores) -> Scores:
    """The score of each problem: of a results file, or of the sampled evaluation that ends a recorded run.

    A run is given as it is, or by its folder, ``metrics.jsonl``, or a compact file that holds no other.
    Raises ValueError for no such file, one that is not JSON lines or is cut off, or no results per problem.
    """
    if isinstance(source, Scores):
        return source
    name = f"{source.arm} seed {source.seed}" if isinstance(source, RecordedRun) else str(source)
    try:
        if isinstance(source, RecordedRun):
            runs = [source]
        elif Path(source).is_dir() or Path(source).suffix == ".xz":
            runs = load_runs(source)
        else:
            runs = list(filter(None, [read_run(source)]))
        if len(runs) > 1:
            raise ValueError(f"holds {len(runs)} runs; name one run's folder or metrics.jsonl")
        if runs:
            scores = {str(key): float(score) for key, score in runs[0].footer["sampled"]["per_problem"].items()}
            return Scores(name, dict(sorted(scores.items())), runs[0].header["task"])
        lines = [json.loads(line) for line in Path(source).read_text("utf-8").splitlines() if line.strip()]
        if not lines:
            raise ValueError("is empty")
        header, rows = lines[0], [row for row in lines[1:] if row.get("kind") == "problem"]
        scores = {row["id"]: mean([float(right) for right in row["correct"]]) for row in rows}
        if len(rows) != header["problems"] or len(scores) != len(rows):
            raise ValueError(f"{len(rows)} problems of {header['problems']}: the file is cut off")
        questions = {row["id"]: row["question"] for row in rows}
        return Scores(name, dict(sorted(scores.items())), f"{header['task']} ({header['split']})", questions)
    except OSError as error:
        raise ValueError(f"{name!r}: no such results file") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{name!r}: not JSON lines, or cut off ({error})") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{name!r}: no results per problem; make them: gtpo-mini evaluate --output FILE") from error
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from error


def _by_seed(runs: Sequence[RecordedRun], arm: str) -> dict[int, RecordedRun]:
    mine = by_arm(runs).get(arm, [])
    found = {run.seed: run for run in mine}
    if len(found) < len(mine):
        raise ValueError(f"{arm}: more than one run of a seed; give the runs of one setting")
    return found


def _pair(scores: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Each side's scores of the problems that all sides have, found by their ids, in one order."""
    least = min(scores, key=len)
    if any(problem not in score for score in scores for problem in least):
        raise ValueError("the runs were evaluated on different problems; only equal ones can be paired")
    return [[score[problem] for problem in least] for score in scores]


def _bootstrap(a: Sequence[float], b: Sequence[float]) -> Interval:
    with warnings.catch_warnings():  # equal everywhere: what could have been seen stands beside it
        warnings.simplefilter("ignore", RuntimeWarning)
        return paired_bootstrap(a, b)
