"""The record of a run: ``metrics.jsonl`` (header, one line a step, footer), whole after a crash at any moment.

A compact file of many finished runs (`save_runs`) holds a line of problem ids, then a line a run: its header, the
metrics that never changed, a list of each other metric, and the footer with the evaluations' outcomes as bits.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import lzma
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

_COMPACT = ".jsonl.xz"
_CLOCKS = ("time/", "memory/")  # no two runs agree in more than four digits


@contextlib.contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turn what a full or broken disk raises into one RuntimeError that names the file and the fix."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        fix = "free some disk space (or use another output folder), then go on with --resume"
        raise RuntimeError(f"cannot write {path}: {error}; what was written before is whole: {fix}") from error


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a run's folder, made if it is not there, for this process; the lock ends with it, however it ends."""
    where = f"output={str(folder)!r}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"{where}: cannot be made ({error.strerror}); choose another folder") from error
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = "another process is at work on this run; let it end, or choose another folder"
            raise ValueError(f"{where}: {text}") from None
        except OSError:
            pass  # some network disks have no locks: one user's runs go there too
        yield


def append_line(path: Path, kind: str, line: dict) -> None:
    """Add a line to a ``metrics.jsonl``; only the last one can be half a line, where the process was killed."""
    with clear_disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, **line}) + "\n")


def rewrite_lines(path: Path, lines: list[dict]) -> None:
    """Put ``lines`` in place of the whole file, in one move: a crash leaves the old file or the new one."""
    new = path.with_name(path.name + ".new")
    with clear_disk_errors(path):
        new.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        sync(new)
        new.replace(path)
        sync(path.parent)


def read_lines(path: Path) -> tuple[list[dict], list[int]]:
    """The lines of a ``metrics.jsonl``, and the numbers of those that are damaged; a ValueError if it is none.

    Half a line at the end, as a kill leaves it, is no damage.
    """
    lines, damaged = [], []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and "kind" in line:
                lines.append(line)
                continue
        damaged.append(number)
    if 1 in damaged or not lines or lines[0]["kind"] != "header":
        raise ValueError(f"{path}: does not begin with a run's header; choose another output folder")
    return lines, damaged


@dataclass(frozen=True)
class RecordedRun:
    """A finished run, as it was recorded."""

    header: dict  #: arm, seed, configuration, command, commit, versions, device
    steps: tuple[dict, ...]  #: metrics, one dict a step
    footer: dict  #: the evaluations ("sampled", "greedy"), per problem; or only how many steps there were

    @property
    def arm(self) -> str:
        """The arm's name; "run" where an own loop gave none."""
        return self.header.get("arm", "run")

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


def read_run(path: str | Path) -> RecordedRun | None:
    """The run in a ``metrics.jsonl``; None if it is not finished, or no run."""
    try:
        lines, damaged = read_lines(Path(path))
    except ValueError:
        return None
    if damaged or lines[-1]["kind"] != "footer":
        return None
    return RecordedRun(lines[0], tuple(line for line in lines if line["kind"] == "step"), lines[-1])


def load_runs(path: str | Path) -> list[RecordedRun]:
    """All finished runs, sorted by arm and seed; a ValueError where there is none.

    Args:
        path: a ``metrics.jsonl``, a file of `save_runs`, or a folder with any of them at any depth.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*.jsonl*") if p.is_file())
    runs, damaged = [], []
    for file in files:
        if file.name.endswith(_COMPACT):
            runs += _read_compact(file)
        elif file.suffix == ".jsonl" and (run := read_run(file)) is not None:
            runs.append(run)
        elif file.name == "metrics.jsonl":
            with contextlib.suppress(ValueError):
                damaged += [f"{file}: line {number}" for number in read_lines(file)[1]]
    if not runs:
        hint = f" (damaged: {', '.join(damaged)}; train --resume makes it whole)" if damaged else ""
        raise ValueError(f"no finished run in {str(path)!r}{hint}")
    return sorted(runs, key=lambda run: (run.arm, run.seed))


def save_runs(runs: Sequence[RecordedRun], path: str | Path, keys: Collection[str] | None = None) -> None:
    """Write finished runs into one compact file, "....jsonl.xz"; the same runs give the same bytes.

    Headers and footers come back from `load_runs` as they were. Of the steps' metrics only ``keys`` are kept (None:
    all), with six digits, which hold a share of 64 rollouts exactly; times and memory with four.
    """
    path = Path(path)
    if not path.name.endswith(_COMPACT) or not runs:
        raise ValueError(f"path={str(path)!r}: must end in {_COMPACT}, and take at least one run, got {len(runs)}")
    problems: dict[tuple[str, ...], int] = {}  # distinct lists of ids, in order of appearance
    packed = [_pack(run, problems, keys) for run in runs]
    lines = [json.dumps(line) + "\n" for line in ({"kind": "runs", "problems": list(problems)}, *packed)]
    path.write_bytes(lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))


def _pack(run: RecordedRun, problems: dict[tuple[str, ...], int], wanted: Collection[str] | None) -> dict:
    def kept(key: str, value: Any) -> Any:
        return float(f"{value:.{4 if key.startswith(_CLOCKS) else 6}g}") if isinstance(value, float) else value

    keys = dict.fromkeys(key for step in run.steps for key in step if wanted is None or key in wanted)
    columns = {key: [kept(key, step.get(key)) for step in run.steps] for key in keys}
    constant = {key: column[0] for key, column in columns.items() if len({json.dumps(value) for value in column}) == 1}
    columns = {key: column for key, column in columns.items() if key not in constant}
    footer = dict(run.footer)
    for name, evaluation in _evaluations(footer).items():
        ids, scores = tuple(evaluation["per_problem"]), list(evaluation["per_problem"].values())
        if all(score in (0.0, 1.0) for score in scores):
            scores = hex(int("1" + "".join(str(int(score)) for score in scores), 2))
        footer[name] = {**evaluation, "per_problem": [problems.setdefault(ids, len(problems)), scores]}
    return {"header": run.header, "steps": len(run.steps), "constant": constant, "columns": columns, "footer": footer}


def _evaluations(footer: dict) -> dict[str, dict]:
    return {name: found for name, found in footer.items() if isinstance(found, dict) and "per_problem" in found}


def _read_compact(path: Path) -> list[RecordedRun]:
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            first, *lines = map(json.loads, file)
        return [_unpack(line, first["problems"]) for line in lines]
    except (lzma.LZMAError, OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{str(path)!r}: no whole file of recorded runs ({type(error).__name__}: {error})") from error


def _unpack(line: dict, problems: list[list[str]]) -> RecordedRun:
    steps = [dict(line["constant"]) for _ in range(line["steps"])]
    for key, column in line["columns"].items():
        for step, value in zip(steps, column, strict=True):
            if value is not None:
                step[key] = value
    for evaluation in _evaluations(line["footer"]).values():
        index, scores = evaluation["per_problem"]
        if isinstance(scores, str):
            scores = [float(bit) for bit in bin(int(scores, 16))[3:]]
        evaluation["per_problem"] = dict(zip(problems[index], scores, strict=True))
    return RecordedRun(line["header"], tuple(steps), line["footer"])
