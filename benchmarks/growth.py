"""Time and memory as rollouts and prompts grow, beside TRL: each side alone, in a process of its own, in turn.

    python benchmarks/growth.py             # a quarter of an hour
    python benchmarks/growth.py --redraw    # the figure only

The tiny model, TRL's tool in its own process. Memory is the process's peak less what the imports took. Writes
``benchmarks/results/growth.json`` and ``docs/growth.svg``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from gtpo_mini.train.config import TrainConfig
from gtpo_mini.train.metrics import run_header

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "results" / "growth.json"
GROUP = 8
# Problems a step, and words before a question for prompts of about 240 tokens, and of 4 and 16 times as many.
POINTS = {"long": [(2, 0), (2, 216), (2, 1080)], "middle": [(1, 0), (4, 0), (8, 0), (16, 0), (32, 0), (64, 0)]}
SIDES = {"trl": ("TRL 1.16", "#D55E00", "s"), "ours": ("gtpo_mini", "#0072B2", "o")}


def measure(side: str, case: str, problems: int, words: int) -> dict:
    """Steps of one side alone, after one of warm-up; of the large ones that one alone."""
    steps = 3 if problems <= 8 and words < 200 else 2 if problems == 16 else 0
    options = {"case": case, "tool": "plain", "problems": problems, "words": words, "steps": steps, "side": side}
    command = [sys.executable, str(ROOT / "benchmarks" / "vs_trl.py")]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = "killed: out of memory?" if done.returncode == -signal.SIGKILL else done.stderr[-2000:]
        return {**options, "failed": why}
    return {**options, "rollouts": GROUP * problems, **json.loads(done.stdout.splitlines()[-1])}


def draw(record: dict) -> None:
    """CPU milliseconds a rollout and peak memory, over rollouts a step and over the prompt's length."""
    matplotlib.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none", "font.size": 10})
    figure, panels = plt.subplots(2, 2, figsize=(9, 6), sharex="col", sharey="row", layout="constrained")
    for column, case in enumerate(("middle", "long")):
        ends = []
        for side, (label, colour, marker) in SIDES.items():
            points = [p for p in record["points"] if p["side"] == side and p["case"] == case and "failed" not in p]
            sizes = [round(p["steps"][0]["prompt_tokens"], -1) if column else p["rollouts"] for p in points]
            style = {"color": colour, "marker": marker, "label": label, "linewidth": 2}
            times = [[1000 * s["rollout_cpu"] / p["rollouts"] for s in p["steps"]] for p in points]
            both = [[statistics.median(t) for t in times], [p["peak"] - p["before"] for p in points]]
            for axes, values in zip(panels[:, column], both, strict=True):
                axes.plot(sizes, values, **style)
            ends.append([values[-1] for values in both])
        for axes, theirs, ours in zip(panels[:, column], *ends, strict=True):
            axes.annotate(
                "", (sizes[-1], theirs), (sizes[-1], ours), arrowprops={"arrowstyle": "<->", "color": "#777777"}
            )
            axes.annotate(f"{theirs / ours:.0f} x ", (sizes[-1], (theirs * ours) ** 0.5), ha="right", va="center")
            axes.set(xscale="log", yscale="log")
            axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set(ylabel="CPU time, ms a rollout", title="more rollouts a step")
    panels[0, 1].set_title("longer prompts")
    panels[1, 0].set(ylabel="peak memory above imports, MiB", xlabel="rollouts a step (prompts of 240 tokens)")
    panels[1, 1].set_xlabel("prompt, tokens (16 rollouts a step)")
    panels[0, 0].legend(frameon=False)
    figure.savefig(ROOT / "docs" / "growth.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redraw", action="store_true", help="the figure, from the record")
    if not parser.parse_args().redraw:
        header = run_header(TrainConfig(), "hermes", "coin", "cpu")
        record = {key: header[key] for key in ("commit", "versions", "device", "threads")}
        record |= {"command": "python benchmarks/growth.py", "load_average": os.getloadavg(), "points": []}
        for case, points in POINTS.items():
            for problems, words in points:
                for side in SIDES:
                    record["points"].append(measure(side, case, problems, words))
                    print({key: value for key, value in record["points"][-1].items() if key != "steps"}, flush=True)
                    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    draw(json.loads(RECORD.read_text()))


if __name__ == "__main__":
    main()
