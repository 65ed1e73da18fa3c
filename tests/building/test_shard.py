"""The command line of ``shard``: help, tables, messages, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import in_process, verb
from pictures import write_collection
from PIL import Image

from brain_dist.store.dataset import open_dataset


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four classes with four images of random cells each."""
    for number, kind in enumerate(("glioma", "no_tumor", "Meningioma", "pituitary")):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for turn in range(4):
            cells = np.random.default_rng([number, turn]).integers(0, 256, (9, 9), dtype=np.uint8)
            image = Image.fromarray(cells).resize((64, 64), Image.Resampling.BICUBIC)
            image.save(tmp_path / "images" / kind / f"{turn}.png")
    return tmp_path / "images"


HALVES = ["--fractions", "0.5,0.25,0.25", "--workers", "1"]


def test_every_command_has_help():
    for words in ([], ["build"], ["join"], ["verify"], ["audit"], ["phantom"]):
        done = in_process("shard", *words, "--help")
        assert "usage: python -m brain_dist.shard" in done.out


def test_build_then_verify_then_build_again(images, tmp_path):
    out = tmp_path / "out"
    words = ["build", "--source", str(images), "--out", str(out), *HALVES]
    first = verb("shard", *words)
    version = open_dataset(out).version[:12]
    assert "images: 16 images in 16 groups" in first.out
    assert f"written to {out}, dataset version {version}" in first.out
    assert (
        f"no problems; 16 samples in 3 shards, dataset version {version}" in in_process("shard", "verify", str(out)).out
    )
    assert "nothing to do" in in_process("shard", *words).out
    other = in_process("shard", *words, "--seed", "2", expect=2)
    assert other.err == (
        f"brain-dist: error: --out {out} was built with --seed 0, not 2; choose another --out or remove it\n"
    )


def test_damage_is_listed_and_exits_with_2(images, tmp_path):
    out = tmp_path / "out"
    in_process("shard", "build", "--source", str(images), "--out", str(out), *HALVES)
    (shard,) = out.glob("*-train-*.tar")
    shard.unlink()
    done = in_process("shard", "verify", str(out), expect=2)
    assert done.err == (
        f"{shard.name}: missing\n"
        f"brain-dist: error: {out} has 1 problems, listed above; remove it, and copy or build it again\n"
    )
    again = in_process("shard", "build", "--source", str(images), "--out", str(out), *HALVES, expect=2)
    assert f"--out {out} is damaged ({shard.name} is missing or has another size); choose another --out or" in again.err


def test_bad_images_are_listed_and_written_to_a_file_if_there_are_many(images, tmp_path):
    for number in range(60):
        (images / "glioma" / f"bad{number:02d}.jpg").write_bytes(b"")
    words = ["build", "--source", str(images), "--out", str(tmp_path / "out"), *HALVES]
    done = in_process("shard", *words, expect=2)
    lines = done.err.splitlines()
    assert lines[0] == "glioma/bad00.jpg: is empty (0 bytes)"
    assert lines[50] == f"… and 10 more, all listed in {tmp_path / 'out.bad-images.txt'}"
    assert lines[51].startswith("brain-dist: error: 60 image files cannot be used, first glioma/bad00.jpg: is empty")
    assert len((tmp_path / "out.bad-images.txt").read_text().splitlines()) == 60
    kept = in_process("shard", *words, "--skip-bad")
    assert "left out: glioma/bad00.jpg: is empty (0 bytes)" in kept.out
    assert "left out: 10 more, listed in the manifest" in kept.out
    assert len(json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"]) == 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fractions", "1,2,3"], "--fractions '1,2,3' must be three numbers"),
        (["--fractions", "0,0,1"], "use --split test for a pure test set"),
        (["--split", "test", "--fractions", "1,0,0"], "--fractions has no effect with --split test"),
        (["--split", "leave-one-out", "--test-on", "images"], "all images belong to it; use --split test"),
        (["--shard-size", "many"], "--shard-size 'many' must be a number of samples such as 500"),
        (["--max-side", "3"], "--max-side 3 must be ≥ 16"),
        (["--jpeg-quality", "80"], "--jpeg-quality has no effect without --max-side"),
        (["--max-side", "64", "--jpeg-quality", "101"], "--jpeg-quality 101 must be from 1 to 100"),
        (["--split", "original"], "belong to no published split; use --split grouped"),
        (["--recipe", "absent.yaml"], "recipe absent.yaml does not exist"),
        (["--source", "absent"], "--source absent is not a folder"),
    ],
)
def test_errors_are_one_line(images, tmp_path, words, message):
    done = in_process("shard", "build", "--source", str(images), "--out", str(tmp_path / "out"), *words, expect=2)
    assert done.err.startswith("brain-dist: error: ")
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_phantoms_are_built(tmp_path):
    size = ["--patients", "12", "--slices", "3", "--size", "64", "--seed", "3", "--plant", "0.2", "--workers", "1"]
    in_process("shard", "phantom", "--out", str(tmp_path / "raw"), *size)
    in_process("shard", "build", "--source", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), *HALVES)
    dataset = open_dataset(tmp_path / "out")
    assert dataset.name == "phantom"
    assert set(dataset.columns["dataset"]) == {"phantom"}
    assert None not in dataset.columns["patient"]
    planted = [line.split(",") for line in (tmp_path / "raw" / "planted.csv").read_text().splitlines()[1:]]
    assert planted
    group = {
        key.rsplit("-", 1)[1]: group
        for key, group in zip(dataset.columns["key"], dataset.columns["group"], strict=True)
    }
    for copy, original, _ in planted:
        assert group[copy] == group[original]


def test_the_jpeg_quality_of_smaller_images_decides_their_bytes(tmp_path):
    images, sizes = write_collection(tmp_path / "images"), {}
    for quality in ("95", "60"):
        out = tmp_path / quality
        words = ("--source", str(images), "--out", str(out), "--max-side", "48", "--jpeg-quality", quality)
        in_process("shard", "build", *words, "--workers", "1")
        sizes[quality] = open_dataset(out).columns["size"].sum()
    assert sizes["95"] > 1.3 * sizes["60"]
    words = ("--source", str(images), "--out", str(tmp_path / "60"), "--max-side", "48")
    assert "was built with --jpeg-quality 60, not 95" in in_process("shard", "build", *words, expect=2).err
