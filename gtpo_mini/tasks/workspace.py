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

from ..types import Problem
from .facts import draw_names
from .habits import Habits, Solver, Texts

PROPERTIES = ("rate", "size", "cost", "port", "limit", "delay", "width", "depth", "count", "level")
#: What a solver may have a wrong idea of: the definition below the asked one is read, what a reference adds is
#: dropped, times is taken for plus, of an output that was cut the rest is never read.
KINDS = ("near", "refer", "times", "rest")
_ASKS = ("value", "fault")
_FOLDERS, _FILES = 3, 9
_CALLS = 7  # of a solver, the last for the sum
_SETUP = '''\
def look(path=".", first=1, _files={files!r}):
    """Print what stands under a path: a folder's files and their definitions, or a file's text, from a line on.

    A path may be a file's name alone, with or without its ending; "." is all.
    """
    path, lines = path.strip().strip("/"), []
    for name, text in _files.items():
        folder, _, file = name.partition("/")
        if path in (name, file, file.partition(".")[0]):
            lines = [name, *(" " + line for line in text)]
            break
        if path in (".", "", folder):
            lines += [folder + "/"] if folder + "/" not in lines else []
            lines += [" " + file]
            lines += ["  " + line.removeprefix("def ").partition(":")[0] for line in text if line[0] != " "]
    print("\\n".join(lines[max(0, first - 1):]) if lines else path + ": no such file or folder")
'''


def draw_problem(rng: random.Random, hops: int = 2, ask: str = "value") -> Problem:
    """One problem; ``metadata``: ``files``, path -> (property, expression, comment) each, ``start`` and ``hops``."""
    names = draw_names(rng, _FOLDERS + _FILES)
    folders, stems = names[:_FOLDERS], names[_FOLDERS:]
    orders = {stem: rng.sample(PROPERTIES, len(PROPERTIES)) for stem in stems}
    chain = [(stem, rng.choice(PROPERTIES)) for stem in rng.sample(stems, hops)]
    values: dict[tuple[str, str], tuple[str, int]] = {}
    for place, key in reversed(list(enumerate(chain))):
        if place == hops - 1:
            expression = f"{rng.randint(12, 99)} * {rng.randint(3, 9)}"
            values[key] = expression, eval(expression)
        else:
            symbol, number = rng.choice("+*"), rng.randint(2, 9)
            (stem, what), (_, below) = chain[place + 1], values[chain[place + 1]]
            values[key] = f"{stem}.{what}() {symbol} {number}", below + number if symbol == "+" else below * number
    fault = (chain[0][0], rng.choice(PROPERTIES))
    files = {}
    for number, stem in enumerate(stems):
        written = []
        for what in orders[stem]:
            if (stem, what) not in values or ask == "fault":
                expression = f"{rng.randint(12, 99)} * {rng.randint(3, 9)}"
                values[stem, what] = expression, eval(expression)
            expression, value = values[stem, what]
            comment = "" if ask == "value" else f"  # {value + rng.randint(1, 9) * ((stem, what) == fault)}"
            written.append((what, expression, comment))
        ending = rng.choice((".py", ".txt"))
        files[f"{folders[number % _FOLDERS]}/{stem}{ending}"] = tuple(written)
    (stem, what), answer = chain[0], str(values[chain[0]][1])
    question = f"What is the {what} of {stem}?"
    if ask == "fault":
        question, answer = f"Which definition of {stem} is not what its comment says?", fault[1]
    metadata = {"files": files, "start": (stem, what), "ask": ask}
    key = hashlib.sha256(f"{question} {files}".encode()).hexdigest()[:16]
    return Problem(key, question, answer, metadata)


def draw_problems(
    size: int, split: str = "train", seed: int = 0, hops: int = 2, ask: str = "value"
) -> tuple[Problem, ...]:
    """``size`` different problems; the hash of its question puts one in eight into the test split.

    ``ask``: "value", the number that a definition returns, after 1 to 4 ``hops`` from file to file; or "fault", which
    of a file's ten definitions returns something else than its comment says.

    >>> draw_problems(1)[0].question
    'What is the rate of Kiquyu?'
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
    if path.endswith(".txt"):
        return [f"{what}: {expression}{comment}" for what, expression, comment in written]
    lines = [(f"def {what}():{comment}", f" return {expression}") for what, expression, comment in written]
    return [line for pair in lines for line in pair]


_LINE = re.compile(r" (\w+): ([^#]*\d)(?:  # (\d+))?")
_HEAD = re.compile(r" def (\w+)\(\):(?:  # (\d+))?")
_BODY = re.compile(r"  return (.*\d)")
_GAP = re.compile(r"\.\.\. \d+ lines: (output\(\d+, \d+\))")
_REFERENCE = re.compile(r"(\w+)\.(\w+)\(\) (.+)")


def write_turns(problem: Problem, rng: random.Random, habits: Habits) -> Texts:
    """The turns of a simulated solver, as `make_trace` takes them: it reads what it is shown, and asks for the rest."""
    (stem, what), solver, fault = problem.metadata["start"], Solver(habits, rng), problem.metadata["ask"] == "fault"
    call, first, outer, answer = f'look("{stem}")', 1, list[str](), "unknown"
    found: dict[str, tuple[str, str]] = {}  # of this file: definition -> expression, comment
    head: tuple[str, str] | None = None
    left = _CALLS
    while left > 1:
        thought = f"{stem}:\n```python\n" if fault else f"{what} of {stem}:\n```python\n"
        if left > 2 and solver.breaks():
            yield thought + call[:-1] + "\n```"
            left -= 1
        shown = (yield thought + call + "\n```").stdout
        left -= 1
        gap, head = _read(shown, found, head, what)
        if what in found and not fault:
            names = list(found)
            if solver.mistakes("near"):
                what = names[(names.index(what) + 1) % len(names)]
            if (reference := _REFERENCE.fullmatch(found[what][0])) is None:
                break
            stem, what, more = reference.groups()
            outer.append(more)
            call, first, found, head = f'look("{stem}")', 1, {}, None
        elif solver.mistakes("rest"):
            break
        elif gap:
            call = gap
        elif "\n... (" in shown:  # a plain cut: from the line on at which it was made
            first += max(1, shown.partition("\n... (")[0].count("\n"))
            call = f'look("{stem}", {first})'
        else:
            break
    if fault and found:
        values = (yield f"Sums:\n```python\nprint({', '.join(said for said, _ in found.values())})\n```").stdout.split()
        wrong = [name for (name, (_, comment)), value in zip(found.items(), values, strict=False) if value != comment]
        answer = wrong[0] if wrong else answer
    elif what in found:
        expression = found[what][0]
        for more in () if solver.mistakes("refer") else reversed(outer):
            expression = f"({expression}) {more}"
        if solver.mistakes("times"):
            expression = expression.replace("*", "+", 1)
        thought = f"{what}: {found[what][0]}\n```python\n"
        answer = (yield f"{thought}print({expression})\n```").stdout.strip() or answer
    yield f"\\boxed{{{answer}}}"


def _read(
    shown: str, found: dict[str, tuple[str, str]], head: tuple[str, str] | None, what: str
) -> tuple[str | None, tuple[str, str] | None]:
    """Take up the definitions of an output; the call for a gap in it, and the definition that goes on there.

    ``head``: the definition that goes on in the output's first line. The gap is the first one, or that in ``what``.
    """
    call, goes_on = None, None
    for line in shown.split("\n"):
        if gap := _GAP.fullmatch(line):
            if call is None or (head is not None and head[0] == what):
                call, goes_on = gap[1], head
            head = None
        elif begun := _HEAD.fullmatch(line):
            head = (begun[1], begun[2] or "")
        elif (body := _BODY.fullmatch(line)) and head is not None:
            found[head[0]], head = (body[1], head[1]), None
        elif whole := _LINE.fullmatch(line):
            found[whole[1]] = (whole[2], whole[3] or "")
    return call, goes_on


def grade(problem: Problem, answer: str) -> bool:
    """Whether the answer is the number, or the definition's name.

    >>> grade(Problem("1", "?", "391"), " 391 "), grade(Problem("1", "?", "rate"), "size")
    (True, False)
    """
    return answer.strip() == problem.answer


def wrong_answers(problem: Problem) -> list[str]:
    """What a wrong way leads to: the values or names of the other definitions of the file that is asked about."""
    stem = problem.metadata["start"][0]
    (written,) = (found for path, found in problem.metadata["files"].items() if f"/{stem}." in path)
    if problem.metadata["ask"] == "fault":
        return [name for name, *_ in written if name != problem.answer]
    plain = [str(eval(expression)) for _, expression, _ in written if expression[0].isdigit()]
    return [value for value in plain if value != problem.answer]
