"""The browser edition: the ONNX graph with the page and the libraries that it needs in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from brain_dist.prediction.onnx_model import GRAPH, OnnxModel
from brain_dist.prediction.predictor import Predictor
from brain_dist.serving.documents import model_document
from brain_dist.serving.maps import map_method
from brain_dist.web.build import write_edition

if TYPE_CHECKING:
    from brain_dist.exporting.source import Source

LIMITS = {"bytes": 100e6, "pixels": 8192 * 8192, "frames": 512}  # of a file; those of checks.js


def write(source: Source, folder: Path) -> None:
    """Write the graph and the edition around it."""
    assert source.libraries is not None
    (folder / GRAPH).write_bytes(source.onnx)
    model = OnnxModel(folder / GRAPH, source.model.contract, source.model.detector, "cpu")
    about = {"name": source.loaded.path.name, "speed": None, "maps": map_method(model), "card": None}
    write_edition(folder, source.libraries, model_document(Predictor(model), LIMITS, about))
