"""Tasks whose facts only a look-up function in the session can tell; every look-up here runs in a real sandbox."""

from __future__ import annotations

import json
import pickle
import random

import pytest

from gtpo_mini.rollout.protocol import FencedProtocol
from gtpo_mini.sandbox import Sandbox
from gtpo_mini.tasks.facts import KINDS, PROPERTIES, draw_problems, setup, turn_reward, write_turns
from gtpo_mini.tasks.habits import Habits
from gtpo_mini.tasks.task import Task, check_task, load_task
from gtpo_mini.types import Problem, Turn

PERFECT = Habits({}, broken=0.0)
CASES = [(hops, ask) for hops in (2, 3, 4) for ask in ("entity", "yes_no")]


def run_codes(task: Task, problem: Problem, codes: list[str], sandbox: Sandbox) -> list[Turn]:
    with task.session(sandbox, problem) as session:
        return [Turn("", code, result=session.run(code)) for code in codes]


def roll(problem: Problem, habits: Habits, sandbox: Sandbox, seed: int = 0) -> tuple[str, list[Turn]]:
    """The answer of a simulated solver, and its turns."""
    writer, protocol, turns = write_turns(problem, random.Random(seed), habits), FencedProtocol(), []
    with sandbox.session() as session:
        assert session.run(setup(problem)).ok
        text = next(writer)
        while code := protocol.read(text).code:
            turns.append(Turn(text, code, result=session.run(code)))
            text = writer.send(turns[-1].result)
    with pytest.raises(StopIteration):
        writer.send(None)
    return protocol.read(text).answer, turns


@pytest.mark.parametrize(("hops", "ask"), CASES)
def test_the_chain_leads_to_the_answer_and_the_question_names_none_of_it(hops, ask, sandbox):
    task = load_task("facts", size=8, hops=hops, ask=ask)
    for problem in task.problems:
        chain = problem.metadata["chain"]
        values = [value for *_, value in chain]
        turns = run_codes(task, problem, [f"print(look_up({name!r}, {what!r}))" for name, what, _ in chain], sandbox)
        assert [turn.result.stdout for turn in turns] == [f"{value}\n" for value in values]
        assert values[-1] == problem.answer and len({*values}) == len(values) == len({name for name, *_ in chain})
        assert [name for name, *_ in chain[1:]] == values[:-1] or ask == "yes_no"
        assert not [value for value in values if value.casefold() in problem.question.casefold()]
        assert chain[0][0] in problem.question and 30 <= len(problem.metadata["facts"]) <= 65
        # Only one fact of the world has a value of the chain, so no other way earns a reward or leads to the answer.
        held = [value for *_, value in problem.metadata["facts"]]
        assert all(held.count(value) == 1 for value in values if value not in ("yes", "no"))
        assert {what for name, what, _ in problem.metadata["facts"] if name == chain[0][0]} >= {*PROPERTIES}


@pytest.mark.parametrize(("hops", "ask"), CASES)
def test_splits_are_disjoint_draws_repeat_and_half_of_the_answers_are_yes(hops, ask):
    train, test = (draw_problems(300, split, 4, hops, ask) for split in ("train", "test"))
    assert not {p.question for p in train} & {p.question for p in test} and len({p.id for p in train + test}) == 600
    assert repr(draw_problems(300, "test", 4, hops, ask)) == repr(test) and pickle.loads(pickle.dumps(test)) == test
    assert draw_problems(1, "test", 5, hops, ask) != test[:1]
    answers = [problem.answer for problem in train]
    if ask == "yes_no":
        assert answers.count("yes") == answers.count("no") == 150
        rules = [len(problem.metadata["chain"]) == hops + 1 for problem in train]  # no exception: kind, and its rule
        assert 100 < sum(rules) < 200
    else:
        assert len({*answers}) > 280
        many = [problem.answer for problem in draw_problems(8000, hops=hops)]
        assert max(map(many.count, {*many[:500]})) > 2  # names may come again, as chance has it


@pytest.mark.parametrize("ask", ["entity", "yes_no"])
def test_a_check_finds_gold_right_and_others_wrong(ask):
    task = load_task("facts", "test", size=40, ask=ask)
    problem = task.problems[0]
    assert check_task(task).ok and task.grade(problem, f" {problem.answer.upper()} ")
    assert task.guess_rate == (0.5 if ask == "yes_no" else 0)
    assert {problem.metadata["start"], problem.metadata["chain"][0][2]} <= {*task.wrong_answers(problem)}
    assert len({*task.wrong_answers(problem)}) >= 3 and problem.answer not in task.wrong_answers(problem)


DUMP = """
import re, types
seen = []
def show(thing, depth=0):
    if depth < 6 and not isinstance(thing, types.ModuleType):
        seen.append(repr(thing))
        if isinstance(thing, int):
            seen.append(repr(thing.to_bytes(64, "big", signed=True).strip(b"\\0")))
        for part in thing if isinstance(thing, (tuple, list, set)) else ():
            show(part, depth + 1)
        for part in [*thing.items()] if isinstance(thing, dict) else ():
            show(part, depth + 1)
        if isinstance(thing, types.FunctionType):
            code = thing.__code__
            show([thing.__defaults__, thing.__kwdefaults__, thing.__doc__, code.co_consts, code.co_names, vars(thing)])
            show([cell.cell_contents for cell in thing.__closure__ or ()])
show([thing for name, thing in list(globals().items()) if name not in ("seen", "show")])
text = "".join(seen)
print([value for value in {values!r} if re.search(f"(?<![a-z]){value}(?![a-z])", text)], len(text) > 1000)
"""


@pytest.mark.parametrize("ask", ["entity", "yes_no"])
def test_the_session_s_variables_tell_no_fact(ask, sandbox):
    task = load_task("facts", size=3, ask=ask)
    for problem in task.problems:
        values = {value for *_, value in problem.metadata["facts"]} - {"yes", "no"}
        names = {name for name, *_ in problem.metadata["facts"]}
        code = DUMP.replace("{values!r}", repr(sorted(values | names)))
        asked = "for _ in range(2): look_up({!r}, {!r})".format(*problem.metadata["chain"][0][:2])
        *_, turn = run_codes(task, problem, [asked, code], sandbox)
        assert turn.result.stdout == "[] True\n"
    plain = f"def look_up(name, what, _facts={sorted(values | names)}): return _facts"
    *_, turn = run_codes(Task("plain", (problem,), setup=lambda problem: plain), problem, [code], sandbox)
    assert turn.result.stdout.startswith(repr(sorted(values | names)))  # the dump would see them


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hops": 1}, "hops in 2..4"), ({"hops": 5}, "hops=5"), ({"ask": "count"}, "'count'.*entity, yes_no")],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        load_task("facts", **options)
    with pytest.raises(ValueError, match="'train' and 'test'"):
        draw_problems(1, "dev")


@pytest.mark.parametrize(("hops", "ask"), CASES)
def test_a_solver_without_bad_habits_is_right_and_earns_one(hops, ask, sandbox):
    for problem in draw_problems(6, "test", 0, hops, ask):
        answer, turns = roll(problem, PERFECT, sandbox)
        chain = problem.metadata["chain"]
        tried = ask == "yes_no" and len(chain) == hops + 1  # and before that, whether it is an exception
        assert answer == problem.answer and len(turns) == len(chain) + tried
        task = Task("facts", (problem,), setup=setup, turn_reward=turn_reward)
        rewards = [turn.progress for turn in task.reward_turns(problem, turns)]
        shown = [turn.result.stdout.strip() for turn in turns]
        assert sum(rewards) == pytest.approx(1)
        assert [reward > 0 for reward in rewards] == [value not in ("yes", "no", "unknown") for value in shown]


def occurs(kind: str, problem: Problem) -> bool:
    """Whether a wrong idea of this kind makes the answer to an entity's question wrong."""
    return kind in problem.metadata["path"] if kind in PROPERTIES else kind != "exception"


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_idea_makes_the_answer_wrong_where_its_step_occurs(kind, sandbox):
    for hops in (2, 3):
        for problem in draw_problems(8, seed=1, hops=hops):
            answer, turns = roll(problem, Habits({kind: 1.0}, 0.0, revise=0.0), sandbox)
            assert (answer != problem.answer) == occurs(kind, problem)
            assert all(turn.result.ok for turn in turns) and answer == turns[-1].result.stdout.strip()


def test_wrong_ideas_of_rules_and_exceptions(sandbox):
    for problem in draw_problems(16, seed=1, hops=3, ask="yes_no"):
        exception, yes = len(problem.metadata["chain"]) == 3, problem.answer == "yes"
        habits = Habits({"exception": 1.0}, 0.0)
        assert (roll(problem, habits, sandbox)[0] != problem.answer) == exception
        assert (roll(problem, Habits({"last": 1.0}, 0.0), sandbox)[0] != problem.answer) == (yes and not exception)


def test_a_wrong_idea_that_unknown_betrays_is_given_up_and_the_way_is_mended(sandbox):
    mended = 0
    for problem in draw_problems(12, seed=2):
        for kind in ("friend", "copy", "order"):
            answer, turns = roll(problem, Habits({kind: 1.0}, 0.0, revise=1.0), sandbox)
            if "unknown\n" in (shown := [turn.result.stdout for turn in turns]):
                assert answer == problem.answer and shown.count("unknown\n") == 1
                mended += 1
    assert mended > 20


@pytest.mark.parametrize("ask", ["entity", "yes_no"])
def test_a_broken_call_does_not_run_and_is_written_again_whole(ask, sandbox):
    broken = []
    for seed, problem in enumerate(draw_problems(8, ask=ask)):
        answer, turns = roll(problem, Habits({}, broken=1.0), sandbox, seed)
        assert [turn.invalid_call for turn in turns] == [True, False] * 3
        assert answer == problem.answer or ask == "yes_no"  # there the calls are used up
        for before, after in zip(turns[::2], turns[1::2], strict=True):
            assert after.code in (f"{before.code})", before.code.replace("look_pu", "look_up"))
            broken.append("look_pu" in before.code)
    assert {*broken} == {True, False}


def test_no_habits_make_more_than_hops_and_three_calls(sandbox):
    problems = draw_problems(6, hops=2) + draw_problems(6, hops=2, ask="yes_no")
    for wrong, broken in ((0.6, 0.4), (0.3, 0.6), (0.0, 1.0)):
        habits = Habits(dict.fromkeys(KINDS, wrong), broken)
        calls = [len(roll(problem, habits, sandbox, seed)[1]) for seed, problem in enumerate(problems)]
        assert max(calls) <= 5
    assert max(calls) == 5  # each call broken first: there was no room for one more


FIRST, SECOND, THIRD = (f'print(look_up("{{{n}}}", "{{p{n}}}"))' for n in range(3))
NESTED = 'print(look_up(look_up("{0}", "{p0}"), "{p1}"))'
WHOLE = 'print(look_up(look_up(look_up("{0}", "{p0}"), "{p1}"), "{p2}"))'
EACH = 'for what in ("friend", "home", "pet", "boss", "owner", "guard"): print(look_up("{0}", what))'


@pytest.mark.parametrize(
    ("codes", "thirds"),
    [
        ([FIRST, SECOND, THIRD], [1, 1, 1]),
        ([WHOLE], [3]),
        ([NESTED, FIRST, THIRD], [2, 0, 1]),
        ([f"{FIRST}\n{SECOND.replace('{1}', '{0}')}", SECOND], [0, 2]),  # two tries in one turn: a list
        (['a = look_up("{0}", "{p0}")\nprint(a)\nprint(look_up(a, "{p1}"))', THIRD], [2, 1]),
        ([FIRST, FIRST, FIRST], [1, 0, 0]),  # asked again
        ([FIRST, 'print("{1}")'], [1, 0]),
        (['print("{1}")'], [0]),  # guessed, without a look-up
        (['look_up("a", "b")\nprint("{1}")'], [0]),  # and with one
        (['look_up("a", "b")\nprint("{1}"[:3] + "{1}"[3:])'], [0]),
        (['look_up("a", "b")\nprint("{front}" "{back}")', 'look_up("a", "b")\nprint("{front}" + "{back}")'], [0, 0]),
        (['print("{2}" if look_up("{1}", "{p1}") == "{2}" else 0)'], [0]),
        (['a = look_up("{0}", "{p0}")', "print(a)"], [0, 0]),  # surfaced by no look-up
        (['a = look_up("{0}", "{p0}")', "print(a)  # look_up()", 'print(a, "look_up()")'], [0, 0, 0]),
        ([FIRST, 'a = look_up("{0}", "{p0}")\nprint(a)'], [1, 0]),
        ([EACH], [0]),  # a list of all that may be needed
        ([EACH + "\nprint(what)"], [0]),
        (['def look_up(*_): return "{1}"\nprint(look_up("{0}", "{p0}"))'], [0]),
        (['def look_up(*_): return 1\nprint(look_up("{0}", "{p0}"))', FIRST], [0, 0]),
        (['old = look_up("{0}", "{p0}")\ndef look_up(*_): return old', 'print(look_up("", ""))'], [0, 1]),  # a detour
        ([FIRST + "\n1 / 0"], [0]),  # did not run to its end
        ([FIRST + "\n" + FIRST + "\n" + FIRST + "\n" + FIRST], [0]),  # more lines than the chain has facts
        (['print("It is", look_up("{0}", "{p0}"))'], [0]),  # a whole line, or nothing
        (['print(look_up("{0}", "{p0}") + "{x}")', FIRST], [0, 1]),
    ],
)
def test_only_a_needed_fact_that_a_look_up_surfaces_first_is_worth_something(codes, thirds, sandbox):
    task = load_task("facts", size=1)
    (problem,) = task.problems
    chain = problem.metadata["chain"]
    words = {f"p{number}": what for number, (_, what, _) in enumerate(chain)} | {"x": ", or not"}
    words |= {"front": chain[0][2][:3], "back": chain[0][2][3:]}
    names = [chain[0][0], *(value for *_, value in chain)]
    turns = run_codes(task, problem, [code.format(*names, **words) for code in codes], sandbox)
    rewards = [turn.progress for turn in task.reward_turns(problem, turns)]
    assert rewards == pytest.approx([third / 3 for third in thirds])
    assert turn_reward(problem, []) == turn_reward(problem, [Turn("text")]) == 0


def test_yes_and_no_are_worth_nothing(sandbox):
    task = load_task("facts", size=6, ask="yes_no")
    for problem in task.problems:
        name, what, _ = problem.metadata["chain"][-1]
        codes = [f"print(look_up({name!r}, {what!r}))", f"look_up({name!r}, {what!r})\nprint('yes')\nprint('no')"]
        turns = task.reward_turns(problem, run_codes(task, problem, codes, sandbox))
        assert [turn.result.ok for turn in turns] == [True, True] and [turn.progress for turn in turns] == [0, 0]


# Data sets of others, in small folders in the hub's format.

CAESAR = {"qid": "a1", "term": "Khan", "description": "ruler", "answer": True}
CAESAR |= {"question": "Are more people today related to Khan than to Caesar?"}
CAESAR |= {"facts": ["Julius Caesar had three children.", "Genghis Khan had sixteen children."]}
WHALE = {
    "qid": "b2",
    "term": "Whale",
    "description": "",
    "question": "Could a whale fit into a bathtub?",
    "answer": False,
}
WHALE |= {"facts": "A blue whale is 30 metres long. Bathtubs are under 3 metres long."}
BANK = {"id": "c3", "question": "Where is money kept?", "answerKey": "B"}
BANK |= {"choices": {"label": ["A", "B", "C"], "text": ["shop", "bank", "river"]}}


def write(folder, name: str, *rows: dict) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("GTPO_DATA_DIR", str(tmp_path))
    return tmp_path


def test_strategyqa_s_facts_lie_behind_the_look_up(data, sandbox):
    write(data / "strategyqa", "train.jsonl", CAESAR, WHALE)
    task = load_task("strategyqa")
    first, second = task.problems
    assert (first.id, first.answer, second.answer, task.guess_rate) == ("a1", "yes", "no", 0.5) and check_task(task).ok
    assert (
        task.grade(first, "Yes.") and not task.grade(first, "no") and len(load_task("strategyqa", size=1).problems) == 1
    )
    two = "".join(fact + "\n" for fact in sorted(CAESAR["facts"]))
    codes = [f"print(look_up({words!r}))" for words in ("Julius Caesar", "child", "children", "whale", "x", "Khan")]
    codes += [f"print({CAESAR['facts'][0]!r}); look_up('Khan')"]
    turns = task.reward_turns(first, run_codes(task, first, codes, sandbox))
    # The whale's sentence is another problem's.
    assert [turn.result.stdout for turn in turns] == [
        "Julius Caesar had three children.\n",
        two,
        two,
        "A blue whale is 30 metres long.\n",
        "unknown\n",
        "Genghis Khan had sixteen children.\n",
        "Julius Caesar had three children.\n",
    ]
    assert [turn.progress for turn in turns] == [0.5, 0.5, 0, 0, 0, 0, 0]
    every = 'for word in ("whale", "Caesar", "bathtubs", "Khan"): print(look_up(word))'  # a list of all there is
    turns = task.reward_turns(first, run_codes(task, first, [codes[-1], every], sandbox))
    assert all(turn.result.ok for turn in turns) and [turn.progress for turn in turns] == [0, 0]
    assert not {*first.metadata["facts"]} & {*first.metadata["others"]} and len({*first.metadata["others"]}) == 2
    shown = "print(globals(), look_up.__defaults__, look_up.__code__.co_consts)"
    (turn,) = run_codes(task, first, [shown], sandbox)
    assert turn.result.ok and not any(word in turn.result.stdout for word in ("Caesar", "sixteen", "metres"))


def test_strategyqa_reads_big_bench_s_file(data):
    scores = [("Yes", {"Yes": 1, "No": 0}), ("No", {"Yes": 0, "No": 1})]
    examples = [
        {"input": f"Question {n}?", "target_scores": scores[n % 2][1], "target": f"{scores[n % 2][0]}. It is. So {n}."}
        for n in range(10)
    ]
    write(data / "strategyqa", "task.json", {"name": "strategyqa", "examples": examples})
    train, test = load_task("strategyqa"), load_task("strategyqa", "test")
    assert [len(train.problems), len(test.problems)] == [8, 2] and test.problems[0].question == "Question 8?"
    assert [problem.answer for problem in test.problems] == ["yes", "no"]
    assert test.problems[0].metadata["facts"] == ("It is.", "So 8.")


def test_commonsense_qa_takes_the_letter_and_the_text(data):
    write(data / "commonsense_qa", "test.jsonl", BANK)
    task = load_task("commonsense_qa", "test")
    (problem,) = task.problems
    assert problem.question == "Where is money kept?\nA: shop\nB: bank\nC: river" and problem.answer == "B"
    right = [
        answer
        for answer in ("B", "b.", "(B)", "Bank", "B: bank", "A", "shop", "A: bank", "")
        if task.grade(problem, answer)
    ]
    assert right == ["B", "b.", "(B)", "Bank", "B: bank"]
    assert check_task(task).ok and (task.guess_rate, task.setup) == (0.2, None)


@pytest.mark.parametrize("name", ["strategyqa", "commonsense_qa"])
def test_data_that_is_not_at_hand_is_one_clear_error(name, data, monkeypatch):
    with pytest.raises(ValueError, match=f"no file {name}/train.jsonl there; unset it to use the hub"):
        load_task(name)
    monkeypatch.delenv("GTPO_DATA_DIR")
    with pytest.raises(ValueError, match=f"hub could not be read .*set GTPO_DATA_DIR.*{name}/train.jsonl"):
        load_task(name)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("strategyqa", CAESAR | {"answer": "yes"}, "line 1 .'answer' is neither true nor false"),
        ("strategyqa", CAESAR | {"facts": None}, "line 1 .'facts' is neither text nor a list"),
        ("commonsense_qa", BANK | {"answerKey": "D"}, "line 1 .'answerKey' is no label"),
        ("commonsense_qa", BANK | {"choices": ["shop"]}, "line 1 .'choices' has no 'label'"),
        ("commonsense_qa", {"id": "1"}, "line 1 .'choices' has no 'label'"),
    ],
)
def test_rows_that_cannot_be_used_are_named_by_line(name, row, message, data):
    write(data / name, "train.jsonl", row)
    with pytest.raises(ValueError, match=message):
        load_task(name)
