"""The paper: graded trajectories in, rewards and advantages out. Plain Python, so that any trainer can use it."""

from .advantages import grpo_advantages, gtpo_advantages, turn_returns
from .arms import ARMS, assign_credit
from .credit import Credit
from .later import LATER
from .provenance import provenance
from .rewards import trajectory_reward, turn_rewards
from .shaping import shape_outcomes, turn_potentials
from .similarity import load_similarity

__all__ = [
    "ARMS",
    "LATER",
    "Credit",
    "assign_credit",
    "grpo_advantages",
    "gtpo_advantages",
    "load_similarity",
    "provenance",
    "shape_outcomes",
    "trajectory_reward",
    "turn_potentials",
    "turn_returns",
    "turn_rewards",
]
