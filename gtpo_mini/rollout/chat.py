"""How a protocol's text becomes token ids: by the model's own chat template, where the protocol has tools.

A tool's result enters as the template would frame a tool message: the frame is cut out of a rendered sample chat, so
that no template is written down here. The frame's ids are made once, with the template's special tokens; the result
between them is encoded as plain text, so that a tool's output cannot forge a special token. The policy's own ids are
never encoded again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

from ..policy.model import Policy
from ..types import ExecutionResult, Problem, StopReason, Trajectory, Turn
from .protocol import ToolProtocol

# For a template that does not describe tools itself: what those of Qwen2.5 and Hermes say, shortened.
_TOOLS_TEXT = (
    "\n\nYou may call these functions:\n<tools>\n{schemas}\n</tools>\nFor each call write a JSON object between tags:\n"
    '<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)
_CALL, _RESULT = "GTPOCALLGTPO", "GTPORESULTGTPO"  # stand where the texts would


class Chat:
    """Encodes prompts and tool results for one policy and protocol.

    If the protocol has no ``tools``, its text is all there is: no frame is put around a result.

    Raises:
        ValueError: the protocol has tools, but the template takes no tool message.
    """

    def __init__(self, policy: Policy, protocol: ToolProtocol) -> None:
        self.policy, self.protocol = policy, protocol
        self.tools: Sequence[dict[str, Any]] = getattr(protocol, "tools", None) or ()
        self.before: list[int] = []  #: ids of the frame of a tool's result
        self.after: list[int] = []
        self.describes_tools = False  #: does the template do so
        opening = [{"role": "user", "content": "?"}]
        self.takes_system = True  #: where the template refuses that role, the user's message says it too
        try:
            self._render([{"role": "system", "content": "?"}, *opening])
        except ValueError:
            self.takes_system = False
        if not self.tools:
            return
        names = [tool["function"]["name"] for tool in self.tools]
        shown = self._render(opening, tools=list(self.tools))
        self.describes_tools = all(name in shown for name in names) and shown != self._render(opening)
        self.before, self.after = map(self._encode_frame, self._frame())

    def encode_prompt(self, problem: Problem) -> list[int]:
        """Token ids of the problem's chat, up to and including the header of the assistant's turn."""
        messages = [dict(message) for message in self.protocol.messages(problem)]
        tools = list(self.tools) if self.describes_tools else None
        if self.tools and not tools:
            text = _TOOLS_TEXT.format(schemas="\n".join(json.dumps(tool) for tool in self.tools))
            if messages[0]["role"] != "system":
                messages.insert(0, {"role": "system", "content": ""})
            messages[0]["content"] = (messages[0]["content"] + text).strip()
        if messages[0]["role"] == "system" and not self.takes_system:
            system = messages.pop(0)["content"]
            messages[0]["content"] = f"{system}\n\n{messages[0]['content']}"
        return self.policy.encode_chat(messages, tools)

    def encode_result(self, result: ExecutionResult) -> list[int]:
        """Token ids that carry a tool's result back, up to and including the header of the next turn."""
        return [*self.before, *self.policy.encode(self.protocol.tool_text(result)), *self.after]

    def _render(self, messages: list[dict[str, Any]], **options) -> str:
        template = self.policy.tokenizer.apply_chat_template
        try:
            return template(messages, tokenize=False, add_generation_prompt=True, **options)
        except Exception as error:  # a template raises whatever it likes
            raise self._useless(str(error)) from error

    def _frame(self) -> tuple[str, str]:
        """The template's text between a turn's end token and a tool's result, and from there to the next turn."""
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _CALL}]
        if self.describes_tools:
            reply, options = {"role": "tool", "name": "python", "content": _RESULT}, {"tools": list(self.tools)}
        else:  # the model has not seen a tool's role: the user speaks for it
            reply = {"role": "user", "content": f"<tool_response>\n{_RESULT}\n</tool_response>"}
            options = {}
        text = self._render([*chat, reply], **options)
        between, found, after = text.partition(_CALL)[2].partition(_RESULT)
        if not found:
            raise self._useless("it leaves the result of a tool out")
        # The end token is the policy's own: it has been sampled already.
        ends = [self.policy.tokenizer.convert_ids_to_tokens(i) for i in self.policy.eos_ids]
        for end in ends:
            if between.lstrip().startswith(end):
                return between.lstrip().removeprefix(end), after
        raise self._useless(f"an assistant's message ends with none of the end tokens {sorted(ends)}")

    def _useless(self, reason: str) -> ValueError:
        return ValueError(
            f"model {self.policy.name!r}: its chat template cannot frame a tool's result for protocol "
            f"{self.protocol.name!r} ({reason}); use protocol 'fenced'"
        )

    def _encode_frame(self, text: str) -> list[int]:
        return self.policy.tokenizer.encode(text, add_special_tokens=False)


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """The turns of a chat that other code held: an assistant's message each, with its calls and what they gave.

    A call's code is its argument ``code``, or all of its arguments as JSON; one that failed gave ``{'error': '...'}``,
    as TRL writes it, and makes its turn's calls fail.

    >>> call = {"function": {"name": "python", "arguments": {"code": "print(4)"}}}
    >>> told = {"role": "tool", "content": "4"}
    >>> read_messages([{"role": "assistant", "tool_calls": [call]}, told])[0].result.stdout
    '4'
    """
    turns: list[Turn] = []
    for message in messages:
        if message["role"] == "assistant":
            calls = [call["function"]["arguments"] for call in message.get("tool_calls") or ()]
            codes = [
                call["code"] if isinstance(call, dict) and isinstance(call.get("code"), str) else json.dumps(call)
                for call in calls
            ]
            turns.append(Turn(str(message.get("content") or ""), code="\n".join(codes) or None))
        elif turns:
            told, before = str(message["content"]), turns[-1].result
            ok = not told.startswith(("{'error': '", "{'error': \"")) and (before is None or before.ok)
            text = f"{before.stdout}\n{told}" if before else told
            turns[-1] = replace(turns[-1], result=ExecutionResult(ok, text))
    return turns


def read_rollouts(
    prompts: Sequence[Any], completions: Sequence[Any], ids: Sequence[Sequence[int]], masks: Sequence[Sequence[int]]
) -> list[Trajectory]:
    """Trajectories, from their first completion token on, of what other code's tool loop (TRL's) made.

    Of a text the calls are not known: what the policy wrote before a tool's output counts as a call that ran.

    Args: B prompts, B completions (messages, or a text), their token ids, and which of them the policy wrote (B, T).
    """
    rollouts = []
    for prompt, messages, tokens, mask in zip(prompts, completions, ids, masks, strict=True):
        mine = tuple(map(int, mask[: len(tokens)]))
        index = [0, *accumulate(int(said and not before) for before, said in pairwise(mine))]
        turns = read_messages(messages if isinstance(messages, list) else [{"role": "assistant", "content": messages}])
        turns = [Turn("", code="")] * (index[-1] + 1 - len(turns)) + turns
        count = index[-1] + 1 if any(mine) else None  # `mask_truncated_completions` leaves no mask to count by
        about = {"problem": Problem("", str(prompt), ""), "stop": StopReason.ANSWER, "prompt_length": 0}
        labels = {"loss_mask": mine, "turn_index": tuple(index[: len(mine)]), "logprobs": (0.0,) * len(tokens)}
        rollouts.append(Trajectory(turns=tuple(turns[:count]), token_ids=tuple(tokens), **labels, **about))
    return rollouts
