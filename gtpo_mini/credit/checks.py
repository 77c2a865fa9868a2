"""Checks of numbers that come from outside: one wording for every error, naming field, value and mend."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def finite_number(field: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Return ``value`` as a float, or raise if it is no finite number in [low, high].

    Args:
        field: what the caller calls it, for the message.
        value: anything that should be one real number; a bool, a 0-d array or a 0-d tensor is fine.
        low: smallest allowed value.
        high: largest allowed value.

    Returns:
        The number; ``-0.0`` comes back as ``0.0``, so that no sign of zero travels on.

    Raises:
        ValueError: text, NaN, an infinity, or outside [low, high].

    Source: [D].

    >>> finite_number("gamma", 1, low=0, high=1)
    1.0
    >>> finite_number("gamma", 1.5, low=0, high=1)
    Traceback (most recent call last):
        ...
    ValueError: gamma must be a finite number in [0, 1], got 1.5
    """
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isfinite(number) and low <= number <= high:
        return number + 0.0
    allowed = "a finite number"
    if math.isfinite(low) and math.isfinite(high):
        allowed += f" in [{low:g}, {high:g}]"
    elif math.isfinite(low):
        allowed += f" of at least {low:g}"
    raise ValueError(f"{field} must be {allowed}, got {value!r}")


def finite_numbers(field: str, values: Iterable[Any], at_least: int = 1) -> list[float]:
    """Return ``values`` as a list of floats, or raise naming the first entry that is no finite number.

    Args:
        field: what the caller calls the list, for the message.
        values: the numbers.
        at_least: smallest allowed length.

    Returns:
        The numbers, in order.

    Raises:
        ValueError: not a list, too short, or an entry that is no finite number.

    Source: [D].

    >>> finite_numbers("rewards", [1, float("nan")])
    Traceback (most recent call last):
        ...
    ValueError: rewards[1] must be a finite number, got nan
    """
    if isinstance(values, str | bytes):
        raise ValueError(f"{field} must be a list of numbers, got {values!r}")
    try:
        entries = list(values)
    except TypeError:
        raise ValueError(f"{field} must be a list of numbers, got {values!r}") from None
    if len(entries) < at_least:
        raise ValueError(f"{field} must hold at least {at_least} number(s), got {len(entries)}")
    return [finite_number(f"{field}[{index}]", entry) for index, entry in enumerate(entries)]


def whole_number(field: str, value: Any, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int, or raise if it is no whole number in [low, high].

    Args:
        field: what the caller calls it, for the message.
        value: anything that should be one whole number; 3.0 is fine.
        low: smallest allowed value.
        high: largest allowed value; None: no limit.

    Returns:
        The number.

    Raises:
        ValueError: not a whole number, or out of range.

    Source: [D].

    >>> whole_number("k", 2.5, low=1)
    Traceback (most recent call last):
        ...
    ValueError: k must be a whole number, got 2.5
    """
    number = finite_number(field, value, low, math.inf if high is None else high)
    if number != int(number):
        raise ValueError(f"{field} must be a whole number, got {value!r}")
    return int(number)


def open_fraction(field: str, value: Any) -> float:
    """Return ``value`` as a float, or raise if it does not lie strictly between 0 and 1.

    Args:
        field: what the caller calls it, for the message.
        value: a share or a probability, for instance a confidence.

    Returns:
        The number.

    Raises:
        ValueError: NaN, 0, 1, or beyond.

    Source: [D].

    >>> open_fraction("confidence", 95)
    Traceback (most recent call last):
        ...
    ValueError: confidence must lie between 0 and 1 (95 % is 0.95), got 95
    """
    number = finite_number(field, value)
    if not 0.0 < number < 1.0:
        raise ValueError(f"{field} must lie between 0 and 1 (95 % is 0.95), got {value!r}")
    return number
