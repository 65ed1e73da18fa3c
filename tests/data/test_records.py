"""Which files a recipe finds, under which key, class and patient; and what it says of folders that do not fit."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pictures import draw

from brain_dist.data.recipes import default_recipe, parse_recipe
from brain_dist.data.records import find_records, printable, sample_keys
from brain_dist.errors import UserError


def fill(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(len(name)).save(path, "PNG")


def find(root, part=None, **top):
    return find_records(parse_recipe({"parts": [part or {}], **top}, "the recipe"), root)


def test_class_folders_are_found_by_common_spellings(tmp_path):
    root = tmp_path / "set"
    fill(
        root,
        "Glioma Tumor/a.png",
        "NO_TUMOR/b.png",
        "meningioma/deep/er/c.PNG",
        "pituitary-tumour/d.jpg",
        ".cache/x.png",
    )
    records, warnings = find(root)
    assert warnings == []
    assert [(record.path, record.label) for record in records] == [
        ("Glioma Tumor/a.png", 0), ("NO_TUMOR/b.png", 2), ("meningioma/deep/er/c.PNG", 1), ("pituitary-tumour/d.jpg", 3)
    ]  # fmt: skip
    assert {record.dataset for record in records} == {"set"}
    assert {record.published for record in records} == {None}


def test_published_splits_are_found(tmp_path):
    fill(tmp_path, "Training/glioma/a.png", "Testing/glioma/a.png", "valid/notumor/b.png")
    records, _ = find(tmp_path)
    assert {record.path: record.published for record in records} == {
        "Training/glioma/a.png": "train", "Testing/glioma/a.png": "test", "valid/notumor/b.png": "val"
    }  # fmt: skip


def test_own_classes_aliases_and_ignored_folders(tmp_path):
    fill(tmp_path, "yes/a.png", "no/b.png", "masks/a.png")
    part = {"aliases": {"tumour": ["yes"]}, "ignore": ["masks"]}
    records, _ = find(tmp_path, part, classes=["no", "tumour"])
    assert [(record.path, record.label) for record in records] == [("no/b.png", 0), ("yes/a.png", 1)]


def test_parts_of_a_recipe(tmp_path):
    fill(tmp_path, "one/G/a.png", "one/M/b.png", "one/M2/c.png", "two/notumor/a.png")
    parts = [
        {
            "dataset": "one",
            "root": "one",
            "folders": {"glioma": "G", "meningioma": ["M", "M2"]},
            "expected": {"glioma": 3},
        },
        {"dataset": "two", "root": "two", "published": "test"},
    ]
    records, warnings = find_records(parse_recipe({"parts": parts}, "it"), tmp_path)
    assert [(record.key, record.label, record.published) for record in records] == [
        ("one-G-a", 0, None), ("one-M-b", 1, None), ("one-M2-c", 1, None), ("two-notumor-a", 2, "test")
    ]  # fmt: skip
    assert warnings == ["one: glioma has 1 images, the recipe expects 3"]


FAULTS = {
    "unknown folder": (("lesion/a.png",), {}, "the folder lesion names none of the classes"),
    "no class folders": ((), {}, "has no class folders"),
    "missing folder": (("glioma/a.png",), {"folders": {"pituitary": "P"}}, "folder P for class pituitary is missing"),
    "missing root": (("glioma/a.png",), {"root": "deep"}, "the folder deep is missing"),
    "one file twice": (
        ("glioma/a.png",), {"folders": {"glioma": "glioma", "notumor": "glioma"}}, "glioma/a.png belongs to two parts"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_folders_that_do_not_fit(tmp_path, what):
    files, part, message = FAULTS[what]
    fill(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        find(tmp_path, part)


def test_source_and_class_folders_without_images(tmp_path):
    with pytest.raises(UserError, match="absent is no folder"):
        find(tmp_path / "absent")
    fill(tmp_path, "glioma/a.png")
    (tmp_path / "notumor").mkdir()
    with pytest.raises(UserError, match="class folder notumor holds no images; add some"):
        find(tmp_path)
    (tmp_path / "notumor" / "scan.dcm").write_bytes(b"x")
    with pytest.raises(UserError, match=r"notumor holds no images \(1 other files, such as notumor/scan.dcm\)"):
        find(tmp_path)
    fill(tmp_path, "notumor/b.png")
    assert find(tmp_path)[1] == ["notumor: 1 files are no images by their name, such as notumor/scan.dcm"]


def test_linked_folders_are_followed_once(tmp_path):
    fill(tmp_path / "elsewhere", "a.png")
    root = tmp_path / "set"
    fill(root, "glioma/b.png")
    (root / "glioma" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "glioma" / "loop").symlink_to(root / "glioma")
    assert [record.path for record in find(root)[0]] == ["glioma/b.png", "glioma/more/a.png"]


def test_patients_come_from_the_table(tmp_path):
    fill(tmp_path, "glioma/1.png", "glioma/2.png", "notumor/3.png")
    part = {"patients": {"file": "t.csv", "id": "image", "patient": "who"}}

    def table(text):
        (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig")  # as Excel writes it

    table("image,who\n1,A\nglioma/2.png,B\n3.png,\n9,C\n")
    assert [record.patient for record in find(tmp_path, part)[0]] == ["A", "B", None]
    table("image,who\n1,A\n2,B\n")
    with pytest.raises(UserError, match=r"notumor/3.png has no row in t.csv \(column image\)"):
        find(tmp_path, part)
    table("image,who\n1,A\n1,B\n")
    with pytest.raises(UserError, match="line 3: 1 already belongs to another patient"):
        find(tmp_path, part)
    table("image,patient\n1,A\n")
    with pytest.raises(UserError, match="no column who"):
        find(tmp_path, part)
    (tmp_path / "t.csv").unlink()
    with pytest.raises(UserError, match=r"table of patients .* cannot be read"):
        find(tmp_path, part)


def test_phantom_folder_needs_no_recipe(tmp_path):
    fill(tmp_path, "glioma/ph1.png", "masks/ph1.png")
    (tmp_path / "patients.csv").write_text("id,class,patient\nph1,glioma,p7\n")
    (tmp_path / "phantom.json").write_text("{}")
    records, _ = find_records(default_recipe(tmp_path), tmp_path)
    assert [(record.key, record.patient) for record in records] == [("phantom-glioma-ph1", "p7")]


def test_any_file_name_gets_a_safe_key_and_a_readable_source(tmp_path):
    names = [
        b"plain.png",
        b"with space.png",
        b"new\nline.png",
        b"not utf \xff\xfe.png",
        b"two.dots.png",
        "ünï.png".encode(),
    ]
    fill(tmp_path, "glioma/plain.jpg")
    for name in names:
        draw(1).save(tmp_path / "glioma" / os.fsdecode(name))
    records, _ = find(tmp_path, {"dataset": "set"})
    keys = [record.key for record in records]
    assert len(set(keys)) == 7
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,95}", key) for key in keys)
    assert sum(key.startswith("set-glioma-plain-") for key in keys) == 2  # .jpg and .png of one name
    assert "glioma/not utf \\xff\\xfe.png" in {printable(record.path) for record in records}
    assert "glioma/new\\nline.png" in {printable(record.path) for record in records}


# Linux file names are bytes; Python shows those that are no UTF-8 as surrogates
NAMES = st.binary(min_size=1, max_size=120).filter(lambda name: not {b"/", b"\0"} & {bytes([b]) for b in name})
PATHS = st.lists(NAMES.map(os.fsdecode), min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(PATHS, st.sampled_from(["a", "b"]), min_size=1))
@example({"a/b-c.png": "a", "a/b/c.png": "a", "b-c": "a", "a-b-c.png": "a"})
def test_keys_are_unique_and_safe_and_do_not_depend_on_the_order(files):
    listed = sorted((dataset, path) for path, dataset in files.items())
    keys = sample_keys(listed)
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,95}", key) for key in keys)
    assert sample_keys(listed[::-1]) == keys[::-1]
