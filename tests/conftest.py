"""Small real models, made here: every test runs a real transformers model with a real tokenizer."""

from __future__ import annotations

import os
import threading
from pathlib import Path

if "GTPO_REAL_MODEL" not in os.environ:  # the ordinary tests ask no hub, so that none makes them wait
    os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from browser import Browser
from hypothesis import settings
from small_models import save_model

from gtpo_mini.policy.load import load_policy
from gtpo_mini.policy.model import Policy
from gtpo_mini.sandbox import Sandbox
from gtpo_mini.types import ExecutionResult, Problem, StopReason, Trajectory, Turn

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)  # on a busy machine any example may take long
settings.load_profile("untimed")


def pytest_collection_modifyitems(config, items):
    """What takes minutes runs only where asked for: `pytest -m slow`."""
    if "slow" not in (config.option.markexpr or ""):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: pytest -m slow"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture
def random_policy(model_folder) -> Policy:
    return load_policy(model_folder, device="cpu")


@pytest.fixture
def tiny_policy() -> Policy:
    return load_policy("tiny", device="cpu")


@pytest.fixture(scope="session")
def sandbox():
    with Sandbox() as box:
        yield box


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    watchdog = threading.Timer(300, browser.process.kill)  # a browser that hangs must not hang the tests
    watchdog.start()
    yield browser
    watchdog.cancel()
    browser.process.kill()
    browser.process.communicate()


@pytest.fixture
def make_trajectory():
    """A trajectory from (policy ids, tool ids, Turn) triples, with a prompt of two tokens."""

    def make(*turns: tuple[list[int], list[int], Turn], answer: str | None = "1", prompt=(5, 6)) -> Trajectory:
        ids, mask, index = list(prompt), [0] * len(prompt), [-1] * len(prompt)
        for number, (policy_ids, tool_ids, _) in enumerate(turns):
            ids += policy_ids + tool_ids
            mask += [1] * len(policy_ids) + [0] * len(tool_ids)
            index += [number] * (len(policy_ids) + len(tool_ids))
        return Trajectory(
            problem=Problem("p", "1?", "1"),
            token_ids=tuple(ids),
            prompt_length=len(prompt),
            loss_mask=tuple(mask),
            turn_index=tuple(index),
            logprobs=tuple(-1.0 * m for m in mask),
            turns=tuple(turn for _, _, turn in turns),
            stop=StopReason.ANSWER,
            answer=answer,
        )

    return make


@pytest.fixture
def good_call() -> Turn:
    return Turn("call", code="print(1)", result=ExecutionResult(ok=True, stdout="1\n"))
