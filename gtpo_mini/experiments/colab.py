"""How a notebook begins, also away from a checkout: an install beside the torch that is there; and its links.

The notebooks' setup cell fetches the repository where there is none, and calls `begin`, which needs nothing but Python.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
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
_COLAB = "https://colab.research.google.com"
_BADGE = re.compile(r"\[!\[Open in Colab\].*\n\n")
_ADDRESS = re.compile(r"(?<=git clone --depth 1 )\S+(?= gtpo_mini_source)")


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
    project = _project(root)
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


def write_links(root: Path = ROOT) -> list[str]:
    """Write ``project.urls``' Repository into the notebooks: setup cells, and badges where it is on GitHub.

    Returns the names of the notebooks that changed; a ValueError if there is no Repository, or no https address.
    """
    address = _project(root).get("urls", {}).get("Repository", "").rstrip("/")
    if not address.startswith("https://"):
        raise ValueError(f"pyproject.toml: [project.urls] needs a Repository for anyone: https://..., got {address!r}")
    # Colab opens notebooks from GitHub.
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", address.removesuffix(".git"))
    changed = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        before = path.read_text(encoding="utf-8")
        notebook = json.loads(before)
        first, setup = notebook["cells"][:2]
        title, _, rest = _BADGE.sub("", "".join(first["source"])).partition("\n\n")
        page = f"{_COLAB}/github/{found[1]}/blob/main/notebooks/{path.name}" if found else ""
        badge = f"[![Open in Colab]({_COLAB}/assets/colab-badge.svg)]({page})" if found else ""
        first["source"] = "\n\n".join(filter(None, (title, badge, rest))).splitlines(True)
        setup["source"] = _ADDRESS.sub(lambda _: address, "".join(setup["source"])).splitlines(True)
        after = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path.name)
    return changed


def _project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
