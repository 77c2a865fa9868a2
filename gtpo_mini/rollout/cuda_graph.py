"""One decoding step recorded as a CUDA graph and played again: the GPU gets its work in one call, not kernel by kernel.

A recording holds addresses and sizes, so it is good for one key (rows, width of the cache, prompts) only, and is
made when a key has been seen a few times. What a device or a library cannot record is computed plainly, and so is
everything if a recording ever differs from the plain step.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable

import torch

_SEEN = 4  # a recording costs about three plain steps: rows that change often are not worth one
_CLOSE = 0.02  # of the largest logit; half precision rounds to 0.004

Step = Callable[[], torch.Tensor]


@functools.cache
def _side_stream() -> torch.cuda.Stream:
    """One for all recordings: the allocator keeps memory for each stream apart."""
    return torch.cuda.Stream()


def record_cuda(step: Step) -> Step:
    """Record ``step`` on the GPU; the result plays it again into the same tensor."""
    graph, stream = torch.cuda.CUDAGraph(), _side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # so that libraries have their work space before the recording
        # Not `torch.cuda.graph`: it collects garbage and empties the allocator's cache at each recording.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            result = step()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


class GraphedSteps:
    """Runs decoding steps, from a recording where there is one.

    Args:
        record: makes a recording of a step (`record_cuda`); raises RuntimeError where it cannot.
    """

    def __init__(self, record: Callable[[Step], Step] = record_cuda) -> None:
        self.record, self.works = record, True
        self.forget()

    def forget(self) -> None:
        """Give up the recording, and the memory that it holds."""
        self.key: Hashable = None
        self.seen, self.inputs, self.replay, self.step = 0, None, None, None

    def run(
        self, key: Hashable, inputs: torch.Tensor, device: torch.device, step: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """``step(inputs)``, which may be overwritten by the next call; a step waits for no host, and may be done twice.

        Args:
            key: all that ``step`` depends on beside ``inputs`` and the contents of tensors that stay where they are.
            inputs: on the CPU, always of the same shape for a key; ``step`` takes them on ``device``.
        """
        if key != self.key:
            self.forget()
            self.key = key
        self.seen += 1
        if self.replay is not None:
            self.inputs.copy_(inputs)
            return self.replay()
        held = inputs.to(device)
        plain = step(held)
        if self.works and self.seen == _SEEN:
            self._try_to_record(held, lambda: step(held), plain)
        return plain

    def _try_to_record(self, inputs: torch.Tensor, step: Step, plain: torch.Tensor) -> None:
        try:
            replay = self.record(step)
            again, most = replay(), plain.abs().max()
            if not torch.allclose(again, plain, rtol=0.0, atol=_CLOSE * most.item(), equal_nan=True):
                raise RuntimeError("a recorded step differs from the plain one")
        except RuntimeError as error:
            self.works = False
            warnings.warn(f"decoding without CUDA graphs: {str(error).splitlines()[0]}", stacklevel=2)
        else:
            # With the step live the tensors that it holds; the recording knows only where they lie.
            self.inputs, self.replay, self.step = inputs, replay, step
