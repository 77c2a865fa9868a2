"""How a notebook begins, also away from a checkout: an install beside the torch that is there.

The notebooks' setup cell fetches the repository where there is none, and calls `begin`, which needs nothing but Python.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KEEP = ("torch", "numpy")  #: what a notebook service built for its own machines


def begin() -> Any:
    """Begin a notebook: one thread (two on a busy machine were ten times slower), and what is missing is installed.

    Shows the versions. Returns a display for the notebook's answer, which the last cells update.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if Path.cwd().resolve() == ROOT:  # fetched by the setup cell
        os.environ["PYTHONPATH"] = str(ROOT)  # for the processes that train
        if not all(importlib.util.find_spec(name) for name in ("peft", "bitsandbytes", "tyro", "math_verify")):
            install()
            importlib.invalidate_caches()
    import matplotlib
    import torch
    from IPython.display import Markdown, display

    torch.set_num_threads(1)
    matplotlib.rcParams["figure.dpi"] = 80  # of what is shown: notebooks stay small
    print(f"gtpo_mini {importlib.import_module('gtpo_mini').__version__}, torch {torch.__version__}")
    return display(Markdown("*The answer comes here when the last cell has run.*"), display_id=True)


def requirements(root: Path = ROOT) -> tuple[list[str], list[str]]:
    """What to install beside the torch and numpy that are there, and the constraints that keep these as they are."""
    wanted, constraints = [], []
    project = read_project(root)
    for line in [*project["dependencies"], *project["optional-dependencies"]["train"]]:
        name = re.match(r"[\w.-]+", line)[0]
        if name in KEEP and list(importlib.metadata.distributions(name=name)):
            constraints.append(f"{name}=={importlib.metadata.version(name)}")
        else:
            wanted.append(line)
    return wanted, constraints


def install(root: Path = ROOT) -> None:
    """Install what the package needs into the interpreter that runs this, or raise a RuntimeError with pip's words."""
    wanted, constraints = requirements(root)
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        Path(file.name).write_text("\n".join(constraints), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", file.name, *wanted]
        done = subprocess.run(command, text=True, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise RuntimeError(f"pip could not install {', '.join(wanted)} beside {', '.join(constraints)}:\n{done.stderr}")


def read_project(root: Path) -> dict:
    """The table ``project`` of pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
