"""Metrics sent to TensorBoard, Weights & Biases and others, through accelerate; nothing unless asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers


class Trackers:
    """A context in which every step's metrics go to the trackers; an empty list of them does nothing.

    Args:
        wanted: names that accelerate knows ("tensorboard", "wandb", ...), or `GeneralTracker` objects.
        folder: the run's, for trackers that write files.

    Raises:
        ValueError: an unknown name, a tracker whose package is not installed, or one that needs a folder and has none.

    >>> Trackers(["tensorbored"], folder=None)
    Traceback (most recent call last):
    ValueError: unknown tracker 'tensorbored'; known: aim, clearml, comet_ml, dvclive, mlflow, swanlab, tensorboard, \
trackio, wandb
    """

    def __init__(self, wanted: Sequence[str | GeneralTracker], folder: Path | None) -> None:
        self.trackers: list[GeneralTracker] = []
        if wanted:
            PartialState()  # the trackers' own log messages ask it which process they are in
        for name in wanted:
            if isinstance(name, GeneralTracker):
                self.trackers.append(name)
                continue
            if name not in LOGGER_TYPE_TO_CLASS:
                raise ValueError(f"unknown tracker {name!r}; known: {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
            if name not in map(str, get_available_trackers()):
                raise ValueError(f"tracker {name!r}: its package is not installed; pip install {name}")
            kind = LOGGER_TYPE_TO_CLASS[name]
            if kind.requires_logging_directory and folder is None:
                raise ValueError(f"tracker {name!r} writes files: give the run an output folder")
            where = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
            self.trackers.append(kind("gtpo_mini", **where))

    def __enter__(self) -> Trackers:
        return self

    def start(self, config: dict) -> None:
        """Begin, with the run's configuration."""
        for tracker in self.trackers:
            tracker.start()
            tracker.store_init_configuration(config)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Send one step's metrics."""
        for tracker in self.trackers:
            tracker.log(metrics, step=step)

    def __exit__(self, *error: object) -> None:
        for tracker in self.trackers:
            tracker.finish()
