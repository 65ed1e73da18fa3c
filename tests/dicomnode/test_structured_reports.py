"""`predict --sr`: Structured Reports about series, judged by dcmtk, dicom3tools and highdicom."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_series import PATIENT, ROOT, dump, errors_of, write_series
from helpers import Result, in_process
from pictures import draw
from pydicom.data import get_testdata_file
from pydicom.uid import EnhancedMRImageStorage
from scans import write_dicom

import brain_dist
from brain_dist.dicomnode.codes import class_code

pytestmark = [
    pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs Debian's dcmtk and dicom3tools"),
    pytest.mark.filterwarnings("ignore:Invalid value for VR CS"),
]


@pytest.fixture(scope="module")
def predicted(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Result]:
    """A folder of every case, the folder of the reports about it, and what the command printed."""
    folder = tmp_path_factory.mktemp("reports")
    images, reports = folder / "images", folder / "sr"
    write_series(images, 1, 4)
    write_series(images, 2, 1)
    write_series(images, 3, 1, BurnedInAnnotation="YES")
    write_series(images, 4, 1, Modality="CT")
    write_series(images, 5, 3)
    blank = {"PatientName": "山田^太郎", "SpecificCharacterSet": "ISO_IR 192", "PatientSex": "female"}
    write_dicom(images / "s5-blank.dcm", np.zeros((96, 96), np.uint16), **_identity(5, 9), **blank)
    frames = np.stack([np.asarray(draw(number)) for number in range(3)]).astype(np.uint16)
    write_dicom(images / "s6-frames.dcm", frames, SOPClassUID=EnhancedMRImageStorage, **_identity(6, 1))
    (no_pixels,) = write_series(images, 7, 1)
    dataset = pydicom.dcmread(no_pixels)
    del dataset.PixelData
    dataset.save_as(no_pixels)
    shutil.copy(get_testdata_file("MR_small.dcm"), images / "small.dcm")
    draw(1).save(images / "slice.png")
    (nameless,) = write_series(images, 8, 1)
    dataset = pydicom.dcmread(nameless)
    del dataset.StudyInstanceUID
    dataset.save_as(nameless)
    table = ["--out", str(folder / "table.csv")]
    result = in_process("predict", str(trained_run), str(images), *table, "--sr", str(reports), expect=3)
    return folder, reports, result


def _identity(series: int, number: int) -> dict[str, Any]:
    return {
        "StudyInstanceUID": f"{ROOT}1",
        "SeriesInstanceUID": f"{ROOT}1.{series}",
        "SOPInstanceUID": f"{ROOT}1.{series}.{number}",
        "Modality": "MR",
    }


def by_series(reports: Path) -> dict[str, Path]:
    """The file of each report by the last number of its source's series UID."""
    sources = {}
    for path in reports.iterdir():
        dataset = pydicom.dcmread(path)
        (study,) = dataset.CurrentRequestedProcedureEvidenceSequence
        (series,) = study.ReferencedSeriesSequence
        assert study.StudyInstanceUID == dataset.StudyInstanceUID
        assert path.name == f"{dataset.SOPInstanceUID}.dcm"
        sources[str(series.SeriesInstanceUID).rpartition(".")[2]] = path
    return sources


def groups_of(path: Path) -> dict[str, dict[str, Any]]:
    """The content of each measurement group by its name."""
    report = highdicom.sr.srread(path)
    groups = {}
    for group in report.content.get_image_measurement_groups():
        texts = {item.name.meaning: item.value for item in group[0].ContentSequence if item.ValueType == "TEXT"}
        groups[group.tracking_identifier] = {
            "codes": {each.name.meaning: each.value.meaning for each in group.get_qualitative_evaluations()},
            "numbers": {each.name.meaning: each.value for each in group.get_measurements()},
            "images": [each.referenced_sop_instance_uid for each in group.source_images],
            "frames": [each.referenced_frame_numbers for each in group.source_images],
            "texts": texts,
        }
    return groups


def test_reports_are_valid_and_say_what_the_table_says(trained_run: Path, predicted: tuple[Path, Path, Result]) -> None:
    folder, reports, _ = predicted
    rows = {}
    with (folder / "table.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            rows[Path(row["path"]).name, row["frame"]] = row
    contract = brain_dist.load(trained_run).contract
    files = by_series(reports)
    assert sorted(files) == sorted(["1", "2", "3", "4", "5", "6", "7", "5457"])  # the last is MR_small's
    for path in files.values():
        assert errors_of(path) == []
        text = dump(path)
        assert "Verification Flag   : UNVERIFIED" in text
        assert "Not a medical device." in text
        assert f"weights sha256 {contract.weights.sha256}" in text
    assert "Müller^Zoë (F, 1961-04-12, #ID-40917)" in dump(files["1"])
    groups = groups_of(files["1"])
    assert list(groups) == ["Series", "Image 1", "Image 2", "Image 3", "Image 4"]
    for number in range(1, 5):
        group, row = groups[f"Image {number}"], rows[f"s1-{number - 1:03d}.dcm", ""]
        assert group["images"] == [f"{ROOT}1.1.{number}"]
        assert group["codes"]["Evaluation"] == "Evaluated"
        assert group["codes"]["Class with the largest probability"] == row["label"]
        assert group["codes"]["Verdict"].startswith("One class" if row["verdict"] == "ok" else "Several")
        for name in contract.classes:
            assert group["numbers"][f"Probability of {name}"] == pytest.approx(float(row[f"p_{name}"]), abs=6e-5)
        members = group["texts"]["Set of classes"].split(": ")[0]
        assert members == ", ".join(row["set"].split("|")) or (members == "No class" and row["set"] == "")
    series = groups["Series"]
    assert series["images"] == [f"{ROOT}1.1.{number}" for number in range(1, 5)]
    logs = np.log([[float(rows[f"s1-{n:03d}.dcm", ""][f"p_{name}"]) for name in contract.classes] for n in range(4)])
    mean = np.exp(logs.mean(axis=0)) / np.exp(logs.mean(axis=0)).sum()
    np.testing.assert_allclose(list(series["numbers"].values()), mean, atol=1e-3)
    frames = groups_of(files["6"])
    assert list(frames) == ["Series", *(f"Image, frame {number}" for number in range(1, 4))]
    assert [each for group in list(frames.values())[1:] for each in group["frames"]] == [[1], [2], [3]]
    assert list(groups_of(files["2"])) == ["Image 1"]


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        ("3", "The image has burned-in annotation."),
        ("4", "The modality of the image is CT, not MR."),
        ("7", "The file is a DICOM file without pixels."),
    ],
)
def test_what_is_not_evaluated_has_a_reason_and_no_class(
    predicted: tuple[Path, Path, Result], series: str, reason: str
) -> None:
    (group,) = groups_of(by_series(predicted[1])[series]).values()
    assert group["codes"] == {"Evaluation": "Not evaluated"}
    assert group["numbers"] == {}
    assert group["texts"]["Reason"].startswith(reason)
    assert len(group["images"]) == 1


def test_blank_image_does_not_count_in_its_series(predicted: tuple[Path, Path, Result]) -> None:
    path = by_series(predicted[1])["5"]
    groups = groups_of(path)
    assert len(groups["Series"]["images"]) == 3
    assert groups["Image"]["codes"] == {"Evaluation": "Not evaluated"}
    assert groups["Image"]["texts"]["Reason"] == "The image is blank."
    assert "mean over 3 of 4 images. 1 not evaluated." in dump(path)


def test_same_images_give_the_same_instances_and_nothing_of_the_patient_is_printed(
    trained_run: Path, predicted: tuple[Path, Path, Result], tmp_path: Path
) -> None:
    folder, reports, first = predicted
    arguments = [str(trained_run), str(folder / "images"), "--sr", str(tmp_path / "again")]
    second = in_process("predict", *arguments, expect=3)
    assert {path.name for path in reports.iterdir()} == {path.name for path in (tmp_path / "again").iterdir()}
    times = {"ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime"}
    for path in reports.iterdir():
        datasets = [pydicom.dcmread(each) for each in (path, tmp_path / "again" / path.name)]
        for dataset in datasets:
            for keyword in times:
                del dataset[keyword]
            for item in dataset.ContributingEquipmentSequence:
                del item.ContributionDateTime
        assert datasets[0] == datasets[1]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").iterdir()}
    in_process("predict", *arguments, expect=3)
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "again").iterdir()}
    for result in (first, second):
        printed = result.out + result.err
        assert "slice.png: is not a DICOM file" in printed
        assert "s8-000.dcm: has no valid StudyInstanceUID, so a report cannot refer to it" in printed
        for text in (*PATIENT.values(), "Zo", "19610412", ROOT):
            assert text not in printed


def test_one_odd_series_does_not_stop_the_others(trained_run: Path, tmp_path: Path) -> None:
    write_series(
        tmp_path / "images", 1, 1, PatientName="Zo\\Zoe", PatientID="ID-40917\\2"
    )  # a backslash separates values
    write_series(tmp_path / "images", 2, 2, SOPClassUID="1.3.46.670589.11.0.0.12.1")  # a vendor's own
    write_series(tmp_path / "images", 3, 1)
    arguments = [str(trained_run), str(tmp_path / "images"), "--sr", str(tmp_path / "sr")]
    result = in_process("predict", *arguments, expect=3)
    assert result.err.count("its series does not fit into one (KeyError)") == 2
    assert "s2-000.dcm" in result.err
    assert "ID-40917" not in result.err
    files = by_series(tmp_path / "sr")
    assert sorted(files) == ["1", "3"]
    report = pydicom.dcmread(files["1"])
    assert report.PatientName == "Zo"
    assert list(report.PatientID) == ["ID-40917", "2"]  # as the image has it
    write_series(tmp_path / "images", 1, 1)  # corrected
    in_process("predict", *arguments, expect=3)
    assert by_series(tmp_path / "sr") == files
    assert pydicom.dcmread(files["1"]).PatientID == "ID-40917"


def test_no_dicom_file_is_one_line(trained_run: Path, tmp_path: Path) -> None:
    draw(1).save(tmp_path / "slice.png")
    result = in_process(
        "predict", str(trained_run), str(tmp_path / "slice.png"), "--sr", str(tmp_path / "sr"), expect=2
    )
    assert result.err.splitlines()[-1].startswith("brain-dist: error: --sr writes reports about DICOM images")
    assert not (tmp_path / "sr").exists()


def test_codes_of_classes_fit_and_differ() -> None:
    names = ["glioma", "no tumor", "no-tumor", "a class with a rather long name", "опухоль", "p"]
    values = [class_code(name).value for name in names] + [class_code(name, "P_").value for name in names]
    assert all(1 <= len(value) <= 16 and value.isascii() for value in values)
    assert len({class_code(name).value for name in (*names[:2], *names[3:])}) == 5
    assert class_code("glioma").value == "GLIOMA"
