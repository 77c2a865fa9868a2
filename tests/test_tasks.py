from __future__ import annotations

import json
import random
import re

import pytest

from gtpo_mini.branching import TraceNoise, draw_problems, write_trace
from gtpo_mini.grading import same_answer
from gtpo_mini.tasks import Task, load_task
from gtpo_mini.types import Problem


def solve_by_reading(question: str) -> int:
    """An independent reader of the question's words."""

    def apply(count: int, phrase: str) -> int:
        number = int(re.search(r"\d+", phrase).group())
        if "times" in phrase:
            return count * number
        return count - number if re.search(r"sold|lost|takes away", phrase) else count + number

    first, *steps, _ = re.split(r"(?<=[.?]) ", question)
    count = int(re.search(r"\d+", first).group())
    for number, step in enumerate(steps, 1):
        step = step.removeprefix(f"Step {number}: ")
        if branch := re.match(r"if the count is (even|over 500), (.*); if it is .*?, (.*)\.", step):
            test, yes, no = branch.groups()
            holds = count % 2 == 0 if test == "even" else count > 500
            count = apply(count, yes if holds else no)
        else:
            count = apply(count, step)
    return count


def test_branching_answers_follow_from_the_words():
    problems = draw_problems(300, seed=5) + draw_problems(50, steps=5)
    for problem in problems:
        assert solve_by_reading(problem.question) == int(problem.answer)


def test_branching_branches_matter_and_answers_cannot_be_guessed():
    problems = draw_problems(1000)
    answers = [problem.answer for problem in problems]
    assert max(map(answers.count, set(answers))) <= 10  # no answer is right for more than 1 %
    assert sum("if the count" in problem.question for problem in problems) == 1000


def test_splits_share_no_question_and_draws_repeat():
    train, test = load_task("branching"), load_task("branching", "test")
    assert not {p.question for p in train.problems} & {p.question for p in test.problems}
    assert load_task("branching", size=9).problems == load_task("branching", size=9).problems
    assert load_task("branching", size=9, seed=1).problems != load_task("branching", size=9).problems


def test_traces_without_noise_solve_and_noisy_ones_mostly_do_not(sandbox):
    def last_printed(problem: Problem, noise: TraceNoise, seed: int) -> tuple[str, int]:
        writer, printed, calls = write_trace(problem, random.Random(seed), noise), "", 0
        planned = next(writer)
        while planned is not None:
            calls += 1
            printed = sandbox.run(planned[1]).stdout.strip()
            planned = writer.send(printed)
        return printed, calls

    problems = draw_problems(40)
    assert all(last_printed(p, TraceNoise(0.0), 0) == (p.answer, 3) for p in problems)
    solved = [last_printed(p, TraceNoise(0.5, 0.5), i)[0] == p.answer for i, p in enumerate(problems)]
    assert 0 < sum(solved) < 30


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("42", "42", True),
        ("42", "42.0", True),
        ("1430", "1,430", True),
        ("5", "$5", True),
        ("3/4", "0.75", True),
        ("781/960", r"\frac{781}{960}", True),
        ("42", "43", False),
        ("42", "", False),
        ("42", "nan", False),
        ("42", "inf", False),
        ("42", "9**9**9**9", False),
        ("42", "forty-two", False),
        ("42", "4" * 5000, False),
        ("yes", "yes", True),
        ("42", "\ud800", False),
    ],
)
def test_same_answer(gold, answer, same):
    assert same_answer(gold, answer) is same


def write(path, *rows) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return f"jsonl:{path}"


def test_json_lines_take_numbers_ids_and_blank_lines(tmp_path):
    name = write(
        tmp_path / "a.jsonl", {"question": "1+1?", "answer": 2}, "", {"id": "x", "question": "q", "answer": "3"}
    )
    task = load_task(name)
    assert [(p.id, p.answer) for p in task.problems] == [("1", "2"), ("x", "3")]
    assert task.grade(task.problems[0], "2.0") and not task.grade(task.problems[0], None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "a", "answer": "1"}, {"question": "b"}], "line 2"),
        ([{"question": "a", "answer": "1"}, {"question": " ", "answer": "1"}], "line 2"),
        ([{"question": "a", "answer": ""}], "line 1"),
        ([{"question": "a", "answer": None}], "line 1"),
        (["[1, 2]"], "line 1"),
        (["{not json"], "line 1"),
        (["[" * 100000], "line 1"),
        ([], "holds no problem"),
        (
            [{"id": 1, "question": "a", "answer": "1"}, {"id": 1, "question": "b", "answer": "1"}],
            "line 2 .*stands on line 1",
        ),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        load_task(write(tmp_path / "bad.jsonl", *rows))


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"question": "a", "answer": "1"}\n{"question": "\xff", "answer": "1"}\n')
    with pytest.raises(ValueError, match="line 2"):
        load_task(f"jsonl:{path}")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nope", {}, "unknown task 'nope'.*branching"),
        ("jsonl:", {}, "unknown task"),
        ("jsonl:/does/not/exist", {}, "no such file"),
        ("branching", {"split": "dev"}, "'train' or 'test'"),
        ("branching", {"size": 0}, "size=0"),
        ("branching", {"steps": 2}, "steps"),
        ("branching", {"colour": 1}, "no option 'colour'"),
        ("reasoning_gym:nope", {}, "unknown generator"),
    ],
)
def test_unknown_names_and_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_task(name, **options)


def test_gsm8k_reads_the_hub_s_format_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GTPO_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="GTPO_DATA_DIR"):
        load_task("gsm8k")
    (tmp_path / "gsm8k").mkdir()
    write(tmp_path / "gsm8k" / "train.jsonl", {"question": "How many?", "answer": "2*3=<<2*3=6>>6\n#### 1,006"})
    task = load_task("gsm8k")
    assert task.problems[0].answer == "1,006" and task.grade(task.problems[0], "1006")


def test_reasoning_gym_gives_gradable_problems():
    task = load_task("reasoning_gym:gsm_symbolic", size=5)
    assert all(task.grade(problem, problem.answer) for problem in task.problems)
    assert not task.grade(task.problems[0], str(float(task.problems[0].answer) + 1))


def test_an_own_task_needs_a_list_and_perhaps_a_grader():
    task = Task("mine", (Problem("1", "q", "yes"),), grader=lambda problem, answer: answer.lower() == problem.answer)
    assert task.grade(task.problems[0], "YES")
