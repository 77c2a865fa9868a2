"""Multi-turn sampling with a tool: tokens in, tokens out.

A rollout is one growing list of token ids. The policy's ids are kept as sampled, with their log-probabilities;
the tool's text is encoded once and appended. The cache lives across turns, a group's prompt is computed once,
a finished rollout gives its row to the next, and tool code runs while the other rows decode.

The step at which a tool's result enters is fixed by the schedule, not left to the clock: so the same seed
gives the same rollouts, to the bit, on a CPU. Only a call that takes longer than ``tool_patience`` (on a CPU without
end, unless set) enters when it is done, so that it does not hold up the others; logits may then differ by float error.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from ..policy.model import Policy
from ..sandbox import Sandbox
from ..types import ExecutionResult, Problem, Trajectory
from .chat import Chat
from .cuda_graph import StepReplay
from .memory import TrainingStopped, within_memory
from .protocol import ToolProtocol
from .scheduler import Scheduler
from .settings import SamplingSettings


class RolloutEngine:
    """Samples groups of multi-turn rollouts.

    Args:
        policy, protocol, sandbox: who acts, how turns are written, where code runs.
        settings: how to sample.
    """

    def __init__(
        self, policy: Policy, protocol: ToolProtocol, sandbox: Sandbox, settings: SamplingSettings | None = None
    ) -> None:
        self.policy, self.protocol, self.sandbox = policy, protocol, sandbox
        self.chat = Chat(policy, protocol)
        self.settings = settings or SamplingSettings()
        self.replay = StepReplay() if policy.device.type == "cuda" else None
        self.context = min(self.settings.max_context or policy.context_length, policy.context_length)
        pieces = (policy.tokenizer.decode([i]) for i in range(len(policy.tokenizer)))
        self.stop_tokens = {i for i, piece in enumerate(pieces) if protocol.stop_character in piece}

    def encode_prompt(self, problem: Problem) -> list[int]:
        """Token ids of the prompt.

        Raises:
            ValueError: it leaves no room in the context; the message names the problem.
        """
        ids = self.chat.encode_prompt(problem)
        if len(ids) >= self.context:
            raise ValueError(
                f"problem {problem.id!r}: its prompt takes {len(ids)} tokens, but the context holds {self.context}; "
                "shorten the question, drop the row, or use a model (or --max-context) with more room"
            )
        return ids

    def encode_result(self, result: ExecutionResult) -> list[int]:
        """Token ids that carry a tool's result back to the policy."""
        return self.chat.encode_result(result)

    def generate(self, problems: Sequence[Problem], group_size: int = 1, seed: int = 0) -> list[Trajectory]:
        """Sample ``group_size`` rollouts of each problem.

        Args:
            problems: P problems, at least one.
            group_size: G rollouts a problem, at least 1.
            seed: rollout i draws from a random stream of its own, (seed, i), whatever runs beside it.

        Returns:
            P * G trajectories; those of problem p are ``[p * G : (p + 1) * G]``. Out of GPU memory, fewer rollouts are
            decoded at once from then on.

        Raises:
            TrainingStopped: one rollout at a time does not fit into the GPU's memory.
        """
        if group_size < 1 or not problems:
            raise ValueError(f"group_size={group_size}, {len(problems)} problems: both must be at least 1")
        training = self.policy.model.training
        self.policy.model.eval()
        try:
            return within_memory(lambda: Scheduler(self, problems, group_size, seed).finish(), self._decode_fewer)
        finally:
            self.policy.model.train(training)

    def _decode_fewer(self) -> None:
        rows = self.settings.rows
        if rows == 1:
            raise TrainingStopped(
                "out of GPU memory while one rollout is decoded; use a shorter max_context or max_turn_tokens, a "
                "4-bit base (quantize nf4) or a smaller model"
            )
        self.settings = replace(self.settings, rows=rows // 2)
        warnings.warn(f"out of GPU memory: {rows // 2} rollouts are decoded at once, not {rows}", stacklevel=4)
