"""How a turn is written and read: tool call, tool result, final answer.

The protocol turns text into meaning and back; it never touches token ids. The rollout asks it three things:
may the turn end here (`is_complete`), what does the finished turn say (`read`), and which text carries the
tool's result back to the policy (`tool_text`). A protocol whose calls are those of the model's own chat template
also names its ``tools``; `chat` then takes their description and the frame of a result from the template.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ..types import ExecutionResult, Problem, import_named
from .observation import result_text


@dataclass(frozen=True)
class ParsedTurn:
    """What a finished turn says: at most one of code and answer."""

    code: str | None = None
    malformed: bool = False
    answer: str | None = None
    complaint: str = ""  #: of a malformed call: what the policy is told


class ToolProtocol(Protocol):
    """What an own protocol has to offer; it is a plain class with these members."""

    name: str
    stop_character: str  #: a turn can become complete only at a token that holds this character
    tools: list[dict[str, Any]]  #: JSON schemas for the chat template; may be left out (none)

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """The chat messages that pose the problem."""

    def is_complete(self, text: str) -> bool:
        """True once the turn's text holds a whole tool call, so that the tool can run."""

    def read(self, text: str) -> ParsedTurn:
        """What a finished turn says."""

    def tool_text(self, result: ExecutionResult) -> str:
        """The text that is appended after the call; it is encoded once, with special tokens off.

        A long output has been shortened already (`run_call`); `result_text` puts output and error together.
        """


class FencedProtocol:
    r"""Fenced Python in, fenced output back, final answer in ``\boxed{}``: as tool-integrated reasoners write it.

    >>> protocol = FencedProtocol()
    >>> protocol.read("Let me see.\n```python\nprint(6 * 7)\n```").code
    'print(6 * 7)'
    >>> protocol.read(r"So it is \boxed{42}.").answer
    '42'
    >>> protocol.tool_text(ExecutionResult(ok=True, stdout="42\n"))
    '\n```output\n42\n```\n'
    """

    name = "fenced"
    stop_character = "`"
    # Short on purpose: every rollout carries it, and small models have small contexts.
    instructions = (
        "Solve the problem with Python. Write one ```python block that prints what you need; its output comes back as "
        "```output. Repeat if needed. End with \\boxed{answer}."
    )
    example_question = "A box holds 12 pens. How many pens are in 7 boxes, if 5 are missing?"
    example_answer = "```python\nprint(12 * 7 - 5)\n```\n```output\n79\n```\nThe answer is \\boxed{79}."
    _opening = re.compile(r"```(?:python|py)[ \t]*\n")
    _block = re.compile(r"```(?:python|py)[ \t]*\n(.*?)```", re.DOTALL)

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """Instructions, one solved example (small models follow it where they ignore instructions), the question."""
        return [
            {"role": "system", "content": self.instructions},
            {"role": "user", "content": self.example_question},
            {"role": "assistant", "content": self.example_answer},
            {"role": "user", "content": problem.question},
        ]

    def is_complete(self, text: str) -> bool:
        """True once a fenced block is closed."""
        return self._block.search(text) is not None

    def read(self, text: str) -> ParsedTurn:
        """Code if a block is closed, malformed if one is only opened, else the answer (or nothing)."""
        if block := self._block.search(text):
            return ParsedTurn(code=block.group(1).rstrip("\n"))
        if self._opening.search(text) or text.rstrip().endswith("```python"):
            complaint = "The code block was not closed with ```, so nothing was run."
            return ParsedTurn(malformed=True, complaint=complaint)
        return ParsedTurn(answer=final_answer(text))

    def tool_text(self, result: ExecutionResult) -> str:
        """What came back, in a fenced block."""
        return f"\n```output\n{result_text(result)}\n```\n"


class HermesProtocol:
    r"""Tool calls as JSON between tags, as Qwen and Hermes models are trained to write them.

    The turn ends with the model's own end token. Several calls in one turn run one after the other, and their
    output comes back as one result.

    >>> protocol = HermesProtocol()
    >>> protocol.read('<tool_call>\n{"name": "python", "arguments": {"code": "print(6 * 7)"}}\n</tool_call>').code
    'print(6 * 7)'
    >>> protocol.read('<tool_call>\n{"name": "python"}\n</tool_call>').complaint
    'Not run: a call must be {"name": "python", "arguments": {"code": "..."}} in JSON.'
    """

    name = "hermes"
    stop_character = "\0"  # none: a call is followed by the end token
    instructions = "Solve the problem with Python: call the tool, and print what you need. End with \\boxed{answer}."
    tools: ClassVar[list[dict[str, Any]]] = [
        {
            "type": "function",
            "function": {
                "name": "python",
                "description": "Run Python code and return what it prints. Variables are kept between calls.",
                "parameters": {
                    "type": "object",
                    "properties": {"code": {"type": "string", "description": "The code to run."}},
                    "required": ["code"],
                },
            },
        }
    ]
    _call = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """Instructions and the question; the template describes the tool."""
        return [{"role": "system", "content": self.instructions}, {"role": "user", "content": problem.question}]

    def is_complete(self, text: str) -> bool:
        """Never: only the end token ends a turn."""
        return False

    def read(self, text: str) -> ParsedTurn:
        """The code of all calls, malformed if one of them cannot be read, else the answer (or nothing)."""
        text = text.rpartition("</think>")[2]  # a call that is only thought of is none
        if "<tool_call>" not in text:
            return ParsedTurn(answer=final_answer(text))
        if "<tool_call>" in self._call.sub("", text):
            return ParsedTurn(malformed=True, complaint="Not run: <tool_call> was not closed with </tool_call>.")
        try:
            codes = [_python_code(json.loads(call)) for call in self._call.findall(text)]
        except (ValueError, TypeError, KeyError, RecursionError):
            complaint = 'Not run: a call must be {"name": "python", "arguments": {"code": "..."}} in JSON.'
            return ParsedTurn(malformed=True, complaint=complaint)
        return ParsedTurn(code="\n".join(codes))

    def tool_text(self, result: ExecutionResult) -> str:
        """What came back; the template's frame is put around it."""
        return result_text(result)


def _python_code(call: Any) -> str:
    arguments = call["arguments"]
    if isinstance(arguments, str):  # some models write the arguments as JSON in a string
        arguments = json.loads(arguments)
    if call["name"] != "python" or not isinstance(arguments["code"], str):
        raise ValueError
    return arguments["code"]


def final_answer(text: str) -> str | None:
    r"""The last block that begins with ```answer (for answers of several lines, such as programs), else `last_boxed`.

    >>> final_answer("So:\n```answer\ndef f(x):\n return x\n```")
    'def f(x):\n return x'
    """
    if blocks := re.findall(r"```answer[ \t]*\n(.*?)```", text, re.DOTALL):
        return blocks[-1].strip("\n") or None
    return last_boxed(text)


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}``, braces balanced, or None.

    >>> last_boxed(r"first \boxed{1}, then \boxed{\frac{3}{4}}")
    '\\frac{3}{4}'
    >>> last_boxed(r"\boxed{4") is None
    True
    """
    end = len(text)
    while (start := text.rfind("\\boxed{", 0, end)) >= 0:
        depth = 0
        for place in range(start + 6, len(text)):
            depth += (text[place] == "{") - (text[place] == "}")
            if depth == 0:
                return text[start + 7 : place].strip() or None
        end = start
    return None


PROTOCOLS = {"fenced": FencedProtocol, "hermes": HermesProtocol}


def load_protocol(name: str = "fenced") -> ToolProtocol:
    """A protocol by name: "fenced" (any model), or "hermes" (models trained to call tools: Qwen2.5, Qwen3, Hermes).

    Args:
        name: one of these, or ``MODULE:NAME``: an own protocol, or a class or function that returns one.

    Raises:
        ValueError: unknown name; what was found is no protocol.

    >>> load_protocol().name
    'fenced'
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]()
    if not all(name.partition(":")):
        raise ValueError(f"unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}, MODULE:NAME")
    found = import_named("protocol", name)
    if isinstance(found, type) or (callable(found) and _missing(found)):
        found = found()
    if missing := _missing(found):
        raise ValueError(f"protocol {name!r}: is a {type(found).__name__} without {', '.join(missing)}")
    return found


def _missing(protocol: object) -> list[str]:
    needed = ("name", "stop_character", "messages", "is_complete", "read", "tool_text")
    return [member for member in needed if not hasattr(protocol, member)]
