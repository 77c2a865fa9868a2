"""Write the repository's address, which pyproject.toml holds alone, into the notebooks: ``python tests/links.py``."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gtpo_mini.experiments.colab import ROOT, read_project

_COLAB = "https://colab.research.google.com"
_BADGE = re.compile(r"\[!\[Open in Colab\].*\n\n")
_ADDRESS = re.compile(r"(?<=git clone --depth 1 )\S+(?= gtpo_mini_source)")


def write_links(root: Path = ROOT) -> list[str]:
    """Write ``project.urls``' Repository into the notebooks: setup cells, and badges where it is on GitHub.

    Returns the names of the notebooks that changed; a ValueError if there is no Repository, or no https address.
    """
    address = read_project(root).get("urls", {}).get("Repository", "").rstrip("/")
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


if __name__ == "__main__":
    print(f"changed: {', '.join(write_links()) or 'nothing'}")
