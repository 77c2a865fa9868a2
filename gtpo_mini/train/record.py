"""``metrics.jsonl``, the record of a run: a header, one line a step, a footer; whole after a crash at any moment."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError


@contextlib.contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turn what a full or broken disk raises into one error that names the file and the fix.

    Raises:
        RuntimeError: in place of an `OSError` or of the safetensors writer's own.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RuntimeError(
            f"cannot write {path}: {error}; what was written before is whole: free some disk space (or use another "
            "output folder), then go on with --resume"
        ) from error


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a run's folder, made if it is not there, for this process; the lock ends with it, however it ends.

    Raises:
        ValueError: another process is at work there.
        RuntimeError: the folder cannot be made.
    """
    with clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(
            f"output={str(folder)!r}: another process is at work on this run; let it end, or choose another folder"
        ) from None
    except OSError:
        pass  # some network disks have no locks: one user's runs go there too
    try:
        yield
    finally:
        os.close(handle)


class Record:
    """The lines of a run's ``metrics.jsonl``.

    Args:
        folder: the run's; `locked` makes it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "metrics.jsonl"

    def append(self, kind: str, line: dict) -> None:
        """Add a line; only the last line of a file can be half a line, where the process was killed."""
        with clear_disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **line}) + "\n")

    def rewrite(self, lines: list[dict]) -> None:
        """Put ``lines`` in place of the whole file, in one move: a crash leaves the old file or the new one."""
        new = self.path.with_name(self.path.name + ".new")
        with clear_disk_errors(self.path):
            with new.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            sync(new)
            new.replace(self.path)
            sync(self.path.parent)

    def read(self) -> tuple[list[dict], list[int]]:
        """The lines as `append` wrote them, and the numbers of those that are damaged; nothing where there is no file.

        Half a line at the end, as a kill leaves it, is no damage.

        Raises:
            ValueError: the file does not begin with a run's header.
        """
        if not self.path.exists():
            return [], []
        lines, damaged = [], []
        for number, text in enumerate(self.path.read_bytes().split(b"\n")[:-1], 1):
            try:
                line = json.loads(text)
                damaged += [] if isinstance(line, dict) else [number]
                lines += [line] if isinstance(line, dict) else []
            except ValueError:
                damaged.append(number)
        if 1 in damaged or not lines or lines[0].get("kind") != "header":
            raise ValueError(f"{self.path}: does not begin with a run's header; choose another output folder")
        return lines, damaged
