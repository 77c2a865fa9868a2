"""Fixtures of the sandbox tests; they need no torch, so that these tests also run in `jail.py`."""

from pathlib import Path

import pytest
from outside import LIMITS, Outside

from gtpo_mini.sandbox import Sandbox


def pytest_collection_modifyitems(config, items):
    """The long runs (thousands of snippets) only where asked for: `pytest -m slow tests/sandbox`."""
    if "slow" not in (config.option.markexpr or ""):
        for item in items:
            if item.get_closest_marker("slow") and item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason="long: pytest -m slow tests/sandbox"))


@pytest.fixture(scope="session")
def outside():
    observer = Outside()
    yield observer
    observer.close()


@pytest.fixture(scope="session")
def box():
    """A sandbox with the defaults, for ordinary use."""
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="session", params=[(), ("numpy", "sympy")], ids=["light", "heavy"])
def tight(request, outside):
    """A sandbox with short limits, for hostile use. After `outside`: its secrets must not get in.

    With nothing to preload all runs in children of the light server, and imports come from disk; otherwise what
    imports more than that server has moves to the other's.
    """
    with Sandbox(LIMITS, preload=request.param) as sandbox:
        yield sandbox
