"""Load, leaks, and how everything ends."""

import gc
import opcode
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from outside import servers, strangers

from gtpo_mini.sandbox import Limits, Sandbox

ORDINARY = [
    "print(sum(range(1000)))",
    "import math\nprint(math.factorial(30))",
    "import numpy as np\nprint(np.arange(10).sum())",
    "import sympy as sp\nx = sp.Symbol('x')\nprint(sp.solve(x**2 - 4, x))",
    "import time\ntime.sleep(0.01)\nprint('slept')",
    "1 / 0",
]


def session_pids(sandbox: Sandbox) -> dict[int, str]:
    """State of each process in the fork servers' sessions, zombies too."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parts = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(parts[3]) in servers(sandbox):
            found[int(name)] = parts[0]
    return found


def state(sandbox: Sandbox) -> dict[str, int]:
    """What could grow."""
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "servers' descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in servers(sandbox)),
        "processes": len(session_pids(sandbox)),
        "threads": threading.active_count(),
        "temporary files": sum(name.startswith("gtpo-mini-") for name in os.listdir(tempfile.gettempdir())),
    }


def memory(pid: int | str) -> float:
    """Resident MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) / 256


def run_many(sandbox: Sandbox, executions: int) -> None:
    for number in range(executions // 10):
        with sandbox.session() as session:
            for turn in range(4):
                session.run(ORDINARY[(number + turn) % 6])
        sandbox.map(ORDINARY)


def check_no_growth(executions: int) -> None:
    limits = Limits(cpu_seconds=2, wall_seconds=5)
    with Sandbox(limits) as sandbox:
        run_many(sandbox, 100)
        time.sleep(0.3)
        before, mib = state(sandbox), [memory(pid) for pid in ("self", *servers(sandbox))]
        run_many(sandbox, executions)
        for code in ("while True: pass", "import os; os._exit(1)", "while True: print('x' * 999)"):
            with sandbox.session() as session:
                session.run(code)
                session.run("1")
        deadline = time.monotonic() + 5
        while (after := state(sandbox)) != before and time.monotonic() < deadline:
            time.sleep(0.1)
        assert {k: v for k, v in after.items() if v > before[k]} == {}
        assert "Z" not in session_pids(sandbox).values()
        grown = [memory(pid) - old for pid, old in zip(("self", *servers(sandbox)), mib, strict=True)]
        assert max(grown) < 4, f"MiB: {grown}"


def test_nothing_grows():
    check_no_growth(300)


@pytest.mark.slow
def test_nothing_grows_in_ten_thousand_executions():
    check_no_growth(10_000)


def check_load(snippets: int) -> None:
    """No time limit is hit by ordinary snippets while three busy processes a core compete with them."""
    burners = [
        subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(3 * (os.cpu_count() or 1))
    ]
    try:
        with Sandbox(Limits(cpu_seconds=1, wall_seconds=1.2), workers=4) as sandbox:
            results = sandbox.map(ORDINARY[n % 5] for n in range(snippets))
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert [r for r in results if not r.ok] == []


def test_no_false_time_out_under_load():
    check_load(150)


@pytest.mark.slow
def test_no_false_time_out_in_five_thousand_under_load():
    check_load(5000)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


TRAINER = """
import sys, threading, time
from gtpo_mini.sandbox import Sandbox
sandbox = Sandbox()
sessions = [sandbox.session() for _ in range(5)]
busy = "import threading\\ndef spin():\\n    while True: pass\\nthreading.Thread(target=spin, daemon=True).start()"
sessions[0].run(busy)
threading.Thread(target=sessions[1].run, args=("while True: pass",), daemon=True).start()
threading.Thread(target=sessions[2].run, args=("import time; time.sleep(99)",), daemon=True).start()
{more}
print(*(link._process.pid for link in sandbox._links), flush=True)
time.sleep(60)
"""
# A forked copy of the trainer (a data loader's worker) holds the server's socket open.
FORKED = "import os\nif os.fork() == 0:\n    os.setsid(); time.sleep(30); os._exit(0)\n"


@pytest.mark.parametrize("more", ["", FORKED], ids=["alone", "with a forked worker"])
def test_a_killed_trainer_leaves_no_process(more):
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER.format(more=more)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    roots = trainer.stdout.readline().split()
    time.sleep(0.3)
    children = [pid for root in roots for pid in Path(f"/proc/{root}/task/{root}/children").read_text().split()]
    assert len(children) >= 5
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    deadline = time.monotonic() + 1
    pids = [int(pid) for pid in (*roots, *children)]
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in pids if alive(pid)] == []
    trainer.stdout.close()


def test_a_killed_server_leaves_no_child_and_says_so(box):
    from gtpo_mini.sandbox import SandboxUnavailable

    sandbox = Sandbox(workers=1)
    sessions = [sandbox.session() for _ in range(3)]
    assert all(session.run("import sys").ok for session in sessions)
    pids = [session._child.pid for session in sessions]
    os.kill(servers(sandbox)[0], signal.SIGKILL)
    deadline = time.monotonic() + 2
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, pids))
    with pytest.raises(SandboxUnavailable):
        sandbox.run("1")
    with pytest.raises(SandboxUnavailable):
        sessions[0].run("1")
    sandbox.close()


@pytest.fixture
def interrupt_after():
    """A function that has SIGINT raised here after some seconds, as Jupyter's stop button does.

    By the alarm clock and not a timer thread: Python drops an exception that falls into the destructor of a thread.
    """
    old = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    # A shell that runs the tests in the background has it ignored.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)
    signal.signal(signal.SIGINT, ignored)


def test_an_interrupt_leaves_a_usable_sandbox(box, interrupt_after):
    with box.session() as session:
        session.run("x = 1")
        for number in range(8):
            with pytest.raises(KeyboardInterrupt):
                interrupt_after(0.05 + 0.01 * number)
                session.run("x = 2\nwhile True: pass") if number % 2 else box.run("import time; time.sleep(9)")
            assert box.run("print(str(3))").stdout == "3\n"
        assert session.run("print(x)").stdout == "1\n"
    assert strangers(box) == []


def test_an_interrupt_at_any_moment_leaves_a_usable_sandbox(interrupt_after):
    """Interrupts fall into the talk with the server too, not only into the wait for a snippet."""
    caught = 0
    with Sandbox(workers=1) as sandbox:
        for number in range(60):
            deadline = time.monotonic() + 1
            try:
                interrupt_after(0.001 + 0.0004 * number)
                while time.monotonic() < deadline:
                    sandbox.run("print(str(1))")
            except KeyboardInterrupt:
                caught += 1
        assert [r.stdout for r in sandbox.map(["print(str(2))"] * 10)] == ["2\n"] * 10
        sandbox.close()
        assert session_pids(sandbox) == {} and caught >= 50


def interrupted_at(sandbox: Sandbox, code: str, moment: int) -> bool:
    """Run a snippet and raise an interrupt at the sandbox's ``moment``-th place for one; False where it has fewer.

    The interpreter looks for signals as a function begins, as a call has come back, and as a loop begins anew.
    """
    left, folder, last = moment, str(Path(sys.modules["gtpo_mini.sandbox"].__file__).parent), {}

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_code.co_filename.startswith(folder):
            return None
        frame.f_trace_opcodes = True
        before = last.get(frame)
        last[frame] = opcode.opname[frame.f_code.co_code[frame.f_lasti]]
        if event == "call" or (event == "opcode" and before in ("CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD")):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        sandbox.run(code)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize(("code", "places"), [("print(str(1))", 80), ("print(1)", 20)])
def test_an_interrupt_at_each_place_for_one_leaves_a_usable_sandbox(code, places):
    """Not at random: one once closed a descriptor that was then closed again, in one run of a hundred."""
    # In a thread of its own: what the tracing leaves there, exceptions that seem to be in hand, ends with it.
    with Sandbox(workers=1) as sandbox, ThreadPoolExecutor(1) as thread:
        moment = 1
        while thread.submit(interrupted_at, sandbox, code, moment).result():
            assert sandbox.run("print(str(2))").stdout == "2\n", moment
            moment += 1
        assert moment > places
        sandbox.close()
        assert session_pids(sandbox) == {}


def test_no_folder_is_left_and_sandboxes_share_one():
    path = Path(tempfile.gettempdir()) / f"gtpo-mini-{os.getuid()}"
    before = set(os.listdir(tempfile.gettempdir()))
    one, two = Sandbox(workers=1), Sandbox(workers=1)
    one.close()
    assert two.run("import os\nprint(os.getcwd())").stdout in (f"{path}\n", "/\n")  # the second: its own root
    two.close()
    with Sandbox(workers=1, confinement="unconfined") as sandbox:
        sandbox.run("open('x', 'w').write('x')")
    left = {path for path in Path(tempfile.gettempdir()).glob("gtpo-mini-*") if path.name not in before}
    assert not [path for path in left if path.stat().st_uid == os.getuid()]  # another user's are not ours to judge


def test_the_process_group_of_the_trainer_is_not_the_server_s(box):
    assert all(os.getpgid(pid) != os.getpgid(0) for pid in servers(box))


def test_a_sandbox_that_is_forgotten_is_ended():
    code = "from gtpo_mini.sandbox import Sandbox\ns = Sandbox()\nx = s.session()\n"
    code += "print(*(link._process.pid for link in s._links))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pids = [int(pid) for pid in done.stdout.split()]
    deadline = time.monotonic() + 1
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert pids and not any(map(alive, pids))


def test_closing_a_session_during_its_turn_harms_no_other(box):
    """Descriptor numbers are used again: the turn must be over before they are given up."""
    results = []
    for _ in range(5):
        session = box.session()
        thread = threading.Thread(target=lambda s=session: results.append(s.run("import time; time.sleep(9)")))
        thread.start()
        time.sleep(0.1)
        session.close()
        with box.session() as other:
            assert other.run("print('mine')").stdout == "mine\n"
        thread.join(5)
        with pytest.raises(ValueError, match="closed"):
            session.run("1")
    assert len(results) == 5 and not any(result.ok for result in results)


def test_no_snippet_raises_in_the_trainer(box):
    for number in (35, 40, 63):
        assert f"signal {number}" in box.run(f"import os; os.kill(os.getpid(), {number})").error
    urgent = "import socket, time\nsocket.socket(fileno=3).send(b'x', socket.MSG_OOB)\ntime.sleep(1)"
    assert not box.run(urgent).ok
    assert "SystemExit" in box.run("import sys\nsys.exit(10**5000)").error
    chain = "def f(n):\n  try: f(n + 1)\n  except Exception as e: raise ValueError('bad') from e\nf(0)"
    assert box.run(chain).error.endswith("ValueError: bad")
    assert box.run("print(str(3))").stdout == "3\n"


def test_flags_of_a_descriptor_stay_with_their_session(box):
    look = "import fcntl; print(fcntl.fcntl(0, fcntl.F_GETFL))"
    before = box.run(look).stdout
    with box.session() as session:
        session.run("import fcntl, os; fcntl.fcntl(0, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK)")
        assert session.run(look).stdout != before
        assert box.run(look).stdout == before


def test_closing_does_not_wait_for_a_forked_copy_of_the_trainer():
    code = (
        "import os, time\nfrom gtpo_mini.sandbox import Sandbox\ns = Sandbox(workers=1)\n"
        "if (pid := os.fork()) == 0:\n    time.sleep(20); os._exit(0)\n"
        "start = time.monotonic(); s.close(); print(time.monotonic() - start); os.kill(pid, 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 5
