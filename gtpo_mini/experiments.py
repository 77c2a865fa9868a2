"""Arms, seeds and recorded runs: the same budget for every arm, one single-threaded process a run."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .config import TrainConfig, load_profile
from .evaluate import evaluate
from .policy import load_policy
from .sandbox import Sandbox
from .tasks import load_task
from .trainer import Trainer

#: Each arm is the base configuration with these fields replaced.
ARMS: dict[str, dict[str, object]] = {
    "grpo": {"method": "grpo"},
    "gtpo": {"method": "gtpo"},
}


@dataclass(frozen=True)
class Run:
    """A recorded run: a JSON-lines file with a header, one line a step, and a footer."""

    header: dict
    steps: tuple[dict, ...]
    footer: dict

    @property
    def arm(self) -> str:
        return self.header["arm"]

    @property
    def seed(self) -> int:
        return self.header["seed"]

    def series(self, key: str) -> list[float]:
        """One metric over the steps, e.g. ``run.series("reward/outcome")``."""
        return [step[key] for step in self.steps]


def arm_config(arm: str, base: TrainConfig) -> TrainConfig:
    """The configuration of an arm.

    >>> arm_config("grpo", TrainConfig()).method
    'grpo'
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r}; known: {', '.join(ARMS)}")
    return replace(base, **ARMS[arm])


def run_arm(
    arm: str, seed: int, output: str | Path, profile: str | None = None, eval_problems: int = 256, **changes
) -> Run:
    """Train one arm with one seed, then evaluate it on held-out problems.

    Args:
        arm: a key of `ARMS`.
        seed: of the run; it decides problems and sampling, the same for every arm.
        output: folder of the run, ``metrics.jsonl`` in it. A finished run there is read instead of made again,
            an unfinished one is made anew.
        profile: machine and base configuration; see `load_profile`.
        eval_problems: held-out problems, the same for every run; one sample each, and once more greedily.
        changes: fields of `TrainConfig`, the same for every arm of a comparison (``steps=40``).

    Raises:
        ValueError: unknown arm or profile; a finished run of another configuration in ``output``.
    """
    chosen = load_profile(profile)
    config = arm_config(arm, replace(chosen.train, seed=seed, **changes))
    path = Path(output) / "metrics.jsonl"
    if path.exists() and (run := _read_run(path)) is not None:
        if run.header["config"] != json.loads(json.dumps(vars(config))):
            raise ValueError(f"output={str(output)!r}: holds a run of another configuration; choose another folder")
        return run
    path.unlink(missing_ok=True)
    policy = load_policy(chosen.model, chosen.quantize, chosen.lora_rank, chosen.device, seed=seed)
    train, test = load_task(chosen.task, "train"), load_task(chosen.task, "test")
    if {p.question for p in train.problems} & {p.question for p in test.problems}:
        raise ValueError(f"task {chosen.task!r}: the same question is in train and in test")

    with Sandbox() as sandbox:

        def evaluations() -> dict:
            return {
                name: evaluate(
                    policy, test, config.sampling(temperature=t), problems=eval_problems, sandbox=sandbox, seed=1
                ).record()
                for name, t in (("sampled", config.temperature), ("greedy", 0.0))
            }

        trainer = Trainer(policy, train, config, output, sandbox=sandbox, header={"arm": arm}, checkpoint_every=None)
        trainer.train(footer=evaluations)
    return _read_run(path)


def run_arms(
    arms: Sequence[str],
    seeds: Sequence[int],
    output: str | Path,
    profile: str | None = None,
    processes: int = 2,
    **options,
) -> list[Run]:
    """Every arm with every seed, each run in a process of its own with one thread; a bar over all steps.

    Args:
        arms, seeds: what to run; seeds are paired across arms.
        output: folder with one folder a run, ``<arm>-seed<seed>``.
        profile, options: as in `run_arm`.
        processes: runs at a time; more than cores is slower, not faster.
    """
    for arm in arms:
        arm_config(arm, TrainConfig())
    folders = {(arm, seed): Path(output) / f"{arm}-seed{seed}" for seed in seeds for arm in arms}
    total = len(folders) * options.get("steps", load_profile(profile).train.steps)
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's locks
    # Read by a process as it starts: one thread each, and no bar of their own.
    inherited = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    kept = {name: os.environ.get(name) for name in inherited}
    os.environ.update(inherited)
    try:
        with ProcessPoolExecutor(processes, context, initializer=_one_thread) as pool, tqdm(total=total) as bar:
            jobs = [
                pool.submit(run_arm, arm, seed, folder, profile, **options) for (arm, seed), folder in folders.items()
            ]
            while wait(jobs, timeout=0.5).not_done:
                if failed := next((job for job in jobs if job.done() and job.exception()), None):
                    pool.shutdown(cancel_futures=True)
                    failed.result()
                _show_progress(bar, folders)
            _show_progress(bar, folders)
            return [job.result() for job in jobs]
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _one_thread() -> None:
    torch.set_num_threads(1)


def _show_progress(bar: tqdm, folders: dict[tuple[str, int], Path]) -> None:
    """The bar of all runs, and, for ``make reproduce``, one line in the file that ``GTPO_PROGRESS`` names."""
    now, done = [], 0
    for (arm, seed), folder in folders.items():
        path = folder / "metrics.jsonl"
        kinds = [line[:20] for line in path.read_text().splitlines()] if path.exists() else []
        steps = sum('"step"' in kind for kind in kinds)
        done += steps
        if kinds and '"footer"' not in kinds[-1]:
            now.append(f"{arm} seed {seed} step {steps}")
    bar.update(done - bar.n)
    bar.set_postfix_str(", ".join(now))
    if (path := os.environ.get("GTPO_PROGRESS")) and now:
        Path(path).write_text(f"{time.time():.0f} " + ", ".join(now))


def _read_run(path: Path) -> Run | None:
    """The run in a file; None if it is not finished."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # a process that was killed leaves half a line
            return None
    if len(lines) < 2 or lines[0].get("kind") != "header" or lines[-1].get("kind") != "footer":
        return None
    return Run(lines[0], tuple(line for line in lines if line["kind"] == "step"), lines[-1])


def load_runs(folder: str | Path) -> list[Run]:
    """All finished runs below a folder, sorted by arm and seed.

    Raises:
        ValueError: no finished run there.
    """
    found = [_read_run(path) for path in sorted(Path(folder).rglob("*.jsonl"))]
    runs = [run for run in found if run is not None]
    if not runs:
        raise ValueError(f"no finished run below {str(folder)!r}")
    return sorted(runs, key=lambda run: (run.arm, run.seed))
