"""What the commands do; ``__main__`` holds their options."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path
from random import Random

from .credit.credit import Credit
from .experiments.colab import write_links
from .experiments.coldstart import cold_start
from .experiments.evaluate import evaluate as run_evaluation
from .experiments.evaluate import powers_of_two
from .experiments.experiments import load_arm, read_rates, run_arms, search_rates
from .experiments.plots import plot_learning_curves, readme_figures, save_figure
from .experiments.report import write_report
from .experiments.reproduce import reproduce as run_notebooks
from .experiments.results import compare as compare_files
from .experiments.results import require_writable, write_results
from .experiments.stats import t_interval
from .experiments.viewer import load_rollouts, rollouts_page
from .policy.load import TINY_FOLDER, load_policy
from .rollout.engine import RolloutEngine
from .rollout.protocol import load_protocol
from .sandbox import Sandbox
from .tasks.task import check_task, load_task
from .train.config import TrainConfig, load_profile
from .train.imitation import imitate as imitate_traces
from .train.imitation import read_traces, sample_traces, write_traces
from .train.merge import merge as merge_adapter
from .train.metrics import run_header
from .train.record import load_runs
from .train.trainer import Trainer


def _policy_config_task(arguments: argparse.Namespace, split: str):
    """What train and evaluate share: the profile with the command line's changes, then the task, then the policy."""
    profile = load_profile(arguments.profile)
    model = arguments.model or profile.model
    base = profile.train
    if profile.model == "tiny" and model != "tiny":  # the tiny policy's short turns are for it alone
        base = replace(base, max_turn_tokens=TrainConfig.max_turn_tokens, max_context=None)
    names = {field.name for field in fields(TrainConfig)}
    if arguments.command == "evaluate":
        names.discard("temperature")  # 0, greedy, is for evaluation only
    changes = {key: value for key, value in vars(arguments).items() if key in names and value is not None}
    config = replace(base, **changes)
    if arguments.command == "train":
        own = {f.name: getattr(arguments, f.name) for f in fields(Credit) if getattr(arguments, f.name) is not None}
        config = replace(config, credit=replace(load_arm(arguments.arm), **own))
    own = getattr(arguments, "traces", None)  # with them no task is needed
    task = None if own else load_task(arguments.task or profile.task, split)  # the policy comes last: it takes longest
    quantize = arguments.quantize or (profile.quantize if model == profile.model else None)
    device = arguments.device or profile.device
    if arguments.command == "evaluate":
        base = arguments.model if arguments.adapter else model  # an adapter names its own base
        policy = load_policy(base, quantize, device=device, seed=config.seed, adapter=arguments.adapter)
    else:
        rank = profile.lora_rank if model == profile.model else None
        rank = rank if arguments.lora_rank is None else arguments.lora_rank  # 0 is an error, not the default
        policy = load_policy(model, quantize, rank, device, seed=config.seed)
    return policy, config, task


def train(arguments: argparse.Namespace) -> None:
    """Train a policy, save it."""
    policy, config, task = _policy_config_task(arguments, "train")
    trainer = Trainer(
        policy,
        task,
        config,
        arguments.output,
        load_protocol(arguments.protocol),
        header={"arm": arguments.arm, "protocol": arguments.protocol},
        checkpoint_every=arguments.checkpoint_every,
        resume=arguments.resume,
        trackers=arguments.trackers,
        record_rollouts=arguments.record_rollouts,
    )
    last = trainer.train()[-1]
    print(
        f"done: {len(trainer.history)} steps, last step: accuracy {last['reward/outcome']:.2f}, mean turn reward "
        f"{last['reward/turn_mean']:+.3f}, gradient norm {last['grad/norm']:.3g}"
    )
    if arguments.output:
        policy.save(Path(arguments.output) / "policy")
        print(f"metrics: {Path(arguments.output) / 'metrics.jsonl'}; policy: {Path(arguments.output) / 'policy'}")


def imitate(arguments: argparse.Namespace) -> None:
    """Make or read traces, train on them, save traces, policy and a record."""
    folder = Path(arguments.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output {folder}: is there already; choose a new folder")
    for name in ("batch", "problems", "samples"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} {getattr(arguments, name)}: must be at least 1")
    policy, config, task = _policy_config_task(arguments, "train")
    protocol = load_protocol(arguments.protocol)
    folder.mkdir(parents=True, exist_ok=True)
    with Sandbox() as sandbox:
        engine = RolloutEngine(policy, protocol, sandbox, config.sampling(rows=64))
        if arguments.traces:
            traces = read_traces(arguments.traces, engine.chat, sandbox, config.max_context)
        else:
            traces = sample_traces(engine, task, arguments.problems, arguments.samples, config.seed)
    write_traces(folder / "traces.jsonl", traces)
    failed = sum(any(turn.invalid_call for turn in trace.turns) for trace in traces)
    print(f"{len(traces)} traces: {folder / 'traces.jsonl'}" + (f"; in {failed} a call failed" if failed else ""))
    if config.gradient_checkpointing:
        policy.checkpoint_gradients()
    losses = imitate_traces(
        policy, traces, config.steps, config.learning_rate, arguments.batch, config.tokens_per_pass, Random(config.seed)
    )
    policy.save(folder / "policy")
    source = f"traces of {Path(arguments.traces).name}" if task is None else task.name
    header = run_header(config, policy.name, source, str(policy.device))
    record = {**header, "protocol": protocol.name, "traces": len(traces), "batch": arguments.batch, "losses": losses}
    (folder / "imitation.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    start = folder / "policy"
    if policy.is_lora:
        start = folder / "merged"
        print(f"then: python -m gtpo_mini merge {folder / 'policy'} --output {start}")
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"then: python -m gtpo_mini train --model {start} ..., with the same task, protocol and limits")


def merge(arguments: argparse.Namespace) -> None:
    """Merge an adapter into its base."""
    print(merge_adapter(arguments.adapter, arguments.output, arguments.base))


def evaluate(arguments: argparse.Namespace) -> None:
    """Grade a policy on a task, print intervals, write a line a problem."""
    if arguments.output:
        if Path(arguments.output).is_file():
            raise ValueError(f"--output {arguments.output}: is there already; choose another file")
        require_writable(arguments.output)
    policy, config, task = _policy_config_task(arguments, arguments.split)
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


def _chosen(arguments: argparse.Namespace, *names: str) -> dict:
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def experiment(arguments: argparse.Namespace) -> None:
    """Train arms with several seeds."""
    options = _chosen(arguments, "steps", "problems_per_step", "learning_rate", "eval_problems", "regime")
    if arguments.rates:
        options["rates"] = read_rates(arguments.rates)
    seeds = list(range(arguments.seeds))
    runs = run_arms(arguments.arms, seeds, arguments.output, arguments.profile, arguments.processes, **options)
    for arm in arguments.arms:
        ends = [run.footer["sampled"]["accuracy"] for run in runs if run.arm == arm and "sampled" in run.footer]
        low, high = t_interval(ends)[1:] if len(ends) > 1 else (float("nan"),) * 2
        if ends:
            print(f"{arm}: held-out accuracy {sum(ends) / len(ends):.3f} [{low:.3f}, {high:.3f}], {len(ends)} seeds")


def search(arguments: argparse.Namespace) -> None:
    """Search every arm's learning rate."""
    options = _chosen(arguments, "profile", "processes", "steps", "problems_per_step", "regime")
    seeds = range(1000, 1000 + arguments.seeds)
    best = search_rates(arguments.arms, arguments.rates, arguments.output, seeds, **options)
    print("\n".join(f"{arm}: {rate}" for arm, rate in best.items()))


def plot(arguments: argparse.Namespace) -> None:
    """Draw the learning curves of recorded runs."""
    runs = load_runs(arguments.runs)
    title = "{policy} policy on {task}: learning to use a Python tool over several turns".format(**runs[0].header)
    print(save_figure(plot_learning_curves(runs, title), arguments.name, runs, arguments.output))


def report(arguments: argparse.Namespace) -> None:
    """Make the README's results and figures from the recorded runs."""
    print(write_report())
    print("\n".join(map(str, readme_figures())))


def coldstart(arguments: argparse.Namespace) -> None:
    """Make the tiny policy again."""
    cold_start(Path(arguments.output or TINY_FOLDER))


def links(arguments: argparse.Namespace) -> None:
    """Write the repository's address into the notebooks."""
    print(f"changed: {', '.join(write_links()) or 'nothing'}")


def reproduce(arguments: argparse.Namespace) -> None:
    """Run the notebooks."""
    for path in run_notebooks(arguments.output, arguments.notebooks):
        print(path)
