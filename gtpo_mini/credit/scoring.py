"""From graded rollouts to rewards and advantages: the whole method in one function."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..train.config import TrainConfig
from ..types import Trajectory
from .advantages import grpo_advantages, gtpo_advantages
from .rewards import trajectory_reward, turn_rewards
from .shaping import load_similarity, shape_outcomes, turn_potentials


def score(
    config: TrainConfig, rollouts: Sequence[Trajectory], correct: Sequence[bool]
) -> tuple[list[list[float]], list[list[float]]]:
    """From graded rollouts to rewards and advantages: the whole method.

    Args:
        config: the fields from ``method`` to ``format_penalty`` count, and ``group_size``.
        rollouts: whole groups of ``group_size``, one after the other.
        correct: whether each final answer is right.

    Returns:
        (rewards, advantages), each one list a rollout and one number a turn. A reward of the whole rollout
        stands at its last turn; under GRPO every turn has the rollout's advantage.
    """
    size, gtpo = config.group_size, config.method == "gtpo"
    groups = [i // size for i in range(len(rollouts))]
    outcomes = [float(right) for right in correct]
    potentials = [[0.0] * len(rollout.turns) for rollout in rollouts]
    for start in range(0, len(rollouts) if gtpo and config.alpha else 0, size):
        members, similarity = slice(start, start + size), load_similarity(config.similarity)
        if config.shaping == "outcome":
            codes = [rollout.code for rollout in rollouts[members]]
            outcomes[members] = shape_outcomes(codes, correct[members], similarity, config.alpha)
        else:
            codes_by_turn = [rollout.code_before_turns for rollout in rollouts[members]]
            potentials[members] = turn_potentials(codes_by_turn, correct[members], similarity, config.alpha)
    rewards = []
    for rollout, outcome, potential in zip(rollouts, outcomes, potentials, strict=True):
        if config.reward_kind == "turn":
            earned = turn_rewards(rollout, outcome, config.format_penalty)
        else:
            whole = outcome if config.reward_kind == "accuracy" else trajectory_reward(rollout, outcome)
            earned = [0.0] * (len(rollout.turns) - 1) + [whole]
        gains = [config.gamma * later - now for now, later in zip(potential, [*potential[1:], 0.0], strict=True)]
        rewards.append([reward + gain for reward, gain in zip(earned, gains, strict=True)])
    if gtpo and config.returns:
        return rewards, gtpo_advantages(rewards, config.gamma, config.normalize, groups)
    whole_rollout = grpo_advantages([math.fsum(rewards_N) for rewards_N in rewards], groups)
    return rewards, [[a] * len(r.turns) for a, r in zip(whole_rollout, rollouts, strict=True)]
