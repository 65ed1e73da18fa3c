"""The evidence test: does a network still see the class when the tumour is gone?

Of every image whose tumour is known, the tumour is erased (its mask or box, with a margin), and as a control the region
of the same shape on the other side of the head. A network that looks at tumours loses its class with the tumour and
keeps it with the control. One that keeps it without the tumour reads something else in the picture, such as its source.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from brain_dist.common.files import check_writable, write_together
from brain_dist.common.progress import Progress, no_progress, show_progress
from brain_dist.errors import Fault, UserError
from brain_dist.explaining.erasing import control_region, erase, grow
from brain_dist.explaining.evidence_summary import summarise
from brain_dist.explaining.evidence_wording import markdown, print_summary
from brain_dist.explaining.record import FOLDER
from brain_dist.judging.predictions import Predictions, read_predictions

if TYPE_CHECKING:
    from brain_dist.inference.run import LoadedRun

MARGIN = 0.03  # of the input's side, around the lesion


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a network says of N images, of the same without their tumour, and of the controls.

    Attributes:
        table: the predictions of these images; their labels and groups count, not their probabilities.
        exact: bool [N], whether a mask is known, not only boxes.
        area: float64 [N], erased share of the network's input.
        control: str [N]: ``used``, or the reason why the control is missing, see
            :func:`~brain_dist.explaining.erasing.control_region`.
        prob: float32 [N, 3, K], probabilities for the original, without the tumour, and for the control; NaN without
            one.
        change: float64 [N, 2], mean absolute change of the erased pixels, in gray values: tumour and control.
        summary: see :func:`~brain_dist.explaining.evidence_summary.summarise`, with ``unknown`` (images without a known
            lesion) and ``outside`` (images whose lesion is outside the network's input), which are left out.
    """

    table: Predictions
    exact: np.ndarray
    area: np.ndarray
    control: np.ndarray
    prob: np.ndarray
    change: np.ndarray
    summary: dict[str, Any]


def evidence(
    run: Path, out: Path | None = None, *, name: str = "test", shards: str | None = None, micro_batch: int = 32,
    device: str = "auto",
) -> Evidence:  # fmt: skip
    """Make the evidence test with the images of a predictions table; write and print what came out.

    Args:
        run: the run's folder, with the predictions ``name``.
        out: folder of NAME-evidence.parquet, .json and .md; None is ``explanations`` in the run's folder.
        name: name of the predictions.
        shards: where their shards are now; None is where they were.
        micro_batch: images per forward pass.
        device: auto, cpu or cuda.

    Raises:
        UserError: the predictions are missing or adopted, their shards were rebuilt, no lesion is known, or the folder
            is not writable.
        Fault: the disk is full.
    """
    from brain_dist.inference.run import load_run
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.group import clear_faults
    from brain_dist.ranks.world import discover

    if micro_batch < 1:
        raise UserError(f"--batch {micro_batch}: must be ≥ 1")
    folder = out or run / FOLDER
    check_writable(folder, "choose another folder with --out")
    table = read_predictions(run / "predictions" / f"{name}.parquet").headline
    if table.adopted is not None:
        raise UserError(f"the predictions {name} of {run} were adopted from a file; the test needs their network")
    target = choose_device(discover({}), device)
    loaded = load_run(run, step=table.step, shards=shards or table.shards, device=str(target))
    if loaded.dataset.version != table.dataset_version:
        raise UserError(
            f"{loaded.dataset.root} was rebuilt since {run} was evaluated; evaluate it again, or add --shards FOLDER"
        )
    with clear_faults(f"lower --batch {micro_batch}"), show_progress() as progress:
        result = evidence_of(loaded, table, micro_batch=micro_batch, progress=progress)
    summary = result.summary
    files: dict[Path, bytes | str] = {
        folder / f"{name}-evidence.parquet": rows_parquet(result),
        folder / f"{name}-evidence.json": json.dumps(summary, indent=1) + "\n",
        folder / f"{name}-evidence.md": markdown(summary),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_together(files)
    except OSError as error:
        raise Fault(f"{folder} cannot be written ({error.strerror}); choose another folder with --out") from None
    print_summary(summary)
    print(f"evidence test: {folder / f'{name}-evidence.md'}")
    return result


def evidence_of(
    run: LoadedRun, table: Predictions, *, micro_batch: int = 32, progress: Progress = no_progress
) -> Evidence:
    """The evidence test of an opened run with the images of a predictions table.

    Raises:
        UserError: no lesion of these images is known.
        Fault: masks or shards are damaged.
    """
    from brain_dist.ranks.world import discover

    targets, outside = _targets(run, table)
    if not targets:
        raise UserError(
            f"{run.dataset.root} has no boxes or masks of lesions for these {len(table):,} images; build it with a"
            " recipe that names them (shards/README.md, Lesions)"
        )
    rows = np.array([target.row for target in targets], dtype=np.int64)
    prob = np.full((len(rows), 3, len(run.dataset.classes)), np.nan, np.float32)
    change = np.full((len(rows), 2), np.nan)
    control = np.empty(len(rows), dtype=object)
    place = {row: number for number, row in enumerate(rows.tolist())}
    done = 0
    for batch in run.batches(rows, micro_batch=micro_batch, world=discover({})):
        numbers = [place[row] for row in batch.row[batch.valid].tolist()]
        variants = []
        for image, number in zip(batch.image[batch.valid].cpu().numpy(), numbers, strict=True):
            changed, change[number], control[number] = _variants(image, targets[number])
            variants.append(changed)
        owner = np.repeat(numbers, [len(changed) for changed in variants])
        which = np.concatenate([np.arange(len(changed)) for changed in variants])
        prob[owner, which] = _probabilities(run, np.concatenate(variants), micro_batch)
        done += len(numbers)
        progress("evidence test", done, len(rows))
    part = table.take(np.searchsorted(table.row, rows))
    areas = np.array([target.region.mean() for target in targets])
    flags = np.array([target.exact for target in targets])
    summary = {
        "schema": 1,
        "run": str(run.path),
        "step": run.step,
        "shards": table.shards,
        "dataset_version": table.dataset_version,
        "margin": MARGIN,
        "masks": int(flags.sum()),
        "unknown": len(table) - len(rows) - outside,
        "outside": outside,
        "area": float(areas.mean()),
        **summarise(part, prob, control, change, classes=run.dataset.classes),
    }
    return Evidence(part, flags, areas, control, prob, change, summary)


class _Target(NamedTuple):
    """A row of the index, what is erased of it (bool [size, size]), the head's midline, and if its mask is known."""

    row: int
    region: np.ndarray
    midline: float
    exact: bool


def _targets(run: LoadedRun, table: Predictions) -> tuple[list[_Target], int]:
    """The images with a lesion in the network's input, and the number of those whose lesion is outside it."""
    from brain_dist.augmentation.augment import Frames, no_augmentation
    from brain_dist.store.lesions import read_lesions

    data, columns = run.config.data, run.dataset.columns
    size, margin = data.size, max(1, round(MARGIN * data.size))
    crops = no_augmentation(Frames.of(columns, head=data.head_crop), table.row).crop
    targets, outside = [], 0
    for row, crop, lesion in zip(table.row.tolist(), crops, read_lesions(run.dataset, table.row), strict=True):
        if lesion is None or not len(lesion.boxes):
            continue
        region = lesion.on_input(size, crop)
        if not region.any():
            outside += 1
            continue
        midline = float(columns["head_x"][row] + columns["head_w"][row] / 2 - crop[0]) * size / float(crop[2])
        targets.append(_Target(row, grow(region, margin), midline, lesion.mask is not None))
    return targets, outside


def _variants(image: np.ndarray, target: _Target) -> tuple[np.ndarray, list[float], str]:
    """An image uint8 [C, H, W] with its variants: as it is, without its lesion, and the control.

    Returns:
        uint8 [3, C, H, W], or [2, C, H, W] without a control; by how many gray values erasing changed the lesion and
        the control; ``used``, or the reason why the control is missing.
    """

    def erased(mask: np.ndarray) -> tuple[np.ndarray, float]:
        filled = erase(image, mask)
        return filled, float(np.abs(filled.astype(np.int16) - image)[:, mask].mean())

    without, change = erased(target.region)
    opposite = control_region(image.mean(axis=0).astype(np.uint8), target.region, target.midline)
    if isinstance(opposite, str):
        return np.stack([image, without]), [change, np.nan], opposite
    control, control_change = erased(opposite)
    return np.stack([image, without, control]), [change, control_change], "used"


def _probabilities(run: LoadedRun, images: np.ndarray, micro_batch: int) -> np.ndarray:
    """Probabilities float32 [B, K] of images uint8 [B, C, H, W]."""
    import torch

    with torch.no_grad():
        parts = torch.from_numpy(images).to(run.device).split(micro_batch)
        logits = torch.cat([run.model(run.normalize(part)).double() for part in parts])
    prob: np.ndarray = torch.softmax(logits, dim=1).float().cpu().numpy()
    return prob


def rows_parquet(result: Evidence) -> bytes:
    """A Parquet file with one row per image."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, prob = result.table, result.prob
    true = prob[np.arange(len(table)), :, table.label]
    missing = np.isnan(true)
    predicted = np.where(missing, 0, np.nan_to_num(prob).argmax(axis=2))
    columns = {
        "row": pa.array(table.row, pa.int64()),
        **{
            name: pa.array(getattr(table, name).tolist(), pa.string())
            for name in ("key", "dataset", "patient", "group")
        },
        "label": pa.array(table.label, pa.int16()),
        "mask": pa.array(result.exact, pa.bool_()),
        "area": pa.array(result.area, pa.float64()),
        "control": pa.array(result.control.tolist(), pa.string()),
    }
    for number, variant in enumerate(("original", "erased", "control")):
        columns[f"prob_{variant}"] = pa.array(true[:, number], pa.float32(), mask=missing[:, number])
        columns[f"predicted_{variant}"] = pa.array(predicted[:, number], pa.int16(), mask=missing[:, number])
    for number, variant in enumerate(("erased", "control")):
        values = result.change[:, number]
        columns[f"change_{variant}"] = pa.array(values, pa.float64(), mask=np.isnan(values))
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()
