"""Every test that docs/faults.md names exists."""

from __future__ import annotations

import ast
import re

from helpers import ROOT


def test_every_test_named_in_docs_exists() -> None:
    names = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "faults.md").read_text())
    assert len(names) > 50
    defined = {
        path: {
            node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)
        }
        for path, _ in names
    }
    assert [f"{path}::{name}" for path, name in names if name not in defined[path]] == []
