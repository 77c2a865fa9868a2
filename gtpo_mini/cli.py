"""The door: ``gtpo-mini COMMAND``. A command is a dataclass, its fields are its options, its comments their help.

What a command needs is imported when it runs: ``--help`` waits for nothing.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from .credit.credit import Credit
from .train.config import TrainConfig, load_profile

ERROR = 2  # exit status of bad input


@dataclass
class Model:
    """Which policy, on what."""

    model: str | None = None  #: tiny, a hub name, or a folder: of a model, an adapter or a run; else the profile's
    quantize: str | None = None  #: nf4: 4-bit base weights, and LoRA
    device: str | None = None  #: cpu, cuda, ...; else the profile's
    profile: str | None = None  #: cpu, t4 or rtx: the defaults for a machine; else GTPO_PROFILE, or cpu


@dataclass
class TrainedModel(Model):
    """Which policy, on what."""

    lora_rank: int | None = None  #: train a LoRA adapter of this rank


@dataclass
class GradedModel(Model):
    """Which policy, on what."""

    adapter: str | None = None  #: folder of a trained LoRA adapter


@dataclass
class Rollout:
    """What is asked, and how answers are sampled."""

    task: str | None = None  #: a name, jsonl:FILE, reasoning_gym:NAME or my_module:name; else the profile's
    protocol: str = "fenced"  #: fenced, hermes (the model's own tool calls) or my_module:name
    max_turns: int | None = None  #: policy turns a rollout
    max_turn_tokens: int | None = None  #: policy tokens a turn
    max_context: int | None = None  #: tokens a rollout, prompt included
    temperature: float | None = None  #: of sampling; 0 is greedy, for evaluate only


@dataclass
class Batches(Rollout):
    """What is asked, and how answers are sampled."""

    problems_per_step: int | None = None  #: groups a step
    group_size: int | None = None  #: rollouts of a problem


@dataclass
class Assignment:
    """Who earns what: an arm, and what differs from it."""

    arm: str = "gtpo"  #: grpo, gtpo, another key of ARMS, or my_module:name, a function of its shape
    rewards: str | None = None  #: turn, trajectory or accuracy
    returns: bool | None = None  #: an advantage a turn, of its return; else one a rollout
    gamma: float | None = None  #: discount a turn, in [0, 1]
    normalize: str | None = None  #: returns are normalised over: group, batch, turn or first
    alpha: float | None = None  #: most that a wrong rollout earns by likeness to right ones, in [0, 1]
    shaping: str | None = None  #: outcome or potential
    similarity: str | None = None  #: ngram, structure or embedding
    format_penalty: float | None = None  #: taken from a turn with an invalid call

    def credit(self) -> Any:
        """The arm, with the options given beside it."""
        from .experiments.experiments import load_arm

        changes = _given(self, Credit)
        credit = load_arm(self.arm)
        if changes and not is_dataclass(credit):
            raise ValueError(f"--{next(iter(changes)).replace('_', '-')}: the own arm {self.arm!r} takes no options")
        return replace(credit, **changes) if changes else credit


@dataclass
class Optimiser:
    """How weights follow advantages."""

    learning_rate: float | None = None
    minibatches: int | None = None  #: optimiser steps that share one batch of rollouts
    clip_low: float | None = None  #: the probability ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float | None = None
    importance_cap: float | None = None  #: of the weights where sampler and trainer differ
    kl_coefficient: float | None = None  #: 0: no reference policy is kept
    max_grad_norm: float | None = None
    tokens_per_pass: int | None = None  #: of one forward and backward pass, at most
    gradient_checkpointing: bool | None = None  #: less memory, more time


@dataclass
class RunOptions:
    """How long, and what is kept."""

    output: str | None = None  #: folder for metrics.jsonl, checkpoints and the trained policy
    steps: int | None = None
    seed: int | None = None  #: of problems, sampling and new weights
    checkpoint_every: int = 10  #: steps from one checkpoint to the next
    resume: bool = False  #: go on with the run in --output, if it holds one
    record_rollouts: bool = False  #: write rollouts.jsonl too, for view
    trackers: tuple[str, ...] = ()  #: where metrics go as well: tensorboard, wandb, ...


@dataclass
class Train:
    """train a policy on a task"""

    model: TrainedModel = field(default_factory=TrainedModel)
    rollout: Batches = field(default_factory=Batches)
    credit: Assignment = field(default_factory=Assignment)
    optimiser: Optimiser = field(default_factory=Optimiser)
    run: RunOptions = field(default_factory=RunOptions)

    def __call__(self) -> None:
        from .rollout.protocol import load_protocol
        from .tasks.task import load_task
        from .train.metrics import mean
        from .train.trainer import Trainer

        credit, protocol = self.credit.credit(), load_protocol(self.rollout.protocol)
        config, name, quantize, device = _settings(self.model, self.rollout, self.optimiser, self.run)
        profile = load_profile(self.model.profile)
        task = load_task(self.rollout.task or profile.task, "train")
        policy = _policy_to_train(self.model, name, quantize, device, config.seed)
        trainer = Trainer(
            policy,
            task,
            replace(config, credit=credit),
            self.run.output,
            protocol,
            header={"arm": self.credit.arm, "protocol": self.rollout.protocol},
            checkpoint_every=self.run.checkpoint_every,
            resume=self.run.resume,
            trackers=self.run.trackers,
            record_rollouts=self.run.record_rollouts,
        )
        trainer.train()
        right = [step["reward/outcome"] for step in trainer.history]
        few = min(5, len(right))
        start, end = mean(right[:few]), mean(right[-few:])
        again = _repeat(self.rollout, task=self.rollout.task, model=self.run.output or "RUN", output="after.jsonl")
        _end(
            f"{len(right)} steps: accuracy on training problems {start:.2f} in the first {few}, {end:.2f} in the last",
            f"{self.run.output}: policy/, metrics.jsonl"
            if self.run.output
            else "nothing was kept; --output FOLDER keeps it",
            f"gtpo-mini evaluate {again}",
        )


@dataclass
class Evaluate:
    """grade a policy on a task"""

    model: GradedModel = field(default_factory=GradedModel)
    rollout: Rollout = field(default_factory=Rollout)
    split: str = "test"  #: train or test
    problems: int | None = None  #: how many, from the first; else all
    samples: int = 1  #: rollouts a problem
    seed: int | None = None  #: of the sampling
    output: str | None = None  #: JSON-lines file for the results, written problem by problem

    def __call__(self) -> None:
        from .experiments.evaluate import evaluate, powers_of_two, require_new_file
        from .policy.load import load_policy
        from .rollout.protocol import load_protocol
        from .tasks.task import load_task
        from .train.metrics import run_header

        if self.output:
            require_new_file(self.output)
        protocol, temperature = load_protocol(self.rollout.protocol), self.rollout.temperature
        config, name, quantize, device = _settings(self.model, replace(self.rollout, temperature=None), self)
        task = load_task(self.rollout.task or load_profile(self.model.profile).task, self.split)
        name = self.model.model if self.model.adapter else name  # an adapter names its own base
        policy = load_policy(name, quantize, device=device, seed=config.seed, adapter=self.model.adapter)
        temperature = config.temperature if temperature is None else temperature
        header = run_header(config, policy.name, task.name, str(policy.device))
        header |= {"protocol": protocol.name, "temperature": temperature}
        settings = config.sampling(rows=64, temperature=temperature)
        k = self.samples
        result = evaluate(policy, task, settings, k, self.problems, protocol, None, config.seed, self.output, header)
        found = {"accuracy": result.interval}
        found |= {f"pass@{n}": result.pass_interval(n) for n in powers_of_two(k) if n > 1}
        found |= {f"maj@{k}": result.majority_interval} if k > 1 else {}
        print(f"{task.name} ({task.split}), {len(result.problems)} problems x {k}, 95 % intervals:")
        shown = [f"{name} {x.estimate:.3f} [{x.low:.3f}, {x.high:.3f}]" for name, x in found.items()]
        print("\n".join(f"  {line}" for line in shown))
        _end(
            f"{len(result.problems)} problems graded: {shown[0]}",
            self.output or "nothing was kept; --output FILE keeps the results, problem by problem",
            f"gtpo-mini compare BEFORE.jsonl {shlex.quote(self.output or 'AFTER.jsonl')}",
        )


@dataclass
class Imitate:
    """cold start: supervised training on traces, own ones or the model's own right rollouts"""

    output: str  #: folder for traces.jsonl, imitation.json and the policy
    model: TrainedModel = field(default_factory=TrainedModel)
    rollout: Rollout = field(default_factory=Rollout)
    traces: str | None = None  #: JSON lines with question, answer and turns; else rejection sampling
    problems: int = 256  #: training problems to sample from
    samples: int = 8  #: rollouts a problem
    steps: int = 100  #: updates
    batch: int = 16  #: traces an update
    learning_rate: float = 1e-4  #: its peak
    gradient_checkpointing: bool | None = None  #: less memory, more time
    seed: int | None = None  #: of sampling and batches

    def __call__(self) -> None:
        from random import Random

        from .rollout.engine import RolloutEngine
        from .rollout.protocol import load_protocol
        from .sandbox import Sandbox
        from .tasks.task import load_task
        from .train.imitation import imitate, read_traces, sample_traces, write_traces
        from .train.metrics import run_header

        folder = Path(self.output)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"--output {folder}: is there already; choose a new folder")
        for name in ("batch", "problems", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: must be at least 1")
        config, name, quantize, device = _settings(self.model, self.rollout, self)
        profile, protocol = load_profile(self.model.profile), load_protocol(self.rollout.protocol)
        task = None if self.traces else load_task(self.rollout.task or profile.task, "train")
        policy = _policy_to_train(self.model, name, quantize, device, config.seed)
        folder.mkdir(parents=True, exist_ok=True)
        with Sandbox() as sandbox:
            engine = RolloutEngine(policy, protocol, sandbox, config.sampling(rows=64))
            if task is None:
                traces = read_traces(self.traces, engine.chat, sandbox, config.max_context)
            else:
                traces = sample_traces(engine, task, self.problems, self.samples, config.seed)
        write_traces(folder / "traces.jsonl", traces)
        failed = sum(any(turn.invalid_call for turn in trace.turns) for trace in traces)
        print(f"{len(traces)} traces: {folder / 'traces.jsonl'}" + (f"; in {failed} a call failed" if failed else ""))
        if config.gradient_checkpointing:
            policy.checkpoint_gradients()
        few = (config.steps, config.learning_rate, self.batch, config.tokens_per_pass, Random(config.seed))
        losses = imitate(policy, traces, *few)
        policy.save(folder / "policy")
        source = f"traces of {Path(self.traces).name}" if task is None else task.name
        record = run_header(config, policy.name, source, str(policy.device))
        record |= {"protocol": protocol.name, "traces": len(traces), "batch": self.batch, "losses": losses}
        (folder / "imitation.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        start = folder / "policy"
        if policy.is_lora:
            start = folder / "merged"
            print(f"first: gtpo-mini merge {folder / 'policy'} --output {start}")
        tried = f"; the policy before it had {len(traces)} right of {self.problems * self.samples}" if task else ""
        _end(
            f"{len(losses)} updates on {len(traces)} traces: loss {losses[0]:.3f} -> {losses[-1]:.3f}{tried}",
            str(folder / "policy"),
            f"gtpo-mini train {_repeat(self.rollout, task=self.rollout.task, model=start, output='run')}",
        )


@dataclass
class Compare:
    """the difference of two results files, paired by problem"""

    a: Positional[str]  #: file of evaluate --output, or a recorded run
    b: Positional[str]  #: another, on the same problems; what is shown is B minus A

    def __call__(self) -> None:
        from .experiments.compare import compare

        print(compare(self.a, self.b))


@dataclass
class Check:
    """grade a task's gold answers, and wrong ones made from them"""

    task: Positional[str]  #: as in train
    split: str = "test"  #: train or test
    size: int | None = None  #: how many problems; else all

    def __call__(self) -> None:
        from .tasks.task import check_task, load_task

        options = {} if self.size is None else {"size": self.size}
        found = check_task(load_task(self.task, self.split, **options))
        print(
            f"{self.task} ({self.split}): {found.checked} problems, "
            f"{len(found.gold_fails)} whose gold answer is graded wrong, "
            f"{len(found.wrong_passes)} wrong answers graded right, {len(found.no_gold)} without gold answer"
        )
        failed = {
            "gold graded wrong": found.gold_fails,
            "wrong graded right": [f"{key} {text[:60]!r}" for key, text in found.wrong_passes],
            "no gold answer": found.no_gold,
        }
        if not found.ok:
            shown = [f"{what}: {', '.join(list(those)[:5])}" for what, those in failed.items() if those]
            raise ValueError(f"task {self.task!r} fails the check (ids): {'; '.join(shown)}")


@dataclass
class View:
    """write a page that shows the rollouts of a run"""

    run: Positional[str]  #: folder of a run trained with --record-rollouts, or its rollouts.jsonl
    output: str = "rollouts.html"  #: the page

    def __call__(self) -> None:
        from .experiments.viewer import load_rollouts, rollouts_page

        run = Path(self.run)
        rollouts = load_rollouts(run / "rollouts.jsonl" if run.is_dir() else run)
        Path(self.output).parent.mkdir(parents=True, exist_ok=True)
        Path(self.output).write_text(rollouts_page(rollouts, title=run.resolve().name), encoding="utf-8")
        print(f"{self.output}: {len(rollouts)} rollouts")


@dataclass
class Merge:
    """merge a trained adapter into its base model: a plain transformers folder"""

    adapter: Positional[str]  #: folder of the adapter, e.g. RUN/policy
    output: str  #: a new folder
    base: str | None = None  #: folder or hub name of the base model; else as the adapter says

    def __call__(self) -> None:
        from .train.merge import merge

        print(merge(self.adapter, self.output, self.base))


@dataclass
class Runs:
    """What is run."""

    output: str  #: folder; finished runs in it are kept
    arms: tuple[str, ...] = ("grpo", "gtpo")  #: keys of ARMS
    regime: str | None = None  #: another start and task: a key of REGIMES
    profile: str | None = None  #: cpu, t4 or rtx; else GTPO_PROFILE, or cpu
    steps: int | None = None
    problems_per_step: int | None = None
    processes: int = 2  #: runs at a time

    def chosen(self, *names: str) -> dict[str, Any]:
        """The options that were given, for `run_arms`."""
        values = {name: getattr(self, name) for name in (*names, "steps", "problems_per_step", "regime")}
        return {name: value for name, value in values.items() if value is not None}


@dataclass
class Experiment(Runs):
    """train arms with several seeds, each run recorded"""

    seeds: int = 3  #: seeds 0 .. n-1
    learning_rate: float | None = None
    rates: str | None = None  #: rates.json of a search: each arm's own learning rate
    eval_problems: int | None = None  #: held-out problems of an evaluation; else 1024

    def __call__(self) -> None:
        from .experiments.compare import accuracies
        from .experiments.experiments import read_rates, run_arms
        from .experiments.stats import t_interval
        from .train.metrics import mean

        options = self.chosen("learning_rate", "eval_problems")
        options |= {"rates": read_rates(self.rates)} if self.rates else {}
        seeds = list(range(self.seeds))
        runs = run_arms(self.arms, seeds, self.output, self.profile, self.processes, **options)
        graded = [run for run in runs if "sampled" in run.footer]
        found = {arm: list(accuracies(graded, arm).values()) for arm in self.arms}
        for arm, ends in found.items():
            low, high = t_interval(ends, share=True)[1:] if len(ends) > 1 else (float("nan"),) * 2
            if ends:
                print(f"{arm}: held-out accuracy {mean(ends):.3f} [{low:.3f}, {high:.3f}], {len(ends)} seeds")
        start = mean([run.steps[0]["reward/outcome"] for run in runs])
        ends = ", ".join(f"{arm} {mean(ends):.2f}" for arm, ends in found.items() if ends) or "not evaluated"
        _end(
            f"{len(runs)} runs: accuracy {start:.2f} in the first step; at the end {ends}",
            self.output,
            f"gtpo-mini plot {self.output}",
        )


@dataclass
class Search(Runs):
    """search every arm's learning rate with the same budget, recorded"""

    rates: tuple[float, ...] = (1e-4, 3e-4, 6e-4)  #: to be tried
    seeds: int = 1  #: seeds of the search, 1000 ..

    def __call__(self) -> None:
        from .experiments.experiments import search_rates

        seeds = range(1000, 1000 + self.seeds)
        options = self.chosen("profile", "processes")
        best = search_rates(self.arms, self.rates, self.output, seeds, **options)
        print("\n".join(f"{arm}: {rate}" for arm, rate in best.items()))


@dataclass
class Plot:
    """draw the learning curves of recorded runs"""

    runs: Positional[str]  #: folder of recorded runs, or a file of them
    output: str = "results"  #: folder
    name: str = "side_by_side"  #: of the files

    def __call__(self) -> None:
        from .experiments.plots import plot_learning_curves, save_figure
        from .train.record import load_runs

        runs = load_runs(self.runs)
        title = "{policy} policy on {task}: learning to use a Python tool over several turns".format(**runs[0].header)
        print(save_figure(plot_learning_curves(runs, title), self.name, runs, self.output))


@dataclass
class Report:
    """write docs/results.md, the README's table and the figures from data/runs"""

    def __call__(self) -> None:
        from .experiments.plots import readme_figures
        from .experiments.report import write_report

        print(write_report())
        print("\n".join(map(str, readme_figures())))


@dataclass
class Links:
    """write the address in pyproject.toml into the notebooks' badges and setup cells"""

    def __call__(self) -> None:
        from .experiments.colab import write_links

        print(f"changed: {', '.join(write_links()) or 'nothing'}")


@dataclass
class Coldstart:
    """make data/tiny_policy again (about half an hour on one core)"""

    output: str | None = None  #: another folder

    def __call__(self) -> None:
        from .experiments.coldstart import cold_start
        from .policy.load import TINY_FOLDER

        cold_start(Path(self.output or TINY_FOLDER))


@dataclass
class Reproduce:
    """run all notebooks, write HTML and figures"""

    notebooks: Positional[tuple[str, ...]] = ()  #: beginnings of names, e.g. 02; else all
    output: str = "results"  #: folder

    def __call__(self) -> None:
        from .experiments.reproduce import reproduce

        for path in reproduce(self.output, list(self.notebooks)):
            print(path)


_COMMANDS = (Train, Evaluate, Imitate, Compare, Check, View, Merge)
_FOR_RESULTS = (Experiment, Search, Plot, Report, Reproduce, Links, Coldstart)
COMMANDS = {command.__name__.lower(): command for command in (*_COMMANDS, *_FOR_RESULTS)}


def _given(options: object, kind: type) -> dict[str, Any]:
    """The options that were given and are fields of ``kind``."""
    values = {one.name: getattr(options, one.name, None) for one in fields(kind)}
    return {name: value for name, value in values.items() if value is not None}


def _settings(model: Model, *groups: object) -> tuple[TrainConfig, str, str | None, str]:
    """The profile with the command line's changes: configuration, model, quantisation, device."""
    profile = load_profile(model.profile)
    name, base = model.model or profile.model, profile.train
    if profile.model == "tiny" and name != "tiny":  # the tiny policy's short turns are for it alone
        base = replace(base, max_turn_tokens=TrainConfig.max_turn_tokens, max_context=None)
    for group in groups:
        base = replace(base, **_given(group, TrainConfig))
    quantize = model.quantize or (profile.quantize if name == profile.model else None)
    return base, name, quantize, model.device or profile.device


def _policy_to_train(model: TrainedModel, name: str, quantize: str | None, device: str, seed: int) -> Any:
    from .policy.load import load_policy

    profile = load_profile(model.profile)
    rank = profile.lora_rank if name == profile.model else None
    return load_policy(name, quantize, rank if model.lora_rank is None else model.lora_rank, device, seed=seed)


def _repeat(rollout: Rollout, **options: object) -> str:
    """Options of the next command: the same task, protocol and limits, and those given here."""
    kept = {name: getattr(rollout, name) for name in ("max_turns", "max_turn_tokens", "max_context")}
    kept |= {"protocol": None if rollout.protocol == "fenced" else rollout.protocol, **options}
    given = {name: value for name, value in sorted(kept.items()) if value is not None}
    return " ".join(f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given.items())


def _end(done: str, where: str, command: str) -> None:
    print(f"done: {done}\nwhere: {where}\nnext: {command}")


def _usage() -> str:
    def lines(commands: Sequence[type]) -> str:
        return "\n".join(f"  {c.__name__.lower():<11}{c.__doc__}" for c in commands)

    return (
        "usage: gtpo-mini COMMAND [OPTIONS]    (gtpo-mini COMMAND --help shows a command's options)\n\n"
        f"Group Turn Policy Optimization (arXiv 2511.14846)\n\na policy:\n{lines(_COMMANDS)}\n\n"
        f"this repository's results:\n{lines(_FOR_RESULTS)}"
    )


def _options(command: type) -> list[str]:
    """Every option's name, those of groups too."""
    names = []
    for one in fields(command):
        group = one.default_factory if is_dataclass(one.default_factory) else None
        names += _options(group) if group else [f"--{one.name.replace('_', '-')}"]
    return names


def _parse(name: str, words: Sequence[str]) -> Any:
    """The command with its options, or one error; tyro's boxes become a line."""
    command, prog, told = COMMANDS[name], f"gtpo-mini {name}", io.StringIO()
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName)
    try:
        with contextlib.redirect_stderr(told):
            found, unknown = tyro.cli(command, prog=prog, args=words, config=config, return_unknown_args=True)
    except SystemExit as end:
        if not end.code:
            raise
        lines = [line.strip("│╭╮╰╯─ \n") for line in told.getvalue().splitlines() if "│" in line]
        text = re.split(r"Argument helptext|For full helptext", " ".join(filter(None, lines)))[0].strip()
        raise ValueError(f"{text} ({prog} --help)") from None
    if unknown:
        option = unknown[0].partition("=")[0]
        near = difflib.get_close_matches(option, _options(command), 1)
        mend = f"did you mean {near[0]}?" if near else f"{prog} --help shows the options"
        raise ValueError(f"unknown option {option!r}: {mend}")
    return found


def _with_suggestion(text: str) -> str:
    """ "unknown arm 'gtp'; known: ..." with the name that was most likely meant.

    >>> _with_suggestion("unknown arm 'gtp'; known: grpo, gtpo")
    "unknown arm 'gtp'; known: grpo, gtpo; did you mean 'gtpo'?"
    """
    found = re.search(r"unknown [\w ]+ '(?P<got>[^']+)'.*known: (?P<known>.+)", text)
    found = found or re.search(r"must be one of (?P<known>.+), got '(?P<got>[^']+)'", text)
    near = difflib.get_close_matches(found["got"], re.split(r", | or ", found["known"]), 1) if found else []
    return f"{text}; did you mean {near[0]!r}?" if near else text


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; bad input is one line on stderr and exit status 2, not a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else ERROR
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # --task my_module:name, also from the console script
    if argv is None:  # a process of its own
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
        warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|bitsandbytes|accelerate|huggingface_hub)\b")
    try:
        if words[0] not in COMMANDS:
            raise ValueError(f"unknown command {words[0]!r}; known: {', '.join(COMMANDS)}")
        _parse(words[0], words[1:])()
    except KeyboardInterrupt as stop:
        print(stop if stop.args else "stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {_with_suggestion(str(error))}", file=sys.stderr)
        return ERROR
    return 0
