"""What the model is told when its code fails."""

import re

import pytest

CODES = {
    "plain": ("x = 1\ny = 0\nprint(x / y)", 3, "ZeroDivisionError: division by zero"),
    "syntax": ("x = 1\nif x\n  pass", 2, "SyntaxError: expected ':'"),
    "in a library": ("import sympy as sp\nx = sp.Symbol('x')\nsp.Poly(1 / x, x).all_coeffs()", 3, "PolynomialError"),
    "in numpy": ("import numpy as np\n\nnp.linalg.inv(np.zeros((2, 2)))", 3, "LinAlgError: Singular matrix"),
    "missing import": (
        "\nfrom numpy import nothing_like_it",
        2,
        "ImportError: cannot import name 'nothing_like_it' from 'numpy'",
    ),
    "missing module": ("import nothing_like_it", 1, "ModuleNotFoundError: No module named 'nothing_like_it'"),
    "deep": ("def f(n):\n    return f(n + 1)\nf(0)", 2, "RecursionError"),
    "long message": ("raise ValueError('a' * 10**6)", 1, "ValueError: aaaa"),
    "many lines": ("raise ValueError('first\\n' + 'a\\n' * 10**5 + 'the end')", 1, "the end"),
    "long chain": (
        "def f(n):\n    try:\n        1 / 0\n    except:\n        if n: f(n - 1)\n        raise ValueError(n)\nf(60)",
        6,
        "ValueError: 0",
    ),
    "group": ("raise ExceptionGroup('both', [ValueError(1), TypeError(2)])", 1, None),
    "own text": ("class E(Exception):\n    def __str__(self): return 'why'\nraise E", 3, "E: why"),
    "no memory": ("x = 2\ny = [0] * 10**11", 2, "MemoryError"),
    "assertion": ("assert 1 == 2, 'not equal'", 1, "AssertionError: not equal"),
    "in a thread pool": (
        "from concurrent.futures import ThreadPoolExecutor as P\nwith P(1) as p:\n    p.submit(int, 'x').result()",
        3,
        "ValueError: invalid literal",
    ),
    "wide source line": ("x = '" + "y" * 5000 + "' + 1", 1, "TypeError"),
    "brackets": ("x = " + "[" * 60000, None, None),
}


@pytest.mark.parametrize("code, line, last", CODES.values(), ids=CODES.keys())
def test_error_text_is_short_own_and_ends_in_the_exception(code, line, last, box):
    result = box.run(code)
    error = result.error
    assert not result.ok and 0 < len(error) <= 4000
    assert not re.search(r'File "/', error) and "site-packages" not in error and "sandbox" not in error
    assert last is None or last in error.splitlines()[-1]
    if line and len(error) < 3900:
        assert f'File "<snippet>", line {line}' in error


def test_source_lines_and_turns_are_named(box):
    with box.session() as session:
        session.run("def f(x):\n    return 1 / x")
        error = session.run("\nf(0)").error
    assert 'File "<turn 2>", line 2, in <module>\n    f(0)' in error
    assert 'File "<turn 1>", line 2, in f\n    return 1 / x' in error


def test_library_frames_keep_their_own_names(box):
    error = box.run(CODES["in a library"][0]).error
    assert 'File "sympy/polys/' in error


@pytest.mark.parametrize(
    "code, text",
    [
        ("while True: pass", "TimeoutError: stopped after 0.4 s of CPU time"),
        ("import time; time.sleep(9)", "TimeoutError: stopped after 0.8 s"),
        ("import os; os.abort()", "RuntimeError: the process was ended by SIGABRT (a fatal error of the interpreter)"),
        ("import os; os._exit(3)", "RuntimeError: the process left with status 3 before the end"),
        ("while True: print(1)", "OutputLimit: stopped after more than 256 KiB"),
        ("open('x.txt', 'w')", "PermissionError: [Errno 13] Permission denied: 'x.txt'"),
        ("import os; os.fork()", "PermissionError: [Errno 1] Operation not permitted"),
    ],
)
def test_limits_and_refusals_are_named(code, text, tight):
    assert tight.run(code).error.splitlines()[-1] == text


def test_printed_text_survives_a_kill(tight):
    result = tight.run("print('before')\nwhile True: pass")
    assert result.timed_out and result.stdout == "before\n"
