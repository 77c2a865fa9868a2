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
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..policy.model import Policy
from ..sandbox import Sandbox
from ..tasks.task import Task
from ..types import ExecutionResult, Problem, StopReason, Trajectory, Turn
from .builder import RolloutBuilder
from .chat import Chat
from .cuda_graph import GraphedSteps
from .forward import CHUNK, PASS, ForwardPass
from .memory import TrainingStopped, within_memory
from .observation import run_call
from .protocol import ToolProtocol
from .settings import SamplingSettings

Finished = Callable[[int, Trajectory], None]
_BEAT = 4  # results enter at every 4th step, at the earliest 2 after the call: so that one pass reads several
_FULL = 0.8  # when fewer than this share of the rows is in use, they move together
_PATIENCE = 1.0  # seconds, on a GPU
_FRAME = 100  # tokens around a tool's result, which has at most one a character


class RolloutEngine:
    """Samples groups of multi-turn rollouts of a policy that writes turns in a protocol and runs code in a sandbox."""

    def __init__(
        self, policy: Policy, protocol: ToolProtocol, sandbox: Sandbox, settings: SamplingSettings | None = None
    ) -> None:
        self.policy, self.protocol, self.sandbox = policy, protocol, sandbox
        self.chat = Chat(policy, protocol)
        self.settings = settings or SamplingSettings()
        self.graphs = GraphedSteps() if policy.device.type == "cuda" else None
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

    def generate(
        self,
        problems: Sequence[Problem],
        group_size: int = 1,
        seed: int = 0,
        finished: Finished | None = None,
        task: Task | None = None,
        first: int = 0,
    ) -> list[Trajectory]:
        """Sample ``group_size`` rollouts of each problem.

        Args:
            problems: P problems, at least one.
            group_size: G rollouts a problem, at least 1.
            seed: rollout i draws from a random stream of its own, (seed, i), whatever runs beside it.
            finished: called with i and rollout i as soon as it has stopped; it changes no schedule, and so no bit.
            task: whose setup runs first in each session, and which gives turns their `Turn.progress`; None: neither.
            first: number of the first rollout, where others are made by another process.

        Returns:
            P * G trajectories; those of problem p are ``[p * G : (p + 1) * G]``. Out of GPU memory, fewer rollouts are
            decoded at once from then on.

        Raises:
            TrainingStopped: one rollout at a time does not fit into the GPU's memory.
            ValueError: a prompt that does not fit; a function of the task that fails.
        """
        if group_size < 1 or not problems:
            raise ValueError(f"group_size={group_size}, {len(problems)} problems: both must be at least 1")
        training = self.policy.model.training
        self.policy.model.eval()
        try:
            return within_memory(
                lambda: _Batch(self, problems, group_size, seed, finished, task, first).finish(), self._decode_fewer
            )
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


class _Ongoing(RolloutBuilder):
    """A rollout on its row; ``ids[:cached]`` are in the cache."""

    def __init__(self, number: int, group: int, problem: Problem, prompt: Sequence[int]) -> None:
        super().__init__(problem, prompt)
        self.number, self.group, self.row, self.cached, self.turn_start, self.limit = number, group, -1, 0, 0, 0
        self.uniforms: list[float] = []  # one random number a token of the turn
        self.turn: Turn | None = None  # the turn that waits for its tool
        self.pending: Future[tuple[ExecutionResult, ExecutionResult]] | None = None  # what came back, what is told
        self.due, self.late = 0, False  # the step at which the result enters; or nobody waits for it any more
        self.session: Any = None
        self.stop: StopReason | None = None
        self.answer: str | None = None


class _Batch:
    """One call of `RolloutEngine.generate`: P groups of ``group_size`` rollouts on a fixed number of rows."""

    def __init__(
        self,
        engine: RolloutEngine,
        problems: Sequence[Problem],
        group_size: int,
        seed: int,
        finished: Finished | None,
        task: Task | None,
        first: int,
    ) -> None:
        self.finished, self.task = finished, task
        self.policy, self.protocol, self.sandbox = engine.policy, engine.protocol, engine.sandbox
        self.encode_result = engine.encode_result
        self.settings, self.stop_tokens, self.seed = engine.settings, engine.stop_tokens, seed
        self.telling = self.stop_tokens | self.policy.eos_ids  # tokens at which a turn may end
        self.rollouts: list[_Ongoing] = []
        for group, problem in enumerate(problems):
            ids = engine.encode_prompt(problem)
            for number in range(group * group_size, (group + 1) * group_size):
                self.rollouts.append(_Ongoing(first + number, group, problem, ids))
        self.queue = deque(self.rollouts)
        self.rows: list[_Ongoing | None] = [None] * min(self.settings.rows, len(self.rollouts))
        longest = max(r.prompt_length for r in self.rollouts)
        room = self.settings.max_turns * (self.settings.max_turn_tokens + self.settings.max_output + _FRAME)
        self.context = min(engine.context, longest + room)
        share = group_size > 1 and all(r.prompt_length > 1 for r in self.rollouts)
        self.forward = ForwardPass(self.policy, len(self.rows), share, engine.graphs)
        self.patience = self.settings.tool_patience
        if self.patience is None and self.policy.device.type != "cpu":
            self.patience = _PATIENCE
        self.clock, self.abandoned = 0, False

    @torch.inference_mode()
    def finish(self) -> list[Trajectory]:
        """Step until every rollout has stopped."""
        try:
            with ThreadPoolExecutor(getattr(self.sandbox, "workers", 2)) as self.pool:
                try:
                    while self.queue or any(self.rows):
                        self._step()
                except BaseException:
                    self._abandon()
                    raise
        finally:
            if self.forward.graphs is not None:
                self.forward.graphs.forget()
            for rollout in self.rollouts:  # none is open where all went well
                if rollout.session is not None:
                    rollout.session.close()
        return [rollout.freeze(rollout.stop, rollout.answer) for rollout in self.rollouts]

    def _abandon(self) -> None:
        """Interrupted: end the calls that run and drop those that wait, or leaving the pool would wait for them all."""
        self.abandoned = True
        for rollout in self.rollouts:
            if rollout.pending:
                rollout.pending.cancel()
            if rollout.session is not None:
                rollout.session.close()

    def _step(self) -> None:
        self.clock += 1
        self._start_rollouts()
        live = [r for r in self.rows if r is not None]
        self._take_results(live)
        ready = [r for r in self.rows if r is not None and not r.pending]
        behind = [r for r in ready if len(r.ids) - r.cached > 1]
        current = [r for r in ready if len(r.ids) - r.cached == 1]
        while behind:
            behind = self._catch_up(behind)
        if current:
            logits = self._decode()
            for rollout in current:
                rollout.cached += 1
            self._sample(current, logits[[r.row for r in current]])
        self._compact()

    def _start_rollouts(self) -> None:
        """Give free rows to waiting rollouts; a group's prompt is computed for its first rollout only."""
        begun = []
        for row in range(len(self.rows)):
            if self.rows[row] is None and self.queue:
                rollout = self.rows[row] = self.queue.popleft()
                rollout.row = row
                self._begin_turn(rollout)
                begun.append(rollout)
        if not begun:
            return
        # The last prompt token is left to the first decoding step, which every rollout takes for itself.
        prompts = {r.group: r.ids[:-1] for r in begun if r.group not in self.forward.prompts and r.prompt_length > 1}
        self.forward.read_prompts(prompts)
        members = [r for r in begun if r.prompt_length > 1]
        self.forward.begin_rows([r.row for r in members], [r.group for r in members])
        for rollout in members:
            rollout.cached = rollout.prompt_length - 1
        self.forward.drop_prompts({r.group for r in self.queue})

    def _catch_up(self, behind: list[_Ongoing]) -> list[_Ongoing]:
        """Read a chunk of the rollouts with the most to read; returns those left for another pass of this step."""
        behind.sort(key=lambda r: r.cached - len(r.ids))
        lengths = [min(CHUNK, len(r.ids) - r.cached) for r in behind]
        # Much shorter ones would mostly be padding: they go in the next pass.
        most = min(max(1, PASS // lengths[0]), sum(2 * n >= lengths[0] for n in lengths))
        batch = behind[:most]
        chunks = [r.ids[r.cached : r.cached + CHUNK] for r in batch]
        logits = self.forward.read([r.row for r in batch], chunks, [r.cached for r in batch])
        for rollout, chunk in zip(batch, chunks, strict=True):
            rollout.cached += len(chunk)
        done = [i for i, r in enumerate(batch) if r.cached == len(r.ids)]
        if done:
            self._sample([batch[i] for i in done], logits[done])
        return behind[most:]

    def _decode(self) -> torch.Tensor:
        """One token for every row, logits (R, V). Rows that wait or are empty compute what nobody reads."""
        ids = [[0 if r is None or r.pending else r.ids[-1]] for r in self.rows]
        at = [base if r is None else r.cached for r, base in zip(self.rows, self.forward.bases, strict=True)]
        return self.forward.read(range(len(ids)), ids, at)

    def _sample(self, rollouts: list[_Ongoing], logits: torch.Tensor) -> None:
        """Draw one token for each of R rollouts from logits (R, V), each with its own random numbers."""
        temperature = self.settings.temperature
        logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)  # (R, V)
        if temperature:
            drawn = torch.tensor([[r.uniforms[len(r.ids) - r.turn_start]] for r in rollouts], dtype=torch.float64)
            cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)  # (R, V)
            below = drawn.to(logits.device) * cumulative[:, -1:]  # (R, 1)
            tokens = torch.searchsorted(cumulative, below, right=True).clamp_(max=logits.shape[-1] - 1)
        else:
            tokens = logits.argmax(-1, keepdim=True)  # (R, 1)
        chosen = logprobs.gather(-1, tokens)[:, 0].tolist()
        for rollout, token, logprob in zip(rollouts, tokens[:, 0].tolist(), chosen, strict=True):
            rollout.push([token], [logprob])
            if token in self.telling or len(rollout.ids) >= rollout.limit:
                self._after_token(rollout, token)

    def _begin_turn(self, rollout: _Ongoing) -> None:
        rollout.turn_start = len(rollout.ids)
        rollout.limit = min(rollout.turn_start + self.settings.max_turn_tokens, self.context)
        stream = np.random.default_rng([self.seed, rollout.number, len(rollout.turns)])
        rollout.uniforms = stream.random(self.settings.max_turn_tokens).tolist()

    def _after_token(self, rollout: _Ongoing, token: int) -> None:
        ended = token in self.policy.eos_ids
        if not ended and token in self.stop_tokens:
            ended = self.protocol.is_complete(self.policy.decode(rollout.ids[rollout.turn_start :]))
        if not ended and len(rollout.ids) < rollout.limit:
            return
        text = self.policy.decode(rollout.ids[rollout.turn_start :])
        parsed = self.protocol.read(text)
        turn = rollout.turn = Turn(text, code=parsed.code, malformed=parsed.malformed)
        rollout.due, rollout.late = -(-(self.clock + 2) // _BEAT) * _BEAT, False
        if not ended:
            full = len(rollout.ids) < rollout.turn_start + self.settings.max_turn_tokens
            self._stop(rollout, StopReason.CONTEXT if full else StopReason.MAX_TOKENS, turn)
        elif turn.code is not None:
            rollout.pending = self.pool.submit(self._run_tool, rollout, turn)
        elif turn.malformed:
            rollout.pending = Future()
            complaint = parsed.complaint or "The call could not be read; nothing was run."
            rollout.pending.set_result((ExecutionResult(ok=False, error=complaint),) * 2)
        else:
            rollout.answer = parsed.answer
            self._stop(rollout, StopReason.NO_ANSWER if parsed.answer is None else StopReason.ANSWER, turn)

    def _run_tool(self, rollout: _Ongoing, turn: Turn) -> tuple[ExecutionResult, ExecutionResult]:
        if rollout.session is None and not self.abandoned:
            opened = self.sandbox.session() if self.task is None else self.task.session(self.sandbox, rollout.problem)
            rollout.session = opened
            if self.abandoned:  # meanwhile, so that nobody else closes it
                opened.close()
        return run_call(rollout.session, turn.code or "", rollout.problem.question, turn.text, self.settings)

    def _take_results(self, live: list[_Ongoing]) -> None:
        """Let in the results that are due; one that keeps the others waiting for too long enters when it is there."""
        idle = all(r.pending for r in live)
        if idle:  # nothing to decode: go on to the next result
            self.clock = max(self.clock, min(r.due for r in live))
        due = [r for r in live if r.pending and r.due <= self.clock]
        if due:
            wait([r.pending for r in due if not r.late], self.patience)
        if idle and not any(r.pending.done() for r in due):
            wait([r.pending for r in live], return_when=FIRST_COMPLETED)
        for rollout in due:
            if rollout.pending.done():
                self._take_result(rollout)
            else:
                rollout.late, rollout.due = True, self.clock + _BEAT

    def _take_result(self, rollout: _Ongoing) -> None:
        """Append the tool's text and begin the next turn."""
        result, told = rollout.pending.result()
        rollout.pending = None
        turn = replace(rollout.turn, result=result, told=None if told is result else told)
        tool_ids = self.encode_result(told)
        if len(rollout.turns) + 1 >= self.settings.max_turns:
            self._stop(rollout, StopReason.MAX_TURNS, turn)
        elif len(rollout.ids) + len(tool_ids) >= self.context:
            self._stop(rollout, StopReason.CONTEXT, turn)
        else:
            rollout.push_result(tool_ids)
            rollout.end_turn(turn)
            self._begin_turn(rollout)

    def _stop(self, rollout: _Ongoing, reason: StopReason, turn: Turn) -> None:
        rollout.end_turn(turn)
        if self.task is not None:
            rollout.turns = self.task.reward_turns(rollout.problem, rollout.turns)
        rollout.stop = reason
        self.rows[rollout.row] = None
        self._close_session(rollout)
        if self.finished is not None:
            self.finished(rollout.number, rollout.freeze(reason, rollout.answer))

    def _close_session(self, rollout: _Ongoing) -> None:
        if rollout.session is not None:
            self.pool.submit(rollout.session.close)  # leaving the pool waits for it
            rollout.session = None

    def _compact(self) -> None:
        """Once nobody waits for a row, decode fewer rows: the last ones move to empty places."""
        live = [r for r in self.rows if r is not None]
        if self.queue or not live or len(live) > len(self.rows) * _FULL:
            return
        empty = [row for row in range(len(live)) if self.rows[row] is None]
        moved = [r for r in live if r.row >= len(live)]
        self.forward.shrink(len(live), [r.row for r in moved], empty)
        for rollout, row in zip(moved, empty, strict=True):
            rollout.row = row
            self.rows[row] = rollout
        del self.rows[len(live) :]
