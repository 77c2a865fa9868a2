"""Sums without a process: what a policy that calculates mostly writes needs none to be safe, for nothing is executed.

A snippet that is sums, names for them, and prints of them is read and computed here. Whatever holds anything else, or
goes wrong as it is computed, is left to a child, which runs it from its beginning.
"""

from __future__ import annotations

import keyword
import operator
import re
import time

from gtpo_mini.sandbox.harness import error_text, turn_name
from gtpo_mini.types import ExecutionResult

Names = dict[str, int | float]  #: the variables of a session

# Without texts, lists, blocks or comments; and no number before a letter, which may warn.
_PLAIN = re.compile(r"(?!.*\d\.?[a-z_])[\w \n+\-*/%().,=]+", re.ASCII | re.DOTALL | re.IGNORECASE)
_TOKEN = re.compile(r" *(\d+\.?\d*|\.\d+|[A-Za-z_]\w*|//|[-+*/%(),=])", re.ASCII)
_MAY_WARN = re.compile(r"[\d.)]\s*\(|\b(?:is|assert|True|False|None)\b")  # as it is compiled
# Characters, brackets (the compiler refuses 200 open ones), bits of an integer, output: more is a child's to bear.
_LENGTH, _NESTED, _BITS, _OUTPUT = 500, 60, 1024, 1000
_SUMS = {"+": operator.add, "-": operator.sub}
_PRODUCTS = {"*": operator.mul, "/": operator.truediv, "//": operator.floordiv, "%": operator.mod}


def evaluate(code: str, number: int, names: Names) -> tuple[ExecutionResult, Names] | None:
    """What a child would give for a turn, and the variables after it; None where a child must run it.

    >>> result, names = evaluate("x = 6\\nprint(x * 7, 1 / 4)", 1, {})
    >>> result.stdout, names
    ('42 0.25\\n', {'x': 6})
    >>> evaluate("print(2 ** 9)", 1, {}) is None
    True
    """
    start = time.monotonic()
    if len(code) > _LENGTH or code.count("(") > _NESTED or not _PLAIN.fullmatch(code):
        return None
    output, error, after = "", "", dict(names)
    try:
        for line in code.split("\n"):
            output += _Line(line, after).run()
    except _NoSum:
        if not (error := _syntax_error(code, number)):
            return None
        output, after = "", names
    except (ArithmeticError, LookupError, ValueError, RecursionError):
        return None
    if len(output) > _OUTPUT:
        return None
    spent = time.monotonic() - start
    return ExecutionResult(not error, output, error=error, cpu_seconds=spent, wall_seconds=spent), after


class _NoSum(Exception):
    """A line is no sum, or none of Python."""


class _Line:
    """One line as its tokens, computed as it is read: by recursive descent, not by `ast`, whose parser counts its depth
    for all threads together and may raise in any of them (Python 3.11).
    """

    def __init__(self, line: str, names: Names) -> None:
        self.names, self.tokens, end = names, [""], len(line.rstrip())  # the last first; "" ends them
        place, found = 0, []
        while place < end:
            if (match := _TOKEN.match(line, place)) is None:
                raise _NoSum
            found.append(match[1])
            place = match.end()
        if found and line[0] == " ":
            raise _NoSum
        self.tokens += reversed(found)

    def take(self, *wanted: str) -> str:
        """The next token if it is one of these, else nothing."""
        return self.tokens.pop() if self.tokens[-1] in wanted and self.tokens[-1] else ""

    def run(self) -> str:
        """What the line prints; what it assigns goes into the names."""
        if not self.tokens[-1]:
            return ""
        first, second = self.tokens[-1], self.tokens[-2]
        if first == "print" and second == "(":
            del self.tokens[-2:]
            printed = []
            while not self.take(")"):
                printed.append(str(self.sum()))
                if not self.take(",") and self.tokens[-1] != ")":
                    raise _NoSum
            self.end()
            return " ".join(printed) + "\n"
        if second == "=" and first.isidentifier() and not keyword.iskeyword(first):
            if first == "print" or first[0] == "_":
                raise LookupError(first)
            del self.tokens[-2:]
            value = self.sum()
            self.end()
            self.names[first] = value
        else:
            self.sum()
            self.end()
        return ""

    def end(self) -> None:
        if self.tokens[-1]:
            raise _NoSum

    def sum(self) -> int | float:
        value = self.product()
        while symbol := self.take(*_SUMS):
            value = _number(_SUMS[symbol](value, self.product()))
        return value

    def product(self) -> int | float:
        value = self.factor()
        while symbol := self.take(*_PRODUCTS):
            value = _number(_PRODUCTS[symbol](value, self.factor()))
        return value

    def factor(self) -> int | float:
        if symbol := self.take(*_SUMS):
            return _number(-self.factor() if symbol == "-" else +self.factor())
        if self.take("("):
            value = self.sum()
            if not self.take(")"):
                raise _NoSum
            return value
        token = self.tokens[-1]
        if token.isidentifier() and not keyword.iskeyword(token):
            return self.names[self.tokens.pop()]
        if not token[:1].isdigit() and token[:1] != ".":
            raise _NoSum
        if token.isdigit() and token[0] == "0" and token.strip("0"):
            raise _NoSum  # a leading zero
        self.tokens.pop()
        return _number(int(token) if token.isdigit() else float(token))


def _number(found: int | float) -> int | float:
    if type(found) is int and found.bit_length() > _BITS:
        raise ValueError("too large a number")
    return found


def _syntax_error(code: str, number: int) -> str:
    """What the model is told of code that is none; the empty string where it may be some."""
    if _MAY_WARN.search(code):
        return ""
    try:
        # No file can have this name: the compiler looks for one to quote a line from it.
        compile(code, f"/dev/null/{turn_name(number)}", "exec", dont_inherit=True)
    except SyntaxError as problem:
        problem.filename = turn_name(number)
        problem.__context__ = None  # what the trainer is handling just now is not the snippet's
        text = error_text(problem.with_traceback(None), [])
        return text if 'File "' in text else ""  # shortened where the trainer's stack is nearly full
    except (ValueError, RecursionError, MemoryError, OverflowError):
        return ""
    return ""
