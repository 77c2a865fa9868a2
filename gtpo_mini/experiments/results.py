"""Results files: what an evaluation found, problem by problem, and two of them compared as pairs."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev

from scipy.stats import binomtest

from ..train.metrics import mean
from ..types import Problem
from .evaluate import Evaluation
from .stats import Interval, minimum_detectable_effect, paired_bootstrap


def write_results(path: str | Path, result: Evaluation, problems: Sequence[Problem], header: dict) -> None:
    """Write a JSON-lines file: a header with the totals, then one line a problem.

    Args:
        path: file; its folder is made.
        result: of P problems, k samples each.
        problems: the P problems, in the result's order.
        header: where it came from (policy, task, split, ...).
    """
    record = result.record()
    del record["per_problem"]
    lines = [{"kind": "header", **header, "problems": len(problems), **record}]
    columns = zip(problems, result.correct, result.answers, result.majority_correct, strict=True)
    for problem, correct, answers, majority in columns:
        line = {"kind": "problem", "id": problem.id, "question": _digest(problem.question), "gold": problem.answer}
        lines.append({**line, "correct": list(correct), "answers": list(answers), "majority_correct": majority})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def require_writable(path: str | Path) -> None:
    """Before hours of work: can their results be written there? What the file holds is left as it is.

    Raises:
        ValueError: no.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        path.open("a").close()
        if new:
            path.unlink()
    except OSError as error:
        raise ValueError(f"output={str(path)!r}: cannot be written ({error.strerror}); choose another file") from error


def _digest(question: str) -> str:
    """So that two files with equal ids but other questions are told apart."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Scores:
    """One score a problem, as a file holds them."""

    name: str
    task: str | None  #: with its split, where the file says so
    scores: dict[str, float]  #: problem id -> share of right samples
    questions: dict[str, str]  #: problem id -> digest; empty for recorded runs


def read_scores(path: str | Path) -> Scores:
    """Read a results file, or the sampled evaluation in the footer of a recorded run (a file or its folder).

    Raises:
        ValueError: no such file, not JSON lines, cut off, or without results per problem.
    """
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"{str(path)!r}: no such results file") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r}: not JSON lines ({error})") from error
    try:
        header, kinds = lines[0], {line["kind"] for line in lines}
        if "footer" in kinds:
            task, rows = header["task"], []
            scores = {str(key): float(score) for key, score in lines[-1]["sampled"]["per_problem"].items()}
        else:
            task, rows = f"{header['task']} ({header['split']})", lines[1:]
            scores = {row["id"]: mean([bool(right) for right in row["correct"]]) for row in rows}
            if len(rows) != header["problems"] or len(scores) != len(rows):
                raise ValueError(f"{str(path)!r}: {len(rows)} problems of {header['problems']}: the file is cut off")
        return Scores(str(path), task, scores, {row["id"]: row["question"] for row in rows})
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r}: no results per problem; write them with: python -m gtpo_mini evaluate --output FILE"
        ) from error


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same P problems."""

    problems: int
    a: float  #: mean score
    b: float
    difference: Interval  #: b - a, over problems
    a_better: int  #: problems
    b_better: int
    p_value: float  #: exact sign test (McNemar's) of a_better against b_better
    detectable: float | None  #: the true difference that would be seen with 80 % power; None if no score differs

    def __str__(self) -> str:
        same = self.problems - self.a_better - self.b_better
        shown = f"{self.difference.estimate:+.3f} [{self.difference.low:+.3f}, {self.difference.high:+.3f}]"
        power = "every problem has the same difference: more problems are needed"
        if self.detectable is not None:
            power = f"a true difference of {self.detectable:.3f} would most likely (80 %) have been seen"
        return (
            f"{self.problems} problems: a {self.a:.3f}, b {self.b:.3f}\n"
            f"b - a: {shown} (95 %, paired bootstrap over problems)\n"
            f"better: b on {self.b_better}, a on {self.a_better}, neither on {same} (sign test: {self.p_value:.2g})\n"
            f"{power}"
        )


def compare(a: str | Path, b: str | Path) -> Comparison:
    """Pair two results files by problem.

    Args:
        a, b: as in `read_scores`.

    Raises:
        ValueError: a file that cannot be read; other problems in a than in b; fewer than two problems.
    """
    first, second = read_scores(a), read_scores(b)
    _require_same_problems(first, second)
    before, after = zip(*((first.scores[key], second.scores[key]) for key in sorted(first.scores)), strict=True)
    differences = [y - x for x, y in zip(before, after, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of no width: said below
        difference = paired_bootstrap(after, before)
    sd = stdev(differences)
    worse, better = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    return Comparison(
        problems=len(differences),
        a=mean(before),
        b=mean(after),
        difference=difference,
        a_better=worse,
        b_better=better,
        p_value=float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
        detectable=minimum_detectable_effect(len(differences), sd) if sd else None,
    )


def _require_same_problems(a: Scores, b: Scores) -> None:
    if a.task != b.task and None not in (a.task, b.task):
        raise ValueError(f"{a.name!r} is on {a.task}, {b.name!r} on {b.task}: only the same problems can be paired")
    for one, other in ((a, b), (b, a)):
        if missing := sorted(set(one.scores) - set(other.scores)):
            raise ValueError(
                f"{other.name!r} lacks {len(missing)} problems of {one.name!r} (id {', '.join(missing[:5])} ...): "
                "evaluate both on the same problems"
            )
    both = set(a.questions) & set(b.questions)
    if other := sorted(key for key in both if a.questions[key] != b.questions[key]):
        raise ValueError(
            f"{len(other)} problems have one id but two questions in {a.name!r} and {b.name!r} (id "
            f"{', '.join(other[:5])}): evaluate both on the same problems"
        )
