"""The arms of the ablation, in one table: each is the base configuration with a few fields replaced."""

from __future__ import annotations

from dataclasses import replace

from ..train.config import TrainConfig

_GRPO, _FULL = {"method": "grpo"}, {"method": "gtpo"}

#: Each arm is the base configuration with these fields replaced.
ARMS: dict[str, dict[str, object]] = {
    # The ladder: each step adds one part.
    "grpo": _GRPO,  # A_i = norm(min(accuracy_i, format_i))
    "grpo_accuracy": {**_GRPO, "rewards": "accuracy"},  # A_i = norm(accuracy_i)
    "+turn_rewards": {
        **_FULL,
        "returns": False,
        "alpha": 0.0,
    },  # A_i = norm(sum_j r_ij): penalties a turn, one advantage a rollout
    "+returns": {**_FULL, "alpha": 0.0},  # A_ij = norm(R_ij), R_ij = sum_m gamma^(m-j) r_im
    "gtpo": _FULL,  # the same, wrong rollouts earning alpha * mean similarity
    # Leave one out of the whole. Without shaping it is "+returns".
    "no_turn_rewards": {**_FULL, "rewards": "trajectory"},
    "no_returns": {**_FULL, "returns": False},
    # Settings of the whole; its own are gamma 0.9, normalize "group", alpha 0.5, similarity "ngram".
    **{f"gamma_{gamma}": {**_FULL, "gamma": gamma} for gamma in (0.5, 0.8, 0.95, 1.0)},
    **{f"normalize_{name}": {**_FULL, "normalize": name} for name in ("batch", "turn", "first")},
    **{f"alpha_{alpha}": {**_FULL, "alpha": alpha} for alpha in (0.25, 1.0)},
    **{f"similarity_{name}": {**_FULL, "similarity": name} for name in ("embedding", "structure")},
    # Our own mends, beside the paper's form. The code's similarity as a potential, which leaves the best policy alone:
    "potential": {**_FULL, "shaping": "potential"},
    # and no penalty for a call that fails, so that a group in which nothing is right teaches nothing.
    "no_penalty": {**_FULL, "format_penalty": 0.0},
}

#: Arms that are no part of the paper.
MENDS = ("potential", "no_penalty")

#: Other names of the same arms, as a reader of the ladder looks for them.
SAME_AS = {
    **{"+shaping": "gtpo", "no_shaping": "+returns", "gamma_0.9": "gtpo", "normalize_group": "gtpo"},
    **{"alpha_0.0": "+returns", "alpha_0.5": "gtpo", "similarity_ngram": "gtpo"},
}


def arm_config(arm: str, base: TrainConfig) -> TrainConfig:
    """The configuration of an arm.

    Args:
        arm: a key of `ARMS` or of `SAME_AS`.
        base: what all arms share.

    Raises:
        ValueError: unknown arm.

    >>> arm_config("grpo", TrainConfig()).method
    'grpo'
    >>> arm_config("no_shaping", TrainConfig()) == arm_config("+returns", TrainConfig())
    True
    """
    arm = SAME_AS.get(arm, arm)
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r}; known: {', '.join(ARMS)}")
    return replace(base, **ARMS[arm])
