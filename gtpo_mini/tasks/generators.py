"""Problems of reasoning-gym's generators, each graded by its generator's own grader."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

from ..types import Problem
from .grading import generator_accepts

_DRAWS = 8  # draws a wanted problem, at most: small generators repeat themselves
# Generators whose rows have no answer, because many are right, but hold one in their metadata.
_EXAMPLES = {"graph_color": "possible_answer", "propositional_logic": "example_answer"}
_EXAMPLES["rubiks_cube"] = "example_correct_answer"


def generated_problems(generator: str, split: str, size: int = 512, seed: int = 0) -> tuple[Problem, ...]:
    """Up to ``size`` different problems of a generator; train holds no question of the test draw of that seed.

    A few generators (boxnet, rush_hour) know no right answer, only how to check one: their gold answer is empty.

    Raises:
        ValueError: reasoning-gym is not installed; unknown generator; one that cannot be made without settings.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise ValueError(
            f"task 'reasoning_gym:{generator}' needs the package reasoning-gym: pip install 'gtpo-mini[tasks]'"
        ) from error
    known = sorted(set(reasoning_gym.factory.DATASETS) - {"composite"})  # that one mixes others
    if generator not in known:
        raise ValueError(f"task 'reasoning_gym:{generator}': unknown generator; known: {', '.join(known)}")

    def draw(first_seed: int, skip: set[str]):
        rows = reasoning_gym.create_dataset(generator, size=_DRAWS * size, seed=first_seed)
        for index in range(_DRAWS * size):
            row = rows[index]
            if row["question"] not in skip:
                skip.add(row["question"])
                yield Problem(str(index + 1), row["question"].strip(), _gold(generator, row), row)

    test = tuple(islice(draw(seed + 10**6, set()), size))
    if split == "test":
        return test
    return tuple(islice(draw(seed, {problem.metadata["question"] for problem in test}), size))


def _gold(generator: str, row: dict[str, Any]) -> str:
    answer = row["answer"]
    if answer is None:
        answer = row["metadata"].get(_EXAMPLES.get(generator), "")
    return answer if isinstance(answer, str) else json.dumps(answer)


def grade_generated(generator: str, problem: Problem, answer: str) -> bool:
    """True if the generator's own grader gives full marks, or the answer is the gold number."""
    return generator_accepts(generator, problem.metadata, answer)
