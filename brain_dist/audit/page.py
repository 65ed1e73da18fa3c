"""The audit's page: what was found, in sentences, tables and pairs of pictures side by side. One HTML file."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist import __version__
from brain_dist.audit import wording
from brain_dist.audit.survey import TEST, TRAIN, Source, Survey
from brain_dist.collection.pixels import Examined
from brain_dist.collection.slicefiles import examine_file
from brain_dist.collection.spellings import SPLITS
from brain_dist.copies import search
from brain_dist.copies.registration import REGISTERED_THRESHOLD
from brain_dist.copies.similarity import ALIGNED_THRESHOLD
from brain_dist.pages.template import display_name, page_template

TEMPLATE = "audit/page.html.jinja"
SHOWN = 24  # pairs of a gallery
SIDE = 200  # pixels of a picture's longer side
QUALITY = 75  # of their JPEGs
LISTED = 200  # damaged files named on the page
STATED = ("title", "source", "licence", "citation")  # of a recipe, for people


@dataclass(frozen=True)
class Gallery:
    """Pairs to show: ``pairs`` are positions among the survey's, ``total`` says of how many; ``empty`` if of none."""

    title: str
    text: str
    empty: str
    pairs: list[int]
    total: int


def render(
    found: Survey, sources: Sequence[Source], counts: dict[str, Any], progress: Callable[[str, int, int], None]
) -> str:
    """The page. ``counts`` is what :func:`brain_dist.audit.survey.summary` says of ``found``."""
    shown = galleries(found)
    wanted = sorted({int(image) for gallery in shown for pair in gallery.pairs for image in _ends(found, pair)})
    pictures = _pictures(found, sources, wanted, progress)
    return page_template(TEMPLATE).render(
        names=found.names,
        counts=counts,
        collections=[_collection(found, number, source, counts) for number, source in enumerate(sources)],
        totals={
            "images": len(found.path),
            "exact": int(found.exact.sum()),
            "near": int((~found.exact).sum()),
            "clashes": int(found.clashes(np.arange(len(found.first))).sum()),
            "known": sum(one["test_images_with_any_train_copy"] for one in counts["collections"].values()),
            "tested": sum(one["test_images"] for one in counts["collections"].values()),
        },
        inside_rows=[
            (words, [wording.share(one[key], one[of] if of else None) for one in counts["collections"].values()])
            for words, key, of in wording.INSIDE
        ],
        between_heads=[words for words, _, _ in wording.BETWEEN],
        between_rows=[
            (row["of"], row["in"], [wording.share(*row[key]) for *_, key in wording.BETWEEN])
            for row in wording.directions(counts)
        ],
        between=wording.between(counts),
        galleries=[(gallery, [_card(found, pair, pictures) for pair in gallery.pairs]) for gallery in shown],
        skipped=found.skipped,
        listed=LISTED,
        warnings=found.warnings,
        stated=STATED,
        splits=SPLITS,
        same=ALIGNED_THRESHOLD,
        registered=REGISTERED_THRESHOLD,
        side_pixels=SIDE,
        version=__version__,
    )


def _leaks(found: Survey) -> np.ndarray:
    """bool [M]: one image of the pair is in a collection's training part, the other in the same one's test part."""
    one, two = found.split[found.first], found.split[found.second]
    inside = found.collection[found.first] == found.collection[found.second]
    return inside & (((one == TRAIN) & (two == TEST)) | ((one == TEST) & (two == TRAIN)))


def galleries(found: Survey) -> list[Gallery]:
    """The pairs that are shown, the gravest first; the same survey gives the same ones."""
    pictures = search.connected(len(found.path), np.column_stack([found.first, found.second]))
    every = np.arange(len(found.first))
    leaks, across = _leaks(found), found.collection[found.first] != found.collection[found.second]

    def gallery(title: str, text: str, empty: str, chosen: np.ndarray) -> Gallery:
        pairs = np.flatnonzero(chosen)
        return Gallery(title, text, empty, _spread(found, pairs, pictures), len(pairs))

    shown = [
        gallery(
            "Contradicting labels",
            "One picture, two labels: at least one of them is wrong, and a model is taught or judged by it.",
            "No two copies of a picture have labels that contradict each other.",
            found.clashes(every),
        ),
        gallery(
            "The same pixels in training and test",
            "A model has seen these test images, pixel for pixel.",
            "No test image has the same pixels as an image of its training part.",
            leaks & found.exact,
        ),
        gallery(
            "Near copies in training and test",
            "The same slice, stored anew: in another size, brightness or sharpness, mirrored, cut or turned.",
            "No test image is a near copy of an image of its training part.",
            leaks & ~found.exact,
        ),
    ]
    if len(found.names) > 1:
        shown.append(
            gallery(
                "The same picture in two collections",
                "Who trains on one of these collections and tests on the other one tests on these pictures.",
                "No picture is in two of the collections.",
                across,
            )
        )
    near = np.flatnonzero(~found.exact)
    shown.append(
        Gallery(
            "Where to look if you doubt",
            "The near copies that only just count as such, of each picture the least alike: whatever is wrong with the "
            "threshold shows here first. Neighbouring slices of one scan may be among them.",
            "There are no near copies.",
            _doubtful(found, near, pictures),
            len(near),
        )
    )
    return shown


def _spread(found: Survey, pairs: np.ndarray, pictures: np.ndarray) -> list[int]:
    """Up to SHOWN of ``pairs``: every collection has its share, every picture its turn, all similarities are there."""
    strata: dict[tuple[int, int], list[int]] = {}
    for pair in pairs.tolist():
        one, two = (int(found.collection[image]) for image in (found.first[pair], found.second[pair]))
        strata.setdefault((min(one, two), max(one, two)), []).append(pair)
    chosen: list[tuple[tuple[int, int], float, int]] = []
    for number, (key, members) in enumerate(sorted(strata.items(), key=lambda entry: (len(entry[1]), entry[0]))):
        room = -(-(SHOWN - len(chosen)) // (len(strata) - number))
        turns = _turns([int(pictures[found.first[pair]]) for pair in members])
        taken: list[int] = []
        for turn in range(max(turns) + 1):
            fresh = [pair for pair, mine in zip(members, turns, strict=True) if mine == turn]
            fresh.sort(key=lambda pair: (-float(found.similarity[pair]), pair))
            left = min(room - len(taken), len(fresh))
            taken += [fresh[at] for at in np.linspace(0, len(fresh) - 1, left).round().astype(int).tolist()]
            if len(taken) == room:
                break
        chosen += [(key, -float(found.similarity[pair]), pair) for pair in taken]
    return [pair for *_, pair in sorted(chosen)]


def _doubtful(found: Survey, near: np.ndarray, pictures: np.ndarray) -> list[int]:
    """Up to SHOWN pairs nearest to their threshold, one a picture, as many registered as aligned ones if there are."""
    order = near[np.argsort(found.similarity[near], kind="stable")]
    turns = np.array(_turns([int(pictures[found.first[pair]]) for pair in order]), dtype=int)
    order = order[turns == 0]
    places = _turns(found.moved[order].tolist())  # place among those of its kind, whose threshold it shares
    ranked = sorted(zip(places, found.moved[order].tolist(), order.tolist(), strict=True))
    return [pair for _, _, pair in sorted(ranked[:SHOWN], key=lambda entry: (entry[1], entry[0]))]


def _turns(values: Sequence[int]) -> list[int]:
    """For each value how often it came before: [7, 7, 3, 7] → [0, 1, 0, 2]."""
    seen: Counter[int] = Counter()
    turns = []
    for value in values:
        turns.append(seen[value])
        seen[value] += 1
    return turns


def _ends(found: Survey, pair: int) -> tuple[int, int]:
    """The two images of a pair, training before test."""
    one, two = int(found.first[pair]), int(found.second[pair])
    return (two, one) if found.split[one] == TEST and found.split[two] == TRAIN else (one, two)


def _pictures(
    found: Survey, sources: Sequence[Source], images: list[int], progress: Callable[[str, int, int], None]
) -> dict[int, str]:
    """Small gray JPEGs as data addresses, by image, without those that can no longer be read; a file is read once."""
    made, done = {}, 0
    for path, slices in groupby(images, key=lambda image: found.file[image]):
        members = list(slices)
        part = sources[found.collection[members[0]]].recipe.parts[found.part[members[0]]]
        looks = examine_file(path, part, [found.slice[image] for image in members], SIDE)
        for image, look in zip(members, looks, strict=True):
            if isinstance(look, Examined):
                made[image] = _address(look.payload, path)
            done += 1
            progress("drawing", done, len(images))
    return made


def _address(payload: bytes | None, path: Path) -> str:
    from PIL import Image

    out = io.BytesIO()
    with Image.open(path if payload is None else io.BytesIO(payload)) as image:
        image.convert("L").save(out, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _card(found: Survey, pair: int, pictures: dict[int, str]) -> dict[str, Any]:
    ends = _ends(found, pair)
    return {
        "sides": [
            {
                "picture": pictures.get(image),
                "collection": found.names[found.collection[image]],
                "path": found.path[image],
                "slice": found.slice[image],
                "split": found.split[image],
                "label": display_name(found.label[image]),
                "patient": found.patient[image],
            }
            for image in ends
        ],
        "exact": bool(found.exact[pair]),
        "similarity": float(found.similarity[pair]),
        "mirrored": bool(found.mirrored[pair]),
        "moved": bool(found.moved[pair]),
        "clash": bool(found.clashes(np.array([pair]))[0]),
    }


def _collection(found: Survey, number: int, source: Source, counts: dict[str, Any]) -> dict[str, Any]:
    """What a collection is, and what there is to say of it."""
    members = np.flatnonzero(found.collection == number)
    splits = Counter(found.split[members].tolist())
    labels = Counter(found.label[members].tolist())
    patients = [who for who in found.patient[members].tolist() if who is not None]
    facts = {key: getattr(source.recipe, key) for key in STATED}
    return {
        "name": source.name,
        "images": len(members),
        "labels": [(display_name(name), labels[name]) for name in source.recipe.classes if labels[name]],
        "splits": splits,
        "patients": len(set(patients)),
        "with_patient": len(patients),
        "facts": {key: value for key, value in facts.items() if value != "not stated"},
        "findings": wording.inside(source.name, counts, splits[TRAIN]),
        "skipped": sum(entry["collection"] == source.name for entry in found.skipped),
    }
