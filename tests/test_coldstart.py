"""The cold start in small: the same function that makes data/tiny_policy, with fewer traces and steps."""

from __future__ import annotations

import json
import random

import torch

from gtpo_mini.branching import TraceNoise, draw_problems
from gtpo_mini.coldstart import Stage, cold_start, make_trace
from gtpo_mini.loss import token_logprobs
from gtpo_mini.policy import load_policy
from gtpo_mini.protocol import load_protocol


def test_cold_start_writes_a_policy_that_imitates(tmp_path, sandbox):
    for name, steps in (("short", 2), ("long", 80)):
        stages = [Stage(64, steps, 3e-3, TraceNoise()), Stage(64, 2, 1e-3, TraceNoise())]
        cold_start(tmp_path / name, stages, batch=8)
    short, long = (load_policy(tmp_path / name, device="cpu") for name in ("short", "long"))
    rng = random.Random(1)
    problems = draw_problems(16, "test")
    losses = []
    for policy in (short, long):
        traces = [make_trace(p, policy, load_protocol(), sandbox, rng, TraceNoise()) for p in problems]
        with torch.no_grad():
            losses.append(-token_logprobs(policy, traces).mean().item())
    assert losses[1] < 0.7 * losses[0]
    record = json.loads((tmp_path / "long" / "cold_start.json").read_text())
    assert [stage["steps"] for stage in record["stages"]] == [80, 2] and len(record["losses"]) == 2


def test_a_trace_is_built_as_a_rollout_is(tiny_policy, sandbox):
    """Prompt, policy text, tool text, in the protocol's own words, so that the cold start teaches what is asked."""
    protocol, (problem,) = load_protocol(), draw_problems(1)
    trace = make_trace(problem, tiny_policy, protocol, sandbox, random.Random(0), TraceNoise(0.0))
    assert trace.answer == problem.answer and len(trace.turns) == 4
    expected = tiny_policy.encode_chat(protocol.messages(problem))
    for turn in trace.turns:
        assert protocol.read(turn.text).code == turn.code
        expected += tiny_policy.encode(turn.text)
        expected += tiny_policy.encode(protocol.tool_text(turn.result)) if turn.result else []
    assert list(trace.token_ids) == [*expected, tiny_policy.tokenizer.eos_token_id]
    assert not any(turn.invalid_call for turn in trace.turns)
