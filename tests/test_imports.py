"""Packages and modules import only in the order of CONTRIBUTING.md's table."""

from __future__ import annotations

from import_graph import PACKAGE, imports, packages, violations


def test_imports_follow_the_order_of_packages() -> None:
    assert violations() == []


def test_every_package_is_in_the_table() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(packages())


def test_imports_inside_functions_are_included() -> None:
    assert "brain_dist.training.start" in imports()["brain_dist.train"]
