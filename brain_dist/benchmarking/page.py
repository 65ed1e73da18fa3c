"""The page of a benchmark: what was asked, tiers, drops to other collections, calibration, shortcuts, limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brain_dist import __version__
from brain_dist.benchmarking import page_text
from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.grid import PUBLISHED
from brain_dist.benchmarking.matrix import read_matrix
from brain_dist.benchmarking.matrix_text import elsewhere, left_out, notes, overlaps, shown
from brain_dist.benchmarking.probe import read_probe
from brain_dist.benchmarking.rates import recorded_trials, trials_text
from brain_dist.benchmarking.results import Benchmark, Part, read_benchmark
from brain_dist.benchmarking.summary import HEADLINE, TITLES
from brain_dist.benchmarking.wording import (
    COSTS,
    best_first,
    differing_settings,
    interval_text,
    mean_text,
    noun,
    rank_text,
)
from brain_dist.calibration.measures import null_errors, verdict
from brain_dist.common.commands import ArgumentParser
from brain_dist.common.files import check_writable, write_atomically
from brain_dist.comparison.crossing import HEADLINE as CROSS_HEADLINE
from brain_dist.config import read_sections
from brain_dist.errors import Fault, UserError
from brain_dist.judging.checklist import checklist, tally
from brain_dist.judging.checklist_rules import Facts
from brain_dist.judging.predictions import read_predictions
from brain_dist.pages.template import page_template

TEMPLATE = "benchmarking/page.html.jinja"
PAGE = "index.html"


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    Raises:
        UserError: the folder has no benchmark, no cell is finished, or the audit cannot be read.
        Fault: the disk is full.
    """
    parser = ArgumentParser("brain-dist benchmark page", description="Write the benchmark's page, OUT/index.html.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the benchmark")
    parser.add_argument(
        "--audit", type=Path, metavar="DIR", help="also show the findings of this audit (shard audit --out DIR)"
    )
    arguments = parser.parse_args(list(argv))
    from brain_dist.common.progress import show_activity

    with show_activity("writing the page"):
        path = write_page(Folder(arguments.out), arguments.audit)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def write_page(folder: Folder, audit: Path | None = None) -> Path:
    """Write the page of a benchmark from its cells, its matrix if there is one, and an audit.

    Raises:
        UserError: the folder has no benchmark or is not writable, no cell is finished, or the audit cannot be read.
        Fault: the disk is full.
    """
    findings = read_audit(audit) if audit else None
    benchmark = read_benchmark(folder)
    check_writable(folder.out, "make it writable")
    path = folder.out / PAGE
    text = render(benchmark, folder, findings)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise Fault(f"{path} cannot be written ({error.strerror})") from None
    return path


def read_audit(folder: Path) -> list[Any]:
    """The findings of an audit, as its own page has them.

    Raises:
        UserError: the folder has no audit.
    """
    from brain_dist.audit.run import COUNTS
    from brain_dist.audit.wording import between_findings, collection_findings

    file = folder / COUNTS
    try:
        counts = json.loads(file.read_text())
        findings = []
        for name, each in counts["collections"].items():
            found = collection_findings(name, counts, each["images"] - each["test_images"])
            findings += [(name, finding) for finding in found]
        return findings + [("", finding) for finding in between_findings(counts)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # AttributeError: a list in place of an object
        raise UserError(
            f"--audit {folder}: {file} cannot be read; write it with `brain-dist shard audit … --out {folder}`"
        ) from None


def render(benchmark: Benchmark, folder: Folder, findings: list[Any] | None) -> str:
    """The page as HTML."""
    from brain_dist.comparison import plots

    record = benchmark.record
    matrix = read_matrix(folder)
    parts = [part for part in benchmark.parts if part.rows and part.test in ("test", PUBLISHED)]
    shortcuts = {
        source["name"]: page_text.counted(page_text.shortcuts(source, folder), source["name"], record, folder)
        for source in record["sources"]
    }
    patients = _patients(record, folder)
    facts = Facts(
        external=matrix is not None and bool(elsewhere(matrix)),
        patients="all" if patients["known"] == patients["images"] else "some" if patients["known"] else "none",
        shared=any(part.test == PUBLISHED for part in parts),
        seeds=len(record["seeds"]),
        compared=any("refused" not in part.ranks for part in parts),
        audit=findings is not None,
        shortcuts=any("refused" not in each for each in shortcuts.values()),
        pretrained=_pretrained(record, folder),
    )
    items = checklist(facts)
    calibration = {(part.source, part.test): _calibration(part) for part in parts}
    return page_template(TEMPLATE).render(
        record=record,
        notes=benchmark.notes,
        missing=benchmark.missing,
        parts=parts,
        best_first=best_first,
        worst_class=page_text.worst_class,
        trials={model: trials_text(tried) for model, tried in recorded_trials(record).items()},
        place=lambda part: page_text.place(part, record),
        mean_text=mean_text,
        interval_text=interval_text,
        rank_text=rank_text,
        titles=TITLES,
        headline=HEADLINE,
        tiers_plots={
            (part.source, part.test): plots.tiers(HEADLINE, part.ranks, f"tiers{number}")
            for number, part in enumerate(parts)
            if "refused" not in part.ranks
        },
        calibration=calibration,
        cross=matrix,
        probe=read_probe(folder),
        cross_notes=notes(matrix) if matrix else [],
        overlaps=overlaps(matrix) if matrix else [],
        cross_headline=CROSS_HEADLINE,
        shown=shown,
        left_out=left_out,
        shortcuts=shortcuts,
        baseline_names=page_text.BASELINES,
        noun=noun(record),
        differ=differing_settings(record).replace("`", ""),
        findings=findings,
        costs=benchmark.costs,
        cost_columns=COSTS,
        limits=page_text.limits(
            benchmark, [part for part in parts if part.test == "test"], matrix, shortcuts, calibration, patients
        ),
        phantom=patients["phantom"],
        checklist={"items": items, "tally": tally(items)},
        version=__version__,
    )


def _calibration(part: Part) -> dict[str, dict[str, Any]]:
    """Model → its calibration error beside what right probabilities would show, the means over its seeds."""
    assert part.summary is not None
    tables = part.summary.tables
    errors = {}
    for model in tables.models:
        nulls = [null_errors(prob, tables.cluster)["ece"] for prob in model.prob]
        null = {key: sum(each[key] for each in nulls) / len(nulls) for key in nulls[0]}
        error = sum(values["ece"] or 0.0 for values in part.summary.values[model.name]) / len(nulls)
        errors[model.name] = {"error": error, "null": null, "verdict": verdict(error, null)}
    return errors


def _patients(record: Mapping[str, Any], folder: Folder) -> dict[str, Any]:
    """Test images that count in the cells' own tests, how many have a known patient, and whether they are phantoms."""
    images = known = 0
    phantom = False
    seen = set()
    for cell in record["cells"]:
        file = folder.predictions(cell["cell"])
        if file.is_file() and (cell["source"], cell["fold"]) not in seen:
            seen.add((cell["source"], cell["fold"]))
            table = read_predictions(file).headline
            images, known = images + len(table), known + sum(patient is not None for patient in table.patient)
            phantom |= "phantom" in set(table.dataset)
    return {"images": images, "known": known, "phantom": phantom}


def _pretrained(record: Mapping[str, Any], folder: Folder) -> bool | None:
    """Whether any training began with other weights; None if the settings are gone."""
    files = [folder.settings(cell["cell"]) for cell in record["cells"]]
    advice = "give the command of the benchmark again, which writes it"
    models = [read_sections(file, advice)["model"] for file in files if file.is_file()]
    return any(model.get("pretrained") or model.get("weights") for model in models) if models else None
