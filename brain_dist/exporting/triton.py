"""A model repository for Triton Inference Server: the ONNX graph, and a configuration with dynamic batching."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.exporting.onnx_graph import import_onnx
from brain_dist.prediction.onnx_model import REPOSITORY

if TYPE_CHECKING:
    from brain_dist.exporting.source import Source

CONFIG = "config.pbtxt"
LARGEST = 64  # images in a batch
TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8"}  # of ONNX's numbers


def write(source: Source, folder: Path) -> None:
    """Write the graph and its configuration; ``folder`` is the repository, with one model."""
    graph = folder / REPOSITORY
    graph.parent.mkdir(parents=True)
    graph.write_bytes(source.onnx)
    model = graph.parents[1]
    (model / CONFIG).write_text(configuration(model.name, import_onnx().load_model_from_string(source.onnx).graph))
    (folder / "README.md").write_text(_README)


def configuration(name: str, graph: Any) -> str:
    """The text of ``config.pbtxt`` for an ONNX graph with a free first dimension.

    A batch is sent when it has one of the preferred sizes or its first request has waited for 5 ms. A request that 256
    others wait before is refused.
    """
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {LARGEST}"]
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            sides = ", ".join(str(side.dim_value) for side in tensor.shape.dim[1:])  # without that of the batch
            lines.append(f'{kind} {{ name: "{value.name}" data_type: {TYPES[tensor.elem_type]} dims: [ {sides} ] }}')
    return "\n".join(lines) + _BATCHING


_BATCHING = """
dynamic_batching {
  preferred_batch_size: [ 8, 16 ]
  max_queue_delay_microseconds: 5000
  default_queue_policy { max_queue_size: 256 }
}
"""
_README = """# A model repository for Triton

    tritonserver --model-repository=FOLDER

Not run on a Triton server; its schema of `config.pbtxt` accepts this repository. `pixels` are those that
`preprocess.json` describes, uint8, not normalised: the graph does that. Not a medical device.
"""
