"""docs/own_task.md is run: its task, its credit assignment and its protocol, as a reader would save them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gtpo_mini import TrainConfig, Trainer, load_policy, load_protocol, load_task, sample
from gtpo_mini.cli import main
from gtpo_mini.credit.arms import load_arm
from gtpo_mini.rollout.transcript import load_rollouts
from gtpo_mini.tasks.task import check_task
from gtpo_mini.types import ExecutionResult, Turn

PAGE = (Path(__file__).parents[1] / "docs" / "own_task.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python (\w+\.py)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture
def saved(tmp_path, monkeypatch):
    for name, text in BLOCKS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


def test_each_is_short():
    assert {name: len(text.splitlines()) < 40 for name, text in BLOCKS.items()} == dict.fromkeys(
        ("my_task.py", "my_credit.py", "my_protocol.py"), True
    )


def test_the_task_is_checked_graded_and_cannot_be_farmed(saved, sandbox):
    task = load_task("my_task:task", "test", size=40)
    assert check_task(task).ok
    assert not {p.question for p in task.problems} & {p.question for p in load_task("my_task:task").problems}
    problem = task.problems[0]
    with task.session(sandbox, problem) as session:
        assert session.run("print(target in numbers, len(numbers))").stdout == "False 8\n"
    wrong, right = (Turn("", code="...", result=ExecutionResult(True, text)) for text in ("1, 2\n", problem.answer))
    earned = [turn.progress for turn in task.reward_turns(problem, [wrong, right, right, Turn(problem.answer)])]
    assert earned == [0.0, 1.0, 0.0, 0.0]


def test_task_credit_and_protocol_train_together(saved, tmp_path, monkeypatch):
    policy, task = load_policy("tiny", device="cpu"), load_task("my_task:task", size=16)
    ((rollouts, _),) = sample(policy, task, group_size=4, protocol=load_protocol("my_protocol:Tags"))
    assert len(rollouts) == 4
    config = TrainConfig(load_arm("my_credit:centred"), steps=1, problems_per_step=2, group_size=4, max_turn_tokens=16)
    with pytest.warns(UserWarning):  # the tiny policy was not taught this
        steps = Trainer(policy, task, config, tmp_path / "run", load_protocol("my_protocol:Tags")).train()
    assert steps[0]["step"] == 0 and (tmp_path / "run" / "policy").is_dir()


def test_the_commands_of_the_page(saved, capsys):
    assert main(["check", "my_task:task", "--size", "20"]) == 0
    assert "20 problems, 0 whose gold answer is graded wrong" in capsys.readouterr().out
    small = "--steps 1 --problems-per-step 2 --group-size 2 --max-turn-tokens 8"
    words = f"train --task my_task:task --arm +progress --model tiny --output run --record-rollouts {small}"
    assert main(words.split()) == 0 and main(["view", "run", "--output", "run.html"]) == 0
    assert len(load_rollouts("run/rollouts.jsonl")) == 4
