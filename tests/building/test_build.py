"""Builds are complete or absent, repeatable, readable by WebDataset and DALI, and keep groups whole."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import children
from pictures import CLASSES, draw, write_collection
from PIL import Image, ImageEnhance

from brain_dist.building.build import BuildResult, build
from brain_dist.building.verify import verify
from brain_dist.collection.examination import BadImages
from brain_dist.collection.recipes import default_recipe, parse_recipe, read_recipe
from brain_dist.errors import UserError
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.options import BuildOptions
from brain_dist.store.reader import ShardReader

RECIPES = Path(__file__).resolve().parents[2] / "shards" / "datasets"
PATIENTS = {"patients": {"file": "patients.csv", "id": "id", "patient": "patient"}}


def make(source: Path, out: Path, *, part: dict | None = None, recipe=None, workers: int = 1, **options) -> BuildResult:
    """Build; the small collections here have too few patients for all splits to have all classes."""
    recipe = recipe or parse_recipe({"parts": [part or {}]}, "the recipe")
    return build(source, out, recipe, BuildOptions(**options), workers=workers, allow_missing=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images of 16 patients, some in formats that are encoded again."""
    root = write_collection(tmp_path_factory.mktemp("raw") / "mine")
    for number, kind in enumerate(("PNG", "BMP", "TIFF", "WEBP")):
        path = root / "glioma" / f"gl{number:03d}.jpg"
        image = Image.open(path)
        path.unlink()
        image.save(path.with_suffix(f".{kind.lower()}"))
    Image.open(root / "notumor" / "no000.jpg").convert("RGB").save(root / "notumor" / "no000.jpg", quality=95)
    return root


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make(source, tmp_path_factory.mktemp("built") / "mine", part=PATIENTS, shard_size="7").dataset


def expected_pixels(path: Path) -> np.ndarray:
    image = Image.open(path)
    if image.format == "JPEG":
        image.draft("L", image.size)
    return np.asarray(image.convert("L"))


def test_index_describes_every_image(source, built):
    columns = built.columns
    assert sorted(columns["source"]) == sorted(str(path.relative_to(source)) for path in source.glob("*/*"))
    reader = ShardReader(built)
    for row in range(len(built)):
        path = source / columns["source"][row]
        data = reader.read(row)
        if path.suffix in (".jpg", ".png"):
            assert data == path.read_bytes()
        image = Image.open(io.BytesIO(data))
        assert image.size == (columns["width"][row], columns["height"][row])
        assert built.classes[columns["label"][row]] == path.parent.name
        assert columns["patient"][row] == f"{path.stem[:2]}-patient{int(path.stem[2:]) // 3}"
    places = list(zip(columns["shard"], columns["offset"], strict=True))
    assert places == sorted(places)
    assert built.manifest.samples == len(built) == 48
    for split in ("train", "val", "test"):
        labels = columns["label"][columns["split"] == split]
        by_class = np.bincount(labels, minlength=4).tolist()
        assert built.manifest.counts[split] == dict(zip(CLASSES, by_class, strict=True))
    assert sum(built.rows(split).size for split in ("train", "val", "test")) == 48


def test_shards_mix_the_classes_and_are_of_even_size(built):
    sizes = [entry.samples for entry in built.manifest.shards]
    assert max(sizes) <= 7
    assert min(sizes) >= 3
    first = built.columns["shard"] == "mine-train-00000.tar"
    assert len(set(built.columns["label"][first].tolist())) >= 2


def test_webdataset_package_reads_all(source, built):
    import webdataset

    shards = [str(built.root / entry.name) for entry in built.manifest.shards]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == built.columns["key"].tolist()
    for row, sample in enumerate(samples):
        assert int(sample["cls"]) == built.columns["label"][row]
        about = json.loads(sample["json"])
        assert about["class"] == built.classes[built.columns["label"][row]]
        for name in ("dataset", "patient", "group", "source", "split"):
            assert about[name] == built.columns[name][row]
        image = np.asarray(Image.open(io.BytesIO(sample.get("jpg") or sample["png"])).convert("L"))
        assert abs(image.astype(int) - expected_pixels(source / about["source"])).max() <= 1


def test_dali_reads_all_and_sees_the_same_pixels(source, built):
    from nvidia.dali import fn, pipeline_def, types

    shards = [built.root / entry.name for entry in built.manifest.shards]

    @pipeline_def(batch_size=len(built), num_threads=1, device_id=None)
    def graph():
        encoded, label = fn.readers.webdataset(
            paths=[str(path) for path in shards],
            index_paths=[str(path.with_suffix(".idx")) for path in shards],
            ext=["jpg;png", "cls"],
            missing_component_behavior="error",
        )
        return fn.decoders.image(encoded, output_type=types.GRAY), label

    pipeline = graph()
    pipeline.build()
    images, labels = pipeline.run()
    for row in range(len(built)):
        assert int(bytes(np.asarray(labels.at(row)))) == built.columns["label"][row]
        pixels = np.asarray(images.at(row))[..., 0]
        np.testing.assert_array_equal(pixels, expected_pixels(source / built.columns["source"][row]))


def test_idx_is_what_dalis_own_tool_writes(built, tmp_path):
    tool = importlib.util.find_spec("wds2idx")
    assert tool is not None
    for entry in built.manifest.shards:
        shard = built.root / entry.name
        subprocess.run([sys.executable, tool.origin, shard, tmp_path / "own.idx"], check=True, capture_output=True)
        assert (tmp_path / "own.idx").read_bytes() == shard.with_suffix(".idx").read_bytes()


def folder_bytes(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_the_bytes_do_not_depend_on_the_number_of_processes_or_the_place(source, built, tmp_path):
    moved = tmp_path / "elsewhere" / "mine"
    shutil.copytree(source, moved)
    for number, path in enumerate(moved.rglob("*")):
        os.utime(path, (number, number))
    again = make(moved, tmp_path / "again", part=PATIENTS, shard_size="7", workers=3).dataset
    assert folder_bytes(again.root) == folder_bytes(built.root)
    other = make(moved, tmp_path / "other", part=PATIENTS, shard_size="7", seed=1).dataset
    assert other.version != built.version


def test_a_second_build_does_nothing_or_fails_with_the_reason(source, built, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in built.root.iterdir()}
    again = make(source, built.root, part=PATIENTS, shard_size="7", workers=2)
    assert not again.fresh
    assert again.dataset.version == built.version
    with pytest.raises(UserError, match="was built with --seed 0, not 5"):
        make(source, built.root, part=PATIENTS, shard_size="7", seed=5)
    with pytest.raises(UserError, match="another recipe"):
        make(source, built.root, shard_size="7")
    grown = tmp_path / "mine"
    shutil.copytree(source, grown)
    draw(77).save(grown / "glioma" / "more.png")
    with (grown / "patients.csv").open("a") as table:
        table.write("more,glioma,new\n")
    with pytest.raises(UserError, match="another list of source files"):
        make(grown, built.root, part=PATIENTS, shard_size="7")
    assert {path: path.stat().st_mtime_ns for path in built.root.iterdir()} == before


@pytest.mark.parametrize("name", ["notumor/no003.jpg", "glioma/gl001.bmp"])
def test_corrected_pixels_are_noticed_although_size_and_time_are_the_same(source, tmp_path, name):
    """A JPEG is stored byte for byte, a BMP is encoded again."""
    edited = tmp_path / "mine"
    shutil.copytree(source, edited)
    first = make(edited, tmp_path / "out", part=PATIENTS)
    assert not make(edited, tmp_path / "out", part=PATIENTS, workers=2).fresh
    before = (edited / name).stat()
    data = bytearray((edited / name).read_bytes())
    data[len(data) // 2] ^= 1
    (edited / name).write_bytes(data)
    os.utime(edited / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=f"other contents of 1 source files, such as {name}; choose another --out"):
        make(edited, tmp_path / "out", part=PATIENTS)
    assert open_dataset(tmp_path / "out").version == first.dataset.version


def test_a_corrected_file_is_noticed_that_was_left_out(source, tmp_path):
    """A damaged image and a blank one, corrected without a change of the file's size."""
    edited = tmp_path / "mine"
    shutil.copytree(source, edited)
    damaged, blank = edited / "notumor" / "no003.jpg", edited / "glioma" / "gl001.bmp"
    right = {file: file.read_bytes() for file in (damaged, blank)}
    damaged.write_bytes(bytes(len(right[damaged])))
    blank.write_bytes(right[blank][:54] + bytes(len(right[blank]) - 54))
    first = make(edited, tmp_path / "out", part=PATIENTS, skip_bad=True)
    assert len(first.dataset.manifest.skipped) == 2
    assert not make(edited, tmp_path / "out", part=PATIENTS, skip_bad=True).fresh
    for file in (damaged, blank):
        wrong = file.read_bytes()
        file.write_bytes(right[file])
        name = file.relative_to(edited)
        with pytest.raises(UserError, match=f"other contents of 1 source files, such as {name}; choose another --out"):
            make(edited, tmp_path / "out", part=PATIENTS, skip_bad=True)
        file.write_bytes(wrong)


@pytest.mark.parametrize("name", ["mine-train-00000.tar", "index.parquet", "manifest.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: os.truncate(file, 100)], ids=["missing", "truncated"])
def test_a_damaged_out_is_not_taken_for_complete(built, source, tmp_path, name, damage):
    out = Path(shutil.copytree(built.root, tmp_path / "out"))
    damage(out / name)
    with pytest.raises(UserError, match=r"--out .*(is damaged|not a complete).*; choose another --out or remove it$"):
        make(source, out, part=PATIENTS, shard_size="7")


def test_a_foreign_out_is_unchanged(source, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("notes", "file"):
        with pytest.raises(UserError, match="is not a complete shard folder"):
            make(source, tmp_path / name)
    with pytest.raises(UserError, match="is inside --source"):
        make(source, source / "shards")
    with pytest.raises(UserError, match="cannot be written"):
        make(source, tmp_path / "file" / "below")
    (tmp_path / "empty").mkdir()
    assert make(source, tmp_path / "empty").fresh


def test_planted_copies_share_a_group_and_a_split(tmp_path):
    root = tmp_path / "planted"
    write_collection(root, each=15)
    originals = [("glioma", "gl003"), ("meningioma", "me004"), ("notumor", "no005"), ("pituitary", "pi006")]
    changes = {
        "same": lambda image: image,
        "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
        "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.5),
    }
    lines = []
    for kind, stem in originals:
        image = Image.open(root / kind / f"{stem}.jpg")
        for change, apply in changes.items():
            apply(image).save(root / kind / f"{stem}-{change}.png")
        image.save(root / kind / f"{stem}-coarse.jpg", quality=35)
        lines += [f"{stem}-{change},{kind},{stem}-{change}" for change in (*changes, "coarse")]
    Image.open(root / "glioma" / "gl009.jpg").save(root / "notumor" / "conflict.png")
    with (root / "patients.csv").open("a") as table:
        table.write("\n".join([*lines, "conflict,notumor,"]) + "\n")
    for seed in range(3):
        dataset = make(root, tmp_path / f"built{seed}", part=PATIENTS, seed=seed).dataset
        by_source = {name: row for row, name in enumerate(dataset.columns["source"])}
        for kind, stem in originals:
            names = [f"{kind}/{stem}-{change}.png" for change in changes] + [
                f"{kind}/{stem}-coarse.jpg",
                f"{kind}/{stem}.jpg",
            ]
            rows = [by_source[name] for name in names]
            assert len(set(dataset.columns["group"][rows])) == 1
            assert len(set(dataset.columns["split"][rows])) == 1
        splits_of_group: dict[str, set[str]] = {}
        for group, name in zip(dataset.columns["group"], dataset.columns["split"], strict=True):
            splits_of_group.setdefault(group, set()).add(name)
        assert all(len(names) == 1 for names in splits_of_group.values())
        assert len(splits_of_group) == dataset.manifest.groups == 20  # no two patients are joined by mistake
        audit = dataset.manifest.audit
        assert (audit["exact_redundant"], audit["images_with_label_conflict"], audit["test_leaked"]) == (5, 2, 0)
        assert audit["near_pairs_mirrored"] >= 4


def test_published_split_is_kept_and_its_leaks_are_counted(tmp_path):
    root = tmp_path / "leaky"
    write_collection(root / "Training", each=12)
    for number, kind in enumerate(CLASSES):
        (root / "Testing" / kind).mkdir(parents=True)
        draw(50_000 + number).save(root / "Testing" / kind / "own.png")
        image = Image.open(root / "Training" / kind / f"{kind[:2]}000.jpg")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "Testing" / kind / "mirrored.png")
    kept = make(root, tmp_path / "kept", split="original", fractions=(0.8, 0.0, 0.2)).dataset
    assert set(kept.columns["source"][kept.rows("test")]) == {
        f"Testing/{kind}/{name}.png" for kind in CLASSES for name in ("own", "mirrored")
    }
    assert kept.manifest.audit["test_leaked"] == kept.manifest.audit["test_with_copy_in_train"] == 4
    assert verify(kept.root) == []
    regrouped = make(root, tmp_path / "grouped").dataset
    assert regrouped.manifest.audit["test_leaked"] == 0


def test_a_class_that_a_split_lacks_is_an_error_or_a_warning(tmp_path):
    root = write_collection(tmp_path / "raw", each=6)  # two patients a class
    recipe, options = parse_recipe({"parts": [PATIENTS]}, "it"), BuildOptions(fractions=(0.5, 0.25, 0.25))
    message = r"would have no images in (val|test); .*too few groups .*, 2 for 6 images; .* --allow-missing"
    with pytest.raises(UserError, match=message):
        build(root, tmp_path / "out", recipe, options, workers=1)
    assert not (tmp_path / "out").exists()
    built = build(root, tmp_path / "out", recipe, options, workers=1, allow_missing=True)
    counts = built.dataset.manifest.counts
    assert all(sum(by_class.values()) for by_class in counts.values())  # but no split is empty
    lacking = {f"{name} has no images in {split}" for name in CLASSES for split in counts if not counts[split][name]}
    assert len(lacking) == 4
    assert set(built.warnings) == lacking


def test_three_patients_a_class_are_enough_for_three_splits(tmp_path):
    root = write_collection(tmp_path / "raw", each=9)
    recipe = parse_recipe({"parts": [PATIENTS]}, "it")
    built = build(root, tmp_path / "out", recipe, BuildOptions(), workers=1)
    assert built.warnings == []
    assert built.dataset.manifest.counts == {name: dict.fromkeys(CLASSES, 3) for name in ("train", "val", "test")}


def test_a_split_without_images_is_an_error_with_its_cause(tmp_path):
    root = write_collection(tmp_path / "raw", each=9)
    ids = [f"{kind[:2]}{number:03d}" for kind in CLASSES for number in range(9)]
    table, thirds = root / "patients.csv", (0.34, 0.33, 0.33)
    recipe = parse_recipe({"parts": [PATIENTS]}, "it")
    assert build(root, tmp_path / "good", recipe, BuildOptions(fractions=thirds), workers=1).warnings == []

    def fails(patients: list[str], message: str) -> None:
        table.write_text("id,patient\n" + "".join(f"{key},{who}\n" for key, who in zip(ids, patients, strict=True)))
        with pytest.raises(UserError, match=message):
            build(root, tmp_path / "out", recipe, BuildOptions(fractions=thirds), workers=1)
        assert not (tmp_path / "out").exists()

    fails(["ANON"] * 36, r"(val|test) would have no images.*36 of 36 images have the same patient, 'ANON'")
    for number in (3, 6):  # a picture that every patient with a meningioma has
        shutil.copy(root / "meningioma" / "me000.jpg", root / "meningioma" / f"me00{number}.jpg")
    patients = [f"{kind}{number // 3}" for kind in CLASSES for number in range(9)]
    fails(patients, r"meningioma would have .*one group, joined by copies, holds 3 of 3 patients and 9 of 9 images")


def test_a_class_without_images_is_an_error_before_images_are_decoded(tmp_path):
    root = write_collection(tmp_path / "raw", each=9)
    shutil.rmtree(root / "notumor")
    (root / "glioma" / "damaged.png").write_bytes(b"")
    recipe = parse_recipe({"parts": [{}]}, "it")
    with pytest.raises(UserError, match=r"no images of notumor.* whose classes are glioma, meningioma, pituitary"):
        build(root, tmp_path / "out", recipe, BuildOptions(), workers=1)
    options = BuildOptions(skip_bad=True)
    built = build(root, tmp_path / "out", recipe, options, workers=1, allow_missing=True)
    assert "no images of notumor" in built.warnings
    listed = {"parts": [{"folders": {"notumor": "no", "glioma": "glioma"}}]}
    with pytest.raises(UserError, match=r"the folder no for class notumor is missing in .* --allow-missing"):
        build(root, tmp_path / "none", parse_recipe(listed, "it"), options, workers=1)
    built = build(root, tmp_path / "one", parse_recipe(listed, "it"), options, workers=1, allow_missing=True)
    assert len(built.dataset) == 9


def test_a_pure_test_set(tmp_path):
    root = write_collection(tmp_path / "raw", each=3)
    (root / "patients.csv").unlink()
    shutil.rmtree(root / "notumor")
    recipe = parse_recipe({"parts": [{}]}, "it")
    built = build(root, tmp_path / "out", recipe, BuildOptions(split="test"), workers=1)
    assert built.warnings == ["no images of notumor"]
    dataset = built.dataset
    assert len(dataset.rows("test")) == len(dataset) == 9
    assert dataset.manifest.counts["train"] == dict.fromkeys(CLASSES, 0)
    assert verify(dataset.root) == []
    published = parse_recipe({"parts": [{"published": "test"}]}, "it")
    kept = build(root, tmp_path / "kept", published, BuildOptions(split="original"), workers=1, allow_missing=True)
    assert kept.warnings == ["no images of notumor"]
    assert len(kept.dataset.rows("test")) == 9


def spoil(root: Path) -> dict[str, str]:
    """Put bad files into a collection; returns their reasons."""
    whole = (root / "glioma" / "gl000.jpg").read_bytes()
    (root / "glioma" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "notumor" / "empty.png").write_bytes(b"")
    (root / "notumor" / "page.jpg").write_bytes(b"<html>not found</html>")
    (root / "pituitary" / "link.jpg").symlink_to(root / "nowhere.jpg")
    return {
        "glioma/cut.jpg": "cannot be decoded", "notumor/empty.png": "is empty", "notumor/page.jpg": "web page",
        "pituitary/link.jpg": "a broken link",
    }  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_files_stop_the_build_or_are_left_out(tmp_path, workers):
    root = write_collection(tmp_path / "raw", each=4)
    reasons = spoil(root)
    with pytest.raises(BadImages, match="4 image files cannot be used") as caught:
        make(root, tmp_path / "out", workers=workers)
    assert len(caught.value.files) == 4
    for line, (name, reason) in zip(caught.value.files, reasons.items(), strict=True):
        assert line.startswith(f"{name}: ")
        assert reason in line
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out.partial-*"))
    dataset = make(root, tmp_path / "out", workers=workers, skip_bad=True).dataset
    assert len(dataset) == 16
    assert [entry["source"] for entry in dataset.manifest.skipped] == list(reasons)
    assert verify(dataset.root) == []


def test_skipping_must_leave_images_of_every_class(tmp_path):
    root = write_collection(tmp_path / "raw", each=2)
    for path in (root / "pituitary").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no image of class pituitary"):
        make(root, tmp_path / "out", skip_bad=True, fractions=(0.5, 0.0, 0.5))


def wait_for(condition, process: subprocess.Popen) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.001)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("moment", ["spool", "*.tar"])
def test_killed_build_leaves_nothing_finished_and_the_next_one_succeeds(tmp_path_factory, tmp_path, moment):
    source = write_collection(
        tmp_path_factory.mktemp("many") / "mine", each=100
    )  # a tar per image: slow enough to kill
    out = tmp_path / "out"
    words = [sys.executable, "-m", "brain_dist.shard", "build", "--source", str(source), "--out", str(out)]
    process = subprocess.Popen([*words, "--shard-size", "1", "--workers", "2"], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: any(tmp_path.glob(f".out.partial-*/{moment}")), process)
        if moment == "spool":
            wait_for(lambda: any(map(children, children(process.pid))), process)  # the workers are forked from a server
        servers = children(process.pid)
        workers = [*servers, *(worker for server in servers for worker in children(server))]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()
    left = list(tmp_path.glob(".out.partial-*"))
    assert len(left) == 1
    assert not (left[0] / "manifest.json").exists()
    limit = time.monotonic() + 20
    while any(map(running, workers)) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not any(map(running, workers)), "worker processes outlived the build"
    with pytest.raises(UserError, match="is not a complete shard folder"):
        open_dataset(left[0])
    dataset = make(source, out, shard_size="1").dataset
    assert verify(dataset.root) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_too_little_temporary_space_is_a_one_line_error_and_leaves_nothing(source, tmp_path):
    words = f"{sys.executable} -m brain_dist.shard build --source {source} --out {tmp_path / 'out'}"
    # bash counts blocks of 1,024 bytes; the thumbnails of 48 images need more than 20
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 20; {words} --workers 2 --allow-missing"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"brain-dist: error: no 0.4 MB in {tmp_path} for intermediate results (File too large); "
        "set TMPDIR to a larger disk\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_collection_of_blank_images(tmp_path):
    for label in ("glioma", "notumor"):
        (tmp_path / "raw" / label).mkdir(parents=True)
        for level in (0, 100):
            Image.new("L", (64, 64), level).save(tmp_path / "raw" / label / f"{level}.png")
    dataset = make(tmp_path / "raw", tmp_path / "out", keep_blank=True, split="test").dataset
    assert (len(dataset), dataset.manifest.groups) == (4, 4)


def test_a_running_build_is_not_disturbed_by_another_one(source, tmp_path):
    from brain_dist.common.files import partial_folder

    with partial_folder(tmp_path / "out") as folder:
        (folder / "part").write_text("of the first")
        with pytest.raises(UserError, match="another process is writing"):
            make(source, tmp_path / "out")
        assert (folder / "part").exists()
    assert (tmp_path / "out" / "part").exists()


@pytest.mark.parametrize("change", ["other", "gone"])
def test_a_file_that_changes_during_the_build_is_an_error(source, tmp_path, change):
    root = tmp_path / "raw"
    shutil.copytree(source, root)

    def change_file(stage: str, done: int, total: int) -> None:
        if stage == "comparing":
            (root / "glioma" / "gl005.jpg").unlink(missing_ok=True)
            if change == "other":
                draw(4711).save(root / "glioma" / "gl005.jpg")

    with pytest.raises(UserError, match=r"gl005.*changed while the shards were built"):
        build(
            root, tmp_path / "out", default_recipe(root), BuildOptions(),
            workers=1, allow_missing=True, progress=change_file,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_real_collections(real_data, tmp_path):
    source, patients = tmp_path / "data", {}
    for line in (real_data / "cheng" / "patients.csv").read_text().splitlines()[1:]:
        identity, kind, patient, _ = line.split(",")
        patients[f"{kind}/{identity}.jpg"] = patient
    for folder, pick in (
        ("cheng", sorted(patients)[::15]),
        ("br35h_no", [f"notumor/{p.name}" for p in sorted((real_data / "br35h_no" / "notumor").iterdir())[::8]]),
    ):
        for name in pick:
            (source / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (source / folder / name).symlink_to(real_data / folder / name)
    shutil.copy(real_data / "cheng" / "patients.csv", source / "cheng" / "patients.csv")
    built = make(source, tmp_path / "out", recipe=read_recipe(RECIPES / "cheng_br35h.yaml"), workers=2)
    dataset, columns = built.dataset, built.dataset.columns
    assert "cheng: meningioma has 47 images, the recipe expects 708" in built.warnings
    assert len(dataset) == 393
    assert verify(dataset.root) == []
    tumour = columns["dataset"] == "cheng"
    found = {
        (group, patient) for group, patient in zip(columns["group"][tumour], columns["patient"][tumour], strict=True)
    }
    assert len(found) == len({patient for _, patient in found}) == len({group for group, _ in found})
    assert dataset.manifest.audit["near_pairs_mirrored"] > 20  # Br35H is full of mirrored copies
    assert dataset.manifest.audit["test_leaked"] == 0
    for label in range(4):
        shares = np.array(
            [(columns["label"][dataset.rows(split)] == label).sum() for split in ("train", "val", "test")]
        )
        np.testing.assert_allclose(shares / shares.sum(), (0.7, 0.1, 0.2), atol=0.06)
