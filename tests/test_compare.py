from __future__ import annotations

import json
from pathlib import Path

import pytest

from gtpo_mini.__main__ import main
from gtpo_mini.experiments.compare import compare, differences
from gtpo_mini.experiments.evaluate import evaluate
from gtpo_mini.tasks.task import Task, load_task
from gtpo_mini.train.config import load_profile
from gtpo_mini.train.record import load_runs


def results(path, right, **changes):
    header = {"kind": "header", "task": "t", "split": "test", "problems": len(right), **changes}
    rows = [{"kind": "problem", "id": str(i), "question": f"q{i}", "correct": row} for i, row in enumerate(right)]
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *rows)))
    return path


def test_pairs_are_counted(tmp_path):
    a = results(tmp_path / "a", [[True], [False], [False], [True]] * 20)
    b = results(tmp_path / "b", [[True], [True], [True], [False]] * 20)
    found = compare(a, b)
    assert (found.b_better, found.a_better, found.difference.estimate) == (40, 20, 0.25)
    assert found.difference.low < 0.25 < found.difference.high and found.p_value < 0.05 and found.detectable > 0


@pytest.mark.parametrize(
    ("right", "changes", "message"),
    [
        ([[True]] * 3, {}, "lacks 1 problems"),
        ([[True]] * 4, {"task": "u"}, "only the same problems"),
        ([[True]] * 4, {"problems": 9}, "cut off"),
    ],
)
def test_other_problems_are_refused(tmp_path, right, changes, message):
    a = results(tmp_path / "a", [[True]] * 4)
    with pytest.raises(ValueError, match=message):
        compare(a, results(tmp_path / "b", right, **changes))


def test_a_file_without_results_is_named(tmp_path):
    (tmp_path / "x").write_text("[1]\n")
    for name in ("x", "missing"):
        with pytest.raises(ValueError, match=name):
            compare(tmp_path / name, tmp_path / name)


def test_a_place_where_results_cannot_go_shows_before_the_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gtpo_mini.policy.load.load_policy", lambda *words: pytest.fail("the work was begun"))
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "below"):
        assert main(["evaluate", "--output", str(path)]) == 2
        assert f"output={str(path)!r}: cannot be written" in capsys.readouterr().err


def test_the_sign_and_the_files_are_beyond_doubt(tmp_path, capsys):
    a = results(tmp_path / "before.jsonl", [[False], [False], [False], [True]] * 20)
    b = results(tmp_path / "after.jsonl", [[True], [True], [False], [True]] * 20)
    for first, second, sign in ((a, b, "+0.500"), (b, a, "-0.500")):
        assert main(["compare", str(first), str(second)]) == 0
        out = capsys.readouterr().out
        assert f"{second} minus {first}: {sign} [" in out and f"problems): {b} is better" in out
        assert out.startswith(f"{first}: ") and f"better: {second} on " in out
    assert main(["compare", str(a), str(a)]) == 0
    assert "problems): no difference shown" in capsys.readouterr().out


def test_problems_are_paired_by_id_not_by_order(tmp_path):
    a = results(tmp_path / "a", [[True], [False], [False], [True], [True]] * 8)
    b = results(tmp_path / "b", [[True], [True], [False], [True], [False]] * 8)
    header, *rows = b.read_text().splitlines(True)
    (tmp_path / "c").write_text("".join([header, *reversed(rows)]))
    there, back = compare(a, b), compare(a, tmp_path / "c")
    assert (there.difference, there.a_better, there.b_better) == (back.difference, back.a_better, back.b_better)


def test_recorded_runs_are_compared_too():
    ablation = Path(__file__).parents[1] / "data" / "runs" / "ablation"
    runs = {run.arm: run for run in load_runs(ablation) if run.seed == 0}
    found = compare(runs["grpo"], runs["gtpo"])
    ends = {arm: run.footer["sampled"]["accuracy"] for arm, run in runs.items()}
    assert found.problems == 1024 and found.difference.estimate == pytest.approx(ends["gtpo"] - ends["grpo"])
    assert "gtpo seed 0 minus grpo seed 0: " in str(found)
    with pytest.raises(ValueError, match="holds 90 runs"):
        compare(ablation, ablation)


def test_two_runs_of_one_seed_are_refused():
    runs = load_runs(Path(__file__).parents[1] / "data" / "runs" / "one_rate")
    with pytest.raises(ValueError, match="more than one run of a seed"):
        differences([*runs, *runs], ["+returns"], "+returns")


def test_a_killed_evaluation_leaves_what_was_graded(tmp_path, tiny_policy, sandbox):
    """The grader fails at the 30th answer, as a kill would: 29 problems are there, and the file says that it is cut."""
    problems, graded = load_task("branching", "test").problems[:40], []

    def grader(problem, answer):
        graded.append(problem.id)
        if len(graded) > 60:  # each problem is graded twice: its answer, and its majority
            raise KeyboardInterrupt
        return answer == problem.answer

    settings = load_profile("cpu").train.sampling(rows=8)
    path = tmp_path / "r.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_policy, Task("own", problems, grader), settings, sandbox=sandbox, output=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["problems"] == 40 and 20 < len(lines) - 1 < 40
    with pytest.raises(ValueError, match=r"problems of 40: the file is cut off"):
        compare(path, path)
    with pytest.raises(ValueError, match="is there already"):
        evaluate(tiny_policy, Task("own", problems, grader), settings, sandbox=sandbox, output=path)
    path.unlink()
    task = load_task("branching", "test")
    found = evaluate(tiny_policy, task, settings, problems=40, sandbox=sandbox, output=path)
    header, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == [problem.id for problem in problems] and header["accuracy"] == found.accuracy
    assert [tuple(row["correct"]) for row in rows] == list(found.correct) and compare(path, path).a == found.accuracy
