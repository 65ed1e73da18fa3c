"""An ONNX graph with a free batch size, which ONNX Runtime and others run without torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.errors import UserError
from brain_dist.prediction.onnx_model import FEATURES, INPUT, LOGITS, MAPS

if TYPE_CHECKING:
    import numpy as np

    from brain_dist.prediction.torch_model import TorchModel

MAX_BATCH = 4096


def write_graph(model: TorchModel, pixels: np.ndarray, path: Path) -> None:
    """Write the graph from pixels to logits, features and, if the network has them, class activation maps.

    Args:
        model: the network, on the CPU.
        pixels: images uint8 [N, 1 or 3, S, S], on which it is tried whether the network has maps.
        path: the file.

    Raises:
        UserError: a package that it needs is not installed.
    """
    import torch

    from brain_dist.exporting.graph import FromPixels, has_maps

    onnx = import_onnx()
    opened, contract = model.opened, model.contract
    maps = has_maps(opened.model, model.inputs(pixels[:8]))
    channels = 1 if contract.color == "gray" else 3
    example = torch.zeros(2, channels, contract.size, contract.size, dtype=torch.uint8)  # 1 would be specialised
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            FromPixels(opened.model, opened.normalize, maps=maps).eval(),
            (example,),
            path,
            dynamo=True,
            input_names=[INPUT],
            output_names=[LOGITS, FEATURES, *([MAPS] if maps else [])],
            dynamic_shapes={INPUT: {0: batch}},
            external_data=False,
        )
    content = onnx.load(path)
    graph = content.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")  # paths and lines of the program that exported it
    onnx.save(content, path)


def import_onnx() -> Any:
    """Import onnx, and make sure of the package that torch exports by.

    Raises:
        UserError: one of them is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("ONNX is not installed; run `pip install 'brain_dist[export]'`") from None
    return onnx


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress that torch.onnx prints."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        yield
