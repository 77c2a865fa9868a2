"""Landlock through three raw system calls: a process may read some folders, and nothing else."""

from __future__ import annotations

import ctypes
import os
import struct

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3


def abi(libc: ctypes.CDLL) -> int:
    """The kernel's Landlock version, 0 for none. It may have it and not enforce it: that the canaries see."""
    return max(0, libc.syscall(_CREATE, None, 0, 1))


def ruleset(libc: ctypes.CDLL, version: int, folders: list[str]) -> int:
    """A ruleset's descriptor, for any number of processes: only ``folders`` can be read, nothing written, no TCP used,
    no outsider signalled; OSError where the kernel refuses.
    """
    # Rights not handled are not governed: name all that this version knows.
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    attribute = struct.pack("=Q", files)
    if version >= 4:
        attribute += struct.pack("=Q", 0b11)  # TCP bind and connect
    if version >= 6:
        attribute += struct.pack("=Q", 0b11)  # abstract sockets and signals stay within
    fd = _call(libc, _CREATE, ctypes.c_char_p(attribute), len(attribute), 0)
    for folder in folders:
        try:
            target = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rights = _READ_FILE | (_READ_DIR if os.path.isdir(folder) else 0)
        try:
            _call(libc, _ADD, fd, 1, ctypes.c_char_p(struct.pack("=Qi", rights, target)), 0)
        finally:
            os.close(target)
    return fd


def without(folders: list[str], hidden: list[str]) -> list[str]:
    """The folders, those that hold a ``hidden`` one given by their entries: what is opened is open all the way down.

    A link among the entries is left out; where it leads within the folders, that is open anyway.
    """
    found, left = [], list(folders)
    while left:
        folder = left.pop()
        real = os.path.realpath(folder)
        if real in hidden:
            continue
        if not any(path.startswith(real + os.sep) for path in hidden):
            found.append(folder)
            continue
        try:
            left += [entry.path for entry in os.scandir(real) if not entry.is_symlink()]
        except OSError:
            continue
    return found


def restrict(libc: ctypes.CDLL, fd: int) -> None:
    """Enforce the ruleset on this process, for good; OSError where the kernel refuses. Needs ``no_new_privs``."""
    _call(libc, _RESTRICT, fd, 0)


def _call(libc: ctypes.CDLL, number: int, *arguments) -> int:
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result
