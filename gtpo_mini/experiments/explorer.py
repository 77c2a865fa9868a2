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
from ..credit.credit import ARMS, Credit, group_numbers
from ..policy.model import Policy
from ..rollout.transcript import transcript
from .evaluate import Group
from .viewer import _ASSETS, _STYLE, _clean, _runs, _syntax

#: What the page can set: fields of `Credit`. Rewards depend on the first three, returns on four, advantages on all.
AXES: dict[str, tuple[Any, ...]] = {
    "rewards": ("turn", "trajectory", "accuracy"),
    "alpha": (0.0, 0.25, 0.5, 1.0),
    "format_penalty": (0.0, 0.05, 0.1, 0.2, 0.5),
    "gamma": (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0),
    "returns": (True, False),
    "normalize": NORMALIZE,
}
_ALL = Credit(alpha=1.0, rewards="accuracy", returns=False)  # its rewards are the likenesses of the wrong rollouts
_LONGEST = 400  # characters of one text: a page of model output must not grow without bound
_PAGE = _ASSETS.get_template("explorer.html")
_OWN_STYLE, _SCRIPT = (Markup(_ASSETS.loader.get_source(_ASSETS, f"explorer.{end}")[0]) for end in ("css", "js"))

Order = Sequence[Sequence[int]]  # of each group on the page: the numbers of its rollouts in the batch


def explorer_page(
    groups: Sequence[Group], policy: Policy, show: Sequence[int] | None = None, title: str = "Who gets the credit?"
) -> str:
    """A stand-alone page that shows what `Credit` gives each turn, with controls for its settings.

    Args:
        groups: graded groups of `sample`, all of one size: together they are the batch.
        policy: that made them.
        show: which of them the page holds; None: one with as many right as wrong, one with nothing right, and the one
            with the wrong rollout that is most like right ones, as far as there are such.

    The page computes no credit: its numbers are a `credit_grid`. It loads nothing, and only its own script can run.
    Raises ValueError for no groups, groups of several sizes, or a number in ``show`` that names none.
    """
    rollouts, grades, size = _batch(groups)
    likeness = [row[-1] for row in _ALL(rollouts, grades, size)[0]]
    names = _interesting(groups, likeness) if show is None else {i: f"problem {i + 1}" for i in show}
    if not names or not set(names) <= set(range(len(groups))):
        raise ValueError(f"show={show!r}: must name at least one of the groups 0 to {len(groups) - 1}")
    # The best first: right rollouts, then those that are most like them.
    order = [sorted(range(i * size, i * size + size), key=lambda n: (-grades[n], -likeness[n])) for i in names]
    arms = {
        name: [values.index(getattr(arm, field)) for field, values in AXES.items()]
        for name, arm in ARMS.items()
        if name.partition("_")[0] not in ("alpha", "gamma", "normalize") and _on_grid(arm)
    }
    data = {"axes": AXES, "arms": arms, "groups": credit_grid(groups, order)}
    sections = [
        {"name": name, "right": _count_right(groups[i]), "rollouts": [_shown(rollouts[n], policy) for n in numbers]}
        | {"facts": [(n % size + 1, grades[n], likeness[n]) for n in numbers]}
        for (i, name), numbers in zip(names.items(), order, strict=True)
    ]
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return _PAGE.render(
        csp=Markup(f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"),
        title=_clean(title),
        style=_STYLE + _OWN_STYLE,
        script=_SCRIPT,
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
        axes=AXES,
        arms=arms,
        sections=_clean(sections),
        batch=len(groups),
    )


def explorer_html(
    groups: Sequence[Group], policy: Policy, show: Sequence[int] | None = None, title: str = "Who gets the credit?"
) -> str:
    """The `explorer_page` in a frame for a notebook's output, whose script cannot reach the notebook."""
    page = escape(explorer_page(groups, policy, show, title))
    frame = f'<iframe sandbox=allow-scripts title="{escape(_clean(title))}" srcdoc="{page}"'
    return f'<div>{frame} style="width:100%;height:760px;border:1px solid #888"></iframe></div>'


def credit_grid(groups: Sequence[Group], order: Order) -> list[dict[str, Any]]:
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


def _batch(groups: Sequence[Group]) -> tuple[list[Any], list[float], int]:
    sizes = {len(group.rollouts) for group in groups}
    if len(sizes) != 1:
        raise ValueError(f"groups must all be of one size, at least one, got sizes {sorted(sizes)}")
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return rollouts, [float(grade) for group in groups for grade in group.correct], sizes.pop()


def _count_right(group: Group) -> int:
    return sum(grade == 1 for grade in group.correct)


def _on_grid(arm: Credit) -> bool:
    other = (arm.shaping, arm.similarity, arm.progress) == ("outcome", "ngram", 0.0)
    return other and all(getattr(arm, field) in values for field, values in AXES.items())


def _interesting(groups: Sequence[Group], likeness: Sequence[float]) -> dict[int, str]:
    """A mixed group, one with nothing right (and some broken calls, if there is one), and one with a near miss."""
    size, right = len(groups[0].rollouts), [_count_right(group) for group in groups]
    broken = [sum(turn.invalid_call for one in group.rollouts for turn in one.turns) for group in groups]
    near = [max([x for x in likeness[i * size : i * size + size] if x < 1], default=0.0) for i in range(len(groups))]
    mixed = [i for i, count in enumerate(right) if 0 < count < size]
    names: dict[int, str] = {}
    for name, found, key in (
        ("mixed group", mixed, lambda i: min(right[i], size - right[i])),
        ("weak group", [i for i, count in enumerate(right) if count == 0], lambda i: broken[i]),
        ("near miss", mixed, lambda i: near[i]),
    ):
        if rest := [i for i in found if i not in names]:
            names[max(rest, key=key)] = name
    return names or {0: "problem 1"}


def _shown(rollout: Any, policy: Policy) -> dict[str, Any]:
    """A rollout for the template: each turn's call and what came back, and the whole text as the policy wrote it."""
    shown, turns = transcript(rollout, policy), []
    for turn, line in zip(rollout.turns, shown["turns"], strict=True):
        text, result = "".join(piece for piece, _ in line["pieces"]), turn.result
        code = _cut(turn.text if turn.code is None else turn.code)
        output = "" if result is None else result.stdout.strip() if result.ok else result.error.strip()
        parts = _runs(code, _syntax(code) if turn.code else [""] * len(code))
        one = {"parts": parts, "failed": turn.invalid_call, "ran": result is not None}
        turns.append({**one, "output": _cut(output), "written": _cut(text), "tool": _cut(line["tool"])})
    answer = None if shown["answer"] is None else _cut(shown["answer"])
    return {**shown, "question": _cut(shown["question"]), "gold": _cut(shown["gold"]), "answer": answer, "turns": turns}


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
