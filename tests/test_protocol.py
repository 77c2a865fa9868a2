from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtpo_mini.rollout.protocol import last_boxed, load_protocol
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
        ("So:\n```answer\ndef f(x):\n return {x}\n```", None, False, "def f(x):\n return {x}"),
        ("```answer\n1\n```\n```answer\n2\n```", None, False, "2"),
        ("```answer\nhalf", None, False, None),
        ("```answer\n\n```", None, False, None),
        ("\\boxed{3}\n```answer\n4\n```", None, False, "4"),
        ("```python\nprint(1)\n```\n```answer\n4\n```", "print(1)", False, None),
        (r"\boxed{}", None, False, None),
        ("", None, False, None),
    ],
)
def test_read(text, code, malformed, answer):
    parsed = PROTOCOL.read(text)
    assert (parsed.code, parsed.malformed, parsed.answer) == (code, malformed, answer)
    assert PROTOCOL.is_complete(text) == (code is not None)


def call(code: str = "print(1)", **changes) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'python', 'arguments': {'code': code}, **changes})}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "code", "complaint", "answer"),
    [
        (call(), "print(1)", "", None),
        (f"I compute.\n{call('x = 1')}\n{call('print(x)')}", "x = 1\nprint(x)", "", None),
        (call(arguments=json.dumps({"code": "print(1)"})), "print(1)", "", None),
        (f"<think>maybe {call()}</think>It is \\boxed{{3}}", None, "", "3"),
        ("It is \\boxed{3}", None, "", "3"),
        ("```answer\nx = 1\n```", None, "", "x = 1"),
        ("It is 3", None, "", None),
        ("<tool_call>\n{", None, "not closed", None),
        (call() + "<tool_call>", None, "not closed", None),
        ("<tool_call>{}</tool_call>", None, "must be", None),
        ("<tool_call>print(1)</tool_call>", None, "must be", None),
        ("<tool_call>" + "[" * 100000 + "</tool_call>", None, "must be", None),
        ("<tool_call>[1]</tool_call>", None, "must be", None),
        (call(name="search"), None, "must be", None),
        (call(arguments={"code": 7}), None, "must be", None),
        (call(arguments="print(1)"), None, "must be", None),
        (call(arguments=None), None, "must be", None),
    ],
)
def test_hermes_reads_calls_and_says_what_is_wrong(text, code, complaint, answer):
    parsed = load_protocol("hermes").read(text)
    assert (parsed.code, parsed.malformed, parsed.answer) == (code, bool(complaint), answer)
    assert complaint in parsed.complaint


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "{", '"name"', call(), "</think>", "\\boxed{1}"])))
def test_any_text_can_be_read_by_hermes(pieces):
    parsed = load_protocol("hermes").read("".join(pieces))
    assert (parsed.code is not None) + parsed.malformed + (parsed.answer is not None) <= 1


@given(st.text(alphabet="`python\n {}\\boxed1"))
def test_any_text_can_be_read(text):
    parsed = PROTOCOL.read(text)
    assert (parsed.code is not None) + parsed.malformed + (parsed.answer is not None) <= 1


@given(st.text(alphabet="ab1 ^_"))
def test_boxed_text_comes_back(text):
    assert last_boxed(f"x \\boxed{{{text}}} y") == (text.strip() or None)


def test_tool_text_puts_output_and_error_together():
    text = PROTOCOL.tool_text(ExecutionResult(ok=False, stdout="1\n", error="ValueError: no"))
    assert text == "\n```output\n1\nValueError: no\n```\n"


def test_unknown_protocol():
    with pytest.raises(ValueError, match=r"unknown protocol 'x'.*fenced"):
        load_protocol("x")


OWN = """
from gtpo_mini.rollout.protocol import FencedProtocol
class Mine(FencedProtocol):
    name = "mine"
mine = Mine()
def make():
    return mine
class Half:
    name, stop_character = "half", "x"
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_protocols.py").write_text(OWN)
    (tmp_path / "broken_protocols.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", ["Mine", "mine", "make"])
def test_an_own_protocol_comes_by_module_and_name(name, own_module):
    protocol = load_protocol(f"own_protocols:{name}")
    assert protocol.name == "mine" and protocol.read("```python\n1\n```").code == "1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:x", "cannot be imported .ModuleNotFoundError"),
        ("own_protocols:nope", "cannot be imported .AttributeError"),
        ("broken_protocols:x", "cannot be imported .ZeroDivisionError"),
        ("own_protocols:Half", "is a Half without messages, is_complete, read, tool_text"),
        ("own_protocols:OWN", "cannot be imported"),
        ("math:pi", "is a float without name"),
        ("own_protocols:", "unknown protocol"),
    ],
)
def test_what_is_no_protocol_is_named_in_one_line(name, message, own_module):
    with pytest.raises(ValueError, match=message) as caught:
        load_protocol(name)
    assert name in str(caught.value) and len(str(caught.value).splitlines()) == 1
