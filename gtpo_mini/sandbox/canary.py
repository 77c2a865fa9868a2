"""Canaries: a snippet that attempts what must be refused, in a real child, before any other snippet runs.

Each act has a victim in the trainer on which it would succeed; only a clear refusal counts as one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: act -> what to do where it is not refused
ACTS = {
    "read a file": "Landlock (Linux 5.13) or a seccomp filter",
    "write a file": "Landlock (Linux 5.13) or a seccomp filter",
    "open a network connection": "a seccomp filter",
    "send to a local socket": "a seccomp filter",
    "start a process": "a seccomp filter",
    "run a program": "a seccomp filter",
    "signal the trainer": "a seccomp filter",
    "read the trainer's memory": "a seccomp filter",
    "read the trainer's environment": "Landlock (Linux 5.13) or a seccomp filter",
    "use an inherited descriptor": "a platform with close_range or /proc",
    "make kernel namespaces": "a seccomp filter",
    "take memory without limit": "RLIMIT_AS",
}

# Wrong arguments (a null path) make a refusal (EPERM) and an attempt that got through (EFAULT) tell apart
# without harm.
SNIPPET = """
import ctypes, os, resource, socket, threading
libc = ctypes.CDLL(None, use_errno=True)
REFUSED = (1, 2, 13, 38)  # EPERM, ENOENT (an empty root folder), EACCES, ENOSYS

def attempt(name, act):
    try:
        done = act()
    except OSError as error:
        done = error.errno not in REFUSED
    print(f"{{name}}={{int(bool(done))}}")

def raw(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "")
    return True

def connect(family, kind, address):
    with socket.socket(family, kind) as link:
        link.connect(address)
        return link.send(b"canary")

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)

def inherited():
    def is_open(fd):
        try:
            os.fstat(fd)
            return True
        except OSError:
            return False
    return any(is_open(fd) for fd in range(4, 1024))

def peek():
    here = ctypes.create_string_buffer(16)
    span = ctypes.c_size_t * 2
    local, remote = span(ctypes.addressof(here), 16), span({address}, 16)
    raw({readv}, {pid}, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    return here.raw == b"canary in memory"

attempt("use an inherited descriptor", inherited)
attempt("read a file", lambda: open({folder!r} + "/seed").read())
attempt("write a file", lambda: os.open({folder!r} + "/dropped", os.O_CREAT | os.O_WRONLY))
home = ("127.0.0.1", {port})
attempt("open a network connection", lambda: connect(socket.AF_INET, socket.SOCK_STREAM, home))
attempt("send to a local socket", lambda: connect(socket.AF_UNIX, socket.SOCK_DGRAM, {folder!r} + "/mail"))
attempt("start a process", fork)
attempt("run a program", lambda: raw({execve}, None, None, None))
attempt("signal the trainer", lambda: os.kill({pid}, 0) is None)
attempt("read the trainer's memory", peek)
attempt("read the trainer's environment", lambda: open("/proc/{pid}/environ").read())
attempt("make kernel namespaces", lambda: raw({unshare}, 0x200))
attempt("take memory without limit", lambda: resource.getrlimit(resource.RLIMIT_AS)[1] == -1)
try:
    threads = [threading.Thread(target=int) for _ in range(4)]
    [thread.start() for thread in threads]
    print("threads=1")
except RuntimeError:
    print("threads=0")
"""
CALLS = {
    "x86_64": {"execve": 59, "readv": 310, "unshare": 272},
    "aarch64": {"execve": 221, "readv": 270, "unshare": 97},
}


@dataclass(frozen=True)
class Protection:
    """What was measured on this machine, in this sandbox, when it started.

    >>> print(Protection(tier="user", refused=("read a file",), allowed=("signal the trainer",)))
    tier user
      refused: read a file
      ALLOWED: signal the trainer
    """

    tier: str  #: ``root`` or ``user``, with ``+landlock`` where the kernel has it; ``unconfined``
    refused: tuple[str, ...]  #: acts of :data:`ACTS` that a canary tried and could not do
    allowed: tuple[str, ...] = ()  #: acts that got through
    notes: tuple[str, ...] = ()  #: what works less well here

    def items(self) -> list[tuple[str, str]]:
        """Rows of a table: the tier, each act and what came of it, the notes."""
        rows = [("tier", self.tier), *((act, "refused") for act in self.refused)]
        return [*rows, *((act, "ALLOWED") for act in self.allowed), *(("note", note) for note in self.notes)]

    def __str__(self) -> str:
        lines = [f"tier {self.tier}", *(f"  refused: {act}" for act in self.refused)]
        lines += [f"  ALLOWED: {act}" for act in self.allowed]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@contextlib.contextmanager
def victims(machine: str) -> Iterator[tuple[str, list[str]]]:
    """Set up what the canaries attack: the snippet, and a list that on leaving names the acts that left traces."""
    found: list[str] = []
    secret = ctypes.create_string_buffer(b"canary in memory", 16)
    # The path of a socket has at most 107 bytes.
    base = None if len(tempfile.gettempdir()) < 60 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="gtpo-mini-canary-", dir=base) as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o777)  # for a child with another user id: only the sandbox may be what stops it
        (folder / "seed").write_text("canary")
        (folder / "seed").chmod(0o644)
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server.setblocking(False)
        mail = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        mail.bind(str(folder / "mail"))
        (folder / "mail").chmod(0o777)
        mail.setblocking(False)
        numbers = CALLS.get(machine, CALLS["x86_64"])
        address, port = ctypes.addressof(secret), server.getsockname()[1]
        yield SNIPPET.format(folder=name, port=port, pid=os.getpid(), address=address, **numbers), found
        if (folder / "dropped").exists():
            found.append("write a file")
        with contextlib.suppress(BlockingIOError):
            server.accept()[0].close()
            found.append("open a network connection")
        with contextlib.suppress(BlockingIOError):
            mail.recv(16)
            found.append("send to a local socket")


def judge(tier: str, printed: str, found: list[str], notes: tuple[str, ...]) -> Protection:
    """From the canaries' output and the outside view to a :class:`Protection`; no answer counts as allowed."""
    answers = dict(line.split("=") for line in printed.splitlines() if line.count("=") == 1)
    refused = tuple(act for act in ACTS if answers.get(act) == "0" and act not in found)
    if answers.get("threads") != "1":
        notes += ("snippets cannot start threads: the user's process limit is reached",)
    return Protection(tier, refused, tuple(act for act in ACTS if act not in refused), notes)
