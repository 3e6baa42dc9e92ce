"""Two lanes to an accelerator: while one batch is computed, the next one's pixels and the last one's answer are on the bus."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Lane:
    """A CUDA stream and a page-locked buffer, which the bus reads while the processor goes on."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._buffer = torch.empty(0, dtype=torch.uint8)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Queue what is started in this context in the lane, behind what the device was asked for before."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def pinned(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return ``values`` in page-locked memory, which the lane's next call overwrites."""
        if self._buffer.numel() < values.nbytes:
            self._buffer = torch.empty(values.nbytes, dtype=torch.uint8, pin_memory=True)
        place: NDArray[Any] = self._buffer[: values.nbytes].numpy().view(values.dtype).reshape(values.shape)
        np.copyto(place, values)
        return place

    def fetch(self, answer: Tensor) -> Callable[[], NDArray[Any]]:
        """Start to bring ``answer`` back; return what waits for it."""
        host = torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True)
        host.copy_(answer, non_blocking=True)
        done = self._stream.record_event()

        def wait() -> NDArray[Any]:
            done.synchronize()
            return host.numpy()

        return wait


def lanes(device: torch.device, *, one_stream: bool) -> Iterator[Lane]:
    """Return two lanes in turn, for ever; on one stream where batches share what an earlier one made."""
    streams = [torch.cuda.Stream(device) for _ in range(1 if one_stream else 2)]  # type: ignore[no-untyped-call]
    return cycle([Lane(streams[0]), Lane(streams[-1])])
