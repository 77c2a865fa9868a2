"""A meter for credit: does an estimator praise the turns that raised the chance of success, and blame the others?

The true advantage of a turn is V(after) - V(before), V being the share of right answers among continuations that the
policy samples from a state: the ids so far, the session's state by running its code again, and the turns that are left.
No training is needed, and all estimators are measured on the same rollouts.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..credit.arms import ARMS, assign_credit
from ..credit.credit import CreditAssignment
from ..credit.later import LATER
from ..policy.load import load_policy
from ..policy.model import Policy
from ..rollout.engine import RolloutEngine
from ..rollout.observation import run_call
from ..rollout.protocol import ToolProtocol, load_protocol
from ..rollout.settings import SamplingSettings
from ..sandbox import Sandbox
from ..sandbox.client import Session
from ..tasks.starts import load_regime
from ..tasks.task import Task, load_task
from ..train.config import load_profile
from ..train.metrics import run_header
from ..train.trainer import Trainer
from ..types import Problem, Trajectory, Turn
from .coldstart import regime_policy
from .evaluate import Group, sample
from .report import markdown_table
from .stats import Interval

_BATCH = 8  # groups that a credit assignment sees at once, as in a step of training
_DRAWS = 1000  # of the bootstrap
KINDS = ("broken", "wrong", "right", "last")  #: a call that failed, one that cost chances, one that did not, the answer


class _State:
    """A rollout after some of its turns; equal where the ids are, so that it is continued once."""

    def __init__(self, rollout: Trajectory, turns: int) -> None:
        count = sum(index < turns for index in rollout.turn_index)
        self.problem, self.turns = rollout.problem, turns
        self.ids = rollout.token_ids[:count]
        self.codes = [turn.code for turn in rollout.turns[:turns] if turn.code is not None]

    @property
    def key(self) -> tuple:
        return self.problem.id, self.turns, self.ids


class _Continuing(RolloutEngine):
    """Rollouts whose prompt is a state's ids, and whose session has run its code."""

    def encode_prompt(self, problem: Problem) -> list[int]:
        return list(problem.metadata["state"].ids)


@dataclass(frozen=True)
class _Replayed:
    """Of a task, what the engine asks for: a session in which a state's code has run."""

    task: Task
    settings: SamplingSettings

    def session(self, sandbox: Sandbox, problem: Problem) -> Session:
        state = problem.metadata["state"]
        session = self.task.session(sandbox, state.problem)
        for code in state.codes:
            run_call(session, code, "", "", self.settings)
        return session

    def reward_turns(self, problem: Problem, turns: Sequence[Turn]) -> list[Turn]:
        return list(turns)


@dataclass(frozen=True)
class Meter:
    """What `credit_meter` found, of M turns in all; `correlation` and `table` read it."""

    group: np.ndarray  #: (M,): the number of the turn's group
    kind: np.ndarray  #: (M,): of `KINDS`
    truth: np.ndarray  #: (2, M): the true advantage, once from each half of the continuations
    advantages: Mapping[str, np.ndarray]  #: of each credit assignment, (M,)
    tokens: np.ndarray  #: (M,): policy tokens of the turn
    hopeless: np.ndarray  #: (M,): no rollout of its group is right

    def correlation(self, name: str, kind: str | None = None) -> Interval:
        """Of an estimator's advantages with the true ones (of one kind of turn), with its 95 % bootstrap interval."""
        return self._over_groups(self.truth.mean(0), self.advantages[name], kind)

    @property
    def ceiling(self) -> float:
        """The most that an estimator could reach, because V is estimated: from the two halves (Spearman-Brown)."""
        halves = max(0.0, _pearson(*self.truth))
        return float(np.sqrt(2 * halves / (1 + halves)))

    def hopeless_share(self, name: str) -> float:
        """Share of abs(advantage) over tokens that comes from groups without a right rollout."""
        weight = np.abs(self.advantages[name]) * self.tokens
        return float(weight[self.hopeless].sum() / max(weight.sum(), 1e-12))

    def _over_groups(self, truth: np.ndarray, mine: np.ndarray, kind: str | None) -> Interval:
        chosen = self.kind == kind if kind else np.ones(len(truth), bool)
        members = [np.flatnonzero((self.group == one) & chosen) for one in np.unique(self.group)]
        rng, found = np.random.default_rng(0), []
        for _ in range(_DRAWS):
            drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
            found.append(_pearson(truth[drawn], mine[drawn]))
        low, high = np.quantile(found, [0.025, 0.975])
        return Interval(_pearson(truth[chosen], mine[chosen]), float(low), float(high))

    def record(self) -> dict[str, Any]:
        """As plain data: of each estimator the correlation, by kind too, and the share from hopeless groups."""
        rows = {}
        for name in self.advantages:
            kinds = {kind: list(self.correlation(name, kind)) for kind in KINDS if (self.kind == kind).any()}
            rows[name] = {"correlation": list(self.correlation(name)), "kinds": kinds}
            rows[name]["hopeless_share"] = self.hopeless_share(name)
        counts = {kind: int((self.kind == kind).sum()) for kind in KINDS}
        groups = len(np.unique(self.group))
        return {"groups": groups, "turns": counts, "ceiling": self.ceiling, "credits": rows}

    def table(self) -> str:
        """Markdown: a line an estimator."""
        return meter_table(self.record())


def meter_table(record: Mapping[str, Any]) -> str:
    """Markdown of a `Meter.record`: a line an estimator."""
    columns = "credit | correlation with the true advantage | from groups without a right rollout, %"
    rows = [
        (f"`{name}`", "{:.2f} [{:.2f}, {:.2f}]".format(*found["correlation"]), f"{100 * found['hopeless_share']:.0f}")
        for name, found in record["credits"].items()
    ]
    ceiling = f"At most {record['ceiling']:.2f} can be reached: the true advantages are estimates."
    return f"{markdown_table(columns, rows)}\n\n{ceiling}"


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    """0 where one of them does not vary, as the advantages of silent groups do not."""
    if len(a) < 2 or not a.std() or not b.std():
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def credit_meter(
    policy: Policy,
    task: Task,
    credits: Mapping[str, CreditAssignment],
    problems: int = 24,
    continuations: int = 12,
    group_size: int = 8,
    seed: int = 0,
    settings: SamplingSettings | None = None,
    protocol: ToolProtocol | None = None,
    sandbox: Sandbox | None = None,
) -> Meter:
    """Correlate what each credit assignment gives the turns of a policy's rollouts with what they were worth.

    Args:
        policy, task, problems, group_size, seed, settings, protocol, sandbox: as in `sample`.
        credits: estimators by name, e.g. `ARMS`; they see eight groups at once, as in training.
        continuations: K, even: rollouts from each state. The standard error of a V is at most 0.5 / sqrt(K).

    Source: [D]; the states' values are Monte Carlo estimates under the sampling policy itself.
    """
    if continuations < 2 or continuations % 2:
        raise ValueError(f"continuations={continuations}: must be even and at least 2 (the halves give the ceiling)")
    settings, protocol = settings or SamplingSettings(), protocol or load_protocol()
    with ExitStack() as stack:
        sandbox = sandbox or stack.enter_context(Sandbox())
        groups = sample(policy, task, problems, group_size, seed, settings, protocol, sandbox)
        values = _values(policy, task, groups, continuations, seed, settings, protocol, sandbox)
    rows: dict[str, list] = defaultdict(list)
    for number, (rollouts, correct) in enumerate(groups):
        for rollout, right in zip(rollouts, correct, strict=True):
            states = [values[_State(rollout, turns).key] for turns in range(len(rollout.turns))]
            truth = [later - now for now, later in pairwise([*states, np.full(2, float(right))])]
            last = [False] * (len(truth) - 1) + [True]
            rows["truth"] += truth
            rows["kind"] += [_kind(*one) for one in zip(rollout.turns, truth, last, strict=True)]
            rows["tokens"] += [
                sum(m for m, i in zip(rollout.loss_mask, rollout.turn_index, strict=True) if i == j)
                for j in range(len(truth))
            ]
            rows["group"] += [number] * len(truth)
            rows["hopeless"] += [not any(grade == 1 for grade in correct)] * len(truth)
    advantages: dict[str, list[float]] = {name: [] for name in credits}
    for start in range(0, len(groups), _BATCH):
        part = groups[start : start + _BATCH]
        rollouts = [rollout for group in part for rollout in group.rollouts]
        correct = [right for group in part for right in group.correct]
        for name, credit in credits.items():
            advantages[name] += [a for row in assign_credit(credit, rollouts, correct, group_size)[1] for a in row]
    found = {name: np.array(values) for name, values in rows.items()}
    found["truth"] = found["truth"].T
    return Meter(**found, advantages={name: np.array(values) for name, values in advantages.items()})


def measure_regime(
    name: str, output: str | Path, problems: int = 24, continuations: int = 12, after: int = 0
) -> dict[str, Any]:
    """The meter's record of all arms in a regime's start, in ``output/NAME.json``; read again where it is there.

    ``after`` steps of GRPO (of the ``cpu`` profile, seed 1000) it is in ``NAME-after<steps>.json``.
    """
    path = Path(output) / (f"{name}-after{after}.json" if after else f"{name}.json")
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    regime, folder = load_regime(name), regime_policy(name)
    config = replace(load_profile("cpu").train, **regime.changes)
    policy, task = load_policy(folder, device="cpu"), load_task(regime.family, **regime.task)
    plain = {arm: credit for arm, credit in ARMS.items() if credit.similarity != "embedding"}  # that needs a model
    start = time.perf_counter()
    with Sandbox() as sandbox:
        if after:
            Trainer(policy, task, replace(config, credit=ARMS["grpo"], steps=after, seed=1000), sandbox=sandbox).train()
        how = {"settings": config.sampling(), "sandbox": sandbox}
        found = credit_meter(policy, task, plain | LATER, problems, continuations, **how).record()
    header = run_header(config, folder.name, task.name, str(policy.device))
    facts = {key: header[key] for key in ("command", "commit", "versions", "device", "threads")}
    facts |= {"regime": name, "after": after, "continuations": continuations}
    facts["seconds"] = round(time.perf_counter() - start)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, **found}, indent=1) + "\n", encoding="utf-8")
    return {**facts, **found}


def _kind(turn: Turn, truth: np.ndarray, last: bool) -> str:
    return "last" if last else "broken" if turn.invalid_call else "right" if truth.mean() >= 0 else "wrong"


def _values(
    policy: Policy,
    task: Task,
    groups: Sequence[Group],
    continuations: int,
    seed: int,
    settings: SamplingSettings,
    protocol: ToolProtocol,
    sandbox: Sandbox,
) -> dict[tuple, np.ndarray]:
    """V of every state before a turn, from each half of the continuations (2,), by the state's key."""
    states: dict[int, dict[tuple, _State]] = defaultdict(dict)  # those with as many turns left go together
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        for turns in range(len(rollout.turns)):
            state = _State(rollout, turns)
            states[turns].setdefault(state.key, state)
    values: dict[tuple, np.ndarray] = {}
    for turns, found in states.items():
        left = replace(settings, max_turns=settings.max_turns - turns)
        engine = _Continuing(policy, protocol, sandbox, left)
        asked = [replace(state.problem, metadata={"state": state}) for state in found.values()]
        drawn = random.Random(f"{seed}-{turns}").getrandbits(32)
        rollouts = engine.generate(asked, continuations, drawn, task=_Replayed(task, settings))
        grades = [task.grade(rollout.problem.metadata["state"].problem, rollout.answer) for rollout in rollouts]
        halves = np.array(grades, float).reshape(len(asked), 2, -1).mean(-1)  # (states, 2)
        values |= dict(zip(found, halves, strict=True))
    return values
