"""Every mistake in a recipe is named; the recipes at hand parse and agree with the built-in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from brain_dist.data.recipes import CLASSES, default_recipe, parse_recipe, read_recipe
from brain_dist.errors import UserError

DATASETS = Path(__file__).resolve().parents[2] / "shards" / "datasets"


@pytest.mark.parametrize("path", sorted(DATASETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_at_hand_parse(path):
    recipe = read_recipe(path)
    assert recipe.classes == CLASSES
    assert recipe.parts
    assert all(text for text in (recipe.title, recipe.source, recipe.licence, recipe.citation))


def test_expected_recipes_are_at_hand():
    names = {path.stem for path in DATASETS.glob("*.yaml")}
    assert names == {"br35h_no", "cheng", "cheng_br35h", "folder_per_class", "nickparvar", "phantom"}


def test_without_a_recipe_it_is_a_folder_per_class_or_a_phantom(tmp_path):
    assert default_recipe(tmp_path) == read_recipe(DATASETS / "folder_per_class.yaml")
    (tmp_path / "phantom.json").write_text("{}")
    assert default_recipe(tmp_path) == read_recipe(DATASETS / "phantom.yaml")


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
