"""Where a step of the ``cpu`` profile goes, on one core, and how far it is from its arithmetic.

    python benchmarks/step.py --against COMMIT

The floor is what the matrix products of the step cost alone: torch counts their FLOPs, and the rate is measured in the
same run at the same shapes. ``--against COMMIT`` runs that commit's package beside this one, step by step in turn, each
in a process of its own on the same core. Writes ``benchmarks/results/step.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = {
    "linear": ("aten::mm", "aten::addmm"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_softmax"),
    "sampling": ("aten::_log_softmax", "aten::cumsum", "aten::searchsorted", "aten::gather"),
}


def tree_seconds(pid: str) -> float:
    """CPU seconds of a process and of the children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def server_seconds() -> float:
    """CPU seconds of this process's children, the sandbox's servers, and of theirs that have ended."""
    return sum(map(tree_seconds, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


class Worker:
    """One package's step at a time, in this process."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        from gtpo_mini.policy.load import load_policy
        from gtpo_mini.rollout.engine import RolloutEngine
        from gtpo_mini.rollout.protocol import load_protocol
        from gtpo_mini.sandbox import Sandbox
        from gtpo_mini.tasks.task import load_task
        from gtpo_mini.train.config import load_profile
        from gtpo_mini.train.trainer import Trainer

        config = load_profile("cpu").train
        self.sandbox = Sandbox()
        self.trainer = Trainer(load_policy("tiny"), load_task("branching"), config)
        self.engine = RolloutEngine(self.trainer.policy, load_protocol(), self.sandbox, config.sampling())
        self.steps = 0

    def step(self) -> dict[str, float]:
        """Seconds of one step; ``cpu/sandbox`` is that of the fork server and the children that ended meanwhile."""
        before, begin = server_seconds(), time.process_time()
        metrics = self.trainer.step(self.engine, self.steps)
        self.steps += 1
        found = {key.removeprefix("time/"): metrics[key] for key in metrics if key.startswith("time/")}
        return {**found, "cpu/trainer": time.process_time() - begin, "cpu/sandbox": server_seconds() - before}

    def parts(self) -> dict[str, float]:
        """Seconds of decoding by kind of operation, and of the update's passes; the profiler itself adds to them."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU]) as seen:
            metrics = self.step()
        kinds = dict.fromkeys((*KINDS, "backward", "optimiser", "other operations"), 0.0)
        for event in seen.key_averages():
            kind = next((kind for kind, names in KINDS.items() if event.key in names), "other operations")
            if "Backward" in event.key:
                kind = "backward"
            elif "Optimizer" in event.key or "_fused_adam" in event.key or "_foreach" in event.key:
                kind = "optimiser"
            kinds[kind] += event.self_cpu_time_total / 1e6
        kinds["Python"] = metrics["cpu/trainer"] - sum(kinds.values())
        return kinds

    def calls(self) -> dict[str, float]:
        """Milliseconds to open a session, of one of four calls, and to close it, where nothing else runs."""
        times = {"open": [], "call": [], "close": []}
        for _ in range(50):
            begin = time.perf_counter()
            session = self.sandbox.session()
            opened = time.perf_counter()
            for code in ("x = 12 * 7\nprint(x)", "print(x - 5)", "y = x // 3\nprint(y)", "print(y % 7)"):
                session.run(code)
            ran = time.perf_counter()
            session.close()
            for key, seconds in zip(
                times, (opened - begin, (ran - opened) / 4, time.perf_counter() - ran), strict=True
            ):
                times[key].append(seconds)
        return {key: 1000 * statistics.median(values) for key, values in times.items()}

    def floor(self) -> dict[str, float]:
        """FLOPs of a step's matrix products, the rates at their shapes, and the seconds that they take alone."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        trainer, config = self.trainer, self.trainer.config
        with FlopCounterMode(display=False) as decode:
            rollouts = self.engine.generate(trainer.problems(self.steps), config.group_size, seed=self.steps)
        advantages = [[1.0] * len(rollout.turns) for rollout in rollouts]
        with FlopCounterMode(display=False) as update:
            trainer.update(rollouts, advantages, self.steps)
        weight = trainer.policy.plain.get_decoder().layers[0].mlp.gate_proj.weight.detach()
        rates = {}
        for name, rows in (("decode", len(rollouts)), ("update", config.tokens_per_pass)):
            x = torch.randn(rows, weight.shape[1])
            times = []
            for _ in range(200 if rows < 1000 else 30):
                begin = time.perf_counter()
                x @ weight.T
                times.append(time.perf_counter() - begin)
            rates[name] = 2 * x.numel() * len(weight) / statistics.median(times)
        flops = {"decode": decode.get_total_flops(), "update": update.get_total_flops()}
        seconds = {name: flops[name] / rates[name] for name in flops}
        return {
            **{f"flops/{name}": value for name, value in flops.items()},
            **{f"rate/{name}": value for name, value in rates.items()},
            **{f"floor/{name}": value for name, value in seconds.items()},
            "floor": sum(seconds.values()),
        }


def work() -> None:
    """Answer requests, one name of a method a line."""
    answers, sys.stdout = sys.stdout, sys.stderr
    worker = Worker()
    for name in sys.stdin:
        print(json.dumps(getattr(worker, name.strip())()), file=answers, flush=True)


class Remote:
    """A worker in a process of its own, with the package in ``folder``."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, name: str) -> dict[str, float]:
        print(name, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@contextlib.contextmanager
def checkout(commit: str):
    """A folder with the package as it was."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


def of(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", help="run this commit's package in turn with this one's")
    parser.add_argument("--steps", type=int, default=9, help="pairs of steps, after two of warm-up")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="which core all of it runs on")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work()
    os.sched_setaffinity(0, {args.core})
    with contextlib.ExitStack() as stack:
        sides = {"now": Remote(ROOT)}
        if args.against:
            sides["before"] = Remote(stack.enter_context(checkout(args.against)))
        lines: dict[str, list[dict]] = {name: [] for name in sides}
        for number in range(args.steps + 2):
            for name, side in sides.items():
                found = side.ask("step")
                lines[name] += [found] if number > 1 else []
        floor, parts, calls = (sides["now"].ask(name) for name in ("floor", "parts", "calls"))
    record = {
        "command": "python benchmarks/step.py" + (f" --against {args.against}" if args.against else ""),
        "sides": {name: {key: of([line[key] for line in found]) for key in found[0]} for name, found in lines.items()},
        "floor": floor,
        "over_floor": of([line["step"] / floor["floor"] for line in lines["now"]]),
        "parts_s": parts,
        "session_ms": calls,
    }
    if args.against:
        pairs = zip(lines["now"], lines["before"], strict=True)
        record["now_over_before"] = of([now["step"] / before["step"] for now, before in pairs])
    (ROOT / "benchmarks" / "results" / "step.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
