"""A plain cut against selection: `python benchmarks/observation.py` measures what a policy makes of long outputs.

`tiny-workspace` on held-out problems of its family, at three budgets of characters; its cold start showed it all six
views equally often. Problems and random streams are the same for all views. Writes a record and prints a table.
"""

from __future__ import annotations

import argparse
import json
from statistics import fmean

import torch

from gtpo_mini import Sandbox, TrainConfig, load_policy, load_task, sample
from gtpo_mini.experiments.report import RUNS, observation_table
from gtpo_mini.experiments.stats import t_interval, wilson_interval
from gtpo_mini.tasks.starts import FAMILIES
from gtpo_mini.train.metrics import run_header

CONFIG = TrainConfig(max_turns=8, max_turn_tokens=64, max_context=960)


def measure(problems: int, hops: int, seed: int) -> dict:
    """Of each view: accuracy, tokens and turns of a rollout, and how often it asked for what was left out."""
    policy, task = load_policy("tiny-workspace"), load_task("workspace", "test", size=problems, hops=hops)
    views, right, found = FAMILIES["workspace"].views, {}, {}
    with Sandbox() as sandbox:
        for view in views:
            name = f"{'select' if view['select_output'] else 'cut'} {view['max_output']}"
            settings = CONFIG.sampling(rows=64, **view)
            groups = sample(policy, task, problems, 1, seed, settings, sandbox=sandbox)
            rollouts = [rollout for group in groups for rollout in group.rollouts]
            right[name] = [float(grade) for group in groups for grade in group.correct]
            turns = [turn for rollout in rollouts for turn in rollout.turns]
            asked = [turn for turn in turns if turn.code and (", " in turn.code and "print" not in turn.code)]
            found[name] = {
                "accuracy": list(wilson_interval(int(sum(right[name])), problems)),
                "tokens": list(t_interval([len(rollout.token_ids) for rollout in rollouts])),
                "turns": fmean(len(rollout.turns) for rollout in rollouts),
                "asked_for_the_rest": len(asked) / problems,
            }
            print(name, found[name], flush=True)
    for most in {view["max_output"] for view in views}:
        pairs = zip(right[f"select {most}"], right[f"cut {most}"], strict=True)
        found[f"select {most}"]["gain"] = list(t_interval([a - b for a, b in pairs]))
    header = run_header(CONFIG, policy.name, task.name, str(policy.device))
    about = {"problems": problems, "hops": hops, "seed": seed, "views": found}
    return about | {key: header[key] for key in ("command", "commit", "versions", "device")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=512)
    parser.add_argument("--hops", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    record = measure(asked.problems, asked.hops, asked.seed)
    (RUNS / "observation.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(observation_table())


if __name__ == "__main__":
    main()
