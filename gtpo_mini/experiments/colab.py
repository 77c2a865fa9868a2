"""Notebooks away from a checkout: an install beside the torch that is there, and links made from ``project.urls``.

The notebooks' setup cell fetches the repository and runs this module, which needs nothing but Python.
``gtpo-mini links`` writes the repository's address, which stands in ``pyproject.toml`` alone, into the badge
and the setup cell of every notebook.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEEP = ("torch", "numpy")  #: what a notebook service built for its own machines
NEEDLESS = ("jupyter", "nbclient", "nbconvert")  #: where a notebook runs already
_BADGE = re.compile(r"\[!\[Open in Colab\].*\n\n")
_ADDRESS = re.compile(r'(?<="GTPO_SOURCE", ")[^"]*(?=")')


def requirements(root: Path = ROOT) -> tuple[list[str], list[str]]:
    """What to install beside the torch and numpy that are there, and the constraints that keep these as they are.

    Args:
        root: of the repository; its ``pyproject.toml`` says what is needed.

    >>> wanted, constraints = requirements()
    >>> any(line.startswith("torch") for line in wanted), constraints[0].startswith("torch==")
    (False, True)
    """
    wanted, constraints = [], []
    for line in _project(root)["dependencies"]:
        name = re.match(r"[\w.-]+", line)[0]
        try:
            there = importlib.metadata.version(name) if name in KEEP else None
        except importlib.metadata.PackageNotFoundError:
            there = None
        if there:
            constraints.append(f"{name}=={there}")
        elif name not in NEEDLESS:
            wanted.append(line)
    return wanted, constraints


def install(root: Path = ROOT) -> None:
    """Install what the package needs, into the interpreter that runs this.

    Raises:
        RuntimeError: pip failed; its own words are in the message.
    """
    wanted, constraints = requirements(root)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(constraints))
        file.flush()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", file.name, *wanted]
        done = subprocess.run(command, text=True, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise RuntimeError(f"pip could not install {', '.join(wanted)} beside {', '.join(constraints)}:\n{done.stderr}")


def write_links(root: Path = ROOT) -> list[str]:
    """Write the repository's address into the notebooks: setup cells, and badges where it is on GitHub.

    Args:
        root: of the repository.

    Returns:
        Names of the notebooks that changed.

    Raises:
        ValueError: ``project.urls`` has no Repository, or one that is no https address.
    """
    address = _project(root).get("urls", {}).get("Repository", "").rstrip("/")
    if not address:
        raise ValueError("pyproject.toml: [project.urls] has no Repository; write the address of the repository there")
    if not address.startswith("https://"):
        raise ValueError(f"pyproject.toml: Repository = {address!r} must begin with https://, for anyone to clone it")
    changed = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        before = path.read_text(encoding="utf-8")
        notebook = json.loads(before)
        first, setup = notebook["cells"][:2]
        title, _, rest = _BADGE.sub("", "".join(first["source"])).partition("\n\n")
        first["source"] = "\n\n".join(filter(None, (title, _badge(address, path.name), rest))).splitlines(True)
        setup["source"] = _ADDRESS.sub(lambda _: address, "".join(setup["source"])).splitlines(True)
        after = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path.name)
    return changed


def _badge(address: str, name: str) -> str:
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", address.removesuffix(".git"))
    if found is None:  # Colab opens notebooks from GitHub
        return ""
    page = f"https://colab.research.google.com/github/{found[1]}/blob/main/notebooks/{name}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({page})"


def _project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


if __name__ == "__main__":
    install()
