"""How rollouts are sampled."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingSettings:
    """How rollouts are sampled.

    Args:
        temperature: above 0; or 0 for greedy decoding (log-probabilities are then those at temperature 1).
        max_turns: policy turns a rollout, at least 1.
        max_turn_tokens: policy tokens a turn, at least 1.
        max_context: tokens a rollout, prompt included; None takes the model's own limit.
        max_output: characters of a tool's output that go back to the policy, at least 1; of a longer one its beginning
            and its end, and a line between that says so.
        select_output: instead, the lines that say most about the question and the turn's text (`select_lines`); then
            ``max_output`` is at least 100.
        rows: rollouts decoded at once.
        tool_patience: seconds that decoding waits for a tool's result at the step where it is due; a later one does
            not hold up the others, as long as fewer calls are late than the sandbox has workers. None: without end on a
            CPU, so that the same seed gives the same bits, and 1 s on a GPU, which gives no such promise.
    """

    temperature: float = 1.0
    max_turns: int = 6
    max_turn_tokens: int = 256
    max_context: int | None = None
    max_output: int = 2000
    select_output: bool = False
    rows: int = 64
    tool_patience: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < 100:
            raise ValueError(f"temperature={self.temperature}: must be in [0, 100)")
        for name in ("max_turns", "max_turn_tokens", "max_output", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.select_output and self.max_output < 100:
            raise ValueError(f"max_output={self.max_output}: must be at least 100 where lines are selected")
        if self.max_context is not None and self.max_context < 1:
            raise ValueError(f"max_context={self.max_context}: must be at least 1, or None")
        if self.tool_patience is not None and not 0 <= self.tool_patience < math.inf:
            raise ValueError(f"tool_patience={self.tool_patience}: must be a finite number from 0 up, or None")
