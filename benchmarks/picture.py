"""The README's picture of the method: ``python benchmarks/picture.py [sample]``.

Draws ``docs/method.png`` and ``.svg`` from the group of rollouts in ``data/runs/picture.json``. With ``sample`` that
group is made first: of 48 groups of the shipped policy of `programs` the first in which a right rollout of three turns
has a broken call and five of eight are right.
"""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import asdict
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from gtpo_mini import ARMS, load_policy, load_profile, load_task, sample
from gtpo_mini.experiments.plots import save_figure
from gtpo_mini.experiments.report import ROOT, RUNS
from gtpo_mini.tasks.starts import REGIMES
from gtpo_mini.types import ExecutionResult, Problem, StopReason, Trajectory, Turn

RECORD = RUNS / "picture.json"


def make_group() -> dict[str, Any]:
    settings = load_profile("cpu").train.sampling(**REGIMES["programs_20"].changes)
    policy, task = load_policy("tiny-programs", device="cpu"), load_task("programs", "test")
    for rollouts, correct in sample(policy, task, 48, 8, 0, settings):
        right = [rollout for rollout, grade in zip(rollouts, correct, strict=True) if grade == 1]
        found = [r for r in right if len(r.turns) == 3 and any(one.invalid_call for one in r.turns)]
        if found and len(right) == 5:
            turns = [[write_turn(one) for one in rollout.turns] for rollout in rollouts]
            record = {"question": found[0].problem.question, "shown": rollouts.index(found[0]), "turns": turns}
            return record | {"correct": [grade == 1 for grade in correct]}
    raise SystemExit("no such group on this machine: other draws; raise the number of groups")


def write_turn(turn: Turn) -> dict[str, Any]:
    kept = {name: asdict(turn)[name] for name in ("text", "code", "malformed", "result")}
    if kept["result"] is not None:
        kept["result"] = {name: kept["result"][name] for name in ("ok", "stdout", "error")}
    return kept


def read_turn(turn: dict[str, Any]) -> Turn:
    result = ExecutionResult(**turn["result"]) if turn["result"] else None
    return Turn(turn["text"], code=turn["code"], malformed=turn["malformed"], result=result)


def draw(record: dict[str, Any]) -> Figure:
    """A rollout that was right, and what GRPO and GTPO tell each of its turns; the numbers are `Credit`'s."""
    no_ids = {"token_ids": (), "prompt_length": 0, "loss_mask": (), "turn_index": (), "logprobs": ()}
    about = {"problem": Problem("1", record["question"], ""), "stop": StopReason.ANSWER, **no_ids}
    rollouts = [Trajectory(turns=tuple(map(read_turn, turns)), **about) for turns in record["turns"]]
    shown, turns = record["shown"], rollouts[record["shown"]].turns
    figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
    for column, turn in enumerate(turns):
        told = "the call is broken" if turn.invalid_call else "the call runs" if turn.result else "the answer is right"
        code = (turn.code or turn.text.split("```")[-2].partition("\n")[2]).strip()
        came = (turn.result.stdout or turn.result.error).strip().splitlines()[-1] if turn.result else ""
        axes.text(column + 0.04, 2.75, f"turn {column + 1}: {told}", fontsize=11, weight="bold")
        axes.text(column + 0.04, 2.65, code, fontsize=8, family="monospace", va="top")
        axes.text(column + 0.04, 1.25, came, fontsize=8, family="monospace", color="#8a4b00")
    for height, arm, label in ((0.62, "grpo", "GRPO tells\nevery turn"), (0.0, "gtpo", "GTPO tells\neach turn")):
        axes.text(-0.04, height + 0.26, label, fontsize=11, ha="right", va="center", weight="bold")
        for column, number in enumerate(ARMS[arm](rollouts, record["correct"], len(rollouts))[1][shown]):
            side = "#0072B2" if number > 0 else "#D55E00"
            colour = matplotlib.colors.to_rgba(side, 0.15 + 0.4 * min(abs(number), 1.5))
            axes.add_patch(plt.Rectangle((column + 0.03, height), 0.94, 0.52, color=colour, linewidth=0))
            axes.text(column + 0.5, height + 0.26, f"{number:+.2f}", fontsize=15, ha="center", va="center")
    axes.set(xlim=(-0.42, len(turns)), ylim=(-0.1, 3.0))
    axes.axis("off")
    figure.suptitle("A rollout that is right, after a call that was broken", fontsize=13)
    right = f"{sum(record['correct'])} of the {len(rollouts)} rollouts of its group are right"
    note = (
        f"Advantages. {right}. GRPO as the paper has it gives a rollout with a broken call no reward, so all of its "
        "turns are told off; GTPO takes 0.1 from the broken turn alone, and praises the later ones."
    )
    figure.supxlabel(textwrap.fill(note, 130), fontsize=9, color="#555555")
    return figure


if __name__ == "__main__":
    if sys.argv[1:] == ["sample"]:
        RECORD.write_text(json.dumps(make_group(), indent=1) + "\n", encoding="utf-8")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    print(save_figure(draw(json.loads(RECORD.read_text(encoding="utf-8"))), "method", folder=ROOT / "docs"))
