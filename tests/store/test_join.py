"""Joined folders: no group is in two splits of different sources, and every image that is left out is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, in_process, launch, losses, verb
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import CLASSES, draw, write_collection
from PIL import Image

from brain_dist.building.build import build
from brain_dist.building.verify import verify
from brain_dist.collection.recipes import parse_recipe
from brain_dist.config import DataConfig
from brain_dist.errors import UserError
from brain_dist.judging.predictions import read_predictions
from brain_dist.store import join as joining
from brain_dist.store.access import open_data
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.join import join
from brain_dist.store.options import BuildOptions
from brain_dist.store.reader import ShardReader
from brain_dist.training.resume import settings_to_match


def make(root: Path, out: Path, name: str, **options) -> Dataset:
    recipe = parse_recipe({"name": name, "parts": [{"dataset": name}]}, "it")
    return build(root, out, recipe, BuildOptions(**options), workers=1, allow_missing=True).dataset


def joined(sources: list[Path], out: Path, leave_out: str | None = None, workers: int = 1) -> Dataset:
    return join(sources, out, leave_out=leave_out, workers=workers)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Shards of the collections a and b.

    The test split of b contains two glioma images of a's training split (one unchanged, one encoded again) and a
    mirrored notumor image of it. The training split of b contains an image of a's test split, encoded again.
    """
    base = tmp_path_factory.mktemp("join")
    a = base / "a" / "images"
    for label, kind in enumerate(CLASSES):
        for part, numbers in (("train", range(8)), ("val", range(8, 10)), ("test", range(10, 13))):
            (a / part / kind).mkdir(parents=True, exist_ok=True)
            for number in numbers:
                draw(1000 * label + number).save(a / part / kind / f"{number:03d}.jpg", quality=92)
    b = base / "b" / "images"
    for label, kind in enumerate(CLASSES):
        for part, numbers in (("train", range(6)), ("val", range(6, 8)), ("test", range(8, 10))):
            (b / part / kind).mkdir(parents=True, exist_ok=True)
            for number in numbers:
                draw(80_000 + 1000 * label + number, 112).save(b / part / kind / f"{number:03d}.jpg", quality=92)
    shutil.copy(a / "train" / "glioma" / "000.jpg", b / "test" / "glioma" / "same.jpg")
    Image.open(a / "train" / "glioma" / "001.jpg").save(b / "test" / "glioma" / "again.jpg", quality=40)
    mirrored = Image.open(a / "train" / "notumor" / "002.jpg").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(b / "test" / "notumor" / "mirrored.png")
    Image.open(a / "test" / "pituitary" / "010.jpg").resize((80, 80)).save(b / "train" / "pituitary" / "small.png")
    for name in "ab":
        make(base / name / "images", base / name / "shards", name, split="original", shard_size="9")
    return [base / "a" / "shards", base / "b" / "shards"]


@pytest.fixture(scope="module")
def both(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return joined(sources, tmp_path_factory.mktemp("both") / "out")


def folder_bytes(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_training_images_that_another_source_tests_on_are_left_out_and_counted(sources, both):
    manifest, columns = both.manifest, both.columns
    assert manifest.excluded.samples == 4
    assert manifest.excluded.counts == {"a": {"train": 3}, "b": {"train": 1}}
    # both have test/glioma/…, but their keys start with the dataset
    assert manifest.excluded.keys == sorted(
        ["a-train-glioma-000", "a-train-glioma-001", "a-train-notumor-002", "b-train-pituitary-small"]
    )
    parts = [open_dataset(source) for source in sources]
    assert len(both) == manifest.samples == sum(map(len, parts)) - 4
    for split in ("val", "test"):
        assert len(both.rows(split)) == sum(len(part.rows(split)) for part in parts)
    for split, by_class in manifest.counts.items():
        labels = columns["label"][both.rows(split)]
        assert by_class == dict(zip(CLASSES, np.bincount(labels, minlength=4).tolist(), strict=True))
    assert manifest.audit["between"] == [
        {"of": "a", "in": "b", "exact": 1, "near": 3, "patient": 0},
        {"of": "b", "in": "a", "exact": 1, "near": 3, "patient": 0},
    ]
    assert manifest.audit["near_pairs_mirrored"] == 1
    assert manifest.split == {"method": "joined", "leave_out": None}
    assert [source.name for source in manifest.sources] == ["a", "b"]


def test_no_joined_group_is_in_two_splits(both):
    assert verify(both.root) == []
    of_group: dict[str, str] = {}
    for group, split in zip(both.columns["group"], both.columns["split"], strict=True):
        assert of_group.setdefault(group, split) == split
    assert len(of_group) == both.manifest.groups
    assert set(of_group) <= set(both.columns["key"])


def test_rows_name_the_sources_shards_and_read_their_bytes(sources, both):
    columns, reader = both.columns, ShardReader(both)
    places = list(zip(columns["shard"], columns["offset"], strict=True))
    assert places == sorted(places)
    for row in range(len(both)):
        number, name = columns["shard"][row].split("/")
        image = sources[int(number)].parent / "images" / columns["source"][row]
        assert reader.read(row) == image.read_bytes()
        assert (sources[int(number)] / name).is_file()
    for entry in both.manifest.shards:
        assert entry.samples == (columns["shard"] == entry.name).sum() > 0
    assert {path.name for path in both.root.iterdir()} == {"manifest.json", "index.parquet", "sources.json"}


def test_the_bytes_do_not_depend_on_the_number_of_processes_and_the_sources_are_unchanged(sources, both, tmp_path):
    before = [folder_bytes(source) for source in sources]
    again = joined(sources, tmp_path / "again", workers=2)
    assert folder_bytes(again.root) == folder_bytes(both.root)
    assert [folder_bytes(source) for source in sources] == before
    # the same dataset at another place: a run can continue with copies of the folders
    moved = [Path(shutil.copytree(source, tmp_path / source.parent.name)) for source in sources]
    assert joined(moved, tmp_path / "moved").version == both.version


def test_a_second_join_does_nothing_or_fails_with_the_reason(sources, tmp_path):
    out = joined(sources, tmp_path / "out").root
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    joined(sources, out)
    with pytest.raises(UserError, match="is not joined from these folders"):
        joined(sources, out, leave_out="b")
    with pytest.raises(UserError, match="is not joined from these folders"):
        joined(sources[::-1], out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a complete shard folder"):
        joined(sources, tmp_path / "notes")


def test_a_left_out_source_is_the_test_split_and_its_copies_are_not_trained_on(sources, tmp_path):
    dataset = joined(sources, tmp_path / "out", leave_out="b")
    columns, (a, b) = dataset.columns, [open_dataset(source) for source in sources]
    np.testing.assert_array_equal(columns["split"] == "test", columns["dataset"] == "b")
    assert len(dataset.rows("test")) == len(b)
    assert dataset.manifest.excluded.counts == {"a": {"test": 1, "train": 3}, "b": {}}
    # the test split of a is trained on, except for the image that b contains; its validation split stays
    assert len(dataset.rows("train")) == len(a.rows("train")) + len(a.rows("test")) - 4
    assert set(columns["source"][dataset.rows("val")]) == set(a.columns["source"][a.rows("val")])


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["train", "val", "test"])), min_size=1, max_size=60))
def test_a_group_in_several_splits_keeps_its_test_or_else_its_validation_images(rows):
    numbers = np.array([group for group, _ in rows])
    groups = np.array([numbers.tolist().index(group) for group in numbers])
    split = np.array([name for _, name in rows], dtype=object)
    kept = joining.keep(split, groups)
    for group in set(groups.tolist()):
        inside = groups == group
        best = next(name for name in ("test", "val", "train") if name in split[inside])
        np.testing.assert_array_equal(kept[inside], split[inside] == best)


def test_patients_of_one_dataset_are_the_same_in_two_folders(tmp_path):
    """Different images of the same patients, such as another sequence."""
    for name, start in (("t1", 0), ("t2", 500)):
        for label, kind in enumerate(CLASSES):
            (tmp_path / name / kind).mkdir(parents=True)
            for number in range(8):
                draw(1000 * label + start + number).save(tmp_path / name / kind / f"{number}.png")
        table = "".join(f"{kind}/{number}.png,{kind}{number}\n" for kind in CLASSES for number in range(8))
        (tmp_path / name / "patients.csv").write_text("id,patient\n" + table)
    part = {"dataset": "scans", "patients": {"file": "patients.csv", "id": "id", "patient": "patient"}}
    parts = []
    for seed, name in enumerate(("t1", "t2")):
        recipe = parse_recipe({"name": name, "parts": [part]}, "it")
        built = build(
            tmp_path / name,
            tmp_path / f"{name}-shards",
            recipe,
            BuildOptions(seed=seed),
            workers=1,
            allow_missing=True,
        )
        parts.append(built.dataset)
    dataset = joined([part.root for part in parts], tmp_path / "out")
    assert dataset.manifest.audit["between"][0] == {"of": "t1", "in": "t2", "exact": 0, "near": 0, "patient": 32}
    split_of: dict[str, set[str]] = {}
    for part in parts:
        for patient, split in zip(part.columns["patient"], part.columns["split"], strict=True):
            split_of.setdefault(patient, set()).add(split)
    assert dataset.manifest.excluded.samples == sum(len(splits) - 1 for splits in split_of.values()) > 0
    for patient in split_of:
        assert len(set(dataset.columns["split"][dataset.columns["patient"] == patient])) == 1


def test_keys_that_several_sources_have_get_a_prefix(sources, tmp_path):
    root = tmp_path / "again" / "images"
    for label, kind in enumerate(CLASSES):
        (root / "train" / kind).mkdir(parents=True)
        draw(90_000 + label).save(root / "train" / kind / "000.png")
        draw(95_000 + label).save(root / "train" / kind / "new.png")
    twin = make(root, tmp_path / "twin", "a", split="grouped", fractions=(1.0, 0.0, 0.0)).root
    dataset = joined([sources[0], twin], tmp_path / "out")
    assert [source.name for source in dataset.manifest.sources] == ["a-0", "a-1"]
    keys = dataset.columns["key"].tolist()
    assert len(set(keys)) == len(keys)
    assert {"a-0.a-train-glioma-000", "a-1.a-train-glioma-000", "a-train-glioma-new"} <= set(keys)


def test_a_changed_or_missing_source_is_an_error(sources, tmp_path):
    copies = [Path(shutil.copytree(source, tmp_path / source.parent.name)) for source in sources]
    out = joined(copies, tmp_path / "out").root
    manifest = json.loads((copies[1] / "manifest.json").read_text())
    (copies[1] / "manifest.json").write_text(json.dumps(manifest | {"title": "another"}))
    with pytest.raises(UserError, match=f"{copies[1]} was rebuilt since {out} was joined from it"):
        open_dataset(out)
    shutil.rmtree(copies[1])
    with pytest.raises(UserError, match=f"{copies[1]}, which {out} was joined from, is missing"):
        open_dataset(out)
    (out / "sources.json").unlink()
    with pytest.raises(UserError, match=r"sources\.json is missing"):
        open_dataset(out)


def test_folders_that_were_moved_together_are_found(sources, tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    copies = [Path(shutil.copytree(source, before / source.parent.name)) for source in sources]
    version = joined(copies, before / "both").version
    before.rename(after)
    dataset = open_dataset(after / "both")
    assert dataset.version == version
    assert dataset.sources == (after / "a", after / "b")
    assert verify(after / "both") == []


def test_folders_that_cannot_be_joined(sources, both, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="two or more"):
        joined(sources[:1], out)
    with pytest.raises(UserError, match="are the same shards"):
        joined([sources[0], sources[0]], out)
    with pytest.raises(UserError, match="is a joined folder"):
        joined([sources[0], both.root], out)
    with pytest.raises(UserError, match="leave_out=c is not one of the joined a, b"):
        joined(sources, out, leave_out="c")
    folds = make(write_collection(tmp_path / "folds", each=9, size=64), tmp_path / "k", "k", split="kfold", folds=3)
    with pytest.raises(UserError, match="was built as folds"):
        joined([sources[0], folds.root], out)
    assert len(joined([sources[0], folds.root], out, leave_out="k").rows("test")) == 36
    other = make_classes(tmp_path, "other", ["glioma", "metastasis"])
    with pytest.raises(UserError, match=r"classes glioma, metastasis of one folder do not fit glioma, meningioma"):
        joined([sources[0], other], tmp_path / "other-joined")


def make_classes(base: Path, name: str, classes: list[str]) -> Path:
    """Shards of a collection with two images of each class, all of the training split."""
    for label, kind in enumerate(classes):
        (base / name / kind).mkdir(parents=True)
        for number in range(2):
            draw(60_000 + 10 * label + number).save(base / name / kind / f"{number}.png")
    recipe = parse_recipe({"name": name, "classes": classes, "parts": [{}]}, "it")
    options = BuildOptions(fractions=(1.0, 0.0, 0.0))
    return build(base / name, base / f"{name}-shards", recipe, options, workers=1, allow_missing=True).dataset.root


@pytest.mark.parametrize(
    ("classes", "expected", "label_of"),
    [
        (["tumor", "notumor"], ("notumor", "tumor"), {"tumor": 1, "notumor": 0}),
        (["pituitary", "glioma"], CLASSES, {"pituitary": 3, "glioma": 0}),
        (["notumor", "pituitary", "meningioma", "glioma"], CLASSES, dict(zip(CLASSES, range(4), strict=True))),
    ],
)
def test_classes_are_joined_by_their_meaning(sources, tmp_path, classes, expected, label_of):
    other = make_classes(tmp_path, "other", classes)
    dataset = joined([sources[0], other], tmp_path / "out")
    assert dataset.classes == tuple(expected)
    assert verify(dataset.root) == []
    own = dataset.columns["dataset"] == "other"
    kinds = [source.split("/")[-2] for source in dataset.columns["source"]]
    for row, (kind, is_other) in enumerate(zip(kinds, own, strict=True)):
        four = expected.index(kind if kind in expected else "tumor")
        assert dataset.columns["label"][row] == (label_of[kind] if is_other else four)
    assert own.sum() == 2 * len(classes)
    done = in_process("shard", "join", str(sources[0]), str(other), "--out", str(tmp_path / "printed"))
    assert ("a: glioma, meningioma, pituitary count as tumor" in done.out) == ("tumor" in classes)
    total = {name: sum(by_class[name] for by_class in dataset.manifest.counts.values()) for name in expected}
    assert total == {name: int((dataset.columns["label"] == label).sum()) for label, name in enumerate(expected)}


def test_the_command_prints_what_it_left_out(sources, both, tmp_path):
    words = ["join", *map(str, sources), "--out", str(tmp_path / "out"), "--workers", "1"]
    done = in_process("shard", *words)
    assert "a: 1 images have an exact copy in b, 3 more a near copy; 0 are of patients in b" in done.out
    assert "left out of a: 3 of train" in done.out
    assert f"written to {tmp_path / 'out'}, dataset version {both.version[:12]}" in done.out
    assert done.err == ""
    assert "nothing to do" in in_process("shard", *words).out


def test_a_class_without_training_images_gives_a_warning(tmp_path):
    for name, part in (("a", "train"), ("b", "test")):
        for kind in ("train", "test"):
            (tmp_path / name / kind / "glioma").mkdir(parents=True)
        for number in range(3):
            draw(number).save(tmp_path / name / part / "glioma" / f"{number}.png")
        draw(90).save(tmp_path / name / ({"train", "test"} - {part}).pop() / "glioma" / f"{name}.png")
        make(tmp_path / name, tmp_path / f"{name}-shards", name, split="original", fractions=(0.8, 0.0, 0.2))
    words = [str(tmp_path / f"{name}-shards") for name in "ab"]
    done = in_process("shard", "join", *words, "--out", str(tmp_path / "out"), "--workers", "1")
    assert "left out of a: 3 of train" in done.out
    assert done.err.startswith(
        "warning: glioma has no training images left, as all share a group with test or validation images."
    )


def test_the_data_of_a_run_are_joined_once_and_used_again(sources, both, tmp_path, capfd):
    data = DataConfig(sources=tuple(map(str, sources)), leave_out="b")
    first = open_data(data, tmp_path / "runs")
    assert "joining" in capfd.readouterr().err
    again = open_data(data, tmp_path / "runs")
    assert capfd.readouterr().err == ""
    assert again.version == first.version
    assert first.root.parent == tmp_path / "runs"
    plain = open_data(DataConfig(sources=tuple(map(str, sources))), tmp_path / "runs")
    assert plain.version == both.version
    assert plain.root != first.root
    # staged on the node's own disk, joined folders read the copies
    staged = DataConfig(shards=str(both.root), cache_dir=str(tmp_path / "cache"))
    dataset = open_data(staged, tmp_path)
    assert dataset.version == both.version
    assert all(source.is_relative_to(tmp_path / "cache") for source in dataset.sources)
    assert ShardReader(dataset).read(5) == ShardReader(both).read(5)
    cached = DataConfig(sources=tuple(map(str, sources)), cache_dir=str(tmp_path / "cache"))
    assert open_data(cached, tmp_path / "runs").sources == dataset.sources
    assert open_dataset(plain.root).sources == tuple(source.resolve() for source in sources)


def test_contradicting_settings():
    for words, says in (
        ({"shards": "a", "sources": ("a", "b")}, "both set"),
        ({"sources": ("a",)}, "two or more"),
        ({"leave_out": "a", "shards": "a"}, "needs data.sources"),
        ({"fold": 1, "sources": ("a", "b")}, "needs data.shards"),
    ):
        with pytest.raises(UserError, match=says):
            DataConfig(**words)
    with pytest.raises(UserError, match=r"data\.shards is not set"):
        open_data(DataConfig(), Path("runs"))


def test_two_processes_train_and_evaluate_on_joined_sources(sources, both, tmp_path):
    batch = [
        "--train.global_batch",
        "16",
        "--train.micro_batch",
        "8",
        "--train.epochs",
        "1",
        "--train.precision",
        "fp32",
    ]
    where = ["--run.dir", str(tmp_path / "runs"), "--run.name", "both"]
    given = ["--data.sources", json.dumps([str(source) for source in sources])]
    launch(2, "train", *TINY, *batch, *where, *given)
    run = tmp_path / "runs" / "both"
    assert len(losses(run)) == -(-len(both.rows("train")) // 16)
    about = json.loads((run / "environment.json").read_text())
    assert about["dataset_version"] == both.version
    assert Path(about["shards"]).parent == tmp_path / "runs"
    verb("evaluate", str(run))
    found = read_predictions(run / "predictions" / "test.parquet")
    assert sorted(found.key) == sorted(both.columns["key"][both.rows("test")])
    assert found.dataset_version == both.version
    page = verb("report", str(run))
    assert "note" not in page.err
    assert "joined" in (run / "report" / "index.html").read_text()


def test_the_fold_must_match_on_resume():
    from brain_dist.config import Config

    one, other = (settings_to_match(Config(data=DataConfig(shards="a", fold=fold)), "v", 1) for fold in (0, 1))
    assert [name for name in one if one[name] != other[name]] == ["data.fold"]


def test_joining_again_mends_the_record_of_the_sources(sources, tmp_path):
    dataset = joined(sources, tmp_path / "out")
    record = dataset.root / "sources.json"
    whole = record.read_bytes()
    for damage in (record.unlink, lambda: record.write_bytes(whole[:9])):
        damage()
        with pytest.raises(UserError, match=r"sources\.json is missing or damaged; join the folders again"):
            open_dataset(dataset.root)
        assert joined(sources, tmp_path / "out").version == dataset.version
        assert record.read_bytes() == whole
        assert open_dataset(dataset.root).sources == dataset.sources
    record.unlink()
    record.mkdir()  # as of a folder that cannot be written
    with pytest.raises(UserError, match=r"sources\.json cannot be written \(Is a directory\), and does not say where"):
        joined(sources, tmp_path / "out")


@pytest.mark.parametrize("name", ["healthy", "No tumor", "normal"])
def test_a_class_without_a_tumour_never_counts_as_one(name):
    with pytest.raises(UserError, match=f"the class {name} would count as tumor, .* whose class is called notumor"):
        joining.common_classes([("glioma", name), ("notumor", "tumor")])
    assert joining.common_classes([("glioma", "notumor"), ("notumor", "tumor")]) == ("notumor", "tumor")
    assert joining.common_classes([("glioma", name), ("glioma",)]) == ("glioma", name)
