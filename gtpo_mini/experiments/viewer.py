"""Rollouts as HTML: what the policy wrote, what the tool returned, what each turn earned; one, or all of a run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from statistics import pstdev
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String

from ..policy.model import Policy
from ..rollout.transcript import transcript
from ..types import StopReason, Trajectory

_STRONG = 2.0  # an advantage of this size has the full colour
_UNLIKELY = -2.3  # log-probability below which a token is underlined: one in ten
_SYNTAX = (
    *((Comment, "c"), (String, "s"), (Number, "m"), (Keyword, "k"), (Operator.Word, "k")),
    *((Name.Builtin, "n"), (Name.Function, "n"), (Name.Class, "n")),
)
_CONTROL = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {0x7F: 0x2421}
_ASSETS = Environment(loader=PackageLoader("gtpo_mini", "assets"), autoescape=True, undefined=StrictUndefined)
_PAGE = _ASSETS.get_template("rollouts.html").module
_STYLE, _SCRIPT = (Markup(_ASSETS.loader.get_source(_ASSETS, name)[0]) for name in ("display.css", "display.js"))


def trajectory_html(
    trajectory: Trajectory,
    policy: Policy,
    rewards: Sequence[float] | None = None,
    advantages: Sequence[float] | None = None,
    returns: Sequence[float] | None = None,
) -> str:
    """One rollout, token by token, as HTML with its own style; each policy token shows its log-probability.

    Rewards, advantages and returns (one a turn) stand at the turn's head; the advantage colours its tokens.
    """
    shown = _PAGE.rollout(_shown(transcript(trajectory, policy, rewards, returns, advantages)))
    return f"<meta charset=utf-8><style>{_STYLE}</style><div class=gtpo>{_PAGE.legend()}{shown}</div>"


def rollouts_page(
    runs: Sequence[dict[str, Any]] | Mapping[str, Sequence[dict[str, Any]]], title: str = "rollouts"
) -> str:
    """A stand-alone page that searches, filters and sorts rollouts of `load_rollouts`, and sets two steps side by side.

    Several runs are given by their names; two steps may be of two of them. A rollout's text is built when it is opened,
    so that thousands are there at once. The page loads nothing, and its policy lets only its own script run, whatever a
    rollout holds.
    """
    if not isinstance(runs, Mapping):
        runs = {"": runs}
    cards, bodies = [], []
    for run, (name, rollouts) in enumerate(runs.items()):
        groups = defaultdict(list)
        for shown in rollouts:
            groups[shown["step"], shown["group"]].append(float(shown["correct"]))
        for shown in rollouts:
            right = groups[shown["step"], shown["group"]]
            facts = {"spread": pstdev(right), "right": round(sum(right)), "members": len(right)}
            facts |= {"reward": sum(turn.get("reward", 0.0) for turn in shown["turns"]), "kinds": _kinds(shown)}
            card = _shown(shown)
            cards.append({**card, **facts, "run": run, "name": _clean(name)})
            bodies.append([str(_PAGE.body(card)), _words(card)])
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    places = list(dict.fromkeys((card["run"], card["name"], card["step"]) for card in cards))
    data = Markup(json.dumps(bodies, ensure_ascii=False).replace("<", "\\u003c"))  # no text of it ends the script's tag
    return str(_PAGE.page(cards, _clean(title), places, len(runs) > 1, data, _STYLE, _SCRIPT, Markup(policy)))


def _kinds(shown: dict[str, Any]) -> str:
    """What a rollout can be filtered by: right or wrong, cut off, or an answer that no tool output holds."""
    outputs = [turn["tool"] or turn["unseen"] for turn in shown["turns"]]
    kinds = ["right" if shown["correct"] else "wrong"]
    kinds += ["truncated"] if StopReason(shown["stop"]).truncated else []
    supported = shown["answer"] is None or any(shown["answer"] in output for output in outputs)
    return " ".join(kinds if supported else [*kinds, "unsupported"])


def _words(card: dict[str, Any]) -> str:
    """The text that a search looks into."""
    turns = [text for turn in card["turns"] for text in (turn["text"], turn["tool"], turn["unseen"])]
    return "\n".join([card["problem"], card["question"], card["answer"] or "", *turns]).lower()


def _clean(value: Any) -> Any:
    """Control characters become their pictures, half surrogates a question mark, in every text."""
    if isinstance(value, dict):
        return {key: _clean(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(one) for one in value]
    return value.encode("utf-8", "replace").decode("utf-8").translate(_CONTROL) if isinstance(value, str) else value


def _shown(shown: dict[str, Any]) -> dict[str, Any]:
    """A `transcript` as the template shows it: each turn with its colour, and its code with that of the syntax."""
    turns = []
    for turn in shown["turns"]:
        text, code = "".join(piece for piece, _ in turn["pieces"]), turn["code"] or ""
        before, found, after = text.partition(code) if code else (text, "", "")
        classes = iter([*[""] * len(before), *_syntax(found), *[""] * len(after)])
        tokens = [
            (f"{logprob:.2f}", logprob < _UNLIKELY, _runs(piece, [*islice(classes, len(piece))]))
            for piece, logprob in turn["pieces"]
        ]
        advantage = turn.get("advantage", 0.0)
        side, strength = "up" if advantage > 0 else "down" if advantage < 0 else "", min(abs(advantage) / _STRONG, 1)
        ran = [] if found else _runs(code, _syntax(code))  # written as JSON: here it is as it ran
        look = {"side": side, "strength": f"{strength * 45:.0f}", "text": text}
        turns.append({**turn, **look, "tokens": tokens, "ran": ran})
    return _clean({**shown, "turns": turns})


def _syntax(code: str) -> list[str]:
    """The syntax class of each character of Python code, right or wrong."""
    classes = []
    for kind, value in PythonLexer(stripnl=False, ensurenl=False).get_tokens(code):
        name = next((name for parent, name in _SYNTAX if kind in parent), "")
        classes += [name] * len(value)
    return (classes + [""] * len(code))[: len(code)]  # the lexer makes one line end of two


def _runs(text: str, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Text cut where its class changes: (class, part) pairs."""
    found = groupby(zip(classes, text, strict=True), key=lambda one: one[0])
    return [(kind, "".join(character for _, character in part)) for kind, part in found]
