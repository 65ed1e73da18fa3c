"""Export the network of a run to other formats, each with a certificate of parity on the run's own test images.

==== =================================================================================================================
hf   the layout of the Hugging Face hub: ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads it
pt2  a program of torch.export with a free batch size, which needs torch but neither timm nor this project
==== =================================================================================================================
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.common.files import partial_folder
from brain_dist.errors import Fault, UserError
from brain_dist.ood.record import FILE as DETECTOR
from brain_dist.prediction.model import PROGRAM, Model, TorchModel, open_model
from brain_dist.stream.contract import FILE, Contract

if TYPE_CHECKING:
    from brain_dist.inference.run import LoadedRun

CERTIFICATE = "parity.json"
TOLERANCE = 1e-4  # of a logit, between the export and the run


@dataclass(frozen=True)
class Parity:
    """How an export compares with the run's network on the same images.

    Attributes:
        target: the format.
        images: number of test images.
        max_logit: largest absolute difference of a logit.
        other_labels: number of images with another predicted class.
        accuracy: of the export.
        run_accuracy: of the run's network.
        size: bytes of the exported folder without this certificate.
    """

    target: str
    images: int
    max_logit: float
    other_labels: int
    accuracy: float
    run_accuracy: float
    size: int


def export(
    run: Path, out: Path, targets: Sequence[str], *, step: int | str | None = None, shards: str | None = None,
    micro_batch: int = 32,
) -> None:  # fmt: skip
    """Write a folder for each format into ``out``, and print how each compares with the run.

    Args:
        run: the run's folder.
        out: folder of the exports; each gets a folder of its format's name, which must not exist.
        targets: names of formats.
        step: see :func:`brain_dist.inference.run.load_run`.
        shards: where the run's own shards are now.
        micro_batch: images per forward pass of the comparison.

    Raises:
        UserError: an unknown format, a folder that exists, or the run or its shards cannot be used.
        Fault: an export says something else than the run; it is not kept.
    """
    from brain_dist.inference.run import load_run

    for target in targets:
        if target not in WRITERS:
            raise UserError(f"--to {','.join(targets)}: {target!r} is unknown; choose from {', '.join(WRITERS)}")
        if (out / target).exists():
            raise UserError(f"{out / target} exists; remove it, or choose another folder with --out")
    loaded = load_run(run, step=step, shards=shards)
    if loaded.dataset.version != loaded.trained_version:
        raise UserError(f"{loaded.dataset.root} is not what {run} was trained on; the comparison needs its own shards")
    model = open_model(run, step=loaded.step, device="cpu")
    assert isinstance(model, TorchModel)
    pixels, label = _test_images(loaded, micro_batch)
    expected = _logits(model, pixels, micro_batch)
    for target in targets:
        with partial_folder(out / target) as folder:
            WRITERS[target](model, folder)
            (folder / FILE).write_text(model.contract.to_json())
            if model.detector is not None:
                shutil.copyfile(run / DETECTOR, folder / DETECTOR)
            actual = _logits(open_model(folder, device="cpu"), pixels, micro_batch)
            parity = _compare(target, actual, expected, label, folder)
            if parity.max_logit > TOLERANCE or parity.other_labels:
                raise Fault(
                    f"{target}: a logit differs by {parity.max_logit:.2g} from the run's and {parity.other_labels} of"
                    f" {parity.images} images get another class, so the export is not kept"
                )
            (folder / CERTIFICATE).write_text(json.dumps(asdict(parity), indent=1) + "\n")
        print(
            f"{out / target}: {parity.size / 1e6:.1f} MB, {parity.images:,} test images, largest difference of a logit"
            f" {parity.max_logit:.1e}, other labels {parity.other_labels}, accuracy {parity.accuracy:.2%}"
            f" (of the run {parity.run_accuracy:.2%})"
        )


def write_hf(model: TorchModel, folder: Path) -> None:
    """Write weights, config.json and a README that says how to use them."""
    import timm.models

    network: Any = model.opened.model
    contract = model.contract
    own = {
        "input_size": (contract.channels, contract.size, contract.size),
        "mean": contract.mean[: contract.channels],
        "std": contract.std[: contract.channels],
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
        model_args={"in_chans": contract.channels, **model.opened.options},
        safe_serialization=True,
    )
    (folder / "README.md").write_text(_readme(contract))


def write_pt2(model: TorchModel, folder: Path) -> None:
    """Write the program [B, C, S, S] → (features [B, D], logits [B, K])."""
    import torch

    class Outputs(torch.nn.Module):
        """The network with its features."""

        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            maps = self.network.forward_features(images)
            features = self.network.forward_head(maps, pre_logits=True).flatten(1)
            return features, self.network.forward_head(maps)

    contract = model.contract
    example = torch.zeros(2, contract.channels, contract.size, contract.size)  # torch.export specialises 0 and 1
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():
        program = torch.export.export(Outputs(model.opened.model), (example,), dynamic_shapes={"images": {0: batch}})
    torch.export.save(program, folder / PROGRAM)


WRITERS: dict[str, Callable[[TorchModel, Path], None]] = {"hf": write_hf, "pt2": write_pt2}


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


def _test_images(loaded: LoadedRun, micro_batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The run's test images as evaluation loads them, uint8 [N, C, S, S], and their labels int64 [N]."""
    from brain_dist.ranks.world import discover

    batches = list(loaded.batches(loaded.rows("test"), micro_batch=micro_batch, world=discover({})))
    images = np.concatenate([batch.image[batch.valid].cpu().numpy() for batch in batches])
    return images, np.concatenate([batch.label[batch.valid].cpu().numpy() for batch in batches])


def _logits(model: Model, pixels: np.ndarray, micro_batch: int) -> np.ndarray:
    starts = range(0, len(pixels), micro_batch)
    return np.concatenate([model.outputs(pixels[start : start + micro_batch]).logits for start in starts])


def _compare(target: str, actual: np.ndarray, expected: np.ndarray, label: np.ndarray, folder: Path) -> Parity:
    own, other = expected.argmax(axis=1), actual.argmax(axis=1)
    return Parity(
        target=target,
        images=len(label),
        max_logit=float(np.abs(actual - expected).max()),
        other_labels=int((own != other).sum()),
        accuracy=float((other == label).mean()),
        run_accuracy=float((own == label).mean()),
        size=sum(path.stat().st_size for path in folder.iterdir() if path.name != "lock"),
    )
