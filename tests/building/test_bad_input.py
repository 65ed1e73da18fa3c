"""Damaged files through the command line: all are listed and nothing is left behind, or they are left out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import Result, command
from pictures import draw, png_bytes
from PIL import Image

from brain_dist.store.dataset import open_dataset

SHARD = [sys.executable, "-m", "brain_dist.shard"]


def shard(verb: str, *words: object, before: tuple[str, ...] = (), expect: int) -> Result:
    return command([*before, *SHARD, verb, *map(str, words)], expect=expect)


def one_bit_png(path: Path, side: int) -> None:
    """Write a black square image with one bit per pixel; a large one is a decompression bomb."""
    packer = zlib.compressobj()
    data = b"".join(packer.compress(bytes(1 + -(-side // 8))) for _ in range(side)) + packer.flush()
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    path.write_bytes(png_bytes(header, data))


def write_good(root: Path) -> list[str]:
    """Pictures that are fine, some of them odd; returns their paths below ``root`` as the index spells them."""
    for folder, first in (("glioma", 0), ("notumor", 100)):
        for number in range(4):
            (root / folder / "twins" / str(number)).mkdir(parents=True)
            draw(first + number).save(root / folder / "twins" / str(number) / "scan.jpg")
    folder = root / "glioma"
    draw(10).convert("RGB").convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.asarray(draw(11)).astype(np.uint16) * 200).save(folder / "deep.png")
    draw(12).convert("P").save(folder / "palette.png", transparency=0)
    draw(13).save(folder / "with space.png")
    draw(14).save(folder / "new\nline.png")
    draw(15).save(folder / os.fsdecode(b"not utf-8 \xff.png"))
    twins = [f"{kind}/twins/{number}/scan.jpg" for kind in ("glioma", "notumor") for number in range(4)]
    odd = ["cmyk.jpg", "deep.png", "palette.png", "with space.png", "new\\nline.png", "not utf-8 \\xff.png"]
    return sorted([*twins, *(f"glioma/{name}" for name in odd)])


def write_bad(root: Path) -> dict[str, str]:
    """Pictures that are not; returns path, as messages spell it → reason, in the order of the paths."""
    whole = (root / "glioma" / "twins" / "0" / "scan.jpg").read_bytes()
    folder = root / "notumor"
    frames = [draw(20), draw(21)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    one_bit_png(folder / "bomb.png", 20_000)
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / os.fsdecode(b"cut \n\xfe.jpg")).write_bytes(whole[:300])
    draw(22).crop((0, 0, 1, 1)).save(folder / "dot.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "locked.jpg").write_bytes(whole)
    (folder / "locked.jpg").chmod(0)
    (folder / "loop.jpg").symlink_to(folder / "loop2.jpg")
    (folder / "loop2.jpg").symlink_to(folder / "loop.jpg")
    (folder / "page.jpg").write_bytes(b"<!DOCTYPE html><html><body>Sign in to download</body></html>")
    return {
        "notumor/animated.gif": "contains several images",
        "notumor/bomb.png": "decompression bomb",
        "notumor/cut \\n\\xfe.jpg": "cannot be decoded",
        "notumor/cut.jpg": "cannot be decoded",
        "notumor/dot.png": "is 1 x 1 pixels; a slice has at least 16 on each side",
        "notumor/empty.jpg": "is empty (0 bytes)",
        "notumor/locked.jpg": "cannot be read (Permission denied)",
        "notumor/loop.jpg": "is not a file, or is a broken link",
        "notumor/loop2.jpg": "is not a file, or is a broken link",
        "notumor/page.jpg": "is not an image but a web page",
    }


# Root can read files without permission unless it drops these capabilities
OBEDIENT = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


def test_damaged_files_are_all_listed_or_left_out(tmp_path):
    root, out = tmp_path / "raw", tmp_path / "built" / "out"
    good, bad = write_good(root), write_bad(root)
    words = ["--source", root, "--out", out, "--workers", "1", "--allow-missing"]
    stopped = shard("build", *words, before=OBEDIENT, expect=2)
    lines = stopped.err.splitlines()
    assert len(lines) == len(bad) + 1
    for line, (name, reason) in zip(lines, bad.items(), strict=False):
        assert line.startswith(f"{name}: ")
        assert reason in line
    assert lines[-1].startswith(
        "brain-dist: error: 10 image files cannot be used, first notumor/animated.gif: contains several"
    )
    assert "Traceback" not in stopped.err
    assert list(out.parent.iterdir()) == []

    built = shard("build", *words, "--skip-bad", before=OBEDIENT, expect=0)
    assert "left out: notumor/cut \\n\\xfe.jpg: cannot be decoded" in built.out
    skipped = json.loads((out / "manifest.json").read_text())["skipped"]
    assert [entry["source"] for entry in skipped] == list(bad)
    assert all(reason in entry["reason"] for entry, reason in zip(skipped, bad.values(), strict=True))
    columns = open_dataset(out).columns
    assert sorted(columns["source"]) == good
    assert dict(zip(columns["source"], columns["mode"], strict=True)) | {
        "glioma/cmyk.jpg": "CMYK", "glioma/deep.png": "I;16", "glioma/palette.png": "P"
    } == dict(zip(columns["source"], columns["mode"], strict=True))  # fmt: skip
    shard("verify", out, "--workers", "1", expect=0)


FAULTS = {
    "empty class folder": ("", "the folder notumor contains no images; add some or remove it"),
    "unknown class folder": ("", "the folder lesions is not one of the classes glioma, meningioma, notumor, pituitary"),
    "repeated recipe key": ("name: a\nparts: [{}]\nname: b\n", "recipe.yaml:3: 'name' is given twice"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_an_unusable_collection_is_a_one_line_error(tmp_path, what):
    recipe, message = FAULTS[what]
    (tmp_path / "raw" / "glioma").mkdir(parents=True)
    draw(1).save(tmp_path / "raw" / "glioma" / "a.png")
    (tmp_path / "raw" / ("lesions" if "unknown" in what else "notumor")).mkdir()
    (tmp_path / "recipe.yaml").write_text(recipe)
    words = ["--recipe", tmp_path / "recipe.yaml"] if recipe else []
    done = shard("build", "--source", tmp_path / "raw", "--out", tmp_path / "out", *words, expect=2)
    assert done.err.startswith("brain-dist: error: ")
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_no_class_is_named_although_it_cannot_be_read(tmp_path):
    write_good(tmp_path / "raw")
    (tmp_path / "raw" / "private").mkdir(mode=0)
    done = shard("build", "--source", tmp_path / "raw", "--out", tmp_path / "out", before=OBEDIENT, expect=2)
    assert len(done.err.splitlines()) == 1
    assert "the folder private is not one of the classes glioma, meningioma" in done.err


@pytest.mark.parametrize("where", ["source", "class folder"])
def test_unreadable_folders_are_named(tmp_path, where):
    root = tmp_path / "raw"
    write_good(root)
    locked = {"source": root, "class folder": root / "glioma"}[where]
    locked.chmod(0)
    done = shard("build", "--source", root, "--out", tmp_path / "out", before=OBEDIENT, expect=2)
    locked.chmod(0o700)
    assert len(done.err.splitlines()) == 1
    assert f"{locked} cannot be read (Permission denied)" in done.err


@pytest.mark.parametrize(
    ("options", "workers", "reason"),
    [("size=64k", 1, "No space left"), ("size=64k", 2, "No space left"), ("ro", 1, "Read-only file system")],
)
def test_a_disk_that_cannot_be_written_is_a_one_line_error_and_has_nothing_left_on_it(
    tmp_path, options, workers, reason
):
    noise = np.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / "raw" / ("glioma", "notumor")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (128, 128), dtype=np.uint8)).save(folder / f"{number}.bmp")
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["--source", tmp_path / "raw", "--out", disk / "out", "--workers", workers, "--allow-missing"]
    # A disk that only this shell and its children see; if that is not allowed, a limit for files
    own = ("unshare", "-rm", "sh", "-c")
    script = f'mount -t tmpfs -o {options} x "$0" && "$@"; code=$?; ls -A "$0"; exit $code'
    if not shutil.which("unshare") or subprocess.run([*own, "mount -t tmpfs x /mnt"], check=False).returncode:
        if options == "ro":
            pytest.skip("no permission to mount")
        own, script, reason = ("bash", "-c"), 'ulimit -f 64; "$@"; code=$?; ls -A "$0"; exit $code', "File too large"
    done = shard("build", *words, before=(*own, script, str(disk)), expect=2)
    assert f"{disk / 'out'} cannot be written ({reason}" in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""  # ls found nothing


@pytest.mark.parametrize("verb", ["build", "audit", "phantom"])
def test_a_place_without_permission_is_a_one_line_error(tmp_path, verb):
    write_good(tmp_path / "raw")
    (tmp_path / "locked").mkdir(mode=0o700)
    out = tmp_path / "locked" / "deep" / "out"
    words = {"build": ["--source", tmp_path / "raw"], "audit": [tmp_path / "raw"], "phantom": []}[verb]
    (tmp_path / "locked").chmod(0)
    done = shard(verb, *words, "--out", out, before=OBEDIENT, expect=2)
    (tmp_path / "locked").chmod(0o700)
    assert len(done.err.splitlines()) == 1
    assert str(tmp_path / "locked") in done.err
    assert "ermission" in done.err


def test_a_source_that_is_a_circular_link_is_a_one_line_error(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    done = shard("build", "--source", tmp_path / "loop", "--out", tmp_path / "out", expect=2)
    assert done.err == f"brain-dist: error: --source {tmp_path / 'loop'} is not a folder\n"
