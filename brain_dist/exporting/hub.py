"""The layout of the Hugging Face hub: ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brain_dist.exporting.source import Source
    from brain_dist.stream.contract import Contract


def write(source: Source, folder: Path) -> None:
    """Write weights, config.json and a README that says how to use them."""
    import timm.models

    network: Any = source.model.opened.model
    contract, options = source.model.contract, source.model.opened.options
    own = {
        "input_size": (contract.channels, contract.size, contract.size),
        "mean": _of_channels(contract.mean, contract.channels),
        "std": _of_channels(contract.std, contract.channels),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "fixed_input_size": False,
    }
    network.pretrained_cfg = {**dict(network.pretrained_cfg), **own}
    timm.models.save_for_hf(
        network,
        str(folder),
        model_config={"label_names": list(contract.classes), "needs": "brain_dist"},
        # timm ignores an option that is None when it creates a network by name, but not when it opens a folder
        model_args={"in_chans": contract.channels, **{k: v for k, v in options.items() if v is not None}},
        safe_serialization=True,
    )
    (folder / "README.md").write_text(_readme(contract))


def _of_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A mean or standard deviation of each channel of the input: one channel takes the average of the three."""
    return values if channels == len(values) else (sum(values) / len(values),)


def _readme(contract: Contract) -> str:
    classes = ", ".join(contract.classes)
    return f"""---
library_name: timm
tags: [image-classification, brain-mri]
---

Classes: {classes}. Not a medical device.

The pixels of its evaluation are made as `preprocess.json` says; a resize alone gives other ones (head crop, stretch):

```python
import brain_dist
brain_dist.load("FOLDER").predict("slice.jpg")
```

The network alone: `timm.create_model("local-dir:FOLDER", pretrained=True)`. `parity.json` compares it with the run.
"""
