"""Sums without a process: what a policy that calculates mostly writes needs none to be safe, for nothing is executed.

A snippet that is sums, names for them, and prints of them is parsed, and its tree is walked here. Whatever holds
anything else, or goes wrong as it is computed, is left to a child, which runs it from its beginning.
"""

from __future__ import annotations

import ast
import operator
import re
import time

from gtpo_mini.sandbox.harness import error_text, turn_name
from gtpo_mini.types import ExecutionResult

Names = dict[str, int | float]  #: the variables of a session

# Short, without texts, brackets, blocks or comments; and no digit before a letter, which may warn.
_PLAIN = re.compile(r"(?!.*\d[a-z_])[\w \n+\-*/%().,=]{1,500}", re.ASCII | re.DOTALL | re.IGNORECASE)
_BITS, _OUTPUT = 1024, 1000  # of an integer, and characters of output: more is a child's to bear
_OPERATORS = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul},
    **{ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod},
    **{ast.UAdd: operator.pos, ast.USub: operator.neg},
}


def evaluate(code: str, number: int, names: Names) -> tuple[ExecutionResult, Names] | None:
    """What a child would give for a turn, and the variables after it; None where a child must run it.

    >>> result, names = evaluate("x = 6\\nprint(x * 7, 1 / 4)", 1, {})
    >>> result.stdout, names
    ('42 0.25\\n', {'x': 6})
    >>> evaluate("print(2 ** 9)", 1, {}) is None
    True
    """
    start = time.monotonic()
    if not _PLAIN.fullmatch(code):
        return None
    output, error, names = "", "", dict(names)
    try:
        for statement in ast.parse(code, turn_name(number)).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if name != "print" and name[0] != "_":
                    names[name] = _value(value, names)
                case ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=values, keywords=[])):
                    output += " ".join(str(_value(value, names)) for value in values) + "\n"
                case ast.Expr(value=value):
                    _value(value, names)
                case _:
                    return None
    except SyntaxError as problem:
        problem.__context__ = None  # what the trainer is handling just now is not the snippet's
        error = error_text(problem.with_traceback(None), [])
    except (ArithmeticError, LookupError, ValueError, RecursionError, MemoryError):
        return None
    if len(output) > _OUTPUT:
        return None
    spent = time.monotonic() - start
    return ExecutionResult(not error, output, error=error, cpu_seconds=spent, wall_seconds=spent), names


def _value(node: ast.expr, names: Names) -> int | float:
    match node:
        case ast.Constant(value=value):
            found = value
        case ast.Name(id=name):
            found = names[name]
        case ast.UnaryOp(op=op, operand=value):
            found = _OPERATORS[type(op)](_value(value, names))
        case ast.BinOp(op=op, left=left, right=right):
            found = _OPERATORS[type(op)](_value(left, names), _value(right, names))
        case _:
            raise LookupError("no sum")
    if type(found) is float or (type(found) is int and found.bit_length() <= _BITS):
        return found
    raise ValueError("no number, or too large a one")
