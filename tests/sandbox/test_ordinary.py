"""Code as a mathematics or programming model writes it runs, with the output of an ordinary interpreter."""

from pathlib import Path

import pytest

TEXT = (Path(__file__).parent / "ordinary.txt").read_text(encoding="utf-8")
CASES = [case.split("## prints\n") for case in TEXT.split("## next\n")]  # a closing backslash: no newline printed


@pytest.mark.parametrize("number", range(len(CASES)))
def test_ordinary_snippet_prints_what_it_should(number, box):
    code, wanted = CASES[number]
    result = box.run(code)
    assert (result.ok, result.error) == (True, ""), code
    assert result.stdout == wanted.removesuffix("\\\n")


def test_there_are_enough_of_them():
    assert len(CASES) >= 100 and len({code for code, _ in CASES}) == len(CASES)
