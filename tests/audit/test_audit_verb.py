"""The audit command: its page, counts and pairs; one-line errors; complete output or none."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import ROOT, Result, children, environment, in_process
from pictures import draw
from PIL import Image, ImageEnhance
from scans import write_nifti

from brain_dist.audit.galleries import galleries
from brain_dist.audit.survey import Survey
from brain_dist.errors import run
from brain_dist.shard import main

HOSTILE = "<img src=x onerror='alert(1)'>&\"\n.png"
SHOWN = "<img src=x onerror='alert(1)'>&\"\\n.png"
NIFTI = """\
classes: [glioma, notumor]
title: Volumes <of> mine
licence: CC0 & more
parts: [{format: nifti, slices: {from: 0.5}}]
"""
ERRORS = {
    "gone": "gone is not a folder; give the folder of a collection",
    "one one/../one": "one/../one is given twice; give each collection once",
    "one sub/one --recipe two=x.yaml": (
        "--recipe two=x.yaml does not start with the name of a collection; use NAME=YAML with NAME one of HERE/one, "
        "sub/one"
    ),
    "one sub/one deep/sub/one": (
        "sub/one and deep/sub/one would have the same name sub/one; rename one, or give a symbolic link to it"
    ),
    "one --recipe one=x --recipe one=x": "--recipe is given twice for one; give it once",
    "one --out one/audit": "--out one/audit is inside the collection one; choose a folder outside it",
    "one --out other": "--out other exists and is not an audit folder; choose another --out",
    "one --out other/file": "--out other/file exists and is not an audit folder; choose another --out",
    "one binary": (
        "binary: the folder yes is not one of the classes glioma, meningioma, notumor, pituitary; it does not give the "
        "kind of tumour: for tumour or no tumour, build with a recipe whose classes are [notumor, tumor], such as "
        "shards/datasets/br35h.yaml"
    ),
    "one bad": (
        "1 image file cannot be used, first bad: glioma/b.png: is empty (0 bytes); repair or remove the "
        "listed files, or leave them out with --skip-bad"
    ),
}


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")
    return path


def darker(number: int, size: int) -> Image.Image:
    return ImageEnhance.Brightness(draw(number, size)).enhance(0.7)


class Page(HTMLParser):
    """The text of a page, its tags with their attributes, and its image URLs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.source = path.read_text(encoding="utf-8")
        pieces: list[str] = []
        self.handle_data = pieces.append  # type: ignore[method-assign]
        self.feed(self.source)
        self.close()
        self.text = " ".join("".join(pieces).split())
        self.images = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def decode(url: str) -> np.ndarray:
    kind, data = url.split(",", 1)
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), dtype=float)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """An audit of two collections: one with a split, hostile names and a damaged file, and one of volumes."""
    root = tmp_path_factory.mktemp("audit")
    mine = root / "my <collection>"
    save(draw(1, 240), mine / "Training" / "glioma" / HOSTILE)
    save(draw(1, 240), mine / "Testing" / "glioma" / "same.png")
    save(draw(2, 96), mine / "Training" / "meningioma" / "a.png")
    save(darker(2, 96), mine / "Testing" / "notumor" / "a.png")
    save(draw(3, 96), mine / "Testing" / "notumor" / "b.png")
    save(draw(4, 96), mine / "Testing" / "notumor" / "c.png")
    (mine / "Testing" / "glioma" / "bro<ken>.png").write_bytes(b"")
    volume = np.zeros((96, 96, 4), dtype=np.int16)
    for number, seed in enumerate((11, 12, 13, 3)):
        volume[:, :, number] = np.asarray(draw(seed, 96), dtype=np.int16)[::-1, ::-1].T
    write_nifti(root / "volumes" / "notumor" / "v.nii", volume)
    write_nifti(root / "volumes" / "glioma" / "w.nii", np.stack([draw(n, 96) for n in (21, 22)], 2).astype(np.int16))
    (root / "volumes.yaml").write_text(NIFTI)
    arguments = [str(mine), str(root / "volumes"), "--recipe", f"volumes={root / 'volumes.yaml'}", "--workers", "1"]
    return root / "out", in_process("shard", "audit", *arguments, "--skip-bad", "--out", str(root / "out"))


def test_files_and_terminal_agree(audited):
    out, done = audited
    assert sorted(path.name for path in out.iterdir()) == ["audit.json", "index.html", "pairs.parquet"]
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []
    counts = json.loads((out / "audit.json").read_text())
    mine = counts["collections"]["my <collection>"]
    assert (mine["test_images"], mine["test_images_with_any_train_copy"], mine["label_conflicts"]) == (4, 2, 1)
    assert counts["between"]["my <collection>|volumes"]["any_images_in_A"] == 1
    pairs = pq.read_table(out / "pairs.parquet").to_pylist()
    assert sorted((row["kind"], row["label_a"], row["label_b"], row["slice_b"]) for row in pairs) == [
        ("exact", "glioma", "glioma", None),
        ("near", "notumor", "meningioma", None),
        ("near", "notumor", "notumor", 3),
    ]
    text = " ".join(done.out.split())
    assert "– with either 2 (50.0 %)" in text.replace("\u00a0", " ")
    assert f"wrote {out / 'index.html'}" in text
    assert "skipped 1 damaged file, listed in audit.json" in text


def test_page_states_the_findings(audited):
    text = Page(audited[0] / "index.html").text.replace("\u00a0", " ")
    assert "Audit of my <collection> and volumes" in text
    assert "2 of 4 test images (50.0 %) have a copy in the training split (1 exact, 1 near). Accuracy" in text
    assert "1 picture has copies with contradicting labels. At least one of its labels is wrong." in text
    assert "1 of 6 images of my <collection> (16.7 %) has a copy in volumes, and 1 of 3 images of volumes" in text
    assert "No published split into training and test" in text  # volumes
    assert "Volumes <of> mine" in text
    assert "CC0 & more" in text
    assert "my <collection>: bro" not in text  # the path follows the name
    assert "my <collection>: Testing/glioma/bro<ken>.png is empty (0 bytes)" in text
    assert "Similarity" in text
    assert "Exact copy" in text


def test_page_is_one_file_and_escapes_names(audited):
    page = Page(audited[0] / "index.html")
    assert SHOWN in page.text
    allowed = {"src", "alt", "loading"}
    assert all(set(attributes) == allowed for tag, attributes in page.tags if tag == "img")
    assert any(SHOWN in (attributes.get("alt") or "") for _, attributes in page.tags)
    assert not {"script", "link", "iframe", "object", "collection"} & {tag for tag, _ in page.tags}
    assert all(url.startswith("data:image/jpeg;base64,") for url in page.images)
    links = [attributes["href"] for tag, attributes in page.tags if "href" in attributes]
    assert links == ["#h-skipped"]
    assert not re.search(r"url\(|@import|https?://", page.source)
    assert len(page.source) < 1_000_000


def test_page_shows_the_stored_images(audited):
    page = Page(audited[0] / "index.html")
    labels = [attributes["alt"] or "" for tag, attributes in page.tags if tag == "img"]
    # contradicting labels, exact leak, near leak (the contradicting pair again), two collections, two uncertain pairs
    assert len(page.images) == 2 * (1 + 1 + 1 + 1 + 2)
    assert ["meningioma" in labels[0], "no tumour" in labels[1]] == [True, True]  # training before test
    shown = [decode(url) for url in page.images]
    np.testing.assert_allclose(shown[0], np.asarray(draw(2, 96)), atol=40)
    assert np.abs(shown[0] - np.asarray(draw(2, 96))).mean() < 4
    assert shown[2].shape == shown[3].shape == (200, 200)  # scaled down
    slice_index = next(index for index, text in enumerate(labels) if "v.nii" in text)
    assert np.abs(shown[slice_index] - shown[slice_index - 1]).mean() < 12  # the slice of a volume and its copy


def test_galleries_spread_over_collections_pictures_and_similarity():
    """60 pictures in x and 3 in y, each of three images (train, test, val) and so three pairs."""
    count = 3 * 63
    first, second = np.array([(3 * n + a, 3 * n + b) for n in range(63) for a, b in ((0, 1), (0, 2), (1, 2))]).T
    similarity = np.random.default_rng(0).uniform(0.8, 1, len(first)).astype(np.float32)
    moved = np.arange(len(first)) % 9 == 0
    survey = Survey(
        names=("x", "y"),
        **{key: np.array([None] * count, dtype=object) for key in ("path", "file", "slice", "patient")},
        label=np.array(["glioma"] * count, dtype=object),
        split=np.array(["train", "test", "val"] * 63, dtype=object),
        collection=np.repeat([0, 1], [180, 9]),
        part=np.zeros(count, dtype=int),
        blank=np.zeros(count, dtype=bool),
        first=first,
        second=second,
        exact=np.zeros(len(first), dtype=bool),
        similarity=similarity,
        mirrored=np.zeros(len(first), dtype=bool),
        moved=moved,
        skipped=[],
        warnings=[],
    )
    contradicting, exact, near, across, uncertain = galleries(survey).values()
    assert [(len(gallery.pairs), gallery.total) for gallery in (contradicting, exact, across)] == [(0, 0)] * 3
    assert (len(near.pairs), near.total) == (24, 63)
    pictures = [pair // 3 for pair in near.pairs]
    assert len(set(pictures)) == 24
    assert {60, 61, 62} <= set(pictures)  # all pictures of y
    leaks = similarity[0 : 3 * 60 : 3]
    assert {float(leaks.min()), float(leaks.max())} <= {float(similarity[pair]) for pair in near.pairs}
    assert (len(uncertain.pairs), uncertain.total) == (24, 189)
    lowest = {n: min(range(3 * n, 3 * n + 3), key=lambda pair: similarity[pair]) for n in range(63)}
    assert set(uncertain.pairs) <= set(lowest.values())
    for kind in (False, True):
        of_kind = sorted((float(similarity[pair]), pair) for pair in lowest.values() if moved[pair] == kind)
        shown = [pair for pair in uncertain.pairs if moved[pair] == kind]
        assert shown == [pair for _, pair in of_kind[: len(shown)]]
        assert len(shown) >= min(12, len(of_kind))


def test_audit_without_findings(tmp_path, capsys):
    for number, name in enumerate(("Training/glioma/a.png", "Testing/glioma/b.png", "Testing/pituitary/c.png")):
        save(draw(number, 64), tmp_path / "clean" / name)
    arguments = ["audit", str(tmp_path / "clean"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(arguments) == 0
    assert "between collections" not in capsys.readouterr().out
    text = Page(tmp_path / "out" / "index.html").text
    for sentence in (
        "No test image has a copy in the training split.",
        "Patients are not identified, so the training split may contain other slices",
        "No picture has copies with contradicting labels.",
        "no image repeats the pixels of another",
        "No test image is an exact copy of a training image of its collection.",
        "There are no near copies.",
        "0.0 % of 2",
    ):
        assert sentence in text, sentence
    before = (tmp_path / "out" / "index.html").read_bytes()
    save(draw(0, 64), tmp_path / "clean" / "Testing" / "glioma" / "d.png")
    assert main(arguments) == 0  # an audit is replaced
    assert (tmp_path / "out" / "index.html").read_bytes() != before
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["collections"]["clean"]["test_images"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "out"]


@pytest.mark.parametrize("arguments", ERRORS)
def test_user_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments):
    for folder in ("one", "sub/one", "deep/sub/one", "bad"):
        save(draw(1, 64), tmp_path / folder / "glioma" / "a.png")
    save(draw(1, 64), tmp_path / "binary" / "yes" / "a.png")
    (tmp_path / "bad" / "glioma" / "b.png").write_bytes(b"")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in arguments else ["--out", "out"]
    assert run(lambda: main(["audit", *arguments.split(), *out, "--workers", "1"])) == 2
    *listed, line = capsys.readouterr().err.splitlines()
    assert line == f"brain-dist: error: {ERRORS[arguments].replace('HERE', tmp_path.name)}"
    assert listed == (["bad: glioma/b.png: is empty (0 bytes)"] if "bad" in arguments else [])
    assert sorted(tmp_path.rglob("*")) == before


def test_full_disk_keeps_the_earlier_audit(tmp_path):
    for name in ("train/glioma/a.png", "test/pituitary/b.png"):
        save(draw(5, 200), tmp_path / "one" / name)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("index.html", "pairs.parquet"):
        (out / name).write_text("before")
    (out / "audit.json").write_text('{"collections": {}, "between": {}, "thresholds": {}}')
    arguments = f"{sys.executable} -m brain_dist.shard audit {tmp_path / 'one'} --out {out} --workers 1"
    # the limit is in blocks of 1,024 bytes; the page is larger than 17 blocks, the thumbnails are not
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 17; {arguments}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (
        2, f"brain-dist: error: {out} cannot be written (File too large); free some space or choose another folder\n"
    )  # fmt: skip
    assert (out / "index.html").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_audit_leaves_nothing(tmp_path, number):
    folder = tmp_path / "one" / "glioma"
    for image in range(40):
        save(draw(image, 400), folder / f"{image}.png")
        for again in range(100):  # enough work for many seconds, so that it cannot finish before the signal
            (folder / f"{image}-{again}.png").hardlink_to(folder / f"{image}.png")
    arguments = [
        sys.executable,
        "-m",
        "brain_dist.shard",
        "audit",
        str(tmp_path / "one"),
        "--out",
        str(tmp_path / "a" / "out"),
    ]
    process = subprocess.Popen([*arguments, "--workers", "2"], cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 60
        while not any(map(children, children(process.pid))) and time.monotonic() < limit:
            time.sleep(0.001)
    finally:
        process.send_signal(number)
        process.wait()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
