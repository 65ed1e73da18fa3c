"""A model that ONNX Runtime computes, on a machine that needs neither torch nor timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.errors import UserError
from brain_dist.ood.record import Detector
from brain_dist.prediction.outputs import Outputs
from brain_dist.ranks.threads import choose_threads
from brain_dist.ranks.world import discover
from brain_dist.stream.contract import Contract

GRAPH = "model.onnx"
REPOSITORY = Path("brain_dist", "1", GRAPH)  # in a model repository of Triton
INPUT, LOGITS, FEATURES, MAPS = "pixels", "logits", "features", "maps"  # names in the graph
_GPU, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OnnxModel:
    """An ONNX graph: ``pixels`` uint8 [B, 1 or 3, S, S] → ``logits``, ``features`` and, of some networks, ``maps``.

    The graph normalises the pixels itself. It computes with the threads that
    :func:`~brain_dist.ranks.threads.choose_threads` gives this process.

    Args:
        path: the graph.
        contract: what its pixels and outputs mean.
        detector: for its features and logits; None if none was fitted.
        device: auto (a GPU if this build of ONNX Runtime can use one), cpu or cuda.

    Raises:
        UserError: ONNX Runtime is not installed, finds no GPU that was asked for, or cannot open the graph.
    """

    def __init__(self, path: Path, contract: Contract, detector: Detector | None = None, device: str = "auto") -> None:
        runtime = import_runtime()
        self.contract, self.detector = contract, detector
        wants_gpu = device.startswith("cuda")
        has_gpu = _GPU in runtime.get_available_providers()
        if wants_gpu and not has_gpu:
            raise UserError(
                "device=cuda, but this build of ONNX Runtime has no CUDA; install onnxruntime-gpu, or use cpu"
            )
        providers = [_GPU, _CPU] if has_gpu and device != "cpu" else [_CPU]
        options = session_options(runtime)
        self.threads = options.intra_op_num_threads
        try:
            self._session = runtime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # whatever ONNX Runtime raises about a damaged file
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} cannot be opened by ONNX Runtime ({reason}); export the run again") from None
        names = [each.name for each in self._session.get_outputs()]
        if [each.name for each in self._session.get_inputs()] != [INPUT] or not {LOGITS, FEATURES} <= set(names):
            raise UserError(
                f"{path} is not a graph that `brain-dist export` writes: its outputs are {', '.join(names)}"
            )
        self.has_maps = MAPS in names

    def outputs(self, pixels: np.ndarray) -> Outputs:
        """The outputs for images uint8 [B, 1 or 3, S, S]."""
        names = [LOGITS, FEATURES, MAPS] if self.has_maps else [LOGITS, FEATURES]
        return Outputs(*self._session.run(names, {INPUT: np.ascontiguousarray(pixels)}))


def session_options(runtime: Any) -> Any:
    """How ONNX Runtime opens every graph of ours.

    x86 processors without VNNI add pairs of 8-bit products in 16 bits, which saturate: logits of a graph in 8 bits were
    wrong by up to a seventh of the largest one. ONNX Runtime then adds them in 32 bits, which takes longer; processors
    with VNNI do so anyway.
    """
    options = runtime.SessionOptions()
    options.intra_op_num_threads = choose_threads(discover()).count
    options.log_severity_level = 3  # errors only; what fails is raised, too
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def import_runtime() -> Any:
    """Import ONNX Runtime.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("ONNX Runtime is not installed; run `pip install 'brain_dist[export]'`") from None
    return onnxruntime
