"""Libraries that would report their use to somebody must not."""

from __future__ import annotations

import sys
from pathlib import Path

from helpers import command
from onnx import TensorProto, helper, save


def test_onnx_runtime_keeps_no_records_for_its_maker(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "model.onnx")
    code = f"""
from brain_dist.prediction.onnx_model import import_runtime
import_runtime().InferenceSession({str(tmp_path / "model.onnx")!r}, providers=["CPUExecutionProvider"])
"""
    home = tmp_path / "home"
    home.mkdir()
    command([sys.executable, "-c", code], HOME=str(home), XDG_CACHE_HOME=str(home / "cache"))
    assert [path for path in home.rglob("*") if path.is_file()] == []
