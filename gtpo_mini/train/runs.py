"""Recorded runs as they are read: a header, one line a step, a footer with the evaluation per problem."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .config import translate_config


@dataclass(frozen=True)
class Run:
    """A recorded run: a JSON-lines file with a header, one line a step, and a footer."""

    header: dict
    steps: tuple[dict, ...]
    footer: dict

    @property
    def arm(self) -> str:
        return self.header["arm"]

    @property
    def seed(self) -> int:
        return self.header["seed"]

    @property
    def moved(self) -> bool:
        """Whether any step changed the weights: where no group ever has a signal, the policy stays what it was."""
        return any(step.get("grad/norm", 1.0) for step in self.steps)

    def series(self, key: str) -> list[float]:
        """One metric over the steps, e.g. ``run.series("reward/outcome")``."""
        return [step[key] for step in self.steps]


def read_run(path: Path) -> Run | None:
    """The run in a file; None if it is not finished."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # a process that was killed leaves half a line
            return None
    if len(lines) < 2 or lines[0].get("kind") != "header" or lines[-1].get("kind") != "footer":
        return None
    lines[0]["config"] = translate_config(lines[0].get("config", {}))
    return Run(lines[0], tuple(line for line in lines if line["kind"] == "step"), lines[-1])


def load_runs(folder: str | Path) -> list[Run]:
    """All finished runs below a folder, sorted by arm and seed.

    Raises:
        ValueError: no finished run there.
    """
    found = [read_run(path) for path in sorted(Path(folder).rglob("*.jsonl"))]
    runs = [run for run in found if run is not None]
    if not runs:
        raise ValueError(f"no finished run below {str(folder)!r}")
    return sorted(runs, key=lambda run: (run.arm, run.seed))
