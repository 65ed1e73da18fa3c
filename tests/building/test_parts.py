"""Shards that are built from parts, as the tasks of a job array examine them, are the same as those built at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import in_process
from pictures import draw, write_collection

PARTS = 3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patients, copies across the parts, images that are encoded again, damaged files and blank ones."""
    root = write_collection(tmp_path_factory.mktemp("parts") / "images", each=9, size=160)
    draw(2, 160).save(root / "glioma" / "aa.bmp")
    draw(2, 160).save(root / "pituitary" / "zz.png")
    draw(3, 160).resize((100, 100)).save(root / "notumor" / "copy.png")
    (root / "meningioma" / "cut.jpg").write_bytes(next(root.glob("glioma/*.jpg")).read_bytes()[:900])
    draw(1, 64).point(lambda value: 7).save(root / "notumor" / "blank.png")
    return root


def build(source: Path, out: Path, *words: str, expect: int = 0):
    options = ("--source", str(source), "--out", str(out), "--workers", "1", "--allow-missing", *words)
    return in_process("shard", "build", *options, expect=expect)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "words", [(), ("--max-side", "48", "--jpeg-quality", "80"), ("--split", "kfold", "--folds", "3")]
)
def test_parts_give_the_same_bytes_as_a_build_at_once(source, tmp_path, words):
    build(source, tmp_path / "once", "--skip-bad", *words)
    for number in reversed(range(PARTS)):  # in any order
        done = build(source, tmp_path / "out", "--skip-bad", *words, "--parts", str(PARTS), "--part", str(number))
        assert f"part {number} of {PARTS} is complete" in done.out
        assert not (tmp_path / "out").exists()
    build(source, tmp_path / "out", "--skip-bad", *words, "--parts", str(PARTS))
    assert contents(tmp_path / "out") == contents(tmp_path / "once")
    assert not (tmp_path / "out.parts").exists()
    done = build(source, tmp_path / "out", "--skip-bad", *words, "--parts", str(PARTS), "--part", "0")
    assert not (tmp_path / "out.parts").exists(), "a task that SLURM starts again leaves a complete folder alone"


def test_more_parts_than_files(source, tmp_path):
    build(source, tmp_path / "once", "--skip-bad")
    for number in range(60):
        build(source, tmp_path / "out", "--skip-bad", "--parts", "60", "--part", str(number))
    build(source, tmp_path / "out", "--skip-bad", "--parts", "60")
    assert contents(tmp_path / "out") == contents(tmp_path / "once")


def test_a_part_names_its_damaged_files(source, tmp_path):
    results = [build(source, tmp_path / "out", "--parts", "2", "--part", n, expect=c) for n, c in (("0", 2), ("1", 0))]
    assert "cut.jpg" in results[0].err
    error = build(source, tmp_path / "out", "--parts", "2", expect=2).err
    assert "lacks 1 of 2 parts: 0; build each with --part NUMBER --parts 2" in error


def test_parts_of_another_request_are_refused(source, tmp_path):
    out = tmp_path / "out"
    for number in ("0", "1"):
        build(source, out, "--skip-bad", "--parts", "2", "--part", number, "--seed", number)
    error = build(source, out, "--skip-bad", "--parts", "2", expect=2).err
    assert "00001-of-00002.json was examined with another recipe, other options or other source files" in error
    build(source, out, "--skip-bad", "--parts", "2", "--part", "1")  # replaces it
    build(source, out, "--skip-bad", "--parts", "2")


def test_a_damaged_part_is_a_fault(source, tmp_path):
    out = tmp_path / "out"
    build(source, out, "--skip-bad", "--parts", "1", "--part", "0")
    place = tmp_path / "out.parts" / "00000-of-00001.npy"
    np.save(place, np.zeros((2, 2, 64, 64), np.uint8))
    assert "00000-of-00001.npy is damaged" in build(source, out, "--skip-bad", "--parts", "1", expect=1).err
    place.write_bytes(place.read_bytes()[:1000])
    assert "00000-of-00001.npy is damaged" in build(source, out, "--skip-bad", "--parts", "1", expect=1).err
    place.with_suffix(".json").write_text("{")
    assert "00000-of-00001.json is damaged" in build(source, out, "--skip-bad", "--parts", "1", expect=1).err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part", "0"], "--part 0 needs the number of parts; set --parts, too"),
        (["--parts", "0"], "--parts 0 must be from 1 to 10,000"),
        (["--parts", "4", "--part", "4"], "--part 4 must be from 0 to 3, as --parts is 4"),
    ],
)
def test_errors_are_one_line(source, tmp_path, words, message):
    error = build(source, tmp_path / "out", *words, expect=2).err
    assert message in error
    assert len(error.splitlines()) == 1
