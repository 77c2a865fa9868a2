"""``gtpo-mini reproduce``: every notebook, top to bottom, with a bar; executed HTML into ``results/``."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from tqdm import tqdm

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
_RUNTIME = re.compile(r"\*\*Runtime\.\*\*.*?(\d+) s\b", re.DOTALL)


def expected_seconds(notebook: nbformat.NotebookNode) -> int:
    """The run time that a notebook promises in its first cell ("**Runtime.** about 90 s ..."), or 60.

    >>> cell = nbformat.v4.new_markdown_cell("**Runtime.** About 90 s on two cores.")
    >>> expected_seconds(nbformat.v4.new_notebook(cells=[cell]))
    90
    """
    found = _RUNTIME.search(notebook.cells[0].source)
    return int(found.group(1)) if found else 60


def reproduce(output: str | Path = "results", names: list[str] | None = None) -> list[Path]:
    """Run the notebooks in reading order; write executed HTML and figures to ``output``.

    Args:
        output: folder for the results.
        names: beginnings of notebook names ("02"); None: all.

    Returns:
        The HTML files.

    Raises:
        RuntimeError: a notebook failed; its name, the error, and where the executed part was written.
        ValueError: no notebook of such a name.
    """
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    paths = [path for path in paths if not names or path.name.startswith(tuple(names))]
    if not paths:
        raise ValueError(f"no notebook in {NOTEBOOKS} whose name begins with {names}")
    folder = Path(output).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    seconds = [expected_seconds(notebook) for notebook in notebooks]
    written = []
    form = "{l_bar}{bar}| {elapsed} so far, {postfix}"
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=sum(seconds), bar_format=form) as bar:
        progress = Path(scratch) / "progress"
        os.environ.update(GTPO_RESULTS=str(folder), GTPO_PROGRESS=str(progress), JUPYTER_PREFER_ENV_PATH="1")
        for index, (path, notebook) in enumerate(zip(paths, notebooks, strict=True)):
            progress.unlink(missing_ok=True)
            with _Ticker(bar, path.stem, seconds, index, progress):
                failure = _execute(notebook)
            html, _ = HTMLExporter().from_notebook_node(notebook, resources={"metadata": {"name": path.stem}})
            written.append(folder / f"{path.stem}.html")
            written[-1].write_text(html, encoding="utf-8")
            if failure:
                raise RuntimeError(f"notebook {path.name} failed: {failure} (the executed part: {written[-1]})")
    return written


def _execute(notebook: nbformat.NotebookNode) -> str:
    """Run all cells in place; the error's last line, or ""."""
    try:
        NotebookClient(
            notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": NOTEBOOKS}}
        ).execute()
    except CellExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except (DeadKernelError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


class _Ticker:
    """Moves the bar while a notebook runs: it knows what each promised, and what the earlier ones took."""

    def __init__(self, bar: tqdm, name: str, seconds: list[int], index: int, progress: Path) -> None:
        self.bar, self.name, self.progress = bar, name, progress
        self.before, self.mine, self.after = sum(seconds[:index]), seconds[index], sum(seconds[index + 1 :])
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> None:
        self.begin = time.monotonic()
        self.thread.start()

    def __exit__(self, *exception: object) -> None:
        self.done.set()
        self.thread.join()
        self.bar.n = self.before + self.mine
        self.bar.refresh()

    def _tick(self) -> None:
        self._show()
        while not self.done.wait(1.0):
            self._show()

    def _show(self) -> None:
        spent = time.monotonic() - self.begin
        self.bar.n = self.before + min(spent, 0.95 * self.mine)
        # A machine that took longer than promised so far will take longer for the rest.
        total = self.bar.format_dict["elapsed"]
        pace = max(1.0, total / max(1.0, self.before + min(spent, self.mine)))
        left = pace * (self.after + max(0.0, self.mine - spent))
        doing = self.progress.read_text().partition(" ")[2] if self.progress.exists() else ""
        self.bar.set_postfix_str(f"about {tqdm.format_interval(left)} left: {self.name} {doing}")
