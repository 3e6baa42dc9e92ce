"""What a network holds in memory at its fullest, found with tensors that have a shape and no values."""

from copy import deepcopy
from typing import Any
from weakref import finalize

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rsdistill.models.network import Network


class Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of tensors that are alive, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: set[int] = set()
        self.now = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def most_bytes(network: Network, batch: int, bands: int, size: tuple[int, int]) -> int:
    """Return the bytes of all that is alive at once while ``batch`` windows of ``size`` pass ``network``, but for its parameters.

    What a library takes for its own use is not counted. The answers of ``network`` must depend on the window alone.
    """
    shape = deepcopy(network).to("meta")
    with torch.inference_mode(), Living() as living:
        shape(torch.empty(batch, bands, *size, device="meta"))
    return living.most
