"""The nouns, frozen: ``Problem -> Trajectory (turns, token ids) -> turn rewards -> advantages``.

A reward of the method is never stored in a trajectory, so that it can never be overwritten by an advantage; what the
task itself gives a turn (`Turn.progress`) is a fact of the rollout, as the tool's result is.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class StopReason(StrEnum):
    """Why a rollout ended."""

    ANSWER = "answer"  #: the last turn holds a final answer
    NO_ANSWER = "no_answer"  #: the last turn holds neither a tool call nor an answer
    MAX_TURNS = "max_turns"  #: every allowed turn made a call, none answered
    MAX_TOKENS = "max_tokens"  #: a turn used up its tokens before it was complete (truncated)
    CONTEXT = "context"  #: the next token or tool result does not fit the model's context (truncated)

    @property
    def truncated(self) -> bool:
        """True where the rollout was cut off rather than ended by the policy."""
        return self in (StopReason.MAX_TOKENS, StopReason.CONTEXT)


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer.

    >>> Problem(id="1", question="What is 6 * 7?", answer="42").answer
    '42'
    """

    id: str
    question: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExecutionResult:
    """What came back from running one piece of model-written code. Failures are data, never exceptions."""

    ok: bool  #: ran to its end inside all limits, without an exception
    stdout: str = ""
    stderr: str = ""
    error: str = ""  #: what the model is told when not ok: last lines of the traceback, or which limit was hit
    timed_out: bool = False  #: the CPU or the wall limit was hit
    truncated: bool = False  #: stdout or stderr was cut at the output limit
    cpu_seconds: float = field(default=0.0, compare=False)  # two runs of one code are equal but for their times
    wall_seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Turn:
    """One policy turn: its text, the tool call in it (if any) and what the tool returned."""

    text: str  #: decoded policy tokens, for reading only; training uses the ids
    code: str | None = None  #: code of the tool call; None when the turn makes no call
    malformed: bool = False  #: a call was begun but cannot be read
    result: ExecutionResult | None = None  #: None when nothing was run
    progress: float = 0.0  #: what the task gives for this turn (`Task.turn_reward`); 0 where it gives nothing
    told: ExecutionResult | None = None  #: of a long result, what the policy got; None: all of it

    @property
    def calls_tool(self) -> bool:
        """True if the turn makes a tool call, readable or not."""
        return self.code is not None or self.malformed

    @property
    def invalid_call(self) -> bool:
        """True if the turn makes a call that cannot be read, or whose code did not run to its end.

        >>> Turn("...", code="1/0", result=ExecutionResult(ok=False)).invalid_call, Turn("It is 4.").invalid_call
        (True, False)
        """
        return self.malformed or (self.result is not None and not self.result.ok)


@dataclass(frozen=True)
class Trajectory:
    """One rollout as one growing list of token ids (T tokens, N turns); nothing is ever encoded twice."""

    problem: Problem
    token_ids: tuple[int, ...]  #: (T,)
    prompt_length: int
    loss_mask: tuple[int, ...]  #: (T,): 1 where the policy sampled the token, 0 for the prompt and for tool output
    turn_index: tuple[int, ...]  #: (T,): the token's turn (tool output: the turn that asked for it), -1: the prompt
    logprobs: tuple[float, ...]  #: (T,): the sampler's log-probability of a policy token, else 0
    turns: tuple[Turn, ...]  #: (N,)
    stop: StopReason
    answer: str | None = None  #: the final answer as the policy wrote it

    @property
    def code(self) -> str:
        """The code of all turns that ran to their end, concatenated: c_i of the reward shaping.

        Code that did not run is left out, because a syntax error looks just like its correct twin.
        """
        return "\n".join(turn.code for turn in self.turns if turn.result is not None and turn.result.ok and turn.code)

    @property
    def code_before_turns(self) -> list[str]:
        """The code that has run before each of the N turns: "" before the first, then more and more of `code`."""
        ran = [turn.code if turn.result is not None and turn.result.ok and turn.code else "" for turn in self.turns]
        return ["\n".join(filter(None, ran[:j])) for j in range(len(ran))]


def import_named(kind: str, name: str) -> Any:
    """What ``MODULE:NAME`` names; a ValueError that says which ``kind`` of thing cannot be imported, and why."""
    try:
        return pkgutil.resolve_name(name)
    except Exception as error:  # importing a module raises whatever it happens to raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{kind} {name!r}: cannot be imported ({type(error).__name__}: {reason})") from error
