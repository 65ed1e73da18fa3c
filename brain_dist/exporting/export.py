"""Export the network of a run to other formats, each with a certificate of parity on the run's own test images.

==== =================================================================================================================
hf   the layout of the Hugging Face hub: ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads it
onnx a graph for ONNX Runtime and others, without torch: pixels → logits, features, class activation maps
pt2  a program of torch.export with a free batch size, which needs torch but neither timm nor this project
==== =================================================================================================================
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.common.files import partial_folder
from brain_dist.errors import Fault, UserError
from brain_dist.exporting import hub, onnx_graph, program
from brain_dist.exporting.source import Source
from brain_dist.ood.record import FILE as DETECTOR
from brain_dist.prediction.model import open_model
from brain_dist.prediction.outputs import Model, Outputs
from brain_dist.prediction.torch_model import TorchModel
from brain_dist.stream.contract import FILE

if TYPE_CHECKING:
    from brain_dist.inference.run import LoadedRun

CERTIFICATE = "parity.json"
TOLERANCE = 1e-4  # of a logit, between the export and the run
WRITERS: dict[str, Callable[[Source, Path], None]] = {
    "hf": hub.write, "onnx": onnx_graph.write, "pt2": program.write,
}  # fmt: skip


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
        maps: whether it gives class activation maps, whose means over the cells were confirmed to be the logits but for
            a constant of the class.
        size: bytes of the exported folder without this certificate.
    """

    target: str
    images: int
    max_logit: float
    other_labels: int
    accuracy: float
    run_accuracy: float
    maps: bool
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
    source = Source(model, pixels)
    expected = _outputs(model, pixels, micro_batch)
    for target in targets:
        with partial_folder(out / target) as folder:
            WRITERS[target](source, folder)
            (folder / FILE).write_text(model.contract.to_json())
            if model.detector is not None:
                shutil.copyfile(run / DETECTOR, folder / DETECTOR)
            actual = _outputs(open_model(folder, device="cpu"), pixels, micro_batch)
            parity = _compare(target, actual, expected, label, folder)
            (folder / CERTIFICATE).write_text(json.dumps(asdict(parity), indent=1) + "\n")
        print(
            f"{out / target}: {parity.size / 1e6:.1f} MB, {parity.images:,} test images, largest difference of a logit"
            f" {parity.max_logit:.1e}, other labels {parity.other_labels}, accuracy {parity.accuracy:.2%}"
            f" (of the run {parity.run_accuracy:.2%})"
        )


def _test_images(loaded: LoadedRun, micro_batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The run's test images as evaluation loads them, uint8 [N, C, S, S], and their labels int64 [N]."""
    from brain_dist.ranks.world import discover

    batches = list(loaded.batches(loaded.rows("test"), micro_batch=micro_batch, world=discover({})))
    images = np.concatenate([batch.image[batch.valid].cpu().numpy() for batch in batches])
    return images, np.concatenate([batch.label[batch.valid].cpu().numpy() for batch in batches])


def _outputs(model: Model, pixels: np.ndarray, micro_batch: int) -> Outputs:
    parts = [model.outputs(pixels[start : start + micro_batch]) for start in range(0, len(pixels), micro_batch)]
    maps = [part.maps for part in parts if part.maps is not None]
    return Outputs(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.features for part in parts]),
        np.concatenate(maps) if maps else None,
    )


def _compare(target: str, actual: Outputs, expected: Outputs, label: np.ndarray, folder: Path) -> Parity:
    """How an export compares with the run.

    Raises:
        Fault: a logit, a label, or the maps are not those of the run.
    """
    from brain_dist.exporting.graph import TOLERANCE as OF_MAPS
    from brain_dist.exporting.graph import maps_add_up

    own, other = expected.logits.argmax(axis=1), actual.logits.argmax(axis=1)
    difference, changed = float(np.abs(actual.logits - expected.logits).max()), int((own != other).sum())
    if difference > TOLERANCE or changed:
        raise Fault(
            f"{target}: a logit differs by {difference:.2g} from the run's and {changed} of {len(label)} images get"
            " another class, so the export is not kept"
        )
    if actual.maps is not None and maps_add_up(actual.maps, actual.logits) > OF_MAPS:
        raise Fault(f"{target}: the class activation maps do not add up to the logits, so the export is not kept")
    return Parity(
        target=target,
        images=len(label),
        max_logit=difference,
        other_labels=changed,
        accuracy=float((other == label).mean()),
        run_accuracy=float((own == label).mean()),
        maps=actual.maps is not None,
        size=sum(path.stat().st_size for path in folder.iterdir() if path.name != "lock"),
    )
