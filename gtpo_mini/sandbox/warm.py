"""Get the fork server ready: import and use ahead what snippets use, so that no child pays for it."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import sysconfig
import warnings

STANDARD = [
    "abc",
    "argparse",
    "array",
    "ast",
    "asyncio",
    "base64",
    "binascii",
    "bisect",
    "builtins",
    "calendar",
    "cmath",
    "collections.abc",
    "concurrent.futures",
    "contextlib",
    "copy",
    "csv",
    "ctypes",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "doctest",
    "enum",
    "fractions",
    "functools",
    "glob",
    "graphlib",
    "hashlib",
    "heapq",
    "html",
    "inspect",
    "io",
    "itertools",
    "json",
    "keyword",
    "linecache",
    "locale",
    "logging",
    "math",
    "numbers",
    "operator",
    "os",
    "pathlib",
    "pickle",
    "platform",
    "pprint",
    "queue",
    "random",
    "re",
    "secrets",
    "select",
    "shutil",
    "signal",
    "site",
    "socket",
    "statistics",
    "string",
    "struct",
    "subprocess",
    "sys",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "timeit",
    "tokenize",
    "traceback",
    "types",
    "typing",
    "unicodedata",
    "unittest",
    "uuid",
    "warnings",
    "weakref",
    "zoneinfo",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.ascii",
    "encodings.utf_16",
    "_strptime",
]

NUMPY = """import numpy as np
np.linalg.solve(np.eye(3) + 1.0, np.ones(3)); np.linalg.eig(np.eye(2)); np.random.default_rng(0).normal(size=3)
np.random.rand(2); np.fft.fft(np.ones(4)); np.polyfit([0, 1, 2], [0, 1, 4], 2); str(np.arange(4) / 3)
np.roots([1, 0, -1]); np.unique(np.array([1, 1])); np.einsum('ij,jk', np.eye(2), np.eye(2))"""

SYMPY = """import sympy as sp
x, y = sp.symbols('x y')
sp.solve(x**2 - 5*x + 6, x); sp.solve([x + y - 3, x - y - 1], [x, y]); sp.simplify(sp.sin(x)**2 + sp.cos(x)**2)
sp.integrate(x*sp.exp(x), x); sp.diff(sp.sin(x), x); sp.limit(sp.sin(x)/x, x, 0); sp.factor(x**4 - 1)
sp.expand((x + 1)**3); sp.series(sp.exp(x), x, 0, 3); sp.factorint(360); sp.isprime(97); sp.Rational(1, 3) + 1
sp.nsolve(sp.cos(x) - x, 1); sp.Matrix([[1, 2], [3, 4]]).inv(); sp.Matrix([[2, 1], [1, 2]]).eigenvals()
sp.sqrt(8).evalf(20); sp.sympify('x + 1'); sp.summation(x, (x, 1, 10)); sp.latex(x / 2); sp.lambdify(x, x + 1)(2)
sp.solve(x**3 - x, x); sp.solveset(x**2 - 1, x); sp.binomial(5, 2); sp.gcd(12, 18); sp.divisors(12); str(x**2)"""


def warm(config: dict) -> None:
    """Set the module path to ``config["site"]``, import, use, and seed. Adds ``config["roots"]``."""
    for name in ("OPENBLAS", "OMP", "MKL", "NUMEXPR", "VECLIB_MAXIMUM"):
        os.environ[f"{name}_NUM_THREADS"] = "1"  # a thread here would not survive the fork, its locks would
    config["roots"] = [*dict.fromkeys([*config["site"], *_standard_folders()])]
    sys.path += [path for path in config["site"] if path not in sys.path]
    warnings.simplefilter("ignore")
    for name in [*STANDARD, *config["preload"]]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.modules["site"].setquit()  # `exit()` and `quit()`, as in any interpreter
    sys.modules["site"].sethelper()
    for name, code in (("numpy", NUMPY), ("sympy", SYMPY)):
        if name in sys.modules:
            exec(code, {})
    seed()
    warnings.resetwarnings()
    sys.argv[:] = [""]
    sys.dont_write_bytecode = True


def _standard_folders() -> list[str]:
    paths = sysconfig.get_paths()
    return [os.path.realpath(paths[key]) for key in ("stdlib", "platstdlib")]


def seed() -> None:
    """The same start for every child, of this trainer and of the next."""
    import random

    random.seed(0)
    if "numpy" in sys.modules:
        import numpy

        numpy.random.seed(0)
    if "sympy" in sys.modules:
        import sympy.core.random

        sympy.core.random.seed(0)
