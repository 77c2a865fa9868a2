"""The page of a run's rollouts, in a real browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gtpo_mini.experiments.viewer import rollouts_page
from gtpo_mini.rollout.transcript import load_rollouts, record_rollouts
from gtpo_mini.types import ExecutionResult, Turn

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
    page = rollouts_page(rollouts, EVIL)
    assert page.count("<script") == 1 and "<img" not in page and not re.search(r"https?://", page)
    page.encode("utf-8")
    assert "\0" not in page and "\u2400" in page and "\ud800" not in page


def browse(page: str, folder: Path, changes: str = "") -> str:
    """The page after its script, and after ``changes``, as a browser has it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    path = folder / "page.html"
    if changes:  # the page's own policy lets no other script run, as the test above it shows
        page = re.sub(r"<meta http-equiv=.?Content-Security-Policy[^>]*>", "", page)
        page = page.replace("</body>", f"<script>{changes}</script></body>")
    path.write_text(page)
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--dump-dom"]
    return subprocess.run([*words, path.as_uri()], capture_output=True, text=True, timeout=120).stdout


def chosen(**values: str) -> str:
    """A script that chooses in the page's controls, as a reader does."""
    lines = [
        f"{{const c = document.getElementById('{name}'); c.value = '{value}'; c.dispatchEvent(new Event('change'));}}"
        for name, value in values.items()
    ]
    return "".join(lines)


def test_a_browser_shows_all_rollouts_and_runs_no_other_script(rollouts, tmp_path):
    shown = browse(rollouts_page(rollouts, "fine"), tmp_path)
    assert "<title>fine</title>" in shown and "4 of 4 rollouts" in shown
    assert re.findall(r'data-step="(\d)"', shown) == ["0", "0", "1", "1"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"step": "1"}, [("1", "0"), ("1", "1")]),
        ({"sort": "high"}, [("0", "0"), ("1", "0"), ("0", "1"), ("1", "1")]),
        ({"sort": "low"}, [("0", "1"), ("1", "1"), ("0", "0"), ("1", "0")]),
        ({"sort": "spread", "step": "0"}, [("0", "0"), ("0", "1")]),
        ({"only": "1"}, [("0", "0")]),
        ({"only": "1", "step": "1"}, []),
    ],
)
def test_the_controls_choose_and_sort(rollouts, tmp_path, choice, expected):
    shown = browse(rollouts_page(rollouts, "fine"), tmp_path, chosen(**choice))
    assert f"{len(expected)} of 4 rollouts" in shown
    assert re.findall(r'data-step="(\d)" data-group="\d" data-number="(\d)"', shown) == expected


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
