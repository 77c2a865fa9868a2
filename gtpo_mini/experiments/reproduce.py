"""``gtpo-mini reproduce``: every notebook, top to bottom, with a bar; executed HTML into ``results/``."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from tqdm import tqdm

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
_RUNTIME = re.compile(r"\*\*Runtime\.\*\*.*?(\d+) s\b", re.DOTALL)  # in a notebook's first cell


def reproduce(output: str | Path = "results", names: list[str] | None = None) -> list[Path]:
    """Run the notebooks whose names begin so ("02"; None: all) in reading order; write HTML and figures to ``output``.

    Returns the HTML files; raises a RuntimeError that names the notebook that failed and where its HTML is.
    """
    paths = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if not names or path.name.startswith(tuple(names))]
    if not paths:
        raise ValueError(f"no notebook in {NOTEBOOKS} whose name begins with {names}")
    folder = Path(output).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    promised = [_RUNTIME.search(notebook.cells[0].source) for notebook in notebooks]
    seconds = [int(found[1]) if found else 60 for found in promised]
    written, form = [], "{l_bar}{bar}| {elapsed} so far, {postfix}"
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=sum(seconds), bar_format=form) as bar:
        progress = Path(scratch) / "progress"
        os.environ.update(GTPO_RESULTS=str(folder), GTPO_PROGRESS=str(progress), JUPYTER_PREFER_ENV_PATH="1")

        def move(index: int, spent: float) -> None:
            before, mine, after = sum(seconds[:index]), seconds[index], sum(seconds[index + 1 :])
            bar.n = before + min(spent, 0.95 * mine)
            # A machine that took longer than promised so far will take longer for the rest.
            pace = max(1.0, bar.format_dict["elapsed"] / max(1.0, before + min(spent, mine)))
            left = tqdm.format_interval(pace * (after + max(0.0, mine - spent)))
            doing = progress.read_text().partition(" ")[2] if progress.exists() else ""
            bar.set_postfix_str(f"about {left} left: {paths[index].stem} {doing}")

        for index, (path, notebook) in enumerate(zip(paths, notebooks, strict=True)):
            progress.unlink(missing_ok=True)
            failure = asyncio.run(_execute(notebook, partial(move, index)))
            bar.n = sum(seconds[: index + 1])
            bar.refresh()
            html, _ = HTMLExporter().from_notebook_node(notebook, resources={"metadata": {"name": path.stem}})
            written.append(folder / f"{path.stem}.html")
            written[-1].write_text(html, encoding="utf-8")
            if failure:
                raise RuntimeError(f"notebook {path.name} failed: {failure} (the executed part: {written[-1]})")
    return written


async def _execute(notebook: nbformat.NotebookNode, move: Callable[[float], None]) -> str:
    """Run all cells in place, telling ``move`` each second how many went by; the error's last line, or ""."""
    where = {"metadata": {"path": NOTEBOOKS}}
    client = NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where)
    begin, cells = time.monotonic(), asyncio.ensure_future(client.async_execute())
    while not cells.done():
        move(time.monotonic() - begin)
        await asyncio.wait([cells], timeout=1.0)
    try:
        cells.result()
    except CellExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except (DeadKernelError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
