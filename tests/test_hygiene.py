"""The repository keeps its own rules: versions in one place, imports along the data's way, no stray paths."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gtpo_mini"
MODULES = sorted(PACKAGE.rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAX_LINES = 260

# The way of the data: a module imports only from those before it. A new module gets its place here.
ORDER = (
    *("checks", "stats", "runs"),  # plain helpers, of use anywhere
    *("types", "sandbox", "branching", "grading", "records", "generators", "tasks", "protocol"),
    *("attention", "architecture", "policy", "adapters", "chat"),
    *("cache", "replay", "reader", "ongoing", "scheduler", "rollout"),
    *("rewards", "similarity", "shaping", "advantages", "packing", "loss"),
    *("config", "arms", "scoring", "metrics"),  # settings of the parts before them, and what a trainer measures
    *("record", "checkpoint", "update", "journal", "interrupt", "trackers"),  # what a long run survives by
    *("transcript", "imitation", "coldstart", "regimes"),
    *("trainer", "merge", "evaluate", "results", "experiments", "pairing", "report"),
    *("plots", "display", "reproduce", "colab", "cli"),
    *("__init__", "__main__"),
)


def place(path: Path) -> str:
    """A module's name in ORDER: a sub-package has one place for all its files."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_places(path: Path, text: str) -> set[str]:
    """Places of the gtpo_mini modules that a module imports, also inside functions, not for types only."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = []
    parents = ("gtpo_mini", *path.relative_to(PACKAGE).parts[:-1])
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(parents[: len(parents) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            # "from gtpo_mini import x" may name a module; a longer base already does.
            names += [".".join([*base, alias.name]) for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("gtpo_mini.")} - {"__version__"}


def order_problems(path: Path, text: str) -> list[str]:
    own = place(path)
    if own not in ORDER:
        return [f"{own} has no place in ORDER"]
    others = imported_places(path, text) - {own}
    return [f"{own} imports {o}" for o in sorted(others) if o not in ORDER or ORDER.index(o) > ORDER.index(own)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_is_short_documented_and_in_order(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "the module needs a docstring"
    assert len(text.splitlines()) <= MAX_LINES
    assert undocumented(tree) == []
    assert order_problems(path, text) == []


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions and classes of a module without a docstring."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    return [node.name for node in public if not ast.get_docstring(node)]


def test_the_rules_for_modules_see_a_slip():
    path = PACKAGE / "rewards.py"
    for text in (
        "from gtpo_mini.credit.advantages import turn_returns",
        "from .advantages import turn_returns",
        "from . import advantages",
        "import gtpo_mini.credit.advantages",
        "def f():\n    from gtpo_mini import advantages",
        "from gtpo_mini import advantages as a",
    ):
        assert order_problems(path, text) == ["rewards imports advantages"], text
    assert order_problems(path, "from .types import Turn\nimport math\nfrom gtpo_mini import __version__") == []
    assert order_problems(path, "if TYPE_CHECKING:\n    from .advantages import x") == []
    assert order_problems(path, "import gtpo_mini.unknown") == ["rewards imports unknown"]
    assert order_problems(PACKAGE / "new.py", "") == ["new has no place in ORDER"]
    inner = PACKAGE / "sandbox" / "client.py"
    assert order_problems(inner, "from . import x\nfrom .limits import L\nfrom ..types import T") == []
    assert order_problems(inner, "from ..rollout import R") == ["sandbox imports rollout"]
    assert undocumented(ast.parse("def f(): pass\ndef _g(): pass\nclass C:\n    x = 1")) == ["f", "C"]


@pytest.mark.parametrize("name", ["rewards", "shaping", "advantages", "stats"])
def test_public_formulas_say_where_they_come_from(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    assert functions
    for function in functions:
        docstring = ast.get_docstring(function)
        assert re.search(r"^Source: .*\[[ABCD]\]", docstring, re.MULTILINE), function.name
        for part in ("Args:", "Returns:", "Raises:", ">>> "):
            assert part in docstring, f"{function.name} lacks {part}"


def test_environment_cannot_drift_from_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    required = PYPROJECT["project"]["requires-python"]
    assert required == ">=3.11,<3.14"
    assert environment["dependencies"] == [f"python{required}", "pip", {"pip": ["-e .[dev]"]}]
    assert environment["name"] == PYPROJECT["project"]["name"]
    assert "dev" in PYPROJECT["project"]["optional-dependencies"]


def test_licence_and_version_agree_everywhere():
    project = PYPROJECT["project"]
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in licence and "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    init = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    versions = [n.value.value for n in init.body if isinstance(n, ast.Assign) and n.targets[0].id == "__version__"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert [project["version"]] == versions == [str(citation["version"])]
    assert citation["license"] == project["license"]


def test_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    for key in ("message", "title", "authors"):
        assert citation[key]
    (paper,) = citation["references"]
    assert paper["title"] == (
        "Empowering Multi-Turn Tool-Integrated Agentic Reasoning with Group Turn Policy Optimization"
    )
    assert paper["authors"] and "2511.14846" in paper["url"]
    assert paper["identifiers"][0]["value"] == "arXiv:2511.14846"


def readme_problems(text: str) -> list[str]:
    wrong = []
    first = text.splitlines()[0] if text else ""
    wrong += [
        f"line one lacks {name}" for name in ("Group Turn Policy Optimization", "2511.14846") if name not in first
    ]
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    wanted = ["make reproduce", "make test"]
    missing = set(wanted)
    for block in blocks:
        found = {command for command in missing if re.search(rf"^(\$ )?{command}\b", block, re.MULTILINE)}
        if missing and not found:
            wrong.append("another code block comes before make reproduce and make test")
            break
        missing -= found
    wrong += [f"no code block shows {command}" for command in wanted if command in missing]
    return wrong


def test_readme_opens_with_the_name_and_the_two_commands():
    assert readme_problems((ROOT / "README.md").read_text(encoding="utf-8")) == []


def test_the_rule_for_the_readme_sees_a_slip():
    name = "# Group Turn Policy Optimization (arXiv 2511.14846)\n"
    both = "```bash\ngit clone x\nmake reproduce  # all\nmake test\n```\n"
    other = "```bash\npython -m gtpo_mini train\n```\n"
    assert readme_problems(name + both + other) == []
    assert readme_problems(name + "```\nmake reproduce\n```\n```\n$ make test\n```\n" + other) == []
    for bad in ("", "# GTPO\n" + both, name, name + other + both, name + "```\nmake test\n```\n" + other):
        assert readme_problems(bad), bad


# Built from pieces, so that this file does not hold what it looks for.
ABSOLUTE = re.compile(rf"(?<![\w.:/-])/(?:{'home'}|{'Users'}|{'root'}|{'work'})/")


def test_no_tracked_file_holds_a_path_of_one_machine():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        data = path.read_bytes() if path.is_file() else b""
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            continue  # a checkpoint or a picture
        found += [f"{name}:{n}" for n, line in enumerate(text.splitlines(), 1) if ABSOLUTE.search(line)]
    assert found == []


def test_the_rule_for_paths_sees_a_slip():
    for folder in ("home", "root", "work", "Users"):
        assert ABSOLUTE.search(f"data = '/{folder}/x'")
    for fine in ("https://x.org/home/a", "homework/a", "./work/a", "/content/a", "a/root/b"):
        assert not ABSOLUTE.search(fine)
