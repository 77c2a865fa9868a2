"""What a hostile snippet tries, one property a case. `{...}` names what the observer outside put there.

A snippet that gets through prints BREACH; most acts are also seen from outside (see `test_sandbox_hostile.py`).
Harmless forms (signal 0, null pointers) stand for acts that would hurt whoever runs the negative control.
"""

import textwrap
from dataclasses import dataclass

PRELUDE = """
import ctypes, os, platform, signal, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
ARM = platform.machine() == "aarch64"

def kernel(x86, arm, *arguments):
    "The call got through unless the answer is a clear refusal (EPERM, EACCES, ENOSYS, ENOENT)."
    ctypes.set_errno(0)
    done = libc.syscall(arm if ARM else x86, *arguments)
    if done >= 0 or ctypes.get_errno() not in (1, 2, 13, 38):
        print("BREACH", done, ctypes.get_errno())

def tried(act):
    try:
        act()
    except (OSError, EOFError) as error:
        print("refused", type(error).__name__)
    else:
        print("BREACH")
"""


@dataclass(frozen=True)
class Case:
    """One property: ``code`` must leave no trace, end in time, and not print BREACH."""

    group: str
    name: str
    code: str
    plain: bool = False  #: without the prelude
    ends: str = ""  #: text that the error must hold: the snippet must have been stopped for this


def _cases(group: str, **codes: str) -> list[Case]:
    return [Case(group, name, textwrap.dedent(code)) for name, code in codes.items()]


TIME = [
    Case("time", name, textwrap.dedent(code), plain=True, ends="Error" if late else "TimeoutError")
    for name, late, code in [
        ("busy_loop", False, "while True: pass"),
        ("sleep", False, "import time\ntime.sleep(1000)"),
        ("c_code", False, "import re\nre.match('(a+)+$', 'a' * 60 + 'b')"),
        ("big_power", False, "x = 7 ** (10 ** 9)"),
        (
            "swallow_everything",
            False,
            "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        ),
        (
            "ignore_signals",
            False,
            "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
            "    except OSError: pass\nwhile True: pass",
        ),
        (
            "many_threads_busy",
            False,
            "import threading\ndef spin():\n    while True: pass\n"
            "for _ in range(8): threading.Thread(target=spin).start()",
        ),
        ("deadlock", False, "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()"),
        ("stop_itself", False, "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"),
        ("wait_for_input", True, "input('? ')"),
        ("endless_iterator", False, "import itertools\nsum(itertools.repeat(1))"),
        ("slow_error_text", False, "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E"),
    ]
]

MEMORY = _cases(
    "memory",
    big_list="x = [0] * 10**10\nprint('BREACH')",
    doubling="x = b'x' * 2**20\nwhile len(x) < 2**33: x += x\nprint('BREACH')",
    numpy="import numpy as np\nx = np.ones((40000, 40000))\nprint('BREACH')",
    mapping="import mmap\nx = mmap.mmap(-1, 2**32)\nx[0] = 1\nprint('BREACH')",
    deep_recursion="sys.setrecursionlimit(10**9)\ndef f(n): return [f(n + 1)]\nf(0)\nprint('BREACH')",
    c_stack="x = 0\nfor _ in range(10**6): x = [x]\nsys.setrecursionlimit(10**9)\nrepr(x)",
    raise_limit="import resource\ntried(lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)))",
    memory_file="kernel(319, 279, b'x', 0)",
    shared_segment="kernel(29, 194, 0, 2**20, 0o1600)",
    shared_memory_folder="tried(lambda: open('/dev/shm/gtpo-hostile', 'w'))",
    locked_pages="kernel(151, 230, 1)",
    thread_bomb="""
        threads = []
        for _ in range(3000):
            t = threading.Thread(target=time.sleep, args=(1,), daemon=True); t.start(); threads.append(t)
        print('BREACH')""",
    pipe_buffers="import fcntl\nr, w = os.pipe()\ntried(lambda: fcntl.fcntl(w, 1031, 1 << 20))",
    descriptors="held = []\ntried(lambda: [held.append(os.pipe()) for _ in range(2000)])",
)

OUTPUT = _cases(
    "output",
    flood="while True: print('x' * 1000)",
    flood_errors="while True: sys.stderr.write('x' * 1000)",
    flood_raw="while True: os.write(1, b'\\xff' * 65536)",
    one_line="sys.stdout.write('x' * 10**8)",
    binary="os.write(1, bytes(range(256)) * 100)",
    flood_from_thread="""
        def loud():
            while True: os.write(2, b'y' * 4096)
        threading.Thread(target=loud).start()""",
)

PROCESSES = _cases(
    "processes",
    fork="tried(lambda: os.fork() or os._exit(0))",
    daemon="""
        def act():
            if os.fork() == 0:
                os.setsid(); time.sleep(20); os._exit(0)
        tried(act)""",
    subprocess="import subprocess\ntried(lambda: subprocess.run(['/bin/true'], check=True))",
    system="print('BREACH') if os.system('true') == 0 else None",
    popen="print('BREACH') if os.popen('echo hello').read() else None",
    posix_spawn="tried(lambda: os.waitpid(os.posix_spawn('/bin/true', ['true'], {{}}), 0))",
    exec="kernel(59, 221, None, None, None)",
    exec_at="kernel(322, 281, -100, None, None, None, 0)",
    raw_fork="""
        done = -1 if ARM else libc.syscall(57)
        if done == 0: os._exit(0)
        if done > 0: print('BREACH'); os.waitpid(done, 0)""",
    raw_clone="""
        done = libc.syscall(220 if ARM else 56, 17, 0, 0, 0, 0)
        if done == 0: os._exit(0)
        if done > 0: print('BREACH'); os.waitpid(done, 0)""",
    clone3="kernel(435, 435, None, 0)",
    multiprocessing="""
        import multiprocessing as mp
        def act():
            p = mp.get_context('fork').Process(target=int); p.start(); p.join()
        tried(act)""",
    new_session="kernel(112, 157)",
)

SIGNALS = _cases(
    "signals",
    trainer="tried(lambda: os.kill({trainer}, signal.SIGUSR1))",
    bystander="tried(lambda: os.kill({bystander}, signal.SIGKILL))",
    stop_bystander="tried(lambda: os.kill({bystander}, signal.SIGSTOP))",
    fork_server="tried(lambda: os.kill(os.getppid(), 0))",
    everybody="tried(lambda: os.kill(-1, 0))",
    own_group="tried(lambda: os.killpg(0, 0))",
    one_thread="kernel(234, 131, {bystander}, {bystander}, 0)",
    by_thread_id="kernel(200, 130, {bystander}, 0)",
    queued="tried(lambda: libc.sigqueue({bystander}, 0, 0) and exec('raise OSError'))",
    by_descriptor="kernel(434, 434, {bystander}, 0)",
    by_owner="""
        import fcntl
        r, w = os.pipe()
        tried(lambda: fcntl.fcntl(r, fcntl.F_SETOWN, {bystander}))""",
    by_owner_signal="import fcntl\nr, w = os.pipe()\ntried(lambda: fcntl.fcntl(r, 10, 9))",
    outlive_the_server="kernel(157, 167, 1, 0, 0, 0, 0)",
    trace="kernel(101, 117, 16902, {bystander}, 0, 0)",
    read_memory="""
        import struct
        here = ctypes.create_string_buffer(32)
        span = ctypes.c_size_t * 2
        a, b = span(ctypes.addressof(here), 32), span({address}, 32)
        kernel(310, 270, {trainer}, ctypes.byref(a), 1, ctypes.byref(b), 1, 0)
        print(here.raw)""",
    memory_file="tried(lambda: open('/proc/{trainer}/mem', 'rb'))",
    priority="tried(lambda: os.setpriority(os.PRIO_PROCESS, {bystander}, 19))",
    affinity="tried(lambda: os.sched_setaffinity({bystander}, {{0}}))",
    limits="import resource\ntried(lambda: resource.prlimit({bystander}, resource.RLIMIT_NOFILE))",
)

FILES = _cases(
    "files",
    read="tried(lambda: print(open('{folder}/secret').read()))",
    read_raw="""
        fd = libc.syscall(56, -100, b'{folder}/secret', 0) if ARM else libc.syscall(2, b'{folder}/secret', 0)
        if fd >= 0: print('BREACH', os.read(fd, 99))""",
    read_relative="tried(lambda: print(open('../' * 20 + '{folder}/secret').read()))",
    read_by_handle="kernel(303, 264, -100, b'{folder}/secret', ctypes.create_string_buffer(999), None, 0)",
    list="tried(lambda: print(os.listdir('{folder}')))",
    list_home="tried(lambda: os.listdir(os.path.expanduser('~root')))",
    password_file="tried(lambda: open('/etc/passwd').read())",
    link_target="tried(lambda: print(os.readlink('{folder}/link')))",
    write="tried(lambda: open('{folder}/open/dropped', 'w'))",
    write_temporary="import tempfile\ntried(lambda: tempfile.NamedTemporaryFile(dir='{folder}/open', delete=False))",
    write_here="tried(lambda: open('dropped', 'w'))",
    append="tried(lambda: open('{folder}/open/victim', 'a'))",
    truncate="tried(lambda: os.truncate('{folder}/open/victim', 0))",
    truncate_by_open="tried(lambda: os.open('{folder}/open/victim', os.O_RDONLY | os.O_TRUNC))",
    unnamed_file="tried(lambda: os.open('{folder}/open', os.O_TMPFILE | os.O_RDWR))",
    standard_library="import decimal\ntried(lambda: open(os.__file__, 'a'))",
    unlink="tried(lambda: os.unlink('{folder}/open/victim'))",
    rename="tried(lambda: os.rename('{folder}/open/victim', '{folder}/open/dropped'))",
    change_mode="tried(lambda: os.chmod('{folder}/open/victim', 0o777))",
    change_owner="tried(lambda: os.chown('{folder}/open/victim', os.getuid(), -1))",
    change_times="tried(lambda: os.utime('{folder}/open/victim'))",
    make_folder="tried(lambda: os.mkdir('{folder}/open/dropped'))",
    hard_link="tried(lambda: os.link('{folder}/open/victim', '{folder}/open/dropped'))",
    symbolic_link="tried(lambda: os.symlink('{folder}/secret', '{folder}/open/dropped'))",
    fifo="tried(lambda: os.mkfifo('{folder}/open/dropped'))",
    attributes="tried(lambda: os.setxattr('{folder}/open/victim', 'user.x', b'1'))",
    new_root="tried(lambda: os.chroot('/'))",
    mount="kernel(165, 40, None, None, None, 0, None)",
)

NETWORK = _cases(
    "network",
    tcp="tried(lambda: socket.create_connection(('127.0.0.1', {port}), 2).send(b'x'))",
    tcp6="tried(lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM))",
    udp="tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {udp})))",
    listen="tried(lambda: socket.create_server(('127.0.0.1', 0)))",
    local="""
        def act():
            s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.sendto(b'x', '{folder}/mail')
        tried(act)""",
    abstract="""
        def act():
            s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.sendto(b'x', chr(0) + '{abstract}')
        tried(act)""",
    local_by_pair="""
        def act():
            a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.sendto(b'x', chr(0) + '{abstract}')
        tried(act)""",
    netlink="tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))",
    raw_packets="kernel(41, 198, 17, 3, 0)",
    names="tried(lambda: socket.getaddrinfo('localhost.example', 80))",
    web="import urllib.request\ntried(lambda: urllib.request.urlopen('http://127.0.0.1:{port}/', timeout=2))",
    pass_descriptor="a, b = socket.socketpair()\ntried(lambda: socket.send_fds(a, [b'x'], [0]))",
)

SECRETS = _cases(
    "secrets",
    environment="print(dict(os.environ))",
    environment_of_trainer="tried(lambda: print(open('/proc/{trainer}/environ').read()))",
    own_start="tried(lambda: print(open('/proc/self/environ').read()))",
    command_lines="tried(lambda: print(open('/proc/{trainer}/cmdline').read()))",
    trainer_descriptors="tried(lambda: print(os.listdir('/proc/{trainer}/fd')))",
    inherited_descriptors="""
        for fd in range(4, 4096):
            try: os.fstat(fd)
            except OSError: continue
            print('BREACH', fd)""",
    whole_memory="""
        import gc
        for thing in gc.get_objects():
            if isinstance(thing, (str, bytes)) and 'hidden-' + 'gold' in str(thing): print('BREACH')
        for module in list(sys.modules.values()):
            for value in list(vars(module).values()):
                if isinstance(value, str) and value.startswith('hidden-' + 'gold'): print('BREACH')""",
    trainer_modules="print('BREACH') if any(m.startswith('gtpo_mini') for m in sys.modules) else None",
    key_ring="kernel(250, 219, 0, -3, 0, 0, 0)",
    kernel_log="kernel(103, 116, 10, None, 0)",
)

KERNEL = _cases(
    "kernel",
    io_uring="kernel(425, 425, 1, None)",
    bpf="kernel(321, 280, 0, None, 0)",
    performance_events="kernel(298, 241, None, 0, 0, 0, 0)",
    page_faults="kernel(323, 282, 0x10000)",
    namespaces="kernel(272, 97, 0x200)",
    enter_namespace="kernel(308, 268, -1, 0)",
    personality="kernel(135, 92, 0xFFFFFFFF)",
    modules="kernel(313, 273, -1, b'', 0)",
    accounting="kernel(163, 89, None)",
    host_name="kernel(170, 161, None, 0)",
    user_id="tried(lambda: os.setresuid(os.getuid(), os.getuid(), os.getuid()))",
    old_calls="""
        import mmap
        if not ARM:  # the 32-bit gate: getpid has another number there, and so has everything else
            page = mmap.mmap(-1, 4096, prot=7)
            page.write(bytes.fromhex('b814000000cd80c3'))
            run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
            if run() > 0: print('BREACH')""",
    third_table="x = None if ARM else kernel(0x40000000 + 39, 0)",
)

HOSTILE = [*TIME, *MEMORY, *OUTPUT, *PROCESSES, *SIGNALS, *FILES, *NETWORK, *SECRETS, *KERNEL]
