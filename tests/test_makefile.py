"""The Makefile on a machine that lacks something: one clear message, and no stamp of a half-done install."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    return folder


def fake(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + script, encoding="utf-8")
    path.chmod(0o755)
    return path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, env=environment)


def test_without_a_python_that_fits_it_says_what_to_install(checkout):
    old = fake(checkout / "old-python", "exit 1\n")
    done = make(checkout, "test", f"PYTHON={old.name}")
    assert done.returncode != 0
    assert "no usable Python among: old-python" in done.stderr
    assert "Install Python 3.11, 3.12 or 3.13" in done.stderr
    assert not (checkout / ".venv").exists()


# A stand-in for .venv/bin/python: it logs its arguments, and $BAD names the one that fails.
STAND_IN = 'echo "$*" >> calls.log\ncase "$*" in *"{bad}"*) exit 1;; esac\nexit 0\n'


def test_a_failed_install_leaves_no_stamp_and_is_done_again(checkout):
    python = checkout / ".venv" / "bin" / "python"
    stamp = checkout / ".venv" / "installed"
    fake(python, STAND_IN.format(bad="pip install"))
    done = make(checkout, "lint")
    assert done.returncode != 0
    assert "the install failed" in done.stderr
    assert not stamp.exists()

    fake(python, STAND_IN.format(bad="no such call"))
    assert make(checkout, "lint").returncode == 0
    assert stamp.exists()
    (checkout / "calls.log").unlink()
    assert make(checkout, "lint").returncode == 0
    assert "pip" not in (checkout / "calls.log").read_text(encoding="utf-8")  # installed once only

    newer = stamp.stat().st_mtime + 10
    os.utime(checkout / "pyproject.toml", (newer, newer))
    make(checkout, "lint")
    assert "pip install" in (checkout / "calls.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ("ruff check", "ruff check"),
        ("ruff format", "ruff format"),
        ("pytest --nbmake", "notebooks"),
    ],
)
def test_one_failed_step_fails_make_test_after_all_steps_ran(checkout, bad, name):
    fake(checkout / ".venv" / "bin" / "python", STAND_IN.format(bad=bad))
    done = make(checkout, "test")
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1] == f"make test: FAILED: [{name}]"
    calls = (checkout / "calls.log").read_text(encoding="utf-8")
    for step in ("ruff check .", "ruff format --check .", "-m pytest\n", "--nbmake-kernel=python3 notebooks/"):
        assert step in calls


def test_when_all_pass_the_last_line_says_so(checkout):
    fake(checkout / ".venv" / "bin" / "python", STAND_IN.format(bad="no such call"))
    done = make(checkout, "test")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "make test: lint, format, unit tests and notebooks all passed"
    assert make(checkout, "reproduce").returncode == 0
    assert "-m gtpo_mini reproduce" in (checkout / "calls.log").read_text(encoding="utf-8")
