"""The page of a run's rollouts, in a real browser where there is one."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from browser import Browser

from gtpo_mini.experiments.viewer import rollouts_page, trajectory_html
from gtpo_mini.rollout.transcript import load_rollouts, record_rollouts
from gtpo_mini.types import ExecutionResult, StopReason, Turn

EVIL = "</pre></details><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">\ud800\0"


@pytest.fixture
def rollouts(tmp_path, make_trajectory, tiny_policy):
    call = Turn("x", code="print(1)", result=ExecutionResult(ok=False, stdout=EVIL, error=EVIL))
    ids = tiny_policy.encode(EVIL)
    group = [make_trajectory((ids, ids, call), (ids, [], call), answer=EVIL), make_trajectory((ids, [], Turn("x")))]
    numbers = [[[-0.1, 1.0], [0.0]], [[0.5, 1.5], [-1.0]], [[0.8, 1.0], [0.0]]]  # rewards, advantages, returns
    for step in (0, 1):
        record_rollouts(tmp_path / "r.jsonl", step, group, [step == 0, False], *numbers, tiny_policy, 2)
    return load_rollouts(tmp_path / "r.jsonl")


def test_rollouts_come_back_and_half_a_line_is_left_out(rollouts, tmp_path):
    assert [(r["step"], r["number"]) for r in rollouts] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [turn["return"] for turn in rollouts[0]["turns"]] == [0.8, 1.0]
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write('{"step": 2')
    assert load_rollouts(tmp_path / "r.jsonl") == rollouts
    with pytest.raises(ValueError, match="record-rollouts"):
        load_rollouts(tmp_path / "none.jsonl")


def test_the_page_escapes_everything_and_loads_nothing(rollouts):
    page = rollouts_page({EVIL: rollouts, "other": rollouts}, EVIL)
    assert page.count("<script") == 2 and "<img" not in page and not re.search(r"https?://", page)
    page.encode("utf-8")
    assert "\0" not in page and "\u2400" in page and "\ud800" not in page


def choose(browser: Browser, **values: str) -> None:
    """Choose in the page's controls, as a reader does."""
    for name, value in values.items():
        event = "input" if name == "search" else "change"
        browser.ask(
            f"(() => {{const c = document.getElementById('{name}'); c.value = {json.dumps(value)};"
            f"c.dispatchEvent(new Event('{event}'));}})()"
        )


SHOWN = "[...document.querySelectorAll('.rollout')].map((card) => [card.dataset.step, card.dataset.number])"
COUNT = "document.getElementById('count').textContent"


@pytest.fixture
def opened(rollouts, tmp_path, browser):
    path = tmp_path / "page.html"
    path.write_text(rollouts_page(rollouts, "fine"), encoding="utf-8")
    browser.open(path)
    return browser


def test_a_browser_shows_all_rollouts_and_runs_no_other_script(opened):
    assert opened.ask("document.title") == "fine" and opened.ask(COUNT) == "4 of 4 rollouts"
    assert opened.ask(SHOWN) == [["0", "0"], ["0", "1"], ["1", "0"], ["1", "1"]]
    opened.ask("document.querySelectorAll('details').forEach((one) => one.open = true)")
    text = opened.ask("new Promise((done) => setTimeout(() => done(document.body.innerText), 200))", wait=True)
    assert text.count("turn 1") == 4 and "document.title='broken'" in text
    assert opened.ask("document.title") == "fine"
    assert not [e for e in opened.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"step": "0-1"}, [("1", "0"), ("1", "1")]),
        ({"sort": "high"}, [("0", "0"), ("1", "0"), ("0", "1"), ("1", "1")]),
        ({"sort": "low"}, [("0", "1"), ("1", "1"), ("0", "0"), ("1", "0")]),
        ({"sort": "spread", "step": "0-0"}, [("0", "0"), ("0", "1")]),
        ({"only": "right"}, [("0", "0")]),
        ({"only": "right", "step": "0-1"}, []),
        ({"only": "wrong", "step": "0-0"}, [("0", "1")]),
        ({"search": "BROKEN onerror", "step": "0-0"}, [("0", "0"), ("0", "1")]),
        ({"search": "broken no-such-word"}, []),
    ],
)
def test_the_controls_choose_and_sort(opened, choice, expected):
    choose(opened, **choice)
    assert opened.ask(COUNT) == f"{len(expected)} of 4 rollouts"
    assert opened.ask(SHOWN) == [list(one) for one in expected]


def test_a_guess_and_a_cut_off_rollout_are_found(make_trajectory, tiny_policy, tmp_path, browser):
    ids = tiny_policy.encode("7")
    told = ExecutionResult(ok=True, stdout="7 42")
    group = [
        make_trajectory((ids, ids, Turn("x", code="f()", result=told)), (ids, [], Turn("x")), answer="7"),
        make_trajectory((ids, [], Turn("x")), answer="5"),
        replace(make_trajectory((ids, [], Turn("x"))), stop=StopReason.MAX_TOKENS, answer=None),
    ]
    numbers = [[[0.0] * len(one.turns) for one in group]] * 3
    record_rollouts(tmp_path / "r.jsonl", 0, group, [True, False, False], *numbers, tiny_policy, 3)
    path = tmp_path / "page.html"
    path.write_text(rollouts_page(load_rollouts(tmp_path / "r.jsonl")), encoding="utf-8")
    browser.open(path)
    for kind, number in (("unsupported", "1"), ("truncated", "2"), ("right", "0")):
        choose(browser, only=kind)
        assert browser.ask(SHOWN) == [["0", number]]


def test_a_value_that_is_pointed_at_lights_its_source_up(make_trajectory, tiny_policy, tmp_path, browser):
    ids = tiny_policy.encode("7")
    turns = [
        Turn("x", code=code, result=ExecutionResult(ok=True, stdout=out)) for code, out in (("n", "5"), ("m", "7"))
    ]
    rollout = make_trajectory(*((ids, ids, turn) for turn in turns), (ids, [], Turn("x")), answer="7 or 99")
    path = tmp_path / "page.html"
    path.write_text(trajectory_html(rollout, tiny_policy), encoding="utf-8")
    browser.open(path)
    lit = "[...document.querySelectorAll('[class^=out]')].map((one) => getComputedStyle(one).outlineStyle === 'solid')"
    assert browser.ask(lit) == [False, False, False]
    browser.ask("document.querySelector('.claim.copied').focus()")
    assert (
        browser.ask(lit) == [False, True, False] and browser.ask("document.activeElement.title") == "copied from turn 2"
    )
    browser.ask("document.querySelector('.claim.unsupported').focus()")
    assert browser.ask(lit) == [False, False, False] and browser.ask("document.activeElement.textContent") == "99"


def test_a_record_from_before_claims_is_shown_without_them(rollouts):
    old = [{key: value for key, value in rollout.items() if key != "claims"} for rollout in rollouts]
    page = rollouts_page(old)
    assert "rests on" in rollouts_page(rollouts) and "rests on" not in page and "turn 1" in page


def test_a_long_output_is_whole_and_folded(make_trajectory, tiny_policy, tmp_path):
    long = ExecutionResult(ok=True, stdout="\n".join(f"line {i} of it" for i in range(2000)))
    seen = tiny_policy.encode("\n```output\nline 0 ... (left out)\n```\n")
    ids = tiny_policy.encode("7")
    rollout = make_trajectory((ids, seen, Turn("x", code="1", result=long)), (ids, [], Turn("x")), answer="7")
    record_rollouts(tmp_path / "r.jsonl", 0, [rollout], [True], [[0.0, 1.0]], [[0.0, 0.0]], None, tiny_policy, 1)
    page = rollouts_page(load_rollouts(tmp_path / "r.jsonl"))
    (bodies,) = re.findall(r'<script type="application/json" id=bodies>(.*?)</script>', page, re.DOTALL)
    html = json.loads(bodies)[0][0]
    assert all(f"line {i} of it\n" in html for i in range(1999)) and "the policy saw a part: 2000 lines" in html
    assert html.count("<details class=long>") == 1


def test_two_runs_stand_side_by_side_on_the_same_problem(rollouts, tmp_path, browser):
    path = tmp_path / "page.html"
    path.write_text(rollouts_page({"before": rollouts, "after": rollouts[2:]}), encoding="utf-8")
    browser.open(path, width=1200)
    choose(browser, step="0-0", beside="1-1")
    assert browser.ask(COUNT) == "1 problem that both have"
    columns = "[...document.querySelectorAll('.beside > div')].map((c) => [...c.children].map((one) => one.id))"
    assert browser.ask(columns) == [["r0-0-0", "r0-0-1"], ["r1-1-0", "r1-1-1"]]
    left = "document.querySelector('#r0-0-0').getBoundingClientRect()"
    right = "document.querySelector('#r1-1-0').getBoundingClientRect()"
    assert browser.ask(f"{left}.top === {right}.top && {left}.right <= {right}.left")
    choose(browser, step="all")
    assert "choose two steps" in browser.ask(COUNT)
    browser.open(path, width=400)
    choose(browser, step="0-0", beside="1-1")
    assert browser.ask(f"{left}.bottom <= {right}.top")
    assert browser.ask("document.documentElement.scrollWidth") <= 400


def test_a_link_opens_its_rollout_also_where_it_was_filtered_away(opened):
    choose(opened, only="right")
    opened.ask("location.hash = '#r0-1-1'")
    done = "new Promise((done) => setTimeout(() => done(document.getElementById('r0-1-1').open), 200))"
    assert opened.ask(done, wait=True) is True
    assert opened.ask("document.querySelector('#r0-1-1 .question').textContent").strip()


def test_two_thousand_rollouts_are_there_at_once(rollouts, tmp_path, browser):
    """No timed test: what is built as the page opens is a line a rollout, and no text of any turn."""
    many = [{**rollouts[0], "step": i // 64, "number": i % 64, "group": i % 64 // 8} for i in range(2000)]
    path = tmp_path / "page.html"
    path.write_text(rollouts_page(many), encoding="utf-8")
    browser.open(path)
    assert browser.ask(COUNT) == "2000 of 2000 rollouts"
    assert browser.ask("document.querySelectorAll('pre').length") == 0
    assert browser.ask("document.querySelectorAll('*').length") < 50_000


def test_a_run_that_was_killed_in_the_middle_of_a_line_goes_on_in_a_line_of_its_own(
    rollouts, tmp_path, make_trajectory, tiny_policy
):
    path = tmp_path / "r.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "group": 0, "num')
    group = [make_trajectory((tiny_policy.encode("1"), [], Turn("x")))]
    record_rollouts(path, 2, group, [True], [[1.0]], [[0.5]], [[1.0]], tiny_policy, 1)
    found = load_rollouts(path)
    assert found[:4] == rollouts and [(r["step"], r["number"]) for r in found[4:]] == [(2, 0)]
