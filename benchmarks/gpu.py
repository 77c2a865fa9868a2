"""The GPU day: what this package does on a GPU, in blocks of at most nine minutes.

    python benchmarks/gpu.py                       # every block, each in a process of its own
    python benchmarks/gpu.py step-1.5B trl-short   # these
    python benchmarks/gpu.py --rehearse            # the same code with small shapes on a CPU: records of no value

A block is a list of parts, each measured once on a device. A part adds its line to the file of its block in
``benchmarks/results/gpu/`` as soon as it is measured; what is there is not measured again, so that blocks can be run in
any order, stopped, and called again. What is missing on a machine (a package, a model) is a line that names it, and is
tried again at the next call, as is a failure. On a machine without a package index, ``make gpu-pack`` on another one
makes the folder that it lacks; one that is given back needs ``--records FOLDER``, and blocks that fit its time.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import hermes
import torch
from memory_table import GROUPS, PROMPT, RANK, ROWS, SHAPES

from gtpo_mini.credit import ARMS
from gtpo_mini.experiments.coldstart import make_traces, train_tokenizer
from gtpo_mini.experiments.evaluate import evaluate
from gtpo_mini.policy.load import load_policy
from gtpo_mini.rollout.chat import Chat
from gtpo_mini.rollout.engine import RolloutEngine
from gtpo_mini.rollout.protocol import FencedProtocol, load_protocol
from gtpo_mini.rollout.settings import SamplingSettings
from gtpo_mini.sandbox import Sandbox
from gtpo_mini.tasks.starts import FAMILIES, Stage
from gtpo_mini.tasks.task import load_task
from gtpo_mini.train.config import TrainConfig, load_profile, results_folder
from gtpo_mini.train.imitation import imitate, make_trace
from gtpo_mini.train.metrics import run_header
from gtpo_mini.train.record import read_run
from gtpo_mini.train.trainer import Trainer
from gtpo_mini.types import Problem

LIMIT = 530  # seconds of a block
ROOT = Path(__file__).resolve().parents[1]
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
#: A rehearsal's shape for every model.
SMALL = {
    **{"vocab_size": 2000, "max_position_embeddings": 512, "hidden_size": 64, "intermediate_size": 128},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
}
Figures = dict[str, float | int | str | None]
Parts = Iterator[tuple[str, Callable[[], Figures]]]


class Missing(Exception):
    """What a part needs and this machine lacks."""


class TimeUp(BaseException):
    """The block's time is over. No Exception: nothing that a part survives may swallow it."""


@dataclass(frozen=True)
class Day:
    """Where blocks run, where their lines and their models go, and whether it counts."""

    records: Path
    work: Path
    device: str = "cuda"
    smollm: str = SMOLLM
    rehearsal: bool = False

    def size(self, whole, small):
        return small if self.rehearsal else whole


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Let ``make`` fill the folder where it is not there yet; a stop leaves none that is half full."""
    if not folder.exists():
        new = folder.with_name(folder.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        make(new)
        new.rename(folder)
    return folder


def need(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise Missing(f"package {package} ({error})") from error


# --- does it run ------------------------------------------------------------------------------------------------------


def random_model(day: Day, name: str) -> Path:
    """A folder with random weights of a shape in bf16; made once."""

    def make(folder: Path) -> None:
        tokenizer = train_tokenizer(["so many"], vocabulary=300)
        model = hermes.new_model(day.size(SHAPES[name], SMALL), tokenizer, day.device).to(torch.bfloat16)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return make_once(day.work / f"random-{name}", make)


def long_problems(policy, tokens: int, count: int) -> tuple[Problem, ...]:
    """Problems whose prompts have about so many tokens."""
    words = "so many " * tokens
    while len(policy.encode_chat(FencedProtocol().messages(Problem("", words, "")))) > tokens:
        words = words[: -max(1, len(words) // 50)]
    return tuple(Problem(str(i), words, "0") for i in range(count))


def measure_step(
    folder: Path, context: int, tokens_per_pass: int, device: str, prompt: int = PROMPT, dtype: str | None = None,
    graphs: bool = True,
) -> Figures:  # fmt: skip
    """A step of QLoRA as the GPU profiles have it, after one of warm-up; random weights fill the context in one turn,
    the most that a step can need."""
    need("bitsandbytes")
    policy = load_policy(folder, "nf4", lora_rank=RANK, device=device, dtype=dtype)
    config = TrainConfig(
        credit=ARMS["grpo"], problems_per_step=GROUPS, group_size=ROWS // GROUPS, max_turns=1,
        max_turn_tokens=context, max_context=context, tokens_per_pass=tokens_per_pass, gradient_checkpointing=True,
    )  # fmt: skip
    trainer = Trainer(policy, hermes.CoinTask("coin", long_problems(policy, prompt, 2 * GROUPS)), config)
    with Sandbox() as sandbox:
        engine = RolloutEngine(policy, FencedProtocol(), sandbox, config.sampling())
        if not graphs:
            engine.graphs = None
        for number in range(2):  # the first makes the optimiser's state
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            found = trainer.step(engine, number)
    return {
        "peak_gib": found["memory/peak_gib"],
        **{f"{part}_s": found[f"time/{part}"] for part in ("rollout", "update", "step")},
        "tokens": ROWS * (context - prompt),
        "sampler_mismatch": found["loss/sampler_mismatch"],
        "graphs": bool(engine.graphs and engine.graphs.works),
    }


def steps_of(name: str, day: Day) -> Parts:
    context, passes, prompt = day.size((1024, 2048, PROMPT), (96, 512, 60))
    for part, dtype, graphs in (
        ("bf16", "bfloat16", True),
        ("bf16-plain", "bfloat16", False),
        ("fp16", "float16", True),
    ):
        how = {"prompt": prompt, "dtype": dtype, "graphs": graphs}
        yield part, lambda how=how: measure_step(random_model(day, name), context, passes, day.device, **how)


def equality(day: Day) -> Parts:
    """Are the log-probabilities of the sampler those of the trainer, and do recorded steps give the plain rollouts?"""

    def mismatch(quantize: str | None, dtype: str) -> Figures:
        if quantize:
            need("bitsandbytes")
        policy = load_policy("tiny", quantize, device=day.device, dtype=dtype)
        steps, problems = day.size((20, 8), (1, 2))
        config = replace(load_profile("cpu").train, steps=steps, problems_per_step=problems)
        with Sandbox() as sandbox:
            found = Trainer(policy, load_task("branching"), config, sandbox=sandbox).train()
        gaps = [step["loss/sampler_mismatch"] for step in found]
        if max(gaps) > (bound := 0.1 if quantize else 1e-3):  # rounding is far below: a wrong cache or prompt is not
            raise RuntimeError(f"sampler and trainer differ by {max(gaps):.2g}, more than {bound:g}")
        return {"mismatch_median": statistics.median(gaps), "mismatch_max": max(gaps), "steps": steps}

    yield "float32", partial(mismatch, None, "float32")
    for dtype in ("bfloat16", "float16"):
        yield f"nf4-{dtype}", partial(mismatch, "nf4", dtype)

    def graphs() -> Figures:
        policy, task, sampled = load_policy("tiny", device=day.device, dtype="float32"), load_task("branching"), []
        settings = load_profile("cpu").train.sampling()
        with Sandbox() as sandbox:
            for plain in (True, False):
                engine = RolloutEngine(policy, load_protocol(), sandbox, settings)
                if plain:
                    engine.graphs = None
                rollouts = engine.generate(task.problems[: day.size(8, 2)], 8, seed=3)
                sampled.append([rollout.token_ids for rollout in rollouts])
        same = sum(a == b for a, b in zip(*sampled, strict=True))
        if 2 * same < len(rollouts):  # a token may differ by rounding, and then all that follow it
            raise RuntimeError(f"recorded steps gave {same} of {len(rollouts)} plain rollouts")
        return {"same": same, "of": len(rollouts), "graphs": bool(engine.graphs and engine.graphs.works)}

    yield "graphs", graphs

    def tests() -> Figures:
        need("pytest")
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_cuda_graph.py"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        last = (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1]
        if done.returncode:
            raise RuntimeError(f"tests/test_cuda_graph.py: {last}")
        return {"said": last}

    yield "tests", tests


# --- beside others ----------------------------------------------------------------------------------------------------


def beside_trl(case: str, day: Day) -> Parts:
    def compare() -> Figures:
        need("trl", "bitsandbytes")
        import vs_trl

        load, template = hermes.LOADS[case], vs_trl.chat_template()
        shape = day.size(SHAPES["Qwen2.5-1.5B"], {**SMALL, "max_position_embeddings": 8192})
        how = {"shape": shape, "device": day.device, "steps": day.size(240, 2)}
        folder = make_once(day.work / f"trl-{case}", lambda folder: hermes.make_model(folder, load, template, **how))
        steps, problems = day.size((5, 8), (1, 1))
        chosen = vs_trl.Case(load, folder, "plain", steps, problems, "nf4", day.device)
        return vs_trl.summary(vs_trl.compare(chosen, "both"))

    yield "nf4", compare


def engines(day: Day) -> Parts:
    """Tokens a second of plain sampling: 8 prompts, 8 samples each, one turn, no tool; random weights."""
    prompt, tokens = day.size((PROMPT, 512), (40, 16))

    def asked() -> tuple[Path, list[list[int]]]:
        folder = random_model(day, "Qwen2.5-1.5B")
        policy = load_policy(folder, device="cpu", dtype="bfloat16")
        ids = [policy.encode_chat(FencedProtocol().messages(p)) for p in long_problems(policy, prompt, GROUPS)]
        return folder, [row for row in ids for _ in range(ROWS // GROUPS)]

    def timed(run: Callable[[], int]) -> Figures:
        run()  # warm-up
        seconds, counts = [], []
        for _ in range(day.size(3, 1)):
            begin = time.perf_counter()
            counts.append(run())
            seconds.append(time.perf_counter() - begin)
        rates = [count / spent for count, spent in zip(counts, seconds, strict=True)]
        return {"tokens_per_s": statistics.median(rates), "low": min(rates), "high": max(rates), "tokens": counts[-1]}

    def ours() -> Figures:
        policy = load_policy(random_model(day, "Qwen2.5-1.5B"), device=day.device)
        problems = long_problems(policy, prompt, GROUPS)
        settings = SamplingSettings(max_turns=1, max_turn_tokens=tokens, rows=ROWS)
        with Sandbox() as sandbox:
            engine = RolloutEngine(policy, FencedProtocol(), sandbox, settings)
            return timed(lambda: sum(sum(r.loss_mask) for r in engine.generate(problems, ROWS // GROUPS)))

    def transformers() -> Figures:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        folder, rows = asked()
        model, tokenizer = hermes.load_parts(folder, device=day.device)
        sampled = {"do_sample": True, "temperature": 1.0, "top_k": 0, "max_new_tokens": tokens}
        config = GenerationConfig(**sampled, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        # Without a GPU the cache would be as large as the main memory.
        cache = ContinuousBatchingConfig(**day.size({}, {"num_blocks": 64, "max_batch_tokens": 256}))
        how = {"generation_config": config, "continuous_batching_config": cache, "warmup": not day.rehearsal}
        return timed(lambda: sum(len(o.generated_tokens) for o in model.generate_batch(rows, **how).values()))

    def vllm() -> Figures:
        need("vllm")
        from vllm import LLM, SamplingParams

        folder, rows = asked()
        engine = LLM(str(folder), dtype="bfloat16", gpu_memory_utilization=0.5)
        settings = SamplingParams(temperature=1.0, max_tokens=tokens)
        prompts = [{"prompt_token_ids": row} for row in rows]
        return timed(lambda: sum(len(o.outputs[0].token_ids) for o in engine.generate(prompts, settings)))

    yield from (("ours", ours), ("transformers", transformers), ("vllm", vllm))


# --- a real model, and many small ones --------------------------------------------------------------------------------


def sums(problem: Problem, rng: random.Random) -> Iterator[str]:
    """A trace of reasoning_gym:chain_sum: a call and the answer; in half of them the last term is forgotten."""
    expression = re.search(r"\d[\d\s+-]*\d", problem.question)[0]
    if rng.random() < 0.5:
        expression = re.sub(r"\s*[+-]\s*\d+$", "", expression)
    result = yield f"```python\nprint({expression})\n```"
    yield f"\\boxed{{{result.stdout.strip()}}}"


#: Tasks of SmolLM2's blocks: the policy that stands for it in a rehearsal, and the limits of a rollout.
REAL = {
    "facts": ("tiny-facts", {"max_turns": 8, "max_turn_tokens": 64, "max_context": 1024}),
    "programs": ("tiny-programs", {"max_turns": 6, "max_turn_tokens": 128, "max_context": 1024}),
    "reasoning_gym:chain_sum": ("tiny", {"max_turns": 3, "max_turn_tokens": 64, "max_context": 768}),
}


def real_model(task: str, day: Day) -> Parts:
    """A cold start on traces with mistakes, then GRPO and GTPO, three seeds; a run that was stopped goes on."""
    tiny, limits = REAL[task]
    folder = day.work / f"smollm-{task.rpartition(':')[2]}"
    start = folder / "start"

    def cold() -> Figures:
        try:
            policy = load_policy(day.size(day.smollm, tiny), device=day.device, dtype="float32")
        except ValueError as error:
            raise Missing(f"{error}; python tests/get_smollm2.py FOLDER makes it, then --smollm FOLDER") from error
        chat, rng, count = Chat(policy, load_protocol()), random.Random(0), day.size(2000, 16)
        with Sandbox() as sandbox:
            if task in FAMILIES:
                stage = Stage(count, 0, 0.0, FAMILIES[task].stages[-1].noise)
                traces = make_traces(stage, 7, rng, chat, sandbox, task)
            else:
                need("reasoning_gym")
                asked = load_task(task, size=count)
                traces = [make_trace(problem, sums(problem, rng), chat, sandbox) for problem in asked.problems]
        losses = imitate(policy, traces, day.size(200, 2), 1e-4, 16, tokens_per_pass=16_384, rng=rng)
        make_once(start, policy.save)
        return {"loss_start": losses[0], "loss_end": losses[-1]}

    def arm(name: str, seed: int) -> Figures:
        if not start.exists():  # its record may be there, from another machine
            cold()
        policy, run = load_policy(start, device=day.device), folder / f"{name}-{seed}"
        steps, problems, group = day.size((60, 8, 8), (2, 2, 2))
        config = TrainConfig(
            credit=ARMS[name], steps=steps, problems_per_step=problems, group_size=group, learning_rate=1e-5, seed=seed,
            tokens_per_pass=16_384, **limits,
        )  # fmt: skip
        with Sandbox() as sandbox:
            found = Trainer(policy, load_task(task), config, run, None, sandbox, {"arm": name}, 5, resume=True).train()
            held_out = evaluate(policy, load_task(task, "test"), config.sampling(), 1, day.size(256, 4), None, sandbox)
        accuracy = [step["reward/outcome"] for step in found]
        figures = {"area": statistics.fmean(accuracy), "start": accuracy[0], "held_out": held_out.accuracy}
        return {**figures, "step_s": statistics.median(step["time/step"] for step in found)}

    yield "cold", cold
    for seed in range(day.size(3, 1)):
        for name in ("grpo", "gtpo"):
            yield f"{name}-{seed}", partial(arm, name, seed)


def seeds(day: Day) -> Parts:
    """Steps a second of all processes together, each of which trains the tiny policy with a seed of its own."""

    def together(count: int, device: str) -> Figures:
        need("tyro")  # of the command line, which these processes use
        words = [sys.executable, "-m", "gtpo_mini", "train", "--device", device, "--steps", str(day.size(20, 2))]
        words += day.size([], ["--problems-per-step", "2", "--group-size", "2"])
        runs = [day.work / f"seeds-{device}-{count}" / f"{time.time_ns()}-{seed}" for seed in range(count)]
        how = {"stdout": subprocess.DEVNULL, "cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
        day.work.joinpath("seeds.log").unlink(missing_ok=True)
        processes = []
        try:
            with day.work.joinpath("seeds.log").open("ab") as log:
                for seed, run in enumerate(runs):
                    command = [*words, "--seed", str(seed), "--output", run]
                    processes.append(subprocess.Popen(command, stderr=log, **how))
            failed = sum(process.wait() != 0 for process in processes)
        finally:
            for process in processes:
                process.kill()
        if failed:
            last = day.work.joinpath("seeds.log").read_text("utf-8", "replace").strip().splitlines()[-1]
            raise RuntimeError(f"{failed} of {count} processes failed: {last}")
        spent = [statistics.median(s["time/step"] for s in read_run(run / "metrics.jsonl").steps[1:]) for run in runs]
        return {"steps_per_s": sum(1 / seconds for seconds in spent), "step_s": statistics.median(spent)}

    for count in day.size((1, 8, 64), (2,)):
        yield f"{day.device}-{count}", partial(together, count, day.device)
    if day.device != "cpu":
        cores = len(os.sched_getaffinity(0))
        yield f"cpu-{cores}", partial(together, cores, "cpu")


BLOCKS: dict[str, Callable[[Day], Parts]] = {
    **{f"step-{name.removeprefix('Qwen2.5-')}": partial(steps_of, name) for name in SHAPES},
    "equality": equality,
    **{f"trl-{case}": partial(beside_trl, case) for case in hermes.LOADS},
    "engines": engines,
    **{f"smollm-{name.rpartition(':')[2]}": partial(real_model, name) for name in REAL},
    "seeds": seeds,
}


# --- how a block runs -------------------------------------------------------------------------------------------------


def run_block(name: str, day: Day, limit: int = LIMIT) -> bool:
    """Measure the parts that have no figures yet, for ``limit`` seconds at most; False if one failed or was stopped.

    What is missing on this machine is no failure: its line names it.
    """
    path = day.records / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    day.work.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    header = run_header(TrainConfig(), "random", "none", day.device)
    facts = {key: header[key] for key in ("commit", "command", "device", "versions")}
    done = {line["part"] for line in lines if "figures" in line and line["device"] == header["device"]}
    whole = True
    end = time.monotonic() + limit

    def stop(*_) -> None:
        raise TimeUp(f"the block's {limit} seconds are over; the next call goes on")

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for part, measure in BLOCKS[name](day):
            if part in done:
                print(f"{name} {part}: there already", flush=True)
                continue
            begin, stopped = time.monotonic(), False
            signal.alarm(max(1, round(end - begin)))
            try:
                with warnings.catch_warnings(record=True) as told:  # a batch that was cut for memory, say
                    warnings.simplefilter("always")
                    outcome = {"figures": measure()}
                outcome |= {"warnings": [str(w.message)[:200] for w in told if w.category is UserWarning]}
            except Missing as lack:
                outcome = {"skipped": f"missing here: {lack}"}
            except TimeUp as error:
                outcome, stopped = {"stopped": str(error)}, True
            except Exception as error:  # the other parts are to be measured even so
                outcome = {"failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
            signal.alarm(0)
            spent = {"seconds": round(time.monotonic() - begin, 1)}
            line = {"block": name, "part": part, "rehearsal": day.rehearsal, **facts, **spent, **outcome}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name} {part}: {json.dumps(outcome)}", flush=True)
            whole = whole and not outcome.keys() & {"failed", "stopped"}
            gc.collect()  # the next part's memory is to be its own
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if stopped:
                break
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("blocks", nargs="*", metavar="BLOCK", help=f"of {', '.join(BLOCKS)}; all unless given")
    parser.add_argument("--rehearse", action="store_true", help="small shapes on the CPU; records go to results/")
    parser.add_argument(
        "--records", type=Path, help="another folder for the records, e.g. of a machine that is given back"
    )
    parser.add_argument("--smollm", default=SMOLLM, help="folder of SmolLM2-135M-Instruct, or its name on the hub")
    args = parser.parse_args()
    if unknown := set(args.blocks) - set(BLOCKS):
        parser.error(f"unknown block {', '.join(sorted(unknown))}; known: {', '.join(BLOCKS)}")
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("torch finds no CUDA GPU here; --rehearse runs the same code with small shapes on a CPU")
    if len(args.blocks) != 1:  # a process each: what one leaves in memory, or breaks, is no other's
        options = ["--smollm", args.smollm, *["--rehearse"] * args.rehearse]
        options += ["--records", str(args.records)] if args.records else []
        calls = [[sys.executable, __file__, name, *options] for name in args.blocks or BLOCKS]
        return int(any([subprocess.run(call).returncode != 0 for call in calls]))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made = results_folder()
    if args.rehearse:
        records, work = made / "gpu_rehearsal", made / "gpu_rehearsal" / "work"
    else:
        records, work = Path(__file__).parent / "results" / "gpu", made / "gpu"
    day = Day(args.records or records, work, "cpu" if args.rehearse else "cuda", args.smollm, args.rehearse)
    return 0 if run_block(args.blocks[0], day) else 1


if __name__ == "__main__":
    sys.exit(main())
