"""The trainer's side of the fork server: start it, ask it for children, end it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

from gtpo_mini.sandbox.child import NO_SIGNAL, Child
from gtpo_mini.sandbox.limits import REMEDY, Limits, SandboxUnavailable

# The server is a fresh interpreter: no memory, environment or thread of the trainer is in it. It gets this
# package under another name, for importing `gtpo_mini` itself would be needless weight.
BOOT = """import sys, types
package = types.ModuleType("sandbox_child")
package.__path__ = [sys.argv[1]]
sys.modules["sandbox_child"] = package
from sandbox_child.server import main
main(int(sys.argv[2]))"""
REQUEST = struct.Struct("!cIi")  # verb, number of the request, pid
REPLY = struct.Struct("!Ii")  # number of the request, pid or wait status
START_SECONDS = 120


class Link:
    """A running fork server with ``spares`` children forked ahead. Its methods may be called from any thread.

    Raises:
        SandboxUnavailable: the server cannot start, or cannot confine its children.
    """

    def __init__(self, limits: Limits, spares: int, confinement: str, preload: tuple[str, ...]) -> None:
        self._lock, self._number, self.owner, self.preload = threading.Lock(), 0, os.getpid(), preload
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket = ours
        keep = {k: v for k, v in os.environ.items() if k in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")}
        command = [sys.executable, "-s", "-S", "-P", "-c", BOOT, str(Path(__file__).parent), str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                command,
                env={**keep, "PYTHONHASHSEED": "0"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # an interrupt at the trainer's terminal or notebook is not for it
            )
        except OSError as error:
            ours.close()
            raise SandboxUnavailable(f"cannot start {sys.executable!r}: {error}") from error
        finally:
            theirs.close()
        config = {
            "memory_bytes": int(limits.memory_mib * (1 << 20)),
            "cpu_seconds": limits.cpu_seconds,
            "spares": spares,
            "confinement": confinement,
            "preload": preload,
            "site": _site_folders(preload),
            "trainer": os.getpid(),
        }
        ours.settimeout(START_SECONDS)
        try:
            ours.sendall(json.dumps(config).encode() + b"\n")
            self.hello = json.loads(self._line())
        except (OSError, ValueError) as error:
            self.close()
            raise SandboxUnavailable(f"the fork server did not start ({error!r})") from error
        except BaseException:
            self.close()
            raise
        if "error" in self.hello:
            self.close()
            raise SandboxUnavailable(self.hello["error"])

    def _line(self) -> bytes:
        data = b""
        while not data.endswith(b"\n"):
            part = self._socket.recv(1)
            if not part:
                raise ValueError(f"it left with status {self._process.wait(10)}")
            data += part
        return data

    @property
    def alive(self) -> bool:
        """False once the server has ended, and in a forked copy of the trainer."""
        if os.getpid() != self.owner or self._socket.fileno() < 0:
            return False
        hangup = select.poll()  # not `Popen.poll`: an interrupt in it would leave its lock taken
        hangup.register(self._socket, 0)
        return not hangup.poll(0)

    def spawn(self) -> Child:
        """A fresh child, confined and waiting for its first turn.

        Raises:
            SandboxUnavailable: the server is gone, or the child could not be confined.
        """
        pid, fds = self._ask(b"S")
        if pid < 0:
            raise SandboxUnavailable(f"the fork server cannot make a child: {os.strerror(-pid)}")
        if len(fds) < 3:
            for fd in fds:
                os.close(fd)
            self.release(pid)
            raise SandboxUnavailable("no descriptors left for a child's pipes: close sessions, or raise `ulimit -n`")
        child = Child(pid, fds, self)
        try:
            problem = child.ready()
        except BaseException:
            child.close()
            raise
        if problem:
            child.close()
            raise SandboxUnavailable(f"a child could not be confined: {problem}. {REMEDY}")
        return child

    def release(self, pid: int) -> None:
        """Kill and forget a child. Nothing to do when the server is gone: its children went with it."""
        with contextlib.suppress(SandboxUnavailable):
            self._ask(b"K", pid)

    def wait(self, pid: int) -> int:
        """The wait status of a child, killed first if it still runs."""
        return self._ask(b"W", pid)[0]

    def _ask(self, verb: bytes, pid: int = 0) -> tuple[int, list[int]]:
        if os.getpid() != self.owner:
            raise SandboxUnavailable("this process was forked from the sandbox's owner: make a Sandbox of its own")
        with self._lock:
            self._number += 1
            number = self._number & 0xFFFFFFFF
            try:
                self._socket.sendall(REQUEST.pack(verb, number, pid), NO_SIGNAL)
                while verb != b"K":
                    data, fds = self._receive()
                    echo, value = REPLY.unpack(data)
                    if echo == number:
                        return value, fds
                    for fd in fds:  # the answer to a request that an interrupt cut short
                        os.close(fd)
                    if fds:
                        self._socket.sendall(REQUEST.pack(b"K", 0, value), NO_SIGNAL)
                return 0, []
            except (OSError, struct.error) as error:
                raise SandboxUnavailable(f"the fork server is gone ({error!r}): make a new Sandbox") from error

    def _receive(self) -> tuple[bytes, list[int]]:
        flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # or another thread's subprocess would inherit them
        data, fds, _, _ = socket.recv_fds(self._socket, REPLY.size, 3, flags)
        while data and len(data) < REPLY.size:
            data += self._socket.recv(REPLY.size - len(data))
        return data, fds

    def close(self) -> None:
        """End the server and every child. May be called again, and in a forked copy of the trainer."""
        if os.getpid() == self.owner:
            # The server sees the end of file, kills its children and leaves; a close alone would be none while a forked
            # copy of the trainer holds the socket.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if os.getpid() == self.owner:
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _site_folders(modules: tuple[str, ...]) -> list[str]:
    """Where the trainer finds third-party packages: site folders, and homes of what is to be preloaded."""
    found = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    for name in modules:
        spec = None
        with contextlib.suppress(ImportError, ValueError):  # not installed: nothing to preload
            spec = importlib.util.find_spec(name.partition(".")[0])
        if spec is not None and spec.origin and spec.submodule_search_locations:
            found.append(str(Path(spec.origin).parent.parent))
    return [path for path in dict.fromkeys(map(os.path.realpath, found)) if os.path.isdir(path)]
