"""The door: ``gtpo-mini COMMAND``. A command is a function or a dataclass, and so its own parser.

Nothing heavy is imported before a command runs, so that help is there at once: ``gm`` looks its names up when asked.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import re
import sys
import warnings
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from tqdm.auto import tqdm
from tyro.conf import Positional

import gtpo_mini as gm

from . import experiments
from .credit.arms import load_arm
from .credit.credit import Credit
from .train import options
from .train.config import TrainConfig
from .train.options import Model, given, group, taken


def _options(
    command: Any, argv: list[str], config: TrainConfig, model: Any, task: str, asked: tuple[str, ...], **more: Any
) -> Any:
    """What was chosen, in the groups model and rollout (the task, and fields of the configuration) and in ``more``."""
    groups = {"model": model, "rollout": group((options.Asked(task), None), (config, asked)), **more}
    made = make_dataclass("Options", [(k, type(g), field(default_factory=lambda g=g: g)) for k, g in groups.items()])
    made.__doc__ = command.__doc__
    return parse(made, command.__name__, argv)


def train(argv: list[str]) -> None:
    """Train a policy on a task."""
    arm = given(argv, "--arm") or "gtpo"
    credit, (config, *asked) = load_arm(arm), options.defaults(argv, "adapter")
    own = isinstance(credit, Credit)
    groups = {
        "credit": group((options.Arm(arm), None), *([(credit, None)] if own else [])),
        "optimiser": group((config, options.OPTIMISER), doc="How the weights change."),
        "run": group((options.Kept(), None), (config, options.RUN)),
    }
    chosen = _options(train, argv, config, *asked, options.ROLLOUT, **groups)
    rollout, run = chosen.rollout, chosen.run
    credit = Credit(**taken(Credit, chosen.credit)) if own else credit
    config = replace(config, credit=credit, **taken(TrainConfig, rollout, chosen.optimiser, run))
    if run.output is not None and Path(run.output).is_file():
        raise ValueError(f"output={run.output!r}: is a file; name a folder")
    from .train.metrics import describe_history, few

    protocol, task = gm.load_protocol(rollout.protocol), gm.load_task(rollout.task, "train")
    policy = Model(**vars(chosen.model)).load(config.seed)
    header = {"arm": arm, "protocol": rollout.protocol}
    kept = (run.checkpoint_every, run.resume, run.trackers, run.record_rollouts)
    with gm.Sandbox() as sandbox:
        trainer = gm.Trainer(policy, task, config, run.output, protocol, sandbox, header, *kept)
        size = sum(weight.numel() for weight in policy.model.parameters()) / 1e6
        where = f"{policy.device}, sandbox tier {sandbox.protection.tier}"
        of = f"{task.name} ({len(task.problems):,} problems)"
        say = tqdm.write if trainer.run.writes else lambda _: None
        say(f"{policy.name} ({size:,.1f} M parameters) on {of}: arm {arm}, seed {config.seed}; {where}")
        steps = trainer.train(after_step=lambda _: say(describe_history(trainer.history, config.steps)))
    if not trainer.run.writes:
        return
    accuracy = [step["reward/outcome"] for step in steps]
    window = few(len(accuracy))
    start, end = (sum(part) / window for part in (accuracy[:window], accuracy[-window:]))
    means = f" (means of {window} steps)" if window > 1 else ""
    print(f"done: {len(accuracy)} steps; training accuracy {start:.2f} at the start, {end:.2f} at the end{means}")
    print(f"where: {run.output}/policy and {run.output}/metrics.jsonl" if run.output else "where: nothing was kept")
    again = f"gtpo-mini evaluate --model {run.output} --task {rollout.task} --output {run.output}/after.jsonl"
    again += f" --protocol {rollout.protocol}" * (rollout.protocol != "fenced")
    print(f"next: {again}" if run.output else "next: give the run a folder, --output FOLDER")


def evaluate(argv: list[str]) -> None:
    """Grade a policy on a task."""
    config, *asked = options.defaults(argv, "lora_rank")
    groups = {"evaluation": group((options.Graded(), None))}
    chosen = _options(evaluate, argv, config, *asked, (*options.SAMPLING, "seed"), **groups)
    rollout, wanted, samples = chosen.rollout, chosen.evaluation, chosen.evaluation.samples
    if wanted.output:
        experiments.evaluate.require_new(wanted.output)
    settings = config.sampling(rows=64, **{name: getattr(rollout, name) for name in options.SAMPLING})
    protocol, task = gm.load_protocol(rollout.protocol), gm.load_task(rollout.task, wanted.split)
    model = Model(**vars(chosen.model))
    if model.adapter and given(argv, "--model") is None:
        model = replace(model, model=None)  # an adapter names its own base
    policy = model.load(rollout.seed)
    from .train.metrics import run_header

    shown = {"max_output": settings.max_output, "select_output": settings.select_output}
    header = run_header(replace(config, **shown), policy.name, task.name, str(policy.device))
    header |= {"split": task.split, "protocol": protocol.name, "temperature": settings.temperature}
    how = (settings, samples, wanted.problems, protocol)
    result = gm.evaluate(policy, task, *how, seed=rollout.seed, output=wanted.output, header=header)
    keys = ("supported", "right_if_supported", "right_if_not")
    told = (f"{100 * result.behaviour[f'answer/{key}']:.0f} %" for key in keys)
    rest = "{} of the answers rest on the tool: {} of these are right, {} of the others".format(*told)
    of = f"{task.name} ({task.split}), {len(result.problems)} problems x {samples}"
    print(f"done: {of}: {result} (95 % intervals); {rest}")
    print(f"where: {wanted.output or 'nothing was kept (--output FILE keeps it, per problem)'}")
    print(f"next: gtpo-mini compare BEFORE.jsonl {wanted.output or 'AFTER.jsonl'}, paired by problem")


def imitate(argv: list[str]) -> None:
    """Cold start: supervised training on traces, own ones or the model's own right rollouts."""
    config, *asked = options.defaults(argv, "adapter")
    groups = {"imitation": group((options.Imitated(given(argv, "--output") or ""), None))}
    chosen = _options(imitate, argv, config, *asked, (*options.SAMPLING, "seed"), **groups)
    rollout, how = chosen.rollout, chosen.imitation
    folder = Path(how.output)
    if not how.output:
        raise ValueError("imitate needs --output FOLDER, for traces.jsonl, imitation.json and the policy")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output {folder}: is there already; choose a new folder")
    for name in ("batch", "problems", "samples"):
        if getattr(how, name) < 1:
            raise ValueError(f"--{name} {getattr(how, name)}: must be at least 1")
    config = replace(config, **taken(TrainConfig, rollout, how))
    from .train.imitation import imitate_into

    protocol = gm.load_protocol(rollout.protocol)
    task = None if how.traces else gm.load_task(rollout.task, "train")
    policy = Model(**vars(chosen.model)).load(config.seed)
    sources = (task, how.traces, how.problems, how.samples)
    traces, losses = imitate_into(folder, policy, protocol, config, sources, how.batch)
    failed = sum(any(turn.invalid_call for turn in trace.turns) for trace in traces)
    print(f"done: {len(traces)} traces (in {failed} a call failed), loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"where: {folder}/policy and {folder}/traces.jsonl")
    merged = f"gtpo-mini merge {folder} --output {folder}/merged, then " if policy.is_lora else ""
    start = folder / "merged" if policy.is_lora else folder
    print(f"next: {merged}gtpo-mini train --model {start} ..., with the same task, protocol and limits")


def compare(a: Positional[str], b: Positional[str]) -> None:
    """The difference of two results files, paired by problem.

    Args:
        a: file of evaluate --output, or a recorded run
        b: another, on the same problems; the result is b minus a
    """
    print(gm.compare(a, b))


def check(task: Positional[str], split: str = "test", size: int | None = None) -> None:
    """Grade a task's gold answers, and wrong ones made from them; a task that fails is an error.

    Args:
        task: as in train --task
        split: train or test
        size: how many problems; all unless given
    """
    from .tasks.task import check_task

    found = check_task(gm.load_task(task, split, **({} if size is None else {"size": size})))
    print(f"{task} ({split}): {found}")
    if not found.ok:
        raise ValueError(f"task {task!r} fails the check")


def view(runs: Positional[tuple[Path, ...]], output: Path = Path("rollouts.html")) -> None:
    """Write a page that shows the rollouts of a run, or of several to be set side by side.

    Args:
        runs: folders of runs trained with --record-rollouts, or their rollouts.jsonl
        output: the page
    """
    from .rollout.transcript import load_rollouts

    if output.is_dir():
        raise ValueError(f"--output {output}: is a folder; name a file")
    if not runs:
        raise ValueError("name at least one run: gtpo-mini view RUN")
    files = [run / "rollouts.jsonl" if run.is_dir() else run for run in runs]
    names = [run.resolve().name for run in runs]
    names = [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]
    found = {name: load_rollouts(file) for name, file in zip(names, files, strict=True)}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(experiments.viewer.rollouts_page(found, ", ".join(names)), encoding="utf-8")
    print(f"{output}: {sum(map(len, found.values()))} rollouts")


def merge(adapter: Positional[str], output: str, base: str | None = None) -> None:
    """Merge a trained adapter into its base model: a plain transformers folder.

    Args:
        adapter: the run, or the folder of the adapter
        output: a new folder
        base: folder or hub name of the base model, if the adapter's own name for it does not do
    """
    from .train.merge import merge as merged

    print(merged(adapter, output, base))


@dataclass(frozen=True)
class Arms:
    """What `Experiment` and `Search` share."""

    output: str  # folder; finished runs in it are kept
    arms: tuple[str, ...] = ("grpo", "gtpo")  # names of arms
    profile: str | None = None  # cpu, t4 or rtx (GTPO_PROFILE, or cpu)
    regime: tuple[str, ...] = ()  # another start and task: weak, strong, long, ...; several have a folder each
    steps: int | None = None  # the profile's unless given
    problems_per_step: int | None = None  # the profile's unless given
    processes: int = 2  # runs at a time

    def given(self, *more: str) -> dict[str, Any]:
        names = ("profile", "processes", "regime", "steps", "problems_per_step", *more)
        return {name: getattr(self, name) for name in names if getattr(self, name) not in (None, ())}


@dataclass(frozen=True)
class Experiment(Arms):
    """Train arms with several seeds, each run recorded."""

    seeds: int = 3  # how many, from the first on
    first_seed: int = 0  # seed of the first run
    learning_rate: float | None = None  # one for all arms; the profile's unless given
    rates: str | None = None  # rates.json of a search: each arm's own learning rate
    eval_problems: int | None = None  # held-out problems of an evaluation; 1024 unless given
    eval_every: int | None = None  # steps between evaluations of 256 problems; one at the end unless given

    def __call__(self) -> None:
        rates = {"rates": experiments.experiments.read_rates(self.rates)} if self.rates else {}
        how = {**self.given("learning_rate", "eval_problems", "eval_every"), **rates}
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        runs = gm.run_arms(self.arms, seeds, self.output, **how)
        print(experiments.experiments.ends_table(runs))
        print(f"where: {self.output}, a folder a run\nnext: gtpo-mini plot {self.output}")


@dataclass(frozen=True)
class Search(Arms):
    """Search every arm's learning rate with the same budget, recorded."""

    rates: tuple[float, ...] = (1e-4, 3e-4, 6e-4)  # learning rates to try
    seeds: int = 1  # seeds of the search, 1000 ..

    def __call__(self) -> None:
        search, seeds = experiments.experiments.search_rates, range(1000, 1000 + self.seeds)
        best = search(self.arms, self.rates, self.output, seeds, **self.given())
        print("\n".join(f"{arm}: {rate}" for arm, rate in best.items()))
        record = f"{self.output}/rates.json"
        print(f"where: {record}\nnext: gtpo-mini experiment --rates {record} --arms {' '.join(self.arms)} --output DIR")


def plot(runs: Positional[str], output: str = "results", name: str = "side_by_side") -> None:
    """Draw the learning curves of recorded runs.

    Args:
        runs: folder of recorded runs
        output: folder
        name: of the files
    """
    recorded = gm.load_runs(runs)
    title = "{policy} policy on {task}: learning to use a Python tool over several turns".format(**recorded[0].header)
    figure = experiments.plots.plot_learning_curves(recorded, title)
    print(experiments.plots.save_figure(figure, name, recorded, output))


def meter(
    regimes: Positional[tuple[str, ...]], output: str = "results/meter", problems: int = 24, after: int = 0
) -> None:
    """Correlate each arm's advantages with the true ones, before any training.

    Args:
        regimes: starts, e.g. branching_20 facts_20
        output: folder; a file a regime, which is read again where it is there
        problems: groups of eight rollouts
        after: steps of GRPO first
    """
    for name in regimes:
        record = experiments.meter.measure_regime(name, output, problems, after=after)
        print(f"{name}: {record['groups']} groups\n{experiments.meter.meter_table(record)}\n")


def report(run: Positional[Path | None] = None, output: Path = Path("report.html")) -> None:
    """Write a page of one run; without a run: the results in README and docs from data/runs, and their figures.

    Args:
        run: folder of a trained run
        output: the page
    """
    if run is None:
        print(experiments.report.write_report(), *experiments.plots.readme_figures(), sep="\n")
        return
    if output.is_dir():
        raise ValueError(f"--output {output}: is a folder; name a file")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(experiments.viewer.run_page(run), encoding="utf-8")
    print(output)


def coldstart(family: str = "branching", output: Path | None = None) -> None:
    """Make a tiny policy again (half an hour to an hour on one core).

    Args:
        family: branching, programs or facts
        output: another folder than its own in data/
    """
    experiments.coldstart.cold_start(family, output)


def reproduce(notebooks: Positional[tuple[str, ...]] = (), output: str = "results", keep: bool = False) -> None:
    """Run all notebooks, write HTML and figures.

    Args:
        notebooks: beginnings of names, e.g. 02; all unless given
        output: folder
        keep: write outputs and answers into the notebooks, as they are committed
    """
    print(*experiments.reproduce.reproduce(output, list(notebooks), keep), sep="\n")


#: The first three take the command line itself: one option's default there depends on another's value.
COMMANDS = {c.__name__.lower(): c for c in (train, evaluate, imitate, compare, check, view, merge)}
COMMANDS |= {c.__name__.lower(): c for c in (Experiment, Search, plot, meter, report, coldstart, reproduce)}


def parse(kind: type, name: str, argv: list[str]) -> Any:
    """The options of a command; a ValueError in one line, with the likely one, for what does not fit."""
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            return tyro.cli(kind, prog=f"gtpo-mini {name}", args=argv, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as stop:
        if not stop.code:
            raise
    lines = [line.strip("│ ") for line in boxes.getvalue().splitlines()[1:]]
    parts = " ".join("|" if line.startswith(("─", "╭", "╰")) else line for line in lines).split("|")
    near = re.findall(r"(--[\w-]+)", parts[1]) if "Perhaps" in "".join(parts[1:2]) else []
    hint = f"; perhaps {' or '.join(dict.fromkeys(near[:2]))}" if near else f"; gtpo-mini {name} --help lists all"
    raise ValueError(" ".join(parts[0].split()).rstrip(".") + hint)


def with_suggestion(text: str) -> str:
    """An error that lists what is known, with the one that was most likely meant."""
    found = re.search(r"unknown [\w ]+ '(?P<got>[^']+)'; known: (?P<known>[^;]+)$", text)
    found = found or re.search(r"must be one of (?P<known>.+), got '(?P<got>[^']+)'$", text)
    near = difflib.get_close_matches(found["got"], re.split(r", | or ", found["known"]), 1) if found else []
    return f"{text}; perhaps {near[0]!r}" if near else text


def main(argv: list[str] | None = None) -> int:
    """Run one command; bad input is one line on stderr and exit status 2, not a traceback."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: gtpo-mini COMMAND [OPTIONS]   (gtpo-mini COMMAND --help lists its options)\n")
        print("\n".join(f"  {name:12}{command.__doc__.splitlines()[0]}" for name, command in COMMANDS.items()))
        return 0
    if "" not in sys.path:
        sys.path.insert(0, "")  # MODULE:NAME may lie in the current folder
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: tqdm.write(f"warning: {message}", file=sys.stderr)
            for kind in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", kind)
            name, words, command = argv[0], argv[1:], COMMANDS.get(argv[0])
            if command is None:
                raise ValueError(f"unknown command {name!r}; known: {', '.join(COMMANDS)}")
            if command in (train, evaluate, imitate):
                command(words)
            elif isinstance(command, type):
                parse(command, name, words)()
            else:  # parsed first, and only then called: what it prints is no error of the command line
                parse(functools.wraps(command)(lambda **given: functools.partial(command, **given)), name, words)()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {with_suggestion(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(stop if stop.args else "stopped", file=sys.stderr)
        return 130
    except SystemExit as stop:  # --help
        return stop.code or 0
    return 0
