"""The credit explorer: its grid is what `Credit` gives, and a real browser (where there is one) shows it."""

from __future__ import annotations

import html
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Browser

from gtpo_mini.credit import ARMS, Credit, turn_returns
from gtpo_mini.experiments.evaluate import Group, sample
from gtpo_mini.experiments.explorer import AXES, credit_grid, explorer_html, explorer_page, on_grid
from gtpo_mini.policy.load import load_policy
from gtpo_mini.tasks.task import load_task
from gtpo_mini.train.config import load_profile
from gtpo_mini.types import ExecutionResult, Turn

EVIL = "</pre></script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">\ud800\0"
NAMES = list(AXES)
ALL_ARMS = [arm for arm in ARMS.values() if on_grid(arm)]


@pytest.fixture(scope="module")
def policy():
    return load_policy("tiny", device="cpu")


@pytest.fixture(scope="module")
def groups(policy) -> list[Group]:
    settings = load_profile("cpu").train.sampling()
    return sample(policy, load_task("branching", "test"), problems=10, group_size=8, settings=settings)


@pytest.fixture(scope="module")
def page(groups, policy) -> str:
    return explorer_page(groups, policy)


def shipped(page: str) -> dict:
    return json.loads(re.search(r"id=data>(.*?)</script>", page)[1])


def some_settings(number: int, seed: int) -> list[Credit]:
    draw = random.Random(seed)
    return [Credit(**{field: draw.choice(values) for field, values in AXES.items()}) for _ in range(number)]


def given(credit: Credit, groups: list[Group], size: int = 8) -> dict[str, list[list[float]]]:
    """Rewards, returns and advantages of the batch, by `Credit` itself."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards, advantages = credit(rollouts, [grade for group in groups for grade in group.correct], size)
    returns = [turn_returns(row, credit.gamma) for row in rewards]
    return {"rewards": rewards, "returns": returns, "advantages": advantages}


def place(credit: Credit, axes: int) -> int:
    number = 0
    for field in NAMES[:axes]:
        number = number * len(AXES[field]) + AXES[field].index(getattr(credit, field))
    return number


@pytest.mark.parametrize("graded", [False, True])
def test_the_grid_is_what_credit_gives(groups, graded):
    if graded:  # a task may give part of the grade
        groups = [
            Group(g.rollouts, [max(right, 0.4) if i == 3 else right for i, right in enumerate(g.correct)])
            for g in groups
        ]
    order = [[1, 0, 7, 2], [72, 79]]
    grid = credit_grid(groups, order)
    for credit in [*some_settings(40, seed=graded), *ALL_ARMS]:
        for kind, table in given(credit, groups).items():
            axes = {"rewards": 3, "returns": 4, "advantages": 6}[kind]
            for one, numbers in zip(grid, order, strict=True):
                row = one["rows"][one[kind][place(credit, axes)]]
                found = [row[turn] / 1000 for turn in one["turns"]]
                assert found == pytest.approx([v for n in numbers for v in table[n]], abs=0.00051), (credit, kind)


def test_the_grid_ships_no_row_and_no_column_twice(groups):
    for one in credit_grid(groups, [range(8), range(72, 80)]):
        assert len(set(one["rows"])) == len(one["rows"])
        columns = list(zip(*one["rows"], strict=True))
        assert len(set(columns)) == len(columns)


def test_arms_are_on_the_grid_by_their_settings():
    assert len(ALL_ARMS) == 18 and ARMS["gtpo"] in ALL_ARMS
    assert not any(on_grid(arm) for arm in (ARMS["potential"], ARMS["+progress"], Credit(gamma=0.31)))


def test_the_page_picks_a_mixed_a_weak_and_a_near_miss_group(page, groups, policy):
    found = re.findall(r"<span>([\w ]+): (\w+) of 8 right</span>", page)
    assert [name for name, _ in found] == ["mixed group", "weak group", "near miss"]
    assert [number for _, number in found][:2] == ["4", "none"]
    assert len(page.encode()) < 600_000 and len(explorer_html(groups, policy).encode()) < 600_000
    chosen = explorer_page(groups, policy, show=[2])
    assert re.findall(r"<span>([\w ]+): (\w+) of", chosen) == [("problem 3", "4")]
    only_right = [group for group in groups if sum(group.correct) == 0][:1]
    assert "weak group: none of 8" in explorer_page(only_right, policy)
    all_right = [Group(groups[0].rollouts, [True] * 8)]
    assert "problem 1: 8 of 8" in explorer_page(all_right, policy)


@pytest.mark.parametrize("show", [[], [10], [-1]])
def test_a_wrong_choice_is_named(groups, policy, show):
    with pytest.raises(ValueError, match="show="):
        explorer_page(groups, policy, show)


def test_groups_of_several_sizes_are_no_batch(groups, policy):
    short = Group(groups[0].rollouts[:3], groups[0].correct[:3])
    for wrong in ([groups[0], short], []):
        with pytest.raises(ValueError, match="one size"):
            explorer_page(wrong, policy)


@pytest.fixture
def hostile(make_trajectory, policy) -> list[Group]:
    result = ExecutionResult(ok=False, stdout=EVIL, error=EVIL)
    ids = policy.encode(EVIL)
    turns = [Turn(EVIL, code=EVIL, result=result), Turn(EVIL, code=EVIL, result=replace(result, ok=True)), Turn(EVIL)]
    one = make_trajectory(*[(ids, ids, turn) for turn in turns], answer=EVIL)
    evil = replace(one, problem=replace(one.problem, id=EVIL, question=EVIL, answer=EVIL * 1000))
    return [Group([evil, evil], [True, False])]


def test_hostile_text_is_escaped_and_cut(hostile, policy):
    page = explorer_page(hostile, policy, title=EVIL)
    assert page.count("<script") == 2 and "<img" not in page and not re.search(r"https?://", page)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    page.encode("utf-8")
    assert "\0" not in page and "\u2400" in page and len(page) < 200_000
    frame = explorer_html(hostile, policy, title=EVIL)
    assert frame.startswith("<div><iframe sandbox=allow-scripts ") and frame.count("<") == 4
    assert html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1]) == page


@pytest.fixture(scope="module")
def path(page, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page, encoding="utf-8")
    return path


SHOWN = """(() => {
  const group = [...document.querySelectorAll("section")].filter((one) => !one.hidden);
  const text = (kind) => [...group[0].querySelectorAll(`.${kind}`)].map((one) => one.textContent);
  const rollouts = [...group[0].querySelectorAll("summary")].map((one) => Number(one.textContent.match(/\\d+/)[0]) - 1);
  const colours = [...group[0].querySelectorAll(".turn")].map((one) => `${one.matches(".up")}${one.matches(".down")}`);
  const numbers = {rewards: text("reward"), returns: text("return"), advantages: text("advantage")};
  return {groups: group.length, rollouts, colours, ...numbers};
})()"""


def choose(credit: Credit) -> str:
    """A script that sets the page's controls, as a reader does."""
    lines = [
        f"c = document.getElementById('{field}'); c.value = {values.index(getattr(credit, field))};"
        "c.dispatchEvent(new Event('input', {bubbles: true}));"
        for field, values in AXES.items()
    ]
    return f"(() => {{let c; {''.join(lines)}}})()"


def shown_groups(page: str, groups: list[Group]) -> list[int]:
    """Which groups a page holds, by their questions."""
    found = [html.unescape(text).strip() for text in re.findall(r"<p class=question>(.*?)<b>", page)]
    return [[group.rollouts[0].problem.question for group in groups].index(question) for question in found]


def check_numbers(browser: Browser, credit: Credit, groups: list[Group], group: int) -> None:
    """What the browser shows of a group is what `Credit` gives, to the two digits shown."""
    shown = browser.ask(SHOWN)
    assert shown["groups"] == 1 and sorted(shown["rollouts"]) == list(range(8))
    for kind, table in given(credit, groups).items():
        expected = [value for n in shown["rollouts"] for value in table[8 * group + n]]
        if kind == "returns" and not credit.returns:
            assert set(shown[kind]) == {"not used"}
            continue
        found = [float(text.replace("\u2212", "-")) for text in shown[kind]]
        assert found == pytest.approx(expected, abs=0.0056), (credit, kind)
        if kind == "advantages":
            sides = [f"{value > 0.0005}{value < -0.0005}".lower() for value in expected]
            assert shown["colours"] == sides


def test_the_browser_shows_what_credit_gives(browser, path, page, groups):
    browser.open(path)
    numbers = shown_groups(page, groups)
    check_numbers(browser, ARMS["gtpo"], groups, numbers[0])
    for i, credit in enumerate(some_settings(15, seed=7)):
        browser.ask(f"document.querySelectorAll('input[name=group]')[{i % len(numbers)}].click()")
        browser.ask(choose(credit))
        check_numbers(browser, credit, groups, numbers[i % len(numbers)])


def test_the_buttons_set_the_controls_to_an_arm(browser, path, page, groups):
    browser.open(path)
    first, names = shown_groups(page, groups)[0], browser.ask("buttons.map((one) => one.dataset.arm)")
    assert names[:2] == ["grpo", "grpo_accuracy"] and {"+turn_rewards", "+returns", "gtpo"} <= set(names)
    for name in names:
        browser.ask(f"document.querySelector('[data-arm=\"{name}\"]').click()")
        pressed = "buttons.filter((one) => one.getAttribute('aria-pressed') === 'true').map((one) => one.dataset.arm)"
        assert browser.ask(pressed) == [name]
        check_numbers(browser, ARMS[name], groups, first)


def test_the_sentence_tells_what_happens(browser, path):
    browser.open(path)
    summary = "document.getElementById('summary').textContent"
    assert re.fullmatch(
        r"On average: right rollouts' first turns [+−][\d.]+; their last turns \+[\d.]+; broken calls −[\d.]+; "
        r"last turn of the nearest miss [+−][\d.]+\.",
        browser.ask(summary),
    )
    browser.ask("document.querySelectorAll('input[name=group]')[1].click()")
    assert re.search(r"No rollout is right.*broken calls −.*all other turns \+", browser.ask(summary))
    idle = "[...document.querySelectorAll('.idle label')].map((one) => one.htmlFor)"
    assert browser.ask(idle) == ["alpha"]
    browser.ask(choose(Credit(normalize="batch")))
    assert re.search(r"broken calls −.*all other turns −", browser.ask(summary)) and browser.ask(idle) == []
    browser.ask(choose(Credit(format_penalty=0.0)))
    assert "teaches nothing" in browser.ask(summary)


def test_the_keyboard_reaches_and_moves_every_control(browser, path, page, groups):
    browser.open(path)
    numbers, active, reached = shown_groups(page, groups), "document.activeElement", []
    for _ in range(16):
        browser.press("Tab", 9)
        one = browser.ask(f"{active}.id || {active}.name || {active}.dataset.arm")
        outlined = f"getComputedStyle({active}.name === 'group' ? {active}.nextElementSibling : {active}).outlineStyle"
        assert browser.ask(outlined) == "solid", one
        reached.append(one)
        if one == "group":
            browser.press("ArrowRight", 39)
            check_numbers(browser, ARMS["gtpo"], groups, numbers[1])
        elif one == "grpo":
            browser.press(" ", 32)
            check_numbers(browser, ARMS["grpo"], groups, numbers[1])
        elif one == "gtpo":
            browser.press(" ", 32)
        elif one == "gamma":
            browser.press("ArrowLeft", 37)
            assert browser.ask(f"{active}.getAttribute('aria-valuetext')") == "0.8"
            check_numbers(browser, Credit(gamma=0.8), groups, numbers[1])
        elif one == "normalize":
            browser.press("ArrowDown", 40)
            check_numbers(browser, Credit(gamma=0.8, normalize="batch"), groups, numbers[1])
            break
    assert set(NAMES) - {"returns"} <= set(reached)


def contrasts(browser: Browser) -> dict[str, float]:
    """The lowest contrast (WCAG) of what is read, by selector."""
    script = """(() => {
      const parse = (colour) => {
        const [r, g, b, a = 1] = colour.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number);
        return [...(colour.startsWith("rgb") ? [r / 255, g / 255, b / 255] : [r, g, b]), a];
      };
      const under = (one) => {
        const [r, g, b, a] = parse(getComputedStyle(one).backgroundColor);
        if (a === 1 || !one.parentElement) return [r, g, b];
        const below = under(one.parentElement);
        return [r, g, b].map((part, i) => part * a + below[i] * (1 - a));
      };
      const light = (colour) => colour.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
      const contrast = (one) => {
        const colours = [parse(getComputedStyle(one).color).slice(0, 3), under(one)];
        const [low, high] = colours.map(light).sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
      };
      const found = {};
      for (const selector of ["h1", ".lead b", "button", ".tabs span", "#summary", ".control label", "small", "select",
                              ".right", ".wrong", "summary", ".advantage", ".call", "samp", ".parts", ".question"]) {
        found[selector] = Math.min(...[...document.querySelectorAll(selector)].map(contrast));
      }
      return found;
    })()"""
    return browser.ask(script)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_both_schemes_and_nothing_is_wider_than_a_phone(browser, path, scheme):
    browser.open(path, width=400, scheme=scheme)
    dark = browser.ask("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    for credit in (ARMS["gtpo"], ARMS["normalize_first"]):  # the second has the strongest colours
        for group in range(3):
            browser.ask(f"document.querySelectorAll('input[name=group]')[{group}].click()")
            browser.ask(choose(credit))
            browser.ask("document.getAnimations().forEach((one) => one.finish())")
            assert browser.ask("document.documentElement.scrollWidth") <= 400
            for selector, contrast in contrasts(browser).items():
                assert contrast >= (3 if selector in (".right", ".wrong", ".lead b") else 4.5), (selector, contrast)


def test_hostile_rollouts_change_nothing_and_the_page_loads_nothing(browser, hostile, policy, tmp_path):
    path = tmp_path / "evil.html"
    path.write_text(explorer_page(hostile, policy, title="fine"), encoding="utf-8")
    for width in (400, 1200):
        browser.open(path, width)
        assert browser.ask("document.title") == "fine" and browser.ask("document.images.length") == 0
        assert browser.ask("document.documentElement.scrollWidth") <= width
        loaded = [
            e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"
        ]
        assert loaded == [path.as_uri()]
        assert not [
            event for event in browser.events if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
        ]
