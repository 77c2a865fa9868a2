"""What the commands that only look do: evaluate, compare, check, view. ``__main__`` holds the options and the rest."""

from __future__ import annotations

import argparse
from pathlib import Path

from .config import TrainConfig
from .display import load_rollouts, rollouts_page
from .evaluate import evaluate as run_evaluation
from .evaluate import powers_of_two
from .metrics import run_header
from .policy import Policy
from .protocol import load_protocol
from .results import compare as compare_files
from .results import write_results
from .tasks import Task, check_task, load_task


def evaluate(arguments: argparse.Namespace, policy: Policy, config: TrainConfig, task: Task) -> None:
    """Grade a policy on a task, print intervals, write a line a problem."""
    temperature = config.temperature if arguments.temperature is None else arguments.temperature
    settings = config.sampling(rows=64, temperature=temperature)
    protocol, samples = load_protocol(arguments.protocol), arguments.samples
    result = run_evaluation(policy, task, settings, samples, arguments.problems, protocol, seed=config.seed)
    found = [("accuracy", result.interval)]
    found += [(f"pass@{k}", result.pass_interval(k)) for k in powers_of_two(samples) if k > 1]
    found += [(f"maj@{samples}", result.majority_interval)] if samples > 1 else []
    print(f"{task.name} ({task.split}), {len(result.problems)} problems x {samples}, 95 % intervals:")
    for name, interval in found:
        print(f"  {name} {interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
    if arguments.output:
        header = run_header(config, policy.name, task.name, str(policy.device))
        header |= {"split": task.split, "samples": samples, "protocol": protocol.name, "temperature": temperature}
        write_results(arguments.output, result, task.problems[: arguments.problems], header)


def compare(arguments: argparse.Namespace) -> None:
    """Pair two results files."""
    print(compare_files(arguments.a, arguments.b))


def check(arguments: argparse.Namespace) -> None:
    """Grade a task's gold answers and wrong ones; a task that fails is an error."""
    options = {} if arguments.size is None else {"size": arguments.size}
    found = check_task(load_task(arguments.task, arguments.split, **options))
    print(
        f"{arguments.task} ({arguments.split}): {found.checked} problems, {len(found.gold_fails)} whose gold answer is "
        f"graded wrong, {len(found.wrong_passes)} wrong answers graded right, {len(found.no_gold)} without gold answer"
    )
    if found.ok:
        return
    failed = {
        "gold graded wrong": found.gold_fails,
        "wrong graded right": [f"{key} {text[:60]!r}" for key, text in found.wrong_passes],
        "no gold answer": found.no_gold,
    }
    shown = [f"{what}: {', '.join(list(those)[:5])}" for what, those in failed.items() if those]
    raise ValueError(f"task {arguments.task!r} fails the check (ids): {'; '.join(shown)}")


def view(arguments: argparse.Namespace) -> None:
    """Write the page that browses a run's rollouts."""
    run = Path(arguments.run)
    rollouts = load_rollouts(run / "rollouts.jsonl" if run.is_dir() else run)
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    Path(arguments.output).write_text(rollouts_page(rollouts, title=run.resolve().name), encoding="utf-8")
    print(f"{arguments.output}: {len(rollouts)} rollouts")
