"""The phantom collection: any number of made-up brain MRI slices with known truth, written as a raw dataset folder.

Layout of DIR, the same kind of folder a published collection comes as::

    DIR/<class>/<id>.jpg      grayscale slices, JPEG quality 95
    DIR/masks/<id>.png        the tumour, 0 or 255 (tumour classes only)
    DIR/patients.csv          id, class, patient
    DIR/truth.csv             id, patient, class, plane, the tumour's box (pixels) and place (MNI mm), the scanner
    DIR/planted.csv           id, of, kind: planted copies (only when asked for), see brain_dist.phantom.planting
    DIR/phantom.json          the parameters; written last, so its presence means complete

With a published split the class folders lie in DIR/Training and DIR/Testing, of which the latter has a fifth of the
patients, of each class as many.

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

from brain_dist.common.workers import worker_pool
from brain_dist.errors import UserError
from brain_dist.phantom.planting import QUALITY, TEST, TRAIN, Row, picture, plant

GENERATOR = 2  # raised whenever the same parameters would give other bytes


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
    published: bool = False,
) -> None:
    """Write a phantom collection of ``patients`` x ``slices`` pictures of ``size`` x ``size`` pixels into ``out``.

    The bytes depend on (patients, slices, size, seed, planes, plant, published) alone, not on ``workers`` (processes).
    ``planes`` are those that slices are cut along (all three where it is ``None``). ``plant`` adds that fraction of
    planted copies (see :mod:`brain_dist.phantom.planting`). ``published`` divides the patients between two folders as
    published collections do. Running it again on a finished folder does nothing.

    Raises:
        UserError: a parameter is out of range, ``out`` holds something else, or it cannot be written.
    """
    _check(patients=patients, slices=slices, size=size, seed=seed, workers=workers, plant=plant, published=published)
    from brain_dist.phantom.slices import PLANES

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
        "published": published,
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


def _check(*, patients: int, slices: int, size: int, seed: int, workers: int, plant: float, published: bool) -> None:
    for name, value, low, high in (
        ("patients", patients, 8 if published else 4, 1_000_000),  # one of each class in each folder
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
    from brain_dist.phantom.patients import CLASSES

    patients, slices, seed = settings["patients"], settings["slices"], settings["seed"]
    images = patients * slices
    planted = round(settings["plant"] * images)
    # Running numbers in random order: neither the class nor the patient shows in an id.
    order = np.random.default_rng([seed, 6]).permutation(images + planted) + 1
    ids = [f"ph{number:0{max(6, len(str(images + planted)))}d}" for number in order]
    parts = _parts(patients, seed) if settings["published"] else [""] * patients
    for name in (Path("masks"), *(Path(part, label) for part in set(parts) for label in CLASSES)):
        (folder / name).mkdir(parents=True)
    rows: list[Row] = []
    jobs = [(number, part, ids[number * slices : (number + 1) * slices]) for number, part in enumerate(parts)]
    work = partial(_one_patient, folder, seed, settings["size"], settings["planes"])
    with worker_pool(min(workers, patients)) as run:
        for done in _track(run(work, jobs, 1), patients, progress):
            rows += done
    copies = plant(folder, rows, ids[images:], patients, seed)
    if planted:
        _table(folder / "planted.csv", copies, ["id", "of", "kind"])
    _table(folder / "patients.csv", [*rows, *copies], ["id", "class", "patient"])
    _table(folder / "truth.csv", rows, [name for name in rows[0] if name != "part"])
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


def _parts(patients: int, seed: int) -> list[str]:
    """The published part of each patient. Four consecutive patients have the four classes and stay together."""
    blocks = np.random.default_rng([seed, 8]).permutation(patients // 4)
    tested = set(blocks[: max(1, round(0.2 * len(blocks)))].tolist())
    return [TEST if number // 4 in tested else TRAIN for number in range(patients)]


def _one_patient(
    folder: Path, seed: int, size: int, planes: Sequence[str], job: tuple[int, str, list[str]]
) -> list[Row]:
    """Render and write all slices of one patient; their rows of ``truth.csv``."""
    from brain_dist.phantom.patients import patient
    from brain_dist.phantom.slices import render

    number, part, ids = job
    person = patient(seed, number)
    rows: list[Row] = []
    for index, name in enumerate(ids):
        cut = render(person, index, size, planes)
        row: Row = {"id": name, "patient": person.name, "class": person.label, "part": part, **cut.truth}
        Image.fromarray(cut.image).save(picture(folder, row), quality=QUALITY)
        if person.lesion:
            Image.fromarray(cut.mask.astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")
        rows.append(row)
    return rows


def _table(path: Path, rows: list[Row], columns: list[str]) -> None:
    rows = sorted(rows, key=lambda row: str(row["id"]))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
