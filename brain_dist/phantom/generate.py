"""The phantom collection: synthetic brain-MRI slices with known truth, written like a published collection.

Files::

    DIR/<class>/<id>.jpg      grayscale slices, JPEG quality 95
    DIR/masks/<id>.png        the tumour, 0 or 255 (tumour classes only)
    DIR/patients.csv          id, class, patient
    DIR/truth.csv             id, patient, class, plane, the tumour's box (pixels) and place (MNI mm), the scanner
    DIR/planted.csv           id, of, kind: planted copies, if there are any, see brain_dist.phantom.planting
    DIR/phantom.json          the settings

With a published split the class folders are in DIR/Training and DIR/Testing. DIR/Testing has a fifth of the patients,
equally many of each class.

Phantoms test the software, not the medicine: no image shows a real person.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from brain_dist.collection.recipes import CLASSES
from brain_dist.common.files import partial_folder
from brain_dist.common.progress import Progress, no_progress
from brain_dist.common.workers import worker_pool
from brain_dist.errors import UserError
from brain_dist.phantom.patients import draw_patient
from brain_dist.phantom.planting import QUALITY, TEST, TRAIN, Row, image_path, plant
from brain_dist.phantom.slices import PLANES, render

GENERATOR = 2  # increase it whenever the same settings give other bytes


@dataclass(frozen=True)
class PhantomSettings:
    """What decides the bytes of a phantom collection.

    Attributes:
        seed: seed of everything that is drawn.
        patients: number of patients.
        slices: number of slices of each patient.
        size: pixels per side.
        planes: planes of the slices.
        plant: number of planted copies, as a fraction of the slices.
        published: divide the patients between two folders, as published collections do.

    Raises:
        UserError: a setting is out of range.
    """

    seed: int
    patients: int
    slices: int
    size: int
    planes: tuple[str, ...] = PLANES
    plant: float = 0.0
    published: bool = False

    def __post_init__(self) -> None:
        _check_range("patients", self.patients, 8 if self.published else 4, 1_000_000)  # each folder has each class
        _check_range("slices", self.slices, 1, 1000)
        _check_range("size", self.size, 64, 1024)
        _check_range("seed", self.seed, 0, 2**63)
        _check_range("plant", self.plant, 0, 1)
        if not self.planes or not set(self.planes) <= set(PLANES):
            raise UserError(f"--planes {','.join(self.planes)} must be one or more of {', '.join(PLANES)}")

    def as_dict(self) -> dict[str, Any]:
        """The settings as ``phantom.json`` stores them."""
        return {"generator": GENERATOR, **asdict(self), "planes": list(self.planes)}


def _check_range(name: str, value: float, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UserError(f"--{name} {value} must be from {low} to {high}")


def generate(out: Path, settings: PhantomSettings, *, workers: int, progress: Progress = no_progress) -> None:
    """Write a phantom collection into ``out``, unless it already contains the same one.

    Args:
        out: the folder; it appears complete or not at all.
        settings: what decides the bytes.
        workers: number of processes; it does not change the bytes.
        progress: called with the numbers of patients done and in all.

    Raises:
        UserError: ``workers`` is out of range, ``out`` contains something else, or it cannot be written.
    """
    _check_range("workers", workers, 1, 1024)
    if _exists(out, settings):
        print(f"{out} already contains this phantom collection: nothing to do", flush=True)
        return
    with partial_folder(out) as folder:
        _write_collection(folder, settings, workers, progress)


def _exists(out: Path, settings: PhantomSettings) -> bool:
    """Whether ``out`` contains exactly this collection; raises :class:`UserError` if it contains anything else."""
    if out.is_file():
        raise UserError(f"{out} is a file; choose another folder for the phantoms")
    record = out / "phantom.json"
    if not record.exists():
        if out.exists() and any(out.iterdir()):
            raise UserError(
                f"{out} is not empty and is not a complete phantom collection; choose another folder or delete it"
            )
        return False
    try:
        stored = json.loads(record.read_text())
        differences = [
            f"{k} {stored.get(k)} instead of {v}" for k, v in settings.as_dict().items() if stored.get(k) != v
        ]
    except (ValueError, AttributeError) as error:
        raise UserError(f"{record} is damaged; delete {out} and generate it again") from error
    if differences:
        raise UserError(
            f"{out} contains another phantom collection ({', '.join(differences)}); choose another folder or delete it"
        )
    return True


def _write_collection(folder: Path, settings: PhantomSettings, workers: int, progress: Progress) -> None:
    patients, slices = settings.patients, settings.slices
    images = patients * slices
    planted = round(settings.plant * images)
    total = images + planted
    # in random order, so that an id reveals neither the class nor the patient
    order = np.random.default_rng([settings.seed, 6]).permutation(total) + 1
    ids = [f"ph{number:0{max(6, len(str(total)))}d}" for number in order]
    parts = _published_parts(settings)
    for name in (Path("masks"), *(Path(part, label) for part in set(parts) for label in CLASSES)):
        (folder / name).mkdir(parents=True)
    jobs = [(number, part, ids[number * slices : (number + 1) * slices]) for number, part in enumerate(parts)]
    rows: list[Row] = []
    with worker_pool(min(workers, patients)) as run:
        for done, patient_rows in enumerate(run(partial(_write_patient, folder, settings), jobs, 1), 1):
            rows += patient_rows
            progress("phantoms", done, patients)
    copies = plant(folder, rows, ids[images:], patients, settings.seed)
    if planted:
        _write_table(folder / "planted.csv", copies, ["id", "of", "kind"])
    _write_table(folder / "patients.csv", [*rows, *copies], ["id", "class", "patient"])
    _write_table(folder / "truth.csv", rows, [name for name in rows[0] if name != "part"])
    record = {
        "format": 1,
        "kind": "phantom",
        "about": "Made-up slices of the MNI152 template, drawn lesions: they prove the machinery, not the medicine.",
        **settings.as_dict(),
        "images": total,
        "classes": list(CLASSES),
    }
    (folder / "phantom.json").write_text(json.dumps(record, indent=1) + "\n")


def _published_parts(settings: PhantomSettings) -> list[str]:
    """Each patient's folder of the published split, or empty texts without one.

    Four consecutive patients have the four classes and stay together.
    """
    if not settings.published:
        return [""] * settings.patients
    blocks = np.random.default_rng([settings.seed, 8]).permutation(settings.patients // 4)
    tested = set(blocks[: max(1, round(0.2 * len(blocks)))].tolist())
    return [TEST if number // 4 in tested else TRAIN for number in range(settings.patients)]


def _write_patient(folder: Path, settings: PhantomSettings, job: tuple[int, str, list[str]]) -> list[Row]:
    """Render and write all slices of a patient, given its number, its part and the slices' ids; returns their rows."""
    number, part, ids = job
    patient = draw_patient(settings.seed, number)
    rows: list[Row] = []
    for index, name in enumerate(ids):
        rendered = render(patient, index, settings.size, settings.planes)
        row: Row = {"id": name, "patient": patient.name, "class": patient.label, "part": part, **rendered.truth}
        Image.fromarray(rendered.image).save(image_path(folder, row), quality=QUALITY)
        if patient.lesion:
            Image.fromarray(rendered.mask.astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")
        rows.append(row)
    return rows


def _write_table(path: Path, rows: Sequence[Row], columns: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: str(row["id"])))
