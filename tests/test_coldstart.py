"""The cold start in small: the same function that makes data/tiny_policy, with fewer traces and steps."""

from __future__ import annotations

import json
import random

import pytest
import torch

from gtpo_mini.experiments.coldstart import cold_start, regime_policy
from gtpo_mini.experiments.evaluate import evaluate
from gtpo_mini.policy.load import TINY_FOLDER, load_policy
from gtpo_mini.rollout.chat import Chat
from gtpo_mini.rollout.protocol import load_protocol
from gtpo_mini.tasks.branching import KINDS, TraceNoise, draw_problems, write_turns
from gtpo_mini.tasks.habits import Habits, Solver
from gtpo_mini.tasks.starts import FAMILIES, REGIMES, Stage, load_regime
from gtpo_mini.tasks.task import load_task
from gtpo_mini.train.config import load_profile
from gtpo_mini.train.imitation import make_trace
from gtpo_mini.train.loss import token_logprobs


def trace_of(problem, policy, sandbox, rng, noise):
    return make_trace(problem, write_turns(problem, rng, noise), Chat(policy, load_protocol()), sandbox)


def test_cold_start_writes_a_policy_that_imitates(tmp_path, sandbox):
    for name, steps in (("short", 2), ("long", 80)):
        stages = [Stage(64, steps, 3e-3, TraceNoise()), Stage(64, 2, 1e-3, TraceNoise())]
        cold_start("branching", tmp_path / name, stages, batch=8)
    short, long = (load_policy(tmp_path / name, device="cpu") for name in ("short", "long"))
    rng = random.Random(1)
    problems = draw_problems(16, "test")
    losses = []
    for policy in (short, long):
        traces = [trace_of(p, policy, sandbox, rng, TraceNoise()) for p in problems]
        with torch.no_grad():
            losses.append(-token_logprobs(policy, traces).mean().item())
    assert losses[1] < 0.7 * losses[0]
    record = json.loads((tmp_path / "long" / "cold_start.json").read_text())
    assert [stage["steps"] for stage in record["stages"]] == [80, 2] and len(record["losses"]) == 2


def test_a_trace_is_built_as_a_rollout_is(tiny_policy, sandbox):
    """Prompt, policy text, tool text, in the protocol's own words, so that the cold start teaches what is asked."""
    protocol, (problem,) = load_protocol(), draw_problems(1)
    trace = trace_of(problem, tiny_policy, sandbox, random.Random(0), TraceNoise(0.0))
    assert trace.answer == problem.answer and len(trace.turns) == 4
    expected = tiny_policy.encode_chat(protocol.messages(problem))
    for turn in trace.turns:
        assert protocol.read(turn.text).code == turn.code
        expected += tiny_policy.encode(turn.text)
        expected += tiny_policy.encode(protocol.tool_text(turn.result)) if turn.result else []
    assert list(trace.token_ids) == [*expected, tiny_policy.tokenizer.eos_token_id]
    assert not any(turn.invalid_call for turn in trace.turns)


def failed(turns) -> list[bool]:
    return [turn.invalid_call for turn in turns if turn.calls_tool]


def test_noise_decides_which_habits_a_trace_has(tiny_policy, sandbox):
    def traces(noise, **task):
        rng = random.Random(0)
        problems = draw_problems(40, "train", **task)
        return [trace_of(p, tiny_policy, sandbox, rng, noise) for p in problems]

    all_broken = [bad for trace in traces(TraceNoise(0.5, 0.5, invalid=1.0)) for bad in failed(trace.turns)]
    assert 0.35 < sum(all_broken) / len(all_broken) < 0.6
    assert not any(bad for trace in traces(TraceNoise(0.5, 0.5, invalid=0.0)) for bad in failed(trace.turns))
    skipped = traces(TraceNoise(0.0, skip=0.3), ask="parity")
    calls = [len(trace.turns) - 1 for trace in skipped]
    assert min(calls) == 0 and max(calls) == 3
    assert {trace.answer for trace in skipped} == {"even", "odd"}
    right = [trace.answer == trace.problem.answer for trace, n in zip(skipped, calls, strict=True) if n == 3]
    assert right and all(right)


def test_a_wrong_idea_is_held_and_leads_astray_where_its_step_occurs(tiny_policy, sandbox):
    problems = draw_problems(30, "train")
    astray = dict.fromkeys(KINDS, 0)
    for problem in problems:
        assert trace_of(problem, tiny_policy, sandbox, random.Random(0), Habits({})).answer == problem.answer
        for kind in KINDS:
            trace = trace_of(problem, tiny_policy, sandbox, random.Random(0), Habits({kind: 1.0}, broken=0.0))
            assert not any(failed(trace.turns))
            occurs = kind in ("stale", "last") or any(
                kind in (step.test, step.then.symbol, step.otherwise.symbol) for step in problem.metadata["steps"]
            )
            assert occurs or trace.answer == problem.answer, kind
            astray[kind] += trace.answer != problem.answer
    assert min(astray.values()) >= 5, astray


def test_a_solver_keeps_its_ideas_until_it_reconsiders():
    solver = Solver(Habits({"a": 0.5}, revise=1.0), random.Random(3))
    first = [solver.mistakes("a") for _ in range(20)]
    assert len(set(first)) == 1
    solver.reconsiders()
    assert not solver.mistakes("a")
    ideas = [Solver(Habits({"a": 0.5}, revise=0.0), random.Random(i)) for i in range(200)]
    before = [each.mistakes("a") for each in ideas]
    for each in ideas:
        each.reconsiders()
    assert 70 < sum(before) < 130 and [each.mistakes("a") for each in ideas] == before


def test_broken_calls_are_written_again_whole(tiny_policy, sandbox):
    for problem in draw_problems(20, "train"):
        trace = trace_of(problem, tiny_policy, sandbox, random.Random(1), Habits({}, broken=1.0))
        assert trace.answer == problem.answer and failed(trace.turns) == [True, False] * 3


def test_an_idle_call_is_made_twice_and_changes_nothing_else(tiny_policy, sandbox):
    problem = draw_problems(1, "train")[0]
    busy, idle = (
        trace_of(problem, tiny_policy, sandbox, random.Random(1), Habits(mistaken, broken=0.0))
        for mistaken in ({}, {"idle 2": 1.0})
    )
    calls = [[turn.code for turn in trace.turns] for trace in (busy, idle)]
    assert calls[1] == [*calls[0][:2], calls[0][1], *calls[0][2:]] and busy.answer == idle.answer == problem.answer


def test_every_regime_has_problems_that_its_traces_solve(tiny_policy, sandbox):
    for name, regime in REGIMES.items():
        family, task = FAMILIES[regime.family], load_task(regime.family, "test", size=5, **regime.task)
        noise = Habits({}) if regime.family != "branching" else TraceNoise(bad_call=0.0)
        for problem in task.problems:
            turns = family.write(problem, random.Random(0), noise)
            trace = make_trace(problem, turns, Chat(tiny_policy, load_protocol()), sandbox, task)
            assert task.grade(problem, trace.answer), name
            assert len(trace.turns) < regime.changes.get("max_turns", 6)
    with pytest.raises(ValueError, match=r"unknown regime 'easy'.*weak"):
        load_regime("easy")


@pytest.mark.slow
def test_a_regimes_policy_is_made_once_and_has_its_habits(tmp_path, sandbox):
    path = regime_policy("all_broken", tmp_path)
    assert regime_policy("all_broken", tmp_path) == path and [p.name for p in tmp_path.iterdir()] == [path.name]
    settings = load_profile("cpu").train.sampling()
    task = load_task("branching", "test")
    rates = {
        name: evaluate(load_policy(folder), task, settings, problems=128, sandbox=sandbox).behaviour
        for name, folder in (("shipped", TINY_FOLDER), ("all broken", path))
    }
    assert rates["all broken"]["rollout/invalid_calls"] > 1.3 * rates["shipped"]["rollout/invalid_calls"]
