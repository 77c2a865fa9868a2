"""A cold start on traces: from a file, or from the model's own rollouts that are right."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from qwen_like import TEMPLATE

from gtpo_mini.__main__ import main
from gtpo_mini.experiments.evaluate import evaluate
from gtpo_mini.policy.load import load_policy
from gtpo_mini.rollout.chat import Chat
from gtpo_mini.rollout.engine import RolloutEngine
from gtpo_mini.rollout.protocol import load_protocol
from gtpo_mini.tasks.task import load_task
from gtpo_mini.train import imitation
from gtpo_mini.train.config import load_profile
from gtpo_mini.train.imitation import imitate, read_traces, sample_traces, write_traces

TRACE = {"question": "6 * 7?", "answer": "42", "turns": ["So:\n```python\nprint(6 * 7)\n```", "\\boxed{42}"]}
CALL = '<tool_call>\n{"name": "python", "arguments": {"code": "print(6 * 7)"}}\n</tool_call>'


@pytest.fixture
def engine(tiny_policy, sandbox) -> RolloutEngine:
    return RolloutEngine(tiny_policy, load_protocol(), sandbox, load_profile("cpu").train.sampling())


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_policy_that_imitates_its_own_right_rollouts_makes_fewer_bad_calls(engine, sandbox):
    policy, settings = engine.policy, engine.settings
    task, held_out = load_task("branching", "train"), load_task("branching", "test")
    before = evaluate(policy, held_out, settings, problems=192, sandbox=sandbox)
    traces = sample_traces(engine, task, problems=192, samples=4, keep=2)
    assert all(task.grade(t.problem, t.answer) and not any(x.invalid_call for x in t.turns) for t in traces)
    assert all(any(turn.calls_tool for turn in t.turns) for t in traces)
    ids = [t.problem.id for t in traces]
    assert len(traces) > 50 and max(map(ids.count, ids)) == 2
    losses = imitate(policy, traces, steps=40, learning_rate=1e-3, batch=16)
    after = evaluate(policy, held_out, settings, problems=192, sandbox=sandbox)
    assert losses[-1] < losses[0]
    assert after.behaviour["rollout/invalid_calls"] < 0.7 * before.behaviour["rollout/invalid_calls"]
    assert after.accuracy > before.accuracy + 0.1


def test_traces_survive_a_file(engine, sandbox, tmp_path):
    traces = sample_traces(engine, load_task("branching", "train"), problems=24, samples=4)
    write_traces(tmp_path / "traces.jsonl", traces)
    again = read_traces(tmp_path / "traces.jsonl", engine.chat, sandbox)
    assert [[turn.text for turn in t.turns] for t in again] == [[turn.text for turn in t.turns] for t in traces]
    assert [[turn.result for turn in t.turns] for t in again] == [[turn.result for turn in t.turns] for t in traces]
    assert [t.answer for t in again] == [t.answer for t in traces]


def test_a_trace_of_tool_calls_is_framed_by_the_chat_template(random_policy, sandbox, tmp_path):
    random_policy.tokenizer.chat_template = TEMPLATE
    chat = Chat(random_policy, load_protocol("hermes"))
    path = write(tmp_path / "t.jsonl", {**TRACE, "turns": [CALL, "\\boxed{42}"]})
    (trace,) = read_traces(path, chat, sandbox)
    assert trace.turns[0].result.stdout == "42\n" and trace.answer == "42"
    text = random_policy.tokenizer.decode(trace.token_ids)
    assert text.endswith("\\boxed{42}<|im_end|>") and "<tool_response>\n42\n</tool_response>" in text
    mine = [i for i, m in zip(trace.token_ids, trace.loss_mask, strict=True) if m]
    assert random_policy.tokenizer.decode(mine) == f"{CALL}<|im_end|>\\boxed{{42}}<|im_end|>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turns": "print(1)"}, "list of texts"),
        ({"turns": ["", "\\boxed{1}"]}, "none of them empty"),
        ({"turns": ["```python\nprint(1)\n```"]}, "the last must answer"),
        ({"turns": ["\\boxed{1}", "\\boxed{1}"]}, "must make a call"),
        ({"turns": ["So.", "Well."]}, "must make a call"),
        ({"turns": [*TRACE["turns"][:1] * 20, "\\boxed{42}"]}, "context holds 100"),
        ({"answer": None}, "no 'answer'"),
        ({"answer": "43"}, "it answers '42', but its 'answer' is '43'"),
        ({"turns": [TRACE["turns"][0] + "\nIt is 42.", "\\boxed{42}"]}, "text after a call"),
    ],
)
def test_a_broken_trace_is_named_by_its_line(engine, sandbox, tmp_path, change, message):
    path = write(tmp_path / "t.jsonl", TRACE, {**TRACE, **change})
    with pytest.raises(ValueError, match=message) as caught:
        read_traces(path, engine.chat, sandbox, context=100)
    assert "2" in str(caught.value).replace(str(path), "")


def test_where_nothing_is_right_the_reasons_are_counted(random_policy, sandbox):
    engine = RolloutEngine(
        random_policy, load_protocol(), sandbox, load_profile("cpu").train.sampling(max_context=None)
    )
    with pytest.raises(ValueError, match=r"none of 8 rollouts \(8 with no call\).*--traces"):
        sample_traces(engine, load_task("branching", "train"), problems=4, samples=2)


def test_passes_of_few_tokens_give_the_same_update(engine, sandbox, tmp_path):
    long = {**TRACE, "turns": [*TRACE["turns"][:1] * 3, "\\boxed{42}"]}
    traces = read_traces(write(tmp_path / "t.jsonl", TRACE, long, TRACE | {"question": "7 * 6?"}), engine.chat, sandbox)
    found = []
    for budget in (None, 1):
        policy = load_policy("tiny", device="cpu")
        loss = imitate(policy, traces, 2, 1e-3, batch=3, tokens_per_pass=budget, rng=random.Random(0))
        found.append((torch.tensor(loss), policy.model.get_input_embeddings().weight))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)


def test_from_the_command_line_to_a_policy_that_trains_on(tmp_path, capsys):
    own = write(tmp_path / "own.jsonl", TRACE, TRACE | {"question": "7 * 6?"})
    small = ["--task", f"jsonl:{own}", "--max-turn-tokens", "16", "--max-context", "320"]
    words = ["imitate", *small, "--traces", str(own), "--steps", "3", "--lora-rank", "4", "--output"]
    assert main([*words, str(tmp_path / "cold")]) == 0
    shown = capsys.readouterr().out
    assert "done: 2 traces" in shown and f"gtpo-mini merge {tmp_path / 'cold'}" in shown
    record = json.loads((tmp_path / "cold" / "imitation.json").read_text())
    assert len(record["losses"]) == 3 and record["traces"] == 2 and record["commit"]
    assert main([*words, str(tmp_path / "cold")]) == 2 and "is there already" in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "cold" / "policy"), "--output", str(tmp_path / "start")]) == 0
    assert "2 traces of the task traces of own.jsonl" in (tmp_path / "start" / "README.md").read_text()
    steps = ["--steps", "1", "--problems-per-step", "2", "--group-size", "2"]
    assert main(["train", "--model", str(tmp_path / "start"), *small, *steps]) == 0
    assert main(["imitate", *small, "--traces", str(tmp_path / "none"), "--output", str(tmp_path / "x")]) == 2
    assert main(["imitate", *small, "--traces", str(own), "--steps", "0", "--output", str(tmp_path / "x")]) == 2
    assert main(["imitate", *small, "--batch", "0", "--output", str(tmp_path / "y")]) == 2
    assert "--batch 0" in capsys.readouterr().err and not (tmp_path / "y").exists()
    assert main(["train", "--model", str(tmp_path / "cold" / "policy"), *small, *steps]) == 2
    assert "gtpo-mini merge" in capsys.readouterr().err
    assert main(["train", *small, *steps, "--output", str(tmp_path / "cold")]) == 2
    assert "holds a cold start" in capsys.readouterr().err


def test_no_trace_is_left_out_and_a_loss_that_is_not_finite_stops(engine, sandbox, tmp_path, monkeypatch):
    rows = [{**TRACE, "turns": [*TRACE["turns"][:1] * n, "\\boxed{42}"], "id": n} for n in range(1, 6)]
    traces = read_traces(write(tmp_path / "t.jsonl", *rows), engine.chat, sandbox)
    seen = set()

    def spy(policy, batch, tokens_per_pass):
        seen.update(trace.problem.id for trace in batch)
        assert len(batch) <= 2
        return math.inf if len(seen) == 5 else 0.0

    monkeypatch.setattr(imitation, "_backward", spy)
    with pytest.raises(ValueError, match=r"loss inf.*learning_rate"):
        imitate(engine.policy, traces, 100, 1e-3, batch=2)
    assert seen == {"1", "2", "3", "4", "5"}
