"""Rollouts as HTML: what the policy wrote, what the tool returned, what each turn earned; one, or all of a run."""

from __future__ import annotations

import base64
import hashlib
import html
from collections import defaultdict
from collections.abc import Sequence
from importlib.resources import files
from statistics import pstdev
from typing import Any

from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String

from ..policy.model import Policy
from ..rollout.transcript import load_rollouts, transcript
from ..types import Trajectory

__all__ = ["load_rollouts", "rollout_html", "rollouts_page", "trajectory_html"]

_STRONG = 2.0  # an advantage of this size has the full colour
_UNLIKELY = -2.3  # log-probability below which a token is underlined: one in ten
_SYNTAX = (
    *((Comment, "c"), (String, "s"), (Number, "m"), (Keyword, "k"), (Operator.Word, "k")),
    *((Name.Builtin, "n"), (Name.Function, "n"), (Name.Class, "n")),
)
_CONTROL = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {0x7F: 0x2421}


def trajectory_html(
    trajectory: Trajectory,
    policy: Policy,
    rewards: Sequence[float] | None = None,
    advantages: Sequence[float] | None = None,
    returns: Sequence[float] | None = None,
) -> str:
    """One rollout, token by token, for a notebook or a file of its own; all text is escaped.

    Args:
        trajectory: T tokens, N turns.
        policy: whose tokenizer reads the ids.
        rewards, advantages, returns: one a turn (N), shown at the turn's head; the advantage colours its tokens.

    Returns:
        HTML with its own style; each policy token shows its log-probability when pointed at.
    """
    shown = transcript(trajectory, policy, rewards, returns, advantages)
    style = f"<meta charset=utf-8><style>{_asset('display.css')}</style>"
    return f"{style}<div class=gtpo>{_legend()}{rollout_html(shown)}</div>"


def rollout_html(shown: dict[str, Any]) -> str:
    """The turns of a `transcript` as HTML, for a place that has the style already."""
    parts = [f"<details class=prompt><summary>prompt</summary><pre>{_escape(shown['prompt'])}</pre></details>"]
    for number, turn in enumerate(shown["turns"], 1):
        parts.append(f"<h4>{_turn_head(number, turn)}</h4>")
        parts.append(f"<pre class={_kind(turn)}>{_policy_text(turn)}</pre>")
        code = turn["code"]
        if code and code not in _plain(turn):  # written as JSON: here it is as it ran
            parts.append(f"<pre class=code><b class=label>code that ran</b>\n{_highlighted(code)}</pre>")
        failed = " failed" if turn["failed"] else ""
        if turn["tool"]:
            parts.append(f"<pre class='tool{failed}'>{_escape(turn['tool'])}</pre>")
        if turn["unseen"]:
            label = "<b class=label>result that the policy did not see</b>\n"
            parts.append(f"<pre class='tool unseen{failed}'>{label}{_escape(turn['unseen'])}</pre>")
    answer = "none" if shown["answer"] is None else shown["answer"]
    parts.append(
        f"<p class=end><b>Stop:</b> {_escape(shown['stop'])} <b>Answer:</b> <code>{_escape(answer)}</code> "
        f"<b>Gold answer:</b> <code>{_escape(shown['gold'])}</code></p>"
    )
    return "".join(parts)


def rollouts_page(rollouts: Sequence[dict[str, Any]], title: str = "rollouts") -> str:
    """A stand-alone page that browses recorded rollouts by step, sorted by reward or by disagreement.

    Args:
        rollouts: as `load_rollouts` gives them, at least one.
        title: of the page.

    Returns:
        HTML that loads nothing; its policy lets only its own script run, whatever a rollout holds.
    """
    groups = defaultdict(list)
    for shown in rollouts:
        groups[shown["step"], shown["group"]].append(float(shown["correct"]))
    spread = {key: pstdev(right) for key, right in groups.items()}
    cards = "".join(_card(shown, spread[shown["step"], shown["group"]], groups) for shown in rollouts)
    steps = sorted({shown["step"] for shown in rollouts})
    options = "".join(f"<option value={step}>{step}</option>" for step in steps)
    script = _asset("display.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        f'<!doctype html><html lang=en><head><meta charset=utf-8><meta http-equiv=Content-Security-Policy content="'
        f'{policy}"><meta name=viewport content="width=device-width"><title>{_escape(title)}</title>'
        f"<style>{_asset('display.css')}</style></head><body class=page><main class=gtpo><h1>{_escape(title)}</h1>"
        f"<p class=controls><label>step <select id=step><option value=all>all</option>{options}</select></label> "
        "<label>show <select id=only><option value=all>all</option><option value=1>right</option><option value=0>wrong"
        "</option></select></label> <label>sort by <select id=sort><option value=number>order of sampling</option>"
        "<option value=high>reward, highest first</option><option value=low>reward, lowest first</option>"
        "<option value=spread>disagreement within the group</option></select></label> <span id=count></span></p>"
        f"{_legend()}<div id=rollouts>{cards}</div></main><script>{script}</script></body></html>\n"
    )


def _card(shown: dict[str, Any], spread: float, groups: dict[tuple[int, int], list[float]]) -> str:
    reward = sum(turn.get("reward", 0.0) for turn in shown["turns"])
    right = groups[shown["step"], shown["group"]]
    answer = "none" if shown["answer"] is None else shown["answer"][:40]
    words = (
        f"<b class={'right' if shown['correct'] else 'wrong'}>{'right' if shown['correct'] else 'wrong'}</b>",
        f"step {shown['step']}",
        f"problem {_escape(shown['problem'][:40])}",
        f"reward {reward:+.2f}",
        f"{len(shown['turns'])} turn{'s' * (len(shown['turns']) != 1)}",
        f"stop: {_escape(shown['stop'])}",
        f"answer <code>{_escape(answer)}</code>",
        f"group: {round(sum(right))} of {len(right)} right",
    )
    data = f"data-step={shown['step']} data-group={shown['group']} data-number={shown['number']} "
    data += f"data-reward={reward:.4f} data-spread={spread:.4f} data-right={int(shown['correct'])}"
    summary = f"<summary>{' '.join(f'<span>{word}</span>' for word in words)}</summary>"
    question = f"<p class=question>{_escape(shown['question'])}</p>"
    return f"<details class=rollout {data}>{summary}{question}{rollout_html(shown)}</details>"


def _legend() -> str:
    return (
        "<p class=legend><span class='policy up' style='--a:40%'>policy, advantage above 0</span> "
        "<span class='policy down' style='--a:40%'>below 0</span> <span class=policy>no advantage</span> "
        "<span class=tool>tool output, never trained</span> <i class=u>less likely than 1 in 10</i></p>"
    )


def _turn_head(number: int, turn: dict[str, Any]) -> str:
    words = [f"turn {number}"] + ["invalid call"] * turn["failed"]
    words += [f"{name} {turn[name]:+.2f}" for name in ("reward", "return", "advantage") if name in turn]
    return " &middot; ".join(words)


def _kind(turn: dict[str, Any]) -> str:
    """Class and strength of a turn's colour."""
    advantage = turn.get("advantage", 0.0)
    side = "up" if advantage > 0 else "down" if advantage < 0 else ""
    return f"'policy {side}' style='--a:{min(abs(advantage) / _STRONG, 1) * 45:.0f}%'"


def _plain(turn: dict[str, Any]) -> str:
    return "".join(text for text, _ in turn["pieces"])


def _policy_text(turn: dict[str, Any]) -> str:
    """The tokens, each with its log-probability; code that stands in the text as it ran has its syntax coloured."""
    text, code = _plain(turn), turn["code"] or ""
    start = text.find(code) if code else -1
    classes = [""] * len(text)
    if start >= 0:
        classes[start : start + len(code)] = _syntax(code)
    parts, place = [], 0
    for piece, logprob in turn["pieces"]:
        inner = _runs(piece, classes[place : place + len(piece)])
        unlikely = " class=u" if logprob < _UNLIKELY else ""
        parts.append(f'<i title="logprob {logprob:.2f}"{unlikely}>{inner}</i>')
        place += len(piece)
    return "".join(parts)


def _highlighted(code: str) -> str:
    return _runs(code, _syntax(code))


def _syntax(code: str) -> list[str]:
    """The syntax class of each character of Python code, right or wrong."""
    classes = []
    for kind, value in PythonLexer(stripnl=False, ensurenl=False).get_tokens(code):
        name = next((name for parent, name in _SYNTAX if kind in parent), "")
        classes += [name] * len(value)
    return (classes + [""] * len(code))[: len(code)]  # the lexer makes one line end of two


def _runs(text: str, classes: Sequence[str]) -> str:
    parts, begin = [], 0
    for end in range(1, len(text) + 1):
        if end == len(text) or classes[end] != classes[begin]:
            run = _escape(text[begin:end])
            parts.append(f"<span class={classes[begin]}>{run}</span>" if classes[begin] else run)
            begin = end
    return "".join(parts)


def _escape(text: str) -> str:
    """Text for HTML; control characters become their pictures, half surrogates a question mark."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8").translate(_CONTROL))


def _asset(name: str) -> str:
    return files("gtpo_mini").joinpath("assets", name).read_text(encoding="utf-8")
