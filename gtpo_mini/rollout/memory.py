"""Work that ran out of GPU memory, made smaller and done again."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


class TrainingStopped(RuntimeError):
    """A run cannot go on; the message says why and what to do. Its last checkpoint is good."""


def within_memory(work: Callable[[], Result], shrink: Callable[[], None]) -> Result:
    """Do the work; as often as it runs out of GPU memory, shrink it and do it again from its beginning.

    ``shrink`` makes the next try smaller, or raises `TrainingStopped` where it can be no smaller.
    """
    while True:
        try:
            return work()
        except torch.OutOfMemoryError:
            pass
        # Out here the error is gone, and with it the frames that held the failed try's tensors.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        shrink()
