"""Shards that are built from parts, as the tasks of a job array examine them, are the same as those built at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import in_process
from pictures import draw, write_collection
from PIL import Image

from brain_dist import __version__

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
    for number, side in (("0", "48"), ("1", "64")):
        build(source, out, "--skip-bad", "--parts", "2", "--part", number, "--max-side", side)
    words = ("--skip-bad", "--parts", "2", "--max-side", "48")
    error = build(source, out, *words, expect=2).err
    assert "00001-of-00002.json was examined with another recipe, other source files" in error
    assert "examine this part again, by --part 1 --parts 2 and the other options of this build" in error
    build(source, out, *words, "--part", "1")  # replaces it
    build(source, out, *words)


def test_parts_of_another_version_are_refused(source, tmp_path):
    out = tmp_path / "out"
    build(source, out, "--skip-bad", "--parts", "1", "--part", "0")
    place = tmp_path / "out.parts" / "00000-of-00001.json"
    written = place.read_text()
    place.write_text(written.replace(f'"builder": "{__version__}"', '"builder": "0.0"'))
    assert "another version of brain_dist" in build(source, out, "--skip-bad", "--parts", "1", expect=2).err
    build(source, out, "--skip-bad", "--parts", "1", "--part", "0")
    assert place.read_text() == written


def test_options_that_no_examination_depends_on_leave_parts_valid(source, tmp_path):
    out, last = tmp_path / "out", ("--split", "kfold", "--folds", "3", "--seed", "5", "--shard-size", "9")
    build(source, tmp_path / "once", "--skip-bad", *last)
    build(source, out, "--skip-bad", "--parts", "1", "--part", "0")
    place = tmp_path / "out.parts" / "00000-of-00001.json"
    examined = place.stat().st_ino
    build(source, out, "--skip-bad", "--parts", "1", "--part", "0", *last)
    assert place.stat().st_ino == examined
    assert "cut.jpg" in build(source, out, "--parts", "1", *last, expect=2).err, "damaged files are still to be named"
    build(source, out, "--skip-bad", "--parts", "1", *last)
    assert contents(out) == contents(tmp_path / "once")


@pytest.fixture
def masked(tmp_path: Path) -> tuple[str, ...]:
    """Images that are kept and images that are encoded again, the glioma with masks: the options of its build."""
    for label in ("glioma", "notumor"):
        (tmp_path / "raw" / label).mkdir(parents=True)
        for number in range(4):
            draw(10 * (label == "glioma") + number, 96).save(tmp_path / "raw" / label / f"{number}.bmp")
            draw(30 + 10 * (label == "glioma") + number, 96).save(tmp_path / "raw" / label / f"kept{number}.png")
    for number in range(4):
        mask = Image.new("L", (96, 96))
        mask.paste(255, (20, 20, 40 + number, 50))
        mask.save(tmp_path / "raw" / "glioma" / f"{number}_mask.png")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("classes: [glioma, notumor]\nparts:\n  - masks: {suffix: _mask}\n")
    return "--recipe", str(recipe)


def other_pixel(file: Path) -> None:
    """Another gray value in the middle of a BMP or an image file of the same size."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x40
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "change", "code", "message"),
    [
        ("raw/glioma/0.bmp", other_pixel, 2, "changed since it was examined for"),
        ("raw/glioma/kept0.png", other_pixel, 2, "changed since it was examined for"),
        ("out.parts/spool/raw-glioma-0", Path.unlink, 1, "is missing or damaged"),
        ("out.parts/spool/raw-glioma-0.mask", other_pixel, 1, "is missing or damaged"),
        ("out.parts/00000-of-00002.npy", other_pixel, 1, "is missing or damaged"),
        ("out.parts/00000-of-00002.json", lambda file: file.write_text("{"), 1, "is damaged"),
        ("out.parts/00000-of-00002.json", lambda file: file.write_text("[1]"), 1, "is damaged"),
    ],
)
def test_a_part_whose_files_changed_is_examined_again(masked, tmp_path, name, change, code, message):
    source, out = tmp_path / "raw", tmp_path / "out"
    words = (*masked, "--skip-bad", "--parts", "2")
    for number in ("0", "1"):
        build(source, out, *words, "--part", number)
    change(tmp_path / name)
    error = build(source, out, *words, expect=code).err
    assert f"{tmp_path / name} {message}" in error
    assert "examine this part again, by --part 0 --parts 2 and the other options of this build" in error
    build(source, out, *words, "--part", "0")
    build(source, out, *words)
    build(source, tmp_path / "once", *masked, "--skip-bad")
    assert contents(out) == contents(tmp_path / "once")
    assert (out / "masks.parquet").exists()


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


def test_the_current_folder_is_no_place_for_parts(source, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    error = build(source, Path(), "--skip-bad", "--parts", "1", "--part", "0", expect=2).err
    assert error.startswith("brain-dist: error: . is the current folder or contains it; start the command elsewhere")
    assert [path.name for path in tmp_path.iterdir() if path.name != "images"] == ["here"]
