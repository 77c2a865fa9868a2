from __future__ import annotations

import json

import pytest

from gtpo_mini.__main__ import main
from gtpo_mini.experiments.results import compare


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
    for path in (tmp_path, tmp_path / "file" / "below"):
        assert main(["evaluate", "--output", str(path)]) == 2
        assert f"output={str(path)!r}: cannot be written" in capsys.readouterr().err
