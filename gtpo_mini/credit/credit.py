"""`Credit`, the whole method in one object: graded rollouts in, turn rewards and turn advantages out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..types import Trajectory
from .advantages import NORMALIZE, grpo_advantages, gtpo_advantages
from .checks import finite_number
from .rewards import trajectory_reward, turn_rewards
from .shaping import shape_outcomes, turn_potentials
from .similarity import SIMILARITIES, load_similarity

Assigned = tuple[list[list[float]], list[list[float]]]  #: turn rewards and turn advantages: one list a rollout
#: (rollouts, correct, group_size) -> (turn rewards, turn advantages)
CreditAssignment = Callable[[Sequence[Trajectory], Sequence[float], int], Assigned]


@dataclass(frozen=True)
class Credit:
    """Everything that tells one arm from another; called with graded rollouts, it is the whole method.

    The defaults are GTPO: turn rewards, discounted returns as advantages, shaped outcomes. `ARMS` is the table.

    >>> Credit(gamma=1.5)
    Traceback (most recent call last):
    ValueError: gamma must be a finite number in [0, 1], got 1.5
    """

    rewards: str = "turn"  #: turn (Eq. 5); or at the last turn only: trajectory, min(accuracy, format); accuracy
    returns: bool = True  #: an advantage a turn, of its return; False: one a rollout, of its summed rewards
    gamma: float = 0.9  #: discount a turn, in [0, 1]
    normalize: str = "group"  #: what returns are normalised over: group, batch, turn, first or centred
    alpha: float = 0.5  #: most that a wrong rollout earns by its likeness to right ones, in [0, 1]; 0: no shaping
    shaping: str = "outcome"  #: that share at the last turn (outcome), or as a potential of the code so far (potential)
    similarity: str = "ngram"  #: how two codes are compared: ngram, structure or embedding
    format_penalty: float = 0.1  #: taken from a turn with an invalid call, at least 0
    spare_hopeless: bool = False  #: no penalty in a group in which no rollout is right
    progress: float = 0.0  #: weight of what the task itself gives a turn, at least 0; 0: the paper's form

    def __post_init__(self) -> None:
        choices = {"rewards": ("turn", "trajectory", "accuracy"), "shaping": ("outcome", "potential")}
        choices |= {"normalize": NORMALIZE, "similarity": SIMILARITIES}
        for field, known in choices.items():
            if getattr(self, field) not in known:
                raise ValueError(f"{field} must be one of {', '.join(known)}, got {getattr(self, field)!r}")
        finite_number("gamma", self.gamma, low=0.0, high=1.0)
        finite_number("alpha", self.alpha, low=0.0, high=1.0)
        finite_number("format_penalty", self.format_penalty, low=0.0)
        finite_number("progress", self.progress, low=0.0)

    def __call__(self, rollouts: Sequence[Trajectory], correct: Sequence[bool | float], group_size: int) -> Assigned:
        """Assign credit to a batch.

        Args:
            rollouts: in any order: a rollout's group is that of its problem.
            correct: whether each final answer is right, or its grade in [0, 1]; a ValueError names another.
            group_size: rollouts of a problem that are compared with each other.

        Returns (rewards, advantages), each one list a rollout and one number a turn. A reward of the whole rollout
        stands at its last turn; without returns every turn has the rollout's advantage.
        """
        groups = group_numbers(rollouts, group_size)
        outcomes = graded(rollouts, correct)
        potentials = [[0.0] * len(rollout.turns) for rollout in rollouts]
        for group in dict.fromkeys(groups) if self.alpha else ():
            members = [i for i, other in enumerate(groups) if other == group]
            how = [outcomes[i] == 1.0 for i in members], load_similarity(self.similarity), self.alpha
            if self.shaping == "outcome":
                shaped = shape_outcomes([rollouts[i].code for i in members], *how)
                for i, share in zip(members, shaped, strict=True):
                    outcomes[i] = max(outcomes[i], share)
            else:
                found = turn_potentials([rollouts[i].code_before_turns for i in members], *how)
                for i, potential in zip(members, found, strict=True):
                    potentials[i] = potential
        hopeful = {group for group, grade in zip(groups, correct, strict=True) if grade == 1}
        penalties = [0.0 if self.spare_hopeless and group not in hopeful else self.format_penalty for group in groups]
        of_each = zip(rollouts, outcomes, potentials, penalties, strict=True)
        rewards = [self._rewards(*of_one) for of_one in of_each]
        if self.returns:
            return rewards, gtpo_advantages(rewards, self.gamma, self.normalize, groups)
        whole = grpo_advantages([math.fsum(rewards_N) for rewards_N in rewards], groups)
        return rewards, [[a] * len(rollout.turns) for a, rollout in zip(whole, rollouts, strict=True)]

    def _rewards(self, rollout: Trajectory, outcome: float, potential: Sequence[float], penalty: float) -> list[float]:
        if self.rewards == "turn":
            earned = turn_rewards(rollout, outcome, penalty)
        else:
            whole = outcome if self.rewards == "accuracy" else trajectory_reward(rollout, outcome)
            earned = [0.0] * (len(rollout.turns) - 1) + [whole]
        gains = [self.gamma * later - now for now, later in zip(potential, [*potential[1:], 0.0], strict=True)]
        if self.progress:
            gains = [gain + self.progress * turn.progress for gain, turn in zip(gains, rollout.turns, strict=True)]
        return [reward + gain for reward, gain in zip(earned, gains, strict=True)]


def graded(rollouts: Sequence[Trajectory], correct: Sequence[bool | float]) -> list[float]:
    """The outcome of each rollout, in [0, 1]; a ValueError names another, or says that there are too many or few."""
    outcomes = [finite_number(f"correct[{i}]", grade, low=0.0, high=1.0) for i, grade in enumerate(correct)]
    if len(outcomes) != len(rollouts):
        raise ValueError(f"correct must hold one entry a rollout: expected {len(rollouts)}, got {len(outcomes)}")
    return outcomes


def group_numbers(rollouts: Sequence[Trajectory], group_size: int) -> list[int]:
    """The group of each rollout: that of its problem; a problem that was drawn twice has two groups.

    Where some rollouts were dropped, so that they are not groups of ``group_size``, a problem's others stay one group.
    """
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")
    problems = [(rollout.problem.id, rollout.problem.question) for rollout in rollouts]
    counts, seen, numbers, groups = Counter(problems), Counter(), {}, []
    for problem in problems:
        part = 0 if counts[problem] % group_size else seen[problem] // group_size
        groups.append(numbers.setdefault((problem, part), len(numbers)))
        seen[problem] += 1
    return groups
