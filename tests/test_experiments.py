from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest

from gtpo_mini import ARMS, load_runs, run_arms
from gtpo_mini.__main__ import main
from gtpo_mini.experiments.compare import area
from gtpo_mini.experiments.evaluate import evaluate
from gtpo_mini.experiments.experiments import run_arm, search_rates
from gtpo_mini.experiments.stats import wilson_interval
from gtpo_mini.rollout.engine import SamplingSettings
from gtpo_mini.tasks.task import Task, load_task
from gtpo_mini.train.record import RecordedRun
from gtpo_mini.types import Problem

TINY = {"steps": 2, "problems_per_step": 2, "group_size": 4, "eval_problems": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    run_arms(["grpo", "gtpo"], [0, 1], path, **TINY)
    return path


def bits(run) -> tuple:
    """What must be the same when a run is made again."""
    steps = [{k: v for k, v in s.items() if not k.startswith(("time/", "memory/"))} for s in run.steps]
    return steps, {k: v for k, v in run.footer.items()}


def test_runs_are_recorded_whole_and_paired(folder):
    runs = load_runs(folder)
    assert [(run.arm, run.seed) for run in runs] == [("grpo", 0), ("grpo", 1), ("gtpo", 0), ("gtpo", 1)]
    for run in runs:
        assert len(run.steps) == 2 and len(run.series("reward/outcome")) == 2
        assert len(run.footer["sampled"]["per_problem"]) == 8
    problems = [set(run.footer["greedy"]["per_problem"]) for run in runs]
    assert all(these == problems[0] for these in problems)  # the same held-out problems: differences can be paired
    first = [run.steps[0]["reward/outcome"] for run in runs]
    assert first[0] == first[2] and first[1] == first[3]  # the same seed, the same first rollouts


def test_a_run_made_again_in_this_process_has_the_same_bits(folder, tmp_path):
    again = run_arm("gtpo", 1, tmp_path, **TINY)
    assert bits(again) == bits(load_runs(folder)[3])


def test_evaluations_on_the_way_change_nothing_of_the_run(folder, tmp_path):
    run = run_arm("gtpo", 1, tmp_path, **TINY, eval_every=1)
    without = load_runs(folder)[3]
    on_the_way = {name: run.footer.pop(name) for name in ("sampled_1", "greedy_1")}
    assert bits(run) == bits(without) and run.header["eval_every"] == 1
    for evaluation in on_the_way.values():
        assert list(evaluation["per_problem"]) == list(run.footer["sampled"]["per_problem"])  # the same problems


def test_several_regimes_have_a_folder_each_and_a_seed_ends_in_all_of_them_first(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("gtpo_mini.experiments.experiments._run_all", lambda jobs, *rest: asked.extend(jobs) or [])
    regimes = ["noisy", "facts_20"]  # both shipped: nothing is to be made
    run_arms(["grpo", "gtpo"], [0, 1], tmp_path, regime=regimes, rates={"grpo": 1e-4, "gtpo": 2e-4})
    assert [(seed, *path.relative_to(tmp_path).parts) for _, seed, path, _ in asked] == [
        (seed, regime, f"{arm}-seed{seed}") for seed in (0, 1) for regime in regimes for arm in ("grpo", "gtpo")
    ]
    assert asked[3][3] == {"regime": "facts_20", "learning_rate": 2e-4}
    asked.clear()
    run_arms(["grpo"], [0], tmp_path, regime=["noisy"])
    assert asked == [("grpo", 0, tmp_path / "grpo-seed0", {"regime": "noisy"})]


def test_finished_runs_are_read_unfinished_ones_made_anew(folder, tmp_path):
    shutil.copytree(folder / "gtpo-seed1", tmp_path / "gtpo-seed1")
    path = tmp_path / "gtpo-seed1" / "metrics.jsonl"
    before = path.read_text()
    run_arms(["gtpo"], [1], tmp_path, **TINY)
    assert path.read_text() == before
    path.write_text(before[: len(before) // 2])  # as a kill leaves it
    with pytest.raises(ValueError, match="no finished run"):
        load_runs(tmp_path)
    (run,) = run_arms(["gtpo"], [1], tmp_path, **TINY)
    assert bits(run) == bits(load_runs(folder)[3])
    with pytest.raises(ValueError, match="another configuration"):
        run_arm("grpo", 1, tmp_path / "gtpo-seed1", **TINY)


def test_the_command_line_reads_finished_runs_and_draws_them(folder, tmp_path, capsys):
    words = ["experiment", "--output", str(folder), "--seeds", "2", "--steps", "2", "--eval-problems", "8"]
    assert main(words) == 2  # other problems_per_step and group_size: nothing is overwritten
    assert "another configuration" in capsys.readouterr().err
    assert main(["plot", str(folder), "--output", str(tmp_path), "--name", "curves"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "curves.svg", "curves.json"}
    command = load_runs(folder)[0].header["command"]
    assert command.startswith("python") and str(folder) not in command


def test_bad_arms_and_settings_are_named_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match=r"unknown arm 'ppo'.*grpo, grpo_accuracy"):
        run_arms(["gtpo", "ppo"], [0], tmp_path)
    with pytest.raises(ValueError, match=r"unknown arm 'ppo'"):
        search_rates(["ppo"], [1e-4], tmp_path)
    with pytest.raises(ValueError, match=r"unknown regime 'easy'"):
        search_rates(["gtpo"], [1e-4], tmp_path, regime="easy")
    with pytest.raises(ValueError, match=r"gamma must be .* got 2"):
        run_arms(["gtpo"], [0], tmp_path, gamma=2.0)
    assert list(tmp_path.iterdir()) == []
    assert set(ARMS) >= {"grpo", "gtpo"}


@pytest.mark.parametrize("text", [None, "no json", "{}", "[1]", '{"best": [1]}', '{"best": {"grpo": "fast"}}'])
def test_a_file_without_rates_is_named_with_the_mend(tmp_path, capsys, text):
    path = tmp_path / "rates.json"
    if text is not None:
        path.write_text(text)
    assert main(["experiment", "--rates", str(path), "--output", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert f"rates={str(path)!r}: no learning rates there" in error and "gtpo-mini search" in error


def test_the_search_is_recorded_and_its_rates_are_used(tmp_path):
    small = {key: TINY[key] for key in ("steps", "problems_per_step", "group_size")}
    best = search_rates(["grpo", "gtpo"], [1e-4, 1e-3], tmp_path / "search", **small)
    record = json.loads((tmp_path / "search" / "rates.json").read_text())
    assert record["best"] == best and set(best) == {"grpo", "gtpo"} and set(best.values()) <= {1e-4, 1e-3}
    assert record["seeds"] == [1000] and all(len(scores) == 2 for scores in record["scores"].values())
    made = load_runs(tmp_path / "search")
    for run in made:
        assert record["scores"][run.arm][str(run.header["config"]["learning_rate"])] == area(run)
    assert len(made) == 4 and all("sampled" not in run.footer for run in made)  # no held-out problem is looked at
    runs = run_arms(["grpo", "gtpo"], [0], tmp_path / "runs", rates={"grpo": 1e-4, "gtpo": 1e-3}, **TINY)
    assert [run.header["config"]["learning_rate"] for run in runs] == [1e-4, 1e-3]
    with pytest.raises(ValueError, match=r"no learning rate for potential"):
        run_arms(["potential"], [0], tmp_path / "runs", rates=best, **TINY)


def test_a_rate_at_which_runs_break_down_is_taken_by_no_arm(tmp_path, monkeypatch):
    def made(arm: str, rate: float, curve: list[float]) -> RecordedRun:
        steps = tuple({"step": i, "reward/outcome": value} for i, value in enumerate(curve))
        return RecordedRun({"arm": arm, "seed": 0, "config": {"learning_rate": rate}}, steps, {})

    slow, fast, broken = [0.1] * 20 + [0.5] * 20, [0.9] * 40, [0.9] * 30 + [0.7] * 10
    runs = [made("grpo", 1e-4, slow), made("gtpo", 1e-4, slow), made("grpo", 1e-3, broken), made("gtpo", 1e-3, fast)]
    monkeypatch.setattr("gtpo_mini.experiments.experiments._run_all", lambda *_: runs)
    assert search_rates(["grpo", "gtpo"], [1e-4, 1e-3], tmp_path) == {"grpo": 1e-4, "gtpo": 1e-4}
    record = json.loads((tmp_path / "rates.json").read_text())
    assert record["broke_down"] == {"0.0001": 0, "0.001": 0.5}
    assert record["scores"]["gtpo"]["0.001"] == pytest.approx(0.9)
    monkeypatch.setattr("gtpo_mini.experiments.experiments._run_all", lambda *_: runs[2:3])
    assert search_rates(["grpo"], [1e-3], tmp_path) == {"grpo": 1e-3}  # there is no other


def test_a_killed_call_leaves_no_worker_behind_and_can_be_made_again(tmp_path):
    words = ["experiment", "--arms", "grpo", "--seeds", "1", "--steps", "500", "--output", str(tmp_path)]
    call = subprocess.Popen([sys.executable, "-m", "gtpo_mini", *words], stderr=subprocess.DEVNULL)
    path = tmp_path / "grpo-seed0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    call.kill()
    call.wait()
    time.sleep(2)
    before = path.read_text()
    time.sleep(4)
    assert path.read_text() == before, "a worker went on writing"
    (run,) = run_arms(["grpo"], [0], tmp_path, **TINY)
    assert len(run.steps) == 2


def test_load_runs_skips_what_is_no_run(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "runs")
    (tmp_path / "runs" / "other.jsonl").write_text(json.dumps({"question": "?"}) + "\n")
    assert len(load_runs(tmp_path)) == 4


def test_evaluation_counts_by_hand(tiny_policy, sandbox):
    """A task whose grader looks at nothing but the problem: half of the problems are right whatever is answered."""
    problems = tuple(Problem(str(i), p.question, p.answer) for i, p in enumerate(load_task("branching").problems[:8]))
    task = Task("even", problems, grader=lambda problem, answer: int(problem.id) % 2 == 0)
    settings = SamplingSettings(max_turns=6, max_turn_tokens=40, max_context=512)
    result = evaluate(tiny_policy, task, settings, samples=3, sandbox=sandbox)
    answered = [[answer is not None for answer in row] for row in result.answers]
    expected = [[a and i % 2 == 0 for a in row] for i, row in enumerate(answered)]
    assert [list(row) for row in result.correct] == expected
    assert result.accuracy == pytest.approx(sum(map(sum, expected)) / 24)
    assert result.pass_at(3) == pytest.approx(sum(map(any, expected)) / 8)
    one = evaluate(tiny_policy, task, settings, problems=8, sandbox=sandbox)
    assert one.interval == wilson_interval(sum(row[0] for row in one.correct), 8)
