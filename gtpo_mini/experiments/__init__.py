"""From runs to evidence: arms, evaluation, statistics, figures, pages. A file is imported when it is first named."""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name.startswith("_"):
        raise AttributeError(name)
    return import_module(f".{name}", __name__)
