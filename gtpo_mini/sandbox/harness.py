"""Inside the child, after confinement: take a snippet, run it, send back how it ended.

Nothing here is trusted by the trainer: a snippet shares this process and can do to it what it likes.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import linecache
import os
import struct
import sys
import threading
import traceback
import types

HEADER = struct.Struct("!16sI?I")  # nonce, number of the turn (0: one shot), may it move, bytes of code
FRAME = struct.Struct("!16scI")  # the same nonce; b"+", b"-", or b"?" to move; bytes of error text
CONTROL = 3  #: descriptor of the socket to the trainer, in the child
MAX_ERROR = 4000  #: characters of error text
MAX_LINE = 500  #: characters of one line of it


def serve(roots: list[str], read=os.read, write=os.write, leave=os._exit) -> None:
    """Run turns until the trainer closes its end. Bound early: who replaces ``os.read`` harms itself."""

    def take(n: int) -> bytes:
        data = b""
        while len(data) < n:
            part = read(CONTROL, min(n - len(data), 1 << 16))
            if not part:
                leave(0)
            data += part
        return data

    class More:
        """First of the import system's finders: a module that is not here yet is another server's to have."""

        nonce = b""

        def find_spec(self, *_: object) -> None:
            if self.nonce:
                write(CONTROL, FRAME.pack(self.nonce, b"?", 0))
                leave(0)

    more = More()
    sys.meta_path.insert(0, more)
    namespace = sys.modules["__main__"].__dict__
    while True:
        nonce, number, may_move, size = HEADER.unpack(take(HEADER.size))
        more.nonce = nonce if may_move else b""
        error = _turn(take(size), turn_name(number), namespace, roots)
        text = error.encode("utf-8", "backslashreplace")
        frame = FRAME.pack(nonce, b"-" if text else b"+", len(text)) + text
        while frame:
            frame = frame[write(CONTROL, frame) :]


def turn_name(number: int) -> str:
    """What stands for a file's name in tracebacks."""
    return f"<turn {number}>" if number else "<snippet>"


def prepare() -> None:
    """What every child begins with, made once in the server, and used once, so that children need not warm it."""
    builtins.open = io.open = _open
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    for code in (b"print(end='')", b"1 / 0"):
        _turn(code, "<snippet>", dict(module.__dict__), [])


def _turn(raw: bytes, name: str, namespace: dict, roots: list[str]) -> str:
    """Run one snippet in ``namespace``; the empty string, or what the model is told."""
    _open_streams()
    try:
        source = raw.decode("utf-8", "surrogatepass")
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        exec(compile(source, name, "exec", dont_inherit=True), namespace)
        _join_threads()
        return ""
    except SystemExit as stop:
        if stop.code is None or (type(stop.code) is int and stop.code == 0):
            return ""
        try:
            return f"SystemExit: {str(stop.code)[:MAX_LINE]}"
        except BaseException:  # a __str__ that misbehaves
            return "SystemExit"
    except BaseException as problem:
        return error_text(problem, roots)
    finally:
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(BaseException):
                stream.flush()


_streams: list[io.TextIOWrapper] = []


def _open_streams() -> None:
    """Text streams over descriptors 0 to 2, anew where the last turn closed them, in place where it replaced them.

    Lines go out as they are written, so that a snippet that is killed leaves what it printed.
    """
    try:
        usable = len(_streams) == 3 and not any(stream.closed for stream in _streams)
    except ValueError:  # its buffer was taken away
        usable = False
    if not usable:
        written = (io.BufferedWriter(io.FileIO(fd, "w", closefd=False)) for fd in (1, 2))
        _streams[:] = [
            io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8"),
            *(io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=True) for raw in written),
        ]
    sys.stdin, sys.stdout, sys.stderr = _streams
    sys.__stdout__, sys.__stderr__ = _streams[1:]


def _open(file, mode="r", *arguments, _real=io.open, _dup=os.dup, **named):
    """``open``, except that the null device is the one already open: snippets do redirect output to it."""
    if isinstance(file, str | os.PathLike) and os.fspath(file) == os.devnull:
        named["opener"] = lambda path, flags: _dup(0)
    return _real(file, mode, *arguments, **named)


def _join_threads() -> None:
    """As at the end of a script, wait for threads that are not daemons: their output belongs to this turn."""
    if threading.active_count() > 1:
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()


def error_text(problem: BaseException, roots: list[str]) -> str:
    """The traceback's end, at most 4,000 characters: the snippet's own lines, no host paths, the exception last."""
    try:
        summary = traceback.TracebackException.from_exception(problem, limit=-30)
        _clean(summary, roots)
        whole = "".join(summary.format()).rstrip()
    except BaseException:  # a __str__ that misbehaves, a chain too long to walk, or no memory left
        try:
            whole = traceback.format_exception_only(problem)[-1].rstrip()
        except BaseException:
            return type(problem).__name__
    for root in roots:
        whole = whole.replace(root + "/", "")
    lines = [line if len(line) <= MAX_LINE else line[: MAX_LINE - 4] + " ..." for line in whole.splitlines()]
    kept, room = [], MAX_ERROR - 4
    for line in reversed(lines):
        room -= len(line) + 1
        if room < 0:
            kept.append("...")
            break
        kept.append(line)
    return "\n".join(reversed(kept))


def _clean(summary: traceback.TracebackException | None, roots: list[str]) -> None:
    """Drop the harness's frames, here and in the exceptions that led to this one."""
    if summary is None:
        return
    summary.stack[:] = [frame for frame in summary.stack if frame.filename != __file__]
    for other in (summary.__cause__, summary.__context__, *(summary.exceptions or ())):
        _clean(other, roots)
