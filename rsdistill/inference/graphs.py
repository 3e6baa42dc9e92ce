"""ONNX files of a network that is in memory, one for each size of window, made when it is first asked for; they go with it."""

from copy import deepcopy
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from weakref import finalize

from rsdistill.errors import MissingExtraError
from rsdistill.inference.served import Served
from rsdistill.models.card import ModelCard
from rsdistill.models.network import Network
from rsdistill.models.pointwise import quicken


class NetworkGraphs:
    """The files of one network."""

    def __init__(self, network: Network, card: ModelCard) -> None:
        """Make none yet; the answers of ``network`` must depend on the window alone."""
        self._network, self._card = network, card
        self._folder = Path(mkdtemp(prefix="rsdistill-"))
        finalize(self, rmtree, self._folder, ignore_errors=True)

    def __call__(self, size: tuple[int, int]) -> Path:
        """Return the file for windows of (height, width).

        Raises:
            MissingExtraError: onnx or onnxscript is not installed.
        """
        path = self._folder / f"{size[0]}x{size[1]}.onnx"
        if not path.exists():
            try:
                import onnxscript  # noqa: F401  (torch's exporter needs it, and says so at length)
            except ImportError as error:
                message = f"this backend needs {error.name}, which is not installed"
                raise MissingExtraError(message, hint="pip install 'rsdistill[onnx]'") from None
            from rsdistill.inference.exporting import onnx_graph

            network = deepcopy(self._network).cpu()
            quicken(network, "meta")
            served = Served(network, self._card).eval()
            path.write_bytes(onnx_graph(served, self._card, size).SerializeToString())
        return path
