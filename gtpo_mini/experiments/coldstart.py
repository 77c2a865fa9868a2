"""Starting policies: the shipped tiny ones, each made by a cold start on imperfect traces, and those of the regimes.

A tiny policy is an ordinary Llama model of 0.5 M parameters; it imitates solutions of its family's problems in which
many a step is wrong, so that it starts with reward to gain. A regime's policy is that one after a short imitation of
traces with other habits.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean as mean

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..policy.load import TINY, load_policy
from ..policy.model import Policy
from ..rollout.chat import Chat
from ..rollout.protocol import load_protocol
from ..sandbox import Sandbox
from ..tasks.branching import draw_problems
from ..tasks.habits import Habits
from ..tasks.starts import FAMILIES, Stage, load_regime
from ..tasks.task import load_task
from ..train.config import results_folder
from ..train.imitation import imitate, make_trace
from ..types import Trajectory

_WORD = "[A-Z][a-z]+"  # names, which are to be copied
# It keeps the last message only: the cold start taught the one protocol there is, so instructions and examples would
# only make every prompt four times as long.
_CHAT_TEMPLATE = (Path(__file__).resolve().parents[1] / "assets" / "tiny_chat.jinja").read_text("utf-8").rstrip()


def train_tokenizer(texts: list[str], vocabulary: int = 640, apart: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (any text can be encoded) of at least 259 tokens, one a digit; ChatML template.

    Tokens may span words and lines, so that what every turn repeats costs one token: half the length, twice as fast.
    What the pattern ``apart`` matches shares no token with what stands beside it: it is the same tokens everywhere.
    """
    tokenizer = Tokenizer(models.BPE())
    cuts = [pre_tokenizers.Digits(individual_digits=True)]
    cuts += [pre_tokenizers.Split(Regex(apart), "isolated")] if apart else []
    of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, of_bytes])
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


def cold_start(
    family: str = "branching",
    folder: Path | None = None,
    stages: Sequence[Stage] | None = None,
    batch: int = 32,
    seed: int = 0,
) -> Policy:
    """Make a family's tiny policy: tokenizer, traces, supervised training on policy tokens; saved to ``folder``."""
    torch.set_num_threads(1)
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    made = FAMILIES[family]
    stages = made.stages if stages is None else stages
    with Sandbox() as sandbox:
        if family == "branching":
            tokenizer = train_tokenizer(_branching_texts(stages[0].traces, seed, sandbox))
        else:
            tokenizer = train_tokenizer(_texts(family, stages[0], seed, sandbox), apart=_WORD)
        policy = Policy(tiny_model(tokenizer, seed), tokenizer, made.model)
        losses = [learn_stage(policy, stage, n, batch, seed, sandbox, family) for n, stage in enumerate(stages)]
    folder = folder or TINY[made.model]
    policy.save(folder)
    record = {"family": family, "stages": [asdict(stage) for stage in stages], "batch": batch, "seed": seed}
    Path(folder, "cold_start.json").write_text(json.dumps({**record, "losses": losses}, indent=1) + "\n", "utf-8")
    return policy


def _branching_texts(traces: int, seed: int, sandbox: Sandbox) -> list[str]:
    protocol = load_protocol()
    codes = [code for symbol in "+-*" for code in (f"print(5{symbol}3)", f"5{symbol}3", f"print(5{symbol}3")]
    codes += ["print(5+/3)", "print(5-/3)", "print(5*/3)"]
    thoughts = ["Step 1", *(f"Step 2{test}" for test in ("", ", even", ", odd", ", over 500", ", not over 500"))]
    turns = [f"{thought}:\n```python\n{code}\n```" for thought in thoughts for code in codes]
    with sandbox.session() as session:
        results = [protocol.tool_text(session.run(code)) for code in codes]
    chat = ["user\n", "assistant\n", "\\boxed{", "\\boxed{even}", "\\boxed{odd}"]
    problems = draw_problems(traces, "train", seed=1_000_003 + seed)
    asked = [*problems[:2000], *draw_problems(200, "train", seed=seed, ask="parity")]
    return [problem.question for problem in asked] + [*40 * turns, *200 * results, *500 * chat]


def _texts(family: str, stage: Stage, seed: int, sandbox: Sandbox) -> list[str]:
    """Questions, turns and results of some traces, written by a policy whose tokens are bytes."""
    tokenizer = train_tokenizer([], vocabulary=259)
    chat = Chat(Policy(tiny_model(tokenizer), tokenizer, "bytes"), load_protocol())
    texts = 500 * ["user\n", "assistant\n"]
    few = replace(stage, traces=min(stage.traces, 2000))
    for trace in make_traces(few, seed, random.Random(seed), chat, sandbox, family):
        results = [turn.result for turn in trace.turns if turn.result is not None]
        texts += [trace.problem.question, *(turn.text for turn in trace.turns)]
        texts += map(chat.protocol.tool_text, results)
    return texts


def make_traces(
    stage: Stage, seed: int, rng: random.Random, chat: Chat, sandbox: Sandbox, family: str = "branching"
) -> list[Trajectory]:
    """The traces of a stage, of problems drawn with ``seed``."""
    made, task = FAMILIES[family], load_task(family, size=1, **stage.task)
    problems = tqdm(made.draw(stage.traces, "train", seed=seed, **stage.task), desc=f"{family}: traces")
    return [make_trace(p, made.write(p, rng, stage.noise), chat, sandbox, task) for p in problems]


def learn_stage(
    policy: Policy, stage: Stage, number: int, batch: int, seed: int, sandbox: Sandbox, family: str = "branching"
) -> float:
    """One stage of supervised training on traces of a family's task, ``batch`` a step; each ``number`` has its own.

    Returns the mean loss of the last 32 steps, in nats a policy token.
    """
    rng, chat = random.Random(seed + 1000 * number), Chat(policy, load_protocol())
    traces = make_traces(stage, 1_000_003 * (number + 1) + seed, rng, chat, sandbox, family)
    traces.sort(key=lambda trace: len(trace.token_ids))
    del traces[len(traces) // batch * batch :]  # whole batches only, as when the shipped policy was made
    label = f"stage {number + 1}: imitation"
    losses = imitate(policy, traces, stage.steps, stage.learning_rate, batch, rng=rng, label=label)
    return round(mean(losses[-32:]), 4)


def regime_policy(name: str, folder: Path | None = None) -> Path:
    """The folder of a regime's starting policy; made if it is not there yet (a minute or two, fixed seeds)."""
    regime = load_regime(name)
    base = TINY[FAMILIES[regime.family].model]
    if regime.noise is None:
        return base
    # Imitated long enough for the old habits to go; the skill stays. Steady ideas take longer than noise.
    size = (5000, 600) if isinstance(regime.noise, Habits) else (2500, 300)
    stage = Stage(*size, 1e-3, regime.noise, regime.task)
    made_of = repr((regime, stage)).encode() + (base / "model.safetensors").read_bytes()
    path = (folder or results_folder() / "policies") / f"{name}-{hashlib.sha256(made_of).hexdigest()[:8]}"
    if not path.exists():
        policy = load_policy(base, device="cpu")
        with Sandbox() as sandbox:
            learn_stage(policy, stage, number=9, batch=32, seed=0, sandbox=sandbox, family=regime.family)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            policy.save(Path(scratch) / "policy")
            if not path.exists():  # another process may have been faster
                os.rename(Path(scratch) / "policy", path)
    return path
