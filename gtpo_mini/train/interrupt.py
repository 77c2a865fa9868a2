"""Ctrl-C and SIGTERM during a run: stop where nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupts:
    """Catches SIGINT and SIGTERM while it is entered; a second one does not wait any more.

    In another thread than the main one, where Python takes no signals, it does nothing.

    >>> with Interrupts() as interrupts:
    ...     with interrupts.at_once():  # rolling out: nothing has changed yet
    ...         pass
    ...     interrupts.check()  # after an update: raises KeyboardInterrupt if it was asked for
    """

    def __init__(self) -> None:
        self.count = 0
        self._waiting = True
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: object) -> None:
        self.count += 1
        if not self._waiting or self.count > 1:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """In this part a signal raises KeyboardInterrupt at once; elsewhere the first one waits for `check`."""
        self.check()
        self._waiting = False
        try:
            yield
        finally:
            self._waiting = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal came."""
        if self.count:
            raise KeyboardInterrupt
