"""Our engine and step against TRL's ``GRPOTrainer(tools=[...])``: interleaved in one process, step by step.

    python benchmarks/vs_trl.py                               # three loads, three tools each
    python benchmarks/vs_trl.py --case short --tool plain     # one of them
    python benchmarks/vs_trl.py --case middle --base FOLDER --problems 2 --steps 3                # a real model

Same weights, prompts, group size, temperature, turn and token limits, loss and number of updates. Ours runs the tool's
code in its sandbox, as it always does. TRL's runs it in its own process with the tool ``plain``, as its users write
one, and in a sandbox like ours with the tool ``same``. The calls are sums, for which our sandbox needs no process;
``child`` is ``plain`` with a process for each of our rollouts, as for all other code. A group's reward is a coin's, so
that both sides make the full update; the learning rate is so small that the weights stay. Needs ``pip install -e
'.[trl]'``. Writes ``benchmarks/results/``. On a GPU, with 4-bit weights of a large shape: ``python benchmarks/gpu.py
trl-middle``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hermes
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig
from step import of, server_seconds
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from gtpo_mini.credit import ARMS
from gtpo_mini.policy.load import load_policy
from gtpo_mini.rollout.chat import Chat
from gtpo_mini.rollout.engine import RolloutEngine
from gtpo_mini.sandbox import Sandbox, Session
from gtpo_mini.tasks.task import Task
from gtpo_mini.train.config import TrainConfig
from gtpo_mini.train.metrics import run_header
from gtpo_mini.train.trainer import Trainer

GROUP, RANK = 8, 16
TOOLS = ("plain", "same", "child")
RATIOS = ("rollout", "update", "step", "rollout_cpu", "step_cpu")
RESULTS = Path(__file__).parent / "results"
MODELS = Path(__file__).parents[1] / "results" / "benchmarks"


@dataclass(frozen=True)
class Case:
    """What both sides run."""

    load: hermes.Load
    folder: Path
    tool: str
    steps: int
    problems: int
    quantize: str | None
    device: str

    def task(self) -> Task:
        return hermes.coin_task(128, self.load.words)


def chat_template() -> str:
    """TRL's own for Qwen2.5, which both sides use."""
    return (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text("utf-8")


class Watch:
    """Seconds of a step and of its rollouts: wall, and CPU, which other work on the machine changes less."""

    def begin(self) -> None:
        self.start, self.servers = self._now(), server_seconds()

    def rollout(self, generate: Callable) -> Any:
        begin = self._now()
        found = generate()
        self.spent = self._since(begin)
        return found

    def end(self) -> dict[str, float]:
        step, rollout = self._since(self.start), self.spent
        time.sleep(0.2)  # a sandbox's last children count when they have ended
        servers = server_seconds() - self.servers  # all of it is the rollouts'
        wall = {"rollout": rollout[0], "step": step[0], "update": step[0] - rollout[0]}
        return {**wall, "rollout_cpu": rollout[1] + servers, "step_cpu": step[1] + servers}

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def _since(self, begin: tuple[float, float]) -> list[float]:
        return [now - then for now, then in zip(self._now(), begin, strict=True)]


class Engine(RolloutEngine):
    """Ours with a stopwatch."""

    watch = Watch()

    def generate(self, *args, **kwargs):
        return self.watch.rollout(lambda: super(Engine, self).generate(*args, **kwargs))


class Children(Sandbox):
    """A sandbox that runs sums in a child too."""

    def session(self) -> Session:
        session = super().session()
        session._names = None
        return session


class Ours:
    """One GRPO step of this package at a time, and what it cost."""

    def __init__(self, case: Case) -> None:
        policy = load_policy(case.folder, case.quantize, device=case.device, lora_rank=RANK if case.quantize else None)
        protocol, load = hermes.BenchProtocol(), case.load
        self.sandbox = Children() if case.tool == "child" else Sandbox()
        prompt = max(len(Chat(policy, protocol).encode_prompt(problem)) for problem in case.task().problems)
        # TRL's budget for all of a completion, tool text included, is its budget for one turn.
        config = TrainConfig(
            credit=ARMS["grpo"], problems_per_step=case.problems, group_size=GROUP, learning_rate=1e-9,
            max_turns=load.calls + 2, max_turn_tokens=load.tokens, max_context=prompt + load.tokens,
            tokens_per_pass=4096, gradient_checkpointing=bool(case.quantize),
        )  # fmt: skip
        self.trainer = Trainer(policy, case.task(), config)
        self.engine = Engine(policy, protocol, self.sandbox, config.sampling())
        self.lines: list[dict] = []

    def step(self) -> None:
        self.engine.watch.begin()
        self.trainer.step(self.engine, len(self.lines))
        spent = self.engine.watch.end()
        rollouts = self.trainer.last[0]
        times = []
        for arm in ("grpo", "gtpo"):
            begin = time.perf_counter()
            ARMS[arm](rollouts, [random.random() < 0.5 for _ in rollouts], GROUP)
            times.append(time.perf_counter() - begin)
        self.lines.append(
            {
                **spent,
                "tokens": sum(sum(r.loss_mask) for r in rollouts),
                "calls": sum(len(r.turns) - 1 for r in rollouts),  # whose result entered, as counted below
                "prompt_tokens": statistics.fmean(rollout.prompt_length for rollout in rollouts),
                "gtpo_over_grpo": (times[1] - times[0]) / spent["step"],
            }
        )


class Theirs(GRPOTrainer):
    """TRL's trainer with a stopwatch around its rollouts."""

    watch = Watch()

    def _generate(self, prompts):
        found = self.watch.rollout(lambda: super(Theirs, self)._generate(prompts))
        mask = found[2] or [[1] * len(ids) for ids in found[1]]
        self.line = {
            "tokens": sum(map(sum, mask)),
            "calls": sum(m["role"] == "tool" for messages in found[3] for m in messages),
            "prompt_tokens": statistics.fmean(map(len, found[0])),
            "rollouts": len(found[1]),
        }
        return found


class Interleave(TrainerCallback):
    """After each of TRL's steps, one of ours; the first of each is a warm-up."""

    def __init__(self, ours: Ours | None) -> None:
        self.ours, self.lines, self.trainer = ours, [], None

    def on_step_begin(self, *args, **kwargs) -> None:
        self.trainer.watch.begin()

    def on_step_end(self, *args, **kwargs) -> None:
        line = self.trainer.line
        line.update(self.trainer.watch.end())
        self.lines.append(line)
        if self.ours is None:
            return
        self.ours.step()
        print(
            f"  TRL rollout {line['rollout']:.2f} s step {line['step']:.2f} s, {line['calls']} calls, {line['tokens']} "
            f"tokens | ours " + json.dumps({k: round(v, 4) for k, v in self.ours.lines[-1].items()}),
            file=sys.stderr, flush=True,
        )  # fmt: skip


def theirs(case: Case, folder: str, callback: Interleave) -> Theirs:
    """TRL's trainer for the case."""
    on_gpu, quantised, load = case.device != "cpu", {}, case.load
    rollouts = case.problems * GROUP
    if case.quantize:
        quantised = {"peft_config": LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")}
    config = GRPOConfig(
        output_dir=folder, use_cpu=not on_gpu, bf16=on_gpu, gradient_checkpointing=bool(case.quantize), beta=0.0,
        learning_rate=1e-9, per_device_train_batch_size=min(16, rollouts),
        gradient_accumulation_steps=max(1, rollouts // 16), num_generations=GROUP, max_completion_length=load.tokens,
        max_tool_calling_iterations=load.calls + 1, temperature=1.0, top_p=1.0, top_k=0, max_steps=case.steps + 1,
        report_to="none", save_strategy="no", logging_steps=10**6, disable_tqdm=True, log_completions=False,
    )  # fmt: skip
    model, tokenizer = hermes.load_parts(case.folder, case.quantize, case.device)
    data = [{"prompt": [{"role": "user", "content": p.question}]} for p in case.task().problems]
    tool = hermes.in_sandbox(Sandbox()) if case.tool == "same" else hermes.python
    return Theirs(
        model=model, processing_class=tokenizer, args=config, tools=[tool], **quantised,
        train_dataset=Dataset.from_list(data), callbacks=[callback],
        reward_funcs=lambda completions, **_: [float(random.random() < 0.5) for _ in completions],
    )  # fmt: skip


def compare(case: Case, side: str) -> dict:
    """Run ``steps`` pairs of steps after one pair of warm-up, or one side alone."""
    ours = None if side == "trl" else Ours(case)
    if side == "ours":
        for _ in range(case.steps + 1):
            ours.step()
        return {"ours": ours.lines[1:] or ours.lines}
    interleave = Interleave(ours)
    with tempfile.TemporaryDirectory() as output:
        trainer = theirs(case, output, interleave)
        interleave.trainer = trainer
        trainer.train()
    return {"ours": ours.lines[1:] if ours else [], "trl": interleave.lines[1:] or interleave.lines}


def peak_mib(device: str) -> float:
    """Of this process, so far: what torch held on a GPU, or all of its memory."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage: its peak is the parent's, where that was larger.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**10


def summary(lines: dict[str, list[dict]]) -> dict:
    """Medians and ranges a side, and the ratios of pairs of steps."""

    rollouts = lines["trl"][0]["rollouts"]
    sides = {}
    for side, steps in lines.items():
        sides[side] = {key: of([step[key] for step in steps]) for key in steps[0] if key != "rollouts"}
        sides[side]["rollouts_per_s"] = of([rollouts / step["rollout"] for step in steps])
        for key in ("tokens", "calls"):
            sides[side][f"{key}_per_rollout"] = of([step[key] / rollouts for step in steps])
        sides[side]["tokens_per_s"] = of([step["tokens"] / step["rollout"] for step in steps])
        sides[side]["steps_per_s"] = of([1 / step["step"] for step in steps])
    pairs = list(zip(lines["trl"], lines["ours"], strict=True))
    ratios = {key: of([theirs[key] / ours[key] for theirs, ours in pairs]) for key in RATIOS}
    # Per token, where the two sides happened to sample different amounts.
    ratios["rollout_per_token"] = of([t["rollout"] / t["tokens"] * o["tokens"] / o["rollout"] for t, o in pairs])
    return {"sides": sides, "trl_over_ours": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=hermes.LOADS, help="prompt and calls; without it, all")
    parser.add_argument("--tool", choices=TOOLS, help="where code runs; without it, all")
    parser.add_argument("--steps", type=int, default=7, help="pairs, after one of warm-up; 0: that one alone")
    parser.add_argument("--base", type=Path, help="a model with ChatML tokens to teach, in place of a new tiny one")
    parser.add_argument("--problems", type=int, default=8, help=f"groups of {GROUP} a step; 1, or an even number")
    parser.add_argument("--words", type=int, help="of text before a question, in place of the case's")
    parser.add_argument("--side", choices=("both", "ours", "trl"), default="both", help="one alone: prints its steps")
    args = parser.parse_args()
    if not (args.case and args.tool):
        cases = [args.case] if args.case else hermes.LOADS
        tools = [args.tool] if args.tool else TOOLS
        for case, tool in itertools.product(cases, tools):
            options = [] if args.case else ["--case", case]
            options += [] if args.tool else ["--tool", tool]
            subprocess.run([sys.executable, *sys.argv, *options], check=True)
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    load = hermes.LOADS[args.case]
    model = args.base.name if args.base else "tiny"
    folder = MODELS / f"{model}-{args.case}"
    if not folder.is_dir():
        hermes.make_model(folder, load, chat_template(), args.base, device=device)
    if args.words is not None:
        load = replace(load, words=args.words)
    case = Case(load, folder, args.tool, args.steps, args.problems, None, device)
    if args.side != "both":
        before = peak_mib(device)
        lines = compare(case, args.side)
        print(json.dumps({"before": before, "peak": peak_mib(device), "steps": lines[args.side]}))
        return
    load_average = os.getloadavg()
    header = run_header(TrainConfig(), "hermes", "coin", device)  # before the run: the tree may change meanwhile
    words = [arg if arg != str(args.base) else model for arg in sys.argv[1:]]
    lines = compare(case, "both")
    name = f"{folder.name}-{args.tool}"
    record = {
        "case": name,
        "command": " ".join(["python benchmarks/vs_trl.py", *words]),
        **{key: header[key] for key in ("commit", "versions", "device", "threads")},
        "load_average": load_average,  # at the start; above 1: other work ran beside it
        **summary(lines),
        "steps": lines,
    }
    record["versions"]["trl"] = trl.__version__
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"vs_trl-{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    for key, value in record["trl_over_ours"].items():
        print(f"{name}: TRL / ours, {key}: {value['median']:.2f} [{value['min']:.2f}, {value['max']:.2f}]", flush=True)


if __name__ == "__main__":
    main()
