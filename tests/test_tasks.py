from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gtpo_mini.tasks.branching import TraceNoise, _noisy_steps, draw_problems
from gtpo_mini.tasks.grading import generator_accepts, same_answer
from gtpo_mini.tasks.task import Task, check_task, load_task
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
        writer, printed, calls = _noisy_steps(problem, random.Random(seed), noise), "", 0
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
        ("1430", "$1,430.", True),
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


@pytest.mark.parametrize("name", ["coin_flip", "self_reference"])  # both draw many questions twice
def test_a_generator_s_train_problems_are_not_among_its_test_problems(name):
    train, test = (load_task(f"reasoning_gym:{name}", split, size=40).problems for split in ("train", "test"))
    assert len(train) == len(test) == 40
    assert not {problem.question for problem in train} & {problem.question for problem in test}


def graded(grade, **options):
    return Task("mine", (Problem("p7", "q", "yes"),), lambda problem, answer: grade, **options)


@pytest.mark.parametrize(("grade", "right"), [(True, True), (False, False), (np.True_, True), (np.bool_(0), False)])
def test_a_grade_is_a_bool(grade, right):
    task = graded(grade)
    assert task.grade(task.problems[0], "x") is right


@pytest.mark.parametrize("grade", [0.3, 1, 0, "wrong", None, [], np.float32(1), math.nan])
def test_another_grade_is_named(grade):
    task = graded(grade)
    with pytest.raises(ValueError, match=r"task 'mine', problem 'p7'.*not a bool.*partial_credit=True") as caught:
        task.grade(task.problems[0], "x")
    assert repr(grade) in str(caught.value)
    assert task.grade(task.problems[0], None) is False


@pytest.mark.parametrize("grade", [0.3, 0, 1, 1.0, True, np.float32(0.5), np.int64(1)])
def test_partial_credit_is_a_number(grade):
    task = graded(grade, partial_credit=True)
    found = task.grade(task.problems[0], "x")
    assert type(found) is float and found == grade
    nothing = task.grade(task.problems[0], None)
    assert type(nothing) is float and nothing == 0


@pytest.mark.parametrize("grade", [1.1, -0.1, math.nan, math.inf, "1", None])
def test_partial_credit_outside_of_0_to_1_is_named(grade):
    task = graded(grade, partial_credit=True)
    with pytest.raises(ValueError, match=r"task 'mine', problem 'p7'.*not a number in \[0, 1\]") as caught:
        task.grade(task.problems[0], "x")
    assert repr(grade) in str(caught.value)


def test_a_check_wants_full_marks():
    problems = (Problem("1", "q", "4"),)
    half = Task("half", problems, lambda problem, answer: 0.5, partial_credit=True)
    assert check_task(half).gold_fails == ("1",) and not check_task(half).wrong_passes


def test_a_grader_that_raises_names_the_task_and_the_problem():
    def grader(problem, answer):
        return {}[answer]

    task = Task("mine", (Problem("p7", "q", "yes"),), grader)
    with pytest.raises(ValueError, match="task 'mine', problem 'p7': the grader raised KeyError: 'x'") as caught:
        task.grade(task.problems[0], "x")
    assert isinstance(caught.value.__cause__, KeyError)


OWN = """
from gtpo_mini.tasks.task import Task
from gtpo_mini.types import Problem
PROBLEMS = tuple(Problem(str(i), f"{i} + {i}?", str(2 * i)) for i in range(9))
TASK = Task("fixed", PROBLEMS)
def plain():
    return TASK
def sized(split, size=9):
    return Task("sized", PROBLEMS[:size], split=split)
def any_option(**options):
    return Task(repr(options), PROBLEMS)
def nothing(split):
    return None
class Doubles(Task):
    def __init__(self, split="train"):
        super().__init__("doubles", PROBLEMS, split=split)
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_tasks.py").write_text(OWN)
    (tmp_path / "broken_tasks.py").write_text("def f(:")
    monkeypatch.syspath_prepend(tmp_path)


def test_an_own_task_comes_by_module_and_name(own_module):
    assert load_task("own_tasks:TASK", "test").name == load_task("own_tasks:plain").name == "fixed"
    task = load_task("own_tasks:sized", "test", size=2)
    assert (task.name, task.split, len(task.problems)) == ("sized", "test", 2)
    assert load_task("own_tasks:any_option", colour=1).name == "{'colour': 1, 'split': 'train'}"
    assert load_task("own_tasks:Doubles", "test").split == "test"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no_such_module:x", {}, "cannot be imported .ModuleNotFoundError"),
        ("own_tasks:nope", {}, "cannot be imported .AttributeError"),
        ("broken_tasks:f", {}, "cannot be imported .SyntaxError"),
        ("own_tasks:PROBLEMS", {}, "is a tuple, not a Task or a callable"),
        ("own_tasks:nothing", {}, "returned a NoneType and not a Task"),
        ("own_tasks:plain", {"colour": 3}, "no option 'colour'"),
        ("own_tasks:TASK", {"colour": 3}, "no option 'colour'"),
        ("own_tasks:", {}, "unknown task"),
    ],
)
def test_what_is_no_task_is_named_in_one_line(name, options, message, own_module):
    with pytest.raises(ValueError, match=message) as caught:
        load_task(name, **options)
    assert name in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_an_own_task_needs_a_list_and_perhaps_a_grader():
    task = Task("mine", (Problem("1", "q", "yes"),), grader=lambda problem, answer: answer.lower() == problem.answer)
    assert task.grade(task.problems[0], "YES")


@pytest.mark.parametrize("name", ["gcd", "coin_flip", "countdown", "graph_color", "n_queens", "game_of_life_halting"])
def test_generators_grade_gold_answers_right_and_others_wrong(name):
    assert check_task(load_task(f"reasoning_gym:{name}", size=4)).ok


def test_a_generator_s_answer_may_be_written_as_another_number():
    assert generator_accepts("gcd", {"answer": "6", "metadata": {}}, " 6.0 ")


@pytest.mark.parametrize("name", ["countdown", "puzzle24", "string_insertion", "spiral_matrix", "simple_integration"])
def test_an_answer_is_never_run_as_code(name, tmp_path):
    task, file = load_task(f"reasoning_gym:{name}", size=1), tmp_path / "ran"
    for text in (f"__import__('pathlib').Path({str(file)!r}).touch()", f"[open({str(file)!r}, 'w')]", "9" * 10**5):
        assert not task.grade(task.problems[0], text)
    assert not file.exists()


@pytest.mark.parametrize(
    "answer", ["9^{9^{9^{9}}}", "(" * 90 + "1" + ")" * 90, "9" * 10**5, "\\binom{99999999}{9999999}"]
)
def test_a_hostile_answer_is_wrong_in_seconds(answer):
    begin = time.process_time()
    assert not same_answer("42", answer)
    assert time.process_time() - begin < 5 and same_answer("x + 1", "1 + x")  # the grader is there again


def test_every_fault_of_a_file_is_named_in_one_message(tmp_path):
    path = tmp_path / "bad.jsonl"
    good = b'{"id": 1, "question": "a", "answer": "1"}\r\n'
    path.write_bytes(
        b"\xef\xbb\xbf" + good + good + b'{"question": "b"}\n{"question": "\xff"}\n{"question": "", "answer": 2}\n'
    )
    with pytest.raises(ValueError, match=r"4 lines.*line 2 .*line 3 .*line 4 .*line 5 "):
        load_task(f"jsonl:{path}")


def test_svamp_and_math_read_the_hub_s_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("GTPO_DATA_DIR", str(tmp_path))
    (tmp_path / "svamp").mkdir()
    (tmp_path / "math500").mkdir()
    write(tmp_path / "svamp" / "test.jsonl", {"ID": "c1", "Body": "Two.", "Question": "How many?", "Answer": 2.0})
    write(tmp_path / "math500" / "test.jsonl", {"unique_id": "m", "problem": "?", "answer": "\\frac{1}{2}"})
    (problem,) = load_task("svamp", "test").problems
    assert (problem.id, problem.question) == ("c1", "Two. How many?") and check_task(load_task("svamp", "test")).ok
    assert check_task(load_task("math500", "test")).ok
    with pytest.raises(ValueError, match="only the split test"):
        load_task("math500", "train")


@pytest.mark.parametrize("name", ["gsm8k", "mbpp", "strategyqa", "commonsense_qa"])
def test_without_a_hub_a_set_is_one_line_that_says_how_to_get_it(name, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "GTPO_DATA_DIR")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "gtpo_mini", "check", name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"set GTPO_DATA_DIR to a folder that holds {name}/test.jsonl" in done.stderr


def test_options_may_stand_in_a_name():
    task = load_task("facts,hops=2,ask=yes_no", size=4)
    assert task.guess_rate == 0.5 and {len(problem.metadata["path"]) for problem in task.problems} == {1}
    with pytest.raises(ValueError, match="task 'facts' has no option 'hop'"):
        load_task("facts,hop=2")
    with pytest.raises(ValueError, match="must be KEY=VALUE"):
        load_task("facts,2")
    with pytest.raises(ValueError, match="hops='two': must be a whole number"):
        load_task("facts,hops=two")


BAD_PARTS = [
    ({"problems": [1]}, "problems must be a list or tuple of Problem"),
    ({"problems": (Problem(str(i), "q", "1") for i in range(2))}, "problems must be a list or tuple of Problem"),
]


@pytest.mark.parametrize(("parts", "message"), BAD_PARTS)
def test_problems_are_problems(parts, message):
    with pytest.raises(ValueError, match=f"task 'mine': {message}"):
        Task("mine", **parts)


def test_a_check_runs_every_function_of_a_task():
    problems = (Problem("p7", "q", "4"),)
    faults = {
        "setup": lambda problem: "1 / 0",
        "turn_reward": lambda problem, turns: 10**400,
        "wrong_answers": lambda problem: {}["gone"],
    }
    for name, function in faults.items():
        with pytest.raises(ValueError, match=f"task 'mine', problem 'p7': the {name} ") as caught:
            check_task(Task("mine", problems, **{name: function}))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert not check_task(Task("mine", problems, wrong_answers=lambda problem: ["4.0"])).ok


def test_what_cannot_be_shown_is_named_all_the_same():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    def grader(problem, answer):
        raise Mute

    with pytest.raises(ValueError, match="problem 'p': the grader raised Mute: a Mute that cannot be shown"):
        Task("mine", (Problem("p", "q", "1"),), grader).grade(Problem("p", "q", "1"), "x")


def test_a_search_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr("gtpo_mini.tasks.task._SECONDS", 0.5)
    task = Task("mine", (Problem("p", "q", "1"),), lambda problem, answer: bool(re.match(r"(a+)+b", "a" * 60)))
    with pytest.raises(ValueError, match=r"the grader did not come back within 0\.5 seconds"):
        task.grade(task.problems[0], "x")
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_a_factory_that_fails_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "faulty.py").write_text("import sys\ndef leaves(): sys.exit(4)\ndef raises(): return {}[1]\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, reason in (("leaves", "SystemExit: 4"), ("raises", "KeyError: 1")):
        with pytest.raises(ValueError, match=f"task 'faulty:{name}': raised {reason}"):
            load_task(f"faulty:{name}")
