"""Where the values of a rollout come from: each number or word of its answer, each literal of a call, with its source.

After TRACER, of which a summary was read; the rules are ours [D]. A value is *copied* from a tool output that holds it,
*restated* from the prompt, *computed* where one operation on one of the last such numbers and any other of them gives
it, or else *unsupported*. An output is what a call printed, not its error. It is no source where its code computes
nothing (``x = 42; print(x)``), nor of a literal that its code only prints, or holds without support before; but 0 and
1, from which most counts begin, may be sources. Chance is not ruled out: of many numbers, some two may give any.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache

from ..types import ExecutionResult, Trajectory, Turn
from .checks import parsed

PROMPT = -1  # as a source: the question

Value = Fraction | str  # a number, or text in small letters

_SIGN, _WHOLE = r"(?:(?<![\w.)\]])-)?(?<![\w.])", r"(?>\d{1,3}(?:,\d{3}){1,20}+(?![\d,])|\d+)"
_NUMBER = re.compile(rf"{_SIGN}(?:{_WHOLE}(?>(?:\.\d+)?)|\.\d+)(?:[eE][+-]?\d{{1,3}})?(?!\d)")
_TRIVIAL = (-1, 0, 1)  # too easily the result of something
_REMEMBERED = 8  # the last numbers that are tried in pairs: of many, some two give any number
# What a code does beyond passing on: operators, parts of something, loops; `_computes`.
_WORK = (ast.operator, ast.cmpop, ast.boolop, ast.Subscript, ast.Attribute, ast.For, ast.comprehension)
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
            known.add(j, turn.code or "", _seen(turn))
    return claims + _of_answer(rollout, known)


def answer_claims(rollout: Trajectory) -> list[Claim]:
    """Those of `provenance` that the answer makes; none where there is no answer."""
    return _of_answer(rollout, _known(rollout, len(rollout.turns)))


def is_supported(claims: Sequence[Claim]) -> bool:
    """Does an answer rest on the tool: some claim copied or computed from an output, and none unsupported?"""
    by_tool = any(claim.origin is not Origin.RESTATED and max(claim.sources, default=PROMPT) >= 0 for claim in claims)
    return by_tool and all(claim.origin is not Origin.UNSUPPORTED for claim in claims)


def verified(claim: Claim, rollout: Trajectory, run: Callable[[str], ExecutionResult]) -> bool:
    """Run the calls up to the last cited one again: do their outputs support the claim as it says?

    Args:
        run: runs a code in a fresh session, where the task's setup has run: ``session.run``; where outputs were
            shortened, `run_call`'s first result, which keeps what ``unfold`` prints.

    False for a claim that nothing supports.
    """
    if claim.origin is Origin.UNSUPPORTED or not claim.sources:
        return False
    known = _known(rollout, max(claim.sources) + 1, run)
    return known.origin(as_value(claim.text)) == (claim.origin, claim.sources)


def as_value(text: str) -> Value:
    """A number where the text is one, else the text in small letters, its white space made even.

    >>> as_value("1,430.0"), as_value(" Anna  Berg")
    (Fraction(1430, 1), 'anna berg')
    """
    whole = text.replace("\u2212", "-").strip().strip(",;:!?*\"'` ").rstrip(".,;:!?*\"'` ")
    if len(whole) <= _DIGITS and _NUMBER.fullmatch(whole):
        return Fraction(whole.replace(",", ""))
    return " ".join(whole.casefold().split())


class _Known:
    """The values that stand in the question and in the outputs so far."""

    def __init__(self, question: str) -> None:
        #: of each text: where it stands, its numbers and words, and those that are no source there
        self.texts: list[tuple[int, dict[Fraction, None], str, set[Fraction], str]] = []
        self.numbers: dict[Fraction, int] = {}  # where each was last seen
        self._add(PROMPT, question, set(), "")

    def add(self, turn: int, code: str, output: str) -> None:
        """An output is no source of what its own code says without one, or only prints as it is written."""
        if not _computes(code):
            return
        numbers, words, printed = set(), [], _echoed(code)
        for text in _literals(code):
            numbers |= {value for value in _read(text)[0] if text in printed or not self._supports(value)}
            if text in printed or not self._supports(as_value(text)):
                words.append(_read(text)[1])
        self._add(turn, output, numbers, " ".join(words))

    def _add(self, place: int, text: str, numbers_not: set[Fraction], words_not: str) -> None:
        numbers, words = _read(text)
        self.texts.append((place, numbers, words, numbers_not, words_not))
        for value in numbers:
            if value not in numbers_not:
                self.numbers.pop(value, None)
                self.numbers[value] = place

    def _supports(self, value: Value) -> bool:
        return value in _TRIVIAL or self.origin(value)[0] is not Origin.UNSUPPORTED

    def origin(self, value: Value) -> tuple[Origin, tuple[int, ...]]:
        number = isinstance(value, Fraction)
        for place, numbers, words, numbers_not, words_not in reversed(self.texts):
            held = value in numbers if number else _holds(words, value)
            if held and not (value in numbers_not if number else _holds(words_not, value)):
                return Origin.RESTATED if place == PROMPT else Origin.COPIED, (place,)
        if number and value not in _TRIVIAL:
            recent = [(a, place) for a, place in self.numbers.items() if a not in _TRIVIAL][-_REMEMBERED:]
            for a, place in reversed(recent):
                # What b would have to be, so that a+b, a-b, b-a, a*b, a/b or b/a is the value.
                for b in (value - a, a - value, value + a, value / a, a / value, value * a):
                    if b != a and b not in _TRIVIAL and b in self.numbers:
                        return Origin.COMPUTED, tuple(sorted({place, self.numbers[b]}))
        return Origin.UNSUPPORTED, ()


def _known(rollout: Trajectory, turns: int, run: Callable[[str], ExecutionResult] | None = None) -> _Known:
    """What stands in the question and the outputs of the first turns, as they were, or as ``run`` makes them again."""
    known = _Known(rollout.problem.question)
    for j, turn in enumerate(rollout.turns[:turns]):
        if turn.result is not None:
            again = run(turn.code or "").stdout if run else turn.result.stdout
            known.add(j, turn.code or "", _seen(turn) if again == turn.result.stdout else again)
    return known


def _seen(turn: Turn) -> str:
    """What the policy saw of a turn's output: of a shortened one no line of its error, no gap, no half of a word."""
    whole = turn.result.stdout
    if getattr(turn, "told", None) is None:
        return whole
    pieces = [line.strip() for line in turn.told.stdout.split("\n")]
    words = set(whole.split())
    kept = [[word for word in piece.split() if word in words] for piece in pieces if piece in whole]
    return "\n".join(" ".join(piece) for piece in kept)


def _of_answer(rollout: Trajectory, known: _Known) -> list[Claim]:
    if rollout.answer is None:
        return []
    found = [match[0] for match in _NUMBER.finditer(rollout.answer.replace("\u2212", "-"))] or [rollout.answer.strip()]
    return [Claim(text, len(rollout.turns) - 1, True, *known.origin(as_value(text))) for text in found]


@lru_cache(maxsize=4096)
def _read(text: str) -> tuple[dict[Fraction, None], str]:
    """The numbers of a text, each once, in their order, and its words."""
    text = text.replace("\u2212", "-")  # the minus sign
    values = (as_value(match[0]) for match in _NUMBER.finditer(text))
    numbers = dict.fromkeys(value for value in values if isinstance(value, Fraction))
    return numbers, " ".join(text.casefold().split())


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


@lru_cache(maxsize=4096)
def _computes(code: str) -> bool:
    """Whether a code does more than to print what it holds: an operator, a part of something, a name from elsewhere."""
    if not (tree := parsed(code)) or not tree.body:  # no Python, so that nothing is known
        return True
    nodes = [*ast.walk(tree)]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    own = {"print", "str", "repr", "int", "float", *(name.id for name in names if isinstance(name.ctx, ast.Store))}
    return any(isinstance(node, _WORK) for node in nodes) or any(name.id not in own for name in names)
