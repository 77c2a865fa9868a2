"""A rollout as plain data that needs no tokenizer to be read: what `display` shows, and what a run records."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, BinaryIO

from ..credit.provenance import provenance
from ..policy.model import Policy
from ..types import Trajectory
from .observation import result_text

_LONGEST_CHARACTER = 8  # tokens that one character may take


def transcript(
    trajectory: Trajectory,
    policy: Policy,
    rewards: Sequence[float] | None = None,
    returns: Sequence[float] | None = None,
    advantages: Sequence[float] | None = None,
) -> dict[str, Any]:
    """One rollout of N turns as data for JSON, with rewards, returns and advantages, one a turn, where they are known.

    Returns:
        ``problem``, ``question``, ``gold``, ``prompt``, ``stop``, ``answer``, ``claims`` (of `provenance`: text, turn,
        whether in the answer, origin, sources), and ``turns``. A turn has ``pieces``, the
        policy's text as [text, log-probability] pairs, one a token (or a few that make one character); ``tool``, the
        text that went back; ``unseen``, what the policy did not see of a result: all of it after the last turn, or the
        whole of one that was cut; ``code``, ``failed``, and its numbers, ``progress`` (what the task gave) among them.
    """
    turns = []
    for number, turn in enumerate(trajectory.turns):
        here = [i for i, index in enumerate(trajectory.turn_index) if index == number]
        mine = [i for i in here if trajectory.loss_mask[i]]
        theirs = [trajectory.token_ids[i] for i in here if not trajectory.loss_mask[i]]
        ids, logprobs = [trajectory.token_ids[i] for i in mine], [trajectory.logprobs[i] for i in mine]
        result = turn.result
        line: dict[str, Any] = {"pieces": _pieces(ids, logprobs, policy), "tool": _text(theirs, policy)}
        line |= {"code": turn.code, "failed": turn.invalid_call, "unseen": ""}
        if result is not None and (not theirs or len(result_text(result)) > len(line["tool"])):
            line["unseen"] = result_text(result)
        if turn.progress:
            line["progress"] = round(turn.progress, 4)
        for name, values in (("reward", rewards), ("return", returns), ("advantage", advantages)):
            if values is not None:
                line[name] = round(values[number], 4)
        turns.append(line)
    problem = trajectory.problem
    return {
        "problem": problem.id,
        "question": problem.question,
        "gold": problem.answer,
        "prompt": _text(trajectory.token_ids[: trajectory.prompt_length], policy),
        "stop": str(trajectory.stop),
        "answer": trajectory.answer,
        "claims": [list(astuple(claim)) for claim in provenance(trajectory)],
        "turns": turns,
    }


def _text(ids: Sequence[int], policy: Policy) -> str:
    return policy.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _pieces(ids: Sequence[int], logprobs: Sequence[float], policy: Policy) -> list[tuple[str, float]]:
    """Texts of tokens. A token is decoded behind the one before it: on its own it could lose its leading blank."""
    pieces, before, begin = [], 0, 0
    for end in range(1, len(ids) + 1):
        text = _text(ids[before:end], policy)
        if text.endswith("\ufffd") and end - begin < _LONGEST_CHARACTER and end < len(ids):
            continue  # half a character: it goes with the next token
        known = _text(ids[before:begin], policy)
        pieces.append((text[len(known) :], round(sum(logprobs[begin:end]), 3)))
        before, begin = begin, end
    return pieces


def record_rollouts(
    path: Path,
    step: int,
    rollouts: Sequence[Trajectory],
    correct: Sequence[bool],
    rewards: Sequence[Sequence[float]],
    advantages: Sequence[Sequence[float]],
    returns: Sequence[Sequence[float]] | None,
    policy: Policy,
    group_size: int,
) -> None:
    """Append a step's rollouts, whole groups one after the other, to a JSON-lines file."""
    lines = []
    for number, rollout in enumerate(rollouts):
        mine = None if returns is None else returns[number]
        shown = transcript(rollout, policy, rewards[number], mine, advantages[number])
        place = {"step": step, "group": number // group_size, "number": number, "correct": bool(correct[number])}
        lines.append(json.dumps({**place, **shown}) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _cut_half_line(file)
        file.write("".join(lines).encode("utf-8"))


def _cut_half_line(file: BinaryIO) -> None:
    """Where a process was killed as it wrote, its half line goes; the next would else become part of it."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    if file.read() not in (b"", b"\n"):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def load_rollouts(path: str | Path) -> list[dict[str, Any]]:
    """The rollouts that a run recorded; of a step that was made twice (a run that was resumed), the later ones.

    Raises:
        ValueError: no such file, or a line that is no rollout (a last line cut off by a crash is left out).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{str(path)!r}: no rollouts there; record them with: gtpo-mini train --record-rollouts"
        ) from error
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for number, line in enumerate(lines[:-1], 1):  # a whole line ends in a newline
        try:
            rollout = json.loads(line)
            found[rollout["step"], rollout["number"]] = rollout
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(path)!r}: line {number} is no recorded rollout") from error
    if not found:
        raise ValueError(f"{str(path)!r}: holds no rollout")
    return [found[key] for key in sorted(found)]
