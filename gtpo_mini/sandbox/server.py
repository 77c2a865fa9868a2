"""The fork server: a process of one thread that has modules ready and forks a child on request.

It runs as ``sandbox_child.server`` in an interpreter that the trainer executed. Only it waits for children, and only
when told to, so that a pid stays with its child. When its socket or the trainer ends, it kills every child and leaves.
"""

from __future__ import annotations

import _signal
import contextlib
import ctypes
import fcntl
import gc
import json
import os
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback

from . import confine, harness, warm

REQUEST = struct.Struct("!cIi")
REPLY = struct.Struct("!Ii")
# Not `os.fork`: its hooks lock and seed anew, in pages that each child would have to copy, what nobody else holds in a
# process of one thread, and what has been seeded ahead.
_c = ctypes.PyDLL(None, use_errno=True)


def _socket_pair() -> tuple[int, int]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return one.detach(), other.detach()


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


class Server:
    """Children by pid: those that the trainer has, those forked ahead, those told to die."""

    def __init__(self, link: socket.socket, config: dict, cage: confine.Cage, roots: list[str]) -> None:
        self.link, self.config = link, config
        self.pid = os.getpid()
        self.children: set[int] = set()
        self.spares: list[tuple[int, list[int]]] = []
        self.dying: list[int] = []
        self.failed = False  #: the last fork ahead
        self.cage, self.roots = cage, roots

    def fork(self) -> tuple[int, list[int]]:
        """Fork one child; return its pid and the trainer's ends of its pipes."""
        ours: list[int] = []
        theirs: list[int] = []
        try:
            for pair in (os.pipe, os.pipe, _socket_pair):
                for fds, fd in zip((ours, theirs), pair(), strict=True):
                    fds.append(fd)
            self.cage.count_tasks()
            pid = _c.fork()
            if pid < 0:
                raise OSError(ctypes.get_errno(), "fork")
        except OSError:  # no more descriptors or processes: what was opened must not be lost too
            _close(ours + theirs)
            raise
        if pid == 0:
            self.child(*theirs)
        _close(theirs)
        self.children.add(pid)
        return pid, ours

    def child(self, out: int, err: int, control: int) -> None:
        """Never returns. The ready byte comes after the last layer: no snippet runs in a half-made cage."""
        try:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)  # `signal.signal` makes enums of its arguments
            # Its own null device: flags of a shared one would be seen by every later child.
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.close(null)
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.dup2(control, harness.CONTROL)
            self.cage.enter(harness.CONTROL + 1, self.pid)
            os.write(harness.CONTROL, b"R")
        except BaseException as problem:
            os.write(harness.CONTROL, f"{type(problem).__name__}: {problem}".encode())
            os._exit(1)
        try:
            harness.serve(self.roots)
        finally:
            os._exit(1)

    def answer(self, verb: bytes, number: int, pid: int) -> None:
        """Carry out one request. A pid that is not our child's is ignored."""
        self.failed = False
        if verb == b"S":
            try:
                pid, fds = self.spares.pop() if self.spares else self.fork()
            except OSError as error:  # too many processes or descriptors: the trainer may close some
                self.link.sendall(REPLY.pack(number, -(error.errno or 1)))
                return
            socket.send_fds(self.link, [REPLY.pack(number, pid)], fds)
            for fd in fds:
                os.close(fd)
        elif pid in self.children:
            os.kill(pid, signal.SIGKILL)
            if verb == b"W":  # the trainer will still send its K
                info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                died = info.si_status << 8 if info.si_code == os.CLD_EXITED else info.si_status
                self.link.sendall(REPLY.pack(number, died))
            else:
                self.children.discard(pid)
                self.dying.append(pid)
        elif verb == b"W":
            self.link.sendall(REPLY.pack(number, signal.SIGKILL))

    def loop(self) -> None:
        poll = select.poll()
        poll.register(self.link, select.POLLIN)
        with contextlib.suppress(AttributeError, OSError):  # a forked copy of the trainer may hold our socket open
            poll.register(os.pidfd_open(self.config["trainer"]), select.POLLIN)
        while True:
            short = len(self.spares) < self.config["spares"] and not self.failed
            events = poll.poll(0 if short else 20 if self.dying else None)
            if any(fd != self.link.fileno() for fd, _ in events):
                return
            if events:
                data = self.link.recv(REQUEST.size, socket.MSG_WAITALL)
                if len(data) < REQUEST.size:
                    return
                self.answer(*REQUEST.unpack(data))
            elif short:
                try:
                    self.spares.append(self.fork())
                except OSError:
                    self.failed = True  # until the next request
            self.dying = [pid for pid in self.dying if os.waitpid(pid, os.WNOHANG)[0] == 0]

    def end(self) -> None:
        for pid in self.children:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in [*self.children, *self.dying]:
            with contextlib.suppress(OSError):
                os.waitpid(pid, 0)


def main(fd: int) -> None:
    """Read the configuration, get warm, say hello, serve."""
    fixed = _same_addresses()
    link = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # what the trainer ignores or blocks is inherited
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    data = b""
    while not data.endswith(b"\n"):
        part = link.recv(1)
        if not part:
            return
        data += part
    server = None
    try:
        config = json.loads(data)
        os.environ.clear()
        os.environ.update(confine.ENVIRONMENT)
        time.tzset()
        folder = Folder(config["confinement"] == "full")
        config["folder"] = folder.path
        os.chdir(folder.path)
        cage = confine.Cage(config)
        roots = warm.warm(config["site"], config["preload"], everything=not cage.reads)
        cage.prepare(roots, warm.hide([*roots, *confine.LIBRARIES]))
        server = Server(link, config, cage, roots)
        order = [] if fixed else ["the order of a set of types may differ from trainer to trainer"]
        hello = {"tier": cage.tier, "notes": cage.notes + order, "reads": cage.reads}
        warm.seed()
        harness.prepare()
        gc.collect()
        gc.freeze()  # a collection in a child would touch, and so copy, every page
        warm.collapse(cage.libc)
    except BaseException:
        hello = {"error": "the fork server failed at its start:\n" + traceback.format_exc(limit=-4)}
    link.sendall(json.dumps(hello).encode() + b"\n")
    if server is not None and "error" not in hello:
        try:
            server.loop()
        except OSError:
            pass
        finally:
            server.end()
            folder.remove()
    os._exit(0)


class Folder:
    """An empty folder that nobody can write to, the children's own. Where it can be, its name is always the same, for
    snippets that print it; servers share it under a lock, and the last one removes it.
    """

    def __init__(self, confined: bool) -> None:
        self.path, self._lock = f"{tempfile.gettempdir()}/gtpo-mini-{os.getuid()}", -1
        with contextlib.suppress(OSError):
            os.mkdir(self.path, 0o555)
        with contextlib.suppress(OSError):
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            found = os.fstat(self._lock)
            private = found.st_uid == os.getuid() and not found.st_mode & 0o222 and not os.listdir(self._lock)
            if confined and private and os.stat(self.path).st_ino == found.st_ino:  # not removed meanwhile
                return
        self.path, self._lock = tempfile.mkdtemp(prefix="gtpo-mini-"), -1
        os.chmod(self.path, 0o555 if confined else 0o700)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            if self._lock >= 0:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while another server has it
                os.rmdir(self.path)
            else:
                shutil.rmtree(self.path)


def _same_addresses() -> bool:
    """Start over without address randomisation, where that is allowed: sets of types and of None are ordered by it.

    It costs no safety: a snippet may run machine code anyway, and the cage does not count on its ignorance.
    """
    if sys.platform != "linux":
        return False
    libc, no_randomize = ctypes.CDLL(None), 0x0040000
    now = libc.personality(ctypes.c_ulong(0xFFFFFFFF))  # asks only
    if now >= 0 and now & no_randomize:
        return True
    if libc.personality(ctypes.c_ulong(no_randomize)) >= 0:
        os.execv(sys.executable, sys.orig_argv)
    return False
