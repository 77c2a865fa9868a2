"""A cold start for any policy: supervised training on traces (prompt, code, tool output, answer).

A group without a right rollout teaches nothing. Traces come from a file, or from the model itself: of its rollouts,
those that used the tool and are right. The loss is on policy tokens only, through the protocol that training will use.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..policy.model import Policy
from ..rollout.builder import RolloutBuilder
from ..rollout.chat import Chat
from ..rollout.engine import RolloutEngine
from ..rollout.observation import run_call
from ..rollout.protocol import ToolProtocol
from ..rollout.settings import SamplingSettings
from ..sandbox import Sandbox
from ..tasks.habits import Texts
from ..tasks.rows import load_json_lines
from ..tasks.task import Task
from ..types import Problem, StopReason, Trajectory, Turn
from .config import TrainConfig
from .loss import token_logprobs
from .metrics import run_header

#: A task with how many problems and samples to try, or a file of traces in its place.
Sources = tuple[Task | None, str | None, int, int]


def make_trace(
    problem: Problem,
    turns: Texts,
    chat: Chat,
    sandbox: Sandbox,
    task: Task | None = None,
    settings: SamplingSettings = SamplingSettings(),
) -> Trajectory:
    """A given solution as the trajectory of a rollout that wrote it; its calls are really run.

    ``turns`` yields the policy's text of each turn, and is sent the result of its call, as the policy gets it; the last
    one has no call. The setup of ``task`` runs first; of ``settings``, those of a tool's output hold.
    """
    policy, protocol = chat.policy, chat.protocol
    builder = RolloutBuilder(problem, chat.encode_prompt(problem))
    text = next(turns)
    opened = sandbox.session() if task is None else task.session(sandbox, problem)
    with closing(opened) as session:
        while True:
            parsed = protocol.read(text)
            # Not `Policy.encode`, which is for text of others: the tags of a call may be special tokens.
            ids = policy.tokenizer.encode(text, add_special_tokens=False)
            if not protocol.is_complete(text):  # what ends a turn where the text itself does not
                ids.append(policy.tokenizer.eos_token_id)
            builder.push(ids, [0.0] * len(ids))
            if parsed.code is None:
                builder.end_turn(Turn(text))
                break
            result, told = run_call(session, parsed.code, problem.question, text, settings)
            builder.push_result(chat.encode_result(told))
            builder.end_turn(Turn(text, code=parsed.code, result=result, told=None if told is result else told))
            text = turns.send(told)
    return builder.freeze(StopReason.NO_ANSWER if parsed.answer is None else StopReason.ANSWER, parsed.answer)


def read_traces(
    path: str | Path,
    chat: Chat,
    sandbox: Sandbox,
    context: int | None = None,
    settings: SamplingSettings = SamplingSettings(),
) -> list[Trajectory]:
    r"""Traces of at most ``context`` tokens from a JSON-lines file; a ValueError names the line or id of a broken one.

    A line: ``{"question": "6 * 7?", "answer": "42", "turns": ["```python\nprint(6 * 7)\n```", "\\boxed{42}"]}``.
    Tool output is no part of it: the calls are run here, and shown as ``settings`` say.
    """
    context = min(context or chat.policy.context_length, chat.policy.context_length)
    problems = load_json_lines(Path(path))
    if not problems:
        raise ValueError(f"{path}: holds no traces")
    return [_read_trace(Task(str(path), problems), problem, chat, sandbox, context, settings) for problem in problems]


def _read_trace(
    judge: Task, problem: Problem, chat: Chat, sandbox: Sandbox, context: int, settings: SamplingSettings
) -> Trajectory:
    def check(holds: bool, fault: str) -> None:
        if not holds:
            raise ValueError(f"{judge.name}: the trace with the id (or on the line) {problem.id}: {fault}")

    texts, read = problem.metadata.get("turns"), chat.protocol.read
    whole = isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts)
    check(whole, "'turns' must be a list of texts, none of them empty")
    texts = [text.rstrip() for text in texts]
    early = any(chat.protocol.is_complete(text[:-1]) for text in texts)
    check(not early, "text after a call; a turn ends where its call does, the rest is the next turn")
    *calls, last = [read(text).code is not None for text in texts]
    answered = all(calls) and not last and read(texts[-1]).answer is not None
    check(answered, "every turn but the last must make a call, the last must answer")

    def in_turn() -> Texts:
        for text in texts:
            _ = yield text  # a list's own iterator could not be sent a result

    trace = make_trace(problem, in_turn(), chat, sandbox, settings=settings)
    right = judge.grade(problem, trace.answer)
    check(right, f"it answers {trace.answer!r}, but its 'answer' is {problem.answer!r}")
    check(len(trace.token_ids) <= context, f"{len(trace.token_ids)} tokens, but the context holds {context}")
    return trace


def write_traces(path: str | Path, traces: Sequence[Trajectory]) -> None:
    """Write traces as `read_traces` takes them, to be looked at, edited, and used again."""
    seen: Counter[str] = Counter()
    with Path(path).open("w", encoding="utf-8") as file:
        for trace in traces:
            problem = trace.problem
            seen[problem.id] += 1
            name = problem.id if seen[problem.id] == 1 else f"{problem.id} #{seen[problem.id]}"
            line = {"id": name, "question": problem.question, "answer": problem.answer}
            file.write(json.dumps({**line, "turns": [turn.text for turn in trace.turns]}) + "\n")


def sample_traces(
    engine: RolloutEngine, task: Task, problems: int, samples: int, seed: int = 0, keep: int = 2
) -> list[Trajectory]:
    """Rejection sampling: of the policy's own rollouts, those that are right, called the tool, and whose calls all ran.

    The task's first ``problems`` are tried, ``samples`` times each; at most ``keep`` traces of one problem are kept, no
    two with the same text, so that the easy ones do not crowd out the rest. A ValueError says why there was none.
    """
    rollouts = engine.generate(task.problems[:problems], samples, seed, task=task)
    kept: dict[tuple[str, ...], Trajectory] = {}
    counts, reasons = Counter(), Counter()
    for rollout in rollouts:
        texts = (rollout.problem.id, *(turn.text for turn in rollout.turns))
        if not any(turn.calls_tool for turn in rollout.turns):
            reasons["no call"] += 1
        elif any(turn.invalid_call for turn in rollout.turns):
            reasons["a call that failed"] += 1
        elif not task.grade(rollout.problem, rollout.answer):
            reasons["a wrong answer or none"] += 1
        elif texts not in kept and counts[rollout.problem.id] < keep:
            kept[texts] = rollout
            counts[rollout.problem.id] += 1
    if not kept:
        found = f"{len(rollouts)} rollouts ({', '.join(f'{n} with {reason}' for reason, n in reasons.most_common())})"
        fix = "give more problems or samples, an easier task, or traces of your own (--traces)"
        raise ValueError(f"rejection sampling kept none of {found}; {fix}")
    return list(kept.values())


def imitate(
    policy: Policy,
    traces: Sequence[Trajectory],
    steps: int,
    learning_rate: float,
    batch: int = 32,
    tokens_per_pass: int | None = None,
    rng: random.Random | None = None,
    label: str = "imitation",
) -> list[float]:
    """Supervised training in place: AdamW, a warm-up of up to 100 steps to ``learning_rate``, then a cosine.

    Each step takes at most ``batch`` traces, drawn by ``rng``, in passes of ``tokens_per_pass`` (None: one pass).
    Returns the loss of each, in nats a policy token; one that is not finite is a ValueError, as is a bad setting.
    """
    for name, value in (("steps", steps), ("batch", batch), ("learning_rate", learning_rate), ("traces", len(traces))):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: must be above 0")
    rng, batch = rng or random.Random(0), min(batch, len(traces))
    # Traces of one length go together, or half of a batch would be padding.
    ordered = sorted(traces, key=lambda trace: len(trace.token_ids))
    count = -(-len(ordered) // batch)
    cuts = [i * len(ordered) // count for i in range(count + 1)]  # batches of nearly one size, none left out
    batches = [ordered[begin:end] for begin, end in pairwise(cuts)]
    policy.train_in_float32()
    optimizer = torch.optim.AdamW(policy.trainable_parameters(), lr=learning_rate, weight_decay=0.01)
    policy.model.train()
    losses: list[float] = []
    for step in (bar := tqdm(range(steps), desc=label)):
        share = min(1.0, (step + 1) / min(100, max(1, steps // 3))) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * share
        optimizer.zero_grad()
        losses.append(_backward(policy, rng.choice(batches), tokens_per_pass))
        norm = torch.nn.utils.clip_grad_norm_(policy.trainable_parameters(), 1.0)
        if not math.isfinite(losses[-1]) or not math.isfinite(norm):
            raise ValueError(f"step {step}: loss {losses[-1]}, gradient norm {norm}; take a smaller learning_rate")
        optimizer.step()
        bar.set_postfix(loss=f"{sum(losses[-32:]) / len(losses[-32:]):.3f}")
    policy.model.eval()
    return losses


def _backward(policy: Policy, batch: Sequence[Trajectory], tokens_per_pass: int | None) -> float:
    """Gradients of the mean loss over all policy tokens of a batch; returns that loss."""
    width = max(len(trace.token_ids) for trace in batch)
    size = max(1, tokens_per_pass // width) if tokens_per_pass else len(batch)
    total, whole = sum(sum(trace.loss_mask) for trace in batch), 0.0
    for begin in range(0, len(batch), size):
        part = batch[begin : begin + size]
        share = sum(sum(trace.loss_mask) for trace in part) / total
        loss = -token_logprobs(policy, part).mean() * share
        loss.backward()
        whole += loss.item()
    return whole


def imitate_into(
    folder: Path, policy: Policy, protocol: ToolProtocol, config: TrainConfig, sources: Sources, batch: int
) -> tuple[list[Trajectory], list[float]]:
    """A cold start into a new folder: ``traces.jsonl``, ``policy``, ``imitation.json``; returns traces and losses."""
    task, file, problems, samples = sources
    folder.mkdir(parents=True, exist_ok=True)
    with Sandbox() as sandbox:
        engine = RolloutEngine(policy, protocol, sandbox, config.sampling(rows=64))
        if file is not None:
            traces = read_traces(file, engine.chat, sandbox, config.max_context, engine.settings)
        else:
            traces = sample_traces(engine, task, problems, samples, config.seed)
    write_traces(folder / "traces.jsonl", traces)
    if config.gradient_checkpointing:
        policy.checkpoint_gradients()
    peak, rng = config.learning_rate, random.Random(config.seed)
    losses = imitate(policy, traces, config.steps, peak, batch, config.tokens_per_pass, rng)
    policy.save(folder / "policy")
    source = f"traces of {Path(file).name}" if task is None else task.name
    header = run_header(config, policy.name, source, str(policy.device))
    record = {**header, "protocol": protocol.name, "traces": len(traces), "batch": batch, "losses": losses}
    (folder / "imitation.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return traces, losses
