"""The group behind the README's picture of the method: ``python benchmarks/picture.py``.

Samples 48 groups of the shipped policy of `programs`, and keeps the first in which a right rollout of three turns has a
broken call and five of eight are right. The picture itself is drawn by ``gtpo-mini report``, its numbers by `Credit`.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from gtpo_mini import load_policy, load_profile, load_task, sample
from gtpo_mini.experiments.report import RUNS
from gtpo_mini.tasks.starts import REGIMES
from gtpo_mini.types import Turn

TURN = ("text", "code", "malformed", "result")


def turn(one: Turn) -> dict:
    kept = {name: asdict(one)[name] for name in TURN}
    if kept["result"] is not None:
        kept["result"] = {name: kept["result"][name] for name in ("ok", "stdout", "error")}
    return kept


def main() -> None:
    settings = load_profile("cpu").train.sampling(**REGIMES["programs_20"].changes)
    policy, task = load_policy("tiny-programs", device="cpu"), load_task("programs", "test")
    for rollouts, correct in sample(policy, task, 48, 8, 0, settings):
        right = [rollout for rollout, grade in zip(rollouts, correct, strict=True) if grade == 1]
        found = [r for r in right if len(r.turns) == 3 and any(one.invalid_call for one in r.turns)]
        if found and len(right) == 5:
            made = [[turn(one) for one in rollout.turns] for rollout in rollouts]
            record = {"question": found[0].problem.question, "shown": rollouts.index(found[0]), "turns": made}
            record["correct"] = [grade == 1 for grade in correct]
            path = RUNS / "picture.json"
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            print(path)
            return
    raise SystemExit("no such group on this machine: other draws; raise the number of groups")


if __name__ == "__main__":
    main()
