"""The credit explorer: a page on which a reader moves gamma, and sees praise and blame move over real turns."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

from markupsafe import Markup, escape

from ..credit.advantages import NORMALIZE, gtpo_advantages, turn_returns
from ..credit.arms import ARMS
from ..credit.credit import Credit, group_numbers
from ..policy.model import Policy
from ..rollout.transcript import transcript
from ..types import Trajectory
from .evaluate import Group
from .viewer import _ASSETS, _STYLE, _clean

#: What the page can set: fields of `Credit`. Rewards depend on the first three, returns on four, advantages on all.
AXES: dict[str, tuple[Any, ...]] = {
    "rewards": ("turn", "trajectory", "accuracy"),
    "alpha": (0.0, 0.25, 0.5, 1.0),
    "format_penalty": (0.0, 0.05, 0.1, 0.2, 0.5),
    "gamma": (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0),
    "returns": (True, False),
    "normalize": NORMALIZE,
}
_LIKENESS = Credit(rewards="accuracy", alpha=1.0)  # what a wrong rollout earns is the likeness of its code
_LONGEST = 400  # characters of one text: a page of model output must not grow without bound
_PAGE = _ASSETS.get_template("explorer.html")
_OWN_STYLE, _SCRIPT = (Markup(_ASSETS.loader.get_source(_ASSETS, f"explorer.{end}")[0]) for end in ("css", "js"))


def explorer_page(
    groups: Sequence[Group], policy: Policy, show: Sequence[int] | None = None, title: str = "Who gets the credit?"
) -> str:
    """A stand-alone page that shows what `Credit` gives each turn, with controls for its settings.

    Args:
        groups: graded groups of `sample`, all of one size: together they are the batch.
        policy: that made them.
        show: which of them the page holds; None: one with as many right as wrong, one with nothing right, and one
            with a wrong rollout whose code is most like that of right ones, as far as there are such.

    The page computes no credit: its numbers are a `credit_grid`. It loads nothing, and only its own script can run.
    Raises ValueError for no groups, groups of several sizes, or a number in ``show`` that names none.
    """
    rollouts, grades, size = _batch(groups)
    likeness = [row[-1] for row in _LIKENESS(rollouts, grades, size)[0]]
    members = [range(first, first + size) for first in range(0, len(rollouts), size)]
    names = _interesting(members, rollouts, grades, likeness) if show is None else {i: f"problem {i + 1}" for i in show}
    if not names or not set(names) <= set(range(len(groups))):
        raise ValueError(f"show={show!r}: must name at least one of the groups 0 to {len(groups) - 1}")
    # The best first: right rollouts, then those that are most like them.
    order = [sorted(members[i], key=lambda n: (-grades[n], -likeness[n])) for i in names]
    arms = {
        name: [values.index(getattr(arm, field)) for field, values in AXES.items()]
        for name, arm in ARMS.items()  # those of one moved slider need no button
        if not name.startswith(("alpha_", "gamma_", "normalize_")) and on_grid(arm)
    }
    sections = []
    for name, numbers in zip(names.values(), order, strict=True):
        shown = [
            {**_shown(rollouts[n], policy), "number": n % size + 1, "grade": grades[n], "likeness": likeness[n]}
            for n in numbers
        ]
        sections.append({"name": name, "right": sum(grades[n] == 1 for n in numbers), "rollouts": shown})
    data = json.dumps({"axes": AXES, "arms": arms, "groups": credit_grid(groups, order)}, separators=(",", ":"))
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return _PAGE.render(
        csp=Markup(f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"),
        data=Markup(data),  # numbers, and names of our own: no text of a rollout is in it
        **{"title": _clean(title), "sections": _clean(sections), "batch": len(groups), "axes": AXES, "arms": arms},
        **{"style": _STYLE + _OWN_STYLE, "script": _SCRIPT},
    )


def explorer_html(
    groups: Sequence[Group], policy: Policy, show: Sequence[int] | None = None, title: str = "Who gets the credit?"
) -> str:
    """The `explorer_page` in a frame for a notebook's output, whose script cannot reach the notebook."""
    page = escape(explorer_page(groups, policy, show, title))
    frame = f'<iframe sandbox=allow-scripts title="{escape(_clean(title))}" srcdoc="{page}"'
    return f'<div>{frame} style="width:100%;height:1000px;border:1px solid #888"></iframe></div>'


def credit_grid(groups: Sequence[Group], order: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Rewards, returns and advantages of every turn at every setting of `AXES`, in thousandths.

    Args: groups: the batch, of one size; order: of each wanted group, its rollouts, numbered through the batch.

    Returns, for each wanted group: ``rows``, the different rows of numbers; ``turns``, the place in a row of each turn
    (turns that are always equal share one); and for ``rewards``, ``returns`` and ``advantages`` the row of each
    setting, the settings in the order of a product of the first 3, 4 or 6 of `AXES`.
    """
    rollouts, grades, size = _batch(groups)
    problems = group_numbers(rollouts, size)
    found = [{"rows": {}, "rewards": [], "returns": [], "advantages": []} for _ in order]

    def keep(kind: str, table: Sequence[Sequence[float]]) -> None:
        for one, numbers in zip(found, order, strict=True):
            row = tuple(round(1000 * value) for n in numbers for value in table[n])
            one[kind].append(one["rows"].setdefault(row, len(one["rows"])))

    @cache  # other settings often give the same rewards
    def advantages(rewards: tuple[tuple[float, ...], ...], gamma: float, normalize: str) -> list[list[float]]:
        return gtpo_advantages(rewards, gamma, normalize, problems)

    for kind, alpha, penalty in product(*list(AXES.values())[:3]):
        credit = Credit(rewards=kind, alpha=alpha, format_penalty=penalty, returns=False)
        rewards, whole = credit(rollouts, grades, size)
        keep("rewards", rewards)
        frozen = tuple(map(tuple, rewards))
        for gamma in AXES["gamma"]:
            keep("returns", [turn_returns(row, gamma) for row in rewards])
            for returns, normalize in product(AXES["returns"], NORMALIZE):
                keep("advantages", advantages(frozen, gamma, normalize) if returns else whole)
    for one in found:
        columns = list(zip(*one["rows"], strict=True))
        different = {column: place for place, column in enumerate(dict.fromkeys(columns))}
        one |= {"turns": [different[column] for column in columns], "rows": list(zip(*different, strict=True))}
    return found


def _batch(groups: Sequence[Group]) -> tuple[list[Trajectory], list[float], int]:
    sizes = {len(group.rollouts) for group in groups}
    if len(sizes) != 1:
        raise ValueError(f"groups must all be of one size, at least one, got sizes {sorted(sizes)}")
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return rollouts, [float(grade) for group in groups for grade in group.correct], sizes.pop()


def on_grid(arm: Credit) -> bool:
    """Whether the page's controls can be set to an arm.

    >>> on_grid(ARMS["gtpo"]), on_grid(ARMS["potential"])
    (True, False)
    """
    chosen = {field: getattr(arm, field) for field in AXES}
    return arm == Credit(**chosen) and all(value in AXES[field] for field, value in chosen.items())


def _interesting(
    members: Sequence[range], rollouts: Sequence[Trajectory], grades: Sequence[float], likeness: Sequence[float]
) -> dict[int, str]:
    """Names of a mixed group, one with nothing right (and most broken calls), and one with a near miss."""
    right = [sum(grades[n] == 1 for n in group) for group in members]
    broken = [sum(turn.invalid_call for n in group for turn in rollouts[n].turns) for group in members]
    near = [max([likeness[n] for n in group if grades[n] == 0], default=0.0) for group in members]
    even = [min(count, len(group) - count) for count, group in zip(right, members, strict=True)]
    mixed, weak = [i for i, count in enumerate(even) if count], [i for i, count in enumerate(right) if not count]
    names: dict[int, str] = {}
    for name, found, most in (("mixed group", mixed, even), ("weak group", weak, broken), ("near miss", mixed, near)):
        if rest := [i for i in found if i not in names]:
            names[max(rest, key=most.__getitem__)] = name
    return names or {0: "problem 1"}


def _shown(rollout: Trajectory, policy: Policy) -> dict[str, Any]:
    """A rollout for the template: each turn's call and what came back, and the whole text as the policy wrote it."""
    shown, turns = transcript(rollout, policy), []
    for turn, line in zip(rollout.turns, shown["turns"], strict=True):
        result, written = turn.result, "".join(piece for piece, _ in line["pieces"])
        output = "" if result is None else (result.stdout if result.ok else result.error).strip()
        texts = {"call": turn.code or turn.text, "output": output, "written": written, "tool": line["tool"].strip()}
        turns.append(
            {name: _cut(text) for name, text in texts.items()}
            | {"failed": turn.invalid_call, "ran": result is not None}
        )
    texts = {name: _cut(shown[name]) for name in ("question", "gold")}
    return texts | {"answer": _cut("none" if rollout.answer is None else rollout.answer), "turns": turns}


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
