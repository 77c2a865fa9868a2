"""What every notebook must look like, its committed outputs too: one function a rule, giving what is wrong."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import nbformat

TITLE_PARTS = ("**Question.**", "**Answer in one sentence.**", "**Runtime.**")
MAX_CELL_LINES = 25
MAX_DEFINITION_LINES = 8
MAX_SETUP_LINES = 8
MAX_PLOTTING_LINES = 8
PLOTS = re.compile(r"\bplot_\w+\(|\bplt\.")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# Colab and Jupyter write who ran or wrote a cell into these.
PERSONAL_KEYS = {"executionInfo", "user", "userId", "displayName", "photoUrl", "author", "authors", "outputId"}
HIDING_KEYS = {"source_hidden", "outputs_hidden", "cellView", "collapsed", "jp-MarkdownHeadingCollapsed"}
CLEARED = "clear"  #: the tag of a cell whose output shows times, versions or paths
MAX_BYTES = 600_000
CHANGING = {
    "a path": re.compile(r"(?<![\w.])/(?:home|root|tmp|work|usr|content|mnt)/"),
    "an address": re.compile(r"\bat 0x[0-9a-f]+"),
    "a date": re.compile(r"\b20\d\d-[01]\d-[0-3]\d\b"),
    "a bar": re.compile(r"(?:it|step|problem)/s\b|\d%\|"),
    "a time": re.compile(r"\b\d+\.\d+ m?s\b(?! of CPU)"),
    "a warning": re.compile(r"\b\w*Warning:"),
}
HIDING_TAG_WORDS = ("hide", "hidden", "remove")


def problems(notebook: dict[str, Any], setup_source: str | None = None) -> list[str]:
    """Everything wrong with one notebook, given as plain JSON; ``setup_source`` is the other notebooks' setup cell."""
    wrong = format_problems(notebook)
    if wrong:  # the other rules take the format for granted
        return wrong
    cells = notebook["cells"]
    code_cells = [(number, cell) for number, cell in enumerate(cells) if cell["cell_type"] == "code"]
    wrong += opening_problems(cells, setup_source)
    wrong += metadata_problems(notebook)
    wrong += output_problems(cells)
    for number, cell in code_cells:
        wrong += code_cell_problems(number, cell)
    tagged = [number for number, cell in code_cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        wrong.append(f"exactly one code cell must be tagged parameters, found {len(tagged)}")
    if not code_cells or not has_assert(source(code_cells[-1][1])):
        wrong.append("the last code cell must assert the claim")
    return wrong


def format_problems(notebook: dict[str, Any]) -> list[str]:
    """Not valid nbformat 4.5 or later (the first version with cell ids)."""
    ids = [cell.get("id") for cell in notebook["cells"]]
    if None in ids or len(set(ids)) < len(ids):  # nbformat would repair these with a mere warning
        return ["every cell needs an id of its own"]
    try:
        nbformat.validate(nbformat.from_dict(notebook))
    except (nbformat.ValidationError, KeyError, AttributeError) as error:
        return [f"not a valid notebook: {str(error).splitlines()[0]}"]
    if (notebook["nbformat"], notebook["nbformat_minor"]) < (4, 5):
        return ["nbformat must be 4.5 or later, for cell ids"]
    return []


def opening_problems(cells: list[dict[str, Any]], setup_source: str | None) -> list[str]:
    """The first cell is the title page, the second the setup cell that all notebooks share."""
    wrong = []
    first = source(cells[0]) if cells and cells[0]["cell_type"] == "markdown" else ""
    if not first.startswith("# "):
        wrong.append("the first cell must be markdown and begin with a title (# ...)")
    wrong += [f"the first cell lacks {part}" for part in TITLE_PARTS if part not in first]
    if len(cells) < 2 or cells[1]["cell_type"] != "code":
        wrong.append("the second cell must be the setup cell")
    elif setup_source is not None and source(cells[1]) != setup_source:
        wrong.append("the setup cell differs from that of the other notebooks")
    if len(cells) > 1 and len(source(cells[1]).splitlines()) > MAX_SETUP_LINES:
        wrong.append(f"the setup cell has more than {MAX_SETUP_LINES} lines")
    return wrong


def metadata_problems(notebook: dict[str, Any]) -> list[str]:
    """Kernel, no hidden cells, no persons, no state of bars."""
    wrong = []
    kernel = notebook["metadata"].get("kernelspec", {}).get("name", "python3")
    if kernel != "python3":
        wrong.append(f"the kernel must be python3, got {kernel}")
    keys = set(all_keys(notebook["metadata"]))
    for number, cell in enumerate(notebook["cells"]):
        keys |= set(all_keys(cell["metadata"]))
        tags = cell["metadata"].get("tags", [])
        wrong += [f"cell {number}: tag {tag} hides" for tag in tags if any(word in tag for word in HIDING_TAG_WORDS)]
    wrong += [f"metadata key {key} names a person" for key in sorted(keys & PERSONAL_KEYS)]
    wrong += [f"metadata key {key} hides" for key in sorted(keys & HIDING_KEYS)]
    if "widgets" in notebook["metadata"]:
        wrong.append("metadata holds the state of widgets, which changes from run to run")
    return wrong


def output_problems(cells: list[dict[str, Any]]) -> list[str]:
    """Outputs are committed, as ``gtpo-mini reproduce --keep`` leaves them: nothing that changes from run to run."""
    wrong = []
    code_cells = [(number, cell) for number, cell in enumerate(cells) if cell["cell_type"] == "code"]
    for number, cell in code_cells:
        if cell["execution_count"] is not None:
            wrong.append(f"cell {number}: execution_count is not stripped")
        if cell["outputs"] and (number == 1 or CLEARED in cell["metadata"].get("tags", [])):
            wrong.append(f"cell {number}: output that was to be cleared")
        for output in cell["outputs"]:
            kinds = set(output.get("data", {}))
            if output["output_type"] == "error" or output.get("name") == "stderr":
                wrong.append(f"cell {number}: an error, a warning or a bar in the output")
            wrong += [f"cell {number}: {kind} is no plain output" for kind in kinds if "widget" in kind]
            texts = [output.get("text", ""), *(output["data"][kind] for kind in kinds if kind.startswith("text/"))]
            for text in ("".join(text) for text in texts):
                wrong += [
                    f"cell {number}: {what} in the output" for what, rule in CHANGING.items() if rule.search(text)
                ]
    if not any(cell["outputs"] for _, cell in code_cells):
        wrong.append("no output is kept: gtpo-mini reproduce --keep")
    if len(json.dumps(cells)) > MAX_BYTES:
        wrong.append(f"more than {MAX_BYTES:,} bytes: tag a cell {CLEARED!r}")
    return wrong


def code_cell_problems(number: int, cell: dict[str, Any]) -> list[str]:
    """Short, plain Python: no ! or % line (its failure does not fail the notebook), no long definition."""
    text = source(cell)
    lines = text.splitlines()
    wrong = []
    if len(lines) > MAX_CELL_LINES:
        wrong.append(f"cell {number}: {len(lines)} lines, at most {MAX_CELL_LINES}")
    if PLOTS.search(text) and len(lines) > MAX_PLOTTING_LINES:
        wrong.append(f"cell {number}: plots in {len(lines)} lines, at most {MAX_PLOTTING_LINES}: experiments/plots")
    magic = [line for line in lines if line.lstrip().startswith(("!", "%"))]
    if magic:
        return [*wrong, f"cell {number}: {magic[0].strip()!r} is no Python; use subprocess.run(..., check=True)"]
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        return [*wrong, f"cell {number}: {error}"]
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS):
            length = node.end_lineno - node.lineno + 1
            if length > MAX_DEFINITION_LINES:
                wrong.append(f"cell {number}: {node.name} has {length} lines, at most {MAX_DEFINITION_LINES}")
    return wrong


def has_assert(text: str) -> bool:
    """Whether the code holds an assert statement (a comment does not count)."""
    try:
        return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text)))
    except SyntaxError:
        return False


def source(cell: dict[str, Any]) -> str:
    """A cell's text; JSON may hold it as a list of lines."""
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def all_keys(value: Any):
    """Every key at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from all_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from all_keys(inner)
