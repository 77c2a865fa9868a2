"""Questions about a small repository of Python and text that only ``look(path)`` shows.

"What is the rate of Bokari?": a definition in one of nine files, which may go on in another. Or a fault to find: the
definition whose comment is wrong. Every problem has a repository of its own. An output may be longer than what the
policy sees of it (`SamplingSettings.max_output`): what is asked may stand in what is left out.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from ..types import Problem
from .facts import draw_names
from .habits import Habits, Solver, Texts

PROPERTIES = ("rate", "size", "cost", "port", "limit", "delay", "width", "depth", "count", "level")
#: What a solver may have a wrong idea of: the definition below the asked one is read; what was cut is never read.
KINDS = ("near", "rest")
WORDS = (
    *("amber", "apple", "birch", "cedar", "coral", "daisy", "elder", "fern", "grape", "hazel", "ivory", "jade", "kelp"),
    *("lemon", "maple", "olive", "onyx", "pearl", "plum", "quartz", "reed", "rose", "ruby", "slate", "tulip", "umber"),
    *("velvet", "willow", "yarrow", "zinc"),
)
_ASKS = ("value", "fault")
_FOLDERS, _FILES = 3, 9
_CALLS = 6  # of a solver, but for sums
_SETUP = '''\
def look(path=".", first=1, _files={files!r}):
    """Print what stands under a path: a folder's files and their definitions, or a file's text, from a line on.

    A path may be a file's name alone, and lack its ending; "." is all.
    """
    path, lines = str(path).strip().removeprefix("./").strip("/"), []
    for name, text in _files.items():
        folder, _, file = name.partition("/")
        if path in (name, name.partition(".")[0], file, file.partition(".")[0]):
            lines = [name, *(" " + line for line in text)]
            break
        if path in (".", "", folder):
            lines += [folder + "/"] if folder + "/" not in lines else []
            lines += [" " + file]
            lines += ["  " + line.removeprefix("def ").partition(":")[0] for line in text if line[0] != " "]
    print("\\n".join(lines[max(0, first - 1):]) if lines else path + ": no such file or folder")
'''


def draw_problem(rng: random.Random, hops: int = 2, ask: str = "value") -> Problem:
    """One problem; ``metadata``: ``files``, path -> (property, value, comment) each, ``start`` and ``ask``."""
    names = draw_names(rng, _FOLDERS + _FILES)
    folders, stems = names[:_FOLDERS], names[_FOLDERS:]
    orders = {stem: rng.sample(PROPERTIES, len(PROPERTIES)) for stem in stems}
    chain = [(stem, rng.choice(PROPERTIES)) for stem in rng.sample(stems, hops)]
    fault, answer = rng.choice(PROPERTIES), rng.choice(WORDS)
    leads = {key: f"{stem}.{what}()" for key, (stem, what) in pairwise(chain)} | {chain[-1]: answer}
    files = {}
    for number, stem in enumerate(stems):
        written = []
        for what in orders[stem]:
            a, b = rng.randint(12, 99), rng.randint(3, 9)
            wrong = rng.randint(1, 9) * (what == fault and stem == chain[0][0])
            if ask == "fault":
                written.append((what, f"{a} * {b}", str(a * b + wrong)))
            else:
                written.append((what, leads.get((stem, what)) or rng.choice([w for w in WORDS if w != answer]), ""))
        files[f"{folders[number % _FOLDERS]}/{stem}{rng.choice(('.py', '.txt'))}"] = tuple(written)
    stem, what = chain[0]
    place = f"{folders[stems.index(stem) % _FOLDERS]}/{stem}"
    question = f"What is the {what} of {place}?"
    if ask == "fault":
        question, answer = f"Which definition of {place} is not what its comment says?", fault
    metadata = {"files": files, "start": (stem, what), "ask": ask}
    key = hashlib.sha256(f"{question} {files}".encode()).hexdigest()[:16]
    return Problem(key, question, answer, metadata)


def draw_problems(
    size: int, split: str = "train", seed: int = 0, hops: int = 2, ask: str = "value"
) -> tuple[Problem, ...]:
    """``size`` different problems; the hash of its question puts one in eight into the test split.

    ``ask``: "value", the word that a definition returns, after 1 to 4 ``hops`` from file to file; or "fault", which of
    a file's ten definitions returns another number than its comment says.

    >>> draw_problems(1)[0].question
    'What is the rate of Dirade/Kiquyu?'
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: the task 'workspace' has the splits 'train' and 'test'")
    if size < 1 or not 1 <= hops <= 4 or ask not in _ASKS:
        rule = f"size must be at least 1, hops in 1..4 and ask one of {', '.join(_ASKS)}"
        raise ValueError(f"size={size}, hops={hops}, ask={ask!r}: {rule}")
    rng, found = random.Random(f"workspace-{split}-{seed}-{hops}-{ask}"), {}
    while len(found) < size:
        problem = draw_problem(rng, hops, ask)
        is_test = hashlib.sha256(problem.question.encode()).digest()[0] % 8 == 0
        if is_test == (split == "test"):
            found.setdefault(problem.question, problem)
    return tuple(found.values())


def setup(problem: Problem) -> str:
    """Code that defines ``look(path, first=1)``.

    >>> exec(setup(problem := draw_problems(1)[0]))
    >>> look("Nowhere")
    Nowhere: no such file or folder
    """
    return _SETUP.format(files={path: _text(path, written) for path, written in problem.metadata["files"].items()})


def _text(path: str, written: Sequence[tuple[str, str, str]]) -> list[str]:
    lines = []
    for what, value, comment in written:
        comment = comment and f"  # {comment}"
        if path.endswith(".txt"):
            lines.append(f"{what}: {value}{comment}")
        else:
            lines += [f"def {what}():{comment}", f" return {value!r}" if value in WORDS else f" return {value}"]
    return lines


_LINE = re.compile(r" (\w+): ([^#\n]+?)(?:  # (\d+))?")
_HEAD = re.compile(r" def (\w+)\(\):(?:  # (\d+))?")
_BODY = re.compile(r"  return (.+)")
_GAP = re.compile(r"\.\.\. \d+ lines: (unfold\(\d+, \d+\))")
_CUT = re.compile(r"[^\n]*\n\.\.\. \(\d+ characters left out\)\n[^\n]*")  # with the two lines that are not whole
_REFERENCE = re.compile(r"(\w+)\.(\w+)\(\)")


class _Read(NamedTuple):
    """A definition that was seen."""

    value: str
    comment: str
    quote: str  #: as it stands in the file


_Gap = tuple[str, re.Match[str] | None]  # the call that shows it, and the definition that goes on there


def write_turns(problem: Problem, rng: random.Random, habits: Habits) -> Texts:
    """The turns of a simulated solver, as `make_trace` takes them: it reads what it is shown, and asks for the rest."""
    (stem, what), solver, fault = problem.metadata["start"], Solver(habits, rng), problem.metadata["ask"] == "fault"
    call, quote, left = f'look("{stem}")', "", _CALLS
    found: dict[str, _Read] = {}  # of this file
    gaps: list[_Gap] = []  # of the last long output
    head = None
    while left:
        thought = f"{quote}{stem if fault else f'{what} of {stem}'}:\n```python\n"
        if left > 1 and solver.breaks():
            yield thought + call[:-1] + "\n```"
            left -= 1
        shown = (yield thought + call + "\n```").stdout
        left, quote = left - 1, ""
        gaps = _read(call, shown, found, head, what) or gaps
        if what in found and not fault:
            names = list(found)
            if solver.mistakes("near"):
                what = names[(names.index(what) + 1) % len(names)]
            quote = f"{found[what].quote}\n"
            if (reference := _REFERENCE.fullmatch(found[what].value)) is None:
                break
            (stem, what), found, gaps, head = reference.groups(), {}, [], None
            call = f'look("{stem}")'
        elif solver.mistakes("rest"):
            break
        elif gaps:
            call, head = gaps.pop(0)
        else:
            break
    answer = found[what].value if what in found else "unknown"
    if fault and found:
        values = (
            yield f"Sums:\n```python\nprint({', '.join(one.value for one in found.values())})\n```"
        ).stdout.split()
        wrong = [name for (name, one), value in zip(found.items(), values, strict=False) if value != one.comment]
        answer = wrong[0] if wrong else "unknown"
    yield f"{quote}\\boxed{{{answer}}}"


def _read(call: str, shown: str, found: dict[str, _Read], head: re.Match[str] | None, what: str) -> list[_Gap]:
    """Take up the definitions of a call's output; returns its gaps, the one in ``what`` first.

    ``head``: the definition that goes on in the output's first line. After a plain cut, `look` goes on at its line.
    """
    path, _, first = call.removeprefix("look(").removesuffix(")").partition(", ")
    gaps: list[_Gap] = []
    for number, line in enumerate(_CUT.sub("\0", shown).split("\n")):
        if line == "\0":
            gaps.append((f"look({path}, {int(first or 1) + number})", head))
            head = None
        elif gap := _GAP.fullmatch(line):
            gaps.insert(0 if head is not None and head[1] == what else len(gaps), (gap[1], head))
            head = None
        elif begun := _HEAD.fullmatch(line):
            head = begun
        elif (body := _BODY.fullmatch(line)) and head is not None:
            found[head[1]] = _Read(body[1].strip("'"), head[2] or "", f"{head[0]}\n{line}")
            head = None
        elif whole := _LINE.fullmatch(line):
            found[whole[1]] = _Read(whole[2], whole[3] or "", line)
    return gaps


def grade(problem: Problem, answer: str) -> bool:
    """Whether the answer is the word, or the definition's name, with or without quotes.

    >>> grade(Problem("1", "?", "amber"), " 'amber' "), grade(Problem("1", "?", "rate"), "size")
    (True, False)
    """
    return answer.strip(" \"'").casefold() == problem.answer


def wrong_answers(problem: Problem) -> list[str]:
    """What a wrong way leads to: what the other definitions of the file that is asked about say, or their names."""
    stem = problem.metadata["start"][0]
    (written,) = (found for path, found in problem.metadata["files"].items() if f"/{stem}." in path)
    asked = [name if problem.metadata["ask"] == "fault" else value for name, value, _ in written]
    return [text for text in asked if text != problem.answer]
