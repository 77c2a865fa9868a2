"""Sessions: state across turns, replay after a killed turn, isolation, harness integrity, the same result each time."""

import os
import subprocess
import sys
import threading
import time

import pytest
from outside import LIMITS

from gtpo_mini.sandbox import Limits, Sandbox, SandboxUnavailable, run_code


def test_state_lives_from_turn_to_turn(box):
    with box.session() as session:
        assert session.run("import math\nx = 40\ndef f(n): return n + x").ok
        assert session.run("print(f(2), math.floor(2.5))").stdout == "42 2\n"
        assert (
            session.run("class A: pass\nimport pickle\nprint(pickle.loads(pickle.dumps(A())).__class__ is A)").stdout
            == "True\n"
        )
        assert session.run("raise KeyError(x)").error.endswith("KeyError: 40")
        assert session.run("x += 1").ok and session.run("print(x)").stdout == "41\n"


KILLS = {
    "time": "x = 5\nwhile True: pass",
    "sleep": "x = 5\nimport time; time.sleep(99)",
    "exit": "x = 5\nimport os; os._exit(0)",
    "crash": "x = 5\nimport ctypes; ctypes.string_at(0)",
    "flood": "x = 5\nwhile True: print('y' * 999)",
    "kill": "x = 5\nimport os; os.kill(os.getpid(), 9)",
    "closed output": "x = 5\nimport os; os.close(1)",
    "garbage on the control channel": "x = 5\nimport os; os.write(3, b'+' * 99)",
    "closed control channel": "x = 5\nimport os; os.close(3)",
    "false ready byte": "x = 5\nimport os; os.write(3, b'R')",
}


@pytest.mark.parametrize("code", KILLS.values(), ids=KILLS.keys())
def test_a_killed_turn_loses_only_itself(code, tight):
    with tight.session() as session:
        session.run("x = 1\nimport random\nfirst = random.random()")
        session.run("x += 1\nprint('printed once')\nraise ValueError('but x is 2')")
        assert not session.run(code).ok
        after = session.run("print(x, first == random.Random(0).random())")
        assert after.ok and after.stdout == "2 True\n"


MORE = {
    "by name": "import numpy as np\nprint(int(np.arange(x).sum()))",
    "by a name that is made": "np = __import__('num' + 'py')\nprint(int(np.arange(x).sum()))",
    "in a thread": "import threading\nt = threading.Thread(target=exec, args=('import asyncio',))\nt.start()\n"
    "t.join()\nimport numpy as np\nprint(int(np.arange(x).sum()))",
    "where nothing may be caught": "print('printed once')\ntry:\n    import numpy as np\nexcept BaseException:\n"
    "    pass\nprint(int(np.arange(x).sum()))",
}


@pytest.mark.parametrize("code", MORE.values(), ids=MORE.keys())
def test_a_turn_that_asks_for_more_moves_with_what_was_before(code, box):
    with box.session() as session:
        assert session.run("import random\nx = random.randrange(9, 99)\nprint(x)").ok
        assert session._heavier or len(box._links) == 1
        x = int(session.run("print(x)").stdout)
        assert session.run(code).stdout.splitlines()[-1] == str(x * (x - 1) // 2)
        assert not session._heavier and session.run("print(x)").stdout == f"{x}\n"


def test_what_a_snippet_says_of_moving_is_worth_one_move(box):
    """It shares its process with the code that asks: a false word moves it, and then ends it."""
    forged = "import gc\nfor more in gc.get_objects():\n    if type(more).__name__ == 'More':\n"
    forged += "        more.nonce = more.nonce or b'x' * 16\n        more.find_spec()\n"
    result = box.run(forged)
    assert not result.ok and "not its own" in result.error
    assert box.run("print(str(6 * 7))").stdout == "42\n"


def test_a_session_that_cannot_be_replayed_starts_empty(tight):
    once = "import time\nif time.time() > {}: time.sleep(99)\nx = 1"
    with tight.session() as session:
        assert session.run(once.format(time.time() + 0.2)).ok
        assert session.run("while True: pass").timed_out
        assert session.run("print('x' in globals())").stdout == "False\n"


def test_sessions_never_see_each_other(box):
    poison = "import math, builtins, sys, os\nmath.pi = 3\nbuiltins.secret = 7\nsys.path.clear()\nos.environ['T'] = '1'"
    look = "import math as m, builtins as b, os\nprint(m.pi > 3, hasattr(b, 'secret'), 'T' in os.environ, 'x' in dir())"
    with box.session() as one, box.session() as two:
        assert one.run("x = 1\n" + poison).ok
        assert two.run(look).stdout == "True False False False\n"
        assert box.run(look).stdout == "True False False False\n"


SPOIL = {
    "print": "import builtins\nbuiltins.print = None",
    "every builtin": "import builtins\nfor n in ('compile', 'exec', 'len', 'open', 'str'): setattr(builtins, n, None)",
    "stdout": "import sys, io\nsys.stdout = sys.stderr = sys.__stdout__ = io.StringIO()",
    "closed stdout": "import sys\nsys.stdout.close()\nsys.stderr.close()",
    "os": "import os\nos.write = os.read = os._exit = None",
    "traceback": "import traceback, linecache\ntraceback.TracebackException = None\nlinecache.cache = None",
    "trace hook": "import sys\nsys.settrace(lambda *a: 1 / 0)",
    "alarm": "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.001)",
    "namespace": "globals().clear()",
    "modules": "import sys\nsys.modules.clear()",
    "thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
    "exception hook": "import sys\nsys.excepthook = None\nraise SystemExit(7)",
    "interrupt": "raise KeyboardInterrupt",
    "generator exit": "raise GeneratorExit",
    "bad exception": "class E(Exception):\n    def __str__(self): raise E\n    __repr__ = __str__\nraise E",
    "equal to all": "class Y:\n    def __eq__(self, o): return 1\n    __hash__ = None\nraise SystemExit(Y())",
}


@pytest.mark.parametrize("code", SPOIL.values(), ids=SPOIL.keys())
def test_a_spoilt_interpreter_harms_at_most_its_own_session(code, tight):
    with tight.session() as session:
        first = session.run(code)
        second = session.run("1 + 1")
        for result in (first, second):
            assert type(result.stdout) is str and type(result.error) is str and result.ok == (result.error == "")
    assert tight.run("print(str(6 * 7))").stdout == "42\n"


def test_leaving_early_is_not_ok_and_leaving_in_order_is(box):
    assert not box.run("import os\nos._exit(0)").ok
    assert box.run("import sys\nprint(1)\nsys.exit()").ok
    assert box.run("import sys\nsys.exit(3)").error == "SystemExit: 3"
    assert not box.run("import os\nos.write(3, b'{\"ok\": true}')\nraise ValueError").ok


BAD_TEXT = ["\0", "a\0b", "\ud800", "print('\udfff')", "[" * 60000, "(" * 300, "-" * 90000 + "1", "x=1\n" * 2_500_000]
BAD_TEXT += [
    "",
    "\n\n",
    "\tx = 1",
    "def f(:",
    "\ufeffprint(1)",
    "\r\rx",
    "# -*- coding: nonsense -*-\nx = 1",
    "λ = 1",
    "\x1a",
]


@pytest.mark.parametrize("number", range(len(BAD_TEXT)))
def test_no_text_raises_in_the_trainer(number, box):
    result = box.run(BAD_TEXT[number])
    assert result.ok == (result.error == "") and len(result.error) <= 4000


def test_a_hundred_sessions_open_at_once_and_used_from_threads(box):
    sessions = [box.session() for _ in range(100)]
    got: dict[int, str] = {}

    def use(number: int) -> None:
        sessions[number].run(f"x = {number}")
        got[number] = sessions[number].run("print(x)").stdout

    threads = [threading.Thread(target=use, args=(n,)) for n in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for session in sessions:
        session.close()
    assert got == {n: f"{n}\n" for n in range(100)}


def test_nothing_runs_between_turns(box):
    busy = "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()"
    with box.session() as session:
        session.run(busy)
        time.sleep(0.05)
        before = session._child._cpu()
        time.sleep(0.3)
        assert session._child._cpu() - before < 0.005


def test_map_keeps_the_order(box):
    assert [r.stdout for r in box.map(f"print(str({n}))" for n in range(20))] == [f"{n}\n" for n in range(20)]


PRINTS = """
import random, numpy as np, sympy as sp
print(random.random(), np.random.rand(2), np.random.default_rng().integers(100), random.Random().random())
print({c for c in 'abcdefgh'}, {object, None, int, str}, hash('text'))
print(sp.randMatrix(2), sp.symbols('a:c', cls=sp.Dummy))
class A: pass
print(sp.core.random.rng.random(), sp.factor(sp.Symbol('x')**6 - 1), sp.nextprime(10**12))
"""


def test_results_are_the_same_each_time_and_in_each_trainer(box):
    code = f"from gtpo_mini.sandbox import run_code\nimport sys\nsys.stdout.write(repr(run_code({PRINTS!r})))"
    results = [box.run(PRINTS) for _ in range(20)]
    assert results[0].ok and len(set(map(repr, (r.stdout for r in results)))) == 1
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert repr(results[0].stdout) in other


def test_limits_are_those_that_were_given():
    assert (
        run_code("while True: pass", Limits(cpu_seconds=0.2)).error == "TimeoutError: stopped after 0.2 s of CPU time"
    )
    with Sandbox(Limits(memory_mib=64, output_kib=1), workers=1) as sandbox:
        assert "MemoryError" in sandbox.run("x = bytearray(80 << 20)").error
        result = sandbox.run("print('é' * 2000)")
        assert result.truncated and result.ok and len(result.stdout.encode()) <= 1024 + 2
    for bad in ({"cpu_seconds": 0}, {"wall_seconds": float("nan")}, {"memory_mib": 1}, {"output_kib": "64"}):
        with pytest.raises(ValueError, match=f"Limits.{next(iter(bad))}"):
            Limits(**bad)
    with pytest.raises(ValueError, match="workers"):
        Sandbox(workers=0)


def test_a_closed_sandbox_says_so(box):
    sandbox = Sandbox(LIMITS, workers=1)
    session = sandbox.session()
    sandbox.close()
    sandbox.close()
    with pytest.raises(SandboxUnavailable):
        sandbox.run("1")
    with pytest.raises(SandboxUnavailable):
        session.run("1")
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.run("1")


def test_a_forked_copy_of_the_trainer_must_make_its_own(box):
    if (pid := os.fork()) == 0:
        try:
            box.run("1")
        except SandboxUnavailable:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert box.run("print(str(1))").ok
