"""One confined child seen from the trainer: give it a turn, watch the limits, stop it in between.

Only facts are believed: what came out of its pipes, the kernel's clocks, the wait status. Its word on whether
a snippet ended well must carry a nonce that it got with the turn, so that stray bytes cannot pass for it.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import socket
import threading
import time
from typing import Protocol

from gtpo_mini.sandbox.harness import FRAME, HEADER, MAX_ERROR
from gtpo_mini.sandbox.limits import Limits
from gtpo_mini.types import ExecutionResult

FLOOD = 16  #: a snippet that writes this many times its output limit is stopped
MAX_CODE = 1 << 20  #: bytes of one snippet
NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # not on macOS
TICK = 0.010  #: seconds between two looks at output and limits


class Keeper(Protocol):
    """What a child needs from the fork server, the only process that may wait for it."""

    def release(self, pid: int) -> None: ...

    def wait(self, pid: int) -> int: ...


class _Killed(Exception):
    """The turn is over and the child with it."""

    def __init__(self, text: str, timed_out: bool = False) -> None:
        super().__init__(text)
        self.timed_out = timed_out


class _Moved(Exception):
    """The turn asks for a module that is not there, and may have another server's child."""


class _Stream:
    """What was kept of one output pipe."""

    def __init__(self, fd: int, keep: int) -> None:
        self.fd, self.keep, self.seen, self.data, self.open = fd, keep, 0, bytearray(), True

    def drain(self) -> None:
        """Take what is there now, but never more than the flood limit: a writer may not pause."""
        while self.open and self.seen <= FLOOD * self.keep:
            try:
                part = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return
            self.open = bool(part)
            self.seen += len(part)
            self.data += part[: max(0, self.keep - len(self.data))]

    def text(self) -> str:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return decoder.decode(bytes(self.data), final=self.seen <= self.keep)


class Child:
    """Owner of one child and of the trainer's ends of its standard output, standard error and control socket.

    Its process id is ours until :meth:`close`, because the server reaps it only then.
    """

    def __init__(self, pid: int, fds: list[int], keeper: Keeper) -> None:
        self.pid, self._keeper = pid, keeper
        self._out, self._err, control = fds
        # One socket for the child's whole life: one made for each message, and dropped half-made by an interrupt, would
        # close the descriptor under us.
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=control)
        self._control.setblocking(False)
        self._fds = [self._out, self._err]
        self.usable = True  #: False once it was killed or may not be what it was
        self._stopped, self._ending = False, threading.Lock()
        self._clock = (~pid << 3) | 2  # the kernel's name for the CPU clock of process `pid`
        self._pidfd = -1  # a pid could be given to another process if the server died; a pidfd cannot
        with contextlib.suppress(AttributeError, OSError):
            self._pidfd = os.pidfd_open(pid)
            self._fds.append(self._pidfd)
        for fd in (self._out, self._err):
            os.set_blocking(fd, False)

    def ready(self, seconds: float = 60.0) -> str:
        """Wait for the word that the confinement is up; the empty string, or what failed."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return f"no answer in {seconds:g} s"
        word = _read(self._control, 4000)
        if word == b"R":
            return ""
        return word.decode("utf-8", "replace") or "it died while it was being confined"

    def turn(self, code: str, number: int, limits: Limits, may_move: bool = False) -> ExecutionResult | None:
        """Run one snippet; ``number`` names it in tracebacks (0: one shot).

        ``may_move``: None, and a child that was killed, where it imports what was not imported ahead.
        """
        raw = code.encode("utf-8", "surrogatepass")
        if len(raw) > MAX_CODE:
            return ExecutionResult(ok=False, error="ValueError: the snippet is longer than 1 MiB")
        out, err = (_Stream(fd, int(limits.output_kib * 1024)) for fd in (self._out, self._err))
        start, cpu_start, timed_out = time.monotonic(), self._cpu(), False
        try:
            self._go()
            error = self._converse(raw, number, may_move, limits, (out, err), cpu_start)
        except _Moved:
            self.usable = False
            return None
        except _Killed as why:
            self.usable, error, timed_out = False, str(why), why.timed_out
        except BaseException:  # the trainer was interrupted, and nobody knows where the child is
            self.usable = False
            raise
        finally:
            self._stop()
        for stream in (out, err):
            stream.drain()
        if self.usable and not (out.open and err.open):
            self.usable, error = False, "RuntimeError: the snippet closed its own output"
        return ExecutionResult(
            ok=not error,
            stdout=out.text(),
            stderr=err.text(),
            error=error,
            timed_out=timed_out,
            truncated=any(stream.seen > stream.keep for stream in (out, err)),
            cpu_seconds=max(0.0, self._cpu() - cpu_start),
            wall_seconds=time.monotonic() - start,
        )

    def _converse(self, raw: bytes, number: int, may_move: bool, limits: Limits, streams, cpu_start: float) -> str:
        """Send the turn, wait for its frame, and return the error text in it (empty: none)."""
        nonce, reply = os.urandom(16), b""
        message = HEADER.pack(nonce, number, may_move, len(raw)) + raw
        poll = select.poll()
        start, waited = time.monotonic(), self._waited()
        while True:
            poll.register(self._control, select.POLLIN | (select.POLLOUT if message else 0))
            events = poll.poll(TICK * 1000)
            if events and events[0][1] & select.POLLOUT and message:
                message = message[_write(self._control, message) :]
            if events and events[0][1] & ~select.POLLOUT:
                part = _read(self._control, FRAME.size + 4 * MAX_ERROR + 1 - len(reply))
                if not part:
                    raise _Killed(_how_it_died(self._keeper.wait(self.pid)))
                reply += part
                error = _parse(reply, nonce, may_move)
                if error is not None:
                    return error
            for stream in streams:
                stream.drain()
                if stream.seen > FLOOD * stream.keep:
                    raise _Killed(f"OutputLimit: stopped after more than {FLOOD * limits.output_kib} KiB")
            if self._cpu() - cpu_start >= limits.cpu_seconds:
                raise _Killed(f"TimeoutError: stopped after {limits.cpu_seconds:g} s of CPU time", True)
            elapsed = time.monotonic() - start
            if elapsed >= limits.wall_seconds and elapsed - (self._waited() - waited) >= limits.wall_seconds:
                raise _Killed(f"TimeoutError: stopped after {limits.wall_seconds:g} s", True)

    def _cpu(self) -> float:
        """CPU seconds of all its threads so far."""
        try:
            return time.clock_gettime(self._clock)
        except OSError:  # it is gone, or this system has no such clocks
            with contextlib.suppress(OSError, ValueError), open(f"/proc/{self.pid}/stat", "rb") as file:
                ticks = file.read().rpartition(b")")[2].split()[11:13]
                return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
            return 0.0

    def _waited(self) -> float:
        """Seconds that its main thread was ready to run and got no core: the machine's doing, not its own."""
        try:
            with open(f"/proc/{self.pid}/schedstat", "rb") as file:
                return int(file.read().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    def _go(self) -> None:
        if self._stopped:
            self._signal(signal.SIGCONT)
            self._stopped = False

    def _stop(self) -> None:
        """Between turns nothing of it runs, not even a thread that the snippet left behind."""
        self._signal(signal.SIGSTOP if self.usable else signal.SIGKILL)
        self._stopped = True

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                os.kill(self.pid, number)

    def end(self) -> None:
        """Kill it, so that a turn that runs in another thread comes back."""
        with self._ending:
            if self._fds:
                self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill it and give up what belongs to it. May be called again."""
        with self._ending:
            fds, self._fds, self.usable = self._fds, [], False
            if fds:
                self._keeper.release(self.pid)
                self._control.close()
                for fd in fds:
                    os.close(fd)


def _read(channel: socket.socket, most: int) -> bytes:
    try:
        return channel.recv(most)
    except ConnectionResetError:  # it died with our bytes unread
        return b""
    except BlockingIOError:  # readable, and nothing to read: an urgent byte, which no harness sends
        raise _Killed("RuntimeError: the snippet wrote to a channel that is not its own") from None


def _write(channel: socket.socket, data: bytes) -> int:
    try:
        return channel.send(data, NO_SIGNAL)  # a trainer may have SIGPIPE at its default, which kills
    except BlockingIOError:
        return 0
    except (BrokenPipeError, ConnectionResetError):  # its end is closed: the next read says so
        return len(data)


def _parse(reply: bytes, nonce: bytes, may_move: bool) -> str | None:
    """The error text of a complete frame, None while it is incomplete; anything else is a forgery."""
    if len(reply) < FRAME.size and nonce.startswith(reply[:16]):
        return None
    if len(reply) >= FRAME.size:
        echo, sign, size = FRAME.unpack_from(reply)
        text = reply[FRAME.size :]
        if may_move and (echo, sign) == (nonce, b"?"):
            raise _Moved
        if echo == nonce and sign in b"+-" and size <= 4 * MAX_ERROR and len(text) <= size:
            if len(text) < size:
                return None
            return "" if sign == b"+" else text.decode("utf-8", "replace")[-MAX_ERROR:] or "Error"
    raise _Killed("RuntimeError: the snippet wrote to a channel that is not its own")


def _how_it_died(status: int) -> str:
    """A wait status as a text that helps a model to repair its code."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        known = number in set(signal.Signals)  # a real-time signal is valid and has no name
        name = signal.Signals(number).name if known else f"signal {number}"
        hint = {
            signal.SIGSEGV: " (endless recursion, or memory that is not there)",
            signal.SIGABRT: " (a fatal error of the interpreter)",
            signal.SIGKILL: " (out of CPU time or memory)",
        }.get(number, "")
        return f"RuntimeError: the process was ended by {name}{hint}"
    return f"RuntimeError: the process left with status {os.waitstatus_to_exitcode(status)} before the end"
