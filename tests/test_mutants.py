"""The list of planted slips fits the code: each edit is found exactly once, and what it makes is Python."""

from __future__ import annotations

import ast

import pytest
from mutants import MUTANTS, ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_slip_can_be_planted(mutant):
    text = (ROOT / "gtpo_mini" / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    ast.parse(text.replace(mutant.old, mutant.new))
    assert all((ROOT / name).is_file() for name in mutant.tests.split())


def test_every_slip_has_a_name_of_its_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 56
