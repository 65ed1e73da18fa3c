"""An ONNX graph in 8-bit integers: static quantisation, with scales per channel from images of the training.

Not dynamic: it leaves convolutions with 32-bit activations, and depthwise ones lose their accuracy. Normalisations,
smooth activations and class activation maps keep 32 bits, as those of ConvNeXt have outliers that 8 bits cannot hold.
ReLU and ReLU6 belong to the convolution before them: the scale of its output is that of the values that they let pass.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.exporting.onnx_graph import import_onnx
from brain_dist.prediction.onnx_model import FEATURES, GRAPH, INPUT, LOGITS, import_runtime

if TYPE_CHECKING:
    from brain_dist.exporting.source import Source

BATCH = 20  # images at a time
OPERATIONS = ["Conv", "Gemm", "MatMul", "Relu", "Clip"]  # Clip: ReLU6


def write(source: Source, folder: Path) -> None:
    """Write the graph of the ONNX export, with the weights and inputs of its convolutions and products in 8 bits."""
    quantise(source.onnx, source.training, folder / GRAPH)


def quantise(graph: bytes, images: np.ndarray, path: Path) -> None:
    """Write an ONNX graph in 8 bits.

    Args:
        graph: the graph in 32 bits.
        images: images that say how large the activations are, uint8 [N, 1 or 3, S, S].
        path: the file.

    Raises:
        UserError: a package that it needs is not installed.
    """
    onnx = import_onnx()
    import_runtime()
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger().setLevel(max(logging.getLogger().level, logging.ERROR))
        exact, prepared = Path(temporary) / "exact.onnx", Path(temporary) / "prepared.onnx"
        exact.write_bytes(graph)
        quant_pre_process(exact, prepared, skip_symbolic_shape=True)  # which fails for a free batch
        quantization.quantize_static(
            prepared,
            path,
            _reader(quantization.CalibrationDataReader, images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=OPERATIONS,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=_only_for_maps(onnx.load(prepared).graph),
        )


def _reader(base: Any, pixels: np.ndarray) -> Any:
    """What ONNX Runtime reads the images of the calibration from."""

    class Reader(base):
        def __init__(self) -> None:
            self._batches: Iterator[np.ndarray] = iter(np.split(pixels, range(BATCH, len(pixels), BATCH)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


def _only_for_maps(graph: Any) -> list[str]:
    """Names of the nodes that neither the logits nor the features need."""
    producer = {name: node for node in graph.node for name in node.output}
    needed, waiting = set(), [LOGITS, FEATURES]
    while waiting:
        node = producer.get(waiting.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            waiting += node.input
    return [node.name for node in graph.node if node.name not in needed]
