"""A run is killed, interrupted, starved of disk and memory, given broken checkpoints: it goes on to the same bits."""

from __future__ import annotations

import contextlib
import io
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
import warnings
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from gtpo_mini.__main__ import main
from gtpo_mini.credit import ARMS, Credit
from gtpo_mini.policy.load import load_policy
from gtpo_mini.rollout.memory import TrainingStopped
from gtpo_mini.rollout.protocol import FencedProtocol
from gtpo_mini.tasks.task import Task, load_task
from gtpo_mini.train.checkpoint import Checkpoints, random_state, set_random_state
from gtpo_mini.train.config import TrainConfig, load_profile
from gtpo_mini.train.run import MAY_CHANGE
from gtpo_mini.train.trainer import Trainer
from gtpo_mini.types import Problem

SMALL = replace(
    load_profile("cpu").train, steps=4, problems_per_step=2, group_size=4, learning_rate=1e-3, max_turn_tokens=24
)
WORDS = ["train", "--steps", "5", "--problems-per-step", "2", "--group-size", "4", "--learning-rate", "1e-3"]
WORDS += ["--max-turn-tokens", "24", "--checkpoint-every", "1", "--resume", "--output"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:step"),
    pytest.mark.filterwarnings("ignore:checkpoint .* is skipped. the run was stopped"),
]


def trainer(output=None, config=SMALL, policy=None, **options) -> Trainer:
    policy = policy or load_policy("tiny", device="cpu")
    return Trainer(policy, load_task("branching", size=40), config, output, checkpoint_every=1, **options)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def learned(folder: Path) -> list[dict]:
    """All steps and the footer, but for times and memory."""
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in lines(folder)[1:]]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def work(folder: str) -> None:
    """In a process of its own: the command line, from its beginning to its end."""
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    assert main([*WORDS, folder]) == 0


@pytest.fixture(scope="module")
def processes():
    """Processes that have all imports done, so that a start takes a second."""
    context = multiprocessing.get_context("forkserver")
    # It imports in the background: the first process waits for it, and only then is time taken.
    context.set_forkserver_preload(
        ["gtpo_mini.train.trainer", "gtpo_mini.__main__", "gtpo_mini.experiments.experiments"]
    )
    process = context.Process(target=time.sleep, args=(0,))
    process.start()
    process.join()
    return context


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory) -> tuple[Path, float]:
    """A run that nothing stops, and how long it takes in seconds."""
    folder = tmp_path_factory.mktemp("whole")
    begin = time.monotonic()
    process = processes.Process(target=work, args=(str(folder / "run"),))
    process.start()
    process.join()
    assert process.exitcode == 0
    return folder / "run", time.monotonic() - begin


def written(folder: Path) -> set[tuple[str, int]]:
    """Checkpoints that are being written, or were when a process was killed."""
    found = set()
    for path in folder.glob("checkpoints/*.writing"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ctime_ns))
    return found


def kill_once(processes, folder: Path, moment: float, during_writing: bool) -> None:
    """Start or go on, and kill -9 after ``moment`` seconds; or as many after a checkpoint is begun to be written."""
    left = written(folder)
    process = processes.Process(target=work, args=(str(folder),))
    process.start()
    if during_writing:
        while process.is_alive() and written(folder) <= left:
            time.sleep(0.0005)
    time.sleep(moment)
    process.kill()
    process.join()


def survives(processes, whole, folder: Path, kills: int, aimed: int) -> None:
    unbroken, seconds = whole
    rng = random.Random(kills)
    plan = [(rng.uniform(0, seconds), False) for _ in range(kills)] + [(rng.uniform(0, 0.08), True)] * aimed
    rng.shuffle(plan)
    resumed = []
    for moment, during_writing in plan:
        kill_once(processes, folder, moment, during_writing)
        if (folder / "metrics.jsonl").exists() and lines(folder)[-1]["kind"] == "footer":
            resumed += lines(folder)[0].get("resumed", [])
            assert learned(folder) == learned(unbroken)
            shutil.rmtree(folder)  # it came to its end: the next kill needs another run
    process = processes.Process(target=work, args=(str(folder),))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert learned(folder) == learned(unbroken)
    resumed += lines(folder)[0].get("resumed", [])
    assert len(resumed) >= kills // 2
    assert any(note["step"] for note in resumed) or kills < 20
    weights = [(path / "policy" / "model.safetensors").read_bytes() for path in (folder, unbroken)]
    assert weights[0] == weights[1]


def test_a_run_killed_at_random_moments_goes_on_to_the_same_bits(processes, whole, tmp_path):
    survives(processes, whole, tmp_path / "run", kills=2, aimed=1)


@pytest.mark.slow
def test_a_run_killed_at_20_random_moments_goes_on_to_the_same_bits(processes, whole, tmp_path):
    survives(processes, whole, tmp_path / "run", kills=20, aimed=10)


def stopped_after(folder: Path, steps: int, **options) -> None:
    """A run with checkpoints after each of its first steps, without a footer, as a kill leaves it."""
    trainer(folder, replace(SMALL, steps=steps), **options).train()
    path = folder / "metrics.jsonl"
    kept = path.read_text().splitlines()[:-1]
    kept[0] = kept[0].replace(f'"steps": {steps}', f'"steps": {SMALL.steps}')
    path.write_text("\n".join(kept) + "\n" + '{"kind": "step", "step": 3, "reward/out')


@pytest.fixture(scope="module")
def begun(tmp_path_factory, sandbox) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "begun"
    stopped_after(folder, 3, sandbox=sandbox)
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory, sandbox) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "straight"
    trainer(folder, sandbox=sandbox).train()
    return folder


@pytest.fixture
def copy(begun, tmp_path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


SPOILS = {
    "half weights": (lambda c: cut(c / "weights.safetensors"), "weights.safetensors is not as it was written"),
    "one bit": (lambda c: flip(c / "state.pt"), "state.pt is not as it was written"),
    "no state": (lambda c: (c / "state.pt").unlink(), "state.pt is missing"),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), "cannot be read"),
    "half a manifest": (lambda c: cut(c / "manifest.json"), "manifest.json is not readable"),
    "an empty folder": (lambda c: [path.unlink() for path in c.iterdir()], "cannot be read"),
    "other settings": (lambda c: edit(c / "manifest.json", '"gamma": 0.9', '"gamma": 0.8'), "gamma was 0.8 and is 0.9"),
    "another format": (lambda c: edit(c / "manifest.json", '"format": 2', '"format": 9'), "it has format 9"),
    "another step": (lambda c: edit(c / "manifest.json", '"step": 3', '"step": 2'), "it is of step 2"),
    "never finished": (lambda c: c.rename(f"{c}.writing"), "the run was stopped while this was written"),
    "not of this record": (lambda c: shutil.copytree(c, c.with_name("step-000009")), "by its manifest it is of step 3"),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_checkpoint_that_is_not_whole_or_not_of_this_run_is_named_and_skipped(spoil, copy, recwarn):
    last, (change, reason) = copy / "checkpoints" / "step-000003", SPOILS[spoil]
    kept = Checkpoints(last.parent, json.loads((last / "manifest.json").read_text())["identity"])
    change(last)
    assert kept.newest().name == ("step-000003" if spoil == "not of this record" else "step-000002")
    (said,) = [str(w.message) for w in recwarn if "is skipped" in str(w.message)]
    assert reason in said and str(last.parent / "step-0000") in said


@pytest.mark.parametrize("spoil", ["half weights", "never finished", "another step"])
def test_a_run_goes_on_from_the_checkpoint_before_a_broken_one(spoil, copy, straight, sandbox):
    SPOILS[spoil][0](copy / "checkpoints" / "step-000003")
    with pytest.warns(UserWarning, match=r"step-000003.* is skipped"):
        trainer(copy, resume=True, sandbox=sandbox).train()
    assert learned(copy) == learned(straight)
    assert checkpoints(copy) == ["step-000003", "step-000004"]


def test_a_record_that_lost_steps_gets_them_back_from_the_checkpoint(copy, straight, sandbox):
    path = copy / "metrics.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:3]))  # two steps, the second without its end of line
    going_on = trainer(copy, resume=True, sandbox=sandbox)
    going_on.train()
    assert learned(copy) == learned(straight) and len(going_on.history) == 4
    assert [note["step"] for note in lines(copy)[0]["resumed"]] == [3]


@pytest.mark.parametrize("number", [2, 3])
def test_a_damaged_line_is_named_and_comes_back_from_the_checkpoint(number, copy, straight, sandbox):
    path = copy / "metrics.jsonl"
    text = path.read_text().splitlines(keepends=True)
    text[number - 1] = text[number - 1].replace("reward", "\x00", 1)
    path.write_text("".join(text))
    with pytest.warns(UserWarning, match=rf"metrics.jsonl: line {number} is damaged; steps come from the checkpoint"):
        trainer(copy, resume=True, sandbox=sandbox).train()
    assert learned(copy) == learned(straight)
    assert [note["step"] for note in lines(copy)[0]["resumed"]] == [3]  # nothing was done twice


def test_a_lost_record_is_made_again_from_the_checkpoint(copy, straight, sandbox):
    (copy / "metrics.jsonl").unlink()
    trainer(copy, resume=True, sandbox=sandbox).train()
    assert learned(copy) == learned(straight)


def test_where_no_checkpoint_is_whole_the_run_begins_again_and_says_so(copy, straight, sandbox):
    for path in (copy / "checkpoints").iterdir():
        flip(path / "weights.safetensors")
    with pytest.warns(UserWarning, match=r"step-000002 is skipped.*weights.safetensors"):
        trainer(copy, resume=True, sandbox=sandbox).train()
    assert learned(copy) == learned(straight)


def test_a_run_that_goes_on_says_so_in_its_header_and_keeps_its_lines(copy, straight, sandbox):
    before = lines_but_last(copy)
    going_on = trainer(copy, resume=True, sandbox=sandbox)
    assert len(going_on.train()) == 4
    assert lines(copy)[1:4] == before[1:4]
    header = lines(copy)[0]
    assert [note["step"] for note in header.pop("resumed")] == [3] and header == before[0]
    assert learned(copy) == learned(straight)
    text = (copy / "metrics.jsonl").read_text()
    finished = trainer(copy, resume=True, sandbox=sandbox)  # finished: nothing to do, but the weights come back
    assert finished.train(footer=lambda: pytest.fail("a second footer")) == going_on.history
    assert (copy / "metrics.jsonl").read_text() == text
    for a, b in zip(finished.policy.trainable_parameters(), going_on.policy.trainable_parameters(), strict=True):
        assert torch.equal(a, b)


def lines_but_last(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[:-1]]


def test_another_run_in_the_folder_is_an_error_that_names_the_difference(copy, sandbox, model_folder):
    before = (copy / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=r"holds a run already.*--resume"):
        trainer(copy)
    with pytest.raises(ValueError, match=r"gamma was 0.9 and is 1.0"):
        trainer(copy, replace(SMALL, credit=Credit(gamma=1.0)), resume=True, sandbox=sandbox).train()
    with pytest.raises(ValueError, match="policy was"):
        trainer(copy, policy=load_policy("tiny", lora_rank=4, device="cpu"), resume=True, sandbox=sandbox).train()
    other = Task("branching", (Problem("1", "1 + 1?", "2"),))
    with pytest.raises(ValueError, match="task was"):
        Trainer(load_policy("tiny", device="cpu"), other, SMALL, copy, resume=True, sandbox=sandbox).train()
    with pytest.raises(ValueError, match=r"steps=2: the run in .* has 3 already"):
        trainer(copy, replace(SMALL, steps=2), resume=True, sandbox=sandbox).train()
    assert (copy / "metrics.jsonl").read_text() == before
    (copy / "metrics.jsonl").write_text("precious\n")
    with pytest.raises(ValueError, match="does not begin with a run's header"):
        trainer(copy, resume=True, sandbox=sandbox).train()
    assert (copy / "metrics.jsonl").read_text() == "precious\n"
    with pytest.raises(ValueError, match="needs the output folder"):
        trainer(None, resume=True)


CHANGED = {
    **{"credit": ARMS["grpo"], "problems_per_step": 3, "group_size": 2, "minibatches": 2, "clip_low": 0.1},
    **{"clip_high": 0.3, "importance_cap": None, "kl_coefficient": 0.1, "temperature": 0.9, "max_turns": 5},
    **{"max_turn_tokens": 23, "max_context": 300, "seed": 1, "max_output": 500, "select_output": True},
}


@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig)])
def test_every_setting_that_decides_what_is_learned_must_stay(name, copy, sandbox):
    """A new field is in neither list, and fails here until somebody has decided."""
    assert (name in MAY_CHANGE) != (name in CHANGED)
    if name in CHANGED:
        shown = "rewards was 'turn' and is 'trajectory'" if name == "credit" else f"{name} was"
        with pytest.raises(ValueError, match=shown):
            trainer(copy, replace(SMALL, **{name: CHANGED[name]}), resume=True, sandbox=sandbox).train()


@pytest.mark.parametrize("name", [field.name for field in fields(Credit)])
def test_every_part_of_the_credit_must_stay(name, copy, sandbox):
    other = {"rewards": "accuracy", "returns": False, "gamma": 0.8, "normalize": "batch", "alpha": 0.1}
    other |= {"shaping": "potential", "similarity": "structure", "format_penalty": 0.2}
    other |= {"spare_hopeless": True, "progress": 0.5}
    with pytest.raises(ValueError, match=f"{name} was"):
        trainer(copy, replace(SMALL, credit=Credit(**{name: other[name]})), resume=True, sandbox=sandbox).train()


def lenient(problem, answer):
    return problem.answer in answer


class Terse(FencedProtocol):
    instructions = "Use Python."


def test_a_changed_grader_protocol_or_metadata_is_another_run(copy, sandbox):
    def resumed(task=None, protocol=None):
        task = task or load_task("branching", size=40)
        policy = load_policy("tiny", device="cpu")
        Trainer(policy, task, SMALL, copy, protocol, sandbox, checkpoint_every=1, resume=True).train()

    task = load_task("branching", size=40)
    with pytest.raises(ValueError, match="grader was"):
        resumed(replace(task, grader=lenient))
    with pytest.raises(ValueError, match="protocol was"):
        resumed(protocol=Terse())
    with pytest.raises(ValueError, match="task was"):
        resumed(replace(task, problems=tuple(replace(p, metadata={"steps": ()}) for p in task.problems)))
    resumed(replace(task, problems=list(task.problems)))  # the same problems


def test_a_run_that_had_to_make_its_passes_smaller_goes_on_so(tmp_path, sandbox):
    policy = load_policy("tiny", device="cpu")
    Limited(policy, 600)
    with pytest.warns(UserWarning, match="tokens_per_pass goes from 4096"):
        first = trainer(tmp_path / "run", replace(SMALL, steps=1), policy, sandbox=sandbox)
        first.train()
    smaller = first.update.tokens_per_pass
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    second = trainer(tmp_path / "run", replace(SMALL, steps=2), resume=True, sandbox=sandbox)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        second.train()
    assert smaller < 4096 and second.history[1]["update/tokens_per_pass"] == smaller


def test_the_record_is_replaced_in_one_move_never_written_over(copy, sandbox):
    """Who holds the old file open still reads all of it: at no moment was it half a file."""
    path = copy / "metrics.jsonl"
    with path.open() as held:
        before, inode = path.read_text(), path.stat().st_ino
        trainer(copy, resume=True, sandbox=sandbox).train()
        assert held.read() == before
    assert path.stat().st_ino != inode


def test_a_run_that_another_process_is_at_work_on_is_left_alone(processes, tmp_path, sandbox):
    process = processes.Process(target=work, args=(str(tmp_path),))
    process.start()
    while not (tmp_path / "metrics.jsonl").exists():
        assert process.is_alive()
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGSTOP)  # in its first step, for as long as this takes
    try:
        before = (tmp_path / "metrics.jsonl").read_text()
        with pytest.raises(ValueError, match="another process is at work on this run"):
            trainer(tmp_path, resume=True, sandbox=sandbox).train()
        assert (tmp_path / "metrics.jsonl").read_text() == before
    finally:
        process.kill()
        process.join()
    # Its lock went with it, and no step was done: another run may have the folder, and from then on no third one.
    trainer(tmp_path, replace(SMALL, steps=1, credit=Credit(gamma=1.0)), resume=True, sandbox=sandbox).train()
    assert lines(tmp_path)[0]["config"]["credit"]["gamma"] == 1.0 and "resumed" not in lines(tmp_path)[0]
    with pytest.raises(ValueError, match="holds another run"):
        trainer(tmp_path, resume=True, sandbox=sandbox).train()


def test_memory_time_and_learning_rate_may_change_and_that_is_said(copy, sandbox):
    changed = replace(SMALL, steps=5, learning_rate=5e-4, tokens_per_pass=512)
    with pytest.warns(UserWarning, match=r"steps 4 -> 5, learning_rate 0.001 -> 0.0005, tokens_per_pass 4096 -> 512"):
        run = trainer(copy, changed, resume=True, sandbox=sandbox)
        run.train()
    assert run.optimizer.param_groups[0]["lr"] == 5e-4 and len(run.history) == 5
    assert lines(copy)[0]["config"]["steps"] == 5


@pytest.mark.parametrize("changes", [{"minibatches": 2}, {"kl_coefficient": 0.1}, {"lora_rank": 4}])
def test_every_kind_of_run_goes_on_to_the_same_bits(changes, tmp_path, sandbox):
    rank = changes.get("lora_rank")
    config = SMALL if rank else replace(SMALL, **changes)
    for folder, steps in (("a", (4,)), ("b", (2, 4))):
        for n in steps:
            policy = load_policy("tiny", lora_rank=rank, device="cpu")
            one = trainer(tmp_path / folder, replace(config, steps=n), policy, resume=n == 4, sandbox=sandbox)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                one.train()
    assert learned(tmp_path / "a") == learned(tmp_path / "b")


def test_random_states_come_back():
    import random as python_random

    import numpy as np

    def draw() -> tuple:
        return python_random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()

    draw()
    torch.save(random_state(), file := io.BytesIO())
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    first = draw()
    draw()
    set_random_state(state)
    assert draw() == first


def starve(folder: str, size: int) -> None:
    """In a process of its own: from here on the kernel writes no file beyond ``size`` bytes."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    one = trainer(folder, resume=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))
    try:
        one.train()
    except RuntimeError as error:
        Path(folder, "error").write_text(str(error))


def test_a_full_disk_is_one_clear_error_and_leaves_the_last_checkpoint(processes, copy, straight, sandbox):
    """First the weights do not fit, then a line of the metrics."""
    for size, name in ((500_000, "step-000004"), ((copy / "metrics.jsonl").stat().st_size + 500, "metrics.jsonl")):
        process = processes.Process(target=starve, args=(str(copy), size))
        process.start()
        process.join()
        said = (copy / "error").read_text()
        assert f"{name}: " in said and "too large" in said and "free some disk space" in said
        assert checkpoints(copy) == ["step-000002", "step-000003"]
    trainer(copy, resume=True, sandbox=sandbox).train()
    assert learned(copy) == learned(straight)


def test_a_disk_that_fills_at_the_final_policy_loses_nothing(processes, tmp_path, straight, sandbox):
    folder = Path(shutil.copytree(straight, tmp_path / "run"))
    shutil.rmtree(folder / "policy")
    path = folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))  # all steps are done, the end is not
    process = processes.Process(target=starve, args=(str(folder), 500_000))
    process.start()
    process.join()
    text = (folder / "error").read_text()
    assert "policy: " in text and "too large" in text and "free some disk space" in text
    assert not (folder / "policy").exists()
    trainer(folder, resume=True, sandbox=sandbox).train()
    weights = [(run / "policy" / "model.safetensors").read_bytes() for run in (folder, straight)]
    assert learned(folder) == learned(straight) and weights[0] == weights[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("during", ["rollout", "update"])
def test_an_interrupt_saves_the_last_finished_step_and_stops(number, during, tmp_path, straight, sandbox):
    one = trainer(tmp_path / "run", sandbox=sandbox)
    one.run.every = 100
    part, attribute = (one.task, "grade") if during == "rollout" else (one.update, "_apply")
    original, calls = getattr(part, attribute), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == (20 if during == "rollout" else 2):  # in the third step, in the second
            os.kill(os.getpid(), number)
        return original(*arguments)

    object.__setattr__(part, attribute, interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after 2 of 4 steps; the last checkpoint is .*step-000002"):
        one.train()
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    trainer(tmp_path / "run", resume=True, sandbox=sandbox).train()
    assert learned(tmp_path / "run") == learned(straight)


class Limited:
    """A card with room for so many tokens of a pass: more raise what torch raises."""

    def __init__(self, policy, tokens: int) -> None:
        self.policy, self.tokens, self.refused = policy, tokens, 0
        self.forward = policy.hidden_states
        policy.hidden_states = self

    def __call__(self, ids, **how):
        if self.policy.model.training and ids.numel() > self.tokens:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.forward(ids, **how)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_out_of_memory_halves_the_passes_and_teaches_the_same(minibatches, sandbox, recwarn):
    config = replace(SMALL, steps=2, minibatches=minibatches, problems_per_step=4)
    free = trainer(config=config, sandbox=sandbox)
    free.train()
    policy = load_policy("tiny", device="cpu")
    limited = Limited(policy, 600)
    one = trainer(config=config, policy=policy, sandbox=sandbox)
    one.train()
    said = [str(w.message) for w in recwarn if "out of GPU memory" in str(w.message)]
    assert limited.refused and len(said) == 1 and "tokens_per_pass goes from 4096 to" in said[0]
    assert one.history[0]["update/tokens_per_pass"] == one.history[1]["update/tokens_per_pass"] < 4096
    for ours, theirs in zip(one.history, free.history, strict=True):
        assert ours["grad/norm"] == pytest.approx(theirs["grad/norm"], rel=1e-3)
        assert ours["loss/policy"] == pytest.approx(theirs["loss/policy"], abs=1e-4)
    for a, b in zip(policy.trainable_parameters(), free.policy.trainable_parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=0)


def test_a_rollout_that_does_not_fit_stops_the_run_and_names_the_mends(tmp_path, sandbox):
    policy = load_policy("tiny", device="cpu")
    Limited(policy, 20)
    with pytest.raises(TrainingStopped, match=r"one rollout.*gradient_checkpointing.*max_context.*no checkpoint yet"):
        trainer(tmp_path / "run", policy=policy, sandbox=sandbox).train()


def test_rollouts_that_do_not_fit_are_decoded_fewer_at_once(sandbox):
    policy = load_policy("tiny", device="cpu")
    logits = policy.logits

    def limited(hidden):
        if not policy.model.training and hidden.shape[0] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return logits(hidden)

    policy.logits = limited
    with pytest.warns(UserWarning, match="out of GPU memory: 2 rollouts are decoded at once, not 4"):
        one = trainer(config=replace(SMALL, steps=1), policy=policy, sandbox=sandbox)
        one.train()
    free = trainer(config=replace(SMALL, steps=1), sandbox=sandbox)
    free.train()
    assert one.history[0]["reward/outcome"] == free.history[0]["reward/outcome"]


@pytest.mark.parametrize("arm", ["gtpo", "grpo"])
def test_nan_skips_steps_then_stops_with_the_cause_and_keeps_the_last_good_checkpoint(arm, tmp_path, sandbox):
    one = trainer(tmp_path / "run", replace(SMALL, steps=9, credit=ARMS[arm]), sandbox=sandbox)
    apply = one.update._apply

    def poisoned() -> None:
        apply()
        if len(one.history) == 1:  # the second step breaks a weight
            one.policy.trainable_parameters()[3].data[0] = math.nan

    one.update._apply = poisoned
    one.run.every = 2
    with pytest.raises(
        TrainingStopped, match=r"step 4: .* 3 optimiser steps in a row.*the weight .* holds NaN"
    ) as caught:
        one.train()
    assert "step-000002" in str(caught.value) and checkpoints(tmp_path / "run") == ["step-000002"]
    assert [line["update/skipped"] for line in lines(tmp_path / "run")[1:]] == [0, 0, 1, 1, 1]
    assert all(math.isfinite(v) for line in one.history for v in line.values())


def test_a_single_bad_gradient_is_skipped_and_the_run_goes_on(sandbox):
    one = trainer(sandbox=sandbox)
    weight, calls = one.policy.trainable_parameters()[0], []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * math.inf if len(calls) == 2 else gradient

    weight.register_hook(spoil)
    one.train()
    assert [m["update/skipped"] for m in one.history].count(1) == 1
    assert all(bool(torch.isfinite(p).all()) for p in one.policy.trainable_parameters())
