"""What waiting costs from 1 to 1,000 workers: rollouts in lock step, on their own, and asynchronously; a simulation.

    python benchmarks/scaling.py             # measures (a minute on one core), simulates, draws
    python benchmarks/scaling.py --redraw    # simulates and draws, from the record

Measured, with the shipped policies: the tokens of each turn of 256 rollouts a family, the seconds of each tool call,
a decoding pass at several numbers of rows; and the update, from ``benchmarks/results/step.json``. Simulated: a worker
decodes up to 64 rows, one token of each a pass; a pass costs what it was measured to cost at that number of rows.
Writes ``benchmarks/results/scaling.json`` and ``docs/scaling.png``, ``.svg``.
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt

import gtpo_mini as gm
from gtpo_mini.experiments.plots import save_figure
from gtpo_mini.rollout.forward import ForwardPass
from gtpo_mini.tasks.starts import load_regime
from gtpo_mini.train.config import TrainConfig, load_profile
from gtpo_mini.train.metrics import run_header

RESULTS = Path(__file__).parent / "results"
RECORD = RESULTS / "scaling.json"
FAMILIES = {
    "branching": ("tiny", "noisy"),
    "programs": ("tiny-programs", "programs_20"),
    "facts": ("tiny-facts", "facts_20"),
}
ROWS, BATCHES = 64, 1000
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
KINDS = {
    "lock": ("turns in lock step", "#D55E00", "s"),
    "own": ("rollouts on their own, steps in lock step", "#0072B2", "o"),
    "async": ("asynchronous", "#009E73", "^"),
}

#: Of a rollout: tokens sampled in each turn, and seconds of the tool after it (0 after the last).
Rollout = list[tuple[int, float]]


# --- measured ---------------------------------------------------------------------------------------------------------


def measure_rollouts(family: str) -> tuple[list[Rollout], float]:
    """256 rollouts of the family's shipped policy, and the bytes of one as processes exchange it."""
    model, regime = FAMILIES[family]
    settings = TrainConfig(**{**vars(load_profile("cpu").train), **load_regime(regime).changes}).sampling()
    groups = gm.sample(gm.load_policy(model), gm.load_task(family), settings=settings, problems=32, group_size=8)
    found, sizes = [], []
    for rollouts, _ in groups:
        for rollout in rollouts:
            tokens = [0] * len(rollout.turns)
            for mask, turn in zip(rollout.loss_mask, rollout.turn_index, strict=True):
                tokens[turn] += mask
            waits = [0.0 if turn.result is None else turn.result.wall_seconds for turn in rollout.turns]
            found.append(list(zip(tokens, waits, strict=True)))
            sizes.append(len(pickle.dumps(rollout)))
    return found, statistics.fmean(sizes)


def measure_pass(rows: int) -> float:
    """Median seconds of a pass in which so many rows read one token each; the tiny policy, after a prompt of 40."""
    policy = gm.load_policy("tiny")
    forward = ForwardPass(policy, rows, share=True)
    forward.read_prompts({0: [1] * 40})
    forward.begin_rows(range(rows), [0] * rows)
    spent = []
    for place in range(60):
        begin = time.perf_counter()
        forward.read(range(rows), [[1]] * rows, [40 + place] * rows)
        spent.append(time.perf_counter() - begin)
    return statistics.median(spent)


def measure() -> dict:
    torch.set_num_threads(1)
    header = run_header(TrainConfig(), "shipped", "three families", "cpu")
    record = {key: header[key] for key in ("commit", "versions", "device", "threads")}
    step = json.loads((RESULTS / "step.json").read_text("utf-8"))["sides"]["now"]
    with torch.inference_mode():
        passes = {rows: measure_pass(rows) for rows in (1, 2, 4, 8, 16, 32, 64)}
    record |= {"command": "python benchmarks/scaling.py", "pass_s": passes, "update_s": step["update"]["median"]}
    record["families"] = {}
    for family in FAMILIES:
        rollouts, size = measure_rollouts(family)
        rounded = [[(tokens, round(wait, 5)) for tokens, wait in rollout] for rollout in rollouts]
        record["families"][family] = {"rollout_bytes": round(size), "rollouts": rounded}
    return record


# --- simulated --------------------------------------------------------------------------------------------------------


def lock_step(batch: list[Rollout], cost: np.ndarray) -> float:
    """Seconds of a batch whose turns begin together: all decode until the last has ended, then all wait for all tools.

    >>> lock_step([[(2, 1.0), (1, 0.0)], [(1, 0.5), (3, 0.0)]], np.array([0.0, 1.0, 1.0]))
    6.5
    """
    seconds = 0.0
    for turn in range(max(map(len, batch))):
        now = [rollout[turn] for rollout in batch if turn < len(rollout)]
        lengths = np.array([tokens for tokens, _ in now])
        seconds += sum(cost[(lengths > place).sum()] for place in range(lengths.max()))
        seconds += sum(wait for _, wait in now)  # one after another, as TRL runs them
    return float(seconds)


def on_their_own(queue: list[Rollout], cost: np.ndarray, rows: int = ROWS) -> tuple[float, list[float], list[float]]:
    """A worker with so many rows, each of which takes the next rollout when its own has ended; tools run meanwhile.

    Returns the seconds until all have ended, and when each began and ended, in the order of their ends.

    >>> on_their_own([[(2, 1.0), (1, 0.0)], [(1, 0.5), (3, 0.0)]], np.array([0.0, 1.0, 1.0]))
    (5.0, [0.0, 0.0], [4.0, 5.0])
    """
    waiting, clock, began, ended = list(reversed(queue)), 0.0, [], []
    running: list[list] = []  # of each row: its rollout, turn, tokens left, when its tool is ready, when it began
    while running or waiting:
        while waiting and len(running) < rows:
            rollout = waiting.pop()
            running.append([rollout, 0, rollout[0][0], 0.0, clock])
        ready = [row for row in running if row[3] <= clock]
        if not ready:
            clock = min(row[3] for row in running)
            continue
        clock += cost[len(ready)]
        for row in ready:
            row[2] -= 1
            if row[2] > 0:
                continue
            rollout, turn, _, _, begin = row
            if turn + 1 == len(rollout):
                running.remove(row)
                began.append(begin)
                ended.append(float(clock))
            else:
                row[1:4] = turn + 1, rollout[turn + 1][0], clock + rollout[turn][1]
    return float(clock), began, ended


def pass_costs(record: dict) -> np.ndarray:
    """Seconds of a pass with 0 to 64 rows, between the measured ones on a line."""
    measured = {int(rows): seconds for rows, seconds in record["pass_s"].items()}
    return np.interp(range(ROWS + 1), [0, *measured], [0.0, *measured.values()])


def slow_tools(rollouts: list[Rollout], cost: np.ndarray, rng: np.random.Generator) -> list[Rollout]:
    """Each rollout 40 times, with tools as slow as a turn's decoding on average: most are quick, a few very slow."""
    mean = np.mean([tokens for rollout in rollouts for tokens, _ in rollout]) * cost[ROWS]
    sigma = 1.5
    median = mean / np.exp(sigma**2 / 2)
    many = 40 * rollouts
    return [[(n, median * rng.lognormal(0, sigma) if wait else 0.0) for n, wait in rollout] for rollout in many]


def simulate(rollouts: list[Rollout], cost: np.ndarray, update: float, rng: np.random.Generator) -> dict:
    """Share of time that is not waiting, of each kind at each number of workers; and the lag of asynchronous ones.

    Without waiting a rollout costs its tokens in full passes, and its share of an update. Steps in lock step end with
    the slowest worker; asynchronous workers wait for nobody, and learn from rollouts of older weights.
    """
    batches = [[rollouts[i] for i in rng.integers(len(rollouts), size=ROWS)] for _ in range(BATCHES)]
    ideal = sum(tokens for batch in batches for rollout in batch for tokens, _ in rollout) * cost[ROWS] / ROWS / BATCHES
    step = {"lock": [lock_step(batch, cost) for batch in batches], "own": [on_their_own(b, cost)[0] for b in batches]}
    share: dict[str, list[float]] = {}
    for kind, seconds in step.items():
        slowest = [np.mean(np.max(rng.choice(seconds, (400, count)), axis=1)) for count in WORKERS]
        share[kind] = [float((ideal + update) / (most + update)) for most in slowest]
    _, began, ended = on_their_own([rollout for batch in batches for rollout in batch], cost)
    steady = ended[len(ended) // 2 - 1]  # until then every row has a next rollout
    stream = steady / (len(ended) // 2) * ROWS  # seconds of a batch
    share["async"] = [float((ideal + update) / (stream + update))] * len(WORKERS)
    # An update each time that a batch has ended; the machines that update are other ones, and as fast as needed.
    lags = [(end - begin) / stream for begin, end in zip(began, ended, strict=True) if end <= steady]
    return {"share": share, "lag_mean": float(np.mean(lags)), "lag_most": float(np.max(lags))}


def draw(record: dict) -> dict:
    cost, rng = pass_costs(record), np.random.default_rng(0)
    figure, panels = plt.subplots(2, 3, figsize=(10, 6), sharex=True, sharey=True, layout="constrained")
    found: dict[str, dict] = {}
    for column, (family, facts) in enumerate(record["families"].items()):
        tools = {"measured tools": facts["rollouts"], "slow tools": slow_tools(facts["rollouts"], cost, rng)}
        for row, (name, rollouts) in enumerate(tools.items()):
            result = simulate(rollouts, cost, record["update_s"], rng)
            found[f"{family}, {name}"] = result
            axes = panels[row, column]
            for kind, (label, colour, marker) in KINDS.items():
                style = {"color": colour, "marker": marker, "label": label, "linewidth": 2, "markersize": 4}
                axes.plot(WORKERS, [100 * share for share in result["share"][kind]], **style)
            axes.set(xscale="log", ylim=(0, 100))
            axes.set_xticks((1, 10, 100, 1000), ("1", "10", "100", "1,000"))
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_title(f"{family}, {name}", fontsize=10)
    for axes in panels[:, 0]:
        axes.set_ylabel("time not spent waiting, %")
    for axes in panels[1]:
        axes.set_xlabel("workers of 64 rows")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    save_figure(figure, "scaling", folder=Path(__file__).resolve().parents[1] / "docs")
    return found


def table(record: dict) -> str:
    """What stands in docs/scaling.md."""
    lines = [
        "| rollouts | turns in lock step | on their own | asynchronous | lag, mean and most |",
        "|---|---|---|---|---|",
    ]
    for name, found in record["simulated"].items():
        ends = [f"{100 * share[0]:.0f}, {100 * share[-1]:.0f}" for share in found["share"].values()]
        lines.append(f"| {name} | {' | '.join(ends)} | {found['lag_mean']:.1f}, {found['lag_most']:.0f} |")
    lines += [
        "",
        "| family | turns | tokens a turn, mean and most | tool, median and most | a rollout |",
        "|---|---|---|---|---|",
    ]
    for family, facts in record["families"].items():
        tokens = [n for rollout in facts["rollouts"] for n, _ in rollout]
        waits = [1000 * wait for rollout in facts["rollouts"] for _, wait in rollout[:-1]]
        turns, mean = statistics.fmean(map(len, facts["rollouts"])), statistics.fmean(tokens)
        tool = f"{statistics.median(waits):.1f} ms, {max(waits):.0f} ms"
        size = f"{facts['rollout_bytes'] / 1000:.1f} kB"
        lines.append(f"| {family} | {turns:.1f} | {mean:.0f}, {max(tokens)} | {tool} | {size} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redraw", action="store_true", help="from the record")
    record = json.loads(RECORD.read_text("utf-8")) if parser.parse_args().redraw else measure()
    record["simulated"] = draw(record)
    RECORD.write_text(json.dumps(record) + "\n", encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
