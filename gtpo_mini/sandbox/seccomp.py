"""An allow-list of system calls as a classic BPF program, for this machine or, in tests, for another.

A table's entry is `name x86-64 aarch64`; a dash where a machine has no such call. What is in no table does not exist
for a snippet (ENOSYS): libraries then take the fallback that they have for an old kernel (`clone3` -> `clone`). Calls
that snippets do try (fork, socket, unlink) get EPERM or EACCES, so that the model reads "permission denied".
"""

from __future__ import annotations

import ctypes
import errno
import re
import struct


def _table(text: str) -> dict[str, dict[str, int]]:
    """Numbers by machine and name."""
    rows = [entry.split() for entry in text.split(",")]
    return {
        machine: {row[0]: int(row[i]) for row in rows if row[i] != "-"}
        for i, machine in ((1, "x86_64"), (2, "aarch64"))
    }


#: Always allowed.
ALLOW = _table("""\
futex 202 98, read 0 63, write 1 64, mmap 9 222, munmap 11 215, brk 12 214, mprotect 10 226, madvise 28
233, mremap 25 216, rt_sigprocmask 14 135, rt_sigaction 13 134, rt_sigreturn 15 139, sigaltstack 131 132,
clock_gettime 228 113, gettimeofday 96 169, time 201 -, getrandom 318 278, lseek 8 62, close 3 57, fstat
5 80, newfstatat 262 79, stat 4 -, lstat 6 -, statx 332 291, access 21 -, faccessat 269 48, faccessat2
439 439, getcwd 79 17, getdents64 217 61, readv 19 65, writev 20 66, pread64 17 67, preadv 295 69,
fadvise64 221 223, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, poll 7 -, ppoll 271 73,
select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232
-, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd2 290 19, sendto 44 206, recvfrom 45 207, shutdown 48
210, getsockname 51 204, getpeername 52 205, getsockopt 55 209, futex_waitv 449 449, set_robust_list 273
99, get_robust_list 274 100, rseq 334 293, rt_sigpending 127 136, rt_sigsuspend 130 133, rt_sigtimedwait
128 137, alarm 37 -, pause 34 -, setitimer 38 103, getitimer 36 102, getpid 39 172, gettid 186 178,
getppid 110 173, getpgrp 111 -, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177,
getgroups 115 158, getresuid 118 148, getresgid 120 150, clock_getres 229 114, clock_nanosleep 230 115,
nanosleep 35 101, times 100 153, getrusage 98 165, getrlimit 97 163, sched_yield 24 124,
sched_getaffinity 204 123, getcpu 309 168, sysinfo 99 179, uname 63 160, umask 95 166, exit 60 93,
exit_group 231 94, restart_syscall 219 128
""")

#: Allowed for some arguments only: `_RULES`.
JUDGE = _table("""\
open 2 -, openat 257 56, clone 56 220, kill 62 129, tgkill 234 131, socketpair 53 199, fcntl 72 25, ioctl
16 29, prlimit64 302 261, prctl 157 167
""")

#: Answered with a clear "permission denied", because snippets do ask for them.
REFUSE = _table("""\
fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, socket 41 198, connect 42 203, bind 49 200,
listen 50 201, accept 43 202, accept4 288 242, sendmsg 46 211, recvmsg 47 212, ptrace 101 117, setrlimit
160 164, setuid 105 146, setgid 106 144, setsid 112 157, setpgid 109 154, unlink 87 -, unlinkat 263 35,
rename 82 -, renameat 264 38, renameat2 316 276, mkdir 83 -, mkdirat 258 34, rmdir 84 -, link 86 -,
linkat 265 37, symlink 88 -, symlinkat 266 36, chmod 90 -, fchmod 91 52, fchmodat 268 53, chown 92 -,
fchown 93 55, fchownat 260 54, lchown 94 -, truncate 76 45, ftruncate 77 46, utimensat 280 88, chdir 80
49, fchdir 81 50, chroot 161 51, readlink 89 -, readlinkat 267 78, creat 85 -, setpriority 141 140
""")

#: Machine -> the kernel's AUDIT_ARCH_* constant, which a filter must check before it trusts a number.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

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
