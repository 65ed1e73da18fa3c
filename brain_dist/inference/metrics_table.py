"""Print the metrics of an evaluation as a table."""

from __future__ import annotations

from typing import Any

_CLASS_METRICS = ("sensitivity", "specificity", "precision", "f1")


def print_metrics(metrics: dict[str, Any], title: str) -> None:
    """Print what :func:`brain_dist.judging.metrics.evaluate_predictions` returns."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("class", "images", "sensitivity", "specificity", "precision", "F1", "AUC"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, values in metrics["per_class"].items():
        percentages = [_percent(values[metric]) for metric in _CLASS_METRICS]
        table.add_row(name, str(values["n"]), *percentages, _decimal(values["auc"]))
    percentages = [_percent(metrics[f"{metric}_macro"]) for metric in _CLASS_METRICS]
    table.add_row("macro", str(metrics["n"]), *percentages, _decimal(metrics["auc_macro"]), style="bold")
    console = Console(highlight=False)
    console.print(table)
    low, high = metrics["accuracy_cluster"] or metrics["accuracy_wilson"]
    method = f"{metrics['groups']} groups resampled" if metrics["accuracy_cluster"] else "Wilson"
    console.print(
        f"accuracy {metrics['accuracy']:.2%} (95 % interval {low:.1%} to {high:.1%}, {method}),"
        f" kappa {_decimal(metrics['kappa'])}, ECE {_decimal(metrics['ece'])}",
        soft_wrap=True,
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
