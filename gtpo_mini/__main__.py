"""The command line: ``python -m gtpo_mini train | evaluate | compare | check | experiment | plot | ...``."""

from __future__ import annotations

import argparse
import sys
import types
import typing
from dataclasses import fields, replace
from pathlib import Path

ERROR = 2  # exit status of bad input


def _parser() -> argparse.ArgumentParser:
    from .config import TrainConfig
    from .experiments import ARMS
    from .tasks import list_tasks

    parser = argparse.ArgumentParser(
        prog="python -m gtpo_mini", description="Group Turn Policy Optimization (arXiv 2511.14846)"
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    train, evaluate = add("train", "train a policy on a task"), add("evaluate", "grade a policy on a task")
    for command in (train, evaluate):
        command.add_argument("--profile", help="cpu, t4 or rtx (default: GTPO_PROFILE, or cpu)")
        command.add_argument("--model", help="tiny, a model folder, or a hub name (default: the profile's)")
        command.add_argument("--task", help=f"{', '.join(list_tasks())} (default: the profile's)")
        command.add_argument("--protocol", default="fenced", help="fenced (default), or hermes: the model's tool calls")
        command.add_argument("--quantize", help="nf4: 4-bit base weights, and LoRA")
        command.add_argument("--lora-rank", type=int, help="train a LoRA adapter of this rank")
        command.add_argument("--device", help="cpu, cuda, ... (default: the profile's)")
        command.add_argument("--max-turns", type=int)
        command.add_argument("--max-turn-tokens", type=int)
        command.add_argument("--max-context", type=int)
        command.add_argument("--temperature", type=float)
        command.add_argument("--seed", type=int)
    train.add_argument("--arm", default="gtpo", help=f"{', '.join(ARMS)} (default: gtpo)")
    train.add_argument("--output", help="folder for metrics.jsonl and the trained policy")
    train.add_argument("--record-rollouts", action="store_true", help="write rollouts.jsonl there too, for view")
    known = {action.dest for action in train._actions}
    hints = typing.get_type_hints(TrainConfig)
    for field in fields(TrainConfig):
        if field.name not in known | {"method"}:
            train.add_argument("--" + field.name.replace("_", "-"), type=_plain(hints[field.name]))
    evaluate.add_argument("--split", default="test", help="train or test (default: test)")
    evaluate.add_argument("--problems", type=int, help="how many, from the first (default: all)")
    evaluate.add_argument("--samples", type=int, default=1, help="rollouts a problem (default: 1)")
    evaluate.add_argument("--adapter", help="folder of a trained LoRA adapter")
    evaluate.add_argument("--output", help="JSON-lines file for the results, per problem")
    compare = add("compare", "the difference of two results files, paired by problem")
    compare.add_argument("a", help="file of evaluate --output, or a recorded run")
    compare.add_argument("b", help="another, on the same problems")
    check = add("check", "grade a task's gold answers, and wrong ones made from them")
    check.add_argument("task", help=", ".join(list_tasks()))
    check.add_argument("--split", default="test", help="train or test (default: test)")
    check.add_argument("--size", type=int, help="how many problems (default: all)")
    view = add("view", "write a page that shows the rollouts of a run")
    view.add_argument("run", help="folder of a run trained with --record-rollouts, or its rollouts.jsonl")
    view.add_argument("--output", default="rollouts.html", help="the page (default: rollouts.html)")
    experiment = add("experiment", "train arms with several seeds, each run recorded")
    experiment.add_argument("--profile", help="cpu, t4 or rtx (default: GTPO_PROFILE, or cpu)")
    experiment.add_argument("--arms", nargs="+", default=list(ARMS), help=f"of {', '.join(ARMS)} (default: all)")
    experiment.add_argument("--seeds", type=int, default=3, help="seeds 0 .. n-1 (default: 3)")
    experiment.add_argument("--output", required=True, help="folder; finished runs in it are kept")
    experiment.add_argument("--steps", type=int)
    experiment.add_argument("--problems-per-step", type=int)
    experiment.add_argument("--learning-rate", type=float)
    experiment.add_argument("--eval-problems", type=int, help="held-out problems of an evaluation")
    experiment.add_argument("--processes", type=int, default=2, help="runs at a time (default: 2)")
    plot = add("plot", "draw the learning curves of recorded runs")
    plot.add_argument("runs", help="folder of recorded runs")
    plot.add_argument("--output", default="results", help="folder (default: results)")
    plot.add_argument("--name", default="side_by_side", help="of the files (default: side_by_side)")
    coldstart = add("coldstart", "make data/tiny_policy again (about half an hour on one core)")
    coldstart.add_argument("--output", help="another folder")
    reproduce = add("reproduce", "run all notebooks, write HTML and figures")
    reproduce.add_argument("--output", default="results", help="folder (default: results)")
    reproduce.add_argument("notebooks", nargs="*", help="beginnings of names, e.g. 02 (default: all)")
    return parser


def _plain(kind: object) -> type:
    """The type of an option: of ``int | None`` the int."""
    options = [option for option in typing.get_args(kind) if option is not types.NoneType]
    return options[0] if options else kind


def _policy_config_task(arguments: argparse.Namespace, split: str):
    """What train and evaluate share: the profile with the command line's changes, then the task, then the policy."""
    from .adapters import load_policy_with_adapter
    from .config import TrainConfig, load_profile
    from .experiments import arm_config
    from .policy import load_policy
    from .tasks import load_task

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
        config = arm_config(arguments.arm, config)
    task = load_task(arguments.task or profile.task, split)  # the policy comes last: it takes longest
    quantize = arguments.quantize or (profile.quantize if model == profile.model else None)
    rank = arguments.lora_rank or (profile.lora_rank if model == profile.model else None)
    device = arguments.device or profile.device
    if arguments.command == "evaluate":
        base = arguments.model if arguments.adapter else model  # an adapter names its own base
        policy = load_policy_with_adapter(base, arguments.adapter, quantize, device, config.seed)
    else:
        policy = load_policy(model, quantize, rank, device, seed=config.seed)
    return policy, config, task


def _train(arguments: argparse.Namespace) -> None:
    from .protocol import load_protocol
    from .trainer import Trainer

    policy, config, task = _policy_config_task(arguments, "train")
    facts = {"arm": arguments.arm, "protocol": arguments.protocol}
    trainer = Trainer(
        policy,
        task,
        config,
        arguments.output,
        load_protocol(arguments.protocol),
        None,
        facts,
        arguments.record_rollouts,
    )
    history = trainer.train()
    last = history[-1]
    print(
        f"done: {len(history)} steps, last step: accuracy {last['reward/outcome']:.2f}, mean turn reward "
        f"{last['reward/turn_mean']:+.3f}, gradient norm {last['grad/norm']:.3g}"
    )
    if arguments.output:
        policy.save(Path(arguments.output) / "policy")
        print(f"metrics: {Path(arguments.output) / 'metrics.jsonl'}; policy: {Path(arguments.output) / 'policy'}")


def _experiment(arguments: argparse.Namespace) -> None:
    from .experiments import run_arms
    from .stats import t_interval

    names = ("steps", "problems_per_step", "learning_rate", "eval_problems")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    seeds = list(range(arguments.seeds))
    runs = run_arms(arguments.arms, seeds, arguments.output, arguments.profile, arguments.processes, **options)
    for arm in arguments.arms:
        ends = [run.footer["sampled"]["accuracy"] for run in runs if run.arm == arm]
        low, high = t_interval(ends)[1:] if len(ends) > 1 else (float("nan"),) * 2
        print(f"{arm}: held-out accuracy {sum(ends) / len(ends):.3f} [{low:.3f}, {high:.3f}] over {len(ends)} seeds")


def _plot(arguments: argparse.Namespace) -> None:
    from .experiments import load_runs
    from .plots import plot_learning_curves, save_figure

    runs = load_runs(arguments.runs)
    title = "{policy} policy on {task}: learning to use a Python tool over several turns".format(**runs[0].header)
    print(save_figure(plot_learning_curves(runs, title), arguments.name, runs, arguments.output))


def _coldstart(arguments: argparse.Namespace) -> None:
    from .coldstart import cold_start
    from .policy import TINY_FOLDER

    cold_start(Path(arguments.output or TINY_FOLDER))


def _reproduce(arguments: argparse.Namespace) -> None:
    from .reproduce import reproduce

    for path in reproduce(arguments.output, arguments.notebooks):
        print(path)


def main(words: list[str] | None = None) -> int:
    """Run one command; bad input is one line on stderr and exit status 2, not a traceback."""
    from . import cli
    from .sandbox import SandboxUnavailable

    try:
        arguments = _parser().parse_args(words)
        {
            "train": _train,
            "evaluate": lambda given: cli.evaluate(given, *_policy_config_task(given, given.split)),
            "compare": cli.compare,
            "check": cli.check,
            "view": cli.view,
            "experiment": _experiment,
            "plot": _plot,
            "coldstart": _coldstart,
            "reproduce": _reproduce,
        }[arguments.command](arguments)
    except (ValueError, ImportError, RuntimeError, SandboxUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
