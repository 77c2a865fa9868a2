"""Checks of what comes from outside: numbers, one form for every error (the field, the value, what is right); code."""

from __future__ import annotations

import ast
import contextlib
import math
import warnings
from collections.abc import Iterable
from typing import Any

UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  #: what reading a model's code may raise


def finite_number(field: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """``value`` as a float (never -0.0), or a ValueError if it is no finite number in [low, high]."""
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isfinite(number) and low <= number <= high:
        return number + 0.0
    least = f" of at least {low:g}" if math.isfinite(low) else ""
    allowed = f" in [{low:g}, {high:g}]" if least and math.isfinite(high) else least
    raise ValueError(f"{field} must be a finite number{allowed}, got {value!r}")


def finite_numbers(field: str, values: Iterable[Any], at_least: int = 1) -> list[float]:
    """``values`` as floats, or a ValueError that names the first that is no finite number, or that they are few."""
    try:
        entries = None if isinstance(values, str | bytes) else list(values)
    except TypeError:
        entries = None
    if entries is None:
        raise ValueError(f"{field} must be a list of numbers, got {values!r}")
    if len(entries) < at_least:
        raise ValueError(f"{field} must hold at least {at_least} number(s), got {len(entries)}")
    return [finite_number(f"{field}[{index}]", entry) for index, entry in enumerate(entries)]


def whole_number(field: str, value: Any, low: int, high: int | None = None) -> int:
    """``value`` as an int, or a ValueError if it is no whole number in [low, high]; 3.0 is fine."""
    number = finite_number(field, value, low, math.inf if high is None else high)
    if number != int(number):
        raise ValueError(f"{field} must be a whole number, got {value!r}")
    return int(number)


def open_fraction(field: str, value: Any) -> float:
    """``value`` as a float, or a ValueError if it does not lie strictly between 0 and 1."""
    number = finite_number(field, value)
    if not 0.0 < number < 1.0:
        raise ValueError(f"{field} must lie between 0 and 1 (95 % is 0.95), got {value!r}")
    return number


def parsed(code: str) -> ast.Module | None:
    """The code's syntax tree, None where Python cannot read it; a model's odd string escapes are no news."""
    with warnings.catch_warnings(), contextlib.suppress(*UNREADABLE):
        warnings.simplefilter("ignore")
        return ast.parse(code)
    return None
