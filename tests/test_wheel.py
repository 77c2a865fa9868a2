"""A wheel is self-contained: built from a copy of this tree, installed elsewhere, it trains the tiny policy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gtpo_mini"
TINY = ("tiny_facts", "tiny_policy", "tiny_programs")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that no build folder stays in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("gtpo_mini", *(f"data/{name}" for name in TINY), "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data" / "runs").mkdir()
    (folder / "data" / "runs" / "a.jsonl").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    run(*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", ".", cwd=folder)
    (found,) = (folder / "dist").glob("*.whl")
    return found


def test_every_folder_of_the_package_is_listed():
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("*.py")}
    assert sorted(SETTINGS["packages"]) == sorted(folders | {f"gtpo_mini.{name}" for name in TINY})


def test_a_wheel_holds_the_package_its_assets_and_the_tiny_policies_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {path.relative_to(ROOT) for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    tiny = {Path("gtpo_mini", name, path.name) for name in TINY for path in (ROOT / "data" / name).iterdir()}
    assert names == {path.as_posix() for path in wanted | tiny}
    assert any(name.startswith("gtpo_mini/assets/") for name in names)


def test_an_installed_wheel_trains_and_evaluates_in_another_folder(wheel, tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(*pip, "--no-deps", "--target", site, wheel, cwd=tmp_path)
    how = {"cwd": work, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    script = "import gtpo_mini.policy.load as m; print(m.__file__, m.TINY_FOLDER, sep='\\n')"
    module, tiny = map(Path, run(sys.executable, "-c", script, **how).splitlines())
    assert site in module.parents and tiny == site / "gtpo_mini" / "tiny_policy"
    small = ["--task", "branching"]
    command = [sys.executable, "-m", "gtpo_mini", "train", *small, "--steps", "1", "--problems-per-step", "2"]
    run(*command, "--group-size", "4", "--output", "run", **how)
    assert (work / "run" / "policy" / "model.safetensors").is_file()
    steps = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(line["kind"] == "step" and line["rollout/turns"] > 1 for line in steps)
    shown = run(site / "bin" / "gtpo-mini", "evaluate", *small, "--model", "run", "--problems", "4", **how)
    assert "accuracy" in shown


def test_credit_and_sandbox_need_none_of_the_training_packages(wheel, tmp_path):
    """A site of the wheel and its plain dependencies alone: numpy and sympy (which needs mpmath)."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(*pip, "--no-deps", "--target", site, wheel, cwd=tmp_path)
    plain = json.loads(run(sys.executable, "-c", WHERE, cwd=tmp_path))
    for folder in plain:
        (site / Path(folder).name).symlink_to(folder)
    alone = [sys.executable, "-S"]  # without this interpreter's own packages
    how = {"cwd": tmp_path, "PYTHONPATH": str(site)}
    assert json.loads(run(*alone, "-c", PARTS, **how)) == ["42\n", 2, "torch"]
    done = subprocess.run(
        [*alone, "-m", "gtpo_mini", "train"], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **how}
    )
    assert done.returncode == 2 and done.stderr == "gtpo-mini needs tyro: pip install 'gtpo-mini[train]'\n"


#: The folders of numpy, its libraries, sympy and mpmath.
WHERE = """
import json, mpmath, numpy, pathlib, sympy
found = [pathlib.Path(module.__file__).parent for module in (mpmath, numpy, sympy)]
print(json.dumps([str(folder) for folder in (*found, *found[1].parent.glob("numpy.libs"))]))
"""

PARTS = """
import json
import gtpo_mini as gm
from gtpo_mini.types import ExecutionResult
turns = (gm.Turn("call", code="print(6 * 7)"), gm.Turn("42"))
ids = dict(token_ids=(1, 2, 3), prompt_length=1, loss_mask=(0, 1, 1), turn_index=(-1, 0, 1), logprobs=(0.0, 0.0, 0.0))
rollouts = [gm.Trajectory(problem=gm.Problem("1", "?", "42"), turns=turns, stop=gm.StopReason.ANSWER, **ids)] * 2
rewards, advantages = gm.ARMS["gtpo"](rollouts, [True, False], 2)
with gm.Sandbox(workers=1) as sandbox:
    shown = sandbox.run("print(6 * 7)").stdout
try:
    gm.Trainer
except ImportError as error:
    missing = str(error).split(" needs ")[1].split(":")[0]
print(json.dumps([shown, len(advantages), missing]))
"""
