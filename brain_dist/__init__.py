"""Distributed training and honest evaluation of brain-tumour MRI classifiers.

In Python::

    dataset = brain_dist.open_dataset("shards/built/NAME")      # manifest and index of a shard folder
    for batch in brain_dist.batches(dataset, "train"): ...      # images [B, C, H, W] and labels [B]
    brain_dist.load("runs/NAME").predict("slice.jpg")           # any image files
    predictions = brain_dist.load_run("runs/NAME").predict()    # of the test split
    predictions = brain_dist.read_predictions("runs/NAME/predictions/test.parquet")
    metrics = predictions.evaluate()
"""

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"
# ONNX Runtime's packages for Linux otherwise report their use to Microsoft, from its import on
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# imported when first used, so that `import brain_dist` and `--help` stay fast
_MODULES = {
    "batches": "brain_dist.stream.batches",
    "load": "brain_dist.prediction.predictor",
    "load_run": "brain_dist.inference.run",
    "open_dataset": "brain_dist.store.dataset",
    "read_predictions": "brain_dist.judging.predictions",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
