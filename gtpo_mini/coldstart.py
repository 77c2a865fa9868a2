"""The tiny policy: its tokenizer, its configuration, and its cold start on imperfect traces.

``python -m gtpo_mini coldstart`` makes ``data/tiny_policy`` again. The policy is an ordinary Qwen2 model of
0.4 M parameters; it imitates solutions of the task 'branching' in which about a third of the calls are bad,
so that it starts with reward to gain.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from .branching import TraceNoise, draw_problems, write_trace
from .loss import token_logprobs
from .policy import TINY_FOLDER, Policy
from .protocol import ToolProtocol, load_protocol
from .sandbox import Sandbox
from .types import Problem, StopReason, Trajectory, Turn

# The instructions of the protocol never change here, so the template leaves the system message out: the
# cold start teaches them, and the prompt stays a third as long.
_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: list[str], vocabulary: int = 640) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (any text can be encoded), one token a digit, ChatML template.

    Args:
        texts: to learn merges from.
        vocabulary: most tokens, special ones included; at least 259.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=_CHAT_TEMPLATE
    )


def tiny_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Qwen2ForCausalLM:
    """The tiny policy before training: 3 layers of width 96, tied embeddings."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=3,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_trace(
    problem: Problem, policy: Policy, protocol: ToolProtocol, sandbox: Sandbox, rng: random.Random, noise: TraceNoise
) -> Trajectory:
    """One imperfect solution as a trajectory, its calls really run; built from ids exactly as a rollout is."""
    prompt = policy.encode_chat(protocol.messages(problem))
    ids, mask, index, turns = list(prompt), [0] * len(prompt), [-1] * len(prompt), []

    def append(new_ids: list[int], is_policy: int) -> None:
        ids.extend(new_ids)
        mask.extend([is_policy] * len(new_ids))
        index.extend([len(turns)] * len(new_ids))

    writer, last = write_trace(problem, rng, noise), ""
    code = next(writer)
    with sandbox.session() as session:
        while code is not None:
            text = f"```python\n{code}\n```"
            append(policy.encode(text), 1)
            result = session.run(code)
            append(policy.encode(protocol.tool_text(result)), 0)
            turns.append(Turn(text, code=code, result=result))
            last = result.stdout.strip() or last
            code = writer.send(result.stdout.strip())
    append([*policy.encode(f"\\boxed{{{last}}}"), policy.tokenizer.eos_token_id], 1)
    turns.append(Turn(f"\\boxed{{{last}}}"))
    return Trajectory(
        problem=problem,
        token_ids=tuple(ids),
        prompt_length=len(prompt),
        loss_mask=tuple(mask),
        turn_index=tuple(index),
        logprobs=tuple([0.0] * len(ids)),
        turns=tuple(turns),
        stop=StopReason.ANSWER,
        answer=last,
    )


def cold_start(
    folder: Path = TINY_FOLDER, traces: int = 20000, steps: int = 2200, batch: int = 32, seed: int = 0,
    learning_rate: float = 4e-3, noise: TraceNoise = TraceNoise(),
) -> Policy:  # fmt: skip
    """Make the tiny policy: tokenizer, traces, supervised training on policy tokens; saved to ``folder``.

    Args:
        folder: where the checkpoint goes.
        traces: how many imperfect solutions to imitate, all of the split "train".
        steps: optimiser steps (AdamW, warm-up then cosine), each on ``batch`` traces.
        noise: how imperfect the traces are.
    """
    torch.set_num_threads(1)
    rng, protocol = random.Random(seed), load_protocol()
    problems = draw_problems(traces, "train", seed=1_000_003 + seed)
    with Sandbox() as sandbox:
        codes = ("print(5)", "print(5", "print(5+/3)")
        seen = [text for code in codes for text in (f"```python\n{code}\n```", protocol.tool_text(sandbox.run(code)))]
        frames = 500 * ["user", "assistant", "\\boxed{}", *seen]
        tokenizer = train_tokenizer([problem.question for problem in problems[:2000]] + frames)
        policy = Policy(tiny_model(tokenizer, seed), tokenizer, "tiny")
        bar = tqdm(problems, desc="traces")
        trajectories = [make_trace(problem, policy, protocol, sandbox, rng, noise) for problem in bar]
    # Traces of one length go together, or half of a batch would be padding.
    trajectories.sort(key=lambda trajectory: len(trajectory.token_ids))
    batches = [trajectories[i : i + batch] for i in range(0, len(trajectories) - batch + 1, batch)]
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=learning_rate, weight_decay=0.01)
    policy.model.train()
    bar = tqdm(range(steps), desc="cold start")
    for step in bar:
        share = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * share
        loss = -token_logprobs(policy, rng.choice(batches)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    policy.model.eval()
    policy.save(folder)
    record = {"traces": traces, "steps": steps, "batch": batch, "seed": seed, "loss": round(loss.item(), 4)}
    Path(folder, "cold_start.json").write_text(json.dumps(record, indent=1) + "\n")
    return policy
