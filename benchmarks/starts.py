"""Where training starts: `python benchmarks/starts.py` makes each regime's policy and measures it. Prints a table.

The figures were chosen before any arm was compared, by these numbers alone: about 5, 20 and 50 % right when sampled,
and when greedy at most 15 points more. What is measured already is not measured again; delete a line to do so.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from gtpo_mini import evaluate, load_policy, load_profile, load_task
from gtpo_mini.experiments.coldstart import regime_policy
from gtpo_mini.experiments.report import markdown_table
from gtpo_mini.sandbox import Sandbox
from gtpo_mini.tasks.starts import REGIMES
from gtpo_mini.train.metrics import run_header

RECORD = Path(__file__).parent / "results" / "starts.json"
NAMES = (
    "noisy",
    *(f"{family}_{share}" for family in ("branching", "programs", "facts") for share in (5, 20, 50)),
    *("rare_clean", "programs_rare_clean", "facts_rare_clean", "wasted", "near_misses"),
)


def measure(name: str, problems: int, sandbox: Sandbox) -> dict:
    """A start's accuracy on held-out problems, sampled and greedy, and how it behaves when sampled."""
    regime, path = REGIMES[name], regime_policy(name)
    policy, task = load_policy(path), load_task(regime.family, "test", **regime.task)
    config = replace(load_profile("cpu").train, **regime.changes)
    found = {"special": regime.special, "problems": problems}
    for kind, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        settings = config.sampling(temperature=temperature, rows=256)
        result = evaluate(policy, task, settings, problems=problems, sandbox=sandbox)
        found[kind] = {"accuracy": result.accuracy, "interval": list(result.interval[1:])}
        found[kind] |= {key: result.behaviour[f"rollout/{key}"] for key in ("calls", "invalid_calls", "progress")}
    header = run_header(config, path.name, task.name, str(policy.device))
    return found | {key: header[key] for key in ("command", "commit", "versions", "device")}


def table(record: dict) -> str:
    """Markdown."""
    columns = "start | what is special | sampled, % | greedy, % | calls | of them invalid, % | progress"
    rows = []
    for name, found in record.items():
        mine = found["sampled"]
        accuracies = [f"{100 * found[kind]['accuracy']:.0f}" for kind in ("sampled", "greedy")]
        rest = (f"{mine['calls']:.1f}", f"{100 * mine['invalid_calls']:.0f}", f"{mine['progress']:.2f}")
        rows.append((f"`{name}`", found["special"], *accuracies, *rest))
    return markdown_table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=512)
    parser.add_argument("names", nargs="*", default=NAMES)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    with Sandbox() as sandbox:
        for name in asked.names:
            if name not in record:
                record[name] = measure(name, asked.problems, sandbox)
                ordered = {key: record[key] for key in NAMES if key in record}
                RECORD.write_text(json.dumps(ordered, indent=1) + "\n", "utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
