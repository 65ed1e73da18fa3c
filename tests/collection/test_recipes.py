"""Every mistake in a recipe is named; the recipes at hand parse and agree with the built-in one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from brain_dist.collection.recipes import CLASSES, default_recipe, parse_recipe, read_recipe
from brain_dist.errors import UserError

DATASETS = Path(__file__).resolve().parents[2] / "shards" / "datasets"


@pytest.mark.parametrize("path", sorted(DATASETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_at_hand_parse(path):
    recipe = read_recipe(path)
    assert recipe.classes == (("notumor", "tumor") if path.stem in BINARY else CLASSES)
    assert recipe.parts
    assert all(text for text in (recipe.title, recipe.source, recipe.licence, recipe.citation))


def test_expected_recipes_are_at_hand():
    names = {path.stem for path in DATASETS.glob("*.yaml")}
    assert names == {*PUBLISHED, *EXAMPLES, "cheng", "cheng_br35h", "cheng_br35h_nickparvar", "br35h_no", "phantom"}


# published sets: images in all, as their publishers count them
PUBLISHED = {
    "nickparvar": 7023,
    "sartaj": 3264,
    "cheng_mat": 3064,
    "br35h": 3000,
    "brain_mri_253": 253,
    "brisc2025": 6000,
}
EXAMPLES = {"folder_per_class", "csv_table", "dicom", "nifti"}
BINARY = {"br35h", "brain_mri_253"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_of_published_sets_expect_what_is_published(name):
    recipe = read_recipe(DATASETS / f"{name}.yaml")
    assert sum(sum(part.expected.values()) for part in recipe.parts) == PUBLISHED[name]
    assert all(part.dataset for part in recipe.parts)
    assert not re.search("not stated", recipe.source + recipe.citation)


def test_without_a_recipe_it_is_a_folder_per_class_or_a_phantom(tmp_path):
    assert default_recipe(tmp_path) == read_recipe(DATASETS / "folder_per_class.yaml")
    (tmp_path / "phantom.json").write_text("{}")
    assert default_recipe(tmp_path) == read_recipe(DATASETS / "phantom.yaml")


def test_without_a_recipe_a_table_of_patients_is_used_if_it_is_one(tmp_path):
    (tmp_path / "patients.csv").write_text("name,age\na,5\n")
    assert default_recipe(tmp_path).parts[0].patients is None
    (tmp_path / "patients.csv").write_text("id,age,patient\na,5,p\n", encoding="utf-8-sig")
    columns = {"file": "patients.csv", "id": "id", "patient": "patient", "partial": True}
    assert default_recipe(tmp_path).parts[0].patients == columns
    (tmp_path / "patients.csv").write_bytes(b"id,patient,na\xefve\n")
    with pytest.raises(UserError, match=r"table of patients .*patients\.csv cannot be read"):
        default_recipe(tmp_path)


MISTAKES = {
    "parts: []": "parts must be a list",
    "title: x": "parts must be a list",
    "- a": "must be a mapping",
    "parts: [{}]\nlicense: x": "unknown key 'license'; known are .*licence",
    "parts: [{}]\nparts: [{}]": "line 2: 'parts' is given twice",
    "parts:\n  - folders: {glioma: a, glioma: b}": "'glioma' is given twice",
    "parts: [{folder: {glioma: a}}]": r"parts\[0\]: unknown key 'folder'",
    "parts: [{folders: {gliom: a}}]": "folders: unknown key 'gliom'",
    "parts: [{folders: {no: a}}]": "put the word in quotes",
    "parts: [{aliases: {notumor: [no]}}]": "aliases: notumor must be text, got False",
    "parts: [{folders: {glioma: ../a}}]": "inside the source folder",
    "parts: [{root: /data}]": "inside the source folder",
    "parts: [{published: dev}]": "published must be one of train, val, test",
    "parts: [{expected: {glioma: many}}]": "must be a count",
    "parts: [{expected: {glioma: -1}}]": "must be a count",
    "parts: [{patients: {file: p.csv}}]": "patients: id must be text",
    "parts: [{patients: p.csv}]": "patients must be a mapping",
    "parts: [{patients: {file: p.csv, id: i, patient: p, partial: some}}]": "partial must be true or false, got 'some'",
    "parts: [{format: png}]": "format must be one of images, mat, dicom, nifti, got 'png'",
    "parts: [{format: [nifti]}]": "format must be one of",
    "parts: [{table: t.csv}]": "table must be a mapping",
    "parts: [{table: {file: t.csv, path: p}}]": "table: label must be text",
    "parts: [{table: {file: t.csv, path: p, label: l, age: a}}]": "table: unknown key 'age'",
    "parts: [{table: {file: ../t.csv, path: p, label: l}}]": "inside the source folder",
    "parts: [{table: {file: t.csv, path: p, label: l}, folders: {glioma: a}}]": "folders does not go with this table",
    "parts: [{table: {file: t, path: p, label: l, patient: w}, patients: {file: f, id: i, patient: w}}]": "patients do",
    "parts: [{table: {file: t, path: p, label: l, split: s}, published: test}]": "published does not go with",
    "parts: [{window: file}]": "window: file goes with format: dicom only",
    "parts: [{window: {percentiles: [5]}}]": r"window must be \{percentiles: \[low, high\]\}",
    "parts: [{window: {percentiles: [99, 1]}}]": "window must be",
    "parts: [{window: {center: 5}}]": "window must be",
    "parts: [{window: {center: 5, width: 0}}]": "window must be",
    "parts: [{window: {centre: 5, width: 9}}]": "unknown key 'centre'",
    "parts: [{window: {}}]": "window must be",
    "parts: [{slices: {axis: 1}}]": "slices goes with format: nifti only",
    "parts: [{format: nifti, slices: {axis: 3}}]": "axis must be 0 .sagittal., 1 .coronal. or 2 .axial., got 3",
    "parts: [{format: nifti, slices: {step: 0}}]": "step must be a number of slices, 1 or more",
    "parts: [{format: nifti, slices: {from: 0.8, to: 0.2}}]": "from and to must be shares of the axis",
    "parts: [{format: nifti, slices: {to: .nan}}]": "from and to must be shares of the axis",
    "parts: [{folds: cvind.mat}]": "folds goes with format: mat only",
    "parts: [{format: mat, folds: /cvind.mat}]": "inside the source folder",
    "parts: [{format: mat, folders: {glioma: a}}]": "folders does not go with format: mat",
    "parts: [{format: mat}]\nclasses: [notumor, tumor]": "mat needs the classes glioma, meningioma and",
    "parts: [{attributes_from_name: '(?P<a'}]": "no regular expression",
    "parts: [{attributes_from_name: '_(ax|co)_'}]": "names no attribute",
    "parts: [{dataset: a.b}]": "dataset becomes part of file names",
    "parts: [{}]\nname: a b": "name becomes part of file names",
    "parts: [{}]\nclasses: [a, a]": "different names",
    "parts: [{}]\nclasses: [a, 1]": "classes must be text, got 1",
    "parts: [": "not valid YAML",
    "parts: [{}]\ntitle: 5": "title must be text, got 5",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_named(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=MISTAKES[text]) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)


def test_recipe_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"absent\.yaml cannot be read"):
        read_recipe(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"title: caf\xe9")
    with pytest.raises(UserError, match=r"latin\.yaml cannot be read"):
        read_recipe(tmp_path / "latin.yaml")


def test_a_folder_or_several():
    content = yaml.safe_load("{classes: [a, b], parts: [{folders: {a: one, b: [two, three]}}]}")
    assert parse_recipe(content, "it").parts[0].folders == {"a": ["one"], "b": ["two", "three"]}
