"""A plain cut against selection: `python benchmarks/observation.py` measures what a reader makes of long outputs.

The reader is the scripted one of the family `workspace`, without wrong ideas: it goes by what it is shown alone, asks
for what was left out, and has six calls. So this compares the views, not what a model makes of them. The same problems
for all views; tokens are those of `tiny-facts`. Writes ``data/runs/observation.json`` and prints its table.
"""

from __future__ import annotations

import argparse
import json
import random
from statistics import fmean

from gtpo_mini import Sandbox, load_policy, load_protocol, load_task
from gtpo_mini.experiments.report import RUNS, observation_table
from gtpo_mini.experiments.stats import t_interval, wilson_interval
from gtpo_mini.rollout.chat import Chat
from gtpo_mini.rollout.settings import SamplingSettings
from gtpo_mini.tasks.habits import Habits
from gtpo_mini.tasks.workspace import write_turns
from gtpo_mini.train.config import TrainConfig
from gtpo_mini.train.imitation import make_trace
from gtpo_mini.train.metrics import run_header

BUDGETS = (120, 180, 360)  # characters; the last shows nearly every file whole


def measure(ask: str, problems: int, chat: Chat, sandbox: Sandbox) -> dict:
    """Of each view: accuracy, tokens and turns of a rollout, and how often it asked for what was left out."""
    task, right, found = load_task("workspace", "test", size=problems, ask=ask), {}, {}
    for most, way in ((most, way) for most in BUDGETS for way in ("cut", "select")):
        view, rng = SamplingSettings(max_output=most, select_output=way == "select"), random.Random(0)
        reader = Habits({}, broken=0.0)
        traces = [make_trace(p, write_turns(p, rng, reader), chat, sandbox, task, view) for p in task.problems]
        calls = [turn.code for trace in traces for turn in trace.turns if turn.code]
        more = [code for code in calls if code.startswith("unfold") or (code.startswith("look") and ", " in code)]
        name = f"{way} {most}"
        right[name] = [float(task.grade(trace.problem, trace.answer)) for trace in traces]
        found[name] = {
            "accuracy": list(wilson_interval(int(sum(right[name])), problems)),
            "tokens": list(t_interval([len(trace.token_ids) for trace in traces])),
            "turns": fmean(len(trace.turns) for trace in traces),
            "asked_for_the_rest": len(more) / problems,
        }
        print(ask, name, found[name], flush=True)
    for most in BUDGETS:
        pairs = zip(right[f"select {most}"], right[f"cut {most}"], strict=True)
        found[f"select {most}"]["gain"] = list(t_interval([a - b for a, b in pairs]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=512)
    asked = parser.parse_args()
    policy = load_policy("tiny-facts", device="cpu")
    with Sandbox() as sandbox:
        chat = Chat(policy, load_protocol())
        views = {ask: measure(ask, asked.problems, chat, sandbox) for ask in ("value", "fault")}
    header = run_header(TrainConfig(), policy.name, "workspace", str(policy.device))
    record = {"problems": asked.problems, "views": views}
    record |= {key: header[key] for key in ("command", "commit", "versions", "device")}
    (RUNS / "observation.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(observation_table())


if __name__ == "__main__":
    main()
