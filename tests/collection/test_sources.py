"""Sources as they come from scanners, archives and annotators: what is read, what is left out, and what is advised."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers import in_process
from pictures import CLASSES, draw
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, generate_uid
from scans import write_dicom, write_mat, write_nifti

from brain_dist.collection.decoding import BadImage
from brain_dist.collection.discovery import find_records
from brain_dist.collection.pixels import MeasuredImage
from brain_dist.collection.recipes import DATASETS, parse_recipe, read_recipe
from brain_dist.collection.records import Record
from brain_dist.collection.slicefiles import examine_file, read_contents
from brain_dist.errors import UserError
from brain_dist.store.dataset import open_dataset

IMAGE = np.asarray(draw(1)).astype(np.uint16) * 12  # 96 x 96


def find(source: Path, **part: object) -> tuple[list[Record], list[str]]:
    return find_records(parse_recipe({"parts": [part]}, "it"), source)


def write_classes(root: Path) -> None:
    for label, kind in enumerate(CLASSES):
        (root / kind).mkdir(parents=True)
        draw(label).save(root / kind / "1.png")


def test_dicom_files_without_a_suffix_are_read(tmp_path: Path) -> None:
    for name in ("IM000001", "1.2.840.113619.2.5", "scan.dcm", "Siemens.IMA"):
        write_dicom(tmp_path / "glioma" / "S0001" / name, IMAGE, PatientID="P")
    write_dicom(tmp_path / "glioma" / "DICOMDIR", IMAGE)  # the index of a medium
    (tmp_path / "glioma" / "README").write_text("an export")
    records, warnings = find(tmp_path, format="dicom")
    assert [Path(record.path).name for record in records] == [
        "1.2.840.113619.2.5",
        "IM000001",
        "Siemens.IMA",
        "scan.dcm",
    ]
    assert warnings == ["glioma: 2 files are not DICOM files by their names, such as glioma/DICOMDIR"]
    shutil.rmtree(tmp_path / "glioma" / "S0001")
    with pytest.raises(UserError, match="the folder glioma contains no DICOM files"):
        find(tmp_path, format="dicom")


def compressed(path: Path, syntax: str) -> Path:
    """A DICOM file of this transfer syntax, whose pixels nobody can decode."""
    data = pydicom.dcmread(write_dicom(path, IMAGE))
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = pydicom.encaps.encapsulate([bytes(64)])
    data.save_as(path, enforce_file_format=True)
    return path


def test_a_compression_without_a_decoder_is_named_with_the_package_that_has_one(tmp_path: Path) -> None:
    part = parse_recipe({"parts": [{"format": "dicom"}]}, "it").parts[0]
    read_contents(compressed(tmp_path / "1", JPEG2000Lossless), part)  # Pillow decodes it
    if not pydicom.pixels.get_decoder(JPEGLosslessSV1).is_available:
        with pytest.raises(
            BadImage, match=r"as JPEG Lossless, .*; install python-gdcm, or pylibjpeg and pylibjpeg-lib"
        ):
            read_contents(compressed(tmp_path / "2", JPEGLosslessSV1), part)


def test_studies_are_patients_if_all_dicom_files_have_one_patient_id(tmp_path: Path) -> None:
    studies = [generate_uid() for _ in range(3)]
    for number, study in enumerate([*studies, *studies]):
        path = tmp_path / ("glioma" if number % 2 else "notumor") / f"{number}.dcm"
        write_dicom(path, IMAGE, PatientID="ANON", StudyInstanceUID=study)
    records, warnings = find(tmp_path, dataset="d", format="dicom")
    assert {record.path: record.patient for record in records} == {
        f"{'glioma' if number % 2 else 'notumor'}/{number}.dcm": studies[number % 3] for number in range(6)
    }
    message = "d: all DICOM files have the PatientID ANON; each StudyInstanceUID is taken for a patient"
    assert warnings == [message]
    write_dicom(tmp_path / "glioma" / "6.dcm", IMAGE, PatientID="P2", StudyInstanceUID=studies[0])
    records, warnings = find(tmp_path, dataset="d", format="dicom")
    assert {record.patient for record in records} == {"ANON", "P2"}
    assert warnings == []


def volume(number: int = 0) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 1000, (20, 20, 4)).astype(np.int16)


def test_masks_beside_volumes_are_left_out_by_their_names(tmp_path: Path) -> None:
    for name in ("a_t1.nii.gz", "a_seg.nii.gz", "b-label.nii", "b.nii", "segment.nii", "c_T2.nii"):
        write_nifti(tmp_path / "glioma" / name, volume())
    records, warnings = find(tmp_path, format="nifti", slices={"step": 4})
    assert [record.path for record in records] == [
        f"glioma/{x}" for x in ("a_t1.nii.gz", "b.nii", "c_T2.nii", "segment.nii")
    ]
    assert warnings == ["glioma: 2 files are left out by their names, such as glioma/a_seg.nii.gz"]
    records, _ = find(tmp_path, format="nifti", slices={"step": 4}, exclude="_T2|seg")
    assert [record.path for record in records] == [f"glioma/{x}" for x in ("a_t1.nii.gz", "b-label.nii", "b.nii")]
    with pytest.raises(UserError, match=r"contains no .nii or .nii.gz files \(6 excluded files, such as"):
        find(tmp_path, format="nifti", exclude="glioma")
    draw(1).save(tmp_path / "glioma" / "a_seg.png")
    assert len(find(tmp_path)[0]) == 1  # a name means nothing among images, unless the recipe says so
    with pytest.raises(UserError, match=r"parts\[0\]: exclude: '\(' is not a regular expression"):
        find(tmp_path, exclude="(")


def test_one_volume_of_a_file_of_several(tmp_path: Path) -> None:
    volumes = [volume(number) for number in range(3)]
    for name in ("series.nii", "series.nii.gz"):
        path = write_nifti(tmp_path / name, np.stack(volumes, axis=-1))
        one = write_nifti(tmp_path / "one.nii", volumes[2])
        part, plain = (
            parse_recipe({"parts": [{"format": "nifti", "slices": slices}]}, "it").parts[0]
            for slices in ({"volume": 2}, {})
        )
        assert [number for number, _ in read_contents(path, part).slices] == [0, 1, 2, 3]
        images = [*examine_file(path, part, [0, 1, 2, 3]), *examine_file(one, plain, [0, 1, 2, 3])]
        assert all(isinstance(image, MeasuredImage) for image in images), images
        assert [image.pixel_hash for image in images[:4]] == [image.pixel_hash for image in images[4:]]
        with pytest.raises(BadImage, match="contains 3 volumes; choose one with"):
            read_contents(path, plain)
        with pytest.raises(BadImage, match="contains 1 volumes, but the recipe chooses volume 2"):
            read_contents(one, part)
    with pytest.raises(UserError, match="volume must be ≥ 0, got -1"):
        parse_recipe({"parts": [{"format": "nifti", "slices": {"volume": -1}}]}, "it")


def test_nan_outside_the_head_is_background(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(20, 20, 4)).astype(np.float32)
    lowest, nan = values.copy(), values.copy()
    nan[:6], nan[..., 3] = np.nan, np.nan
    lowest[:6], lowest[..., 3] = np.nanmin(nan), np.nanmin(nan)
    part = parse_recipe({"parts": [{"format": "nifti"}]}, "it").parts[0]
    one, other = (
        list(examine_file(write_nifti(tmp_path / name, volume), part, [0, 1, 2, 3]))
        for name, volume in (("a.nii", nan), ("b.nii.gz", lowest))
    )
    assert all(isinstance(image, MeasuredImage) for image in one), one
    assert [image.pixel_hash for image in one] == [image.pixel_hash for image in other]
    infinite = write_nifti(tmp_path / "c.nii", np.where(np.isnan(nan), np.inf, nan))
    assert next(examine_file(infinite, part, [0])) == "contains values that are not finite"


def test_folders_that_other_programs_add_are_ignored(tmp_path: Path) -> None:
    write_classes(tmp_path)
    for folder in ("__MACOSX/glioma", "glioma/__MACOSX", "glioma/@eaDir", "@eaDir", "lost+found", "$RECYCLE.BIN/x"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "._1.png").write_bytes(b"Mac OS X")
        draw(9).save(tmp_path / folder / "thumbnail.png")
    records, warnings = find(tmp_path)
    assert [record.path for record in records] == [f"{kind}/1.png" for kind in CLASSES]
    assert warnings == []


def test_the_source_that_fits_is_named_if_the_classes_are_deeper(tmp_path: Path) -> None:
    write_classes(tmp_path / "archive" / "Brain Tumor")
    (tmp_path / "archive" / "__MACOSX").mkdir()
    advice = rf"{tmp_path}/archive/Brain Tumor has the expected folders: use --source {tmp_path}/archive/Brain Tumor$"
    with pytest.raises(UserError, match=f"the folder archive is not one of the classes .*; {advice}"):
        find(tmp_path)
    with pytest.raises(UserError, match=f"the folder glioma for class glioma is missing .*; {advice}"):
        find(tmp_path, folders={"glioma": "glioma"})
    with pytest.raises(
        UserError,
        match=r"the folder absent is missing in .*; expected in --source: absent/glioma/, .*\(or absent/Training/",
    ):
        find(tmp_path, root="absent")
    with pytest.raises(UserError, match=r"--allow-missing.*; expected in --source: deep/a/, deep/b/$"):
        find(tmp_path, root="deep", folders={"glioma": ["a", "b"]})


def test_published_recipes_show_their_layout_and_find_it_deeper(tmp_path: Path) -> None:
    recipe = read_recipe(Path("sartaj"))
    with pytest.raises(
        UserError,
        match=r"the folder Training/glioma_tumor for .*; expected in --source: Training/gl.*, Testing/pituitary_tumor/",
    ):
        find_records(recipe, tmp_path)
    for kind in ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor"):
        for split in ("Training", "Testing"):
            (tmp_path / "archive" / split / kind).mkdir(parents=True)
            draw(len(kind + split)).save(tmp_path / "archive" / split / kind / "1.jpg")
    with pytest.raises(UserError, match=f"use --source {tmp_path}/archive$"):
        find_records(recipe, tmp_path)
    assert len(find_records(recipe, tmp_path / "archive")[0]) == 8
    write_mat(tmp_path / "mat" / "brainTumorDataPublic_1-766" / "1.mat", IMAGE)
    with pytest.raises(UserError, match=r"contains no \.mat files|published folds"):
        find_records(read_recipe(Path("cheng_mat")), tmp_path / "archive")


def test_recipes_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_recipe(Path("nickparvar")) == read_recipe(DATASETS / "nickparvar.yaml")
    assert read_recipe(Path("nickparvar.yaml")) == read_recipe(Path("nickparvar"))
    with pytest.raises(UserError, match=r"recipe nickparva does not exist \(did you mean nickparvar\?\); give a file"):
        read_recipe(Path("nickparva"))
    monkeypatch.chdir(tmp_path)
    Path("nickparvar").write_text("classes: [a, b]\nparts: [{}]")
    assert read_recipe(Path("nickparvar")).classes == ("a", "b")  # a file has precedence
    Path("nickparvar").unlink()
    Path("deep").mkdir()
    result = in_process("shard", "build", "--recipe", "nickparvar", "--source", "deep", "--out", "out", expect=2)
    assert "expected in --source: Training/glioma/, " in result.err


def test_file_names_mean_the_same_in_every_locale(tmp_path: Path) -> None:
    for kind in CLASSES:
        (tmp_path / "raw" / kind).mkdir(parents=True)
        for number in range(3):
            draw(ord(kind[0]) + number).save(tmp_path / "raw" / kind / f"Görüntü {kind} {number}.png")
    rows = [f"Görüntü {kind} {number},{kind}-ş" for kind in CLASSES for number in range(3)]
    (tmp_path / "raw" / "patients.csv").write_text("\n".join(["id,patient", *rows]), encoding="utf-8")
    locales = {"utf-8": {"LC_ALL": "C.UTF-8"}, "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}}
    options = ["--split", "test", "--workers", "1"]
    for encoding, variables in locales.items():
        name = [sys.executable, "-c", "import sys; print(sys.getfilesystemencoding())"]
        environment = {**os.environ, **variables}
        assert subprocess.run(name, env=environment, capture_output=True, check=True).stdout.decode() == f"{encoding}\n"
        command = [sys.executable, "-m", "brain_dist.shard", "build", "--source", "raw", "--out", encoding, *options]
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    patients = open_dataset(tmp_path / "ascii").columns["patient"]
    assert set(patients) == {f"{kind}-ş" for kind in CLASSES}
    assert open_dataset(tmp_path / "ascii").version == open_dataset(tmp_path / "utf-8").version
