"""A task's setup and turn reward: through session, rollout, credit, transcript, page and records; and its faults."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import replace

import pytest

from gtpo_mini import ARMS, ExecutionResult, Problem, Task, TrainConfig, Trainer, Turn, sample
from gtpo_mini.experiments.evaluate import Evaluation
from gtpo_mini.experiments.viewer import rollouts_page
from gtpo_mini.rollout.engine import RolloutEngine, SamplingSettings
from gtpo_mini.rollout.protocol import FencedProtocol, ParsedTurn
from gtpo_mini.rollout.transcript import load_rollouts, transcript
from gtpo_mini.tasks import task as tasks
from gtpo_mini.train.checkpoint import difference, identify

PROBLEMS = tuple(Problem(str(i), "How many? " + "so many " * i, "1", {"secret": 10 + i}) for i in range(3))


class Prints(FencedProtocol):
    """A random model never writes a fence: here any turn of 8 characters is a call that prints what setup defined."""

    stop_character = ""

    def is_complete(self, text: str) -> bool:
        return len(text) >= 8

    def read(self, text: str) -> ParsedTurn:
        return ParsedTurn(code="print(secret)") if len(text) >= 8 else ParsedTurn(answer=text.strip() or None)


def setup(problem: Problem) -> str:
    return f"secret = {problem.metadata['secret']}"


def first_time(problem: Problem, turns) -> float:
    shown = [turn.result is not None and str(problem.metadata["secret"]) in turn.result.stdout for turn in turns]
    return float(shown[-1] and not any(shown[:-1]))


def told(**parts) -> Task:
    return Task("told", PROBLEMS, **{"setup": setup, "turn_reward": first_time, **parts})


def test_setup_runs_first_in_every_session_and_turns_earn_once(random_policy, sandbox):
    engine = RolloutEngine(random_policy, Prints(), sandbox, SamplingSettings(max_turns=3, max_turn_tokens=12, rows=4))
    rollouts = engine.generate(PROBLEMS, group_size=3, seed=1, task=told())
    called = [rollout for rollout in rollouts if rollout.turns[0].code]
    assert len(called) > 4
    for rollout in called:
        secret = f"{rollout.problem.metadata['secret']}\n"
        assert {turn.result.stdout for turn in rollout.turns if turn.result} == {secret}
        assert [turn.progress for turn in rollout.turns] == [1.0] + [0.0] * (len(rollout.turns) - 1)
    with told().session(sandbox, PROBLEMS[2]) as session:
        assert '"<turn 1>", line 1' in session.run("secret / 0").error  # setup is no turn
        assert session.run("import os\nos._exit(0)").ok is False
        assert session.run("print(secret)").stdout == "12\n"  # and it runs again after a turn that was killed
    plain = engine.generate(PROBLEMS, group_size=3, seed=1)
    assert all(turn.progress == 0 for rollout in plain for turn in rollout.turns)
    assert any("NameError" in turn.result.error for rollout in plain for turn in rollout.turns if turn.result)


def test_a_task_without_either_changes_no_bit(random_policy, sandbox):
    engine = RolloutEngine(random_policy, Prints(), sandbox, SamplingSettings(max_turns=3, max_turn_tokens=12))
    plain = Task("plain", PROBLEMS)
    assert engine.generate(PROBLEMS, 2, seed=5) == engine.generate(PROBLEMS, 2, seed=5, task=plain)


def test_credit_adds_progress_only_where_it_is_asked_to(make_trajectory):
    call = Turn("c", code="1", result=ExecutionResult(True))
    turns = [([1], [2], replace(call, progress=0.5)), ([1], [2], call), ([1], [], Turn("end"))]
    pair = [make_trajectory(*turns), make_trajectory(*[(a, b, replace(t, progress=0.0)) for a, b, t in turns])]
    for name in ("gtpo", "grpo", "+returns"):
        rewards, advantages = ARMS[name](pair, [True, True], 2)
        assert rewards[0] == rewards[1] and advantages[0] == advantages[1], name
    rewards, advantages = ARMS["+progress"](pair, [True, True], 2)
    assert rewards == [[0.25, 0.0, 1.0], [0.0, 0.0, 1.0]] and advantages[0][0] > advantages[1][0]
    assert advantages[0][1:] == advantages[1][1:]  # a reward credits its turn and earlier ones
    with pytest.raises(ValueError, match="progress must be"):
        replace(ARMS["gtpo"], progress=-0.1)
    shown = replace(ARMS["grpo"], progress=1.0)(pair, [True, False], 2)[0]
    assert shown == [[0.5, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_transcript_page_and_records_hold_it(random_policy, sandbox, tmp_path):
    task = told(grader=lambda problem, answer: False)
    config = TrainConfig(ARMS["+progress"], steps=1, problems_per_step=3, group_size=3, max_turns=2, max_turn_tokens=12)
    trainer = Trainer(random_policy, task, config, tmp_path, Prints(), sandbox, record_rollouts=True)
    steps = trainer.train()
    rollouts, rewards, _ = trainer.last
    earned = [[turn.progress for turn in rollout.turns] for rollout in rollouts]
    assert sum(map(sum, earned)) > 2 and any(0.5 in row for row in rewards)
    assert steps[0]["rollout/progress"] == pytest.approx(sum(map(sum, earned)) / 9)
    recorded = load_rollouts(tmp_path / "rollouts.jsonl")
    assert [[turn.get("progress", 0) for turn in shown["turns"]] for shown in recorded] == earned
    page = rollouts_page(recorded)
    assert page.count("progress +1.00") == sum(map(sum, earned))
    assert "progress" not in json.dumps(transcript(replace(rollouts[0], turns=rollouts[0].turns[:0]), random_policy))
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["config"]["credit"]["progress"] == 0.5


def test_sample_passes_the_task_on(random_policy, sandbox):
    ((rollouts, _),) = sample(
        random_policy, told(), settings=SamplingSettings(max_turn_tokens=12), protocol=Prints(), sandbox=sandbox
    )
    assert any(rollout.turns[0].progress == 1.0 for rollout in rollouts)


def test_a_changed_setup_or_reward_is_another_run(random_policy):
    mine = identify(random_policy, told(), FencedProtocol(), {})
    assert difference(mine, identify(random_policy, told(), FencedProtocol(), {})) is None
    for other in (told(setup=None), told(turn_reward=lambda problem, turns: 0.0)):
        assert "setup and turn reward" in difference(mine, identify(random_policy, other, FencedProtocol(), {}))


def raises(*_):
    raise KeyError("gone")


FAULTS = [
    ({"setup": raises}, "the setup raised KeyError: 'gone'"),
    ({"setup": lambda problem: 7}, "the setup returned a int, which is no code"),
    ({"setup": lambda problem: "x = 1 / 0"}, "the setup wrote code that does not run: .*ZeroDivisionError"),
    ({"turn_reward": raises}, "the turn_reward raised KeyError: 'gone'"),
    ({"turn_reward": lambda problem, turns: None}, "the turn_reward returned None, which is no finite number"),
    ({"turn_reward": lambda problem, turns: math.nan}, "the turn_reward returned nan, which is no finite number"),
]


@pytest.mark.parametrize(("parts", "message"), FAULTS)
def test_a_fault_of_the_task_names_it_and_its_problem(parts, message, random_policy, sandbox):
    settings = SamplingSettings(max_turns=2, max_turn_tokens=12)
    with pytest.raises(tasks.GraderError, match=f"(?s)task 'told', problem '0': {message}"):
        sample(random_policy, told(**parts), 1, 4, settings=settings, protocol=Prints(), sandbox=sandbox)
    assert sandbox.run("print(1)").stdout == "1\n"  # and the sandbox goes on


@pytest.mark.parametrize("name", ["grader", "setup", "turn_reward"])
def test_a_function_that_hangs_is_an_error_of_the_task(name, monkeypatch, sandbox):
    monkeypatch.setattr(tasks, "_SECONDS", 0.2)
    end, begin = threading.Event(), time.monotonic()
    task = told(**{name: lambda *_: end.wait(20)})
    calls = {
        "grader": lambda: task.grade(PROBLEMS[1], "1"),
        "setup": lambda: task.session(sandbox, PROBLEMS[1]),
        "turn_reward": lambda: task.reward_turns(PROBLEMS[1], [Turn("x")]),
    }
    with pytest.raises(tasks.GraderError, match=f"problem '1': the {name} did not come back within 0.2 seconds"):
        calls[name]()
    assert time.monotonic() - begin < 5
    end.set()


def test_guessing_is_reported_and_taken_off():
    with pytest.raises(ValueError, match=r"task 'coin': guess_rate=1: must be in \[0, 1\)"):
        Task("coin", PROBLEMS, guess_rate=1)


def test_above_guessing():

    found = Evaluation(
        ("1", "2", "3", "4"), ((True,), (True,), (True,), (False,)), ((), (), (), ()), (True,) * 4, {}, 0.5
    )
    assert found.above_guessing == 0.5 and "0.500 above guessing (a guess is right in 50%)" in str(found)
    assert found.record()["above_guessing"] == 0.5
    assert "guessing" not in str(replace(found, guess_rate=0.0))
