"""The pages of the project as they are written."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_no_page_has_the_marks_of_an_unfinished_merge() -> None:
    pages = [page for folder in (".", "docs", "results", "shards") for page in (ROOT / folder).glob("*.md")]
    assert len(pages) > 20
    marks = ("<<<<<<< ", "=======", ">>>>>>> ")
    for page in pages:
        marked = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith(marks)]
        assert not marked, page
