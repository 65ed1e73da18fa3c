"""What the audit finds of copies that are known, and what it takes for copies that are none.

``python -m benchmarks.audit_recall [--phantoms PATIENTS] [--json FILE] [COLLECTION …]`` prints Markdown tables:

1. phantoms with planted copies (:mod:`brain_dist.phantom.planting`): recall by kind, and pairs of different persons;
2. for each collection (a folder that needs no recipe) images drawn at random and copied on purpose, one kind and
   strength at a time: the share found by the aligned comparison alone and with registration, and the pairs that join a
   copy to another patient; where patients are unknown, to an image that its original is not joined to, which bounds it;
3. the same copies' similarities against those of different patients, where patients are known.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from brain_dist.audit import survey
from brain_dist.collection.measures import head_box, thumbnails
from brain_dist.collection.recipes import default_recipe
from brain_dist.collection.records import find_records
from brain_dist.copies import registration, search
from brain_dist.copies.registration import REGISTERED_THRESHOLD
from brain_dist.copies.similarity import ALIGNED_THRESHOLD, structure
from brain_dist.phantom import planting
from brain_dist.phantom.generate import generate

Change = Callable[[Image.Image, float, np.random.Generator], Image.Image]
SLICES, SIZE = 4, 160  # of the phantoms
BLOCK = 512  # images whose similarities to all others are computed at once
FOUND, STRANGE = (0, 0.01, 0.05, 0.5), (0.5, 0.99, 0.9999, 1)  # quantiles of the similarities


def jpeg(image: Image.Image, quality: float) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return gray(buffer)


def flipped(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def gamma(image: Image.Image, power: float, _: object) -> Image.Image:
    return image.point([round(255 * (value / 255) ** power) for value in range(256)])


def noisy(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image) + rng.normal(0, sigma, (image.height, image.width))
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


def cut(image: Image.Image, percent: float) -> Image.Image:
    x, y = round(percent / 100 * image.width), round(percent / 100 * image.height)
    return image.crop((x, y, image.width - x, image.height - y))


def somewhere(image: Image.Image, percent: float, rng: np.random.Generator) -> Image.Image:
    width, height = round(percent / 100 * image.width), round(percent / 100 * image.height)
    x, y = (int(rng.integers(left + 1)) for left in (image.width - width, image.height - height))
    return image.crop((x, y, x + width, y + height))


IN_PLACE: list[tuple[str, Change, tuple[float, ...]]] = [
    ("JPEG, quality {}", lambda image, quality, _: jpeg(image, quality), (80, 50, 30, 10)),
    (
        "rescaled, x {}",
        lambda image, f, _: image.resize((round(f * image.width), round(f * image.height))),
        (0.25, 0.5, 2),
    ),
    ("mirrored", lambda image, *_: flipped(image), (1,)),
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
    ("noise, sigma {}", noisy, (5, 10)),
]
MOVED: list[tuple[str, Change, tuple[float, ...]]] = [
    ("each side cut by {} %", lambda image, percent, _: cut(image, percent), (2, 5, 10, 15)),
    ("{} % of each side, anywhere", somewhere, (95, 90, 85, 80)),
    ("turned by {}°", lambda image, angle, _: image.rotate(angle, Image.Resampling.BICUBIC), (1, 2, 5)),
    ("mirrored, cut by {} %, JPEG 50", lambda image, percent, _: jpeg(cut(flipped(image), percent), 50), (5,)),
]


def gray(file: Path | io.BytesIO) -> Image.Image:
    return Image.open(file).convert("L")


def thumbs(images: Iterable[Image.Image]) -> np.ndarray:
    return np.stack([thumbnails(image, head_box(np.asarray(image))) for image in images])


def phantoms(patients: int, seed: int, workers: int) -> dict[str, Any]:
    """Recall by kind and precision on a planted collection with as many copies as pictures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "phantoms"
        generate(root, patients=patients, slices=SLICES, size=SIZE, seed=seed, workers=workers, progress=True, plant=1,
                 published=True)  # fmt: skip
        source = survey.Source("phantoms", root, default_recipe(root))
        found = survey.survey_collections([source], workers=workers, skip_bad=False, progress=lambda *_: None)
        score = planting.score(root, [Path(path).stem for path in found.path], found.first, found.second)
    print(f"\n## Phantoms: {patients} patients, {SLICES} slices each of {SIZE}² pixels, every slice copied once\n")
    print("| kind | planted | found | recall |\n|---|---|---|---|")
    for kind, planted in score.planted.items():
        print(f"| {kind} | {planted} | {score.found[kind]} | {score.found[kind] / planted:.1%} |")
    print(f"| all | {sum(score.planted.values())} | {sum(score.found.values())} | {score.recall:.2%} |")
    print(f"\nPairs: {score.right} of a picture and its copy, {score.false} of two persons (precision "
          f"{score.precision:.2%}); {score.neighbours} of two slices of one person.")  # fmt: skip
    return {"patients": patients, **asdict(score), "recall": score.recall, "precision": score.precision}


def collection(root: Path, count: int, seed: int) -> dict[str, Any]:
    """Tables 2 and 3 of one collection."""
    records, _ = find_records(default_recipe(root), root)
    drawn = np.sort(np.random.default_rng(seed).choice(len(records), min(count, len(records)), replace=False))
    patients = np.array([record.patient for record in records], dtype=object)
    known = all(patient is not None for patient in patients)
    images = [gray(root / records[number].path) for number in drawn]
    print(f"\n## {root.name}: {len(images)} images of {len(records)}, copied on purpose\n")
    print("| copy | found aligned | found with registration | pairs with other patients |\n|---|---|---|---|")
    originals, table = thumbs(images), {}
    similar: dict[str, list[np.ndarray]] = {"aligned": [], "registered": []}
    who = patients[drawn] if known else sets(len(images), search.near_pairs(originals))
    for name, change, strength in ((*kind[:2], strength) for kind in IN_PLACE + MOVED for strength in kind[2]):
        rng = np.random.default_rng([seed, 1])
        both = np.concatenate([originals, thumbs(change(image, strength, rng) for image in images)])
        row = table[name.format(strength)] = recall(both, who)
        if change in [kind[1] for kind in IN_PLACE]:
            similar["aligned"].append(aligned(originals, both[len(images) :]))
        else:
            similar["registered"].append(registered_copies(both))
        wrong = f"{'≤ ' if row['false'] and not known else ''}{row['false']}"
        shares = f"{row['aligned']:.1%} | {row['registered']:.1%}"
        print(f"| {name.format(strength)} | {shares} | {wrong} |", flush=True)
    result: dict[str, Any] = {"images": len(images), "of": len(records), "copies": table, "patients_known": known}
    if known:
        every = thumbs(gray(root / record.path) for record in records)
        strange = aligned_strangers(every, patients), registered_strangers(every, patients)
        result["similarity"] = {
            **separation("aligned", ALIGNED_THRESHOLD, strange[0], np.concatenate(similar["aligned"])),
            **separation("registered", REGISTERED_THRESHOLD, strange[1], np.concatenate(similar["registered"])),
        }
        show(result["similarity"])
    return result


def sets(count: int, found: search.NearPairs, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
    """int64 [count]: the first image that the chosen pairs join each one to."""
    return search.connected(count, np.column_stack([found.first[chosen], found.second[chosen]]))


def recall(both: np.ndarray, who: np.ndarray) -> dict[str, Any]:
    """Of N originals and then their copies, uint8 [2 N, 2, 64, 64]: shares found, and copies' pairs across ``who``."""
    half = len(both) // 2
    found = search.near_pairs(both)
    joined = {"aligned": sets(2 * half, found, ~found.moved), "registered": sets(2 * half, found)}
    across = (who[found.first % half] != who[found.second % half]) & (found.second >= half)
    shares = {name: float((first[:half] == first[half:]).mean()) for name, first in joined.items()}
    return {**shares, "false": int(across.sum())}


def aligned(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Aligned similarity float32 [N] of left[i] and right[i]."""
    straight = [(structure(left[:, frame]), frame) for frame in range(2)]
    return np.max([
        np.einsum("ij,ij->i", one, structure(right[:, frame, :, ::step]))
        for one, frame in straight for step in (1, -1)
    ], axis=0)  # fmt: skip


def aligned_strangers(every: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Aligned similarities of all pairs of different patients."""
    best = []
    views = [(structure(every[:, frame]), structure(every[:, frame, :, ::-1])) for frame in range(2)]
    for low in range(0, len(every), BLOCK):
        block = np.max([straight[low : low + BLOCK] @ other[low:].T
                        for straight, mirrored in views for other in (straight, mirrored)], axis=0)  # fmt: skip
        later = np.arange(len(every) - low) > np.arange(len(block))[:, None]
        best.append(block[later & (patients[low : low + BLOCK, None] != patients[None, low:])])
    return np.concatenate(best)


def registered_copies(both: np.ndarray) -> np.ndarray:
    """Correlation after registration float32 [N] of both[i] and both[N + i]; 0 where the pair is no candidate."""
    half = len(both) // 2
    best = np.zeros(half, dtype=np.float32)
    for i, j, value in registered(both, lambda i, j: abs(i - j) == half):
        np.maximum.at(best, np.minimum(i, j), value)
    return best


def registered_strangers(every: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Correlation after registration of all candidates (both ways) of different patients."""
    found = registered(every, lambda i, j: patients[i] != patients[j])
    return np.concatenate([np.zeros(0, dtype=np.float32), *(value for _, _, value in found)])


def registered(
    every: np.ndarray, wanted: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Iterator[tuple[np.ndarray, ...]]:
    """(i, j, correlation) of the wanted candidates, which are chosen as the audit chooses them."""
    heads = every[:, 1]
    descriptor, fields = registration.Descriptor.fit(heads), registration.whole_fields(heads)
    whole = descriptor(heads), descriptor(heads[:, :, ::-1])
    least = registration.candidate_cosine(heads, descriptor)
    for low in range(0, len(heads), BLOCK):
        block = heads[low : low + BLOCK]
        best = np.full((len(block), len(heads)), least, dtype=np.float32)
        how = np.full(best.shape, -1)
        for number, window in enumerate(registration.windows()):
            short = descriptor(block, window)
            for side in (0, 1):
                cosine = short @ whole[side].T
                better = cosine >= best
                best[better], how[better] = cosine[better], 2 * number + side
        i, j = np.nonzero(how >= 0)
        chosen = np.flatnonzero(wanted(i + low, j) & (i + low != j))
        for start in range(0, len(chosen), BLOCK):
            row, column = (part[chosen[start : start + BLOCK]] for part in (i, j))
            code = how[row, column]
            yield row + low, column, registration.confirm(fields, row + low, column, code // 2, code % 2 == 1)


def separation(name: str, threshold: float, strange: np.ndarray, copies: np.ndarray) -> dict[str, Any]:
    """Quantiles of the similarities on both sides of a threshold; a copy with 0 is no candidate."""
    result: dict[str, Any] = {}
    for whose, found, shares in (("different patients", strange, STRANGE), ("copies", copies[copies > 0], FOUND)):
        at = {f"{100 * share:g} %": float(np.quantile(found, share)) for share in shares if len(found)}
        result[f"{name}, {whose}"] = {"threshold": threshold, "pairs": len(found), "quantiles": at}
    result[f"{name}, copies"]["no_candidates"] = int((copies == 0).sum())
    return result


def show(table: dict[str, Any]) -> None:
    """Print table 3."""
    print("\n| similarity | threshold | pairs | quantiles |\n|---|---|---|---|")
    for name, row in table.items():
        told = ", ".join(f"{share}: {value:.3f}" for share, value in row["quantiles"].items())
        more = f" and {row['no_candidates']} no candidates" if row.get("no_candidates") else ""
        print(f"| {name} | {row['threshold']} | {row['pairs']:,}{more} | {told} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("collections", nargs="*", type=Path, metavar="COLLECTION")
    parser.add_argument("--phantoms", type=int, default=320, metavar="PATIENTS", help="0 leaves them out")
    parser.add_argument("--images", type=int, default=200, metavar="N", help="copied of each collection")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    results: dict[str, Any] = {}
    if given.phantoms:
        results["phantoms"] = phantoms(given.phantoms, given.seed, given.workers)
    for root in given.collections:
        results[root.name] = collection(root, given.images, given.seed)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
