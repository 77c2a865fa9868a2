"""The offline task: branching word problems that take at least three tool turns, and solutions for the cold start.

A step may depend on what the tool printed before ("if the count is even ... if it is odd ..."), so the calls cannot be
written ahead, and answers go up to many thousands, so they cannot be guessed.
"""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Iterator
from dataclasses import dataclass

from ..types import Problem
from .habits import Habits, Solver, Texts

#: What a solver may have a wrong idea of: times and minus are taken for plus, a test for its opposite, the third step
#: begins at the count of two steps ago, the last step is left out.
KINDS = ("*", "-", "even", "large", "stale", "last")

_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_RANGES = {"+": (11, 99), "-": (11, 49), "*": (3, 12)}
_PHRASES = {
    "+": ("{k} more arrive", "{k} are added", "someone brings another {k}"),
    "-": ("{k} are sold", "{k} get lost", "someone takes away {k}"),
    "*": ("the count becomes {k} times as large", "a machine makes it {k} times as many"),
}
_TESTS = {"even": ("even", "odd"), "large": ("over 500", "not over 500")}  # for yes and no
_THINGS = ("apples", "bolts", "books", "cards", "coins", "lamps", "shells", "stamps", "tiles", "toys")
_ASKS = {"count": "How many {thing} now?", "parity": "Is the number of {thing} now even or odd?"}
_NAMES = ("Ana", "Ben", "Chen", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "Jun")


@dataclass(frozen=True)
class Operation:
    """One change of the count, e.g. ``Operation("*", 7)``."""

    symbol: str
    number: int

    def apply(self, count: int) -> int:
        return _OPERATORS[self.symbol](count, self.number)

    def phrase(self, rng: random.Random) -> str:
        return rng.choice(_PHRASES[self.symbol]).format(k=self.number)


@dataclass(frozen=True)
class Step:
    """One step: a test of the current count and what happens if it holds, and if not. ``test`` "": no branch."""

    test: str
    then: Operation
    otherwise: Operation

    def test_holds(self, count: int) -> bool:
        """Whether the test holds; without a test it does."""
        return {"": True, "even": count % 2 == 0, "large": count > 500}[self.test]

    def choose(self, count: int) -> Operation:
        """The operation this step asks for."""
        return self.then if self.test_holds(count) else self.otherwise


def _draw_operation(rng: random.Random) -> Operation:
    symbol = rng.choice("++--**")
    return Operation(symbol, rng.randint(*_RANGES[symbol]))


def draw_problem(rng: random.Random, steps: int = 3, ask: str = "count") -> Problem:
    """One problem; its ``metadata`` holds start, steps and what is asked, which only the trace writer reads."""
    start = count = rng.randint(50, 199)
    plan, sentences = [], []
    for index in range(steps):
        test = "" if index == 0 else "even" if index == 1 else rng.choice(("", "even", "large"))
        step = Step(test, _draw_operation(rng), _draw_operation(rng))
        text = step.then.phrase(rng)
        if test:
            yes, no = _TESTS[test]
            text = f"if the count is {yes}, {text}; if it is {no}, {step.otherwise.phrase(rng)}"
        sentences.append(f"Step {index + 1}: {text}.")
        plan.append(step)
        count = step.choose(count).apply(count)
    thing = rng.choice(_THINGS)
    question = " ".join((f"{rng.choice(_NAMES)} has {start} {thing}.", *sentences, _ASKS[ask].format(thing=thing)))
    key = hashlib.sha256(question.encode()).hexdigest()
    metadata = {"start": start, "steps": tuple(plan), "ask": ask}
    return Problem(key[:16], question, answer_from(str(count), ask), metadata)


def answer_from(count: str, ask: str) -> str:
    """What is asked, of the last count that the tool printed; text that is no number stays as it is.

    >>> answer_from("17", "count"), answer_from("17", "parity")
    ('17', 'odd')
    """
    try:
        return ("odd" if int(count) % 2 else "even") if ask == "parity" else count
    except ValueError:
        return count


def draw_problems(
    size: int, split: str = "train", seed: int = 0, steps: int = 3, ask: str = "count"
) -> tuple[Problem, ...]:
    """``size`` different problems of 3 to 8 ``steps``; the hash of its text puts one in eight into the test split.

    ``ask``: "count", which nobody guesses, or "parity" (even or odd), which a guess gets right half the time.

    >>> problem = draw_problems(1, seed=3)[0]
    >>> set(p.id for p in draw_problems(50, "test")) & set(p.id for p in draw_problems(400, "train"))
    set()
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: the task 'branching' has the splits 'train' and 'test'")
    if size < 1 or not 3 <= steps <= 8 or ask not in _ASKS:
        rule = f"size must be at least 1, steps in 3..8 and ask one of {', '.join(_ASKS)}"
        raise ValueError(f"size={size}, steps={steps}, ask={ask!r}: {rule}")
    rng, found = random.Random(f"branching-{split}-{seed}-{steps}"), {}
    while len(found) < size:
        problem = draw_problem(rng, steps, ask)
        if not problem.answer.startswith("-") and (int(problem.id, 16) % 8 == 0) == (split == "test"):
            found[problem.id] = problem
    return tuple(found.values())


@dataclass(frozen=True)
class TraceNoise:
    """Errors drawn anew at every call, as the traces of the shipped policy have them; rates in [0, 1]."""

    bad_call: float = 0.5  #: a turn's call is broken or wrong
    recover: float = 0.5  #: a bad call is followed by a right one
    invalid: float = 0.4  #: a bad call does not run at all; the others run, and print a wrong number or nothing
    skip: float = 0.0  #: a step is left out, and all that follow it: the answer is taken from the count so far


def write_turns(problem: Problem, rng: random.Random, habits: TraceNoise | Habits) -> Texts:
    """The texts of the turns of one imperfect solution; ``send`` the result of each call.

    The writer goes on from the number that the tool printed, so a wrong call carries on to the answer.
    """
    noisy = isinstance(habits, TraceNoise)
    writer = _noisy_steps(problem, rng, habits) if noisy else _steps(problem, Solver(habits, rng))
    planned, last = next(writer), str(problem.metadata["start"])
    while planned is not None:
        thought, code = planned
        result = yield f"{thought}:\n```python\n{code}\n```"
        last = result.stdout.strip() or last
        planned = writer.send(result.stdout.strip())
    yield f"\\boxed{{{answer_from(last, problem.metadata['ask'])}}}"


def _steps(problem: Problem, solver: Solver) -> Iterator[tuple[str, str] | None]:
    """Thought and code of each turn, then None, of a solver with steady ideas; ``send`` what the tool printed."""
    plan, count = problem.metadata["steps"], problem.metadata["start"]
    before = count
    for number, step in enumerate(plan, 1):
        if number == len(plan) and solver.mistakes("last"):
            break
        if number == 3 and solver.mistakes("stale"):
            count = before
        holds = step.test_holds(count) != (step.test in KINDS and solver.mistakes(step.test))
        op = step.then if holds else step.otherwise
        symbol = "+" if op.symbol in KINDS and solver.mistakes(op.symbol) else op.symbol
        thought = f"Step {number}" + (f", {_TESTS[step.test][0 if holds else 1]}" if step.test else "")
        call = f"{count}{symbol}{op.number}"
        idle = f"idle {number}"  # the same call twice: nothing is learned, and a turn is gone
        if idle in solver.habits.mistaken and solver.mistakes(idle):
            yield thought, f"print({call})"
        if solver.breaks():
            yield thought, solver.rng.choice((f"print({call}", f"print({count}{symbol}/{op.number})"))
        before, count = count, int((yield thought, f"print({call})"))
    yield None


def _noisy_steps(problem: Problem, rng: random.Random, noise: TraceNoise) -> Iterator[tuple[str, str] | None]:
    """The same of a solver whose errors are drawn anew at each call."""
    count = problem.metadata["start"]
    for number, step in enumerate(problem.metadata["steps"], 1):
        if rng.random() < noise.skip:
            break
        op = step.choose(count)
        thought = f"Step {number}"
        if step.test:
            thought += f", {_TESTS[step.test][0 if step.test_holds(count) else 1]}"
        while True:
            bad = rng.random() < noise.bad_call
            code = _bad_code(op, count, rng, noise) if bad else f"print({count}{op.symbol}{op.number})"
            printed = yield thought, code
            if not bad or rng.random() >= noise.recover:
                break
        try:
            count = int(printed)
        except ValueError:  # a broken call that nothing followed: the writer guesses and goes on
            count = op.apply(count) + rng.choice((-10, -1, 1, 10))
    yield None


def _bad_code(op: Operation, count: int, rng: random.Random, noise: TraceNoise) -> str:
    kind, symbol = rng.choice(("no print", "operator", "number")), op.symbol
    if rng.random() < noise.invalid:
        return rng.choice((f"print({count}{symbol}{op.number}", f"print({count}{symbol}/{op.number})"))
    if kind == "no print":
        return f"{count}{symbol}{op.number}"
    if kind == "operator":
        return f"print({count}{rng.choice([other for other in _OPERATORS if other != symbol])}{op.number})"
    digits = list(str(count))
    place = rng.choice([i for i, digit in enumerate(digits) if digit.isdigit()])  # a count may be negative
    digits[place] = str((int(digits[place]) + rng.randint(1, 9)) % 10)
    return f"print({''.join(digits)}{symbol}{op.number})"
