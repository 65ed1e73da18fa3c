"""What the writers of exports have: the opened network, and images."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.prediction.torch_model import TorchModel

if TYPE_CHECKING:
    from brain_dist.inference.run import LoadedRun

CALIBRATION = 200  # images of the training that quantisation looks at
SEED = 0


@dataclass(frozen=True)
class Source:
    """A network to export.

    Attributes:
        model: the network, on the CPU.
        loaded: its run.
        pixels: the run's test images, uint8 [N, 1 or 3, S, S].
        label: their classes, int64 [N].
        group: their groups [N]: patients, with their copies.
        libraries: where npm installed what the browser edition needs; None if it is not exported.
    """

    model: TorchModel
    loaded: LoadedRun
    pixels: np.ndarray
    label: np.ndarray
    group: np.ndarray
    libraries: Path | None = None

    @cached_property
    def onnx(self) -> bytes:
        """The network as an ONNX graph, which several formats hold."""
        from brain_dist.exporting.onnx_graph import write_graph

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph.onnx"
            write_graph(self.model, self.pixels, path)
            return path.read_bytes()

    @cached_property
    def training(self) -> np.ndarray:
        """At most 200 training images, of all classes alike, as evaluation loads them: uint8 [N, 1 or 3, S, S]."""
        rows, rng = self.loaded.rows("train"), np.random.default_rng(SEED)
        label = self.loaded.dataset.columns["label"][rows]
        share = CALIBRATION // len(self.model.contract.classes)
        chosen = [rng.permutation(rows[label == c])[:share] for c in range(len(self.model.contract.classes))]
        return load_pixels(self.loaded, np.sort(np.concatenate(chosen)))[0]


def open_source(model: TorchModel, loaded: LoadedRun, libraries: Path | None = None) -> Source:
    """What writers need of a run."""
    rows = loaded.rows("test")
    pixels, label, seen = load_pixels(loaded, rows)
    return Source(model, loaded, pixels, label, loaded.dataset.columns["group"][seen], libraries)


def load_pixels(loaded: LoadedRun, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the run's shards as evaluation loads them.

    Args:
        loaded: the run.
        rows: int64 [N].

    Returns:
        Images uint8 [N, 1 or 3, S, S], their labels int64 [N], and their rows int64 [N], in the order of loading.
    """
    from brain_dist.ranks.world import discover

    batches = list(loaded.batches(rows, micro_batch=min(32, len(rows)), world=discover({})))
    parts = [
        [values[batch.valid].cpu().numpy() for values in (batch.image, batch.label, batch.row)] for batch in batches
    ]
    pixels, label, seen = (np.concatenate(values) for values in zip(*parts, strict=True))
    return pixels, label, seen
