"""The cage of one child, layer by layer, and which layers this machine can give.

Four tiers. ``root+landlock`` and ``user+landlock``: Landlock opens the interpreter's folders for reading and
nothing else. ``root`` (no Landlock): the child sits in an empty root folder. ``user`` (no Landlock): the
seccomp filter refuses every open. In the last two a snippet can import only what was imported ahead.
As root, each child also gets a user id of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import math
import os
import platform
import resource
import struct
import sys
import threading
import time
from collections.abc import Callable

from . import landlock, seccomp

ENVIRONMENT = {"PYTHONHASHSEED": "0", "TZ": "UTC", "LANG": "C.UTF-8", "PATH": "/nowhere", "HOME": "/"}
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/dev/urandom")
THREADS = 64  #: per child with a user id of its own
CPU_TURNS = 100  #: RLIMIT_CPU in units of a turn's limit: the net below the trainer's own, exact, look at the clock
PDEATHSIG, DUMPABLE, KEEPCAPS, NO_NEW_PRIVS = 1, 4, 8, 38  # prctl
CAP_DAC_READ_SEARCH = 2
CAPSET = {"x86_64": 126, "aarch64": 91}


class Cage:
    """What was probed once, in the server, for all children; OSError where a layer that every tier needs is missing."""

    def __init__(self, config: dict) -> None:
        self.config, self.confined = config, config["confinement"] == "full"
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.machine, self.uids = platform.machine(), _uid_base()  # now: an empty root has no /proc
        self.landlock = self.confined and landlock.abi(self.libc)
        self.drops = self.confined and os.getuid() == 0 and self._can(lambda: self._drop(self.uids, 0))
        self.chroots = self.drops and not self.landlock and self._can(lambda: os.chroot(config["folder"]))
        self.capability, self._ruleset, self._tasks = 0, -1, (0.0, 0)
        self.bounded = True  #: whether threads are

    @property
    def tier(self) -> str:
        return ("root" if self.drops else "user") + ("+landlock" if self.landlock else "")

    @property
    def notes(self) -> list[str]:
        """What works less well on this machine, for a person to read."""
        found = []
        if not self.reads:
            found.append("no Landlock: snippets import only what was imported ahead")
        if not os.path.exists("/proc/self/schedstat"):
            found.append("the wait for a core cannot be measured: it counts towards the wall limit")
        if not self.bounded:
            found.append("the threads of a snippet are bounded by its memory only")
        return found

    @property
    def reads(self) -> bool:
        """Whether a child can read the interpreter's folders, and so import what was not imported ahead."""
        return bool(self.landlock) or not self.confined

    def prepare(self, folders: list[str], hidden: list[str]) -> None:
        """After warming: the ruleset without ``hidden``, the filter, and the size from which memory is counted."""
        base = 1 << 30  # a guess, where /proc is missing
        with contextlib.suppress(OSError), open("/proc/self/statm") as file:
            base = int(file.read().split()[0]) * resource.getpagesize()
        self.memory = base + self.config["memory_bytes"] if sys.platform == "linux" else resource.RLIM_INFINITY
        self.limits = self._limits()
        if not self.confined:
            return
        if self.landlock:
            readable = [*folders, *LIBRARIES, self.config["folder"]]
            readable = landlock.without(readable, hidden)
            low = landlock.ruleset(self.libc, self.landlock, readable)
            self._ruleset = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 100)  # out of the way of a child's own
            os.close(low)
        if self.drops and self.landlock and not self._can(lambda: self._look(folders, 0)):
            # The interpreter lies in a folder closed to others (root's home). Landlock still rules reading.
            self.capability = 1 << CAP_DAC_READ_SEARCH
            if not self._can(lambda: self._look(folders, self.capability)):
                self.drops = False  # a container without that capability: root's id, but no powers
        self.count_tasks()
        if not self.drops and not self._can(self._start_threads):
            self.bounded = False  # the user runs more than is seen from here, in another container
        self.limits = self._limits()
        self.filter = seccomp.Filter(seccomp.program(self.machine, may_open=bool(self.landlock or self.chroots)))

    def enter(self, first_fd: int, parent: int) -> None:
        """Put every layer on, in the one order that works; descriptors from ``first_fd`` on are closed."""
        keep = 0
        if self._ruleset >= 0:
            os.dup2(self._ruleset, first_fd)
            keep = 1
        os.closerange(first_fd + keep, 1 << 20)
        self._rlimits()
        if not self.confined:
            return self._die_with(parent)
        if self.chroots:
            os.chroot(self.config["folder"])
            os.chdir("/")
        if self.drops:
            self._drop(self.uids + os.getpid() % 4096, self.capability)
        else:
            self._capset(0)
        self._prctl(DUMPABLE, 0)  # no core dump, no ptrace by a neighbour with the same user id
        self._die_with(parent)  # after the change of user id, which clears it
        self._prctl(NO_NEW_PRIVS, 1)
        if keep:
            landlock.restrict(self.libc, first_fd)
            os.close(first_fd)
        self.filter.for_pid(os.getpid())
        self.filter.install(self.libc)

    def _die_with(self, parent: int) -> None:
        if sys.platform == "linux":
            self._prctl(PDEATHSIG, 9)
        if os.getppid() != parent:  # it died before that
            os._exit(1)

    def _limits(self) -> list[tuple[int, tuple[int, int]]]:
        """What `setrlimit` takes, none above what this process may have itself."""
        wanted = {"RLIMIT_AS": self.memory, "RLIMIT_DATA": self.memory, "RLIMIT_CORE": 0}
        wanted["RLIMIT_CPU"] = int(CPU_TURNS * self.config["cpu_seconds"]) + 1
        if self.confined:
            # Per user id: exact where a child has one of its own, else a bound on what the user runs in all.
            wanted |= {"RLIMIT_FSIZE": 0, "RLIMIT_NOFILE": 64, "RLIMIT_MEMLOCK": 0, "RLIMIT_MSGQUEUE": 0}
            if self.bounded:
                wanted["RLIMIT_NPROC"] = THREADS if self.drops else self._tasks[1] + 512
        hard = {name: resource.getrlimit(getattr(resource, name))[1] for name in wanted}
        found = {
            name: min(wanted[name], hard[name], key=lambda n: math.inf if n == resource.RLIM_INFINITY else n)
            for name in wanted
        }
        return [(getattr(resource, name), (value, value)) for name, value in found.items()]

    def _rlimits(self) -> None:
        for kind, value in self.limits:
            resource.setrlimit(kind, value)

    def _drop(self, uid: int, capabilities: int) -> None:
        os.setgroups([])
        self._prctl(KEEPCAPS, 1 if capabilities else 0)
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        if capabilities:
            self._capset(capabilities)

    def _capset(self, mask: int) -> None:
        header = struct.pack("=Ii", 0x20080522, 0)  # version 3, this thread
        data = struct.pack("=IIIIII", mask, mask, 0, 0, 0, 0)
        if self.libc.syscall(CAPSET[self.machine], ctypes.c_char_p(header), ctypes.c_char_p(data)) != 0:
            raise OSError(ctypes.get_errno(), "capset")

    def _prctl(self, option: int, value: int) -> None:
        if self.libc.prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option})")

    def _can(self, act: Callable[[], object]) -> bool:
        """Try an act in a forked copy: some cannot be undone."""
        pid = os.fork()
        if pid == 0:
            try:
                act()
                os._exit(0)
            except BaseException:
                os._exit(1)
        return os.waitpid(pid, 0)[1] == 0

    def _start_threads(self) -> None:
        self._rlimits()
        threads = [threading.Thread(target=int) for _ in range(4)]
        for thread in threads:
            thread.start()

    def _look(self, folders: list[str], capabilities: int) -> None:
        self._drop(self.uids, capabilities)
        for folder in folders:
            os.listdir(folder)

    def count_tasks(self) -> None:
        """Before a fork: how many processes and threads this user has, at most a few seconds old."""
        when, count = self._tasks
        if self.confined and not self.drops and time.monotonic() - when > 5:
            count, me = 0, os.getuid()
            for name in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ()):
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{name}").st_uid == me:
                        count += os.stat(f"/proc/{name}/task").st_nlink - 2
            self._tasks = (time.monotonic(), count)
            self.limits = self._limits()


def _uid_base() -> int:
    """User ids that nobody has: far up, or in a container that maps few of them, the upper end of those."""
    try:
        with open("/proc/self/uid_map") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
    except OSError:
        ranges = []
    high = max((inside + length for inside, _, length in ranges), default=65536)
    return 1_500_000_000 if high >= 1 << 31 else max(1, min(high, 65536) - 5000)
