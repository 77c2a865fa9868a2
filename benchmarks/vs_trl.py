"""Our engine and step against TRL's ``GRPOTrainer(tools=[...])``: interleaved in one process, step by step.

    python benchmarks/vs_trl.py --path generate --tool fast --steps 5
    python benchmarks/vs_trl.py --path generate --shape Qwen2.5-1.5B --quantize nf4 --tokens 1024     # on a GPU

Same weights, prompts, group size, temperature, turn and token limits, tool, loss and number of updates. A group's
reward is a coin's, so that both sides make the full update; the learning rate is so small that the weights stay.
Peak memory is that of a process that runs one side alone.
Needs ``pip install -e '.[bench]'``. Writes ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import hermes
import torch
import transformers
import trl
from datasets import Dataset
from memory_table import SHAPES
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from gtpo_mini.credit import ARMS
from gtpo_mini.policy.load import load_policy
from gtpo_mini.rollout.chat import Chat
from gtpo_mini.rollout.engine import RolloutEngine
from gtpo_mini.train.config import TrainConfig
from gtpo_mini.train.metrics import run_header
from gtpo_mini.train.trainer import Trainer

GROUP, CALLS, RANK = 8, 3, 16
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """What both sides run."""

    path: str
    tool: str
    steps: int
    folder: Path
    problems: int
    tokens: int
    quantize: str | None
    device: str

    @property
    def name(self) -> str:
        return "-".join(filter(None, [self.folder.name, self.quantize, self.path, self.tool]))

    @property
    def command(self) -> list[str]:
        """Arguments that make it again."""
        options = {"model": self.folder, "path": self.path, "tool": self.tool, "steps": self.steps,
                   "problems": self.problems, "tokens": self.tokens, "quantize": self.quantize}  # fmt: skip
        return [x for name, value in options.items() if value is not None for x in (f"--{name}", str(value))]

    @property
    def tool_and_workers(self) -> tuple:
        return (hermes.python, 2) if self.tool == "fast" else (hermes.slow_python, 8)


class Ours:
    """One GRPO step of this package at a time, and what it cost."""

    def __init__(self, case: Case) -> None:
        policy = load_policy(case.folder, case.quantize, device=case.device, lora_rank=RANK if case.quantize else None)
        protocol = hermes.BenchProtocol()
        prompt = len(Chat(policy, protocol).encode_prompt(hermes.coin_task(1).problems[0]))
        # TRL's budget for all of a completion, tool text included, is its budget for one turn.
        config = TrainConfig(
            credit=ARMS["grpo"], problems_per_step=case.problems, group_size=GROUP, learning_rate=1e-9,
            max_turns=CALLS + 1, max_turn_tokens=case.tokens, max_context=prompt + case.tokens, tokens_per_pass=4096,
            gradient_checkpointing=bool(case.quantize),
        )  # fmt: skip
        self.trainer = Trainer(policy, hermes.coin_task(64), config)
        box = hermes.ToolBox(*case.tool_and_workers)
        self.engine = RolloutEngine(policy, protocol, box, config.sampling())
        self.lines: list[dict] = []

    def step(self) -> None:
        metrics = self.trainer.step(self.engine, len(self.lines))
        rollouts = self.trainer.last[0]
        times = []
        for arm in ("grpo", "gtpo"):
            begin = time.perf_counter()
            ARMS[arm](rollouts, [random.random() < 0.5 for _ in rollouts], GROUP)
            times.append(time.perf_counter() - begin)
        self.lines.append(
            {
                "rollout": metrics["time/rollout"],
                "score": metrics["time/score"],
                "update": metrics["time/update"],
                "step": metrics["time/step"],
                "tokens": sum(sum(r.loss_mask) for r in rollouts),
                "calls": sum(len(r.turns) - 1 for r in rollouts),  # whose result entered, as counted below
                "prompt_tokens": rollouts[0].prompt_length,
                "gtpo_over_grpo": (times[1] - times[0]) / metrics["time/step"],
            }
        )


class Theirs(GRPOTrainer):
    """TRL's trainer with a stopwatch around its rollouts."""

    def _generate(self, prompts):
        begin = time.perf_counter()
        found = super()._generate(prompts)
        mask = found[2] or [[1] * len(ids) for ids in found[1]]
        self.line = {
            "rollout": time.perf_counter() - begin,
            "tokens": sum(map(sum, mask)),
            "calls": sum(m["role"] == "tool" for messages in found[3] for m in messages),
            "prompt_tokens": len(found[0][0]),
            "rollouts": len(found[1]),
        }
        return found


class Interleave(TrainerCallback):
    """After each of TRL's steps, one of ours; the first of each is a warm-up."""

    def __init__(self, ours: Ours | None) -> None:
        self.ours, self.lines, self.trainer = ours, [], None

    def on_step_begin(self, *args, **kwargs) -> None:
        self.begin = time.perf_counter()

    def on_step_end(self, *args, **kwargs) -> None:
        line = self.trainer.line
        line["step"] = time.perf_counter() - self.begin
        line["update"] = line["step"] - line["rollout"]
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
    on_gpu, quantised = case.device != "cpu", {}
    if case.quantize:
        quantised = {"peft_config": LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")}
    config = GRPOConfig(
        output_dir=folder, use_cpu=not on_gpu, bf16=on_gpu, gradient_checkpointing=bool(case.quantize), beta=0.0,
        learning_rate=1e-9,
        per_device_train_batch_size=16, gradient_accumulation_steps=case.problems * GROUP // 16,
        num_generations=GROUP, max_completion_length=case.tokens, max_tool_calling_iterations=CALLS,
        temperature=1.0, top_p=1.0, top_k=0, max_steps=case.steps + 1, report_to="none", save_strategy="no",
        logging_steps=10**6, disable_tqdm=True, log_completions=False,
        use_transformers_continuous_batching=case.path == "batching",
    )  # fmt: skip
    model, tokenizer = hermes.load_parts(case.folder, case.quantize, case.device)
    data = [{"prompt": [{"role": "user", "content": p.question}]} for p in hermes.coin_task(64).problems]
    return Theirs(
        model=model, processing_class=tokenizer, args=config, tools=[case.tool_and_workers[0]], **quantised,
        train_dataset=Dataset.from_list(data), callbacks=[callback],
        reward_funcs=lambda completions, **_: [float(random.random() < 0.5) for _ in completions],
    )  # fmt: skip


def compare(case: Case, side: str) -> dict:
    """Run ``steps`` pairs of steps after one pair of warm-up, or one side alone."""
    ours = None if side == "trl" else Ours(case)
    if side == "ours":
        for _ in range(case.steps + 1):
            ours.step()
        return {"ours": ours.lines[1:]}
    interleave = Interleave(ours)
    with tempfile.TemporaryDirectory() as output:
        trainer = theirs(case, output, interleave)
        interleave.trainer = trainer
        trainer.train()
    return {"ours": ours.lines[1:] if ours else [], "trl": interleave.lines[1:]}


def peak_mib(device: str) -> float:
    """Of this process, so far: what torch held on a GPU, or all of its memory."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage: its peak is the parent's, where that was larger.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**10


def peak_alone(case: Case, side: str) -> dict[str, float]:
    """MiB of a process that imports everything and loads nothing, and its peak over three steps of one side."""
    command = [sys.executable, __file__, *replace(case, steps=2).command, "--side", side]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = "killed: out of memory?" if done.returncode == -signal.SIGKILL else done.stderr[-2000:]
        raise SystemExit(f"{' '.join(command[1:])} failed: {why}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(lines: dict[str, list[dict]]) -> dict:
    """Medians and ranges a side, and the ratios of pairs of steps."""

    def of(values: list[float]) -> dict:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    rollouts = lines["trl"][0]["rollouts"]
    sides = {}
    for side, steps in lines.items():
        sides[side] = {key: of([step[key] for step in steps]) for key in steps[0] if key != "rollouts"}
        sides[side]["rollouts_per_s"] = of([rollouts / step["rollout"] for step in steps])
        sides[side]["tokens_per_s"] = of([step["tokens"] / step["rollout"] for step in steps])
        sides[side]["steps_per_s"] = of([1 / step["step"] for step in steps])
    pairs = list(zip(lines["trl"], lines["ours"], strict=True))
    ratios = {key: of([theirs[key] / ours[key] for theirs, ours in pairs]) for key in ("rollout", "update", "step")}
    # Per token, where the two sides happened to sample different amounts.
    ratios["rollout_per_token"] = of([t["rollout"] / t["tokens"] * o["tokens"] / o["rollout"] for t, o in pairs])
    return {"sides": sides, "trl_over_ours": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", choices=("generate", "batching"), help="one of TRL's ways; without it, all cases")
    parser.add_argument("--tool", choices=("fast", "slow"), default="fast", help="slow: a subprocess of about 50 ms")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--model", type=Path, help="folder of the model; made (in minutes) if it is not there")
    parser.add_argument("--base", type=Path, help="a model with ChatML tokens to make it from, in place of a tiny one")
    parser.add_argument("--shape", choices=SHAPES, help="make it of this shape, from random weights")
    parser.add_argument("--quantize", choices=("nf4",), help=f"4-bit weights with LoRA of rank {RANK}, on both sides")
    parser.add_argument("--problems", type=int, default=8, help=f"groups of {GROUP} a step; an even number")
    parser.add_argument("--tokens", type=int, default=128, help="that a rollout may have after its prompt")
    parser.add_argument(
        "--side", choices=("both", "ours", "trl"), default="both", help="one alone: only its peak memory"
    )
    parser.add_argument(
        "--limit", type=int, default=300, help="seconds a case may take, after which it is recorded as unfinished"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = args.model or Path(__file__).parent / (args.shape or "tiny")
    if not folder.is_dir():
        template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
        hermes.make_model(folder, template.read_text(encoding="utf-8"), args.base, SHAPES.get(args.shape), device)
    RESULTS.mkdir(exist_ok=True)
    case = Case(args.path, args.tool, args.steps, folder, args.problems, args.tokens, args.quantize, device)
    if args.path is None:
        for path, tool in (("generate", "fast"), ("generate", "slow"), ("batching", "fast")):
            case = replace(case, path=path, tool=tool)
            try:
                subprocess.run([sys.executable, __file__, *case.command], check=True, timeout=args.limit)
            except subprocess.TimeoutExpired:
                record = {"case": case.name, "unfinished_after_s": args.limit, "steps": args.steps}
                (RESULTS / f"vs_trl-{case.name}.json").write_text(json.dumps(record, indent=1) + "\n")
                print(f"{path}, {tool} tool: not finished in {args.limit} s", flush=True)
        return
    if args.side != "both":
        before = peak_mib(device)
        compare(case, args.side)
        print(json.dumps({"before": before, "peak": peak_mib(device)}))
        return
    header = run_header(TrainConfig(), "hermes", "coin", device)  # before the run: the tree may change meanwhile
    # Before this process holds both: with a real model there is no room for a third.
    memory = {side: peak_alone(case, side) for side in ("ours", "trl")}
    lines = compare(case, "both")
    record = {
        "case": case.name,
        "command": " ".join(["python benchmarks/vs_trl.py", *replace(case, folder=Path(folder.name)).command]),
        "commit": header["commit"],
        "versions": {**header["versions"], "trl": trl.__version__},
        "device": "cpu, 1 thread" if device == "cpu" else torch.cuda.get_device_name(),
        "tool_workers": case.tool_and_workers[1],
        "peak_mib_alone": memory,
        **summary(lines),
        "steps": lines,
    }
    (RESULTS / f"vs_trl-{case.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    for key, value in record["trl_over_ours"].items():
        spread = f"{value['median']:.2f} [{value['min']:.2f}, {value['max']:.2f}]"
        print(f"{case.name}: TRL / ours, {key}: {spread}", flush=True)
    share = record["sides"]["ours"]["gtpo_over_grpo"]
    print(f"GTPO's own part of a step: {share['median']:.2%} [{share['min']:.2%}, {share['max']:.2%}]", flush=True)
    words = [f"{side} {found['peak']:.0f} MiB ({found['before']:.0f} before)" for side, found in memory.items()]
    print(f"peak memory of each side alone: {', '.join(words)}", flush=True)


if __name__ == "__main__":
    main()
