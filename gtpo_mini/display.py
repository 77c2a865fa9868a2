"""A rollout as HTML: which tokens are trained, what the tool returned, and what each turn earned."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby

from .policy import Policy
from .types import Trajectory

_KINDS = {  # background and border colours that stay apart for colour-blind readers, with a word for each
    "prompt": ("#eeeeee", "#999999", "prompt"),
    "policy": ("#d6e9f8", "#0072B2", "policy token (trained)"),
    "tool": ("#fdebd0", "#D55E00", "tool output (never trained)"),
}


def trajectory_html(
    trajectory: Trajectory,
    policy: Policy,
    rewards: Sequence[float] | None = None,
    advantages: Sequence[float] | None = None,
) -> str:
    """One rollout, token by token; all text is escaped.

    Args:
        trajectory: T tokens, N turns.
        policy: whose tokenizer reads the ids.
        rewards, advantages: one a turn (N), shown at the turn's head.

    Returns:
        HTML that needs no style sheet; each policy token shows its log-probability when pointed at.
    """
    parts = [_legend(), f"<div {_style('#ffffff', '#ffffff')}>"]
    tokens = list(
        zip(trajectory.token_ids, trajectory.loss_mask, trajectory.turn_index, trajectory.logprobs, strict=True)
    )
    for turn, members in groupby(tokens, key=lambda token: token[2]):
        if turn >= 0:
            parts.append(_turn_head(trajectory, turn, rewards, advantages))
        # Neighbours of one kind are decoded together: a character may take several byte-level tokens.
        for is_policy, same in groupby(members, key=lambda token: token[1]):
            kind = "policy" if is_policy else "tool" if turn >= 0 else "prompt"
            parts.append(_tokens(kind, [(token[0], token[3]) for token in same], policy))
    answer = "none" if trajectory.answer is None else trajectory.answer
    parts.append(
        f"<p><b>Stop:</b> {trajectory.stop} &nbsp; <b>Answer:</b> {html.escape(answer)} &nbsp; "
        f"<b>Gold answer:</b> {html.escape(trajectory.problem.answer)}</p></div>"
    )
    return "".join(parts)


def _style(background: str, border: str) -> str:
    return (
        f'style="background:{background};border-left:4px solid {border};color:#111;padding:4px 8px;margin:2px 0;'
        'font-family:monospace;white-space:pre-wrap;line-height:1.5"'
    )


def _legend() -> str:
    boxes = (
        f'<span style="background:{back};border:1px solid {line};color:#111;padding:1px 6px;margin-right:8px">'
        f"{word}</span>"
        for back, line, word in _KINDS.values()
    )
    return f"<p>{''.join(boxes)}</p>"


def _turn_head(
    trajectory: Trajectory, turn: int, rewards: Sequence[float] | None, advantages: Sequence[float] | None
) -> str:
    words = [f"turn {turn + 1}"]
    if trajectory.turns[turn].invalid_call:
        words.append("invalid call")
    if rewards is not None:
        words.append(f"reward {rewards[turn]:+.2f}")
    if advantages is not None:
        words.append(f"advantage {advantages[turn]:+.2f}")
    return f'<p style="margin:8px 0 2px"><b>{" &middot; ".join(words)}</b></p>'


def _tokens(kind: str, tokens: Sequence[tuple[int, float]], policy: Policy) -> str:
    background, border, _ = _KINDS[kind]
    if kind != "policy":
        text = policy.tokenizer.decode([token for token, _ in tokens], skip_special_tokens=False)
        return f"<div {_style(background, border)}>{html.escape(text)}</div>"
    spans = (
        f'<span title="id {token}, logprob {logprob:.2f}" style="border-bottom:1px solid {border};margin-right:1px">'
        f"{html.escape(policy.tokenizer.decode([token], skip_special_tokens=False))}</span>"
        for token, logprob in tokens
    )
    return f"<div {_style(background, border)}>{''.join(spans)}</div>"
