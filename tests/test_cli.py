"""The command line as a user has it: own model folder, own problems, and one clear error for each bad input."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from gtpo_mini.__main__ import main
from gtpo_mini.cli import COMMANDS
from gtpo_mini.credit.arms import ARMS
from gtpo_mini.policy.load import load_policy

ROOT = Path(__file__).parents[1]
SMALL = ["--steps", "2", "--problems-per-step", "2", "--group-size", "2", "--max-turn-tokens", "16"]


@pytest.fixture
def own_task(tmp_path) -> str:
    rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(4)]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{path}"


@pytest.mark.filterwarnings("ignore:step")
@pytest.mark.parametrize("options", [[], ["--quantize", "nf4"], ["--lora-rank", "4", "--arm", "grpo"]])
def test_an_own_model_learns_from_own_problems(model_folder, own_task, tmp_path, capsys, options):
    output = tmp_path / "run"
    words = ["train", "--model", str(model_folder), "--task", own_task, "--output", str(output), *SMALL, *options]
    assert main(words) == 0
    assert "done: 2 steps" in capsys.readouterr().out
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["header", "step", "step", "footer"]
    assert lines[0]["arm"] == ("grpo" if "grpo" in options else "gtpo")
    if not options:
        assert load_policy(output / "policy", device="cpu").context_length == 4096
    else:
        assert (output / "policy" / "adapter_model.safetensors").is_file()
        known = ["--task", own_task, "--max-turn-tokens", "8"]
        assert main(["evaluate", "--model", str(output / "policy"), *known]) == 0
        assert main(["evaluate", "--model", str(model_folder), "--adapter", str(output / "policy"), *known]) == 0


def test_evaluate_writes_results_per_problem(own_task, tmp_path, capsys):
    output = tmp_path / "results.json"
    words = ["evaluate", "--task", own_task, "--samples", "2", "--output", str(output), "--max-turn-tokens", "16"]
    assert main(words) == 0
    assert "pass@2" in capsys.readouterr().out
    header, *problems, totals = [json.loads(line) for line in output.read_text().splitlines()]
    assert (
        totals["kind"] == "totals" and header["samples"] == 2 and [len(line["correct"]) for line in problems] == [2] * 4
    )
    assert main(["compare", str(output), str(output)]) == 0
    assert f"{output} minus {output}: +0.000" in capsys.readouterr().out
    assert main(["evaluate", "--task", own_task, "--temperature", "0", "--problems", "2"]) == 0
    assert main(words) == 2 and "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "nope"], "unknown task 'nope'; known: branching"),
        (["--profile", "tpu"], "unknown profile 'tpu'; known: cpu"),
        (["--arm", "ppo"], "unknown arm 'ppo'; known: grpo"),
        (["--normalize", "rollout"], "normalize must be one of group, batch, turn, first, centred, got 'rollout'"),
        (["--gamma", "1.5"], "gamma must be a finite number in [0, 1], got 1.5"),
        (["--group-size", "1"], "group_size=1: must be at least 2"),
        (["--temperature", "0"], "temperature=0.0: must be"),
        (["--model", "no-such-org/no-such-model"], "no-such-org/no-such-model"),
        (["--quantize", "int3"], "quantize='int3'"),
        (["--max-context", "30"], "shorten the question"),
        (["--task", "jsonl:missing.jsonl"], "no such file"),
        (["--device", "cuda:99"], "cuda"),
        (["--device", "nonsense"], "device='nonsense'"),
        (["--lora-rank", "0"], "lora_rank=0: must be at least 1"),
        (["--record-rollouts"], "--output"),
        (["--max-context", "0"], "max_context=0: must be at least 1"),
        (["--clip-low", "2"], "clip_low=2.0: must be in [0, 1]"),
        (["--minibatches", "99"], "minibatches=99: must be at most the 4 rollouts of a step"),
        (["--task", "branchin"], "perhaps 'branching'"),
        (["--protocol", "fence"], "perhaps 'fenced'"),
        (["--output", "/proc/nowhere"], "cannot be made"),
    ],
)
def test_bad_input_gives_one_line_and_no_traceback(options, message, capsys):
    assert main(["train", *SMALL, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.parametrize("words", [["--problems", "-3"], ["--problems", "0"], ["--samples", "0"]])
def test_an_evaluation_of_nothing_is_refused(words, capsys):
    assert main(["evaluate", "--max-turn-tokens", "1", "--max-turns", "1", *words]) == 2
    assert f"{words[0][2:]}={words[1]}: must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--seeds", "0"], ["--processes", "0"], ["--arms", "gtpo", "--seeds", "-1"]])
@pytest.mark.parametrize("command", ["experiment", "search"])
def test_an_experiment_of_nothing_is_refused(command, words, tmp_path, capsys):
    assert main([command, "--output", str(tmp_path / "runs"), *words]) == 2
    error = capsys.readouterr().err
    assert ("processes=0: must be at least 1" if "--processes" in words else "--seeds") in error
    assert not (tmp_path / "runs").exists()


def test_gpu_profiles_say_what_is_missing(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    assert main(["train", "--profile", "t4", *SMALL]) == 2
    assert "profile 't4' needs a CUDA GPU" in capsys.readouterr().err


def test_an_output_folder_is_never_overwritten(tmp_path, own_task, capsys):
    (tmp_path / "metrics.jsonl").write_text("precious\n")
    assert main(["train", "--task", own_task, "--output", str(tmp_path), *SMALL]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == "precious\n"


def test_the_module_runs_as_a_command():
    words = [sys.executable, "-m", "gtpo_mini", "train", "--task", "nope"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2 and done.stderr.strip().startswith("error: unknown task 'nope'")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:step")
@pytest.mark.parametrize("task", ["gsm8k", "reasoning_gym:gsm_symbolic"])
def test_a_real_model_in_nf4_takes_gtpo_steps(task, tmp_path, capsys):
    """Needs GTPO_REAL_MODEL (see the skip message), and for gsm8k GTPO_DATA_DIR or the hub."""
    folder = os.environ.get("GTPO_REAL_MODEL")
    if not folder:
        pytest.skip("set GTPO_REAL_MODEL to the folder that python tests/get_smollm2.py made")
    small = [
        "--steps",
        "2",
        "--problems-per-step",
        "1",
        "--group-size",
        "4",
        "--max-turns",
        "2",
        "--temperature",
        "0.7",
    ]
    words = ["train", "--model", folder, "--task", task, "--quantize", "nf4", "--output", str(tmp_path / "run"), *small]
    assert main([*words, "--max-turn-tokens", "128"]) == 0
    assert "done: 2 steps" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["rollout/calls"] for line in lines[1:3]) > 0  # it uses the tool
    assert all(line["loss/sampler_mismatch"] < 1e-4 for line in lines[1:3])


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_is_there_at_once_and_loads_no_torch(words):
    code = f"import sys\nfrom gtpo_mini.__main__ import main\nmain({words})\n"
    code += "print('LOADED', [name for name in ('torch', 'transformers', 'scipy', 'numpy') if name in sys.modules])"
    done, spent = [], []
    for _ in range(5):  # a busy machine may be slow at times
        begin = time.monotonic()
        done.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT))
        spent.append(time.monotonic() - begin)
    assert "LOADED []" in done[0].stdout and min(spent) < 0.5
    if words[0] == "train":
        titles = [f"{group} options" for group in ("model", "rollout", "credit", "optimiser", "run")]
        assert re.findall(r"\w+ options", done[0].stdout)[-5:] == titles
    else:
        assert all(f"  {name} " in done[0].stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "perhaps 'train'"),
        (["train", "--gama", "0.3"], "perhaps --gamma"),
        (["train", "--arm", "gtp"], "perhaps 'gtpo'"),
        (["train", "--normalize", "grop"], "perhaps 'group'"),
        (["train", "--task", "branchin"], "perhaps 'branching'"),
        (["train", "--protocol", "hermez"], "perhaps 'hermes'"),
        (["evaluate", "--profile", "cp"], "perhaps 'cpu'"),
        (["experiment", "--regime", "hopless", "--output", "runs"], "perhaps 'hopeless'"),
        (["train", "--steps", "many"], "--steps"),
        (["train", "--arm", "no_such_module:credit"], "arm 'no_such_module:credit': cannot be imported"),
        (["train", "--arm", "math:pi"], "arm 'math:pi': is a float"),
        (["compare", "a.jsonl"], "Missing"),
        (["merge", "x"], "--output"),
    ],
)
def test_a_slip_is_one_line_with_what_was_meant(words, message, capfd):
    assert main(words) == 2
    out, error = capfd.readouterr()
    assert out == "" and error.startswith("error: ") and error.count("\n") == 1 and message in error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--arm", "gamma_0.8", "--gamma", "0.3"], replace(ARMS["gtpo"], gamma=0.3)),
        (["--gamma", "0.3", "--arm", "grpo"], replace(ARMS["grpo"], gamma=0.3)),
        (["--arm", "+returns", "--no-returns", "--alpha", "0.25"], replace(ARMS["gtpo"], returns=False, alpha=0.25)),
        (["--arm", "gamma_0.8"], ARMS["gamma_0.8"]),
    ],
)
def test_an_explicit_option_wins_over_the_arm(options, expected, tmp_path, capsys):
    assert main(["train", *SMALL, "--steps", "1", "--output", str(tmp_path / "run"), *options]) == 0
    header = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert header["config"]["credit"] == asdict(expected) and header["config"]["steps"] == 1


def test_an_own_arm_of_the_current_folder_trains_and_the_next_command_works(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def flat(rollouts, correct, group_size):\n"
        "    rows = [[float(right)] * len(r.turns) for r, right in zip(rollouts, correct)]\n    return rows, rows\n"
    )

    def call(*words: str) -> list[str]:
        # As the console script does, without the current folder on the path.
        code = f"import sys; sys.path[:] = [{str(ROOT)!r}, *filter(None, sys.path)]\n"
        code += f"from gtpo_mini.__main__ import main; sys.exit(main({list(words)}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-3:]

    three = call("train", *SMALL, "--arm", "mine:flat", "--output", "run")
    assert [line.partition(":")[0] for line in three] == ["done", "where", "next"]
    header = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert header["arm"] == "mine:flat" and header["config"]["credit"] == "mine:flat"
    three = call(*shlex.split(three[2].removeprefix("next: gtpo-mini ")), "--problems", "2")
    assert three[2].startswith("next: gtpo-mini compare") and (tmp_path / "run" / "after.jsonl").is_file()


def test_one_run_alone_is_drawn_told_and_made_a_page_and_an_own_task_can_be_cut_short(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from gtpo_mini import Problem, Task\n"
        "task = Task('mine', [Problem(str(i), f'{i} + {i}?', str(2 * i)) for i in range(9)])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", "mine:task", "--size", "4"]) == 0
    assert "4 problems" in capsys.readouterr().out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["train", *SMALL, "--output", "run", "--record-rollouts"]) == 0
    opening, *steps, _done, _where, _next = capsys.readouterr().out.splitlines()
    assert opening.startswith("tiny (0.5 M parameters) on branching (2,048 problems): arm gtpo, seed 0; cpu, sandbox")
    assert steps and all(line.startswith(f"step {i}/") and line.endswith(" left") for i, line in enumerate(steps, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        longer = ["--steps", str(len(steps) + 1), "--output", "run", "--record-rollouts", "--resume"]
        assert main(["train", *SMALL, *longer]) == 0
    resumed = capsys.readouterr().out.splitlines()[1]
    assert resumed.startswith("going on from run/checkpoints/step-") and resumed.endswith(f"of {len(steps) + 1}")
    assert main(["plot", "run", "--output", "figures"]) == 0 and Path("figures/side_by_side.svg").is_file()
    assert main(["report", "run", "--output", "pages/run.html"]) == 0
    page = Path("pages/run.html").read_text()
    assert f"{len(steps) + 1} of {len(steps) + 1} steps" in page and "learning_rate" in page and "turn 1" in page
    assert "<script" not in page and not re.search(r"(src|href)=", page.replace("xlink:href", ""))
    assert main(["report", "figures"]) == 2 and "no run there" in capsys.readouterr().err
    capsys.readouterr()
    header, *rest = Path("run/metrics.jsonl").read_text().splitlines()
    Path("run/metrics.jsonl").write_text("\n".join([header, "[]", *rest[1:]]) + "\n")
    capsys.readouterr()
    assert main(["plot", "run"]) == 2
    assert "run/metrics.jsonl: line 2; train --resume" in capsys.readouterr().err
    Path("empty.jsonl").touch()
    assert main(["compare", "empty.jsonl", "empty.jsonl"]) == 2 and "is empty" in capsys.readouterr().err
    assert main(["evaluate", "--model", str(tmp_path)]) == 2 and "holds no config.json" in capsys.readouterr().err
