"""A trained adapter outside of gtpo_mini: plain peft loads it, `merge` makes a plain model; metrics go to trackers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.tracking import GeneralTracker, get_available_trackers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gtpo_mini.__main__ import main
from gtpo_mini.policy.load import TINY_FOLDER, load_policy
from gtpo_mini.tasks.task import load_task
from gtpo_mini.train.config import load_profile
from gtpo_mini.train.merge import model_card
from gtpo_mini.train.trainer import Trainer

SMALL = replace(
    load_profile("cpu").train, steps=2, problems_per_step=2, group_size=4, learning_rate=1e-2, max_turn_tokens=24
)

pytestmark = pytest.mark.filterwarnings("ignore:step")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, sandbox):
    """A run's folder with its adapter, and the policy that was trained."""
    folder = tmp_path_factory.mktemp("run")
    policy = load_policy("tiny", lora_rank=4, device="cpu")
    Trainer(policy, load_task("branching", size=40), SMALL, folder / "r", sandbox=sandbox).train()
    policy.save(folder / "r" / "policy")
    return folder / "r", policy


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=torch.arange(20)[None]).logits


def test_plain_peft_loads_the_adapter(trained):
    folder, policy = trained
    base = AutoModelForCausalLM.from_pretrained(TINY_FOLDER)
    before = logits(base)
    model = PeftModel.from_pretrained(base, folder / "policy")
    assert torch.allclose(logits(model), logits(policy.model), atol=1e-5)
    assert (logits(model) - before).abs().max() > 1e-3
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    assert tokenizer.chat_template == policy.tokenizer.chat_template


def test_merge_writes_a_plain_folder_with_a_card_of_the_run(trained, tmp_path, capsys):
    folder, policy = trained
    assert main(["merge", str(folder / "policy"), "--output", str(tmp_path / "merged")]) == 0
    assert str(tmp_path / "merged") in capsys.readouterr().out
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(plain), logits(policy.model), atol=1e-4)
    merged = load_policy(tmp_path / "merged", device="cpu")
    assert not merged.is_lora and merged.encode("print(6)") == policy.encode("print(6)")
    card = (tmp_path / "merged" / "README.md").read_text()
    header, *_, last, _ = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    for text in ("# tiny_policy, trained by GTPO", "2511.14846", header["commit"], "- steps: 2 of 2", '"gamma": 0.9'):
        assert text in card, text
    assert f"| {last['reward/turn_mean']:.3f} |" in card
    assert str(TINY_FOLDER) not in card  # a folder of this machine


def test_merge_says_what_is_wrong(trained, tmp_path, capsys):
    folder, _ = trained
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "baseless").mkdir()
    (tmp_path / "baseless" / "adapter_config.json").write_text("{}")
    for words, message in (
        ([str(tmp_path), "--output", "new"], "no adapter_config.json there"),
        ([str(TINY_FOLDER), "--output", "new"], "is a whole model already"),
        ([str(tmp_path / "baseless"), "--output", "new"], "merge --base"),
        ([str(folder / "policy"), "--output", str(tmp_path / "full")], "is there already; choose a new folder"),
        ([str(folder / "policy"), "--output", str(tmp_path / "new"), "--base", "no/such-model"], "'no/such-model'"),
    ):
        assert main(["merge", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error:") and len(error.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_merge_without_a_record_says_so(trained, tmp_path):
    import shutil

    folder, _ = trained
    shutil.copytree(folder / "policy", tmp_path / "alone")
    assert main(["merge", str(tmp_path / "alone"), "--output", str(tmp_path / "merged")]) == 0
    assert "No record of the run" in (tmp_path / "merged" / "README.md").read_text()


def test_the_card_of_a_cold_start_and_of_records_that_lack_much():
    cold = {"traces": 7, "task": "branching", "losses": [1.5, 0.25], "command": "imitate <x>", "commit": "abc"}
    card = str(model_card("org/small", [], cold))
    for text in ("base_model: org/small", "7 traces of the task branching", "1.500 to 0.250", "`imitate <x>`"):
        assert text in card, text
    assert "No record of the run" in str(model_card("org/small", [], {"traces": 7}))
    assert "- steps: 0 of" in str(model_card("org/small", [{"kind": "header"}]))


class Kept(GeneralTracker):
    """A tracker of the user's own."""

    name, requires_logging_directory, main_process_only = "kept", False, False

    def __init__(self) -> None:
        super().__init__()
        self.said: list = []

    @property
    def tracker(self):
        return self.said

    def start(self):
        get_logger(__name__).debug("accelerate's own trackers log, W&B's at once; it raises where there is no state")
        self.said.append("start")

    def store_init_configuration(self, values):
        self.said.append(values["credit"]["gamma"])

    def log(self, values, step):
        self.said.append((step, values["reward/outcome"]))

    def finish(self):
        self.said.append("finish")


def test_trackers_get_every_step(sandbox):
    PartialState._reset_state()  # another test may have left one
    kept = Kept()
    one = Trainer(load_policy("tiny", device="cpu"), load_task("branching"), SMALL, sandbox=sandbox, trackers=[kept])
    history = one.train()
    assert kept.said == ["start", 0.9, *((m["step"], m["reward/outcome"]) for m in history), "finish"]


@pytest.mark.skipif("tensorboard" not in map(str, get_available_trackers()), reason="tensorboard is not installed")
def test_tensorboard_files_are_written(tmp_path, sandbox):
    one = Trainer(
        load_policy("tiny", device="cpu"),
        load_task("branching"),
        SMALL,
        tmp_path / "run",
        sandbox=sandbox,
        trackers=["tensorboard"],
    )
    one.train()
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_a_missing_tracker_shows_before_the_first_step(tmp_path, capsys):
    missing = next(n for n in ("wandb", "tensorboard", "aim", "swanlab") if n not in map(str, get_available_trackers()))
    for name, message in ((missing, f"its package is not installed; pip install {missing}"), ("nope", "known: aim")):
        assert main(["train", "--trackers", name, "--output", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
