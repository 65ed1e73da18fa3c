"""The phantom collection: the same bytes for any number of processes, and truth that matches the images."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from brain_dist.collection.recipes import CLASSES
from brain_dist.errors import UserError
from brain_dist.phantom.atlas import load_atlas
from brain_dist.phantom.generate import PhantomSettings, generate
from brain_dist.phantom.lesions import SELLA, Lesion, lesion_distance
from brain_dist.phantom.patients import draw_patient
from brain_dist.phantom.planting import KINDS
from brain_dist.phantom.slices import render

SMALL = PhantomSettings(patients=5, slices=3, size=96, seed=3, plant=0.5)
OTHER_SEED = replace(SMALL, seed=8)


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "two"
    generate(folder, SMALL, workers=2)
    return folder


def test_bytes_do_not_depend_on_workers(phantoms: Path, tmp_path: Path) -> None:
    generate(tmp_path / "one", SMALL, workers=1)
    assert _bytes(tmp_path / "one") == _bytes(phantoms)
    generate(tmp_path / "other", OTHER_SEED, workers=1)
    assert _bytes(tmp_path / "other") != _bytes(phantoms)


def test_layout_and_tables_agree(phantoms: Path) -> None:
    rows, truth = _table(phantoms / "patients.csv"), _table(phantoms / "truth.csv")
    record = json.loads((phantoms / "phantom.json").read_text())
    assert len(truth) == 15
    assert len(rows) == record["images"] == 15 + 8
    copies = {row["id"] for row in _table(phantoms / "planted.csv")}
    for row in rows:
        with Image.open(phantoms / row["class"] / f"{row['id']}.jpg") as image:
            assert image.mode == "L"
            assert image.size == (96, 96) or row["id"] in copies
    assert sum(len(list((phantoms / name).iterdir())) for name in CLASSES) == len(rows)
    classes: dict[str, set[str]] = {}
    for row in truth:
        classes.setdefault(row["patient"], set()).add(row["class"])
    assert sorted(classes) == [f"P{number:04d}" for number in range(1, 6)]
    assert all(len(labels) == 1 for labels in classes.values())
    assert set.union(*(classes[f"P{number:04d}"] for number in range(1, 5))) == set(CLASSES)
    order = [row["class"] for row in truth]
    assert order != sorted(order), "an id must not reveal its class"


def test_truth_matches_the_masks(phantoms: Path) -> None:
    rows = _table(phantoms / "truth.csv")
    with_mask = {f"{row['id']}.png" for row in rows if row["class"] != "notumor"}
    assert {path.name for path in (phantoms / "masks").iterdir()} == with_mask
    for row in rows:
        path = phantoms / "masks" / f"{row['id']}.png"
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


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 patients in Training/ and Testing/, each slice copied: 32 copies, four of each kind."""
    folder = tmp_path_factory.mktemp("phantom") / "published"
    settings = replace(SMALL, patients=8, slices=4, plant=1.0, published=True)
    generate(folder, settings, workers=2)
    generate(folder.with_name("without"), replace(settings, plant=0.0), workers=1)
    return folder


def test_planted_copies_match_their_kind(published: Path) -> None:
    planted, patients = _table(published / "planted.csv"), _table(published / "patients.csv")
    paths = {path.stem: path.relative_to(published) for path in published.rglob("*.jpg")}
    patient_of = {row["id"]: row["patient"] for row in patients}
    assert len(paths) == len(patients) == 64
    assert all(paths[row["id"]].parent.name == row["class"] for row in patients)
    assert Counter(row["kind"] for row in planted) == dict.fromkeys(KINDS, 4)
    assert len({row["of"] for row in planted}) == len({patient_of[row["id"]] for row in planted}) == 32
    for row in planted:
        copy, original, kind = paths[row["id"]], paths[row["of"]], row["kind"]
        assert patient_of[row["id"]] not in {patient_of[other] for other in patient_of if other != row["id"]}
        assert (copy.parent.name == original.parent.name) == (kind != "conflict")
        leaks = (original.parts[0], copy.parts[0]) == ("Training", "Testing")
        assert leaks if kind == "leak" else original.parts[0] == copy.parts[0]
        same_bytes = (published / copy).read_bytes() == (published / original).read_bytes()
        assert same_bytes == (kind == "duplicate") or kind == "conflict"
        with Image.open(published / copy) as a, Image.open(published / original) as b:
            one, other = np.asarray(a, float), np.asarray(b, float)
        if kind in ("reencoded", "conflict"):
            assert _correlation(one, other) > 0.98
        elif kind == "mirrored":
            assert _correlation(one, other[:, ::-1]) > 0.98 > _correlation(one, other)
        elif kind == "rescaled":
            assert 48 <= len(one) <= 154
            assert len(one) != 96
        elif kind == "cropped":
            assert all(96 * 0.82 - 1 <= side <= 96 * 0.96 + 1 for side in one.shape)
            windows = np.lib.stride_tricks.sliding_window_view(other, one.shape)
            assert np.abs(windows - one).mean(axis=(2, 3)).min() < 2
        elif kind == "brightness":
            assert _correlation(one, other) > 0.9


def test_planting_does_not_change_the_other_images(published: Path) -> None:
    copies = {row["id"] for row in _table(published / "planted.csv")}
    originals = sorted(path.read_bytes() for path in published.rglob("*.jpg") if path.stem not in copies)
    without = published.with_name("without")
    assert sorted(path.read_bytes() for path in without.rglob("*.jpg")) == originals
    assert not (without / "planted.csv").exists()


def test_a_published_split_has_no_patient_twice_and_each_class_in_both_parts(published: Path) -> None:
    rows = _table(published.with_name("without") / "patients.csv")
    part_of = {path.stem: path.parent.parent.name for path in published.with_name("without").rglob("*.jpg")}
    parts = {(row["patient"], part_of[row["id"]]) for row in rows}
    assert len(parts) == 8  # no patient is in both
    for part in ("Training", "Testing"):
        assert {row["class"] for row in rows if part_of[row["id"]] == part} == set(CLASSES)
    with pytest.raises(UserError, match="--patients 7 must be from 8"):
        replace(SMALL, patients=7, published=True)


def test_a_second_run_does_nothing_and_other_settings_are_an_error(
    phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (phantoms / "phantom.json").stat().st_mtime_ns
    generate(phantoms, SMALL, workers=1)
    assert "nothing to do" in capsys.readouterr().out
    assert (phantoms / "phantom.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="seed 3 instead of 8"):
        generate(phantoms, OTHER_SEED, workers=1)


@pytest.mark.parametrize(
    ("name", "value"), [("patients", 3), ("slices", 0), ("size", 32), ("seed", -1), ("plant", 1.5)]
)
def test_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{name} {value} must be from"):
        replace(SMALL, **{name: value})


def test_workers_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--workers 0 must be from 1"):
        generate(tmp_path / "x", SMALL, workers=0)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("keep me")
    with pytest.raises(UserError, match="not empty"):
        generate(tmp_path / "full", SMALL, workers=1)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "keep me"
    with pytest.raises(UserError, match="is a file"):
        generate(tmp_path / "full" / "thesis.txt", SMALL, workers=1)
    with pytest.raises(UserError, match="cannot be written"):
        generate(tmp_path / "full" / "thesis.txt" / "deeper", SMALL, workers=1)


def test_the_folder_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    remains = tmp_path / ".out.partial-0" / "glioma"
    remains.mkdir(parents=True)
    (remains / "ph000099.jpg").write_bytes(b"half")
    generate(tmp_path / "out", replace(SMALL, slices=1), workers=1)
    assert not remains.parent.exists()
    assert not (tmp_path / "out" / "glioma" / "ph000099.jpg").exists()


def test_the_tumour_changes_the_image_where_the_mask_is() -> None:
    contrast: dict[str, list[float]] = {name: [] for name in CLASSES}
    for number in range(16):
        patient = draw_patient(5, number)
        with_lesion, without = render(patient, 0, 128), render(patient, 0, 128, lesion=False)
        change = np.abs(with_lesion.image.astype(float) - without.image)
        assert not without.mask.any()
        if patient.label == "notumor":
            assert not with_lesion.mask.any()
            assert change.max() == 0
            continue
        near = ndimage.binary_dilation(with_lesion.mask, iterations=8)
        contrast[patient.label].append(change[with_lesion.mask].mean() / (change[~near].mean() + 0.1))
        assert change[with_lesion.mask].mean() > 4 * change[~near].mean() + 1, patient.name
    assert all(len(contrast[name]) == 4 and np.median(contrast[name]) > 10 for name in CLASSES if name != "notumor")


def _body(lesion: Lesion) -> tuple[np.ndarray, np.ndarray]:
    """Points (mm, [3, N]) inside a lesion without its bumps, and their signed distances to the dura."""
    axis = np.arange(-45, 46, 2.25)
    points = lesion.centre.reshape(3, 1) + np.stack(np.meshgrid(axis, axis, axis)).reshape(3, -1)
    dura = load_atlas().distance("dura", points)
    inside = lesion_distance(lesion, points, dura, np.zeros_like(dura)) < 0
    return points[:, inside], dura[inside]


def test_only_the_given_planes_are_rendered() -> None:
    patient = draw_patient(0, 0)
    assert {str(render(patient, index, 64).truth["plane"]) for index in range(12)} == {"axial", "coronal", "sagittal"}
    assert {str(render(patient, index, 64, ["coronal"]).truth["plane"]) for index in range(3)} == {"coronal"}
    with pytest.raises(UserError, match="--planes axial,oblique must be one or more of axial, coronal, sagittal"):
        replace(SMALL, planes=("axial", "oblique"))


def test_each_kind_grows_at_its_radiological_site() -> None:
    counts = dict.fromkeys(CLASSES, 0)
    for number in range(40):
        patient = draw_patient(1, number)
        lesion = patient.lesion
        counts[patient.label] += 1
        if lesion is None:
            continue
        points, dura = _body(lesion)
        if lesion.kind == "glioma":
            assert dura.max() < -2, "a glioma is inside the brain"
            assert load_atlas().distance("dura", lesion.centre.reshape(3, 1))[0] < -8
        elif lesion.kind == "meningioma":
            assert dura.max() < 0.01, "a meningioma does not grow through the skull"
            attached = np.abs(points[0]).min() < 2 if lesion.falcine else dura.max() > -2
            assert attached, "a meningioma is attached to the dura or the falx"
        else:
            assert abs(lesion.centre[0]) < 5, "the pituitary gland is on the midline"
            assert np.linalg.norm(lesion.centre - SELLA) < 8
            assert np.abs(points - SELLA.reshape(3, 1)).max(0).min() < 3, "it fills the sella"
    assert counts == dict.fromkeys(CLASSES, 10)


def test_slices_of_a_patient_cut_one_lesion() -> None:
    patient = next(p for p in (draw_patient(2, n) for n in range(4)) if p.label == "meningioma")
    slices = [render(patient, index, 96) for index in range(5)]
    assert all(rendered.mask.any() for rendered in slices)
    centres = {tuple(rendered.truth[f"mni_{axis}"] for axis in "xyz") for rendered in slices}
    assert len(centres) == 1
    assert len({rendered.image.tobytes() for rendered in slices}) == 5
    assert render(patient, 2, 96).image.tobytes() == slices[2].image.tobytes()
