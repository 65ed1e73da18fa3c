"""Compare models: read their predictions, run the tests, and write the result as JSON, CSV and a page."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from brain_dist import __version__
from brain_dist.common.files import check_writable, write_together
from brain_dist.common.text import nearest
from brain_dist.comparison.battery import collection_tests, fold_tests, image_tests
from brain_dist.comparison.blocks import collections
from brain_dist.comparison.paired import ALPHA, Draws, compare_metric, groups_of_classes
from brain_dist.comparison.tables import Tables
from brain_dist.errors import Fault, UserError
from brain_dist.judging.clusters import RESAMPLES, SEED
from brain_dist.judging.weighted import METRICS
from brain_dist.pages.text import listing

DEFAULT_METRICS = ("accuracy", "balanced_accuracy", "f1_macro", "mcc", "auc_macro", "brier")
CSV_COLUMNS = (
    "test", "metric", "a", "b", "class", "difference", "low", "high", "smallest", "p", "p_holm", "refused", "assumes",
    "values",
)  # fmt: skip


def compare(
    tables: Tables,
    metrics: Sequence[str] = DEFAULT_METRICS,
    unit: str = "image",
    margin: float | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Compare models on the same images.

    Args:
        tables: the aligned predictions.
        metrics: names in :data:`~brain_dist.judging.weighted.METRICS`; the first one is the headline, and tests over
            collections and folds use it.
        unit: which tests to run beside the headline: ``image``, ``collection`` or ``fold``.
        margin: largest loss that still counts as not inferior, in units of the metric.
        resamples: resamples of the bootstrap.

    Returns:
        The comparison, JSON-serialisable: ``data``, ``metrics`` (see
        :func:`~brain_dist.comparison.paired.compare_metric`), ``collections`` and ``tests`` (see
        :func:`~brain_dist.comparison.battery.image_tests`), and the settings.
    """
    sensitivities = [f"sensitivity:{c}" for c in range(len(tables.classes))] if unit == "image" else []
    draws = Draws(tables, [*metrics, *sensitivities], resamples)
    results = {name: compare_metric(tables, draws, name, margin) for name in metrics}
    order = list(results[metrics[0]]["models"])  # best first, so that most differences are positive
    tables = replace(tables, models=tuple(sorted(tables.models, key=lambda model: order.index(model.name))))
    by_collection = collections(tables, metrics[0])
    if unit == "fold":
        tests = fold_tests(tables, metrics[0])
    else:
        tests = [*(image_tests(tables, draws) if unit == "image" else []), *collection_tests(tables, metrics[0])]
    return {
        "version": __version__,
        "unit": unit,
        "margin": margin,
        "alpha": ALPHA,
        "resamples": resamples,
        "seed": SEED,
        "data": _data(tables),
        "warnings": _warnings(tables),
        "models": [
            {"name": model.name, "sources": list(model.sources), "runs": len(model.prob)} for model in tables.models
        ],
        "metrics": results,
        "collections": {
            "names": by_collection.names,
            "images": by_collection.images.tolist(),
            "values": by_collection.values.tolist(),
            "undefined": by_collection.undefined,
        },
        "tests": tests,
    }


def _data(tables: Tables) -> dict[str, Any]:
    support = Counter(tables.label.tolist())
    return {
        "images": len(tables),
        "groups": int(tables.cluster.max()) + 1,
        "classes": {
            name: {"images": support[c], "groups": groups}
            for (c, name), groups in zip(enumerate(tables.classes), groups_of_classes(tables), strict=True)
        },
        "collections": dict(sorted(Counter(tables.dataset.tolist()).items())),
        "splits": dict(sorted(Counter(tables.split.tolist()).items())),
        "dataset_versions": sorted(set(tables.version)),
        "known": tables.known,
        "not_compared": tables.not_compared,
    }


def _warnings(tables: Tables) -> list[str]:
    """What a reader must know before the numbers."""
    warnings = []
    if "phantom" in tables.dataset:
        warnings.append("phantoms are computer-generated; the results say nothing about real patients")
    if "train" in tables.split:
        warnings.append("images of the split train are among these; networks know the images that they were trained on")
    single = [model.name for model in tables.models if len(model.prob) == 1 and len(set(tables.fold)) == 1]
    if single:
        warnings.append(
            f"one run of {listing(single)}: another seed of the same network can differ as much; compare several with"
            " --group"
        )
    adopted = [model.name for model in tables.models if model.adopted]
    if adopted:
        warnings.append(f"it is not known which images {listing(adopted)} was trained on; these may be among them")
    if tables.not_compared:
        warnings.append(f"whether training knew these images was not checked: {tables.not_compared}")
    return warnings


def check_settings(metrics: Sequence[str], margin: float | None = None) -> None:
    """Check what :func:`compare` is asked for, before the tables are read.

    Raises:
        UserError: an unknown metric, one that is given twice, or a margin that is not above 0.
    """
    if margin is not None and not 0 < margin < float("inf"):
        raise UserError(f"--margin {margin:g}: must be above 0, such as 0.02 for two percentage points of accuracy")
    for name, count in Counter(metrics).items():
        if name not in METRICS:
            raise UserError(f"--metric {name}{nearest(name, METRICS)}: choose from {', '.join(METRICS)}")
        if count > 1:
            raise UserError(f"--metric {name} is given {count} times")


def write_comparison(comparison: dict[str, Any], command: str, out: Path) -> None:
    """Write ``compare.json``, ``compare.csv`` and ``index.html`` to a folder.

    Args:
        comparison: from :func:`compare`.
        command: the command line, for the page.
        out: the folder; older files of these names are replaced.

    Raises:
        UserError: the folder is not writable, or is a symbolic link.
        Fault: the disk is full.
    """
    from brain_dist.comparison.page import render

    if out.is_symlink():
        raise UserError(f"{out} is a symbolic link; remove it, or choose another folder with --out")
    check_writable(out, "choose another folder with --out")
    contents: dict[Path, bytes | str] = {
        out / "compare.json": json.dumps(comparison, indent=1, allow_nan=False) + "\n",
        out / "compare.csv": csv_text(comparison),
        out / "index.html": render(comparison, command),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_together(contents)
    except OSError as error:
        raise Fault(f"{out} cannot be written ({error.strerror}); choose another folder with --out") from None


def csv_text(comparison: dict[str, Any]) -> str:
    """Every test of a comparison as one row of a CSV file; ``values`` has a result's other numbers as JSON."""
    rows = [
        pair | {"test": pair["test"], "metric": metric, "refused": pair.get("refused", pair.get("p_refused"))}
        for metric, result in comparison["metrics"].items()
        for pair in result["pairs"]
    ]
    rows += [
        row | {"test": test["test"], "assumes": test["assumes"]} for test in comparison["tests"] for row in test["rows"]
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        low, high = row.pop("interval", (None, None))
        values = {name: value for name, value in row.items() if name not in CSV_COLUMNS}
        known = {name: row[name] for name in CSV_COLUMNS if name in row}
        writer.writerow(known | {"low": low, "high": high, "values": json.dumps(values)})
    return text.getvalue()
