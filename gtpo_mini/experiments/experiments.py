"""Arms, seeds and recorded runs: the same budget for every arm, one single-threaded process a run."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tqdm.auto import tqdm

from ..credit.arms import load_arm
from ..credit.checks import finite_number
from ..credit.credit import Credit
from ..policy.load import load_policy
from ..sandbox import Sandbox
from ..tasks.starts import load_regime
from ..tasks.task import load_task
from ..train.config import TrainConfig, load_profile
from ..train.metrics import mean
from ..train.record import RecordedRun, read_run
from ..train.trainer import Trainer
from .coldstart import regime_policy
from .compare import area, by_arm, collapsed, held_out
from .evaluate import evaluate
from .stats import t_interval

_EVAL_ROWS = 256  # rollouts decoded at once in an evaluation, which keeps nothing for a backward pass
_ON_THE_WAY = 256  # problems of an evaluation that is not the last


def run_arm(
    arm: str,
    seed: int,
    output: str | Path,
    profile: str | None = None,
    eval_problems: int = 1024,
    eval_every: int | None = None,
    regime: str | None = None,
    **changes,
) -> RecordedRun:
    """Train one arm with one seed in the folder ``output``, then evaluate it; the options are those of `run_arms`.

    A finished run there is read instead of made again, an unfinished one is made anew; one of another configuration
    is a ValueError.
    """
    chosen = load_profile(profile)
    variant = load_regime(regime) if regime else None
    options = variant.task if variant else {}
    changes = {**(variant.changes if variant else {}), **changes}
    own = {name: changes.pop(name) for name in Credit.__dataclass_fields__ if name in changes}
    credit = load_arm(arm)
    config = replace(chosen.train, credit=replace(credit, **own) if own else credit, seed=seed, **changes)
    facts = {"arm": arm, **({"regime": regime, "task_options": options} if regime else {})}
    facts |= {"eval_problems": eval_problems, **({"eval_every": eval_every} if eval_every else {})}
    path = Path(output) / "metrics.jsonl"
    if path.exists() and (run := read_run(path)) is not None:
        plain, now = (json.loads(json.dumps(one.record())) for one in (TrainConfig(), config))
        was = {**run.header, "config": {**plain, **run.header["config"]}}  # an older record lacks later fields
        if any(was.get(key) != value for key, value in {**facts, "config": now}.items()):
            raise ValueError(f"output={str(output)!r}: holds a run of another configuration; choose another folder")
        return run
    path.unlink(missing_ok=True)
    model = regime_policy(regime) if regime else chosen.model
    policy = load_policy(model, chosen.quantize, chosen.lora_rank, chosen.device, seed=seed)
    if regime:
        policy.name = model.name  # a record names no folder of this machine
    name = variant.family if variant else chosen.task
    train, test = (load_task(name, split, **options) for split in ("train", "test"))
    if {p.question for p in train.problems} & {p.question for p in test.problems}:
        raise ValueError(f"task {name!r}: the same question is in train and in test")
    with Sandbox() as sandbox:
        on_the_way: dict[str, dict] = {}

        def evaluations(problems: int, suffix: str = "") -> dict[str, dict]:
            found = {}
            for name, temperature in (("sampled", config.temperature), ("greedy", 0.0)):
                settings = config.sampling(temperature=temperature, rows=_EVAL_ROWS)
                result = evaluate(policy, test, settings, problems=problems, sandbox=sandbox, seed=1)
                found[name + suffix] = result.record()
            return found

        def after_step(done: int) -> None:
            if eval_problems and eval_every and done % eval_every == 0 and done < config.steps:
                on_the_way.update(evaluations(min(_ON_THE_WAY, eval_problems), f"_{done}"))

        trainer = Trainer(policy, train, config, output, sandbox=sandbox, header=facts, checkpoint_every=None)
        trainer.train((lambda: on_the_way | evaluations(eval_problems)) if eval_problems else None, after_step)
    return read_run(path)


def run_arms(
    arms: Sequence[str],
    seeds: Sequence[int],
    output: str | Path,
    profile: str | None = None,
    processes: int = 2,
    rates: Mapping[str, float] | None = None,
    **options,
) -> list[RecordedRun]:
    """Every arm with every seed, each run in a process of its own with one thread; a bar over all steps.

    Args:
        arms, seeds: keys of `ARMS`; a seed decides problems and sampling, the same for every arm.
        output: gets a folder a run, ``<arm>-seed<seed>``; finished runs are kept, so that a killed call can go on.
        profile: machine and base configuration; see `load_profile`.
        processes: runs at a time; more than cores is slower, not faster.
        rates: learning rate of each arm (`search_rates`); None: the profile's, or ``learning_rate``, for all.
        options: of every run: ``eval_problems`` held out (1024; 0: none), one sample each, and once more greedily, and
            the first 256 of them after every ``eval_every`` steps (None: at the end only); a ``regime`` of `REGIMES`,
            another start and variant of the task, or several: each has a folder in ``output``, and all have made a
            seed's runs before the next seed begins; fields of `TrainConfig` and `Credit`.

    Raises ValueError for nothing to run, an unknown arm, profile or regime, an arm without a rate, or a finished run of
    another configuration in its folder.
    """
    starts = _starts(arms, output, options)
    if rates is not None and (missing := [arm for arm in arms if arm not in rates]):
        raise ValueError(f"no learning rate for {', '.join(missing)}; search these arms too")
    jobs = [
        (arm, seed, folder / f"{arm}-seed{seed}", start | ({"learning_rate": rates[arm]} if rates else {}))
        for seed in seeds
        for folder, start in starts
        for arm in arms
    ]
    return _run_all(jobs, profile, processes, options)


def search_rates(
    arms: Sequence[str],
    rates: Sequence[float],
    output: str | Path,
    seeds: Sequence[int] = (1000,),
    profile: str | None = None,
    processes: int = 2,
    **options,
) -> dict[str, float]:
    """The best of ``rates`` for each arm, with the same budget; every score goes into ``output/rates.json``.

    A score is the mean `area` of an arm's runs: fresh problems, so none of the held-out ones is looked at. A rate at
    which a tenth of the runs of all arms broke down (`collapsed`) is taken by none, unless there is no other: of one
    arm's few runs one may break down by luck. The seeds are other ones than those that count; several regimes have one
    score, their mean; the rest is as in `run_arms`.
    """
    starts = _starts(arms, output, options)
    jobs = [
        (arm, seed, folder / f"{arm}-rate{rate}-seed{seed}", {**start, "learning_rate": rate, "eval_problems": 0})
        for seed in seeds
        for folder, start in starts
        for arm in arms
        for rate in rates
    ]
    tried: dict[float, dict[str, list[RecordedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in _run_all(jobs, profile, processes, options):
        tried[run.header["config"]["learning_rate"]][run.arm].append(run)
    broken = {rate: mean([collapsed(run) for runs in found.values() for run in runs]) for rate, found in tried.items()}
    stable = [rate for rate, share in broken.items() if share < 0.1] or [min(broken)]
    scores = {arm: {rate: mean([area(run) for run in found[arm]]) for rate, found in tried.items()} for arm in arms}
    best = {arm: max(stable, key=found.__getitem__) for arm, found in scores.items()}
    record = {"best": best, "scores": scores, "broke_down": broken, "seeds": list(seeds)}
    Path(output, "rates.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return best


def read_rates(path: str | Path) -> dict[str, float]:
    """The best learning rate of each arm, from the ``rates.json`` of `search_rates`; a ValueError if it has none."""
    try:
        best = json.loads(Path(path).read_text(encoding="utf-8"))["best"]
        return {arm: finite_number(f"learning rate of {arm}", rate, low=0) for arm, rate in best.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"no learning rates there ({type(error).__name__}: {error})"
        raise ValueError(f"rates={str(path)!r}: {why}; take the rates.json of: gtpo-mini search") from error


def _starts(arms: Sequence[str], output: str | Path, options: dict) -> list[tuple[Path, dict]]:
    """The folder and the regime of each start, whose policy is made here, once for all runs; the arms are known."""
    for arm in arms:
        load_arm(arm)
    regimes = options.pop("regime", None)
    if not regimes or isinstance(regimes, str):
        regimes = [regimes] if regimes else []
    for name in regimes:
        regime_policy(name)
    if len(regimes) < 2:
        return [(Path(output), {"regime": name}) for name in regimes] or [(Path(output), {})]
    return [(Path(output) / name, {"regime": name}) for name in regimes]


def _run_all(jobs: Sequence[tuple], profile: str | None, processes: int, options: dict) -> list[RecordedRun]:
    """Run (arm, seed, folder, changes) in processes of their own."""
    if not jobs:
        raise ValueError("nothing to run: name at least one arm and one seed (--arms, --seeds)")
    if processes < 1:
        raise ValueError(f"processes={processes}: must be at least 1")
    folders, finished = [job[:3] for job in jobs], {}
    total = len(jobs) * options.get("steps", load_profile(profile).train.steps)
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's locks
    # Read by a process as it starts: one thread each, and no bar of their own.
    inherited = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    pool = ProcessPoolExecutor(processes, context, initializer=_one_thread)
    with patch.dict(os.environ, inherited), pool, tqdm(total=total) as bar:
        futures = [pool.submit(_run_and_trim, *job, profile, **{**options, **changes}) for *job, changes in jobs]
        while wait(futures, timeout=0.5).not_done:
            if failed := next((f for f in futures if f.done() and f.exception()), None):
                pool.shutdown(cancel_futures=True)
                failed.result()
            _show_progress(bar, folders, finished)
        _show_progress(bar, folders, finished)
        return [future.result() for future in futures]


def _one_thread() -> None:
    """At the start of a worker: one thread, and no life after its parent, or a killed call would go on writing."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (connection.wait([parent]), os._exit(1)), daemon=True).start()


def _run_and_trim(*arguments: Any, **options: Any) -> RecordedRun:
    """`run_arm`; of what it took, glibc gives back little by itself: after 27 runs a process held 3 GB."""
    run = run_arm(*arguments, **options)
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    return run


def _show_progress(bar: tqdm, folders: list[tuple[str, int, Path]], finished: dict[Path, int]) -> None:
    """The bar of all runs, and, for ``make reproduce``, one line in the file that ``GTPO_PROGRESS`` names."""
    now, running = [], 0
    for arm, seed, folder in folders:
        path = folder / "metrics.jsonl"
        if folder not in finished and path.exists():
            kinds = [line[:20] for line in path.read_text().splitlines()]
            steps = sum('"step"' in kind for kind in kinds)
            if kinds and '"footer"' in kinds[-1]:
                finished[folder] = steps
            elif kinds:
                running += steps
                now.append(f"{arm} seed {seed} step {steps}")
    bar.update(running + sum(finished.values()) - bar.n)
    bar.set_postfix_str(", ".join(now))
    if (path := os.environ.get("GTPO_PROGRESS")) and now:
        Path(path).write_text(f"{time.time():.0f} " + ", ".join(now))


def ends_table(runs: Sequence[RecordedRun]) -> str:
    """A line an arm: accuracy of the first step, and at the end (held out, where evaluated) with its t-interval."""
    lines = []
    for arm, mine in by_arm(runs).items():
        start = mean([run.steps[0]["reward/outcome"] for run in mine])
        ends = [held_out(run) for run in mine if "sampled" in run.footer]
        ends = ends or [run.steps[-1]["reward/outcome"] for run in mine]
        band = " [{:.3f}, {:.3f}]".format(*t_interval(ends, share=True)[1:]) if len(ends) > 1 else ""
        lines.append(f"{arm}: accuracy {start:.3f} at the start, {mean(ends):.3f}{band} at the end, {len(ends)} seeds")
    return "\n".join(lines)
