"""Group Turn Policy Optimization (GTPO, arXiv 2511.14846) for multi-turn reasoning with a Python tool.

The rooms, in the order of the data's way; each imports only from those before it:

- `types.py`: the nouns: Problem, Turn, Trajectory, StopReason, ExecutionResult
- `credit/`: the paper: graded trajectories in, rewards and advantages out; plain Python
- `sandbox/`: model-written Python, confined
- `tasks/`: problems and graders
- `policy/`: a transformers causal LM: load, adapt, attention
- `rollout/`: problems to trajectories: protocol, chat, engine, forward pass, transcript
- `train/`: advantages to a gradient, and runs that survive
- `experiments/`: runs to evidence: arms, regimes, evaluation, statistics, figures, pages
- `cli.py`: the door: commands

Eight rollouts, scored with GTPO:

>>> import gtpo_mini as gm
>>> policy, task = gm.load_policy("tiny"), gm.load_task("branching")
>>> ((rollouts, correct),) = gm.sample(policy, task, problems=1, group_size=8)
>>> rewards, advantages = gm.ARMS["gtpo"](rollouts, correct, group_size=8)
>>> len(advantages), len(advantages[0]) == len(rollouts[0].turns)
(8, True)
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: Where each public name lives; it is imported when it is first asked for (PEP 562).
_HOMES = {
    **dict.fromkeys(("Problem", "Turn", "Trajectory", "StopReason", "ExecutionResult"), "types"),
    **dict.fromkeys(("turn_rewards", "trajectory_reward", "turn_returns", "gtpo_advantages"), "credit"),
    **dict.fromkeys(("grpo_advantages", "shape_outcomes", "load_similarity", "Credit", "ARMS"), "credit"),
    **dict.fromkeys(("Sandbox", "SandboxUnavailable", "Limits", "run_code"), "sandbox"),
    **dict.fromkeys(("Task", "load_task", "list_tasks"), "tasks.task"),
    **dict.fromkeys(("ToolProtocol", "load_protocol"), "rollout.protocol"),
    **{"load_policy": "policy.load", "Policy": "policy.model"},
    **{"RolloutEngine": "rollout.engine", "SamplingSettings": "rollout.settings"},
    **{"TrainConfig": "train.config", "load_profile": "train.config", "Trainer": "train.trainer"},
    **dict.fromkeys(("evaluate", "sample"), "experiments.evaluate"),
    **{"run_arms": "experiments.experiments", "load_runs": "train.record", "compare": "experiments.compare"},
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gtpo_mini' has no attribute {name!r}")
    try:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"gtpo_mini.{name} needs {error.name}: pip install 'gtpo-mini[train]'") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
