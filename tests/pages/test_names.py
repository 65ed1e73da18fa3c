"""Names from data (classes, patients, paths) are shown literally: no markup on the terminal, no formulas in figures."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from brain_dist.common.progress import show_progress
from brain_dist.judging.evaluation import print_metrics
from brain_dist.judging.metrics import evaluate_predictions
from brain_dist.pages.figures import figure_svg, literal, new_figure
from brain_dist.reporting import plots
from brain_dist.scalability.predict_report import _table
from brain_dist.tracking.progress import Progress

NAME = "[/x] [red]"  # as markup: an error, and a colour


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_class_names_in_the_printed_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = evaluate_predictions(np.array([0, 1]), np.eye(2), (NAME, "b"))
    print_metrics(metrics, f"runs/{NAME}")
    printed = capsys.readouterr().out
    assert f" {NAME} │" in printed
    assert f"runs/{NAME}" in printed


def test_stages_of_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with show_progress() as progress:
        progress(f"decoding {NAME}", 1, 2)
    assert f"decoding {NAME}" in terminal.getvalue()


def test_lines_above_the_bar_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = Progress(first_step=0, total_steps=2)
    bar.print_line(f"runs/{NAME}")
    bar.close()
    assert f"runs/{NAME}" in terminal.getvalue()


def test_titles_of_tables(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=200).print(_table(NAME, []))
    assert NAME in capsys.readouterr().out


@pytest.mark.parametrize("name", ["$x_{$", "a^b$ and $c", r"\frac $ $"])
def test_figures_have_no_formulas(name: str) -> None:
    figure = new_figure(3, 2)
    figure.subplots().set_title(literal(name))
    assert f">{name}<" in figure_svg(figure, "x", "a figure")
    label, prob = np.array([0, 1, 0, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    assert f">{name}  1.000<" in plots.roc(label, prob, [name, "other"], [1.0, 1.0])
