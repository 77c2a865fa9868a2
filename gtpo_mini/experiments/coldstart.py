"""Starting policies: the shipped tiny one, made by a cold start on imperfect traces, and those of the regimes.

The tiny policy is an ordinary Llama model of 0.5 M parameters; it imitates solutions of the task 'branching' in which
up to half of the calls are bad, so that it starts with reward to gain. A regime's policy is that one after a short
imitation of traces with other habits: more or fewer broken calls, more turns, a weaker or stronger start, guesses.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean as mean

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..policy.load import TINY_FOLDER, load_policy
from ..policy.model import Policy
from ..rollout.chat import Chat
from ..rollout.protocol import load_protocol
from ..sandbox import Sandbox
from ..tasks.branching import TraceNoise, answer_from, draw_problems, write_trace
from ..train.config import results_folder
from ..train.imitation import imitate, make_trace
from ..types import ExecutionResult, Problem

# It keeps the last message only: the cold start taught the one protocol there is, so instructions and examples would
# only make every prompt four times as long.
_CHAT_TEMPLATE = (Path(__file__).resolve().parents[1] / "assets" / "tiny_chat.jinja").read_text("utf-8").rstrip()


def train_tokenizer(texts: list[str], vocabulary: int = 640) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (any text can be encoded) of at least 259 tokens, one a digit; ChatML template.

    Tokens may span words and lines, so that what every turn repeats costs one token: half the length, twice as fast.
    """
    tokenizer = Tokenizer(models.BPE())
    of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), of_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<|pad|>", "<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    how = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, **how))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=_CHAT_TEMPLATE
    )


def tiny_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """The tiny policy before training: 2 layers of width 128, tied embeddings."""
    # Llama, because `AutoTokenizer` gives a Qwen2 model Qwen2's own way to cut text, whatever tokenizer.json says.
    torch.manual_seed(seed)
    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"vocab_size": len(tokenizer), "max_position_embeddings": 1024, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**shape, **tokens))


def write_turns(
    problem: Problem, rng: random.Random, noise: TraceNoise
) -> Generator[str, ExecutionResult | None, None]:
    """The turns of one imperfect solution of the task 'branching', as `make_trace` takes them."""
    writer, last = write_trace(problem, rng, noise), str(problem.metadata["start"])
    planned = next(writer)
    while planned is not None:
        thought, code = planned
        result = yield f"{thought}:\n```python\n{code}\n```"
        last = result.stdout.strip() or last
        planned = writer.send(result.stdout.strip())
    yield f"\\boxed{{{answer_from(last, problem.metadata['ask'])}}}"


@dataclass(frozen=True)
class Stage:
    """One stage of the cold start: how many traces to imitate, for how many steps of AdamW (warm-up, then cosine)."""

    traces: int
    steps: int
    learning_rate: float
    noise: TraceNoise
    task: Mapping[str, object] = field(default_factory=dict)  #: options of `draw_problems`: steps, ask


#: First the skill, on traces that are mostly good; then bad habits, so that there is something to unlearn.
STAGES = (
    Stage(20000, 3000, 3e-3, TraceNoise(bad_call=0.3, recover=0.6)),
    Stage(5000, 300, 1e-3, TraceNoise(bad_call=0.5, recover=0.5, invalid=0.5)),
)


def cold_start(folder: Path = TINY_FOLDER, stages: Sequence[Stage] = STAGES, batch: int = 32, seed: int = 0) -> Policy:
    """Make the tiny policy: tokenizer, traces, supervised training on policy tokens; saved to ``folder``."""
    torch.set_num_threads(1)
    protocol = load_protocol()
    with Sandbox() as sandbox:
        codes = [code for symbol in "+-*" for code in (f"print(5{symbol}3)", f"5{symbol}3", f"print(5{symbol}3")]
        codes += ["print(5+/3)", "print(5-/3)", "print(5*/3)"]
        thoughts = ["Step 1", *(f"Step 2{test}" for test in ("", ", even", ", odd", ", over 500", ", not over 500"))]
        turns = [f"{thought}:\n```python\n{code}\n```" for thought in thoughts for code in codes]
        with sandbox.session() as session:
            results = [protocol.tool_text(session.run(code)) for code in codes]
        chat = ["user\n", "assistant\n", "\\boxed{", "\\boxed{even}", "\\boxed{odd}"]
        frames = [*40 * turns, *200 * results, *500 * chat]
        problems = draw_problems(stages[0].traces, "train", seed=1_000_003 + seed)
        asked = [*problems[:2000], *draw_problems(200, "train", seed=seed, ask="parity")]
        tokenizer = train_tokenizer([problem.question for problem in asked] + frames)
        policy = Policy(tiny_model(tokenizer, seed), tokenizer, "tiny")
        losses = [learn_stage(policy, stage, number, batch, seed, sandbox) for number, stage in enumerate(stages)]
    policy.save(folder)
    record = {"stages": [asdict(stage) for stage in stages], "batch": batch, "seed": seed, "losses": losses}
    Path(folder, "cold_start.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return policy


def learn_stage(policy: Policy, stage: Stage, number: int, batch: int, seed: int, sandbox: Sandbox) -> float:
    """One stage of supervised training on traces of 'branching', ``batch`` a step; each ``number`` has other problems.

    Returns the mean loss of the last 32 steps, in nats a policy token.
    """
    rng, chat = random.Random(seed + 1000 * number), Chat(policy, load_protocol())
    problems = draw_problems(stage.traces, "train", seed=1_000_003 * (number + 1) + seed, **stage.task)
    bar = tqdm(problems, desc=f"stage {number + 1}: traces")
    traces = [make_trace(problem, write_turns(problem, rng, stage.noise), chat, sandbox) for problem in bar]
    traces.sort(key=lambda trace: len(trace.token_ids))
    del traces[len(traces) // batch * batch :]  # whole batches only, as when the shipped policy was made
    label = f"stage {number + 1}: imitation"
    losses = imitate(policy, traces, stage.steps, stage.learning_rate, batch, rng=rng, label=label)
    return round(mean(losses[-32:]), 4)


_BASE = STAGES[-1].noise  # the shipped policy's own habits
_WEAK = replace(_BASE, bad_call=0.7, recover=0.3)
_BROKEN_GUESSES = replace(_BASE, bad_call=0.6, recover=0.3, invalid=0.8, skip=0.15)
_LONG = ({"steps": 5}, {"max_turns": 9, "max_context": 512})
_PARITY = {"ask": "parity"}


@dataclass(frozen=True)
class Regime:
    """A start, and a variant of the task."""

    special: str  #: what is special here
    noise: TraceNoise  #: the habits that its starting policy imitates
    task: dict = field(default_factory=dict)  #: options of the task ``branching``
    changes: dict = field(default_factory=dict)  #: of the training configuration


REGIMES: dict[str, Regime] = {
    "no_broken": Regime("bad calls run, and print something wrong", replace(_BASE, invalid=0.0)),
    "all_broken": Regime("every bad call is broken", replace(_BASE, invalid=1.0)),
    "weak": Regime("few right answers at the start", _WEAK),
    "strong": Regime("mostly right at the start", replace(_BASE, bad_call=0.2)),
    "long": Regime("five steps instead of three", _BASE, *_LONG),
    "hopeless": Regime("five steps, hardly ever right", _WEAK, *_LONG),
    "guess": Regime("even or odd: half of all guesses are right", replace(_BASE, skip=0.15), _PARITY),
    "guess_broken": Regime("guesses pay, and most bad calls are broken", _BROKEN_GUESSES, _PARITY),
}


def load_regime(name: str) -> Regime:
    """A regime by name."""
    if name not in REGIMES:
        raise ValueError(f"unknown regime {name!r}; known: {', '.join(REGIMES)}")
    return REGIMES[name]


def regime_policy(name: str, folder: Path | None = None) -> Path:
    """The folder of a regime's starting policy; made if it is not there yet (a minute or two, fixed seeds)."""
    regime = load_regime(name)
    made_of = repr(regime).encode() + (TINY_FOLDER / "model.safetensors").read_bytes()
    path = (folder or results_folder() / "policies") / f"{name}-{hashlib.sha256(made_of).hexdigest()[:8]}"
    if not path.exists():
        policy = load_policy(TINY_FOLDER, device="cpu")
        # Imitated long enough for the old habits to go; the skill stays.
        stage = Stage(2500, 300, 1e-3, regime.noise, regime.task)
        with Sandbox() as sandbox:
            learn_stage(policy, stage, number=9, batch=32, seed=0, sandbox=sandbox)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            policy.save(Path(scratch) / "policy")
            if not path.exists():  # another process may have been faster
                os.rename(Path(scratch) / "policy", path)
    return path
