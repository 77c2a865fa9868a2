"""What a snippet may use, and the one error that the sandbox itself raises."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

REMEDY = (
    "Use Linux 5.13 or later with seccomp (on Windows: WSL2; on macOS: Docker, `docker run -it python:3.11`), "
    'or, where model-written code can do no harm, Sandbox(confinement="unconfined").'
)


class SandboxUnavailable(RuntimeError):
    """The sandbox cannot give what it promises, or is broken; the message says what is missing and what helps.

    Never raised for what a snippet does: a broken set-up must stop the run, not be scored as a wrong answer.
    """


@dataclass(frozen=True)
class Limits:
    """What one snippet, or one turn of a session, may use; a ValueError where a limit is no finite number in its range.

    Args:
        cpu_seconds: CPU time of all threads, at least 0.01; as in ``wall_seconds``, the wait for a core does not count.
        wall_seconds: elapsed seconds, at least 0.01.
        memory_mib: address space on top of the warmed interpreter, at least 16, for a session's whole life.
        output_kib: kept of standard output and as much of standard error, at least 1; the rest is cut, and a snippet
            that writes 16 times as much is stopped.

    >>> Limits(cpu_seconds=1).memory_mib
    512
    >>> Limits(output_kib=0)
    Traceback (most recent call last):
    ...
    ValueError: Limits.output_kib is 0: give a finite number, at least 1
    """

    cpu_seconds: float = 5.0
    wall_seconds: float = 15.0
    memory_mib: int = 512
    output_kib: int = 64

    def __post_init__(self) -> None:
        least = {"cpu_seconds": 0.01, "wall_seconds": 0.01, "memory_mib": 16, "output_kib": 1}
        for item in fields(self):
            value = getattr(self, item.name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= least[item.name]):
                raise ValueError(f"Limits.{item.name} is {value!r}: give a finite number, at least {least[item.name]}")
