"""Our engine and step against TRL's ``GRPOTrainer(tools=[...])``: interleaved in one process, step by step.

    python benchmarks/vs_trl.py --path generate --tool fast --steps 5

Same weights, prompts, group size, temperature, turn and token limits, tool, loss and number of updates. A group's
reward is a coin's, so that both sides make the full update; the learning rate is so small that the weights stay.
Needs ``pip install -e '.[bench]'``. Writes ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import hermes
import torch
import transformers
import trl
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from gtpo_mini.chat import Chat
from gtpo_mini.metrics import run_header
from gtpo_mini.rollout import RolloutEngine
from gtpo_mini.trainer import TrainConfig, Trainer, score

GROUP, TURN_TOKENS, CALLS = 8, 128, 3
RESULTS = Path(__file__).parent / "results"


class Ours:
    """One GRPO step of this package at a time, and what it cost."""

    def __init__(self, folder: Path, tool, workers: int, problems: int) -> None:
        policy = hermes.load(folder)
        prompt = len(Chat(policy, hermes.BenchProtocol()).encode_prompt(hermes.coin_task(1).problems[0]))
        # TRL's budget for all of a completion, tool text included, is its budget for one turn.
        config = TrainConfig(
            method="grpo", alpha=0.0, problems_per_step=problems, group_size=GROUP, learning_rate=1e-9,
            max_turns=CALLS + 1, max_turn_tokens=TURN_TOKENS, max_context=prompt + TURN_TOKENS, tokens_per_pass=4096,
        )  # fmt: skip
        self.trainer = Trainer(policy, hermes.coin_task(64), config)
        box = hermes.ToolBox(tool, workers)
        self.engine = RolloutEngine(policy, hermes.BenchProtocol(), box, config.sampling())
        self.lines: list[dict] = []

    def step(self) -> None:
        metrics = self.trainer.step(self.engine, len(self.lines))
        rollouts = self.trainer.last[0]
        times = []
        for config in (self.trainer.config, replace(self.trainer.config, method="gtpo", alpha=0.5)):
            begin = time.perf_counter()
            score(config, rollouts, [random.random() < 0.5 for _ in rollouts])
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

    def __init__(self, ours: Ours) -> None:
        self.ours, self.lines, self.trainer = ours, [], None

    def on_step_begin(self, *args, **kwargs) -> None:
        self.begin = time.perf_counter()

    def on_step_end(self, *args, **kwargs) -> None:
        line = self.trainer.line
        line["step"] = time.perf_counter() - self.begin
        line["update"] = line["step"] - line["rollout"]
        self.lines.append(line)
        self.ours.step()
        print(
            f"  TRL rollout {line['rollout']:.2f} s step {line['step']:.2f} s, {line['calls']} calls, {line['tokens']} "
            f"tokens | ours " + json.dumps({k: round(v, 4) for k, v in self.ours.lines[-1].items()}),
            file=sys.stderr, flush=True,
        )  # fmt: skip


def compare(path: str, tool, workers: int, steps: int, folder: Path, problems: int) -> dict:
    """Run ``steps`` pairs of steps after one pair of warm-up."""
    ours = Ours(folder, tool, workers, problems)
    interleave = Interleave(ours)
    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output, use_cpu=True, bf16=False, gradient_checkpointing=False, learning_rate=1e-9, beta=0.0,
            per_device_train_batch_size=16, gradient_accumulation_steps=problems * GROUP // 16,
            num_generations=GROUP, max_completion_length=TURN_TOKENS, max_tool_calling_iterations=CALLS,
            temperature=1.0, top_p=1.0, top_k=0, max_steps=steps + 1, report_to="none", save_strategy="no",
            logging_steps=10**6, disable_tqdm=True, log_completions=False,
            use_transformers_continuous_batching=path == "batching",
        )  # fmt: skip
        model, tokenizer = hermes.load_parts(folder)
        data = [{"prompt": [{"role": "user", "content": p.question}]} for p in hermes.coin_task(64).problems]
        trainer = Theirs(
            model=model, processing_class=tokenizer, args=config, tools=[tool],
            train_dataset=Dataset.from_list(data), callbacks=[interleave],
            reward_funcs=lambda completions, **_: [float(random.random() < 0.5) for _ in completions],
        )  # fmt: skip
        interleave.trainer = trainer
        trainer.train()
    return {"ours": ours.lines[1:], "trl": interleave.lines[1:]}


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
    parser.add_argument("--problems", type=int, default=8, help=f"groups of {GROUP} a step; an even number")
    parser.add_argument(
        "--limit", type=int, default=300, help="seconds a case may take, after which it is recorded as unfinished"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    folder = args.model or Path(__file__).parent / "tiny"
    if not folder.is_dir():
        template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
        hermes.make_model(folder, template.read_text(encoding="utf-8"), args.base)
    RESULTS.mkdir(exist_ok=True)
    if args.path is None:
        for path, tool in (("generate", "fast"), ("generate", "slow"), ("batching", "fast")):
            options = {"path": path, "tool": tool, "steps": args.steps, "problems": args.problems, "model": folder}
            try:
                command = [x for name, value in options.items() for x in (f"--{name}", str(value))]
                subprocess.run([sys.executable, __file__, *command], check=True, timeout=args.limit)
            except subprocess.TimeoutExpired:
                record = {"case": f"{folder.name}-{path}-{tool}", "unfinished_after_s": args.limit, "steps": args.steps}
                (RESULTS / f"vs_trl-{folder.name}-{path}-{tool}.json").write_text(json.dumps(record, indent=1) + "\n")
                print(f"{path}, {tool} tool: not finished in {args.limit} s", flush=True)
        return
    tool, workers = (hermes.python, 2) if args.tool == "fast" else (hermes.slow_python, 8)
    header = run_header(TrainConfig(), "hermes", "coin", "cpu")  # before the run: the tree may change meanwhile
    lines = compare(args.path, tool, workers, args.steps, folder, args.problems)
    record = {
        "case": f"{folder.name}-{args.path}-{args.tool}",
        "command": f"python benchmarks/vs_trl.py --model {folder.name} --path {args.path} --tool {args.tool} "
        f"--steps {args.steps} --problems {args.problems}",
        "commit": header["commit"],
        "versions": {**header["versions"], "trl": trl.__version__},
        "device": "cpu, 1 thread",
        "tool_workers": workers,
        "peak_gib_of_both": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        **summary(lines),
        "steps": lines,
    }
    (RESULTS / f"vs_trl-{record['case']}.json").write_text(json.dumps(record, indent=1) + "\n")
    for key, value in record["trl_over_ours"].items():
        spread = f"{value['median']:.2f} [{value['min']:.2f}, {value['max']:.2f}]"
        print(f"{args.path}, {args.tool} tool: TRL / ours, {key}: {spread}", flush=True)
    share = record["sides"]["ours"]["gtpo_over_grpo"]
    print(f"GTPO's own part of a step: {share['median']:.2%} [{share['min']:.2%}, {share['max']:.2%}]", flush=True)


if __name__ == "__main__":
    main()
