"""The recipes of docs/parts.md, run as they stand there, against arrays of the shapes that the peers document."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from gtpo_mini import gtpo_advantages, turn_returns

PAGE = Path(__file__).parents[1] / "docs" / "parts.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)

#: Two prompts, two responses each, of up to three turns; zeros in the mask are tool output and padding.
MASK = [[1, 1, 0, 0, 1, 0, 1], [1, 0, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0, 0]]
TURNS = [[[0, 1], [4], [6]], [[0], [2, 3]], [[0, 1, 2]], [[1], [3, 4]]]
REWARDS = [[0.0, -0.1, 1.0], [-0.1, 0.0], [1.0], [0.0, 0.0]]
INDEX = np.array(["a", "a", "b", "b"], dtype=object)


@pytest.fixture(scope="module")
def recipes() -> dict:
    names: dict = {}
    for block in CODE:
        exec(block, names)
    return names


def at_tokens(values: list[list[float]]) -> torch.Tensor:
    found = torch.zeros(4, 7)
    for row, (numbers, places) in enumerate(zip(values, TURNS, strict=True)):
        for number, tokens in zip(numbers, places, strict=True):
            found[row, tokens] = number
    return found


def given() -> torch.Tensor:
    """Each turn's reward at its last token."""
    found = torch.zeros(4, 7)
    for row, (numbers, places) in enumerate(zip(REWARDS, TURNS, strict=True)):
        for number, tokens in zip(numbers, places, strict=True):
            found[row, tokens[-1]] = number
    return found


ADVANTAGES = gtpo_advantages(REWARDS, 0.9, groups=[0, 0, 1, 1])


def test_verl(recipes):
    advantages, returns = recipes["gtpo_estimator"](given(), torch.tensor(MASK), INDEX)
    torch.testing.assert_close(advantages, at_tokens(ADVANTAGES))
    torch.testing.assert_close(returns, at_tokens([turn_returns(row, 0.9) for row in REWARDS]))


def test_a_response_without_a_token_is_one_turn_of_nothing(recipes):
    mask = torch.tensor(MASK)
    mask[2] = 0
    advantages, _ = recipes["gtpo_estimator"](given(), mask, INDEX)
    assert not advantages[2].any() and advantages[3].isfinite().all()
    states = [{"example_id": 0, "trajectory": []}, {"example_id": 0, "trajectory": [{"reward": 1.0}]}]
    recipes["credit_steps"](states)
    assert states[1]["trajectory"][0]["advantage"] == pytest.approx(1.0, abs=1e-3)


def test_skyrl(recipes):
    """It passes its own gamma and other settings by name."""
    found, _ = recipes["gtpo_in_skyrl"](
        token_level_rewards=given(), response_mask=torch.tensor(MASK), index=INDEX, gamma=1.0, grpo_norm_by_std=True
    )
    torch.testing.assert_close(found, at_tokens(ADVANTAGES))


def test_verifiers(recipes):
    states = [
        {
            "example_id": int(name == "b"),
            "trajectory": [{"reward": reward or None, "advantage": None} for reward in row],
        }
        for name, row in zip(INDEX, REWARDS, strict=True)
    ]
    recipes["credit_steps"](states)
    for state, expected in zip(states, ADVANTAGES, strict=True):
        assert [step["advantage"] for step in state["trajectory"]] == pytest.approx(expected)


def test_the_rest_of_the_page_holds(recipes):
    assert recipes["advantages"][0][2] > 0 > recipes["advantages"][1][0]
    assert recipes["partial"][0] == 1.0 and 0 < recipes["partial"][1] < 0.5
