"""Pages: rollouts (what the policy wrote, what the tool returned, what each turn earned), and a run as a whole."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from statistics import pstdev
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String

from ..credit.provenance import Claim, is_supported
from ..policy.model import Policy
from ..rollout.transcript import load_rollouts, transcript
from ..train.metrics import few, mean
from ..train.record import RecordedRun, read_lines
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
_LIT = ".gtpo .body:has(.from{0}:hover, .from{0}:focus) .out{0} {{ outline: 3px solid var(--up); }}"
_STYLE += Markup("\n".join(_LIT.format(place) for place in ("q", *range(32))))  # the source of a claim lights up


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


#: What a run's page tells of its first and last steps; what is a share of 1 is shown in %.
_TOLD = {
    "reward/outcome": "accuracy (sampled, training problems)",
    "rollout/calls": "tool calls a rollout",
    "rollout/invalid_calls": "invalid share of tool calls",
    "rollout/guesses": "share of answers that do not rest on the tool",
    "rollout/turns": "turns a rollout",
    "rollout/turn_tokens": "policy tokens a turn",
    "rollout/truncated": "share of rollouts cut off",
    "group/silent": "share of groups that teach nothing",
    "group/hopeless": "share of groups with nothing right",
    "policy/entropy": "surprise a token, nats",
    "time/step": "seconds a step",
}

_ENVIRONMENT = ("policy", "task", "command", "commit", "versions", "device", "threads")


def run_page(folder: str | Path) -> str:
    """A stand-alone page of one run, finished or not: curves, what changed, best and worst rollouts, where it was made.

    Args: folder: of a trained run; its rollouts are shown if it was trained with ``record_rollouts``.
    Raises ValueError where there is no record of a run with a step.
    """
    from . import plots  # here: matplotlib takes a second

    path = Path(folder) / "metrics.jsonl"
    try:
        lines, _ = read_lines(path)
    except OSError as error:
        raise ValueError(f"{str(folder)!r}: no run there (no metrics.jsonl)") from error
    steps = [line for line in lines if line["kind"] == "step"]
    if not steps:
        raise ValueError(f"{str(folder)!r}: the run has no step yet")
    footer = lines[-1] if lines[-1]["kind"] == "footer" else {}
    run, name = RecordedRun(lines[0], tuple(steps), footer), Path(folder).resolve().name
    drawn = io.BytesIO()
    plots.plot_learning_curves([run], f"{run.arm} on {run.header['task']}", tall=True).savefig(drawn, format="svg")
    ends = steps[: few(len(steps))], steps[-few(len(steps)) :]
    told = []
    for key, text in _TOLD.items():
        if key in steps[0]:
            scale, form = (
                (100, "{:.1f} %") if text.startswith(("accuracy", "share", "invalid share")) else (1, "{:.3g}")
            )
            told.append((text, *(form.format(scale * mean([step[key] for step in part])) for part in ends)))
    held_out = [(kind, footer[kind]["accuracy"]) for kind in ("sampled", "greedy") if kind in footer]
    shown, rollouts = [], Path(folder) / "rollouts.jsonl"
    if rollouts.exists():
        last = load_rollouts(rollouts)
        last = [one for one in last if one["step"] == last[-1]["step"]]
        last.sort(key=lambda one: -sum(turn.get("reward", 0.0) for turn in one["turns"]))
        for kind, ranked in (("best", last), ("worst", last[::-1])):
            of_each = {one["problem"]: one for one in reversed(ranked)}  # the first of each problem
            shown += [(kind, _shown(one)) for one in ranked if of_each[one["problem"]] is one][:2]
    environment = {key: run.header[key] for key in _ENVIRONMENT}
    svg = Markup(drawn.getvalue().decode().partition("?>")[2])
    page = _ASSETS.get_template("run.html")
    facts = {
        "few": few(len(steps)),
        "steps": len(steps),
        "wanted": run.header["config"]["steps"],
        "told": told,
        "ends": held_out,
    }
    tables = {"settings": _flat(run.header["config"]), "environment": _flat(environment)}
    return page.render(title=_clean(name), style=_STYLE, svg=svg, shown=shown, body=_PAGE.body, **facts, **tables)


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Rows of a table; what is nested has names with dots."""
    rows = []
    for name, value in values.items():
        rows += (
            _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else [(before + name, _clean(str(value)))]
        )
    return rows


def _kinds(shown: dict[str, Any]) -> str:
    """What a rollout can be filtered by: right or wrong, cut off, or an answer that no tool output holds."""
    outputs = [turn["tool"] or turn["unseen"] for turn in shown["turns"]]
    kinds = ["right" if shown["correct"] else "wrong"]
    kinds += ["truncated"] if StopReason(shown["stop"]).truncated else []
    supported = shown["answer"] is None or any(shown["answer"] in output for output in outputs)
    if shown.get("claims") and shown["answer"] is not None:
        supported = is_supported([Claim(*claim) for claim in shown["claims"] if claim[2]])
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
    return _clean({"claims": [], **shown, "turns": turns})  # older records have none


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
