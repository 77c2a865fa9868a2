"""CUDA graphs need a GPU; what they ask of the engine does not: a recording holds its sizes and its tensors for good.

`Tape` records a step in the same sense: the operations on tensors only, with every number and every address as it was.
So a step that reads something new from Python, or a cache that moved, gives wrong rollouts here as it would there.
"""

from __future__ import annotations

import warnings
import weakref

import pytest
import torch
from small_models import save_model
from test_rollout import OftenCalls, assert_equals_a_fresh_forward, problems
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from gtpo_mini.policy.load import load_policy
from gtpo_mini.rollout.cuda_graph import GraphedSteps
from gtpo_mini.rollout.engine import RolloutEngine, SamplingSettings


class Tape(TorchDispatchMode):
    """The operations of a step, to be done again on the same tensors; only those that it made are kept alive."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple] = []
        self.made: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a GPU cannot record a number that the host waits for")
        found = func(*args, **(kwargs or {}))
        self.done.append((func, *tree_map(self.loosen, (args, kwargs or {})), found))
        self.made.update(map(id, tree_leaves(found)))
        return found

    def loosen(self, x):
        return weakref.ref(x) if isinstance(x, torch.Tensor) and id(x) not in self.made else x

    def play(self, result: torch.Tensor) -> torch.Tensor:
        now: dict[int, torch.Tensor] = {}  # instead of what the recording made

        def swap(x):
            if isinstance(x, weakref.ref):
                x = x()
                assert x is not None, "a recording reads memory that was given back"
            return now.get(id(x), x)

        for func, args, kwargs, found in self.done:
            made = func(*tree_map(swap, args), **tree_map(swap, kwargs))
            now.update((id(old), new) for old, new in zip(tree_leaves(found), tree_leaves(made), strict=True))
        return swap(result)


class Recorder:
    """Records as a GPU would, and counts."""

    def __init__(self, error: float = 0.0, fails: str = "") -> None:
        self.error, self.fails, self.made, self.played = error, fails, 0, 0

    def __call__(self, step):
        if self.fails:
            raise RuntimeError(self.fails)
        self.made += 1
        with Tape() as tape:
            result = step()

        def replay():
            self.played += 1
            return tape.play(result) + self.error

        return replay


def sample(policy, sandbox, recorder, group_size=4, rows=8, protocol=None, **changes):
    settings = SamplingSettings(**{"max_turns": 3, "max_turn_tokens": 60, "rows": rows, **changes})
    engine = RolloutEngine(policy, protocol or OftenCalls(), sandbox, settings)
    engine.graphs = GraphedSteps(recorder) if recorder else None
    return engine.generate(problems(), group_size=group_size, seed=3)


KINDS = [("qwen2", {}), ("llama", {"lora_rank": 4}), ("qwen3", {"lora_rank": 4, "quantize": "nf4"})]


@pytest.mark.parametrize("kind, loading", KINDS, ids=["plain", "lora", "nf4"])
@pytest.mark.parametrize("group_size", [4, 1], ids=["shared prompt", "own prompt"])
def test_recorded_steps_give_the_same_rollouts(kind, loading, group_size, tmp_path, sandbox):
    policy = load_policy(save_model(tmp_path, kind), device="cpu", **loading)
    recorder = Recorder()
    plain = sample(policy, sandbox, None, group_size)
    recorded = sample(policy, sandbox, recorder, group_size)
    assert recorder.made > 1 and recorder.played > 20  # rows were given up, widths grew
    assert [r.token_ids for r in recorded] == [r.token_ids for r in plain]
    for one, other in zip(recorded, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_a_growing_cache_and_refilled_rows_are_recorded_anew(random_policy, sandbox):
    protocol = OftenCalls()
    protocol.code = "print('some words ' * 60)"
    recorder = Recorder()
    rollouts = sample(random_policy, sandbox, recorder, rows=5, protocol=protocol, max_turn_tokens=40)
    assert recorder.played > 20
    assert_equals_a_fresh_forward(random_policy, rollouts)


@pytest.mark.parametrize(
    "recorder, why",
    [(Recorder(fails="operation not permitted"), "not permitted"), (Recorder(error=1.0), "differs from the plain")],
    ids=["cannot record", "records something else"],
)
def test_without_a_good_recording_every_step_is_plain_and_it_is_said_once(random_policy, sandbox, recorder, why):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rollouts = sample(random_policy, sandbox, recorder)
    assert [w for w in caught if "without CUDA graphs" in str(w.message) and why in str(w.message)] == [
        w for w in caught if "CUDA graphs" in str(w.message)
    ] and sum("CUDA graphs" in str(w.message) for w in caught) == 1
    assert recorder.played <= 1
    assert [r.token_ids for r in rollouts] == [r.token_ids for r in sample(random_policy, sandbox, None)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_graphs_give_the_same_rollouts(tmp_path, sandbox):
    policy = load_policy(save_model(tmp_path, "qwen2"), device="cuda", dtype="float32")
    plain = sample(policy, sandbox, None)
    settings = SamplingSettings(max_turns=3, max_turn_tokens=60, rows=8)
    engine = RolloutEngine(policy, OftenCalls(), sandbox, settings)
    recorded = engine.generate(problems(), group_size=4, seed=3)
    assert engine.graphs.works
    assert [r.token_ids for r in recorded] == [r.token_ids for r in plain]
