"""Run a command on a poorer machine: as an ordinary user, without Landlock, or both.

``python tests/jail.py --user --no-landlock -- python -m pytest ...``. Needs root. An interpreter under root's
home, which an ordinary user cannot reach, is made reachable in a mount namespace of the command's own.
"""

import argparse
import ctypes
import os
import struct
import sys

from gtpo_mini.sandbox import seccomp
from gtpo_mini.sandbox.seccomp import AUDIT_ARCH

USER = 54321  #: a user id that nobody has
MS_BIND, MS_REC, MS_PRIVATE, CLONE_NEWNS, NO_NEW_PRIVS = 4096, 16384, 1 << 18, 0x20000, 38

libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def open_home(folder: str) -> None:
    """Put a tmpfs over the closed folder in ``folder``'s path, with nothing but ``folder`` in it."""
    parts = folder.strip("/").split("/")
    above = ["/" + "/".join(parts[:i]) for i in range(1, len(parts))]
    closed = next((path for path in above if not os.stat(path).st_mode & 0o001), None)
    if closed is None:
        return
    _check(libc.unshare(CLONE_NEWNS), "unshare")
    _check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "private")
    handle = os.open(folder, os.O_PATH)
    _check(libc.mount(b"tmpfs", closed.encode(), b"tmpfs", 0, b"mode=755"), "tmpfs")
    os.makedirs(folder)
    _check(libc.mount(f"/proc/self/fd/{handle}".encode(), folder.encode(), None, MS_BIND, None), "bind")
    os.close(handle)


def take_landlock_away() -> None:
    """A filter under which the three Landlock calls do not exist."""
    missing = [(0x15, 0, 1, number) for number in (444, 445, 446)]
    steps = [(0x20, 0, 0, 0)]
    for step in missing:
        steps += [step, (0x06, 0, 0, 0x00050000 | 38)]
    steps.append((0x06, 0, 0, 0x7FFF0000))
    libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    seccomp.Filter(b"".join(struct.pack("=HBBI", *step) for step in steps)).install(libc)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--user", action="store_true", help="drop to an ordinary user")
    parser.add_argument("--no-landlock", action="store_true")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    assert os.uname().machine in AUDIT_ARCH
    if options.user:
        open_home(os.path.realpath(sys.base_prefix))
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        os.environ["HOME"] = "/nonexistent"
    if options.no_landlock:
        take_landlock_away()
    os.execvp(options.command[0], options.command)


if __name__ == "__main__":
    main()
