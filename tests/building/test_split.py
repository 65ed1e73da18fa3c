"""Every method keeps groups whole for any seed, meets the shares, and keeps published splits and folds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import in_process
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import CLASSES, draw, write_collection
from PIL import Image

from brain_dist.building import split
from brain_dist.building.build import build
from brain_dist.building.verify import verify
from brain_dist.collection.recipes import parse_recipe
from brain_dist.collection.records import Record
from brain_dist.collection.spellings import SPLITS
from brain_dist.errors import UserError
from brain_dist.shard import main
from brain_dist.store import options
from brain_dist.store.access import open_data
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.options import BuildOptions
from brain_dist.stream import plan

FRACTIONS = st.sampled_from([(0.7, 0.1, 0.2), (0.8, 0.2, 0.0), (0.5, 0.25, 0.25), (1.0, 0.0, 0.0), (0.6, 0.0, 0.4)])


@settings(max_examples=150, deadline=None)
@given(
    groups=st.lists(st.integers(0, 25), min_size=1, max_size=120),
    strata=st.integers(1, 6),
    fractions=FRACTIONS,
    seed=st.integers(0, 2**32),
)
def test_no_group_crosses_a_split_for_any_seed(groups, strata, fractions, seed):
    group = np.array(groups)
    stratum = np.random.default_rng(seed).integers(0, strata, len(group))
    codes = split.grouped(group, stratum, fractions, seed)
    assert codes.shape == group.shape
    for member in set(groups):
        assert len(set(codes[group == member].tolist())) == 1
    assert all(fractions[code] > 0 for code in set(codes.tolist()))
    np.testing.assert_array_equal(codes, split.grouped(group, stratum, fractions, seed))
    # the numbering of groups does not matter
    np.testing.assert_array_equal(codes, split.grouped(group * 7 + 3, stratum, fractions, seed))


@pytest.mark.parametrize("seed", range(5))
def test_every_stratum_gets_the_requested_shares(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, 300)
    group = np.repeat(np.arange(300), sizes)
    stratum = np.repeat(rng.choice(4, 300, p=[0.4, 0.3, 0.2, 0.1]), sizes)
    codes = split.grouped(group, stratum, (0.7, 0.1, 0.2), seed)
    for kind in range(4):
        shares = np.bincount(codes[stratum == kind], minlength=3) / (stratum == kind).sum()
        np.testing.assert_allclose(shares, (0.7, 0.1, 0.2), atol=0.02)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=30),
    fractions=FRACTIONS,
    seed=st.integers(0, 2**32),
)
def test_every_split_gets_every_class_that_has_enough_groups(sizes, fractions, seed):
    group = np.repeat(np.arange(len(sizes)), [size for _, size in sizes])
    label = np.repeat([kind for kind, _ in sizes], [size for _, size in sizes])
    needed = [code for code, share in enumerate(fractions) if share > 0]
    before = split.grouped(group, label, fractions, seed)
    codes = split.with_all_classes(before, group, label, needed)
    lacking = {kind: set(needed) - set(before[label == kind].tolist()) for kind in set(label.tolist())}
    for kind in lacking:
        count = len(set(group[label == kind].tolist()))
        assert len(set(codes[label == kind].tolist())) == min(count, len(needed))
        if not lacking[kind]:
            np.testing.assert_array_equal(codes[label == kind], before[label == kind])
    for member in range(len(sizes)):
        assert len(set(codes[group == member].tolist())) == 1


def test_a_group_is_moved_only_if_no_class_gets_lost():
    group, label = np.array([0, 0, 1, 2, 2, 3]), np.array([0, 1, 0, 0, 1, 0])
    codes = split.with_all_classes(np.zeros(6, np.int8), group, label, [0, 1])
    assert codes.tolist() == [1, 1, 1, 0, 0, 0]  # group 1 for class 0, group 0 for class 1
    alone = split.with_all_classes(np.zeros(3, np.int8), np.array([0, 0, 1]), np.array([0, 1, 0]), [0, 1])
    assert alone.tolist() == [0, 0, 1]


def test_different_seeds_give_different_splits():
    group = np.repeat(np.arange(60), 5)
    stratum = group % 3
    ways = {split.grouped(group, stratum, (0.7, 0.1, 0.2), seed).tobytes() for seed in range(10)}
    assert len(ways) == 10


def test_original_keeps_the_test_split_and_takes_validation_from_training_by_groups():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 60, 400)
    stratum = rng.integers(0, 4, 400)
    published = np.where(rng.random(400) < 0.8, "train", "test").tolist()
    codes = split.original(published, group, stratum, (0.7, 0.1, 0.2), 3)
    np.testing.assert_array_equal(codes == 2, np.array(published) == "test")
    train, val = set(group[codes == 0].tolist()), set(group[codes == 1].tolist())
    assert not train & val
    assert abs((codes == 1).sum() / (codes != 2).sum() - 0.125) < 0.03
    without = split.original(published, group, stratum, (0.8, 0.0, 0.2), 3)
    np.testing.assert_array_equal(without == 0, np.array(published) == "train")
    own = split.original(["train", "val", "test"], np.arange(3), np.zeros(3, int), (0.7, 0.1, 0.2), 0)
    np.testing.assert_array_equal(own, [0, 1, 2])


def test_original_needs_a_published_split():
    with pytest.raises(UserError, match="1 image"):
        split.original(["train", None], np.arange(2), np.zeros(2, int), (0.7, 0.1, 0.2), 0)


@pytest.mark.parametrize("text", ["0.7,0.3", "a,b,c", "0.7,0.1,0.3", "0,0.5,0.5", "1.2,-0.1,-0.1", "", "nan,0,1"])
def test_impossible_fractions(text):
    with pytest.raises(UserError, match="--fractions"):
        options.parse_fractions(text)


def test_fractions():
    assert options.parse_fractions("0.7, 0.1, 0.2") == (0.7, 0.1, 0.2)


def choose(method: str, group: np.ndarray, label: np.ndarray, dataset: np.ndarray, **more) -> split.Split:
    folds = more.pop("published_folds", [None] * len(group))
    images = [
        Record(str(row), int(kind), dataset=str(name), attributes={} if fold is None else {"fold": fold})
        for row, (kind, name, fold) in enumerate(zip(label, dataset, folds, strict=True))
    ]
    return split.split_images(images, group, CLASSES, BuildOptions(split=method, **more))


@settings(max_examples=150, deadline=None)
@given(
    groups=st.lists(st.integers(0, 25), min_size=8, max_size=120),
    method=st.sampled_from(["grouped", "kfold", "published", "leave-one-out"]),
    folds=st.integers(3, 8),
    fractions=FRACTIONS,
    seed=st.integers(0, 2**32),
)
def test_no_group_crosses_by_any_method(groups, method, folds, fractions, seed):
    group, rng = np.array(groups), np.random.default_rng(seed)
    label, dataset = rng.integers(0, 4, len(group)), rng.choice(["a", "b", "c"], len(group))
    more = {"fractions": fractions, "seed": seed, "folds": folds, "test_on": "b"}
    touched = np.isin(group, group[dataset == "b"])
    possible = {
        "grouped": True,
        "published": True,
        "kfold": len(set(groups)) >= folds,
        "leave-one-out": "b" in dataset and not touched.all(),
    }
    if not possible[method]:
        with pytest.raises(UserError):
            choose(method, group, label, dataset, **more)
        return
    if method == "published":
        number = np.where(rng.random(len(group)) < 0.2, rng.integers(0, 4, len(group)), 1 + group % 3)
        method, more["folds"], more["published_folds"] = "kfold", "published", [n or None for n in number.tolist()]
    try:
        result = choose(method, group, label, dataset, **more)
    except UserError:
        assert "published_folds" in more
        return  # a published fold may lose all its groups to others
    codes = result.codes
    for member in set(groups):
        assert len(set(codes[group == member].tolist()) - {split.LEFT_OUT}) == 1
    assert set(codes.tolist()) <= {split.LEFT_OUT, *range(len(result.names))}
    again = choose(method, group, label, dataset, **more)
    np.testing.assert_array_equal(codes, again.codes)
    assert result.description == again.description == json.loads(json.dumps(result.description))
    if method == "leave-one-out":
        np.testing.assert_array_equal(codes == SPLITS.index("test"), dataset == "b")
        np.testing.assert_array_equal(codes == split.LEFT_OUT, touched & (dataset != "b"))
    else:
        assert (codes >= 0).all()
    if method == "kfold":
        assert set(codes.tolist()) == set(range(result.description["folds"]))  # no fold is empty


@pytest.mark.parametrize("seed", range(3))
def test_folds_have_equal_shares_of_every_stratum(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 20, 300)
    group = np.repeat(np.arange(300), sizes)
    label = np.repeat(rng.choice(4, 300, p=[0.4, 0.3, 0.2, 0.1]), sizes)
    dataset = np.repeat(rng.choice(["a", "b"], 300), sizes)
    result = choose("kfold", group, label, dataset, folds=5, seed=seed)
    assert result.names == ("fold0", "fold1", "fold2", "fold3", "fold4")
    for kind in range(4):
        for name in ("a", "b"):
            where = (label == kind) & (dataset == name)
            np.testing.assert_allclose(np.bincount(result.codes[where], minlength=5) / where.sum(), 0.2, atol=0.06)
    shares = np.stack([np.bincount(result.codes[label == kind], minlength=5) for kind in range(4)])
    off = abs(shares / shares.sum(axis=1, keepdims=True) - 0.2).max(axis=1)
    assert result.description["off_by"] == pytest.approx(dict(zip(CLASSES, off, strict=True)), abs=1e-6)
    assert max(off) < 0.02


def test_published_folds_are_kept_except_for_groups_in_several_folds():
    group = np.array([0, 0, 0, 1, 1, 2, 3, 4, 5, 6])
    folds = ["1", "1", "2", "2", "2", "3", "3", None, "", None]
    codes, count, moved = split.keep_folds(folds, group, np.zeros(10, int), 0)
    assert codes[:7].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert (count, moved) == (3, 1)
    assert sorted(np.bincount(codes)) == [3, 3, 4]
    with pytest.raises(UserError, match="has 2 folds"):
        split.keep_folds([1, 2], np.arange(2), np.zeros(2, int), 0)
    with pytest.raises(UserError, match="not integers"):
        split.keep_folds(["a", "b", "c"], np.arange(3), np.zeros(3, int), 0)


def test_impossible_requests():
    label, dataset = np.zeros(4, int), np.array(["a", "a", "b", "b"])
    with pytest.raises(UserError, match="only 2 groups"):
        choose("kfold", np.array([0, 0, 1, 1]), label, dataset, folds=3)
    with pytest.raises(UserError, match="--test-on x is not one of the datasets a, b"):
        choose("leave-one-out", np.arange(4), label, dataset, test_on="x")
    with pytest.raises(UserError, match="leaves nothing to train on"):
        choose("leave-one-out", np.array([0, 1, 0, 1]), label, dataset, test_on="b")


@pytest.mark.parametrize("text", ["2", "1.5", "all", "", "-3", "101"])
def test_impossible_folds(text):
    with pytest.raises(UserError, match="--folds"):
        options.parse_folds(text)


def make(root: Path, out: Path, parts: list[dict], **options) -> Dataset:
    recipe = parse_recipe({"name": "mine", "parts": parts}, "it")
    return build(root, out, recipe, BuildOptions(**options), workers=1, allow_missing=True).dataset


PATIENTS = {"patients": {"file": "patients.csv", "id": "id", "patient": "patient"}}


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    base = tmp_path_factory.mktemp("folds")
    source = write_collection(base / "mine", each=12, size=64)
    return make(source, base / "out", [PATIENTS], split="kfold", folds=4, shard_size="3")


def test_shards_of_folds(folded):
    manifest = folded.manifest
    assert verify(folded.root) == []
    assert list(manifest.counts) == ["fold0", "fold1", "fold2", "fold3"]
    # four patients per class, with three slices each
    assert all(set(by_class.values()) == {3} for by_class in manifest.counts.values())
    assert manifest.split == {"method": "kfold", "folds": 4, "seed": 0, "off_by": dict.fromkeys(CLASSES, 0.0)}
    for shard, name in zip(folded.columns["shard"], folded.columns["split"], strict=True):
        assert shard.startswith(f"mine-{name}-0")


def test_a_run_tests_on_one_fold_and_validates_on_the_next(folded):
    tested = []
    for fold in range(4):
        dataset = folded.of_fold(fold)
        parts = {name: dataset.rows(name) for name in SPLITS}
        names = {name: set(folded.columns["split"][rows]) for name, rows in parts.items()}
        assert names["test"] == {f"fold{fold}"}
        assert names["val"] == {f"fold{(fold + 1) % 4}"}
        assert len(names["train"]) == 2
        np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(48))
        assert {name: sum(by.values()) for name, by in dataset.manifest.counts.items()} == {
            "train": 24, "val": 12, "test": 12
        }  # fmt: skip
        assert set(dataset.columns["split"][parts["val"]]) == {"val"}
        assert dataset.version == folded.version
        tested.append(parts["test"])
    np.testing.assert_array_equal(np.sort(np.concatenate(tested)), np.arange(48))


def test_windows_of_shards_see_each_training_sample_of_a_fold_once(folded):
    dataset = folded.of_fold(2)
    rows = dataset.rows("train")
    shard = np.unique(dataset.columns["shard"][rows], return_inverse=True)[1]
    order = plan.epoch_order(rows, shard, seed=0, epoch=1, window=2)
    np.testing.assert_array_equal(np.sort(order), rows)
    number = dict(zip(rows.tolist(), shard.tolist(), strict=True))
    for start in range(0, len(order), 6):  # two shards of three samples
        assert len({number[row] for row in order[start : start + 6].tolist()}) == 2


def test_data_fold_is_required_for_folds_and_refused_otherwise(folded, tmp_path):
    from brain_dist.config import DataConfig

    shards = str(folded.root)
    assert open_data(DataConfig(shards=shards, fold=1), tmp_path).fold == 1
    for fold, says in (
        (None, r"data\.fold is not set: .* has 4 folds; set it to 0 to 3"),
        (4, r"data\.fold=4 is out of range"),
        (-1, "=-1"),
    ):
        with pytest.raises(UserError, match=says):
            open_data(DataConfig(shards=shards, fold=fold), tmp_path)
    with pytest.raises(UserError, match=r"set data\.fold to select its train split"):
        folded.rows("train")
    source = write_collection(tmp_path / "mine", each=4, size=64)
    plain = make(source, tmp_path / "plain", [{}])
    with pytest.raises(UserError, match=r"data\.fold=0: .* was built without folds"):
        open_data(DataConfig(shards=str(plain.root), fold=0), tmp_path)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset a, and dataset b with its own images and, in each class, a mirrored image of a."""
    root = tmp_path_factory.mktemp("two") / "raw"
    write_collection(root / "a", each=12)
    for label, kind in enumerate(CLASSES):
        (root / "b" / kind).mkdir(parents=True)
        for number in range(3):
            draw(70_000 + 10 * label + number).save(root / "b" / kind / f"own{number}.png")
        image = Image.open(root / "a" / kind / f"{kind[:2]}004.jpg")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "b" / kind / "mirrored.png")
    return root


def test_leave_one_out_tests_on_a_whole_dataset_and_trains_on_no_copy_of_it(two, tmp_path):
    parts = [{"dataset": "a", "root": "a", **PATIENTS}, {"dataset": "b", "root": "b"}]
    dataset = make(two, tmp_path / "out", parts, split="leave-one-out", test_on="b", fractions=(0.5, 0.5, 0.0))
    assert verify(dataset.root) == []
    columns = dataset.columns
    np.testing.assert_array_equal(columns["split"] == "test", columns["dataset"] == "b")
    assert {name: sum(by.values()) for name, by in dataset.manifest.counts.items()}["test"] == 16
    # image 4 of each class is in b, so the three slices of its patient are left out
    left = {f"a/{kind}/{kind[:2]}00{number}.jpg" for kind in CLASSES for number in (3, 4, 5)}
    there = {str(path.relative_to(two)) for path in two.glob("*/*/*") if path.suffix != ".csv"}
    assert set(columns["source"]) == there - left
    excluded = dataset.manifest.excluded
    assert excluded.samples == 12
    assert excluded.counts == {"a": dict.fromkeys(CLASSES, 3)}
    assert len(set(excluded.keys)) == 12
    assert not set(excluded.keys) & set(columns["key"])
    assert dataset.manifest.samples == len(dataset) == 52
    assert dataset.manifest.groups == len(set(columns["group"]))
    assert set(columns["group"][columns["split"] != "test"]).isdisjoint(columns["group"][columns["split"] == "test"])
    # three patients per class are left: two of them on one side
    assert dataset.manifest.split["off_by"] == dict.fromkeys(CLASSES, pytest.approx(1 / 6, abs=1e-6))


def test_published_folds_of_a_table_are_kept(two, tmp_path):
    """Dataset b has no folds: its images are distributed, except copies of images of a."""
    lines = ["file,kind,who,fold"]
    for kind in CLASSES:
        for number in range(12):
            fold = 5 if (kind, number) == ("glioma", 1) else 1 + number // 3  # by patient, with one error
            lines.append(f"{kind}/{kind[:2]}{number:03d}.jpg,{kind},{kind[:2]}{number // 3},{fold}")
    root = tmp_path / "two"
    shutil.copytree(two, root)
    (root / "a" / "all.csv").write_text("\n".join(lines) + "\n")
    table = {"file": "all.csv", "path": "file", "label": "kind", "patient": "who"}
    parts = [{"dataset": "a", "root": "a", "table": table}, {"dataset": "b", "root": "b"}]
    with pytest.raises(UserError, match="fold 5 keeps no image"):
        make(root, tmp_path / "no", parts, split="kfold", folds="published")
    (root / "a" / "all.csv").write_text("\n".join(lines).replace(",gl0,5", ",gl0,2") + "\n")
    dataset = make(root, tmp_path / "out", parts, split="kfold", folds="published")
    assert verify(dataset.root) == []
    assert dataset.manifest.split.items() >= {"folds": 4, "published": True, "moved": 1}.items()
    columns = dataset.columns
    of_patient = {
        patient: split for patient, split in zip(columns["patient"], columns["split"], strict=True) if patient
    }
    assert of_patient == {f"{kind[:2]}{number}": f"fold{number}" for kind in CLASSES for number in range(4)}
    mirrored = [source.endswith("mirrored.png") for source in columns["source"]]
    assert set(columns["split"][mirrored]) == {"fold1"}  # with image 4 of each class
    assert {name: sum(by.values()) for name, by in dataset.manifest.counts.items()} == {
        "fold0": 16, "fold1": 16, "fold2": 16, "fold3": 16
    }  # fmt: skip


def test_the_command_prints_the_split(two, tmp_path):
    recipe = tmp_path / "two.yaml"
    parts = [{"dataset": "a", "root": "a", **PATIENTS}, {"dataset": "b", "root": "b"}]
    recipe.write_text(json.dumps({"name": "two", "parts": parts}))
    words = ["build", "--recipe", str(recipe), "--source", str(two), "--workers", "1", "--allow-missing"]
    done = in_process("shard", *words, "--out", str(tmp_path / "lodo"), "--split", "leave-one-out", "--test-on", "b")
    assert "left out: 12 images that share a group with the test images" in done.out
    assert "off by" in done.out
    done = in_process("shard", *words, "--out", str(tmp_path / "k"), "--split", "kfold", "--folds", "3")
    assert "fold2" in done.out
    assert open_dataset(tmp_path / "k").folds == 3
    for more, says in (
        (["--split", "kfold"], "--folds and --split kfold belong together"),
        (["--folds", "3"], "--folds and --split kfold belong together"),
        (["--test-on", "b"], "--test-on and --split leave-one-out belong together"),
        (["--split", "kfold", "--folds", "3", "--fractions", "1,0,0"], "--fractions has no effect"),
        (["--split", "kfold", "--folds", "published"], "has 0 folds"),
    ):
        with pytest.raises(UserError, match=says):
            main([*words, "--out", str(tmp_path / "no"), *more])
