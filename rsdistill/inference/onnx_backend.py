"""The ONNX backend: exported models in onnxruntime, without torch."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from rsdistill.errors import CheckpointError, MissingExtraError
from rsdistill.geo.windows import Window
from rsdistill.inference.backends import Backend
from rsdistill.inference.scores import Floats
from rsdistill.models.card import FORMAT_VERSION, HEADER_KEY, ModelCard

Graphs = Callable[[tuple[int, int]], Path]
LEAST = np.float32(1e-30)
"""Probabilities below are taken for this, so that each has a logarithm."""


class GraphBackend(Backend):
    """Base of the backends that run ONNX files as ``export`` writes them: pixels divided by 255 in, probabilities out."""

    def __init__(self, graphs: Graphs, card: ModelCard, *, stride: int) -> None:
        """Run the graph that suits each batch.

        Args:
            graphs: names the ONNX file for windows of (height, width).
            card: the mean of each band, and the classes.
            stride: sides of the windows are multiples of it.
        """
        self._graphs, self.stride, self.classes = graphs, stride, len(card.classes)
        self._mean = np.array(card.mean, np.float32).reshape(-1, 1, 1)

    @abstractmethod
    def _run(self, pixels: Floats) -> Floats:
        """Return the probabilities of (N, C, T, T) pixels."""

    def __call__(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> Floats:
        """As the base class: logarithms of probabilities, which are logits up to a constant a pixel."""
        odds = np.maximum(self.ranks(images, valid, windows), LEAST)
        return np.log(odds, out=odds)

    def ranks(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> Floats:
        """As the base class: probabilities."""
        # Invalid pixels are 0 after normalisation, and the mean before it.
        pixels = np.where(valid[:, None], images, self._mean).astype(np.float32, copy=False)
        pixels /= np.float32(255)
        return self._run(pixels)


class OnnxBackend(GraphBackend):
    """ONNX files in onnxruntime."""

    def __init__(self, graphs: Graphs, card: ModelCard, *, stride: int, threads: int | None = None) -> None:
        """As the base class, with ``threads`` threads, as many as there are cores by default."""
        super().__init__(graphs, card, stride=stride)
        self._open = cache(lambda size: open_session(graphs(size), threads))

    def _run(self, pixels: Floats) -> Floats:
        session = self._open(pixels.shape[-2:])
        return session.run(None, {session.get_inputs()[0].name: pixels})[0]


def read_onnx_card(path: Path) -> ModelCard:
    """Return the card that ``export`` left in an ONNX file.

    Raises:
        CheckpointError: it is no ONNX model, or has no card.
    """
    text = open_session(path, 1).get_modelmeta().custom_metadata_map.get(HEADER_KEY)
    hint = "use a model that this version's rsdistill export wrote"
    if text is None:
        raise CheckpointError(f"{path} holds no '{HEADER_KEY}' card", hint=hint)
    try:
        card = ModelCard.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointError(f"the card in {path}: {error.errors(include_url=False)[0]['msg']}", hint=hint) from None
    if card.format_version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has card format_version {card.format_version}; {FORMAT_VERSION} is read", hint=hint)
    return card


def onnx_tile(path: Path) -> int:
    """Return the side of the square tiles that an ONNX file takes."""
    return _tile(path, open_session(path, 1))


def open_session(path: Path, threads: int | None) -> Any:
    """Open an ONNX file on the processor.

    Raises:
        CheckpointError: it is no ONNX model.
        MissingExtraError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError(f"{path} needs onnxruntime, which is not installed", hint="pip install 'rsdistill[onnx]'") from None
    if not path.is_file():
        raise CheckpointError(f"no model {path}", hint="rsdistill export makes one")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class but this
        reason = str(error).splitlines()[0][:160]
        raise CheckpointError(f"{path} is not an ONNX model: {reason}", hint="rsdistill export makes one") from None


def _tile(path: Path, session: Any) -> int:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = inputs[0].shape
    square = len(inputs) == len(outputs) == 1 and len(shape) == 4 and isinstance(shape[2], int) and shape[2] == shape[3]
    if not square:
        found = "; ".join(f"{one.name} {one.shape}" for one in inputs)
        raise CheckpointError(f"{path} takes {found}, not one stack of square tiles", hint="use a model that rsdistill export wrote")
    return int(shape[2])
