"""``gtpo-mini reproduce``: every notebook, top to bottom, with a bar; executed HTML into ``results/``.

With ``--keep`` the outputs, and the answer at the top, go into the notebooks themselves, as GitHub shows them.
"""

from __future__ import annotations

import asyncio
import base64
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

from .plots import in_few_colours

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
_ANSWER = re.compile(r"(\*\*Answer in one sentence\.\*\* )(.*?)(\n\n\*\*Runtime|\Z)", re.DOTALL)
_RUNTIME = re.compile(r"\*\*Runtime\.\*\*.*?(\d+) s\b", re.DOTALL)  # in a notebook's first cell


def reproduce(output: str | Path = "results", names: list[str] | None = None, keep: bool = False) -> list[Path]:
    """Run the notebooks whose names begin so ("02"; None: all) in reading order; write HTML and figures to ``output``.

    ``keep``: write what `keep_outputs` keeps into the notebooks.
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
            if keep:
                keep_outputs(notebook)
                path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    return written


def keep_outputs(notebook: nbformat.NotebookNode) -> None:
    """Of an executed notebook keep what a reader should see on GitHub, the same whenever and wherever it was run.

    The answer that the setup cell shows goes into the title page. What comes from stderr (warnings, bars) and widgets
    goes; so do all outputs of the setup cell and of cells tagged ``clear``, which show times, versions or paths.
    """
    notebook.metadata.pop("widgets", None)  # the state of bars, with their times
    title, setup = notebook.cells[:2]
    shown = [one.data["text/markdown"] for one in setup.outputs if "text/markdown" in one.get("data", {})]
    if shown:
        title.source = _ANSWER.sub(lambda found: found[1] + shown[-1].strip() + found[3], title.source)
    for number, cell in enumerate(notebook.cells):
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        hidden = number == 1 or "clear" in cell.metadata.get("tags", [])
        cell.outputs = [] if hidden else [_kept(one) for one in cell.outputs if _wanted(one)]


def _wanted(output: nbformat.NotebookNode) -> bool:
    return output.get("name") != "stderr" and not any("widget" in kind for kind in output.get("data", {}))


def _kept(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A picture needs no words for itself and few colours, and a table no count of its cell."""
    if picture := output.get("data", {}).get("image/png"):
        few = base64.b64encode(in_few_colours(base64.b64decode(picture))).decode()
        output.data = nbformat.from_dict({"image/png": few})
    if "execution_count" in output:
        output.execution_count = None
    return output


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
