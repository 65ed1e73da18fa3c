"""The page of a comparison as HTML."""

from __future__ import annotations

from typing import Any

from brain_dist.comparison import plots, wording
from brain_dist.judging.weighted import METRICS
from brain_dist.pages.template import page_template

TEMPLATE = "comparison/page.html.jinja"


def render(comparison: dict[str, Any], command: str) -> str:
    """The page as HTML.

    Args:
        comparison: from :func:`brain_dist.comparison.build.compare`.
        command: the command line that made it.
    """
    metrics = comparison["metrics"]
    metric = next(iter(metrics))
    headline = metrics[metric]
    return page_template(TEMPLATE).render(
        c=comparison,
        command=command,
        metric=metric,
        metric_info=METRICS,
        headline=headline,
        names=[model["name"] for model in comparison["models"]],
        tests=[test | wording.test_table(test) for test in comparison["tests"]],
        ranks=rank_diagram(comparison),
        tiers_plot=plots.tiers(metric, headline),
        differences_plot=(
            plots.differences(metric, headline["pairs"], comparison["margin"])
            if any("interval" in pair for pair in headline["pairs"])
            else None
        ),
        w=wording,
    )


def rank_diagram(comparison: dict[str, Any]) -> dict[str, Any]:
    """The critical-difference diagram as ``svg``, or why there is none as ``refused``."""
    rows = {test["test"]: test["rows"][0] for test in comparison["tests"] if test["test"] in ("friedman", "nemenyi")}
    refused = next((row["refused"] for row in rows.values() if "refused" in row), None)
    if refused is not None:
        return {"refused": refused}
    names = [model["name"] for model in comparison["models"]]
    return {
        "svg": plots.critical_difference_diagram(names, rows["friedman"], rows["nemenyi"]),
        "critical_difference": rows["nemenyi"]["critical_difference"],
    }
