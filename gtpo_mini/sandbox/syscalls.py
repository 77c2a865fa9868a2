"""Linux system calls that a snippet's process may make, by name and number, for x86-64 and aarch64.

Each entry is `name x86-64 aarch64`; a dash where a machine has no such call. What is in no table does not
exist for a snippet (ENOSYS), which is what C libraries expect of an old kernel.
"""

from __future__ import annotations


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

#: Allowed for some arguments only; `seccomp.py` says which.
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
