"""The phantom collection: the same bytes for any number of processes, and truth that matches the pictures."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from brain_dist.errors import UserError
from brain_dist.phantom.anatomy import load_atlas
from brain_dist.phantom.generate import generate
from brain_dist.phantom.lesions import SELLA, Lesion, distance
from brain_dist.phantom.patients import CLASSES, patient
from brain_dist.phantom.planting import KINDS
from brain_dist.phantom.slices import render

SMALL: dict[str, Any] = {"patients": 5, "slices": 3, "size": 96, "seed": 3, "progress": False, "plant": 0.5}
OTHER_SEED = 8


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "two"
    generate(folder, workers=2, **SMALL)
    return folder


def test_bytes_do_not_depend_on_workers(made: Path, tmp_path: Path) -> None:
    generate(tmp_path / "one", workers=1, **SMALL)
    assert _bytes(tmp_path / "one") == _bytes(made)
    generate(tmp_path / "other", workers=1, **{**SMALL, "seed": OTHER_SEED})
    assert _bytes(tmp_path / "other") != _bytes(made)


def test_layout_and_tables_agree(made: Path) -> None:
    rows, truth = _table(made / "patients.csv"), _table(made / "truth.csv")
    record = json.loads((made / "phantom.json").read_text())
    assert len(truth) == 15
    assert len(rows) == record["images"] == 15 + 8
    copies = {row["id"] for row in _table(made / "planted.csv")}
    for row in rows:
        with Image.open(made / row["class"] / f"{row['id']}.jpg") as image:
            assert image.mode == "L"
            assert image.size == (96, 96) or row["id"] in copies
    assert sum(len(list((made / name).iterdir())) for name in CLASSES) == len(rows)
    classes: dict[str, set[str]] = {}
    for row in truth:
        classes.setdefault(row["patient"], set()).add(row["class"])
    assert sorted(classes) == [f"P{number:04d}" for number in range(1, 6)]
    assert all(len(found) == 1 for found in classes.values())
    assert set.union(*(classes[f"P{number:04d}"] for number in range(1, 5))) == set(CLASSES)
    order = [row["class"] for row in truth]
    assert order != sorted(order), "an id must not give its class away"


def test_truth_matches_the_masks(made: Path) -> None:
    rows = _table(made / "truth.csv")
    drawn = {f"{row['id']}.png" for row in rows if row["class"] != "notumor"}
    assert {path.name for path in (made / "masks").iterdir()} == drawn
    for row in rows:
        path = made / "masks" / f"{row['id']}.png"
        assert path.exists() == (row["class"] != "notumor")
        if not path.exists():
            assert row["x"] == row["area"] == row["mni_x"] == ""
            continue
        with Image.open(path) as image:
            mask = np.asarray(image)
        assert set(np.unique(mask)) == {0, 255}
        lines, columns = np.nonzero(mask)
        assert float(row["x"]) == (columns.min() + columns.max()) / 2
        assert float(row["y"]) == (lines.min() + lines.max()) / 2
        assert int(row["area"]) == len(lines)


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 patients in Training/ and Testing/, each slice copied: 32 copies, four of each kind."""
    folder = tmp_path_factory.mktemp("phantom") / "published"
    settings = {**SMALL, "patients": 8, "slices": 4, "plant": 1.0}
    generate(folder, workers=2, published=True, **settings)
    generate(folder.with_name("without"), workers=1, published=True, **{**settings, "plant": 0.0})
    return folder


def test_planted_copies_are_what_they_say(published: Path) -> None:
    planted, patients = _table(published / "planted.csv"), _table(published / "patients.csv")
    place = {path.stem: path.relative_to(published) for path in published.rglob("*.jpg")}
    who = {row["id"]: row["patient"] for row in patients}
    assert len(place) == len(patients) == 64
    assert all(place[row["id"]].parent.name == row["class"] for row in patients)
    assert Counter(row["kind"] for row in planted) == dict.fromkeys(KINDS, 4)
    assert len({row["of"] for row in planted}) == len({who[row["id"]] for row in planted}) == 32
    for row in planted:
        copy, source, kind = place[row["id"]], place[row["of"]], row["kind"]
        assert who[row["id"]] not in {who[other] for other in who if other != row["id"]}
        assert (copy.parent.name == source.parent.name) == (kind != "conflict")
        crosses = (source.parts[0], copy.parts[0]) == ("Training", "Testing")
        assert crosses if kind == "leak" else source.parts[0] == copy.parts[0]
        same_bytes = (published / copy).read_bytes() == (published / source).read_bytes()
        assert same_bytes == (kind == "duplicate") or kind == "conflict"
        with Image.open(published / copy) as a, Image.open(published / source) as b:
            one, other = np.asarray(a, float), np.asarray(b, float)
        if kind in ("reencoded", "conflict"):
            assert _agreement(one, other) > 0.98
        elif kind == "mirrored":
            assert _agreement(one, other[:, ::-1]) > 0.98 > _agreement(one, other)
        elif kind == "rescaled":
            assert 48 <= len(one) <= 154
            assert len(one) != 96
        elif kind == "cropped":
            assert all(96 * 0.82 - 1 <= side <= 96 * 0.96 + 1 for side in one.shape)
            windows = np.lib.stride_tricks.sliding_window_view(other, one.shape)
            assert np.abs(windows - one).mean(axis=(2, 3)).min() < 2
        elif kind == "brightness":
            assert _agreement(one, other) > 0.9


def test_planting_and_a_published_split_leave_the_pictures_as_they_are(published: Path) -> None:
    copies = {row["id"] for row in _table(published / "planted.csv")}
    originals = sorted(path.read_bytes() for path in published.rglob("*.jpg") if path.stem not in copies)
    without = published.with_name("without")
    assert sorted(path.read_bytes() for path in without.rglob("*.jpg")) == originals
    assert not (without / "planted.csv").exists()


def test_a_published_split_divides_patients_and_has_each_class_twice(published: Path) -> None:
    rows = _table(published.with_name("without") / "patients.csv")
    place = {path.stem: path.parent.parent.name for path in published.with_name("without").rglob("*.jpg")}
    parts = {(row["patient"], place[row["id"]]) for row in rows}
    assert len(parts) == 8  # no patient is in both
    for part in ("Training", "Testing"):
        assert {row["class"] for row in rows if place[row["id"]] == part} == set(CLASSES)
    with pytest.raises(UserError, match=r"patients = 7.*choose 8"):
        generate(published.with_name("few"), workers=1, published=True, **{**SMALL, "patients": 7})


def test_running_again_does_nothing_and_other_settings_are_refused(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (made / "phantom.json").stat().st_mtime_ns
    generate(made, workers=1, **SMALL)
    assert "nothing to do" in capsys.readouterr().out
    assert (made / "phantom.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="seed 3 instead of 8"):
        generate(made, workers=1, **{**SMALL, "seed": OTHER_SEED})


@pytest.mark.parametrize(
    ("name", "value"), [("patients", 3), ("slices", 0), ("size", 32), ("seed", -1), ("workers", 0), ("plant", 1.5)]
)
def test_parameters_out_of_range_name_the_mend(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name} = {value}.*choose"):
        generate(tmp_path / "x", **{"workers": 1, **SMALL, name: value})
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("keep me")
    with pytest.raises(UserError, match="not empty"):
        generate(tmp_path / "full", workers=1, **SMALL)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "keep me"
    with pytest.raises(UserError, match="is a file"):
        generate(tmp_path / "full" / "thesis.txt", workers=1, **SMALL)
    with pytest.raises(UserError, match="cannot write"):
        generate(tmp_path / "full" / "thesis.txt" / "deeper", workers=1, **SMALL)


def test_a_killed_run_leaves_nothing_that_counts(tmp_path: Path) -> None:
    remains = tmp_path / ".out.partial" / "glioma"
    remains.mkdir(parents=True)
    (remains / "ph000099.jpg").write_bytes(b"half")
    generate(tmp_path / "out", workers=1, **{**SMALL, "slices": 1})
    assert not remains.parent.exists()
    assert not (tmp_path / "out" / "glioma" / "ph000099.jpg").exists()


def test_the_tumour_is_where_the_mask_says() -> None:
    contrast: dict[str, list[float]] = {name: [] for name in CLASSES}
    for number in range(16):
        person = patient(5, number)
        with_it, without = render(person, 0, 128), render(person, 0, 128, lesion=False)
        change = np.abs(with_it.image.astype(float) - without.image)
        assert not without.mask.any()
        if person.label == "notumor":
            assert not with_it.mask.any()
            assert change.max() == 0
            continue
        near = ndimage.binary_dilation(with_it.mask, iterations=8)
        contrast[person.label].append(change[with_it.mask].mean() / (change[~near].mean() + 0.1))
        assert change[with_it.mask].mean() > 4 * change[~near].mean() + 1, person.name
    assert all(len(contrast[name]) == 4 and np.median(contrast[name]) > 10 for name in CLASSES if name != "notumor")


def _body(lesion: Lesion) -> tuple[np.ndarray, np.ndarray]:
    """Points (mm, [3, N]) inside a lesion without its bumps, and their signed distances to the dura."""
    reach = np.arange(-45, 46, 2.25)
    points = lesion.centre.reshape(3, 1) + np.stack(np.meshgrid(reach, reach, reach)).reshape(3, -1)
    dura = load_atlas().sample("dura", points)
    inside = distance(lesion, points, dura, np.zeros_like(dura)) < 0
    return points[:, inside], dura[inside]


def test_planes_are_those_asked_for(tmp_path: Path) -> None:
    person = patient(0, 0)
    assert {str(render(person, index, 64).truth["plane"]) for index in range(12)} == {"axial", "coronal", "sagittal"}
    assert {str(render(person, index, 64, ["coronal"]).truth["plane"]) for index in range(3)} == {"coronal"}
    with pytest.raises(UserError, match="planes = axial,oblique: choose among axial, coronal, sagittal"):
        generate(
            tmp_path / "p",
            patients=4,
            slices=1,
            size=64,
            seed=0,
            workers=1,
            progress=False,
            planes=["axial", "oblique"],
        )


def test_each_kind_grows_where_radiology_finds_it() -> None:
    seen = dict.fromkeys(CLASSES, 0)
    for number in range(40):
        person = patient(1, number)
        lesion = person.lesion
        seen[person.label] += 1
        if lesion is None:
            continue
        points, dura = _body(lesion)
        if lesion.kind == "glioma":
            assert dura.max() < -2, "a glioma is inside the brain"
            assert load_atlas().sample("dura", lesion.centre.reshape(3, 1))[0] < -8
        elif lesion.kind == "meningioma":
            assert dura.max() < 0.01, "a meningioma does not grow through the skull"
            touches = np.abs(points[0]).min() < 2 if lesion.falx else dura.max() > -2
            assert touches, "a meningioma sits on the dura or the falx"
        else:
            assert abs(lesion.centre[0]) < 5, "the pituitary gland is on the midline"
            assert np.linalg.norm(lesion.centre - SELLA) < 8
            assert np.abs(points - SELLA.reshape(3, 1)).max(0).min() < 3, "it fills the sella"
    assert seen == dict.fromkeys(CLASSES, 10)


def test_slices_of_a_patient_cut_one_lesion() -> None:
    person = next(p for p in (patient(2, n) for n in range(4)) if p.label == "meningioma")
    cuts = [render(person, index, 96) for index in range(5)]
    assert all(cut.mask.any() for cut in cuts)
    places = {tuple(cut.truth[f"mni_{axis}"] for axis in "xyz") for cut in cuts}
    assert len(places) == 1
    assert len({cut.image.tobytes() for cut in cuts}) == 5
    assert render(person, 2, 96).image.tobytes() == cuts[2].image.tobytes()
