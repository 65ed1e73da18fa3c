"""Recall of the audit for known copies, and its errors on images that are not copies.

``python -m benchmarks.audit_recall [--phantoms PATIENTS] [--json FILE] [COLLECTION …]`` prints Markdown tables:

1. Phantoms with planted copies (:mod:`brain_dist.phantom.planting`): recall by kind, and pairs of different patients.
2. For each collection (a folder that needs no recipe), images drawn at random and copied with one kind and strength of
   change at a time: the share found by the aligned comparison alone and with registration, and the pairs that join a
   copy to another patient. If patients are unknown: to an image that its original is not joined to, an upper bound.
3. The similarities of these copies and of images of different patients, if patients are known.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from benchmarks.support.planted import score as score_pairs
from brain_dist.audit import survey
from brain_dist.collection.discovery import find_records
from brain_dist.collection.measures import head_and_thumbnails
from brain_dist.collection.recipes import default_recipe
from brain_dist.common.cores import cpu_cores
from brain_dist.common.progress import show_progress
from brain_dist.copies import registration, search
from brain_dist.copies.candidates import candidate_cosine, windows
from brain_dist.copies.descriptor import Descriptor
from brain_dist.copies.registration import REGISTERED_THRESHOLD
from brain_dist.copies.similarity import ALIGNED_THRESHOLD, NearPairs, structure
from brain_dist.phantom.generate import PhantomSettings, generate

Change = Callable[[Image.Image, float, np.random.Generator], Image.Image]
SLICES, SIZE = 4, 160  # slices per phantom patient, pixels per side
BLOCK = 512  # images that are compared to all others at once
COPY_QUANTILES, STRANGER_QUANTILES = (0, 0.01, 0.05, 0.5), (0.5, 0.99, 0.9999, 1)  # of the similarities


def jpeg(image: Image.Image, quality: float) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return read_gray(buffer)


def mirror(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def gamma(image: Image.Image, power: float, _: object) -> Image.Image:
    return image.point([round(255 * (value / 255) ** power) for value in range(256)])


def add_noise(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image) + rng.normal(0, sigma, (image.height, image.width))
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


def crop_sides(image: Image.Image, percent: float) -> Image.Image:
    x, y = round(percent / 100 * image.width), round(percent / 100 * image.height)
    return image.crop((x, y, image.width - x, image.height - y))


def crop_anywhere(image: Image.Image, percent: float, rng: np.random.Generator) -> Image.Image:
    width, height = round(percent / 100 * image.width), round(percent / 100 * image.height)
    x, y = (int(rng.integers(left + 1)) for left in (image.width - width, image.height - height))
    return image.crop((x, y, x + width, y + height))


ALIGNED_CHANGES: list[tuple[str, Change, tuple[float, ...]]] = [
    ("JPEG, quality {}", lambda image, quality, _: jpeg(image, quality), (80, 50, 30, 10)),
    (
        "rescaled, x {}",
        lambda image, f, _: image.resize((round(f * image.width), round(f * image.height))),
        (0.25, 0.5, 2),
    ),
    ("mirrored", lambda image, *_: mirror(image), (1,)),
    (
        "brightness x {}",
        lambda image, f, _: image.point([round(min(f * v, 255)) for v in range(256)]),
        (0.5, 0.75, 1.25, 1.5),
    ),
    (
        "brightness {:+}",
        lambda image, by, _: image.point([min(max(v + int(by), 0), 255) for v in range(256)]),
        (-30, 30),
    ),
    ("contrast x {}", lambda image, factor, _: ImageEnhance.Contrast(image).enhance(factor), (0.6, 1.6)),
    ("gamma {}", gamma, (0.6, 1.6)),
    ("blurred, sigma {}", lambda image, sigma, _: image.filter(ImageFilter.GaussianBlur(sigma)), (1, 2)),
    ("sharpened, {} %", lambda image, much, _: image.filter(ImageFilter.UnsharpMask(3, int(much), 0)), (200,)),
    ("noise, sigma {}", add_noise, (5, 10)),
]
MOVING_CHANGES: list[tuple[str, Change, tuple[float, ...]]] = [
    ("each side cropped by {} %", lambda image, percent, _: crop_sides(image, percent), (2, 5, 10, 15)),
    ("{} % of each side, anywhere", crop_anywhere, (95, 90, 85, 80)),
    ("rotated by {}°", lambda image, angle, _: image.rotate(angle, Image.Resampling.BICUBIC), (1, 2, 5)),
    (
        "mirrored, cropped by {} %, JPEG 50",
        lambda image, percent, _: jpeg(crop_sides(mirror(image), percent), 50),
        (5,),
    ),
]


def read_gray(file: Path | io.BytesIO) -> Image.Image:
    return Image.open(file).convert("L")


def thumbnails_of(images: Iterable[Image.Image]) -> np.ndarray:
    """Thumbnails uint8 [N, 2, 64, 64] as the audit makes them."""
    return np.stack([head_and_thumbnails(np.asarray(image))[1] for image in images])


def measure_phantoms(patients: int, seed: int, workers: int) -> dict[str, Any]:
    """Print table 1: recall by kind and precision on phantoms with one planted copy per slice."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "phantoms"
        settings = PhantomSettings(seed=seed, patients=patients, slices=SLICES, size=SIZE, plant=1, published=True)
        with show_progress() as progress:
            generate(root, settings, workers=workers, progress=progress)
        source = survey.Source("phantoms", root, default_recipe(root))
        pairs = survey.survey_collections([source], workers=workers, skip_bad=False, progress=lambda *_: None)
        score = score_pairs(root, [Path(path).stem for path in pairs.path], pairs.first, pairs.second)
    print(f"\n## Phantoms: {patients} patients, {SLICES} slices each of {SIZE}² pixels, every slice copied once\n")
    print("| kind | planted | found | recall |\n|---|---|---|---|")
    for kind, planted in score.planted.items():
        print(f"| {kind} | {planted} | {score.found[kind]} | {score.found[kind] / planted:.1%} |")
    print(f"| all | {sum(score.planted.values())} | {sum(score.found.values())} | {score.recall:.2%} |")
    print(f"\nPairs: {score.right} of an image and its copy, {score.false} of two patients (precision "
          f"{score.precision:.2%}); {score.neighbours} of two slices of one patient.")  # fmt: skip
    return {"patients": patients, **asdict(score), "recall": score.recall, "precision": score.precision}


def measure_collection(root: Path, count: int, seed: int) -> dict[str, Any]:
    """Print tables 2 and 3 of one collection."""
    records, _ = find_records(default_recipe(root), root)
    sample = np.sort(np.random.default_rng(seed).choice(len(records), min(count, len(records)), replace=False))
    patients = np.array([record.patient for record in records], dtype=object)
    known = all(patient is not None for patient in patients)
    images = [read_gray(root / records[index].path) for index in sample]
    originals = thumbnails_of(images)
    groups = patients[sample] if known else components(len(images), search.near_pairs(originals))
    print(f"\n## {root.name}: {len(images)} images of {len(records)}, copied on purpose\n")
    print("| copy | found aligned | found with registration | pairs with other patients |\n|---|---|---|---|")
    table: dict[str, Any] = {}
    aligned: list[np.ndarray] = []
    registered: list[np.ndarray] = []
    for name, change, strengths in ALIGNED_CHANGES + MOVING_CHANGES:
        in_place = change in [entry[1] for entry in ALIGNED_CHANGES]
        for strength in strengths:
            rng = np.random.default_rng([seed, 1])
            copies = thumbnails_of(change(image, strength, rng) for image in images)
            pairs = np.concatenate([originals, copies])
            row = table[name.format(strength)] = recall(pairs, groups)
            if in_place:
                aligned.append(aligned_similarity(originals, copies))
            else:
                registered.append(registered_similarity(pairs))
            false = f"{'≤ ' if row['false'] and not known else ''}{row['false']}"
            shares = f"{row['aligned']:.1%} | {row['registered']:.1%}"
            print(f"| {name.format(strength)} | {shares} | {false} |", flush=True)
    result: dict[str, Any] = {"images": len(images), "of": len(records), "copies": table, "patients_known": known}
    if known:
        thumbs = thumbnails_of(read_gray(root / record.path) for record in records)
        strangers = aligned_strangers(thumbs, patients), registered_strangers(thumbs, patients)
        result["similarity"] = {
            **separation("aligned", ALIGNED_THRESHOLD, strangers[0], np.concatenate(aligned)),
            **separation("registered", REGISTERED_THRESHOLD, strangers[1], np.concatenate(registered)),
        }
        print_similarity(result["similarity"])
    return result


def components(count: int, pairs: NearPairs, selection: np.ndarray | slice = slice(None)) -> np.ndarray:
    """int64 [count]: the first image that the selected pairs connect each image to."""
    return search.connected(count, np.column_stack([pairs.first[selection], pairs.second[selection]]))


def recall(thumbs: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Shares of copies found, and the number of pairs of a copy with another group.

    Args:
        thumbs: uint8 [2 N, 2, 64, 64], the originals and then their copies.
        groups: [N], patient or group of each original.
    """
    half = len(thumbs) // 2
    pairs = search.near_pairs(thumbs)
    connected = {"aligned": components(2 * half, pairs, ~pairs.moved), "registered": components(2 * half, pairs)}
    false = (groups[pairs.first % half] != groups[pairs.second % half]) & (pairs.second >= half)
    shares = {name: float((first[:half] == first[half:]).mean()) for name, first in connected.items()}
    return {**shares, "false": int(false.sum())}


def aligned_similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Aligned similarity float32 [N] of left[i] and right[i], both uint8 [N, 2, 64, 64]."""
    fields = [(structure(left[:, frame]), frame) for frame in range(2)]
    return np.max([
        np.einsum("ij,ij->i", field, structure(right[:, frame, :, ::step]))
        for field, frame in fields for step in (1, -1)
    ], axis=0)  # fmt: skip


def aligned_strangers(thumbs: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Aligned similarities float32 [M] of all pairs of different patients, for thumbnails uint8 [N, 2, 64, 64]."""
    similarities = []
    views = [(structure(thumbs[:, frame]), structure(thumbs[:, frame, :, ::-1])) for frame in range(2)]
    for low in range(0, len(thumbs), BLOCK):
        block = np.max([straight[low : low + BLOCK] @ other[low:].T
                        for straight, mirrored in views for other in (straight, mirrored)], axis=0)  # fmt: skip
        later = np.arange(len(thumbs) - low) > np.arange(len(block))[:, None]
        similarities.append(block[later & (patients[low : low + BLOCK, None] != patients[None, low:])])
    return np.concatenate(similarities)


def registered_similarity(thumbs: np.ndarray) -> np.ndarray:
    """Correlation float32 [N] after registration of thumbs[i] and thumbs[N + i]; 0 if the pair is not a candidate."""
    half = len(thumbs) // 2
    best = np.zeros(half, dtype=np.float32)
    for i, j, value in registered_candidates(thumbs, lambda i, j: abs(i - j) == half):
        np.maximum.at(best, np.minimum(i, j), value)
    return best


def registered_strangers(thumbs: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Correlations float32 [M] after registration of all candidates (in both directions) of different patients."""
    candidates = registered_candidates(thumbs, lambda i, j: patients[i] != patients[j])
    return np.concatenate([np.zeros(0, dtype=np.float32), *(value for _, _, value in candidates)])


def registered_candidates(
    thumbs: np.ndarray, condition: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Iterator[tuple[np.ndarray, ...]]:
    """(i, j, correlation) of the audit's candidates that satisfy ``condition(i, j)``, each of shape [M]."""
    heads = thumbs[:, 1]
    descriptor, fields = Descriptor.fit(heads), registration.whole_fields(heads)
    [whole] = descriptor(heads)
    threshold = candidate_cosine(heads, descriptor)
    for low in range(0, len(heads), BLOCK):
        block = heads[low : low + BLOCK]
        best = np.full((len(block), len(heads)), threshold, dtype=np.float32)
        code = np.full(best.shape, -1)  # 2 x window + mirrored
        for window, cropped in enumerate(descriptor(block, windows())):
            odd = cropped.odd @ whole.odd.T
            cosine = cropped.even @ whole.even.T + np.abs(odd)
            better = cosine >= best
            best[better], code[better] = cosine[better], 2 * window + (odd[better] < 0)
        i, j = np.nonzero(code >= 0)
        selected = np.flatnonzero(condition(i + low, j) & (i + low != j))
        for start in range(0, len(selected), BLOCK):
            row, column = (part[selected[start : start + BLOCK]] for part in (i, j))
            codes = code[row, column]
            yield row + low, column, registration.confirm(fields, row + low, column, codes // 2, codes % 2 == 1)


def separation(name: str, threshold: float, strangers: np.ndarray, copies: np.ndarray) -> dict[str, Any]:
    """Rows of table 3: quantiles of the similarities of strangers and of copies; a copy with 0 is not a candidate."""
    rows: dict[str, Any] = {}
    candidates = copies[copies > 0]
    for kind, values, shares in (
        ("different patients", strangers, STRANGER_QUANTILES),
        ("copies", candidates, COPY_QUANTILES),
    ):
        quantiles = {f"{100 * share:g} %": float(np.quantile(values, share)) for share in shares if len(values)}
        rows[f"{name}, {kind}"] = {"threshold": threshold, "pairs": len(values), "quantiles": quantiles}
    rows[f"{name}, copies"]["no_candidates"] = int((copies == 0).sum())
    return rows


def print_similarity(rows: dict[str, Any]) -> None:
    """Print table 3."""
    print("\n| similarity | threshold | pairs | quantiles |\n|---|---|---|---|")
    for name, row in rows.items():
        quantiles = ", ".join(f"{share}: {value:.3f}" for share, value in row["quantiles"].items())
        missed = f" and {row['no_candidates']} not candidates" if row.get("no_candidates") else ""
        print(f"| {name} | {row['threshold']} | {row['pairs']:,}{missed} | {quantiles} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("collections", nargs="*", type=Path, metavar="COLLECTION")
    parser.add_argument("--phantoms", type=int, default=320, metavar="PATIENTS", help="0: no phantoms (default: 320)")
    parser.add_argument("--images", type=int, default=200, metavar="N", help="images to copy per collection")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=cpu_cores())
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    if arguments.phantoms:
        results["phantoms"] = measure_phantoms(arguments.phantoms, arguments.seed, arguments.workers)
    for root in arguments.collections:
        results[root.name] = measure_collection(root, arguments.images, arguments.seed)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
