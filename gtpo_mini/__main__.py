"""The command line: ``python -m gtpo_mini COMMAND``; ``--help`` lists the commands."""

from __future__ import annotations

import argparse
import sys
import types
import typing
from dataclasses import fields

ERROR = 2  # exit status of bad input


def _parser() -> argparse.ArgumentParser:
    from .credit.credit import Credit
    from .experiments.experiments import ARMS
    from .experiments.regimes import REGIMES
    from .tasks.task import list_tasks
    from .train.config import TrainConfig

    parser = argparse.ArgumentParser(
        prog="python -m gtpo_mini", description="Group Turn Policy Optimization (arXiv 2511.14846)"
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    train, evaluate = add("train", "train a policy on a task"), add("evaluate", "grade a policy on a task")
    imitate = add("imitate", "cold start: supervised training on traces, own ones or the model's own right rollouts")
    for command in (train, evaluate, imitate):
        command.add_argument("--profile", help="cpu, t4 or rtx (default: GTPO_PROFILE, or cpu)")
        command.add_argument("--model", help="tiny, a model folder, or a hub name (default: the profile's)")
        command.add_argument("--task", help=f"{', '.join(list_tasks())} (default: the profile's)")
        command.add_argument("--protocol", default="fenced", help="fenced (default), or hermes: the model's tool calls")
        command.add_argument("--quantize", help="nf4: 4-bit base weights, and LoRA")
        if command is not evaluate:
            command.add_argument("--lora-rank", type=int, help="train a LoRA adapter of this rank")
        command.add_argument("--device", help="cpu, cuda, ... (default: the profile's)")
        command.add_argument("--max-turns", type=int)
        command.add_argument("--max-turn-tokens", type=int)
        command.add_argument("--max-context", type=int)
        command.add_argument("--temperature", type=float)
        command.add_argument("--seed", type=int)
    train.add_argument("--arm", default="gtpo", help=f"{', '.join(ARMS)} (default: gtpo)")
    train.add_argument("--output", help="folder for metrics.jsonl and the trained policy")
    train.add_argument("--checkpoint-every", type=int, default=10, help="steps between checkpoints (default: 10)")
    train.add_argument("--resume", action="store_true", help="go on with the run in --output, if it holds one")
    train.add_argument("--trackers", nargs="+", default=[], help="where metrics go as well: tensorboard, wandb, ...")
    train.add_argument("--record-rollouts", action="store_true", help="write rollouts.jsonl there too, for view")
    known = {action.dest for action in train._actions}
    hints = typing.get_type_hints(Credit) | typing.get_type_hints(TrainConfig)
    for field in (*fields(Credit), *fields(TrainConfig)):
        if field.name not in known | {"credit"}:
            kind = _plain(hints[field.name])
            how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
            train.add_argument("--" + field.name.replace("_", "-"), default=None, **how)
    evaluate.add_argument("--split", default="test", help="train or test (default: test)")
    evaluate.add_argument("--problems", type=int, help="how many, from the first (default: all)")
    evaluate.add_argument("--samples", type=int, default=1, help="rollouts a problem (default: 1)")
    evaluate.add_argument("--adapter", help="folder of a trained LoRA adapter")
    evaluate.add_argument("--output", help="JSON-lines file for the results, per problem")
    imitate.add_argument("--output", required=True, help="folder for traces.jsonl, imitation.json and the policy")
    imitate.add_argument("--traces", help="JSON lines with question, answer and turns (default: rejection sampling)")
    imitate.add_argument("--problems", type=int, default=256, help="training problems to sample from (default: 256)")
    imitate.add_argument("--samples", type=int, default=8, help="rollouts a problem (default: 8)")
    imitate.add_argument("--steps", type=int, default=100, help="updates (default: 100)")
    imitate.add_argument("--batch", type=int, default=16, help="traces an update (default: 16)")
    imitate.add_argument("--learning-rate", type=float, default=1e-4, help="its peak (default: 1e-4)")
    imitate.add_argument("--gradient-checkpointing", action="store_true", default=None, help="less memory, more time")
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
    merge = add("merge", "merge a trained adapter into its base model: a plain transformers folder")
    merge.add_argument("adapter", help="folder of the adapter, e.g. RUN/policy")
    merge.add_argument("--output", required=True, help="a new folder")
    merge.add_argument("--base", help="folder or hub name of the base model (default: as the adapter says)")
    experiment = add("experiment", "train arms with several seeds, each run recorded")
    experiment.add_argument("--seeds", type=int, default=3, help="seeds 0 .. n-1 (default: 3)")
    experiment.add_argument("--learning-rate", type=float)
    experiment.add_argument("--rates", help="rates.json of a search: each arm's own learning rate")
    experiment.add_argument("--eval-problems", type=int, help="held-out problems of an evaluation (default: 1024)")
    search = add("search", "search every arm's learning rate with the same budget, recorded")
    search.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 6e-4], help="default: 1e-4 3e-4 6e-4")
    search.add_argument("--seeds", type=int, default=1, help="seeds of the search, 1000 .. (default: 1)")
    for command in (experiment, search):
        command.add_argument("--profile", help="cpu, t4 or rtx (default: GTPO_PROFILE, or cpu)")
        command.add_argument("--arms", nargs="+", default=["grpo", "gtpo"], help=f"of {', '.join(ARMS)}")
        command.add_argument("--regime", help=f"another start and task: {', '.join(REGIMES)}")
        command.add_argument("--output", required=True, help="folder; finished runs in it are kept")
        command.add_argument("--steps", type=int)
        command.add_argument("--problems-per-step", type=int)
        command.add_argument("--processes", type=int, default=2, help="runs at a time (default: 2)")
    plot = add("plot", "draw the learning curves of recorded runs")
    plot.add_argument("runs", help="folder of recorded runs")
    plot.add_argument("--output", default="results", help="folder (default: results)")
    plot.add_argument("--name", default="side_by_side", help="of the files (default: side_by_side)")
    add("report", "write the README's results from data/runs, and its figures to docs/")
    add("links", "write the address in pyproject.toml into the notebooks' badges and setup cells")
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


def main(words: list[str] | None = None) -> int:
    """Run one command; bad input is one line on stderr and exit status 2, not a traceback."""
    from . import cli
    from .sandbox import SandboxUnavailable

    try:
        arguments = _parser().parse_args(words)
        getattr(cli, arguments.command)(arguments)
    except (ValueError, OSError, ImportError, RuntimeError, SandboxUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR
    except KeyboardInterrupt as stop:
        print(stop if stop.args else "stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
