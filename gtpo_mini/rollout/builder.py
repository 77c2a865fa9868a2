"""A rollout under way: it grows token by token, and becomes a `Trajectory` when it stops."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import Problem, StopReason, Trajectory, Turn


class RolloutBuilder:
    """The one way to a `Trajectory`: the ids of the prompt, then the policy's and the tool's, turn by turn.

    >>> builder = RolloutBuilder(Problem("1", "6 * 7?", "42"), prompt=[1, 2])
    >>> builder.push([3], [-0.5])
    >>> builder.end_turn(Turn("42"))
    >>> builder.freeze(StopReason.ANSWER, "42").loss_mask
    (0, 0, 1)
    """

    def __init__(self, problem: Problem, prompt: Sequence[int]) -> None:
        self.problem, self.prompt_length = problem, len(prompt)
        self.ids, self.turns = list(prompt), list[Turn]()
        self.mask, self.index, self.logprobs = [0] * len(prompt), [-1] * len(prompt), [0.0] * len(prompt)

    def push(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Tokens of the policy, with the sampler's log-probabilities."""
        self.ids.extend(ids)
        self.logprobs.extend(logprobs)

    def push_result(self, ids: Sequence[int]) -> None:
        """A tool's text; it belongs to the turn that asked for it."""
        self._label(1)
        self.push(ids, [0.0] * len(ids))
        self._label(0)

    def end_turn(self, turn: Turn) -> None:
        """What comes from here on belongs to the next turn."""
        self._label(1)
        self.turns.append(turn)

    def _label(self, mask: int) -> None:
        """The tokens since the last label: whose they are, and their turn."""
        count = len(self.ids) - len(self.mask)
        self.mask += [mask] * count
        self.index += [len(self.turns)] * count

    def freeze(self, stop: StopReason, answer: str | None) -> Trajectory:
        """What it has become."""
        self._label(1)
        return Trajectory(
            problem=self.problem,
            token_ids=tuple(self.ids),
            prompt_length=self.prompt_length,
            loss_mask=tuple(self.mask),
            turn_index=tuple(self.index),
            logprobs=tuple(self.logprobs),
            turns=tuple(self.turns),
            stop=stop,
            answer=answer,
        )
