"""Which files a recipe finds, with which key, class and patient; errors of folders and tables that do not fit."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pictures import draw

from brain_dist.collection.discovery import find_records
from brain_dist.collection.recipes import default_recipe, parse_recipe, read_recipe
from brain_dist.collection.records import sample_keys
from brain_dist.common.text import printable
from brain_dist.errors import UserError


def write_images(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(len(name)).save(path, "PNG")


def find(root, part=None, **top):
    return find_records(parse_recipe({"parts": [part or {}], **top}, "the recipe"), root)


def test_class_folders_are_found_by_common_spellings(tmp_path):
    root = tmp_path / "set"
    write_images(
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
    write_images(tmp_path, "Training/glioma/a.png", "Testing/glioma/a.png", "valid/notumor/b.png")
    records, _ = find(tmp_path)
    assert {record.path: record.published for record in records} == {
        "Training/glioma/a.png": "train", "Testing/glioma/a.png": "test", "valid/notumor/b.png": "val"
    }  # fmt: skip


def test_custom_classes_aliases_and_ignored_folders(tmp_path):
    write_images(tmp_path, "yes/a.png", "no/b.png", "masks/a.png")
    part = {"aliases": {"tumour": ["yes"]}, "ignore": ["masks"]}
    records, _ = find(tmp_path, part, classes=["no", "tumour"])
    assert [(record.path, record.label) for record in records] == [("no/b.png", 0), ("yes/a.png", 1)]


def test_parts_of_a_recipe(tmp_path):
    write_images(tmp_path, "one/G/a.png", "one/M/b.png", "one/M2/c.png", "two/notumor/a.png")
    parts = [
        {
            "dataset": "one",
            "root": "one",
            "folders": {"glioma": "G", "meningioma": ["M", "M2"]},
            "expected": {"glioma": 3},
        },
        {"dataset": "two", "root": "two", "published": "test", "expected": {"notumor": 0}},
    ]
    records, warnings = find_records(parse_recipe({"parts": parts}, "it"), tmp_path)
    assert [(record.key, record.label, record.published) for record in records] == [
        ("one-G-a", 0, None), ("one-M-b", 1, None), ("one-M2-c", 1, None), ("two-notumor-a", 2, "test")
    ]  # fmt: skip
    assert warnings == [
        "one: glioma has 1 images, the recipe expects 3", "two test: notumor has 1 images, the recipe expects 0"
    ]  # fmt: skip


def test_folders_yes_and_no_need_two_classes(tmp_path):
    write_images(tmp_path, "no/b.png")
    assert [record.label for record in find(tmp_path)[0]] == [2]
    write_images(tmp_path, "yes/a.png")
    with pytest.raises(UserError, match=r"folder yes is not one of the classes .*\[notumor, tumor\].*br35h\.yaml"):
        find(tmp_path)
    records, _ = find(tmp_path, classes=["notumor", "tumor"])
    assert [(record.path, record.label) for record in records] == [("no/b.png", 0), ("yes/a.png", 1)]


BRISC = "classification_task/{0}/{1}/brisc2025_{0}_00001_{2}_t1.jpg"
PUBLISHED = {  # recipe → its publisher's files, each with class, split and attributes; None: not read
    "sartaj": {
        "Training/no_tumor/image (1).jpg": ("notumor", "train", {}),
        "Training/pituitary_tumor/p (1).jpg": ("pituitary", "train", {}),
        "Training/glioma_tumor/gg (1).jpg": ("glioma", "train", {}),
        "Training/meningioma_tumor/m (1).jpg": ("meningioma", "train", {}),
        "Testing/no_tumor/image(1).jpg": ("notumor", "test", {}),
        "Testing/pituitary_tumor/image(1).jpg": ("pituitary", "test", {}),
        "Testing/glioma_tumor/image(1).jpg": ("glioma", "test", {}),
        "Testing/meningioma_tumor/image(1).jpg": ("meningioma", "test", {}),
    },
    "br35h": {
        "yes/y0.jpg": ("tumor", None, {}),
        "no/no0.jpg": ("notumor", None, {}),
        "pred/pred0.jpg": None,
        "Br35H-Mask-RCNN/TRAIN/y0.jpg": None,
    },
    "brain_mri_253": {
        "yes/Y1.jpg": ("tumor", None, {}),
        "no/1 no.jpeg": ("notumor", None, {}),
        "brain_tumor_dataset/yes/Y1.jpg": None,
    },
    "brisc2025": {
        **{BRISC.format("train", name, "xx_ax"): (kind, "train", {"plane": "ax"}) for name, kind in (
            ("glioma", "glioma"), ("meningioma", "meningioma"), ("no_tumor", "notumor"), ("pituitary", "pituitary")
        )},
        **{BRISC.format("test", name, "xx_sa"): (kind, "test", {"plane": "sa"}) for name, kind in (
            ("glioma", "glioma"), ("meningioma", "meningioma"), ("no_tumor", "notumor"), ("pituitary", "pituitary")
        )},
        "segmentation_task/train/images/brisc2025_train_00001_gl_ax_t1.jpg": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts_are_read(tmp_path, name):
    write_images(tmp_path, *PUBLISHED[name])
    recipe = read_recipe(Path(__file__).resolve().parents[2] / "shards" / "datasets" / f"{name}.yaml")
    records, warnings = find_records(recipe, tmp_path)
    assert {record.path: (recipe.classes[record.label], record.published, record.attributes) for record in records} == {
        path: expected for path, expected in PUBLISHED[name].items() if expected
    }
    assert {record.dataset for record in records} == {name}
    assert all("the recipe expects" in warning for warning in warnings)


FOLDER_ERRORS = {
    "unknown folder": (("lesion/a.png",), {}, "the folder lesion is not one of the classes"),
    "no class folders": ((), {}, "has no class folders"),
    "missing folder": (("glioma/a.png",), {"folders": {"pituitary": "P"}}, "folder P for class pituitary is missing"),
    "missing root": (("glioma/a.png",), {"root": "deep"}, "the folder deep is missing"),
    "one file twice": (
        ("glioma/a.png",), {"folders": {"glioma": "glioma", "notumor": "glioma"}}, "glioma/a.png belongs to two parts"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDER_ERRORS)
def test_folders_that_do_not_fit(tmp_path, case):
    files, part, message = FOLDER_ERRORS[case]
    write_images(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        find(tmp_path, part)


def test_source_and_class_folders_without_images(tmp_path):
    with pytest.raises(UserError, match="absent is not a folder"):
        find(tmp_path / "absent")
    write_images(tmp_path, "glioma/a.png")
    (tmp_path / "notumor").mkdir()
    with pytest.raises(UserError, match="the folder notumor contains no images; add some"):
        find(tmp_path)
    (tmp_path / "notumor" / "scan.dcm").write_bytes(b"x")
    with pytest.raises(UserError, match=r"contains no images \(1 other files, such as notumor/scan.dcm\).*`format`"):
        find(tmp_path)
    with pytest.raises(UserError, match=r"glioma contains no .nii or .nii.gz files \(1 other"):
        find(tmp_path, {"format": "nifti"})
    write_images(tmp_path, "notumor/b.png")
    assert find(tmp_path)[1] == ["notumor: 1 files are not images by their names, such as notumor/scan.dcm"]


def test_linked_folders_are_followed_once(tmp_path):
    write_images(tmp_path / "elsewhere", "a.png")
    root = tmp_path / "set"
    write_images(root, "glioma/b.png")
    (root / "glioma" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "glioma" / "loop").symlink_to(root / "glioma")
    (root / "itself").symlink_to(root / "itself")
    assert [record.path for record in find(root)[0]] == ["glioma/b.png", "glioma/more/a.png"]


def test_patients_come_from_the_table(tmp_path):
    write_images(tmp_path, "glioma/1.png", "glioma/2.png", "notumor/3.png")
    part = {"patients": {"file": "t.csv", "id": "image", "patient": "who"}}

    def table(text):
        (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig")  # as Excel writes it

    table("image,who\n1,A\nglioma/2.png,B\n3.png,\n9,C\n")
    assert [record.patient for record in find(tmp_path, part)[0]] == ["A", "B", None]
    table("image,who\n1,A\n2,B\n")
    with pytest.raises(UserError, match=r"notumor/3.png has no row in t.csv \(column image\)"):
        find(tmp_path, part)
    partial = {"patients": {**part["patients"], "partial": True}}
    assert [record.patient for record in find(tmp_path, partial)[0]] == ["A", "B", None]
    table("image,who\n1,A\nglioma/1.png,C\n2,B\n3,B\n")
    assert [record.patient for record in find(tmp_path, part)[0]] == ["C", "B", "B"]  # the path has precedence
    table("image,who\n1,A\n1,B\n")
    with pytest.raises(UserError, match="line 3: 1 already belongs to another patient"):
        find(tmp_path, part)
    table("image,patient\n1,A\n")
    with pytest.raises(UserError, match="no column who"):
        find(tmp_path, part)
    (tmp_path / "t.csv").unlink()
    with pytest.raises(UserError, match=r"table of patients .* cannot be read"):
        find(tmp_path, part)


def test_default_recipe_allows_images_without_a_row_in_the_table_of_patients(tmp_path):
    write_images(tmp_path, "glioma/1.png", "glioma/2.png", "notumor/3.png")
    (tmp_path / "patients.csv").write_text("id,class,patient\n1,glioma,A\n3,notumor,B\n")
    records, warnings = find_records(default_recipe(tmp_path), tmp_path)
    assert [record.patient for record in records] == ["A", None, "B"]
    assert warnings == []


TABLE = {"table": {"file": "t.csv", "path": "path", "label": "label", "patient": "who", "split": "part"}}


def test_a_table_of_files_gives_class_patient_split_and_attributes(tmp_path):
    write_images(tmp_path, "deep/er/1.png", "2.jpg", "no suffix", "not listed.png")
    rows = [
        "who,path,label,part,age,",
        "A,deep/er/1.png,Glioma Tumor,Training,51,x",
        ",./2.jpg,kind 7, val ,,",
        "B,no suffix,notumor,,7 ,",
        ",,,,,",
    ]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    records, warnings = find(tmp_path, {**TABLE, "dataset": "d", "aliases": {"pituitary": ["kind 7"]}})
    assert [(record.path, record.label, record.patient, record.published) for record in records] == [
        ("2.jpg", 3, None, "val"), ("deep/er/1.png", 0, "A", "train"), ("no suffix", 2, "B", None)
    ]  # fmt: skip
    assert [record.attributes for record in records] == [{"age": ""}, {"age": "51"}, {"age": "7"}]
    assert [record.key for record in records][:2] == ["d-2", "d-deep-er-1"]
    assert warnings == []


def test_a_table_of_files_below_a_root_with_a_table_of_patients(tmp_path):
    write_images(tmp_path, "set/images/1.png", "set/images/2.png")
    (tmp_path / "set" / "t.csv").write_text("path,label\nimages/1.png,glioma\nimages/2.png,notumor\n")
    (tmp_path / "set" / "p.csv").write_text("id,who\n1,A\n2,B\n")
    part = {
        "root": "set",
        "published": "test",
        "table": {"file": "t.csv", "path": "path", "label": "label"},
        "patients": {"file": "p.csv", "id": "id", "patient": "who"},
    }
    records, _ = find(tmp_path, part)
    assert [(record.path, record.patient, record.published) for record in records] == [
        ("set/images/1.png", "A", "test"), ("set/images/2.png", "B", "test")
    ]  # fmt: skip


TABLE_ERRORS = {
    "missing file": ("3.png,glioma,A,train", "line 3: the file '3.png' is missing"),
    "no file": (",glioma,A,train", "line 3: the file '.' is missing"),
    "endless name": (f"{'n' * 300}.png,glioma,A,train", "line 3: the file 'nnn.*' is missing"),
    "a folder": ("glioma,glioma,A,train", "line 3: the file 'glioma' is missing"),
    "up and down": ("glioma/../glioma/./1.png,glioma,A,train", "leads out of"),
    "doubled path": ("glioma/./1.png,glioma,A,train", "line 3: 'glioma/1.png' is listed a second time"),
    "unknown label": ("glioma/2.png,lesion,A,train", "line 3: 'lesion' is not one of the classes glioma, .*`aliases`"),
    "empty label": ("glioma/2.png,,A,train", "line 3: '' is not one of the classes"),
    "any tumour": ("glioma/2.png,yes,A,train", r"line 3: 'yes' is not one .*\[notumor, tumor\], such as .*br35h"),
    "unknown split": ("glioma/2.png,glioma,A,fold1", "line 3: 'fold1' is not a split; write train, val or test"),
    "upwards": ("../set/glioma/2.png,glioma,A,train", r"line 3: '../set/glioma/2.png' leads out of"),
    "absolute": ("/etc/passwd,glioma,A,train", "line 3: '/etc/passwd' leads out of"),
    "short row": ("glioma/2.png,glioma", "line 3: 2 cells for 4 columns"),
    "long row": ("glioma/2.png,glioma,A,train,x", "line 3: 5 cells for 4 columns"),
}


@pytest.mark.parametrize("case", TABLE_ERRORS)
def test_mistakes_in_a_table_of_files_are_reported_with_the_line(tmp_path, case):
    row, message = TABLE_ERRORS[case]
    write_images(tmp_path / "set", "glioma/1.png", "glioma/2.png")
    (tmp_path / "set" / "t.csv").write_text(f"path,label,who,part\nglioma/1.png,glioma,A,train\n{row}\n")
    with pytest.raises(UserError, match=message) as error:
        find(tmp_path / "set", TABLE)
    assert "t.csv, line 3" in str(error.value)


def test_invalid_tables_of_files(tmp_path):
    write_images(tmp_path, "glioma/1.png")
    for text, message in (
        ("path,label\n", "t.csv has no column who, part; it has path, label"),
        ("path,label,who,part\n", "t.csv lists no files"),
        ("path,label,who,part,age,age\n", "line 1: two columns have the same name"),
        ("", "t.csv has no column path, label, who, part; it has none"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            find(tmp_path, TABLE)
    (tmp_path / "t.csv").write_bytes(b"path,label,who,part\nna\xefve,glioma,,\n")
    with pytest.raises(UserError, match=r"the table of files .*t\.csv cannot be read"):
        find(tmp_path, TABLE)
    (tmp_path / "t.csv").write_text("path,label,who,part\nglioma/1.png,glioma,A,\n")
    parts = [TABLE, {"folders": {"glioma": "glioma"}}]
    with pytest.raises(UserError, match=r"glioma/1\.png belongs to two parts"):
        find_records(parse_recipe({"parts": parts}, "it"), tmp_path)


def test_file_names_give_attributes_and_patients(tmp_path):
    write_images(tmp_path, "glioma/s01_ax_t1.png", "glioma/s02_co_t1.png", "notumor/other.png")
    part = {"attributes_from_name": r"(?P<patient>s\d+)_(?P<plane>ax|co|sa)(_(?P<none>x))?"}
    records, warnings = find(tmp_path, part)
    assert [(record.patient, record.attributes) for record in records] == [
        ("s01", {"plane": "ax"}), ("s02", {"plane": "co"}), (None, {})
    ]  # fmt: skip
    assert warnings == ["1 files do not match attributes_from_name, such as notumor/other.png"]
    (tmp_path / "p.csv").write_text("id,who\ns01_ax_t1,A\ns02_co_t1,\nother,B\n")
    records, _ = find(tmp_path, {**part, "patients": {"file": "p.csv", "id": "id", "patient": "who"}})
    assert [record.patient for record in records] == ["A", "s02", "B"]


def test_phantom_folder_needs_no_recipe(tmp_path):
    write_images(tmp_path, "glioma/ph1.png", "masks/ph1.png")
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
    write_images(tmp_path, "glioma/plain.jpg")
    for name in names:
        draw(1).save(tmp_path / "glioma" / os.fsdecode(name))
    records, _ = find(tmp_path, {"dataset": "set"})
    keys = [record.key for record in records]
    assert len(set(keys)) == 7
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,95}", key) for key in keys)
    assert sum(key.startswith("set-glioma-plain-") for key in keys) == 2  # .jpg and .png of one name
    assert "glioma/not utf \\xff\\xfe.png" in {printable(record.path) for record in records}
    assert "glioma/new\\nline.png" in {printable(record.path) for record in records}


# Linux file names are bytes; Python represents those that are not UTF-8 with surrogates
NAMES = st.binary(min_size=1, max_size=120).filter(lambda name: not {b"/", b"\0"} & {bytes([b]) for b in name})
PATHS = st.lists(NAMES.map(os.fsdecode), min_size=1, max_size=3).map("/".join)


FRAMES = st.sampled_from([(None,), (1, 2), (7, 10_007)])


@settings(deadline=None)
@given(st.dictionaries(PATHS, st.tuples(st.sampled_from(["a", "b"]), FRAMES), min_size=1))
@example(dict.fromkeys(("a/b-c.png", "a/b/c.png", "b-c", "a-b-c.png"), ("a", (None,))))
@example({"s.nii": ("a", (1, 2)), "s-0001.nii": ("a", (None,)), "s.nii.gz": ("a", (1, 2)), "s.nii#1": ("a", (None,))})
def test_keys_are_unique_and_safe_and_do_not_depend_on_the_order(files):
    samples = [(dataset, path, frame) for path, (dataset, frames) in sorted(files.items()) for frame in frames]
    keys = sample_keys(samples)
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,95}", key) for key in keys)
    assert sample_keys(samples[::-1]) == keys[::-1]
