"""`brain-dist predict` and ``brain_dist.load(...).predict``: formats, faults, tables, several ranks."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from formats import write_formats
from helpers import in_process, largest_file, launch
from pictures import draw
from PIL import Image
from pydicom.uid import JPEGLosslessSV1, RLELossless
from scans import write_dicom, write_nifti

import brain_dist
from brain_dist.errors import UserError
from brain_dist.prediction.answers import Prediction
from brain_dist.prediction.maps import map_name
from brain_dist.prediction.sources import find_sources

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
COLUMNS = [
    "path",
    "frame",
    "label",
    "probability",
    *(f"p_{name}" for name in CLASSES),
    "set",
    "ood_p",
    "verdict",
    "error",
]


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("formats") / "files"
    return folder, write_formats(folder)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_format_in_a_folder(trained_run: Path, formats: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    folder, slices = formats
    out = tmp_path / "predictions.csv"
    result = in_process("predict", str(trained_run), str(folder), "--out", str(out), "--device", "cpu", expect=3)
    rows = read_csv(out)
    assert list(rows[0]) == COLUMNS
    good = [row for row in rows if not row["error"]]
    for name, count in slices.items():
        own = [row for row in good if row["path"] == str(folder / name)]
        assert len(own) == count + (count > 1), name  # a file of several slices has one more row
        if count > 1:
            assert own[-1]["frame"] == "mean"
            assert len({row["frame"] for row in own}) == count + 1
    assert {row["path"] for row in rows} == {str(folder / name) for name in slices}
    for row in good:
        probabilities = [float(row[f"p_{name}"]) for name in CLASSES]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert float(row["probability"]) == max(probabilities) == float(row[f"p_{row['label']}"])
    errors = {Path(row["path"]).name: row["error"] for row in rows if row["error"]}
    assert errors["empty.png"] == "is empty (0 bytes)"
    assert errors["page.jpg"] == "is not an image but a web page"
    assert errors["truncated.jpg"].startswith("cannot be decoded (")
    listed = result.err.splitlines()
    assert listed[0] == "brain-dist: 3 images could not be predicted:"
    assert listed[1:] == [f"{row['path']}: {row['error']}" for row in rows if row["error"]]
    same = ("b.png", "c.bmp", "d.tif", "array.npy", "some.tar/b.png", "volume.nii", "frames.dcm")
    assert {len({row["path"] for row in good if row["path"] == str(folder / name)}) for name in same} == {1}
    by_name = {(row["path"], row["frame"]): row["p_glioma"] for row in good}
    lossless = [by_name[str(folder / name), ""] for name in ("b.png", "c.bmp", "d.tif", "array.npy", "some.tar/b.png")]
    assert len(set(lossless)) == 1  # the same pixels in another format
    assert by_name[str(folder / "g.dcm"), ""] == by_name[str(folder / "frames.dcm"), "1"]
    assert not list(tmp_path.glob("*.parts"))


def test_table_formats_agree(trained_run: Path, formats: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    folder = formats[0]
    paths = [str(folder / name) for name in ("a.jpg", "frames.dcm", "empty.png")]
    for suffix in ("csv", "json", "parquet"):
        in_process("predict", str(trained_run), *paths, "--out", str(tmp_path / f"p.{suffix}"), expect=3)
    document = json.loads((tmp_path / "p.json").read_text())
    assert document["schema"] == 1
    assert document["model"]["weights"] == brain_dist.load(trained_run).contract.weights.sha256
    parquet = pd.read_parquet(tmp_path / "p.parquet")
    assert list(parquet.columns) == list(document["predictions"][0]) == COLUMNS
    rows = read_csv(tmp_path / "p.csv")
    assert len(rows) == len(parquet) == len(document["predictions"]) == 8
    for text, item, (_, other) in zip(rows, document["predictions"], parquet.iterrows(), strict=True):
        for name in COLUMNS:
            missing = pd.isna(other[name])
            assert missing == (item[name] is None) == (text[name] == "")
            if not missing:
                assert item[name] == other[name]
                assert text[name] == (f"{item[name]:.6f}" if isinstance(item[name], float) else item[name])


def test_predictions_are_those_of_the_evaluation(trained_run: Path, phantom_shards: Path) -> None:
    dataset = brain_dist.open_dataset(phantom_shards)
    table = brain_dist.read_predictions(trained_run / "predictions" / "val.parquet")
    predictor = brain_dist.load(trained_run)
    calibration = predictor.contract.calibration
    assert calibration is not None
    files = [phantom_shards.parent / "images" / dataset.columns["source"][row] for row in table.row]
    predictions = predictor.predict(files)
    assert [Path(each.path) for each in predictions] == files
    scaled = table.logit / calibration.temperature
    expected = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
    actual = np.array([[each.probabilities[name] for name in CLASSES] for each in predictions])
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    inside = 1 - table.prob <= calibration.threshold
    assert [each.set for each in predictions] == [tuple(np.array(CLASSES)[row]) for row in inside]
    assert {each.verdict for each in predictions} <= {"ok", "unsure"}
    assert all((each.verdict == "ok") == (len(each.set or ()) == 1) for each in predictions)


def test_paths_bytes_images_and_arrays_give_the_same(trained_run: Path, tmp_path: Path) -> None:
    head = draw(5)
    head.save(tmp_path / "head.png")
    pixels = np.asarray(head)
    forms = [
        *(tmp_path / "head.png", str(tmp_path / "head.png"), (tmp_path / "head.png").read_bytes()),
        *(Image.open(tmp_path / "head.png"), head, pixels, pixels[..., None], np.stack([pixels] * 3, axis=-1)),
    ]
    predictor = brain_dist.load(trained_run)
    together = predictor.predict(forms)
    assert len(together) == len(forms)
    assert len({each.label for each in together}) == 1
    alone = [predictor.predict(form)[0] for form in forms]
    for each, other in zip(together, alone, strict=True):
        assert each.probability == pytest.approx(other.probability, abs=1e-5)
    assert len({np.asarray(each.image).tobytes() for each in together}) == 1
    assert str(alone[0]).startswith(f"{tmp_path}/head.png: {alone[0].label} 0.")
    (wrong,) = predictor.predict(np.zeros((2, 2, 2, 2)))
    assert wrong.error == (
        "is an array of shape [2, 2, 2, 2] and type float64; expected [H, W], [N, H, W], or uint8 [H, W, 3]"
    )
    with pytest.raises(UserError, match=r"image\[1\] is of type dict"):
        predictor.predict([pixels, {}])
    assert [each.frame for each in predictor.predict(np.stack([pixels] * 4), slices="1:3")] == [1, 2, "mean"]
    assert [each.frame for each in predictor.predict(np.stack([pixels] * 5), slices="middle")] == [2]
    with pytest.raises(UserError, match="must be all, middle or FIRST:END"):
        predictor.predict(pixels, slices="first")


def test_two_ranks_write_the_same_bytes_as_one(
    trained_run: Path, formats: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    arguments = [str(trained_run), str(formats[0]), "--batch", "3", "--device", "cpu", "--out"]
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    launch(1, "predict", *arguments, str(one), expect=3)
    launch(2, "predict", *arguments, str(two), expect=3)
    assert one.read_bytes() == two.read_bytes()
    assert len(read_csv(one)) > 30
    without = launch(2, "predict", str(trained_run), str(formats[0]), expect=2)
    assert "a prediction on several ranks needs a table; add --out FILE.csv" in without.err


def test_an_interrupted_prediction_is_resumed(trained_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(7):
        draw(number).save(folder / f"{number}.png")
    (folder / "6.png").write_bytes(b"damaged")
    out, parts = tmp_path / "table.csv", tmp_path / "table.csv.parts"
    arguments = [str(trained_run), str(folder), "--out", str(out), "--batch", "2"]
    stopped = in_process("predict", *arguments, "--fail-fast", expect=3)
    assert stopped.err == f"brain-dist: stopped at {folder}/6.png: is not an image\n"
    assert not out.exists()
    finished = {path: path.stat().st_mtime_ns for path in parts.glob("0*.json")}
    assert len(finished) == 3
    other = in_process("predict", *arguments[:-1], "3", "--resume", expect=2)
    assert "is of a prediction with another batch; remove --resume to begin again" in other.err
    assert {path: path.stat().st_mtime_ns for path in parts.glob("0*.json")} == finished
    draw(6).save(folder / "6.png")
    first = json.loads((parts / "00000.json").read_text())
    first[0][2] = "marked"  # shows that this part is not predicted again
    (parts / "00000.json").write_text(json.dumps(first))
    in_process("predict", *arguments, "--resume")
    rows = read_csv(out)
    assert [Path(row["path"]).name for row in rows] == [f"{number}.png" for number in range(7)]
    assert [row["label"] == "marked" for row in rows] == [True, *[False] * 6]
    assert not parts.exists()


def test_nothing_readable_is_a_mistake(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    words = ["no.png", str(tmp_path / "empty"), str(tmp_path / "*.jpg"), str(tmp_path / "broken.zip")]
    result = in_process("predict", str(trained_run), *words, expect=2)
    assert result.out == ""
    expected = (
        "does not exist",
        "is a folder without images",
        "no file matches this pattern",
        "is not a readable archive",
    )
    lines = result.err.splitlines()[1:]
    assert all(word in line and text in line for word, text, line in zip(words, expected, lines, strict=True))
    for arguments, message in (
        ([str(tmp_path), "x.png"], "environment.json does not exist; is"),
        (["nowhere", "x.png"], "nowhere is not the folder of a run"),
        ([str(trained_run), "x.png", "--out", "table.txt"], "must end in .csv, .json, .parquet"),
        ([str(trained_run), "x.png", "--slices", "3"], "must be all, middle or FIRST:END"),
        ([str(trained_run), "x.png", "--batch", "0"], "--batch 0: must be ≥ 1"),
        ([str(trained_run), "x.png", "--step", "7"], "has no checkpoint of step 7"),
        ([str(trained_run), "x.png", "--resume"], "--resume needs a table"),
    ):
        mistake = in_process("predict", *arguments, expect=2)
        assert mistake.err.startswith("brain-dist: error: ")
        assert mistake.err.count("\n") == 1
        assert message in mistake.err


def test_a_list_on_standard_input(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(tmp_path / f"{number}.png") for number in range(3)]
    for number, name in enumerate(names):
        draw(number).save(name)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*names, "gone.png", ""])))
    result = in_process("predict", str(trained_run), "-", "--device", "cpu", expect=3)
    assert [line.split(": ")[0] for line in result.out.splitlines()] == names
    assert result.err == "brain-dist: 1 image could not be predicted:\ngone.png: does not exist\n"


def test_slices_without_an_answer_are_said_to_be_unlike_the_training(trained_run: Path, tmp_path: Path) -> None:
    head = np.asarray(draw(1)).astype(np.uint16)
    write_dicom(tmp_path / "ct.dcm", head, Modality="CT")
    write_dicom(tmp_path / "mr.dcm", head, Modality="MR")
    volume = np.zeros((96, 96, 4), dtype=np.int16)
    volume[:, :, 1:3] = head[..., None]
    write_nifti(tmp_path / "ends.nii.gz", volume)
    predictions = brain_dist.load(trained_run).predict(tmp_path)
    verdicts = {(Path(each.path).name, each.frame): each.verdict == "not_like_training" for each in predictions}
    assert verdicts == {
        ("ct.dcm", None): True, ("ends.nii.gz", 0): True, ("ends.nii.gz", 1): False, ("ends.nii.gz", 2): False,
        ("ends.nii.gz", 3): True, ("ends.nii.gz", "mean"): False, ("mr.dcm", None): False,
    }  # fmt: skip


def test_compressed_dicom(trained_run: Path, tmp_path: Path) -> None:
    head = np.asarray(draw(2)).astype(np.uint16)
    plain = write_dicom(tmp_path / "plain.dcm", head)
    packed = pydicom.dcmread(plain)
    packed.compress(RLELossless)
    packed.save_as(tmp_path / "rle.dcm")
    packed.file_meta.TransferSyntaxUID = JPEGLosslessSV1  # claims a compression without a decoder
    packed.save_as(tmp_path / "lossless.dcm")
    lossless, first, second = brain_dist.load(trained_run).predict(tmp_path)
    assert first.error is None
    assert first.probabilities == second.probabilities
    assert lossless.error is None or "no decoder" in lossless.error or "cannot be decoded" in lossless.error


def test_explanations_are_written(trained_run: Path, tmp_path: Path) -> None:
    draw(1).save(tmp_path / "one image.png")
    maps = tmp_path / "maps"
    result = in_process("predict", str(trained_run), str(tmp_path / "one image.png"), "--explain", str(maps))
    assert result.out.count("\n") == 1
    (file,) = maps.iterdir()
    assert re.fullmatch(r".*_one_image\.png-[0-9a-f]{8}\.png", file.name)
    with Image.open(file) as picture:
        assert picture.size == (512, 256)
        pixels = np.asarray(picture)
    assert np.ptp(pixels[:, :256], axis=2).max() == 0
    assert np.ptp(pixels[:, 256:], axis=2).max() > 20


def test_an_archive_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "slices.zip"
    for name, content in (("first.png", b"1"), ("another.png", b"2")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)
        (source,) = find_sources([str(path)])
        assert (source.member, source.read()) == (name, content)


def test_every_explanation_has_a_file_of_its_own(trained_run: Path, tmp_path: Path) -> None:
    """Paths that differ in a character that a file name does not keep, and slices beside files called like them."""
    for name in ("a b.png", "a_b.png", "a/b.png", "x-1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        draw(1).save(tmp_path / name)
    write_nifti(tmp_path / "v.nii", np.stack([np.asarray(draw(n)).T for n in range(3)], axis=2).astype(np.int16))
    maps = tmp_path / "maps"
    result = in_process("predict", str(trained_run), str(tmp_path), "--explain", str(maps))
    assert result.out.count("\n") == 4 + 3 + 1  # the last is the mean of the slices
    assert len(list(maps.iterdir())) == 4 + 3
    places = (("a b", None), ("a_b", None), ("a", 1), ("a-1", None), ("a-1", 1))
    names = {map_name(Prediction(*place)) for place in places}
    assert {"a_b.png", "a-1.png", "a-1-1.png"} < names
    assert len(names) == 5
    assert len(map_name(Prediction("long/" * 100 + "name.png", 7))) < 200


def test_what_cannot_be_written_is_one_line(trained_run: Path, tmp_path: Path) -> None:
    draw(1).save(tmp_path / "a.png")
    (tmp_path / "table.csv").mkdir()
    arguments = [str(trained_run), str(tmp_path / "a.png")]
    for options, message in (
        (["--explain", str(tmp_path / "a.png")], "a.png cannot be written (Not a directory); choose another folder"),
        (["--out", str(tmp_path / "table.csv")], "table.csv: is a folder; give the name of a file"),
        (["--timeout", "nan"], "--timeout nan: must be a number of seconds between 1 and 1000000"),
    ):
        error = in_process("predict", *arguments, *options, expect=2).err
        assert message in error
        assert error.count("\n") == 1
    noise = np.random.default_rng(0).integers(0, 99, (24, 24, 500), dtype=np.int16)
    write_nifti(tmp_path / "long.nii", noise)
    arguments = [str(trained_run), str(tmp_path / "long.nii"), "--out", str(tmp_path / "t.csv")]
    with largest_file(70_000):  # more than what is tried before, and less than the rows of 500 slices
        done = in_process("predict", *arguments, expect=1)
    assert "t.csv.parts cannot be written (File too large); free some space, and run again with --resume" in done.err
    assert done.err.count("\n") == 1


def test_a_prediction_is_not_resumed_with_pictures_that_its_parts_lack(trained_run: Path, tmp_path: Path) -> None:
    draw(1).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    arguments = [str(trained_run), str(tmp_path), "--out", str(tmp_path / "table.csv"), "--batch", "1"]
    in_process("predict", *arguments, "--fail-fast", expect=3)  # the first part is written
    more = ["--explain", str(tmp_path / "maps"), "--resume"]
    assert "is of a prediction with another explain" in in_process("predict", *arguments, *more, expect=2).err


def test_predicting_needs_no_shards(trained_run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(trained_run, tmp_path / "moved")
    config = (moved / "config.yaml").read_text()
    shards = next(line for line in config.splitlines() if line.strip().startswith("shards:"))
    (moved / "config.yaml").write_text(config.replace(shards, "  shards: /nowhere"))
    draw(1).save(tmp_path / "a.png")
    (prediction,) = brain_dist.load(moved).predict(tmp_path / "a.png")
    assert prediction.label in CLASSES
