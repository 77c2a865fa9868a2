from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gtpo_mini.__main__ import main
from gtpo_mini.experiments.compare import accuracies, compare, differences
from gtpo_mini.experiments.evaluate import evaluate, sample
from gtpo_mini.rollout.engine import RolloutEngine
from gtpo_mini.rollout.protocol import load_protocol
from gtpo_mini.rollout.settings import SamplingSettings
from gtpo_mini.tasks.task import Task, load_task
from gtpo_mini.train.record import RecordedRun


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
    monkeypatch.setattr("gtpo_mini.evaluate", lambda *words: pytest.fail("the work was begun"))
    (tmp_path / "file").write_text("x")
    for path, reason in (
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "file", "is there already"),
        (tmp_path / "file" / "below", "cannot be written"),
    ):
        assert main(["evaluate", "--output", str(path)]) == 2
        assert f"output={str(path)!r}: {reason}" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "x"


def test_the_sign_is_beyond_doubt(tmp_path, capsys):
    before, after = results(tmp_path / "before", [[False], [True]] * 20), results(tmp_path / "after", [[True]] * 40)
    assert main(["compare", str(before), str(after)]) == 0
    assert f"{after} minus {before}: +0.500 [+0." in capsys.readouterr().out
    assert main(["compare", str(after), str(before)]) == 0
    assert f"{before} minus {after}: -0.500 [-0." in capsys.readouterr().out


def test_problems_are_paired_by_their_ids_whatever_their_order(tmp_path):
    a = results(tmp_path / "a", [[True], [True], [False], [False]])
    b = results(tmp_path / "b", [[True], [False], [True], [False]])
    lines = b.read_text().splitlines()
    (tmp_path / "c").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    found, mixed = compare(a, b), compare(a, tmp_path / "c")
    assert (found.a_better, found.b_better) == (mixed.a_better, mixed.b_better) == (1, 1)


def recorded(arm: str, seed: int, scores: dict[str, float], moved: float = 1.0) -> RecordedRun:
    footer = {"sampled": {"accuracy": sum(scores.values()) / len(scores), "per_problem": scores}}
    return RecordedRun({"arm": arm, "seed": seed, "task": "t"}, ({"grad/norm": moved},), footer)


def test_runs_are_paired_by_seed_and_problems_by_id_whatever_their_order():
    """gtpo is one problem of ten better at each seed; seeds differ by much more than that."""
    runs = []
    for seed in range(4):
        right = 2 * seed + 1
        theirs = {str(i): float(i < right) for i in range(10)}
        mine = {str(i): float(i < right + 1) for i in range(10)}
        runs += [recorded("grpo", seed, theirs), recorded("gtpo", seed, dict(reversed(mine.items())))]
    (found,) = differences(runs, ["gtpo"])
    for order in (runs[::-1], sorted(runs, key=lambda run: (run.arm, -run.seed if run.arm == "gtpo" else run.seed))):
        assert differences(order, ["gtpo"]) == [found]
    plain = [recorded(r.arm, r.seed, dict(sorted(r.footer["sampled"]["per_problem"].items()))) for r in runs]
    assert differences(plain, ["gtpo"]) == [found]
    assert (
        found.over_problems.high - found.over_problems.low < 0.25
    )  # paired: four of ten problems differ, by a quarter
    assert found.seeds == 4 and found.over_seeds.estimate == pytest.approx(0.1)
    assert found.over_seeds.low == pytest.approx(0.1) == found.over_seeds.high
    assert accuracies(runs, "gtpo") == {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8}
    with pytest.raises(ValueError, match="1 common seeds"):
        differences([run for run in runs if run.arm == "gtpo" or run.seed == 2], ["gtpo"])
    with pytest.raises(ValueError, match="more than one run of a seed"):
        differences([*runs, runs[0]], ["gtpo"])


def test_results_are_written_as_they_come_and_a_file_that_is_cut_off_says_so(tmp_path, tiny_policy, sandbox):
    """A killed evaluation leaves what it had; one that is written down is the same to the bit."""
    task, settings = load_task("branching", "test", size=12), SamplingSettings(max_turn_tokens=24, max_context=320)
    whole = evaluate(tiny_policy, task, settings, samples=2, sandbox=sandbox)
    graded, plain = [], task.grade

    def grade(problem, answer):
        graded.append(problem.id)
        if len(graded) == 20:
            raise KeyboardInterrupt
        return plain(problem, answer)

    object.__setattr__(task, "grade", grade)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_policy, task, settings, samples=2, sandbox=sandbox, output=tmp_path / "cut.jsonl")
    object.__setattr__(task, "grade", plain)
    kept = evaluate(tiny_policy, task, settings, samples=2, sandbox=sandbox, output=tmp_path / "all.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "cut.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["header", *["problem"] * 6]
    with pytest.raises(ValueError, match="6 problems of 12: the file is cut off"):
        compare(tmp_path / "all.jsonl", tmp_path / "cut.jsonl")
    assert kept == whole
    assert compare(tmp_path / "all.jsonl", tmp_path / "all.jsonl").problems == 12


def test_problems_that_share_an_id_keep_their_own_results(tiny_policy, sandbox):
    first, second = load_task("branching", "test", size=2).problems
    twins = Task("twins", (replace(first, id="1"), replace(second, id="1", answer="never")))
    settings = SamplingSettings(max_turn_tokens=24, max_context=320)
    found = evaluate(tiny_policy, twins, settings, samples=4, sandbox=sandbox)
    alone = evaluate(tiny_policy, Task("one", (first,)), settings, samples=4, sandbox=sandbox)
    assert found.answers[0] == alone.answers[0] != found.answers[1] and not any(found.correct[1])


def test_groups_come_back_in_the_order_of_the_task_each_rollout_at_its_place(tiny_policy, sandbox):
    """Rollouts stop when they stop; what comes back are those of the engine, cut into the problems' groups."""
    task, settings, early = load_task("branching", size=12), SamplingSettings(max_turn_tokens=24, rows=8), []
    groups = sample(tiny_policy, task, 12, 3, 5, settings, sandbox=sandbox, finished=early.append)
    assert [group.rollouts[0].problem.id for group in groups] == [problem.id for problem in task.problems]
    whole = RolloutEngine(tiny_policy, load_protocol(), sandbox, settings).generate(task.problems, 3, 5)
    assert [rollout for group in groups for rollout in group.rollouts] == whole
    assert early != groups and sorted(map(id, early)) == sorted(map(id, groups))
