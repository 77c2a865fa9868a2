"""What both sides of the comparison run: one model that writes Hermes tool calls, one tool, the same prompts."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import ClassVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import get_json_schema

from gtpo_mini.experiments.coldstart import tiny_model, train_tokenizer
from gtpo_mini.policy.model import Policy
from gtpo_mini.rollout.chat import Chat
from gtpo_mini.rollout.protocol import HermesProtocol, ParsedTurn
from gtpo_mini.tasks.task import Task
from gtpo_mini.train.imitation import imitate, make_trace
from gtpo_mini.types import ExecutionResult, Problem

CALLS = 2  # that the model is taught to make before it answers


def python(code: str) -> str:
    """Run Python code and return what it evaluates to.

    Args:
        code: A Python expression to evaluate.

    Returns:
        The value of the expression as text.
    """
    if not re.fullmatch(r"[\d+\-* ()]{1,40}", code) or "**" in code:
        return "error"
    try:
        return str(eval(code, {"__builtins__": {}}))
    except Exception as error:
        return type(error).__name__


def slow_python(code: str) -> str:
    """Run Python code and return what it evaluates to.

    Args:
        code: A Python expression to evaluate.

    Returns:
        The value of the expression as text.
    """
    # About 50 ms: an interpreter's start, and some waiting.
    text = f"import time; time.sleep(0.03); print({python(code)!r})"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", text], capture_output=True, text=True, check=False)
    return done.stdout.strip()


slow_python.__name__ = "python"  # the model calls both by one name


class ToolBox:
    """The tool as a sandbox: our engine runs ``workers`` calls at a time."""

    def __init__(self, tool, workers: int) -> None:
        self.tool, self.workers = tool, workers

    def session(self) -> ToolBox:
        return self

    def run(self, code: str) -> ExecutionResult:
        return ExecutionResult(ok=True, stdout=self.tool(code))

    def close(self) -> None:
        pass


class BenchProtocol(HermesProtocol):
    """The package's protocol, with TRL's prompt and rules: no instructions; an unreadable call ends the rollout."""

    tools: ClassVar = [get_json_schema(python)]

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        return [{"role": "user", "content": problem.question}]

    def read(self, text: str) -> ParsedTurn:
        parsed = super().read(text)
        return parsed if parsed.code is not None else ParsedTurn(answer=text.strip() or None)


def questions(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [f"What is {rng.randrange(10, 99)}+{rng.randrange(10, 99)}?" for _ in range(count)]


class CoinTask(Task):
    """A grade that is a coin's: every group has a gradient, so that the update is the full one on both sides."""

    def grade(self, problem: Problem, answer: str | None) -> bool:
        return random.random() < 0.5


def coin_task(count: int) -> Task:
    problems = tuple(Problem(str(i), question, "0") for i, question in enumerate(questions(count, 7)))
    return CoinTask("coin", problems)


def _turns(question: str) -> Generator[str, ExecutionResult | None, None]:
    first, second = re.findall(r"\d+", question)
    call = '<tool_call>\n{{"name": "python", "arguments": {{"code": "{}"}}}}\n</tool_call>'
    total = int(first) + int(second)
    for sum_ in (f"{first}+{second}", *(f"{total}+{n}" for n in range(1, CALLS))):
        _ = yield call.format(sum_)
    yield f"It is {total}."


def make_model(
    folder: Path, template: str, base: Path | None = None, shape: dict | None = None, device: str = "cpu"
) -> None:
    """Teach ``base``, or a new model of ``shape`` or else of the tiny policy's, to make `CALLS` calls and answer."""
    torch.manual_seed(0)
    if base is None:
        # As many merges as give a prompt of 290 tokens and a rollout of 110, rather than a whole sentence a token.
        tools = [template.split("# Tools")[1][:2000], json.dumps(BenchProtocol.tools[0])]
        tokenizer = train_tokenizer([*questions(300, 1), *tools * 3], vocabulary=500)
        model = tiny_model(tokenizer) if shape is None else new_model(shape, tokenizer, device)
        steps, batch_size, rate = 150, 12, 0.5 / model.config.hidden_size  # smaller for the wider
    else:
        model, tokenizer = load_parts(base)
        steps, batch_size, rate = 16, 4, 2e-4
    tokenizer.chat_template = template
    policy = Policy(model, tokenizer, "hermes")
    chat, box = Chat(policy, BenchProtocol()), ToolBox(python, 1)
    traces = [make_trace(Problem("", question, ""), _turns(question), chat, box) for question in questions(800, 2)]
    imitate(policy, traces, steps, rate, batch_size)
    policy.save(folder)


def new_model(shape: dict, tokenizer, device: str) -> torch.nn.Module:
    """Random weights of a Qwen2 shape. As a Llama, which computes the same: transformers would load a folder of the
    type qwen2 with Qwen2's own tokenizer rules, and our tokenizer has others."""
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model("llama", attention_bias=True, **shape, **special)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()


def load_parts(folder: Path, quantize: str | None = None, device: str = "cpu") -> tuple:
    """Model and tokenizer as any user of transformers has them."""
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    options = {}
    if quantize:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=quantize, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=kind
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=kind, attn_implementation="sdpa", device_map={"": device}, **options
    )
    return model.eval(), AutoTokenizer.from_pretrained(folder)
