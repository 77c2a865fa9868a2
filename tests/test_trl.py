"""`GTPOTrainer` gives TRL our rollouts and our credit: the turn's advantage on the turn's tokens, and nothing else."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="the extra [trl] is not installed")

from datasets import Dataset
from trl_steps import make

from gtpo_mini import ARMS, Problem, TrainConfig, Turn, load_policy, load_task
from gtpo_mini.rollout.builder import RolloutBuilder
from gtpo_mini.train import trl as ours
from gtpo_mini.train.loss import per_token
from gtpo_mini.train.update import Update
from gtpo_mini.types import StopReason

HERE = Path(__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_turns_advantage_is_on_its_tokens_and_on_no_others():
    builder = RolloutBuilder(Problem("1", "?", "4"), prompt=[9, 9])
    builder.push([1, 2], [-0.1, -0.2])
    builder.push_result([7, 7, 7])
    builder.end_turn(Turn("call", code="print(4)"))
    builder.push([3], [-0.3])
    builder.end_turn(Turn("4"))
    rollout = builder.freeze(StopReason.ANSWER, "4")
    found = ours.turn_advantages([rollout], [[0.5, -2.0]], torch.zeros(1, 8, dtype=torch.long))
    assert found.tolist() == [[0.5, 0.5, 0, 0, 0, -2.0, 0, 0]]


def test_the_gradient_is_our_trainers(tmp_path):
    trainer = make(tmp_path, 16, 1)
    policy, task = load_policy("tiny", device="cpu"), load_task("branching", size=64)
    policy.model = trainer.model
    policy.model.train()
    trainer.current_gradient_accumulation_steps = 1  # as the loop of TRL's base sets it
    questions = [problem.question for problem in task.problems[:2]]
    out = trainer._generate_and_score_completions([{"prompt": question} for question in questions for _ in range(8)])
    rollouts = trainer.rollouts
    correct = [task.grade(rollout.problem, rollout.answer) for rollout in rollouts]
    assert 0 < sum(correct) < 16
    advantages = ARMS["gtpo"](rollouts, correct, 8)[1]
    policy_tokens = (out["completion_mask"] * out["tool_mask"]).bool()
    assert out["advantages"].shape == out["completion_ids"].shape and not out["advantages"][~policy_tokens].any()
    expected = per_token(rollouts, advantages, torch.device("cpu"))[1].tolist()
    assert out["advantages"][policy_tokens].tolist() == pytest.approx(expected)

    def gradient() -> torch.Tensor:
        found = torch.cat([p.grad.flatten() for p in policy.trainable_parameters()])
        policy.model.zero_grad()
        return found

    policy.model.zero_grad()
    trainer.compute_loss(trainer.model, out).backward()
    theirs = gradient()
    config = TrainConfig(group_size=8, problems_per_step=2, max_grad_norm=1e9)
    Update(policy, config, policy.make_optimizer(1e-4))._gradient(rollouts, advantages, range(16), {})
    mine = gradient()
    assert mine.norm() > 0.01 and (theirs - mine).norm() < 1e-5 * mine.norm()


@pytest.mark.parametrize("share", [8, 12])  # 16 rollouts, groups whole in a process; 24, and one lies in both
def test_two_processes_do_what_one_does(tmp_path, share):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    env["PYTHONPATH"] = f"{HERE.parent}:{os.environ.get('PYTHONPATH', '')}"
    script, steps = str(HERE / "trl_steps.py"), "5"
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = [sys.executable, script, str(tmp_path / "one"), str(2 * share), steps]
    # Without GPUs ``accelerate launch`` starts several processes only where it is told that there are some.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    two = [*launch, script, str(tmp_path / "two"), str(share), steps]
    for command in (one, two):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    alone = torch.load(tmp_path / "one" / "rank0.pt")
    ranks = [torch.load(tmp_path / "two" / f"rank{rank}.pt") for rank in (0, 1)]
    steps_of = [rank["seen"][i : i + share] for i in range(0, 5 * share, share) for rank in ranks]
    together = [one for part in steps_of for one in part]
    assert [ids for ids, _ in together] == [ids for ids, _ in alone["seen"]]
    for (_, a), (_, b) in zip(together, alone["seen"], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    for rank in ranks:
        for name, weight in rank["weights"].items():
            torch.testing.assert_close(weight, alone["weights"][name], atol=2e-5, rtol=1e-4)


def test_what_trls_own_loop_made_is_read_turn_by_turn():
    call = {"type": "function", "function": {"name": "python", "arguments": {"code": "print(4)"}}}
    said = {"role": "assistant", "content": "so", "tool_calls": [call]}
    broken = {**said, "tool_calls": [{**call, "function": {"name": "find", "arguments": {"what": "x"}}}]}
    told, error = {"role": "tool", "content": "4"}, {"role": "tool", "content": "{'error': 'no tool'}"}
    completions = [[broken, error, said, told, {"role": "assistant", "content": "4"}], "no messages"]
    out = {
        "completion_ids": torch.tensor([[1, 1, 7, 2, 7, 7, 3], [5, 5, 0, 0, 0, 0, 0]]),
        "tool_mask": torch.tensor([[1, 1, 0, 1, 0, 0, 1], [1] * 7]),
    }
    ids = [[1, 1, 7, 2, 7, 7, 3], [5, 5]]
    first, second = ours.read_rollouts(["?", "?"], completions, ids, out["tool_mask"])
    assert [turn.invalid_call for turn in first.turns] == [True, False, False] and first.code == "print(4)"
    assert [turn.code for turn in first.turns] == ['{"what": "x"}', "print(4)", None]
    assert first.turn_index == (0, 0, 0, 1, 1, 1, 2) and first.loss_mask == (1, 1, 0, 1, 0, 0, 1)
    assert second.token_ids == (5, 5) and len(second.turns) == 1 and not second.turns[0].calls_tool
    rewards, advantages = ARMS["+returns"]([first, second], [1.0, 0.0], 2)
    assert rewards == [[-0.1, 0.0, 1.0], [-0.1]]  # the first turn of the second makes no call
    found = ours.turn_advantages([first, second], advantages, out["completion_ids"]).tolist()
    (a, b, c), (d,) = advantages
    assert found == [pytest.approx([a, a, 0, b, 0, 0, c]), pytest.approx([d, d, 0, 0, 0, 0, 0])]
    masked = ours.read_rollouts(["?", "?"], completions, ids, 0 * out["tool_mask"])  # mask_truncated_completions
    assert masked[0].turns == first.turns and ARMS["+returns"](masked, [1.0, 0.0], 2)[0] == rewards
    assert not ours.turn_advantages(masked, advantages, out["completion_ids"]).any()


def script(model_folder, tmp_path, *reward_funcs, credit=ARMS["grpo_accuracy"], **changes) -> ours.GTPOTrainer:
    args = ours.GRPOConfig(
        str(tmp_path), per_device_train_batch_size=4, num_generations=4, max_steps=1, use_cpu=True, bf16=False,
        max_completion_length=8, report_to=[], save_strategy="no", gradient_checkpointing=False, seed=1, **changes,
    )  # fmt: skip
    rows = Dataset.from_dict({"prompt": ["one two", "three"] * 4})
    how = {"args": args, "train_dataset": rows, "credit": credit}
    return ours.GTPOTrainer(model=str(model_folder), reward_funcs=list(reward_funcs), **how)


@pytest.mark.parametrize("changes", [{}, {"mask_truncated_completions": True}])
def test_it_drops_into_a_script_that_uses_trls_trainer(changes, model_folder, tmp_path):
    """One turn a rollout and no tool: the advantages are GRPO's, for the rewards differ by what all have."""

    def length(completion_ids, **_):
        return [min(len(ids), 8) / 8 for ids in completion_ids]

    trainer = script(model_folder, tmp_path, length, credit=ARMS["gtpo"], **changes)
    score, seen = trainer._generate_and_score_completions, []
    trainer._generate_and_score_completions = lambda inputs: seen.append(score(inputs)) or seen[-1]
    trainer.train()
    lengths = [min(len(rollout.token_ids), 8) / 8 for rollout in trainer.rollouts]
    (expected,) = (ARMS["grpo_accuracy"](trainer.rollouts, lengths, 4)[1],)
    masks = seen[0]["completion_mask"].bool()
    for row, mask, (value,) in zip(seen[0]["advantages"], masks, expected, strict=True):
        assert row[mask].tolist() == pytest.approx([value] * int(mask.sum()), abs=1e-3) and not row[~mask].any()
    assert (not masks.all(1).any()) == bool(changes)  # some run into max_completion_length


def test_a_group_is_where_it_stands_and_what_no_function_scored_has_no_part(model_folder, tmp_path):
    """An environment may give each rollout of a group a text of its own; TRL gives unscored ones advantage 0."""
    trainer = script(model_folder, tmp_path, lambda completions, **_: [1.0, 0.0, None, 0.0])
    out = trainer._generate_and_score_completions([{"prompt": text} for text in ("a", "b", "c", "d")])
    told = [row[mask.bool()][0].item() for row, mask in zip(out["advantages"], out["completion_mask"], strict=True)]
    up, down = math.sqrt(2), -math.sqrt(0.5)  # of the grades 1, 0, 0
    assert told == pytest.approx([up, down, 0, down], abs=1e-3) and not out["advantages"][2].any()
    assert len({(rollout.problem.id, rollout.problem.question) for rollout in trainer.rollouts}) == 1
    assert list(trainer._logs["advantages"]) == pytest.approx(told)  # what `log_completions` shows


def test_a_sum_of_rewards_beyond_1_names_the_functions_and_rounding_does_not(model_folder, tmp_path):
    ones = [lambda completions, **_: [1.0] * len(completions) for _ in range(4)]
    asked = [{"prompt": "a"}] * 4
    with pytest.raises(ValueError, match=r"reward_funcs: summed by reward_weights must lie in \[0, 1\], got 2.0"):
        script(model_folder, tmp_path, *ones[:2])._generate_and_score_completions(asked)
    trainer = script(model_folder, tmp_path, *ones, reward_weights=[0.05, 0.6, 0.15, 0.2])  # 1.0000001 in float32
    trainer._generate_and_score_completions(asked)
    assert trainer._graded == [1.0] * 4


def test_what_a_loop_of_its_own_wrote_between_results_is_a_call():
    masks = torch.tensor([[1, 0, 0, 1, 0, 1]])
    (rollout,) = ours.read_rollouts(["?"], ["only a text"], [[5, 7, 7, 5, 7, 5]], masks)
    assert [turn.calls_tool for turn in rollout.turns] == [True, True, False]
    assert ARMS["+returns"]([rollout], [1.0], 1)[0] == [[0.0, 0.0, 1.0]]


def test_each_generation_of_a_step_draws_anew(tmp_path):
    trainer = make(tmp_path, 8, 1)
    question = load_task("branching", size=64).problems[0].question
    made = []
    for _ in range(2):
        trainer._generate_and_score_completions([{"prompt": question}] * 8)
        made.append([rollout.token_ids for rollout in trainer.rollouts])
    assert made[0] != made[1]


def test_another_version_and_settings_without_meaning_are_refused(tmp_path, monkeypatch):
    for name in ("use_liger_kernel", "use_vllm"):
        with pytest.raises(ValueError, match=f"{name}=True: .*; set it to False"):
            make(tmp_path, 8, 1, **{name: True})
    with pytest.raises(ValueError, match="top_k: our engine goes by temperature and settings; leave it at 0"):
        make(tmp_path, 8, 1, top_k=5)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.17.0")
    with pytest.raises(ImportError, match=r"trl 1.17.0: .* TRL 1.16; pip install 'trl==1.16"):
        importlib.reload(ours)
    monkeypatch.undo()
    importlib.reload(ours)
