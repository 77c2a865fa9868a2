"""The rows of one call of `RolloutEngine.generate`: who is decoded, who waits for a tool, who comes next."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .cache import RowCache
from .types import ExecutionResult, Problem, StopReason, Trajectory, Turn

if TYPE_CHECKING:
    from .rollout import RolloutEngine

_BEAT = 4  # results enter at every 4th step, at the earliest 2 after the call: so that one pass reads several
_CHUNK = 512  # tokens of a row that one pass reads at most
_ROUND = 16  # cached places are read in multiples of this
_TOOL_TOKENS = 2100  # a tool result has at most 2,000 characters and its frame
_UNREADABLE = ExecutionResult(ok=False, error="The code block was not closed with ```, so nothing was run.")


@dataclass(eq=False)
class _Rollout:
    """A rollout under way. ``ids[:cached]`` are in the cache, in row ``row``."""

    number: int
    group: int
    problem: Problem
    prompt_length: int
    ids: list[int]
    mask: list[int]
    index: list[int]
    logprobs: list[float]
    row: int = -1
    cached: int = 0
    turn_start: int = 0
    uniforms: np.ndarray | None = None
    turns: list[Turn] = field(default_factory=list)
    turn: Turn | None = None  # the turn that waits for its tool
    pending: Future[ExecutionResult] | None = None
    due: int = 0  # the step at which the tool's result enters
    session: Any = None
    stop: StopReason | None = None
    answer: str | None = None

    def append(self, new_ids: Sequence[int], logprobs: Sequence[float] | None = None) -> None:
        """Policy tokens come with log-probabilities, tool tokens without."""
        self.ids.extend(new_ids)
        self.mask.extend([int(logprobs is not None)] * len(new_ids))
        self.index.extend([len(self.turns)] * len(new_ids))
        self.logprobs.extend([0.0] * len(new_ids) if logprobs is None else logprobs)

    def freeze(self) -> Trajectory:
        return Trajectory(
            problem=self.problem,
            token_ids=tuple(self.ids),
            prompt_length=self.prompt_length,
            loss_mask=tuple(self.mask),
            turn_index=tuple(self.index),
            logprobs=tuple(self.logprobs),
            turns=tuple(self.turns),
            stop=self.stop,
            answer=self.answer,
        )


class Scheduler:
    """One call of `RolloutEngine.generate`: P groups of ``group_size`` rollouts on a fixed number of rows."""

    def __init__(self, engine: RolloutEngine, problems: Sequence[Problem], group_size: int, seed: int) -> None:
        self.policy, self.protocol, self.sandbox = engine.policy, engine.protocol, engine.sandbox
        self.settings, self.stop_tokens, self.seed = engine.settings, engine.stop_tokens, seed
        self.rollouts: list[_Rollout] = []
        for group, problem in enumerate(problems):
            ids = engine.encode_prompt(problem)
            for number in range(group * group_size, (group + 1) * group_size):
                blank = ([0] * len(ids), [-1] * len(ids), [0.0] * len(ids))
                self.rollouts.append(_Rollout(number, group, problem, len(ids), list(ids), *blank))
        self.queue = deque(self.rollouts)
        self.rows: list[_Rollout | None] = [None] * min(self.settings.rows, len(self.rollouts))
        self.prefixes: dict[int, Any] = {}  # cached prompts of groups whose last rollout has not begun
        longest = max(r.prompt_length for r in self.rollouts)
        room = self.settings.max_turns * (self.settings.max_turn_tokens + _TOOL_TOKENS)
        self.context = min(engine.context, longest + room)
        layers = self.policy.model.config.get_text_config().num_hidden_layers
        self.cache = RowCache(layers, len(self.rows), self.context)
        self.clock = 0

    @torch.no_grad()
    def finish(self) -> list[Trajectory]:
        """Step until every rollout has stopped."""
        with ThreadPoolExecutor(max_workers=2) as self.pool:
            try:
                while self.queue or any(self.rows):
                    self._step()
            finally:
                for rollout in self.rollouts:
                    self._close_session(rollout)
        return [rollout.freeze() for rollout in self.rollouts]

    def _step(self) -> None:
        self.clock += 1
        self._start_rollouts()
        live = [r for r in self.rows if r is not None]
        if all(r.pending for r in live):  # nothing to decode: go on to the next result
            self.clock = max(self.clock, min(r.due for r in live))
        for rollout in live:
            if rollout.pending and rollout.due <= self.clock:
                self._take_result(rollout)
        ready = [r for r in self.rows if r is not None and not r.pending]
        behind = [r for r in ready if len(r.ids) - r.cached > 1]
        current = [r for r in ready if len(r.ids) - r.cached == 1]
        if behind:
            logits = self._forward(behind, [r.ids[r.cached : r.cached + _CHUNK] for r in behind])
            done = [i for i, r in enumerate(behind) if r.cached == len(r.ids)]
            if done:
                self._sample([behind[i] for i in done], logits[done])
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
        # The last prompt token is left to the first decoding step, which every rollout takes for itself.
        first = {r.group: r for r in reversed(begun) if r.group not in self.prefixes and r.prompt_length > 1}
        while unread := [r for r in first.values() if r.cached < r.prompt_length - 1]:
            self._forward(unread, [r.ids[r.cached : min(r.cached + _CHUNK, r.prompt_length - 1)] for r in unread])
        for group, rollout in first.items():
            self.prefixes[group] = self.cache.take_prefix(rollout.row, rollout.prompt_length - 1)
        for group in {r.group for r in begun} & set(self.prefixes):
            members = [r for r in begun if r.group == group and r.cached == 0]
            if members:
                self.cache.put_prefix([r.row for r in members], self.prefixes[group])
            for rollout in members:
                rollout.cached = rollout.prompt_length - 1
        for group in set(self.prefixes) - {r.group for r in self.queue}:
            del self.prefixes[group]

    def _forward(self, rollouts: list[_Rollout], chunks: list[list[int]]) -> torch.Tensor:
        """Read a chunk of each of R rollouts, padded on the left; logits (R, V) after each chunk's last token."""
        longest = max(map(len, chunks))
        ids = torch.zeros(len(chunks), longest, dtype=torch.long)  # (R, Q)
        positions = torch.zeros(len(chunks), longest, dtype=torch.long)  # (R, Q)
        places = torch.full((len(chunks), longest), self.cache.padding_place)  # (R, Q)
        for i, (rollout, chunk) in enumerate(zip(rollouts, chunks, strict=True)):
            ids[i, longest - len(chunk) :] = torch.tensor(chunk)
            positions[i, longest - len(chunk) :] = torch.arange(rollout.cached, rollout.cached + len(chunk))
            places[i, longest - len(chunk) :] = positions[i, longest - len(chunk) :]
            rollout.cached += len(chunk)
        rows = torch.tensor([r.row for r in rollouts])
        return self._pass(ids, positions, places, rows, leading=False)

    def _decode(self) -> torch.Tensor:
        """One token for every row, logits (R, V). Rows that wait or are empty compute what nobody reads."""
        ids = [0 if r is None or r.pending else r.ids[-1] for r in self.rows]
        at = torch.tensor([0 if r is None else r.cached for r in self.rows])[:, None]  # (R, 1)
        return self._pass(torch.tensor(ids)[:, None], at, at, torch.arange(len(ids)), leading=True)

    def _pass(
        self, ids: torch.Tensor, positions: torch.Tensor, places: torch.Tensor, rows: torch.Tensor, leading: bool
    ) -> torch.Tensor:
        """One forward pass of ids (R, Q) at ``positions``, cached at ``places``; logits (R, V) of the last column."""
        device = self.policy.device
        width = min(-(-(int(positions.max()) + 1) // _ROUND) * _ROUND, self.context)
        positions = positions.to(device)
        self.cache.aim(rows.to(device), places.to(device), width, leading)
        hidden_from = torch.arange(width, device=device) > positions[..., None]  # (R, Q, W)
        dtype = self.policy.model.get_input_embeddings().weight.dtype
        mask = torch.zeros(hidden_from.shape, dtype=dtype, device=device)
        mask = mask.masked_fill_(hidden_from, torch.finfo(dtype).min)[:, None]  # (R, 1, Q, W)
        hidden = self.policy.hidden_states(
            ids.to(device), attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        return self.policy.logits(hidden[:, -1])

    def _sample(self, rollouts: list[_Rollout], logits: torch.Tensor) -> None:
        """Draw one token for each of R rollouts from logits (R, V), each with its own random numbers."""
        temperature = self.settings.temperature
        logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)  # (R, V)
        if temperature:
            drawn = torch.tensor([[r.uniforms[len(r.ids) - r.turn_start]] for r in rollouts], dtype=torch.float64)
            cumulative = logprobs.double().exp().cumsum(-1)  # (R, V)
            below = drawn.to(logits.device) * cumulative[:, -1:]  # (R, 1)
            tokens = torch.searchsorted(cumulative, below, right=True).clamp_(max=logits.shape[-1] - 1)
        else:
            tokens = logits.argmax(-1, keepdim=True)  # (R, 1)
        chosen = logprobs.gather(-1, tokens)[:, 0].tolist()
        for rollout, token, logprob in zip(rollouts, tokens[:, 0].tolist(), chosen, strict=True):
            rollout.append([token], [logprob])
            self._after_token(rollout, token)

    def _begin_turn(self, rollout: _Rollout) -> None:
        rollout.turn_start = len(rollout.ids)
        stream = np.random.default_rng([self.seed, rollout.number, len(rollout.turns)])
        rollout.uniforms = stream.random(self.settings.max_turn_tokens)

    def _after_token(self, rollout: _Rollout, token: int) -> None:
        ended = token in self.policy.eos_ids
        if not ended and token in self.stop_tokens:
            ended = self.protocol.is_complete(self.policy.decode(rollout.ids[rollout.turn_start :]))
        if ended:
            self._end_turn(rollout)
        elif len(rollout.ids) - rollout.turn_start >= self.settings.max_turn_tokens:
            self._stop(rollout, StopReason.MAX_TOKENS, self._turn_now(rollout))
        elif len(rollout.ids) >= self.context:
            self._stop(rollout, StopReason.CONTEXT, self._turn_now(rollout))

    def _turn_now(self, rollout: _Rollout) -> Turn:
        text = self.policy.decode(rollout.ids[rollout.turn_start :])
        parsed = self.protocol.read(text)
        return Turn(text, code=parsed.code, malformed=parsed.malformed)

    def _end_turn(self, rollout: _Rollout) -> None:
        rollout.turn = self._turn_now(rollout)
        if rollout.turn.code is not None:
            if rollout.session is None:
                rollout.session = self.sandbox.session()
            rollout.pending = self.pool.submit(rollout.session.run, rollout.turn.code)
        elif rollout.turn.malformed:
            rollout.pending = Future()
            rollout.pending.set_result(_UNREADABLE)
        else:
            rollout.answer = self.protocol.read(rollout.turn.text).answer
            reason = StopReason.NO_ANSWER if rollout.answer is None else StopReason.ANSWER
            self._stop(rollout, reason, rollout.turn)
        rollout.due = -(-(self.clock + 2) // _BEAT) * _BEAT

    def _take_result(self, rollout: _Rollout) -> None:
        """Append the tool's text, waiting for it if need be, and begin the next turn."""
        result = rollout.pending.result()
        rollout.pending = None
        turn = replace(rollout.turn, result=result)
        tool_ids = self.policy.encode(self.protocol.tool_text(result))
        if len(rollout.turns) + 1 >= self.settings.max_turns:
            self._stop(rollout, StopReason.MAX_TURNS, turn)
        elif len(rollout.ids) + len(tool_ids) >= self.context:
            self._stop(rollout, StopReason.CONTEXT, turn)
        else:
            rollout.append(tool_ids)  # they belong to the turn that asked for them
            rollout.turns.append(turn)
            self._begin_turn(rollout)

    def _stop(self, rollout: _Rollout, reason: StopReason, turn: Turn) -> None:
        rollout.turns.append(turn)
        rollout.stop = reason
        self.rows[rollout.row] = None
        self._close_session(rollout)

    def _close_session(self, rollout: _Rollout) -> None:
        if rollout.session is not None:
            rollout.session.close()
            rollout.session = None

    def _compact(self) -> None:
        """Once nobody waits for a row and half of them are empty, decode fewer rows."""
        live = [r for r in self.rows if r is not None]
        if self.queue or not live or len(live) > len(self.rows) // 2:
            return
        self.cache.keep_rows([r.row for r in live], max(r.cached for r in live))
        self.rows = live
        for row, rollout in enumerate(live):
            rollout.row = row
