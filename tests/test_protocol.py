from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtpo_mini.protocol import last_boxed, load_protocol
from gtpo_mini.types import ExecutionResult

PROTOCOL = load_protocol()


@pytest.mark.parametrize(
    ("text", "code", "malformed", "answer"),
    [
        ("```python\nprint(1)\n```", "print(1)", False, None),
        ("So:\n```py \nx = 1\nprint(x)\n``` and more", "x = 1\nprint(x)", False, None),
        ("```python\n```", "", False, None),
        ("```python\nprint(1)", None, True, None),
        ("```python", None, True, None),
        ("```text\nhello\n```", None, False, None),
        (r"It is \boxed{3}", None, False, "3"),
        (r"\boxed{1} no, \boxed{ \sqrt{2} }", None, False, r"\sqrt{2}"),
        (r"\boxed{1", None, False, None),
        (r"\boxed{}", None, False, None),
        ("", None, False, None),
    ],
)
def test_read(text, code, malformed, answer):
    parsed = PROTOCOL.read(text)
    assert (parsed.code, parsed.malformed, parsed.answer) == (code, malformed, answer)
    assert PROTOCOL.is_complete(text) == (code is not None)


@given(st.text(alphabet="`python\n {}\\boxed1"))
def test_any_text_can_be_read(text):
    parsed = PROTOCOL.read(text)
    assert (parsed.code is not None) + parsed.malformed + (parsed.answer is not None) <= 1


@given(st.text(alphabet="ab1 ^_"))
def test_boxed_text_comes_back(text):
    assert last_boxed(f"x \\boxed{{{text}}} y") == (text.strip() or None)


def test_tool_text_keeps_both_ends_of_long_output_and_the_error():
    text = PROTOCOL.tool_text(ExecutionResult(ok=False, stdout="a" * 9000, error="ValueError: no"))
    assert len(text) < 2100 and text.rstrip().endswith("ValueError: no\n```") and "left out" in text


def test_unknown_protocol():
    with pytest.raises(ValueError, match=r"unknown protocol 'x'.*fenced"):
        load_protocol("x")
