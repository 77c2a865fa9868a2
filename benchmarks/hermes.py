"""What both sides of the comparison run: one model that writes Hermes tool calls, one tool, the same prompts."""

from __future__ import annotations

import contextlib
import functools
import io
import random
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerFast
from transformers.utils import get_json_schema

from gtpo_mini.experiments.coldstart import tiny_model, train_tokenizer
from gtpo_mini.policy.model import Policy
from gtpo_mini.rollout.chat import Chat
from gtpo_mini.rollout.protocol import HermesProtocol, ParsedTurn
from gtpo_mini.sandbox import Sandbox
from gtpo_mini.tasks.task import Task
from gtpo_mini.train.imitation import imitate, make_trace
from gtpo_mini.types import ExecutionResult, Problem


@dataclass(frozen=True)
class Load:
    """One shape of work."""

    calls: int  #: that the model is taught to make before it answers
    vocabulary: int  #: of a new model: more merges make fewer tokens of the tool's description
    words: int  #: of text before the question
    tokens: int  #: that a rollout may have after its prompt


LOADS = {"short": Load(1, 606, 0, 80), "middle": Load(3, 420, 0, 250), "long": Load(6, 420, 190, 500)}
_TEXT = "a the of in red blue old new box shop road tree bird river green apple train night many with from near"


def python(code: str) -> str:
    """Run Python code and return what it prints.

    Args:
        code: The code to run.

    Returns:
        What it prints.
    """
    if not re.fullmatch(r"print\([\d+\-* ()]{1,40}\)", code) or "**" in code:
        return "error"  # a model wrote it, and this is no sandbox
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, {})
    except Exception:
        return "error"
    return printed.getvalue().strip()


def in_sandbox(sandbox: Sandbox) -> Callable[[str], str]:
    """The same tool, as TRL takes it, whose code runs in our sandbox."""

    @functools.wraps(python)
    def run(code: str) -> str:
        return sandbox.run(code).stdout.strip() or "error"

    return run


class BenchProtocol(HermesProtocol):
    """The package's protocol, with TRL's prompt and rules: no instructions; an unreadable call ends the rollout.

    A failed call's result is one word, as TRL's tool gives it: the package's own longer one would cost more tokens.
    """

    tools: ClassVar = [get_json_schema(python)]

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        return [{"role": "user", "content": problem.question}]

    def read(self, text: str) -> ParsedTurn:
        parsed = super().read(text)
        return parsed if parsed.code is not None else ParsedTurn(answer=text.strip() or None)

    def tool_text(self, result: ExecutionResult) -> str:
        return result.stdout.strip() or "error"


def questions(count: int, seed: int, words: int, least: int | None = None) -> list[str]:
    """Each after ``words`` words of text, or from ``least`` to so many."""
    rng = random.Random(seed)
    counts = [words if least is None else rng.randint(least, words) for _ in range(count)]
    texts = (" ".join([*rng.choices(_TEXT.split(), k=k), "What is"]) for k in counts)
    return [f"{text} {rng.randrange(10, 99)}+{rng.randrange(10, 99)}?" for text in texts]


class CoinTask(Task):
    """A grade that is a coin's: every group has a gradient, so that the update is the full one on both sides."""

    def grade(self, problem: Problem, answer: str | None) -> bool:
        return random.random() < 0.5


def coin_task(count: int, words: int) -> Task:
    problems = tuple(Problem(str(i), question, "0") for i, question in enumerate(questions(count, 7, words)))
    return CoinTask("coin", problems)


def _turns(question: str, calls: int) -> Generator[str, ExecutionResult | None, None]:
    first, second = re.findall(r"\d+", question)
    call = '<tool_call>\n{{"name": "python", "arguments": {{"code": "print({})"}}}}\n</tool_call>'
    total = int(first) + int(second)
    for sum_ in (f"{first}+{second}", *(f"{total}+{n}" for n in range(1, calls))):
        _ = yield call.format(sum_)
    yield f"It is {total}."


def new_tokenizer(template: str, vocabulary: int) -> PreTrainedTokenizerFast:
    """Trained on the questions and on the prompt that every question has around it."""
    bare = train_tokenizer([], 259)
    bare.chat_template = template
    prompt = bare.apply_chat_template([{"role": "user", "content": "?"}], tools=BenchProtocol.tools, tokenize=False)
    return train_tokenizer([*questions(300, 1, 0), *3 * [prompt]], vocabulary)


def make_model(
    folder: Path,
    load: Load,
    template: str,
    base: Path | None = None,
    shape: dict | None = None,
    device: str = "cpu",
    steps: int = 240,
) -> None:
    """Teach ``base``, or a new model of ``shape`` or else of the tiny policy's, to make the load's calls and answer.

    A new one learns for ``steps`` steps, ``base`` for 16."""
    torch.manual_seed(0)
    if base is None:
        tokenizer = new_tokenizer(template, load.vocabulary)
        model = tiny_model(tokenizer) if shape is None else new_model(shape, tokenizer, device)
        model.config.max_position_embeddings = max(8192, model.config.max_position_embeddings)
        batch_size, rate = 6, 0.5 / model.config.hidden_size  # smaller for the wider
    else:
        model, tokenizer = load_parts(base)
        steps, batch_size, rate = 16, 4, 2e-4
    tokenizer.chat_template = template
    policy = Policy(model, tokenizer, "hermes")
    chat, asked = Chat(policy, BenchProtocol()), questions(300, 2, load.words * 5 // 4, least=0)
    with Sandbox() as sandbox:
        traces = [make_trace(Problem("", q, ""), _turns(q, load.calls), chat, sandbox) for q in asked]
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
