"""What came after, and beside: estimators of other papers, on the same rollouts and grades; `LATER` is the table.

Each is a function of plain lists, with its equation, and a small class that takes those lists from rollouts. An outcome
is a grade in [0, 1]; a group, the rollouts of one problem. The papers' summaries were read, and no code but A3's: what
they leave open is a named setting, or is said, marked [D]. To normalise is to do what `gtpo_advantages` does.
"""

from __future__ import annotations

import ast
import contextlib
import math
import statistics
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..types import Trajectory, Turn
from .advantages import grpo_advantages, gtpo_advantages, turn_returns
from .checks import UNREADABLE, parsed
from .credit import Assigned, Credit, CreditAssignment, graded, group_numbers
from .provenance import answer_claims, is_supported
from .rewards import turn_rewards

Rows = list[list[float]]
_ACCURACY = Credit(rewards="accuracy", returns=False, alpha=0.0)  # GRPO of the grades


def dr_grpo_advantages(rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
    """A_i = r_i - mean_group r: no division by std, so that a problem counts by how much its rollouts differ.

    Source: arXiv 2503.20783 [B]. Its loss divides by a constant length; ours by the batch's number of tokens, the same
    for all tokens of a step, so that no rollout's length plays a part here either.

    >>> dr_grpo_advantages([1.0, 0.0, 0.0, 0.0, 1.0], groups=[0, 0, 0, 0, 1])
    [0.75, -0.25, -0.25, -0.25, 0.0]
    """
    pairs = list(zip(rewards, groups, strict=True))
    means = {group: statistics.fmean(r for r, other in pairs if other == group) for group in set(groups)}
    return [reward - means[group] for reward, group in pairs]


def mt_grpo_advantages(
    outcomes: Sequence[float], rewards: Sequence[Sequence[float | None]], groups: Sequence[int], weight: float = 1.0
) -> Rows:
    """A_ij = A^O_i + weight * A^T_ij for a turn that a tool result follows, A^O_i for another (its reward is None).

    A^O normalises outcomes over the group, A^T the turns' own rewards over the group's turns of the same number.

    Source: arXiv 2505.11821 [B], for two turns; more of them, each with its own A^T, and the weight: [D].

    Both are right; the first one's first turn earned something, the second one's was penalised:

    >>> found = mt_grpo_advantages([1.0, 1.0], [[0.5, None], [-0.1, None]], groups=[0, 0])
    >>> [[round(a, 2) for a in row] for row in found]
    [[1.0, 0.0], [-1.0, 0.0]]
    """
    whole = grpo_advantages(outcomes, groups)
    own = {(i, j): r for i, row in enumerate(rewards) for j, r in enumerate(row) if r is not None}
    parts = dict(zip(own, _normalised([*own.values()], [(groups[i], j) for i, j in own]), strict=True))
    return [[a + weight * parts.get((i, j), 0.0) for j in range(len(rewards[i]))] for i, a in enumerate(whole)]


def gigpo_advantages(
    outcomes: Sequence[float],
    rewards: Sequence[Sequence[float]],
    states: Sequence[Sequence[Hashable]],
    groups: Sequence[int],
    gamma: float = 0.95,
    weight: float = 1.0,
) -> Rows:
    """A_ij = A^E_i + weight * A^S_ij; A^S normalises discounted returns among turns that began in one state.

    ``states[i][j]`` is the state before turn j of rollout i. A state that only one turn began in compares nothing: 0.

    Source: arXiv 2505.10978 [B]; its gamma and weight, which our summary does not give: [D].

    All begin in one state; the call "a" leads to another, in which an answer is right and one is wrong:

    >>> states = [["", "a"], ["", "a"], [""]]
    >>> found = gigpo_advantages([1.0, 0.0, 0.0], [[0.0, 1.0], [0.0, 0.0], [0.0]], states, [0, 0, 0])
    >>> [[round(a, 2) for a in row] for row in found]
    [[2.83, 2.41], [-1.41, -1.71], [-1.41]]
    """
    episode = grpo_advantages(outcomes, groups)
    returns = [turn_returns(row, gamma) for row in rewards]
    shared = [(group, state) for group, row in zip(groups, states, strict=True) for state in row]
    steps = iter(_normalised([value for row in returns for value in row], shared))
    return [[a + weight * next(steps) for _ in row] for a, row in zip(episode, returns, strict=True)]


def hybrid_advantages(
    outcomes: Sequence[float],
    rewards: Sequence[Sequence[float]],
    groups: Sequence[int],
    gamma: float = 0.9,
    weight: float = 0.3,
) -> Rows:
    """A_ik = GN(sum over l >= k of gamma^(l-k) r_il + gamma^(K-k) o_i) + weight * A^O_i.

    GN normalises over all turns of the group, as GTPO does; ``rewards`` are without the outcome.

    Source: arXiv 2604.02869 [B]. The set of GN: [D].

    >>> found = hybrid_advantages([1.0, 0.0], [[0.0, 0.0], [0.0]], groups=[0, 0], gamma=0.5)
    >>> [[round(a, 3) for a in row] for row in found]  # those of `gtpo_advantages`, and 0.3 of 1 or -1
    [[0.3, 1.525], [-1.525]]
    """
    episode = grpo_advantages(outcomes, groups)
    found = gtpo_advantages(_plus(rewards, outcomes), gamma, groups=groups)
    return [[a + weight * e for a in row] for row, e in zip(found, episode, strict=True)]


def calibrated_rewards(
    outcomes: Sequence[float],
    tiers: Sequence[Sequence[str | None]],
    groups: Sequence[int],
    scale: float = 0.5,
    delta: float = 0.05,
    rounds: int = 3,
    growth: float = 2.0,
    **hybrid: float,
) -> dict[str, float]:
    """What a turn of each tier earns: scale * rho where abs(rho) > delta, else nothing; then signs are matched.

    rho is the correlation of "the tier occurs in the rollout" with the outcome (point-biserial, over the batch). Then,
    in each of ``rounds``, a tier whose turns have a mean advantage (`hybrid_advantages`) of the other sign than its
    reward earns ``growth`` times as much; none such, and it is done. After the last round some may still disagree.

    Source: arXiv 2604.02869, Algorithm 1 [B]. How rewards change in a round, and the three numbers: [D].

    Half of the rollouts hold a broken call, and they are the wrong ones:

    >>> calibrated_rewards([1.0, 0.0], [["ran", None], ["ran", "broken", None]], groups=[0, 0])
    {'broken': -0.5, 'ran': 0.0}
    """
    names = sorted({tier for row in tiers for tier in row if tier is not None})
    rho = {name: _correlation([float(name in row) for row in tiers], outcomes) for name in names}
    earned = {name: scale * rho[name] if abs(rho[name]) > delta else 0.0 for name in names}
    for _ in range(rounds):
        rewards = [[earned.get(tier, 0.0) for tier in row] for row in tiers]
        found = hybrid_advantages(outcomes, rewards, groups, **hybrid)
        given = defaultdict(list)
        for row, advantages in zip(tiers, found, strict=True):
            for tier, advantage in zip(row, advantages, strict=True):
                given[tier].append(advantage)
        wrong = [name for name in names if earned[name] * statistics.fmean(given[name]) < 0]
        if not wrong:
            break
        earned |= {name: growth * earned[name] for name in wrong}
    return earned


def a3_advantages(
    outcomes: Sequence[float],
    actions: Sequence[Sequence[Hashable]],
    groups: Sequence[int],
    chain: int = 2,
    gamma: float = 0.9,
    bound: float = 1.1,
    residual: float = 0.65,
    tree: float = 1.0,
) -> Rows:
    """A_ij = B tanh((e_i / |e| + w_res d_ij / |d| + w_tree t_ij / |t|) / B), bars being means of absolute values.

    - e_i = tanh((o_i - median) / max(0.5, 1.4826 MAD)) over the group: the episode; the bound and the factor are those
      of the authors' code, without which MAD, by which it is divided, is 0 unless exactly half of the group is right
    - d_ij = o_i less the mean outcome of the group's other rollouts whose last ``chain`` actions up to turn j are the
      same: the residual; 0 where there are none
    - t_ij = sum over m >= j of gamma^(m-j) (branch mean - state mean): the tree; a state is the actions so far, a
      branch one more, and their means are those of the outcomes of all rollouts that went there

    Source: arXiv 2605.08013 [B]. Clusters as equality of the last actions, the set of the bars (the batch), gamma: [D].

    Both begin with "a", and go on with "b", right, and "c", wrong. All e are alike in size, |d| = .5, |t| = .475, so
    that the first turn of the right one has 1.1 tanh((1 + .65 * 1 / .5 + .45 / .475) / 1.1):

    >>> found = a3_advantages([1.0, 0.0], [["a", "b"], ["a", "c"]], groups=[0, 0])
    >>> [[round(a, 2) for a in row] for row in found]
    [[1.09, 1.05], [-1.09, -1.05]]
    """
    episode: list[float] = [0.0] * len(outcomes)
    rests: Rows = [[0.0] * len(row) for row in actions]
    trees: Rows = [[0.0] * len(row) for row in actions]
    for group in dict.fromkeys(groups):
        members = [i for i, other in enumerate(groups) if other == group]
        middle = statistics.median(outcomes[i] for i in members)
        spread = max(0.5, 1.4826 * statistics.median(abs(outcomes[i] - middle) for i in members))
        passed: dict[tuple, list[int]] = defaultdict(list)  # a path of actions from the start: who went it
        chains: dict[tuple, list[int]] = defaultdict(list)  # a turn and its last actions: who did the same there
        for i in members:
            episode[i] = math.tanh((outcomes[i] - middle) / spread)
            for j in range(len(actions[i]) + 1):
                passed[tuple(actions[i][:j])].append(i)
            for j in range(len(actions[i])):
                chains[j, tuple(actions[i][max(0, j + 1 - chain) : j + 1])].append(i)
        value = {path: statistics.fmean(outcomes[i] for i in who) for path, who in passed.items()}
        for (j, _), who in chains.items():
            for i in who if len(who) > 1 else ():
                rests[i][j] = outcomes[i] - statistics.fmean(outcomes[k] for k in who if k != i)
        for i in members:
            paths = [tuple(actions[i][:j]) for j in range(len(actions[i]) + 1)]
            gains = [value[after] - value[before] for before, after in pairwise(paths)]
            trees[i] = turn_returns(gains, gamma)
    parts = [[[e] * len(row) for e, row in zip(episode, actions, strict=True)], rests, trees]
    # A part that is rounding alone, where all grades of a group are one fraction, stays as small as it is.
    sizes = [size if (size := statistics.fmean(abs(a) for row in part for a in row)) > 1e-9 else 1.0 for part in parts]
    weights = [w / size for w, size in zip((1.0, residual, tree), sizes, strict=True)]

    def joined(*of_turn: float) -> float:
        return bound * math.tanh(sum(w * a for w, a in zip(weights, of_turn, strict=True)) / bound)

    return [list(map(joined, *rows)) for rows in zip(*parts, strict=True)]


# --- from rollouts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DrGRPO:
    """`dr_grpo_advantages` of the grades. Needs nothing but them."""

    def __call__(self, rollouts: Sequence[Trajectory], correct: Sequence[float], group_size: int) -> Assigned:
        outcomes = graded(rollouts, correct)
        whole = dr_grpo_advantages(outcomes, group_numbers(rollouts, group_size))
        return _at_the_end(rollouts, outcomes), [[a] * len(r.turns) for a, r in zip(whole, rollouts, strict=True)]


@dataclass(frozen=True)
class MTGRPO:
    """`mt_grpo_advantages`. Needs a reward a turn that can be verified: the task's progress, less the penalty of a
    broken call. A turn without a result is compared with no other, and has the outcome's part alone."""

    weight: float = 1.0
    format_penalty: float = 0.1
    progress: float = 0.5

    def __call__(self, rollouts: Sequence[Trajectory], correct: Sequence[float], group_size: int) -> Assigned:
        outcomes, groups = graded(rollouts, correct), group_numbers(rollouts, group_size)
        rewards = [turn_rewards(rollout, 0.0, self.format_penalty) for rollout in rollouts]
        for row, rollout in zip(rewards, rollouts, strict=True):
            row[:] = [r + self.progress * turn.progress for r, turn in zip(row, rollout.turns, strict=True)]
        own = [
            [None if turn.result is None else r for r, turn in zip(row, rollout.turns, strict=True)]
            for row, rollout in zip(rewards, rollouts, strict=True)
        ]
        return _plus(rewards, outcomes), mt_grpo_advantages(outcomes, own, groups, self.weight)


@dataclass(frozen=True)
class GiGPO:
    """`gigpo_advantages`. Needs states that come back: here, the same calls with the same outputs before the turn."""

    gamma: float = 0.95
    weight: float = 1.0

    def __call__(self, rollouts: Sequence[Trajectory], correct: Sequence[float], group_size: int) -> Assigned:
        outcomes, groups = graded(rollouts, correct), group_numbers(rollouts, group_size)
        rewards, states = _at_the_end(rollouts, outcomes), [_states(rollout) for rollout in rollouts]
        return rewards, gigpo_advantages(outcomes, rewards, states, groups, self.gamma, self.weight)


@dataclass(frozen=True)
class IRC:
    """Iterative Reward Calibration: `hybrid_advantages` of `calibrated_rewards`, from the same batch.

    Needs tiers of turns; here `tier`, which knows nothing of the answer. ``rounds=0`` does without the second step;
    ``calibrated=False`` pays 0.5 for a call that ran and takes it for one that broke: dense and unchecked.
    """

    calibrated: bool = True
    rounds: int = 3

    def __call__(self, rollouts: Sequence[Trajectory], correct: Sequence[float], group_size: int) -> Assigned:
        outcomes, groups = graded(rollouts, correct), group_numbers(rollouts, group_size)
        tiers = [[tier(rollout.turns, j) for j in range(len(rollout.turns))] for rollout in rollouts]
        earned = {"ran": 0.5, "silent": 0.5, "repeated": 0.5, "broken": -0.5}
        if self.calibrated:
            earned = calibrated_rewards(outcomes, tiers, groups, rounds=self.rounds)
        rewards = [[earned.get(name, 0.0) for name in row] for row in tiers]
        return _plus(rewards, outcomes), hybrid_advantages(outcomes, rewards, groups)


@dataclass(frozen=True)
class A3:
    """`a3_advantages`. Needs actions that come back: here, the syntax tree of each call, names and numbers included."""

    chain: int = 2

    def __call__(self, rollouts: Sequence[Trajectory], correct: Sequence[float], group_size: int) -> Assigned:
        outcomes, groups = graded(rollouts, correct), group_numbers(rollouts, group_size)
        actions = [[_action(turn) for turn in rollout.turns] for rollout in rollouts]
        return _at_the_end(rollouts, outcomes), a3_advantages(outcomes, actions, groups, self.chain)


@dataclass(frozen=True)
class SimpleTIR:
    """A rollout with a void turn, neither code nor answer, teaches nothing; the others have the advantages of ``base``.

    A call that cannot be read holds no code. Such a rollout still counts in its group's mean, and its tokens in the
    number that the loss is divided by. Needs nothing but the rollouts. Source: SimpleTIR [B].
    """

    base: Credit = _ACCURACY

    def __call__(self, rollouts: Sequence[Trajectory], correct: Sequence[float], group_size: int) -> Assigned:
        rewards, advantages = self.base(rollouts, correct, group_size)
        void = [
            any(turn.code is None and (turn is not r.turns[-1] or r.answer is None) for turn in r.turns)
            for r in rollouts
        ]
        return rewards, [[0.0] * len(row) if out else row for row, out in zip(advantages, void, strict=True)]


@dataclass(frozen=True)
class Supported:
    """``base``, on grades of which an answer that nothing supports gets 0, so that a guess earns no more than a miss.

    An answer has support where `is_supported` says so: an output that the policy saw gives it, or two values there. A
    policy may learn to have the tool say what it has guessed (``print(41 + 1)``). Needs answers that outputs can hold:
    numbers, names, yes or no; not even or odd. Source: ours [D], after TRACER's provenance.
    """

    base: Credit

    def __call__(self, rollouts: Sequence[Trajectory], correct: Sequence[float], group_size: int) -> Assigned:
        outcomes = graded(rollouts, correct)
        paid = [right if is_supported(answer_claims(r)) else 0.0 for r, right in zip(rollouts, outcomes, strict=True)]
        return self.base(rollouts, paid, group_size)


#: By the names that ``--arm`` takes.
LATER: dict[str, CreditAssignment] = {
    "dr_grpo": DrGRPO(),
    "mt_grpo": MTGRPO(),
    "gigpo": GiGPO(),
    "irc": IRC(),
    "irc_uncalibrated": IRC(calibrated=False),
    "a3": A3(),
    "simpletir": SimpleTIR(),
    "grpo_supported": Supported(Credit(rewards="trajectory", returns=False, alpha=0.0)),
    "gtpo_supported": Supported(Credit()),
}


def tier(turns: Sequence[Turn], j: int) -> str | None:
    """What can be told of turn j without the answer: broken, repeated, silent or ran; None: it ran nothing.

    >>> from gtpo_mini.types import ExecutionResult
    >>> call = Turn("", code="print(1)", result=ExecutionResult(ok=True, stdout="1"))
    >>> [tier([call, call, Turn("It is 1.")], j) for j in range(3)]
    ['ran', 'repeated', None]
    """
    turn = turns[j]
    if turn.invalid_call:
        return "broken"
    if turn.result is None:
        return None
    if turn.code in (earlier.code for earlier in turns[:j]):
        return "repeated"
    return "ran" if turn.result.stdout.strip() else "silent"


def _normalised(values: Sequence[float], sets: Sequence[Hashable]) -> list[float]:
    return grpo_advantages(values, sets) if values else []


def _correlation(values: Sequence[float], others: Sequence[float]) -> float:
    constant = min(values) == max(values) or min(others) == max(others)
    return 0.0 if constant else statistics.correlation(values, others)


def _states(rollout: Trajectory) -> list[Hashable]:
    """The state before each turn: all calls so far, with what came back."""
    past = [(turn.code, turn.result and (turn.result.stdout, turn.result.error)) for turn in rollout.turns]
    return [tuple(past[:j]) for j in range(len(past))]


def _action(turn: Turn) -> Hashable:
    """A call's syntax tree, or its text where Python cannot read it; an answer is an action of its own."""
    if turn.code is None:
        return turn.malformed
    with contextlib.suppress(*UNREADABLE):  # a tree can be too deep to be written
        if (tree := parsed(turn.code)) is not None:
            return ast.dump(tree)
    return turn.code


def _at_the_end(rollouts: Sequence[Trajectory], outcomes: Sequence[float]) -> Rows:
    return _plus([[0.0] * len(rollout.turns) for rollout in rollouts], outcomes)


def _plus(rewards: Sequence[Sequence[float]], outcomes: Sequence[float]) -> Rows:
    """The outcome is earned at the last turn."""
    return [[*row[:-1], row[-1] + outcome] for row, outcome in zip(rewards, outcomes, strict=True)]
