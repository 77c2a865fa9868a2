"""The offline task "write a function", checked by running it on examples; and solutions of it for the cold start.

A wrong idea of a step (it drops one character too few, it takes the wrong branch) is one that real models have. Mostly
the public examples show it, always the hidden tests do; so a policy gains from checking before it submits.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..types import Problem
from .habits import Habits, Solver, Texts

_CALLS = 3  # of a rollout, at most; then it submits what it has
_CARELESS = 0.2  # share of rollouts that submit without a check
_HIDDEN = 6
_WORDS = (
    "apple banana letter kitten pepper bottle coffee butter rabbit button dinner summer tomato potato lemon melon "
    "salad papaya cocoa pizza panda otter moose camel eagle koala needle kettle paddle ribbon carrot cherry noon level"
)

# Kind of step -> kind of value, phrases, its line and the line of its wrong idea ("": a step that nobody gets wrong).
# {k} is a number from 2 to 9, {s} one from 2 to 4, {c} a letter.
_STEPS: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "plus": ("int", ("add {k}", "plus {k}"), "x = x + {k}", ""),
    "minus": ("int", ("subtract {k}", "minus {k}"), "x = x - {k}", ""),
    "times": ("int", ("times {k}", "multiply by {k}"), "x = x * {k}", ""),
    "odd": ("int", ("if it is odd, add {k}",), "if x % 2 == 1: x = x + {k}", "if x % 2 == 0: x = x + {k}"),
    "square": ("int", ("square it", "times itself"), "x = x * x", "x = x + x"),
    "modulo": ("int", ("take it modulo {k}",), "x = x % {k}", "x = x // {k}"),
    "sign": ("int", ("take its absolute value",), "x = abs(x)", "x = -x"),
    "append": ("str", ("add '{c}' at the end", "append '{c}'"), "x = x + '{c}'", ""),
    "copies": ("str", ("join {s} copies of it",), "x = x * {s}", ""),
    "upper": ("str", ("make it upper case",), "x = x.upper()", "x = x.title()"),
    "remove": ("str", ("remove every '{c}'",), "x = x.replace('{c}', '')", "x = x.replace('{c}', '', 1)"),
    "reverse": ("str list", ("reverse it",), "x = x[::-1]", ""),
    "drop": ("str list", ("drop the first {s}",), "x = x[{s}:]", "x = x[{s} - 1:]"),
    "keep": ("str list", ("keep the first {s}",), "x = x[:{s}]", "x = x[:{s} + 1]"),
    "each": ("list", ("add {k} to each",), "x = [v + {k} for v in x]", ""),
    "double": ("list", ("double each",), "x = [v * 2 for v in x]", "x = x * 2"),
    "sort": ("list", ("sort it, largest first",), "x = sorted(x)[::-1]", "x = sorted(x)"),
    "under": ("list", ("drop all under {k}",), "x = [v for v in x if v >= {k}]", "x = [v for v in x if v > {k}]"),
}
_LAST = {  # these end in a number
    "length": ("str list", ("take its length",), "x = len(x)", ""),
    "sum": ("list", ("take the sum",), "x = sum(x)", ""),
    "largest": ("list", ("take the largest",), "x = max(x)", "x = x[-1]"),
}
KINDS = tuple(kind for kind, (*_, wrong) in {**_STEPS, **_LAST}.items() if wrong)
_TYPES = {"int": "a whole number x", "str": "a text x", "list": "a list x of numbers"}


@dataclass(frozen=True)
class Step:
    """One step of a function: its words, its line of Python, and the line of who has a wrong idea of its ``kind``."""

    kind: str
    phrase: str
    line: str
    wrong: str = ""  #: "": nobody has

    def written(self, mistaken: bool) -> str:
        return self.wrong if mistaken and self.wrong else self.line


def source(lines: list[str]) -> str:
    """The function of these lines; one blank of indentation saves tokens.

    >>> source(["x = x + 1"])
    'def f(x):\\n x = x + 1\\n return x'
    """
    return "\n ".join(["def f(x):", *lines, "return x"])


def variants(steps: tuple[Step, ...]) -> list[str]:
    """The programs of one wrong idea each, and those that leave a step out."""
    lines = [step.line for step in steps]
    wrong = [[*lines[:n], step.wrong, *lines[n + 1 :]] for n, step in enumerate(steps) if step.wrong]
    return [source(each) for each in [*wrong, *(lines[:n] + lines[n + 1 :] for n in range(len(steps)))]]


def _function(text: str) -> Callable[[Any], Any]:
    """Our own program, made from the grammar, as a function that gives None where it raises."""
    space: dict[str, Any] = {}
    exec(text, space)

    def call(x: Any) -> Any:
        try:
            return space["f"](x)
        except (IndexError, ValueError, TypeError, AttributeError):
            return None

    return call


def _draw_step(rng: random.Random, kind: str) -> Step:
    _, phrases, line, wrong = {**_STEPS, **_LAST}[kind]
    chosen = {"k": rng.randint(2, 9), "s": rng.randint(2, 4), "c": rng.choice("aeno")}
    return Step(kind, *(text.format(**chosen) for text in (rng.choice(phrases), line, wrong)))


def _draw_argument(rng: random.Random, of: str) -> Any:
    if of == "list":
        return [rng.randint(0, 12) for _ in range(rng.randint(3, 5))]
    return rng.randint(-9, 20) if of == "int" else rng.choice(_WORDS.split())


def draw_problem(rng: random.Random, difficulty: int = 2) -> Problem | None:
    """One problem of ``difficulty`` steps, or None where its steps undo each other: no test shows that one is wrong."""
    of = rng.choice(("int", "str", "list"))
    kinds = rng.sample([kind for kind, (types, *_) in _STEPS.items() if of in types.split()], difficulty)
    last = [kind for kind, (types, *_) in _LAST.items() if of in types.split()]
    if last and rng.random() < 0.3:
        kinds[-1] = rng.choice(last)
    steps = tuple(_draw_step(rng, kind) for kind in kinds)
    gold, wrong = source([step.line for step in steps]), [_function(text) for text in variants(steps)]
    right = _function(gold)
    cases: list[tuple[Any, Any]] = []
    for _ in range(40):
        x = _draw_argument(rng, of)
        if (value := right(x)) is not None and (x, value) not in cases:
            cases.append((x, value))
    public = 3 if of == "int" else 2  # lists and texts are long
    examples, others = cases[:public], cases[public:]
    hidden = []
    for each in wrong:  # one test that catches each wrong program, then any
        caught = next((case for case in others if repr(each(case[0])) != repr(case[1])), None)
        if caught is None:
            return None
        hidden += [caught] if caught not in hidden else []
    hidden += [case for case in others if case not in hidden][: max(0, _HIDDEN - len(hidden))]
    varied = all(len({repr(value) for _, value in some}) > 1 for some in (examples, hidden))
    if not any(step.wrong for step in steps) or len(hidden) < _HIDDEN or not varied:
        return None
    words = " ".join(f"Step {n}: {step.phrase}." for n, step in enumerate(steps, 1))
    shown = ", ".join(f"f({x!r}) = {value!r}" for x, value in examples)
    question = f"Write f(x) for {_TYPES[of]}. {words} Examples: {shown}."
    metadata = {"plan": steps, "examples": tuple(examples), "tests": tuple(hidden)}
    return Problem(hashlib.sha256(question.encode()).hexdigest()[:16], question, gold, metadata)


def draw_problems(size: int, split: str = "train", seed: int = 0, difficulty: int = 2) -> tuple[Problem, ...]:
    """``size`` different problems of ``difficulty`` (1 to 4) steps.

    The hash of the function puts one in eight into the test split, so none is in both, in whatever words.

    >>> problem = draw_problems(1, seed=5)[0]
    >>> problem.question.startswith("Write f(x) for"), problem.answer.startswith("def f(x):")
    (True, True)
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: the task 'programs' has the splits 'train' and 'test'")
    if size < 1 or not 1 <= difficulty <= 4:
        raise ValueError(f"size={size}, difficulty={difficulty}: size must be at least 1, difficulty in 1..4")
    rng, found = random.Random(f"programs-{split}-{seed}-{difficulty}"), {}
    while len(found) < size:
        if (problem := draw_problem(rng, difficulty)) is not None:
            key = hashlib.sha256(problem.answer.encode()).digest()
            if (key[0] % 8 == 0) == (split == "test"):
                found[problem.id] = problem
    return tuple(found.values())


_SETUP = """
examples = {examples!r}
def check(f):
 right, first = 0, ''
 for call, value in examples:
  try:
   found = eval(call, {{**globals(), {name!r}: f}})
   ok, text = found == value, f'{{call}} = {{found!r}}, not {{value!r}}'
  except Exception as error:
   ok, text = False, f'{{call}} raised {{type(error).__name__}}'
  right += bool(ok)
  first = first or ('' if ok else f': {{text[:120]}}')
 print(f'{{right}} of {{len(examples)}}{{first}}')
"""


def public_examples(problem: Problem) -> list[tuple[str, Any]]:
    """Arguments, as they stand in a call, and value of each public example; also of sets with other names than f."""
    examples = problem.metadata["examples"]
    return list(examples) if "name" in problem.metadata else [(f"({x!r})", value) for x, value in examples]


def setup(problem: Problem) -> str:
    """Code for a session: what the problem gives, ``examples``, and ``check(f)``, which counts those f gets right.

    >>> space = {}
    >>> exec(setup(Problem("1", "?", "", {"examples": ((1, 2), (5, 6))})), space)
    >>> space["check"](lambda x: 2)
    1 of 2: f(5) = 2, not 6
    """
    name = problem.metadata.get("name", "f")
    examples = [(f"{name}{arguments}", value) for arguments, value in public_examples(problem)]
    return problem.metadata.get("before", "") + _SETUP.format(name=name, examples=examples)


def write_turns(problem: Problem, rng: random.Random, habits: Habits) -> Texts:
    """Texts of the turns of an imperfect solution; ``send`` the result of each call. The last one submits.

    It checks, up to three times, writes a call that did not run again, and reconsiders its ideas where an example
    fails. One rollout in five submits without a check.
    """
    solver, steps = Solver(habits, rng), problem.metadata["plan"]
    thought, broken, last = "I write it and check it.", False, "It is right."

    def write() -> str:
        return source([step.written(solver.mistakes(step.kind)) for step in steps])

    program = write()
    if rng.random() < _CARELESS:
        last = "I am sure of it."
    else:
        for call in range(1, _CALLS + 1):
            program = write()
            broken = not broken and solver.breaks()
            code = f"{program}\ncheck(f)"
            result = yield f"{thought}\n```python\n{_break(code, rng) if broken else code}\n```"
            if result is None or not result.ok:
                thought, last = "That did not run, again.", "I submit it."
            elif found := re.match(r"(\d+) of (\d+):", result.stdout):
                thought, last = f"Only {found[1]} of {found[2]} are right, again.", "I submit it."
                if call < _CALLS:
                    solver.reconsiders()
            else:
                last = "It is right."
                break
    yield f"{last}\n```answer\n{program}\n```"


def _break(code: str, rng: random.Random) -> str:
    """A slip of the pen: the code does not run."""
    return rng.choice((code[:-1], code.replace("return", "reutrn"), code.replace("check", "chek")))
