"""The phantom collection: any number of made-up brain MRI slices with known truth, written as a raw dataset folder.

Layout of DIR, the same kind of folder a published collection comes as::

    DIR/<class>/<id>.jpg      grayscale slices, JPEG quality 95
    DIR/masks/<id>.png        the tumour, 0 or 255 (tumour classes only)
    DIR/patients.csv          id, class, patient
    DIR/truth.csv             id, patient, class, plane, the tumour's box (pixels) and place (MNI mm), the scanner
    DIR/planted.csv           id, of, kind: planted copies (only when asked for)
    DIR/phantom.json          the parameters; written last, so its presence means complete

Phantoms prove the machinery, not the medicine: no picture shows a real person.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from brain_dist.data.pool import worker_pool
from brain_dist.errors import UserError

GENERATOR = 1  # raised whenever the same parameters would give other bytes
QUALITY = 95
KINDS = ("duplicate", "mirror", "conflict")
Row = dict[str, str | float]


def generate(
    out: Path,
    *,
    patients: int,
    slices: int,
    size: int,
    seed: int,
    workers: int,
    progress: bool,
    planes: Sequence[str] | None = None,
    plant: float = 0.0,
) -> None:
    """Write a phantom collection of ``patients`` x ``slices`` pictures of ``size`` x ``size`` pixels into ``out``.

    The bytes depend on (patients, slices, size, seed, planes, plant) alone, not on ``workers`` (processes). ``planes``
    are those that slices are cut along (all three where it is ``None``). ``plant`` adds that fraction of planted
    faults: in equal parts exact duplicates, mirrored copies and copies under another class, each under a new patient,
    with the truth in ``planted.csv``. Running it again on a finished folder does nothing.

    Raises:
        UserError: a parameter is out of range, ``out`` holds something else, or it cannot be written.
    """
    _check(patients=patients, slices=slices, size=size, seed=seed, workers=workers, plant=plant)
    from brain_dist.data.slices import PLANES

    planes = list(PLANES if planes is None else planes)
    if not planes or any(plane not in PLANES for plane in planes):
        raise UserError(f"phantom planes = {','.join(planes)}: choose among {', '.join(PLANES)}")
    out = Path(out)
    settings = {
        "generator": GENERATOR,
        "seed": seed,
        "patients": patients,
        "slices": slices,
        "size": size,
        "planes": planes,
        "plant": plant,
    }
    if _is_there(out, settings):
        print(f"{out} already holds this phantom collection: nothing to do", flush=True)
        return
    # A run that was killed leaves only this folder behind; it is started afresh.
    unfinished = out.with_name(f".{out.name}.partial")
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        _write(unfinished, settings, workers, progress)
        unfinished.rename(out)
    except BrokenProcessPool as error:
        raise UserError("a phantom worker was killed, most likely for want of memory: use fewer workers") from error
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or out}: {error.strerror or error}; free space or choose another folder"
        ) from error


def _check(*, patients: int, slices: int, size: int, seed: int, workers: int, plant: float) -> None:
    for name, value, low, high in (
        ("patients", patients, 4, 1_000_000),  # one of each class
        ("slices", slices, 1, 1000),
        ("size", size, 64, 1024),
        ("seed", seed, 0, 2**63),
        ("workers", workers, 1, 1024),
        ("plant", plant, 0, 1),
    ):
        if not low <= value <= high:
            raise UserError(f"phantom {name} = {value} is out of range: choose {low} to {high}")


def _is_there(out: Path, settings: dict[str, Any]) -> bool:
    """Whether ``out`` already holds exactly this collection; UserError where it holds anything else."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out} is a file: choose another folder for the phantoms")
    record = out / "phantom.json"
    if not record.exists():
        if any(out.iterdir()):
            raise UserError(
                f"{out} is not empty and holds no finished phantom collection: choose another folder or delete it"
            )
        return False
    try:
        found = json.loads(record.read_text())
        differ = [
            f"{name} {found.get(name)} instead of {value}"
            for name, value in settings.items()
            if found.get(name) != value
        ]
    except (ValueError, AttributeError) as error:
        raise UserError(f"{record} is damaged: delete {out} and make it again") from error
    if differ:
        raise UserError(
            f"{out} holds another phantom collection ({', '.join(differ)}): choose another folder or delete it"
        )
    return True


def _write(folder: Path, settings: dict[str, Any], workers: int, progress: bool) -> None:
    from brain_dist.data.patients import CLASSES

    patients, slices, seed = settings["patients"], settings["slices"], settings["seed"]
    images = patients * slices
    planted = round(settings["plant"] * images)
    # Running numbers in random order: neither the class nor the patient shows in an id.
    order = np.random.default_rng([seed, 6]).permutation(images + planted) + 1
    ids = [f"ph{number:0{max(6, len(str(images + planted)))}d}" for number in order]
    for name in (*CLASSES, "masks"):
        (folder / name).mkdir(parents=True)
    rows: list[Row] = []
    jobs = [(number, ids[number * slices : (number + 1) * slices]) for number in range(patients)]
    work = partial(_one_patient, folder, seed, settings["size"], settings["planes"])
    with worker_pool(min(workers, patients)) as run:
        for done in _track(run(work, jobs, 1), patients, progress):
            rows += done
    listed: list[Row] = [{name: row[name] for name in ("id", "class", "patient")} for row in rows]
    if planted:
        copies, new = _plant(folder, listed, ids[images:], patients, seed)
        listed += new
        _table(folder / "planted.csv", copies)
    _table(folder / "patients.csv", listed)
    _table(folder / "truth.csv", rows)
    record = {
        "format": 1,
        "kind": "phantom",
        "about": "Made-up slices of the MNI152 template, drawn lesions: they prove the machinery, not the medicine.",
        **settings,
        "images": images + planted,
        "classes": list(CLASSES),
    }
    (folder / "phantom.json").write_text(json.dumps(record, indent=1) + "\n")


def _track(results: Iterator[list[Row]], total: int, progress: bool) -> Iterator[list[Row]]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if progress and console.is_terminal:
        yield from track(results, "phantoms", total, console=console)
    else:
        yield from results


def _one_patient(folder: Path, seed: int, size: int, planes: Sequence[str], job: tuple[int, list[str]]) -> list[Row]:
    """Render and write all slices of one patient; their rows of ``truth.csv``."""
    from brain_dist.data.patients import patient
    from brain_dist.data.slices import render

    number, ids = job
    person = patient(seed, number)
    rows: list[Row] = []
    for index, name in enumerate(ids):
        cut = render(person, index, size, planes)
        Image.fromarray(cut.image).save(folder / person.label / f"{name}.jpg", quality=QUALITY)
        if person.lesion:
            Image.fromarray(cut.mask.astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")
        rows.append({"id": name, "patient": person.name, "class": person.label, **cut.truth})
    return rows


def _plant(folder: Path, rows: list[Row], ids: list[str], patients: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Write the planted copies under ``ids``; their rows of ``planted.csv`` and of ``patients.csv``."""
    from brain_dist.data.patients import CLASSES

    rng = np.random.default_rng([seed, 7])
    planted: list[Row] = []
    new: list[Row] = []
    for index, (name, source) in enumerate(zip(ids, rng.permutation(len(rows)), strict=False)):
        kind, row = KINDS[index % len(KINDS)], rows[source]
        label = str(row["class"])
        if kind == "conflict":
            label = str(rng.choice([other for other in CLASSES if other != label]))
        old, copy = folder / f"{row['class']}/{row['id']}.jpg", folder / f"{label}/{name}.jpg"
        mask = folder / f"masks/{row['id']}.png"
        if kind == "mirror":
            _mirror(old, copy)
        else:
            shutil.copyfile(old, copy)
        if mask.exists() and label != "notumor":
            target = folder / f"masks/{name}.png"
            if kind == "mirror":
                _mirror(mask, target)
            else:
                shutil.copyfile(mask, target)
        planted.append({"id": name, "of": row["id"], "kind": kind})
        new.append({"id": name, "class": label, "patient": f"P{patients + index + 1:04d}"})
    return planted, new


def _mirror(old: Path, new: Path) -> None:
    with Image.open(old) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(new, quality=QUALITY)


def _table(path: Path, rows: list[Row]) -> None:
    rows = sorted(rows, key=lambda row: str(row["id"]))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
