"""Imports go downward only: between packages, and between the modules of one."""

from __future__ import annotations

from import_graph import PACKAGE, imports, packages, upward


def test_no_import_goes_upward() -> None:
    assert upward() == []


def test_every_package_is_in_the_table() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(packages())


def test_imports_inside_functions_are_seen() -> None:
    assert "brain_dist.training.start" in imports()["brain_dist.train"]
