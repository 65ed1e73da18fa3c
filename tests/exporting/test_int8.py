"""Graphs in 8 bits say nearly what they say in 32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from brain_dist.exporting.int8 import quantise
from brain_dist.prediction.onnx_model import FEATURES, INPUT, LOGITS, session_options


def clipped_network() -> onnx.ModelProto:
    """Two convolutions with ReLU6 and ReLU. The outputs of the first reach far beyond what ReLU6 lets pass."""
    rng = np.random.default_rng(0)
    values = {
        "first": rng.normal(0, 0.3, (8, 1, 3, 3)).astype(np.float32),
        "second": rng.normal(0, 0.3, (8, 8, 1, 1)).astype(np.float32),
        "last": rng.normal(0, 0.3, (4, 8)).astype(np.float32),
        **{"low": np.float32(0), "high": np.float32(6), "axes": np.array([2, 3])},
    }
    nodes = [
        helper.make_node("Cast", [INPUT], ["gray"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["gray", "first"], ["wide"]),
        helper.make_node("Clip", ["wide", "low", "high"], ["clipped"]),
        helper.make_node("Conv", ["clipped", "second"], ["narrow"]),
        helper.make_node("Relu", ["narrow"], ["positive"]),
        helper.make_node("ReduceMax", ["positive", "axes"], [FEATURES], keepdims=0),
        helper.make_node("Gemm", [FEATURES, "last"], [LOGITS], transB=1),
    ]
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", 1, 16, 16])]
    outputs = [
        helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", 8]),
    ]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "clipped", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_the_range_of_a_convolution_is_what_its_activation_lets_pass(tmp_path: Path) -> None:
    model, path = clipped_network(), tmp_path / "int8.onnx"
    images = np.random.default_rng(1).integers(0, 256, (64, 1, 16, 16), dtype=np.uint8)
    quantise(model.SerializeToString(), images, path)
    exact, small = (
        onnxruntime.InferenceSession(graph, session_options(onnxruntime)).run([LOGITS], {INPUT: images})[0]
        for graph in (model.SerializeToString(), path.read_bytes())
    )
    assert np.abs(small - exact).max() < 0.04 * np.abs(exact).max()
    assert not {"Clip", "Relu"} & {node.op_type for node in onnx.load(path).graph.node}
