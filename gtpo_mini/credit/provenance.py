"""Where the values of a rollout come from: each number or word of its answer, each literal of a call, with its source.

After TRACER, of which a summary was read; the rules are ours [D]. A value is *copied* from a tool output that holds it,
*restated* from the prompt, *computed* where one operation on two such values gives it, or else *unsupported*. A call
that only prints a literal is no source: what it echoes has the literal's own origin.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache

from ..types import ExecutionResult, Trajectory
from .checks import parsed

PROMPT = -1  # as a source: the question

Value = Fraction | str  # a number, or text in small letters

_NUMBER = re.compile(r"(?:(?<![\w.)\]])-)?(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][+-]?\d{1,3})?(?!\w)")
_TRIVIAL = (-1, 0, 1)  # too easily the result of something
_REMEMBERED = 64  # the last numbers that are tried in pairs
_DIGITS = 60  # a longer number is compared as text


class Origin(StrEnum):
    """How a value is supported."""

    COPIED = "copied"  #: a tool output holds it
    COMPUTED = "computed"  #: one operation on two values of outputs and prompt gives it
    RESTATED = "restated"  #: the prompt holds it
    UNSUPPORTED = "unsupported"  #: none of these


@dataclass(frozen=True)
class Claim:
    """One value that a rollout states, and what supports it."""

    text: str  #: as it is written
    turn: int  #: that states it
    in_answer: bool  #: in the answer; else a literal of the turn's call
    origin: Origin
    sources: tuple[int, ...] = ()  #: turns whose output supports it, `PROMPT` for the question; of two values, both


def provenance(rollout: Trajectory) -> list[Claim]:
    """What each literal of a call and each value of the answer rests on, in the order of the turns.

    Of the answer every number is a claim; an answer without one is a claim as a whole. Numbers are compared by value
    (1,430 is 1430.0), text by whole words, without regard to case. What stands nearer before the claim is named: the
    last output that holds the value, then the question, then two values that give it.

    >>> from types import SimpleNamespace as S
    >>> ran = S(code="print(6*7)", result=ExecutionResult(ok=True, stdout="42"))
    >>> rollout = S(problem=S(question="6 times 7?"), turns=[ran, S(code=None, result=None)], answer="42, not 43")
    >>> [(claim.text, str(claim.origin), claim.sources) for claim in provenance(rollout)]
    [('6', 'restated', (-1,)), ('7', 'restated', (-1,)), ('42', 'copied', (0,)), ('43', 'unsupported', ())]
    """
    known, claims = _Known(rollout.problem.question), []
    for j, turn in enumerate(rollout.turns):
        claims += [Claim(text, j, False, *known.origin(as_value(text))) for text in _literals(turn.code or "")]
        if turn.result is not None:
            known.add(j, turn.code or "", turn.result.stdout)
    return claims + _of_answer(rollout, known)


def answer_claims(rollout: Trajectory) -> list[Claim]:
    """Those of `provenance` that the answer makes; none where there is no answer."""
    known = _Known(rollout.problem.question)
    for j, turn in enumerate(rollout.turns):
        if turn.result is not None:
            known.add(j, turn.code or "", turn.result.stdout)
    return _of_answer(rollout, known)


def is_supported(claims: Sequence[Claim]) -> bool:
    """Does an answer rest on the tool: some claim copied or computed, and none unsupported?"""
    origins = {claim.origin for claim in claims}
    return Origin.UNSUPPORTED not in origins and bool(origins & {Origin.COPIED, Origin.COMPUTED})


def verified(claim: Claim, rollout: Trajectory, run: Callable[[str], ExecutionResult]) -> bool:
    """Run the calls up to the last cited one again: do their outputs support the claim as it says?

    Args:
        run: runs a code in a fresh session, where the task's setup has run: ``session.run``.

    False for a claim that nothing supports.
    """
    if claim.origin is Origin.UNSUPPORTED:
        return False
    known = _Known(rollout.problem.question)
    for j, turn in enumerate(rollout.turns[: max(claim.sources) + 1]):
        if turn.result is not None:
            known.add(j, turn.code or "", run(turn.code or "").stdout)
    return known.origin(as_value(claim.text)) == (claim.origin, claim.sources)


def as_value(text: str) -> Value:
    """A number where the text is one, else the text in small letters, its white space made even.

    >>> as_value("1,430.0"), as_value(" Anna  Berg")
    (Fraction(1430, 1), 'anna berg')
    """
    whole = text.strip()
    if len(whole) <= _DIGITS and _NUMBER.fullmatch(whole):
        return Fraction(whole.replace(",", ""))
    return " ".join(whole.lower().split())


class _Known:
    """The values that stand in the question and in the outputs so far, the last one first."""

    def __init__(self, question: str) -> None:
        self.texts: list[tuple[int, frozenset[Fraction], str, dict]] = []
        self.numbers: dict[Fraction, int] = {}  # where each was last seen
        self._add(PROMPT, question, {})

    def add(self, turn: int, code: str, output: str) -> None:
        self._add(turn, output, {value: self.origin(value) for value in map(as_value, _echoed(code))})

    def _add(self, place: int, text: str, echoes: dict[Value, tuple[Origin, tuple[int, ...]]]) -> None:
        numbers, words = _read(text)
        self.texts.append((place, numbers, words, echoes))
        for value in numbers:
            if echoes.get(value, (None,))[0] is not Origin.UNSUPPORTED:
                self.numbers.pop(value, None)
                self.numbers[value] = place

    def origin(self, value: Value) -> tuple[Origin, tuple[int, ...]]:
        for place, numbers, words, echoes in reversed(self.texts):
            if value in numbers if isinstance(value, Fraction) else _holds(words, value):
                plain = (Origin.RESTATED if place == PROMPT else Origin.COPIED, (place,))
                return echoes.get(value, plain)
        if isinstance(value, Fraction) and value not in _TRIVIAL:
            for a, place in reversed([*self.numbers.items()][-_REMEMBERED:]):
                # What b would have to be, so that a+b, a-b, b-a, a*b, a/b or b/a is the value.
                others = [value - a, a - value, value + a, *([value / a, value * a] if a else []), a / value]
                for b in others:
                    if b in self.numbers and a not in _TRIVIAL and b not in _TRIVIAL:
                        return Origin.COMPUTED, tuple(sorted({place, self.numbers[b]}))
        return Origin.UNSUPPORTED, ()


def _of_answer(rollout: Trajectory, known: _Known) -> list[Claim]:
    if rollout.answer is None:
        return []
    found = [match[0] for match in _NUMBER.finditer(rollout.answer)] or [rollout.answer.strip()]
    return [Claim(text, len(rollout.turns) - 1, True, *known.origin(as_value(text))) for text in found]


@lru_cache(maxsize=4096)
def _read(text: str) -> tuple[frozenset[Fraction], str]:
    """The numbers of a text, and its words."""
    values = (as_value(match[0]) for match in _NUMBER.finditer(text))
    return frozenset(value for value in values if isinstance(value, Fraction)), " ".join(text.lower().split())


def _holds(text: str, words: str) -> bool:
    return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def _text_of(node: ast.AST) -> str | None:
    """What a literal is: a number, with its sign, or text that holds a letter or digit."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        inner = _text_of(node.operand)
        return f"-{inner}" if inner and not isinstance(node.operand.value, str) else None
    if not isinstance(node, ast.Constant) or isinstance(node.value, bool | complex | bytes):
        return None
    if isinstance(node.value, int) and node.value.bit_length() > 4 * _DIGITS:
        return None
    text = node.value if isinstance(node.value, str) else repr(node.value)
    return text if isinstance(node.value, str | int | float) and any(map(str.isalnum, text)) else None


@lru_cache(maxsize=4096)
def _literals(code: str) -> tuple[str, ...]:
    """The literals of a code in their order; none where Python cannot read it."""
    found, stack = [], [parsed(code)]
    while stack:
        node = stack.pop()
        text = None if node is None else _text_of(node)
        if text is not None:
            found.append(text)
        elif node is not None:
            stack += reversed([*ast.iter_child_nodes(node)])
    return tuple(found)


@lru_cache(maxsize=4096)
def _echoed(code: str) -> tuple[str, ...]:
    """The literals that a code prints as they are."""
    tree = parsed(code)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)] if tree else []
    prints = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    return tuple(text for call in prints for argument in call.args if (text := _text_of(argument)) is not None)
