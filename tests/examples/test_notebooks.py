"""The notebooks of ``examples/`` run from beginning to end, and hold no outputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import ROOT, environment
from nbclient import NotebookClient
from pictures import draw

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel starts as a user's would, with this environment's python first and the checkout importable."""
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    for name, value in environment(PATH=f"{ROOT / '.venv/bin'}:{os.environ['PATH']}").items():
        monkeypatch.setenv(name, value)


def executed(name: str, folder: Path, **constants: str) -> list[Any]:
    """Run a notebook in ``folder`` with other constants; returns its cells."""
    book = nbformat.read(ROOT / "examples" / name, as_version=4)
    lines = "\n".join(f"{constant} = {value}" for constant, value in constants.items())
    place = next(index for index, cell in enumerate(book.cells) if cell.cell_type == "code")
    book.cells[place].source += f"\n{lines}"
    NotebookClient(book, timeout=400, resources={"metadata": {"path": str(folder)}}).execute()
    return book.cells


def text_of(cells: list[Any]) -> str:
    """What the cells printed."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_committed_without_outputs(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quickstart_trains_predicts_and_explains(tmp_path: Path) -> None:
    cells = executed("quickstart.ipynb", tmp_path, PATIENTS="32", EPOCHS="2")
    assert "accuracy" in text_of(cells)
    assert len(list((tmp_path / "quickstart" / "maps").iterdir())) == 4
    pictures = [output for output in cells[-1].outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4
    assert sum(f"{name}/" in text_of(cells[-3:]) for name in ("glioma", "meningioma", "notumor", "pituitary")) == 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_predictions_of_files_become_a_table_and_a_figure(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for number in range(3):
        draw(number).save(tmp_path / "scans" / f"{number}.png")
    (tmp_path / "scans" / "broken.png").write_bytes(b"nothing")
    cells = executed("predict.ipynb", tmp_path, MODEL=repr(str(trained_run)), IMAGES=repr("scans"))
    kinds = [kind for cell in cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert "text/html" in kinds  # the table
    assert "image/png" in kinds  # the figure
    assert "is not an image" in str(cells)
