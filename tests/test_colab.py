"""The notebooks away from a checkout: the setup cell in an environment that has torch and nothing of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from links import write_links

from gtpo_mini.experiments.colab import ROOT, install, requirements

#: The address that is not known yet stands for a folder.
GIT = {"PATH": "/usr/bin:/bin", "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_VALUE_0": "https://github.com/OWNER/gtpo_mini"}
FOLDERS = ("gtpo_mini", "notebooks", "data/tiny_policy")


def copy_repository(target: Path) -> Path:
    """As it is here now, committed or not, in a repository of its own."""
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)
    return target


def setup_cell(path: Path) -> str:
    return "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][1]["source"])


def test_the_notebooks_hold_the_address_of_pyproject(tmp_path):
    copy_repository(tmp_path)
    assert write_links(tmp_path) == [], "run: python tests/links.py"


def test_a_new_address_goes_into_every_badge_and_setup_cell(tmp_path):
    copy_repository(tmp_path)
    project = tmp_path / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    for address, badge in (("https://github.com/a-team/gtpo.mini", 1), ("https://git.example.org/gtpo", 0)):
        project.write_text(text.replace("https://github.com/OWNER/gtpo_mini", address), encoding="utf-8")
        assert len(write_links(tmp_path)) == len(list((ROOT / "notebooks").glob("*.ipynb")))
        for path in (tmp_path / "notebooks").glob("*.ipynb"):
            first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
            assert first.count("Open in Colab") == first.count(f"a-team/gtpo.mini/blob/main/notebooks/{path.name}")
            assert first.count("Open in Colab") == badge and f"depth 1 {address} " in setup_cell(path)
            assert "OWNER" not in path.read_text(encoding="utf-8")
    project.write_text(text.replace("Repository", "Homepage"), encoding="utf-8")
    with pytest.raises(ValueError, match="Repository"):
        write_links(tmp_path)


def test_what_is_there_stays_as_it_is():
    wanted, constraints = requirements()
    assert {line.partition("==")[0] for line in constraints} == {"torch", "numpy"}
    assert any(line.startswith("transformers") for line in wanted)
    assert not any(line.startswith(("torch", "numpy", "jupyter")) for line in wanted)


def test_a_failed_install_says_what_pip_said(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy"]\noptional-dependencies = {train = ["gtpo-no-such-package==0"]}\n'
    )
    with pytest.raises(RuntimeError, match="gtpo-no-such-package"):
        install(tmp_path)


@pytest.mark.slow
def test_the_setup_cell_runs_where_there_is_only_torch(tmp_path):
    """About two minutes: a new environment gets torch, numpy and IPython, as Colab has them; then the cell."""
    source = copy_repository(tmp_path / "source")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "copy"]):
        subprocess.run([*git, *words], cwd=source, check=True)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    # Not the numpy that pip would choose: it has to stay, although another one would do.
    subprocess.run([python, "-m", "pip", "install", "-q", "torch==2.13.0", "numpy==2.2.6", "ipython"], check=True)
    cell = setup_cell(source / "notebooks" / "00_does_it_run.ipynb")
    script = cell + "\nfrom gtpo_mini.policy.load import load_policy\nprint(load_policy('tiny').name)\n"
    script += "import gtpo_mini, numpy\nprint(numpy.__version__, gtpo_mini.__file__)"
    (tmp_path / "work").mkdir()
    for _ in range(2):  # once more, as after a restart of the kernel
        done = subprocess.run(
            [python, "-c", script],
            cwd=tmp_path / "work",
            env={**GIT, "GIT_CONFIG_KEY_0": f"url.{source}.insteadOf", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert any(line.startswith("gtpo_mini") and "torch 2.13.0" in line for line in lines)
        assert lines[-2] == "tiny" and lines[-1].startswith("2.2.6 ") and "gtpo_mini_source" in lines[-1]
