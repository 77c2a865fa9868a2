"""What a policy sees of a long output: selection is exact, keeps to its budget, and hides nothing for good."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo_mini import load_task
from gtpo_mini.rollout.chat import Chat
from gtpo_mini.rollout.engine import RolloutEngine
from gtpo_mini.rollout.observation import cut, parents_of, result_text, run_call, select, select_lines
from gtpo_mini.rollout.protocol import FencedProtocol, ParsedTurn
from gtpo_mini.rollout.settings import SamplingSettings
from gtpo_mini.train.imitation import make_trace

SELECT = SamplingSettings(max_output=200, select_output=True)
GAP = re.compile(r"^\.\.\. (\d+) lines: unfold\((\d+), (\d+)\)$", re.MULTILINE)


@st.composite
def trees(draw):
    parents: list[int] = []
    for i in range(draw(st.integers(0, 9))):
        way = [i - 1]
        while way[-1] >= 0:
            way.append(parents[way[-1]])
        parents.append(draw(st.sampled_from(way)))
    size = len(parents)
    costs = draw(st.lists(st.integers(0, 6), min_size=size, max_size=size))
    values = draw(st.lists(st.integers(0, 8), min_size=size, max_size=size))
    return costs, values, parents, draw(st.integers(0, 30)), draw(st.integers(0, 6))


def cost_of(chosen, costs, gap):
    gaps = sum(not there for there, _ in itertools.groupby(i in chosen for i in range(len(costs))))
    return sum(costs[i] for i in chosen) + gap * gaps


@given(trees())
@settings(max_examples=300)
def test_selection_is_what_trying_everything_finds(tree):
    costs, values, parents, budget, gap = tree
    every = (set(itertools.compress(range(len(costs)), bits)) for bits in itertools.product((0, 1), repeat=len(costs)))
    whole = [one for one in every if all(parents[i] < 0 or parents[i] in one for i in one)]
    allowed = [sum(values[i] for i in one) for one in whole if cost_of(one, costs, gap) <= budget]
    found = select(costs, values, parents, budget, gap)
    if not allowed:  # the gap alone is too much
        assert found == []
        return
    assert set(found) in whole and cost_of(set(found), costs, gap) <= budget
    assert sum(values[i] for i in found) == max(allowed)


@given(st.text(alphabet="ab \n", max_size=400), st.integers(60, 200), st.sampled_from(["", "a", "where is ab?"]))
@settings(max_examples=200)
def test_a_selection_keeps_to_its_budget_and_its_gaps_say_what_they_hide(text, budget, question):
    lines = text.split("\n")
    if max(map(len, lines)) > max(20, budget // 4):
        return  # folded: the next test
    left, at = select_lines(text, question, "", budget), 0
    assert len(left) <= budget
    for line in left.split("\n"):
        if gap := GAP.fullmatch(line):
            count, first, last = map(int, gap.groups())
            assert first == at + 1 and count == last - at > 0
            at = last
        else:
            assert line == lines[at]
            at += 1
    assert at == len(lines)


def test_no_line_is_shown_without_those_above_it_also_among_thousands():
    rng = random.Random(0)
    lines = [" " * rng.randint(0, 4) + f"word{i % 7} rate {i}" for i in range(4000)]
    numbered = {line: i for i, line in enumerate(lines)}
    parents = parents_of(lines)
    left = select_lines("\n".join(lines), "the rate of word3", "1234", 1500)
    found = {numbered[line] for line in left.split("\n") if line in numbered}
    assert 1234 in found and len(left) <= 1500 and all(parents[i] < 0 or parents[i] in found for i in found)


def test_what_the_turn_asks_for_goes_before_what_the_question_says():
    text = "\n".join(f"{what}: {i}" for i, what in enumerate("abcdefghijklmnopqrstuvwxyz"))
    assert "\nk: 10\n" in select_lines(text, "What is q?", "now k", 70)
    assert "\nq: 16\n" in select_lines(text, "What is k?", "now q", 70)
    assert "\nq: 16\n" in select_lines(text, "What is q?", "", 70)


def call(session, code, question="", turn="", how=SELECT):
    result, told = run_call(session, code, question, turn, how)
    assert len(result_text(told)) <= how.max_output
    return result, result_text(told)


def test_what_is_left_out_can_be_printed_and_no_call_goes_stale(sandbox):
    code = 'for i in range(500): print(f"line {i}", "here" if i == 321 else "")'
    with sandbox.session() as session:
        result, told = call(session, code, "which line is here?")
        lines = result.stdout.split("\n")
        assert "line 321 here" in told and "line 200 " not in told
        _, first, last = map(int, GAP.search(told).groups())
        rest, again = call(session, f"unfold({first}, {last})")
        assert rest.stdout.split("\n")[:-1] == lines[first - 1 : last]
        # What the unfolded part leaves out is named by the same numbers.
        _, inner, end = map(int, GAP.search(again).groups())
        assert call(session, f"unfold({inner}, {end})")[0].stdout.split("\n")[:-1] == lines[inner - 1 : end]
        # Other long outputs go on from there, and what is killed takes nothing with it.
        assert "unfold(501, " in call(session, "for i in range(90): print('other', i)\n1 / 0", "zero", "zero")[1]
        assert call(session, "import os; os._exit(1)")[0].error
        assert call(session, f"unfold({first}, {first})")[0].stdout == lines[first - 1] + "\n"
        assert call(session, "unfold(502, 502)")[0].stdout == "other 1\n"


def test_names_of_the_policy_and_odd_numbers_do_no_harm(sandbox):
    with sandbox.session() as session:
        call(session, "max = 3; print = print; output = [1]\nfor i in range(200): print(i)")
        assert call(session, "unfold(5, 6)")[0].stdout == "4\n5\n"
        assert call(session, "print(output, unfold(6, 5), unfold(-3, 1))")[0].stdout == "\n0\n[1] None None\n"
        error = call(session, "def f():\n    return 1 / 0\nfor i in range(200): print('secret', i)\nf()")[0].error
        assert "return 1 / 0" in error and "secret 7" not in error  # the code that keeps lines is no turn's


def test_an_error_is_shown_whatever_else_matches(sandbox):
    how = SamplingSettings(max_output=120, select_output=True)
    with sandbox.session() as session:
        for code, last in (("1 / 0", "ZeroDivisionError: division by zero"), ("assert False, 'a\\nb'", "b")):
            result, told = call(
                session, f"for i in range(200): print('rate of x', i)\n{code}", "the rate of x", "", how
            )
            assert not result.ok and told.endswith(f"\n{last}")


def test_an_error_of_many_lines_is_shown_and_all_of_it_kept(sandbox):
    how = SamplingSettings(max_output=100, select_output=True)
    deep = (
        "bad table:\\n  row 1: a b c d\\n    the third cell\\n      in the column of prices, and in the last row"
        + "v" * 99
    )
    with sandbox.session() as session:
        raised = f"for i in range(100): print('first', i)\nraise ValueError('{deep} the end')"
        result, told = call(session, raised, "", "", how)
        assert not result.ok and "\n      in the column of p\n" in told
        total = session.kept_lines
        assert "the end" in session.run(f"unfold({total}, {total})").stdout


def test_lines_that_are_printed_again_stay_as_they_are_so_that_the_numbers_behind_them_hold(sandbox):
    how = SamplingSettings(max_output=200, select_output=True)
    with sandbox.session() as session:
        call(session, "for i in range(100): print('first', i)\nraise ValueError('v' * 150)", "", "", how)
        total = session.kept_lines
        call(session, "for i in range(100): print('second', i)", "", "", how)
        _, told = call(session, f"unfold(90, {total + 99})", "second 50", "second 50", how)
        assert "\nsecond 50\n" in told
        _, first, _ = map(int, GAP.findall(told)[-1])
        assert session.run(f"unfold({first}, {first})").stdout == "second 51\n"


@pytest.mark.parametrize(
    "names", ["bytes = getattr = globals = 1024", "def unfold(x, y=3): return x", "sys = exec = 1"]
)
def test_no_name_of_the_policy_takes_the_kept_lines_away(sandbox, names):
    with sandbox.session() as session:
        call(session, f"{names}\nfor i in range(200): print('line', i)")
        assert call(session, "unfold(7, 7)")[0].stdout == "line 6\n"
        session.run("del unfold")
        _, told = call(session, "for i in range(200): print('more', i)", "more 150", "more 150")
        assert call(session, "unfold(201, 201)")[0].stdout == "more 0\n" and 200 < int(GAP.search(told)[2]) < 350


def test_where_nothing_can_be_kept_it_is_cut(sandbox):
    with sandbox.session() as session:
        result, told = run_call(session, "__import__ = None\nfor i in range(200): print('line', i)", "", "", SELECT)
        assert result.ok and "characters left out" in told.stdout and session.kept_lines == 0


def test_long_lines_are_folded_and_within_reach(sandbox):
    how = SamplingSettings(max_output=120, select_output=True)
    for code in ("print('x' * 3000 + ' needle')", "print(' ' * 20000 + 'x ' * 10000 + 'needle')"):
        with sandbox.session() as session:
            _, told = call(session, code, "where is the needle?", "", how)
            assert "needle" in told
            gap = GAP.search(told)
            for _ in range(20):  # into the first gap, ever deeper
                result, told = call(session, f"unfold({gap[2]}, {gap[3]})", "", "", how)
                if (found := GAP.search(told)) is None:
                    break
                assert result.ok and int(found[1]) < int(gap[1])
                gap = found


def test_a_cut_shows_beginning_and_end():
    short, long = ("a" * n + "b" * n for n in (1000, 1100))
    assert cut(short, 2000) == short
    assert cut(long, 2000) == "a" * 1000 + "\n... (200 characters left out)\n" + "b" * 1000
    assert cut("abc" * 20, 1) == "\n... (60 characters left out)\n" and cut("1234567", 6) == "1234567"


class Script(FencedProtocol):
    """Whatever the policy's calls say, the next code of a script runs; what went back is kept."""

    def __init__(self, *codes):
        self.codes, self.told = iter(codes), []

    def read(self, text):
        code = next(self.codes, None)
        return ParsedTurn(code=code, answer=None if code else "end")

    def tool_text(self, result):
        self.told.append(result_text(result))
        return super().tool_text(result)


@pytest.mark.parametrize("select_output", [False, True])
def test_engine_and_traces_show_the_same(select_output, tiny_policy, sandbox):
    how, problem = {"max_output": 130, "select_output": select_output}, load_task("branching").problems[0]
    word = max(problem.question.split(), key=len)
    codes = [f'for x in "bcdefghijklmnopqrstuvw": print(9 * x, {word!r} if x == "q" else "")', "print(7)"]
    spoken, written = Script(*codes), Script(*codes)
    settings = SamplingSettings(0.0, max_turns=3, max_turn_tokens=60, **how)
    (rollout,) = RolloutEngine(tiny_policy, spoken, sandbox, settings).generate([problem])
    texts = (turn.text for turn in rollout.turns)
    trace = make_trace(problem, texts, Chat(tiny_policy, written), sandbox, settings=SamplingSettings(**how))
    assert spoken.told == written.told and len(spoken.told) == 2 and trace.answer == rollout.answer == "end"
    assert (f"q {word}" in spoken.told[0]) == select_output
    assert rollout.turns[0].result.stdout.count("\n") == 22  # the record keeps the whole


def test_the_settings_are_checked():
    for how, rule in (({"max_output": 0}, "at least 1"), ({"max_output": 99, "select_output": True}, "at least 100")):
        with pytest.raises(ValueError, match=f"max_output=.*{rule}"):
            SamplingSettings(**how)
