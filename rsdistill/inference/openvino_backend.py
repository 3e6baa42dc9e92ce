"""The OpenVINO backend: exported models in Intel's runtime, which has processors compute in bfloat16 where they can."""

from functools import cache
from typing import Any

import numpy as np

from rsdistill.errors import MissingExtraError
from rsdistill.inference.onnx_backend import GraphBackend, Graphs
from rsdistill.inference.scores import Floats
from rsdistill.models.card import ModelCard

HINTS = {"float32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoBackend(GraphBackend):
    """ONNX files in OpenVINO, on the processor."""

    def __init__(self, graphs: Graphs, card: ModelCard, *, stride: int, precision: str, threads: int | None = None) -> None:
        """As the base class, with ``threads`` threads, as many as there are cores by default.

        Raises:
            MissingExtraError: openvino is not installed.
        """
        super().__init__(graphs, card, stride=stride)
        try:
            import openvino
        except ImportError:
            raise MissingExtraError(
                "--backend openvino needs openvino, which is not installed", hint="pip install 'rsdistill[openvino]'"
            ) from None
        core = openvino.Core()
        how: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision]}
        how |= {"INFERENCE_NUM_THREADS": threads} if threads else {}

        def compiled(shape: tuple[int, ...]) -> Any:
            graph = core.read_model(graphs((shape[-2], shape[-1])))
            graph.reshape(list(shape))  # a graph for any number of windows is slower
            return core.compile_model(graph, "CPU", how)

        self._compiled = cache(compiled)

    def _run(self, pixels: Floats) -> Floats:
        return np.asarray(self._compiled(pixels.shape)(pixels)[0])
