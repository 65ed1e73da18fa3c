"""Every mistake in a recipe is reported; the recipes in shards/datasets/ parse and agree with the built-in one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from brain_dist.collection.recipe_keys import PatientTable
from brain_dist.collection.recipes import CLASSES, default_recipe, parse_recipe, read_recipe
from brain_dist.errors import UserError

DATASETS = Path(__file__).resolve().parents[2] / "shards" / "datasets"


@pytest.mark.parametrize("path", sorted(DATASETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_stored_recipes_parse(path):
    recipe = read_recipe(path)
    assert recipe.classes == (("notumor", "tumor") if path.stem in BINARY else CLASSES)
    assert recipe.parts
    assert all(text for text in (recipe.title, recipe.source, recipe.licence, recipe.citation))


def test_stored_recipes_are_the_expected_ones():
    names = {path.stem for path in DATASETS.glob("*.yaml")}
    assert names == {
        *PUBLISHED,
        *EXAMPLES,
        "cheng",
        "cheng_br35h",
        "cheng_br35h_lgg",
        "cheng_br35h_nickparvar",
        "br35h_no",
        "phantom",
    }


# published collection → number of images that its publisher states
PUBLISHED = {
    "nickparvar": 7023,
    "sartaj": 3264,
    "cheng_mat": 3064,
    "br35h": 3000,
    "brain_mri_253": 253,
    "brisc2025": 6000,
    "tcga_lgg": 1373,  # slices with a tumour
    "tcga_lgg_flair": 1373,
    "tcga_lgg_slices": 3929,
    "tcga_lgg_slices_flair": 3929,
}
EXAMPLES = {"folder_per_class", "csv_table", "dicom", "nifti"}
BINARY = {"br35h", "brain_mri_253", "tcga_lgg", "tcga_lgg_flair", "tcga_lgg_slices", "tcga_lgg_slices_flair"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_of_published_collections_expect_the_published_number_of_images(name):
    recipe = read_recipe(DATASETS / f"{name}.yaml")
    assert sum(sum(part.expected.values()) for part in recipe.parts) == PUBLISHED[name]
    assert all(part.dataset for part in recipe.parts)
    assert not re.search("not stated", recipe.source + recipe.citation)


def test_default_recipe_is_a_folder_per_class_or_a_phantom(tmp_path):
    assert default_recipe(tmp_path) == read_recipe(DATASETS / "folder_per_class.yaml")
    (tmp_path / "phantom.json").write_text("{}")
    assert default_recipe(tmp_path) == read_recipe(DATASETS / "phantom.yaml")


def test_default_recipe_uses_a_table_of_patients_with_the_right_columns(tmp_path):
    (tmp_path / "patients.csv").write_text("name,age\na,5\n")
    assert default_recipe(tmp_path).parts[0].patients is None
    (tmp_path / "patients.csv").write_text("id,age,patient\na,5,p\n", encoding="utf-8-sig")
    assert default_recipe(tmp_path).parts[0].patients == PatientTable("patients.csv", "id", "patient", partial=True)
    (tmp_path / "patients.csv").write_bytes(b"id,patient,na\xefve\n")
    with pytest.raises(UserError, match=r"table of patients .*patients\.csv cannot be read"):
        default_recipe(tmp_path)


MISTAKES = {
    "parts: []": "parts must be a list",
    "title: x": "parts must be a list",
    "- a": "must be a mapping",
    "parts: [{}]\nlicense: x": r":2: unknown key 'license' \(did you mean licence\?\); known keys: name, title",
    "parts: [{}]\nparts: [{}]": ":2: 'parts' is given twice",
    "parts:\n  - folders: {glioma: a, glioma: b}": "'glioma' is given twice",
    "parts: [{folder: {glioma: a}}]": r"parts\[0\]: unknown key 'folder'",
    "parts: [{folders: {gliom: a}}]": "folders: unknown key 'gliom'",
    "parts: [{folders: {no: a}}]": "folders: the key must be text, got False .put it in quotes",
    "parts: [{aliases: {notumor: [no]}}]": r"aliases: notumor\[0\] must be text, got False .put it in quotes",
    "parts: [{folders: {glioma: ../a}}]": "inside the source folder",
    "parts: [{root: /data}]": "inside the source folder",
    "parts: [{published: dev}]": "published must be one of train, val, test",
    "parts: [{expected: {glioma: many}}]": "expected: glioma must be an integer, got 'many'",
    "parts: [{expected: {glioma: -1}}]": "expected: glioma must be a number of images ≥ 0, got -1",
    "parts: [{expected: {glioma: true}}]": "expected: glioma must be an integer, got True",
    "parts: [{patients: {file: p.csv}}]": "patients: the key 'id' is missing",
    "parts: [{patients: {file: p.csv, id:, patient: p}}]": "patients: id must be text, got None$",
    "parts: [{patients: p.csv}]": "patients must be a mapping",
    "parts: [{patients: {file: p.csv, id: i, patient: p, partial: some}}]": "partial must be true or false, got 'some'",
    "parts: [{format: png}]": "format must be one of images, mat, dicom, nifti, got 'png'",
    "parts: [{format: [nifti]}]": "format must be one of",
    "parts: [{table: t.csv}]": "table must be a mapping",
    "parts: [{table: {file: t.csv, path: p}}]": "table: the key 'label' is missing",
    "parts: [{table: {file: t.csv, path: p, label: l, age: a}}]": "table: unknown key 'age'",
    "parts: [{table: {file: ../t.csv, path: p, label: l}}]": "inside the source folder",
    "parts: [{table: {file: t.csv, path: p, label: l}, folders: {glioma: a}}]": "folders cannot be used with this",
    "parts: [{table: {file: t, path: p, label: l, patient: w}, patients: {file: f, id: i, patient: w}}]": "patients",
    "parts: [{table: {file: t, path: p, label: l, split: s}, published: test}]": "published cannot be used with",
    "parts: [{table: {file: t.csv, path: p, label: l}, exclude: a}]": "exclude cannot be used with this table",
    "parts: [{aliases: {glioma: [x], pituitary: [x]}}]": "aliases: 'x' would name both glioma and pituitary; use it",
    "parts: [{window: file}]": "window: file is only for format: dicom",
    "parts: [{window: {percentiles: [5]}}]": r"window: must be \{percentiles: \[low, high\]\}",
    "parts: [{window: {percentiles: [99, 1]}}]": "window: must be",
    "parts: [{window: {center: 5}}]": "window: must be",
    "parts: [{window: {center: 5, width: 0}}]": "window: must be",
    "parts: [{window: {centre: 5, width: 9}}]": "unknown key 'centre'",
    "parts: [{window: {}}]": "window: must be",
    "parts: [{slices: {axis: 1}}]": "slices is only for format: nifti",
    "parts: [{format: nifti, slices: {axis: 3}}]": "axis must be 0 .sagittal., 1 .coronal. or 2 .axial., got 3",
    "parts: [{format: nifti, slices: {step: 0}}]": "step must be ≥ 1, got 0",
    "parts: [{format: nifti, slices: {from: 0.8, to: 0.2}}]": "from and to must be fractions of the axis",
    "parts: [{format: nifti, slices: {to: .nan}}]": "from and to must be fractions of the axis",
    "parts: [{folds: cvind.mat}]": "folds is only for format: mat",
    "parts: [{format: mat, folds: /cvind.mat}]": "inside the source folder",
    "parts: [{format: mat, folders: {glioma: a}}]": "folders cannot be used with format: mat",
    "parts: [{format: mat}]\nclasses: [notumor, tumor]": "mat needs the classes meningioma, glioma, pituitary",
    "parts: [{attributes_from_name: '(?P<a'}]": "is not a regular expression",
    "parts: [{attributes_from_name: '_(ax|co)_'}]": "names no attribute",
    "parts: [{masks: {lesion: glioma}}]": "set folder, suffix, or both",
    "parts: [{masks: {suffix: _m, empty: notumor}}]": "empty needs lesion",
    "parts: [{masks: {suffix: _m, lesion: gliom}}]": r"masks: unknown key 'gliom' \(did you mean glioma",
    "parts: [{masks: {folder: ../m}}]": "inside the source folder",
    "parts: [{masks: {suffix: _m}, format: nifti}]": "masks is only for format: images",
    "parts: [{masks: {suffix: _m, lesion: glioma}, folders: {glioma: g}}]": "folders cannot be used with masks that",
    "parts: [{boxes: {file: b.csv, id: id}}]": "boxes: the key 'center_x' is missing",
    "parts: [{channel: -1}]": "channel must be ≥ 0, got -1",
    "parts: [{channel: 1, format: dicom}]": "channel is only for format: images",
    "parts: [{dataset: a.b}]": "dataset is used in file names",
    "parts: [{}]\nname: a b": "name is used in file names",
    "parts: [{}]\nclasses: [a, a]": "different names",
    "parts: [{}]\nclasses: [a, 1]": r"classes\[1\] must be text, got 1",
    "parts: {}": "parts must be a list, got",
    "? [a]\n: b": "not valid YAML",
    "parts: [": "not valid YAML",
    "parts: [{}]\ntitle: 5": "title must be text, got 5",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_reported_with_the_file_and_the_key(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=MISTAKES[text]) as error:
        read_recipe(path)
    assert str(path) in str(error.value)


def test_unreadable_recipe(tmp_path):
    with pytest.raises(UserError, match=r"absent\.yaml does not exist; give a file, or one of br35h, .*sartaj"):
        read_recipe(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"title: caf\xe9")
    with pytest.raises(UserError, match=r"latin\.yaml cannot be read"):
        read_recipe(tmp_path / "latin.yaml")


def test_a_class_has_one_folder_or_several():
    content = yaml.safe_load("{classes: [a, b], parts: [{folders: {a: one, b: [two, three]}}]}")
    assert parse_recipe(content, "it").parts[0].folders == {"a": ["one"], "b": ["two", "three"]}


def test_the_manifest_stores_the_keys_of_the_yaml_with_their_defaults():
    window, slices = {"center": 0, "width": 9}, {"from": 0.5, "step": 2}
    content = {"name": "it", "parts": [{"format": "nifti", "window": window, "slices": slices}]}
    resolved = parse_recipe(content, "it").as_dict()
    part = resolved["parts"][0]
    assert part["window"] == window
    assert part["slices"] == {"axis": 2, "from": 0.5, "to": 1.0, "step": 2}
    assert (part["root"], part["table"], part["folders"]) == (".", None, {})
    table = {"file": "t.csv", "path": "p", "label": "l"}
    assert parse_recipe({"parts": [{"table": table}]}, "it").as_dict()["parts"][0]["table"] == table
    assert parse_recipe({**resolved, "classes": list(resolved["classes"])}, "it").as_dict() == resolved
