"""How a turn is written and read: tool call, tool result, final answer.

The protocol turns text into meaning and back; it never touches token ids. The rollout asks it three things:
may the turn end here (`is_complete`), what does the finished turn say (`read`), and which text carries the
tool's result back to the policy (`tool_text`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from .types import ExecutionResult, Problem

_LONGEST_RESULT = 2000  # characters of tool output that go back to the policy


@dataclass(frozen=True)
class ParsedTurn:
    """What a finished turn says: at most one of code and answer."""

    code: str | None = None
    malformed: bool = False
    answer: str | None = None


class ToolProtocol(Protocol):
    """What an own protocol has to offer; it is a plain class with these members."""

    name: str
    stop_character: str  #: a turn can become complete only at a token that holds this character

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """The chat messages that pose the problem."""

    def is_complete(self, text: str) -> bool:
        """True once the turn's text holds a whole tool call, so that the tool can run."""

    def read(self, text: str) -> ParsedTurn:
        """What a finished turn says."""

    def tool_text(self, result: ExecutionResult) -> str:
        """The text that is appended after the call; it is encoded once, with special tokens off."""


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
    instructions = (
        "Solve the problem step by step with Python. To run code, write it in a block that starts with ```python and "
        "ends with ```; what it prints is shown to you in a block ```output. Write one block at a time and always "
        "print what you need. When you know the result, write the final answer as \\boxed{answer}."
    )
    _opening = re.compile(r"```(?:python|py)[ \t]*\n")
    _block = re.compile(r"```(?:python|py)[ \t]*\n(.*?)```", re.DOTALL)

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """System instructions and the question."""
        return [
            {"role": "system", "content": self.instructions},
            {"role": "user", "content": problem.question},
        ]

    def is_complete(self, text: str) -> bool:
        """True once a fenced block is closed."""
        return self._block.search(text) is not None

    def read(self, text: str) -> ParsedTurn:
        """Code if a block is closed, malformed if one is only opened, else the last boxed answer (or nothing)."""
        if block := self._block.search(text):
            return ParsedTurn(code=block.group(1).rstrip("\n"))
        if self._opening.search(text) or text.rstrip().endswith("```python"):
            return ParsedTurn(malformed=True)
        return ParsedTurn(answer=last_boxed(text))

    def tool_text(self, result: ExecutionResult) -> str:
        """Printed output, then the error if there was one, cut to 2,000 characters from the middle."""
        text = result.stdout.rstrip("\n")
        if not result.ok:
            text = f"{text}\n{result.error}".strip("\n")
        if len(text) > _LONGEST_RESULT:
            half = _LONGEST_RESULT // 2
            text = f"{text[:half]}\n... ({len(text) - 2 * half} characters left out)\n{text[-half:]}"
        return f"\n```output\n{text}\n```\n"


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


_PROTOCOLS = {"fenced": FencedProtocol}


def load_protocol(name: str = "fenced") -> ToolProtocol:
    """A protocol by name.

    Raises:
        ValueError: unknown name.

    >>> load_protocol().name
    'fenced'
    """
    if name not in _PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; known: {', '.join(_PROTOCOLS)}")
    return _PROTOCOLS[name]()
