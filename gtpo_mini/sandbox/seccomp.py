"""An allow-list of system calls as a classic BPF program, for this machine or, in tests, for another.

Default is ENOSYS, not a kill: libraries then take their fallback (`clone3` -> `clone`). Calls that snippets
do try (fork, socket, unlink) get EPERM or EACCES, so that the model reads "permission denied".
"""

from __future__ import annotations

import ctypes
import errno
import re
import struct

from .syscalls import ALLOW, AUDIT_ARCH, JUDGE, REFUSE

# BPF opcodes on 32-bit words
_LOAD, _AND, _EQUAL, _AT_LEAST, _JUMP, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x05, 0x06
_KILL_PROCESS, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data; argument i is at 16 + 8 * i, low half first
_SELF = 0x5E1F0C1D  #: stands for the child's own pid until `Filter.for_pid`
_FILES = "access chdir chmod chown creat fchmod fchown ftruncate lchown link mkdir readlink rename rmdir symlink"
_FILES += " truncate unlink utimensat chroot fchdir"

_PTHREAD = 0x3D0F00  # the flags of pthread_create: a thread, never a process
_WRITING = 0o3 | 0o100 | 0o1000 | 0o2000 | 0o20000000  # O_ACCMODE, CREAT, TRUNC, APPEND, TMPFILE
# dup, descriptor and status flags, pipe size (reading it); not F_SETOWN, F_SETSIG
_FCNTL = (0, 1, 2, 3, 4, 1030, 1032)
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIO(N)CLEX
_PRCTL = (15, 16, 0x53564D41)  # names of threads and of memory

# name -> (tests, errno otherwise). A test is (offset of a 32-bit half of an argument, mask, values allowed).
_ARG = [16 + 8 * i for i in range(6)]
_RULES = {
    "clone": ([(_ARG[0], ~0, (_PTHREAD, _PTHREAD | 0x400000))], errno.EPERM),
    "kill": ([(_ARG[0], ~0, (_SELF,))], errno.EPERM),
    "tgkill": ([(_ARG[0], ~0, (_SELF,))], errno.EPERM),
    # A datagram socket could send to any address; a stream pair only to its other end.
    "socketpair": ([(_ARG[0], ~0, (1,)), (_ARG[1], 0xF, (1,))], errno.EPERM),
    "fcntl": ([(_ARG[1], ~0, _FCNTL)], errno.EPERM),
    "ioctl": ([(_ARG[1], ~0, _IOCTL)], errno.ENOTTY),
    "prlimit64": ([(_ARG[0], ~0, (0, _SELF)), (_ARG[2], ~0, (0,)), (_ARG[2] + 4, ~0, (0,))], errno.EPERM),
    "prctl": ([(_ARG[0], ~0, _PRCTL)], errno.EPERM),
    "open": ([(_ARG[1], _WRITING, (0,))], errno.EACCES),
    "openat": ([(_ARG[2], _WRITING, (0,))], errno.EACCES),
}


def program(machine: str, may_open: bool) -> bytes:
    """The filter's instructions, 8 bytes each, for a machine that has a table, with a placeholder for the child's pid.

    ``may_open`` is False where nothing else keeps files closed: then this filter does.

    >>> len(program("x86_64", True)) % 8
    0
    """
    actions = {number: [(_RETURN, 0, 0, _ALLOW)] for number in ALLOW[machine].values()}
    for name, number in JUDGE[machine].items():
        tests, otherwise = _RULES[name]
        if name in ("open", "openat") and not may_open:
            tests = [(_ARG[0], 0, (1,))]  # never true
        judge = [step for test in tests for step in _test(*test, otherwise)]
        actions[number] = [*judge, (_RETURN, 0, 0, _ALLOW)]
    for name, number in REFUSE[machine].items():
        files = name.removesuffix("at2").removesuffix("at") in _FILES.split()
        actions[number] = [(_RETURN, 0, 0, _ERRNO | (errno.EACCES if files else errno.EPERM))]
    unknown = [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    spans = [(0, unknown)]  # (first number, what to do from there on)
    for number in sorted(actions):
        for first, action in ((number, actions[number]), (number + 1, unknown)):
            if spans[-1][0] == first:
                spans.pop()
            if not spans or spans[-1][1] != action:
                spans.append((first, action))
    head = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, AUDIT_ARCH[machine]), (_RETURN, 0, 0, _KILL_PROCESS)]
    code = [*head, (_LOAD, 0, 0, _NUMBER), *_search(spans)]
    return b"".join(struct.pack("=HBBI", *step) for step in code)


def _search(spans: list[tuple[int, list]]) -> list:
    """A binary search: the kernel walks the program once for every call number when it is installed."""
    if len(spans) == 1:
        return spans[0][1]
    middle = len(spans) // 2
    low, high = _search(spans[:middle]), _search(spans[middle:])
    if len(low) <= 255:
        return [(_AT_LEAST, len(low), 0, spans[middle][0]), *low, *high]
    return [(_AT_LEAST, 0, 1, spans[middle][0]), (_JUMP, 0, 0, len(low)), *low, *high]


def _test(offset: int, mask: int, values: tuple[int, ...], otherwise: int) -> list[tuple[int, int, int, int]]:
    """Go on if the masked word is one of ``values``, else return the error."""
    head = [(_LOAD, 0, 0, offset), (_AND, 0, 0, mask & 0xFFFFFFFF)]
    jumps = [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [*head, *jumps, (_RETURN, 0, 0, _ERRNO | otherwise)]


class Filter:
    """A program made ready ahead: in a child it takes two calls, which touch little memory."""

    def __init__(self, code: bytes) -> None:
        self.code = ctypes.create_string_buffer(code, len(code))
        self._places = [found.start() for found in re.finditer(re.escape(struct.pack("=I", _SELF)), code)]
        header = struct.pack("@HP", len(code) // 8, ctypes.addressof(self.code))  # struct sock_fprog
        self._arguments = (22, 2, ctypes.create_string_buffer(header), 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER

    def for_pid(self, pid: int) -> None:
        """Put ``pid`` where the placeholder stands."""
        for place in self._places:
            struct.pack_into("=I", self.code, place, pid)

    def install(self, libc: ctypes.CDLL) -> None:
        """Put the filter on this process, for good; OSError where the kernel forbids it. Needs ``no_new_privs``."""
        if libc.prctl(*self._arguments) != 0:
            raise OSError(ctypes.get_errno(), "seccomp")
