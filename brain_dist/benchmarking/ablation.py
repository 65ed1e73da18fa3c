"""The ablation of ``benchmark cross --methods``: ablation.md, one row for each method, beside the first one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from brain_dist.benchmarking.folder import PLAN, Folder
from brain_dist.benchmarking.grid import PUBLISHED
from brain_dist.benchmarking.matrix import classes_of, read_matrix, read_plan, tables_of
from brain_dist.benchmarking.matrix_text import KINDS, shown, with_seeds, worst_class
from brain_dist.benchmarking.probe import read_probe
from brain_dist.common.files import write_atomically, writing
from brain_dist.comparison.crossing import HEADLINE, Judged, gain, select, tumour_auc
from brain_dist.errors import UserError

ABLATION = "ablation.md"
PIPE = r"\|"  # in a cell of a Markdown table


def write_ablation(folder: Folder) -> None:
    """Write ablation.md and print it, if the folder is a cross benchmark of methods.

    Raises:
        UserError: a table is damaged.
        Fault: the disk is full.
    """
    record = folder.record()
    if "methods" not in record or not (folder.out / PLAN).is_file():
        return
    from brain_dist.common.progress import show_activity

    with show_activity("comparing methods"):
        text = markdown(record, ablation(folder, record), read_probe(folder))
    with writing(folder.out):
        write_atomically(folder.out / ABLATION, text)
    print(text)
    print(folder.out / ABLATION)


def ablation(folder: Folder, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of cross.json, each with ``tumour_auc`` and, but for the first method, its ``gain`` over that."""
    planned = {(pair["source"], pair["test"], pair["kind"]): pair for pair in read_plan(folder)["pairs"]}
    document = read_matrix(folder)
    assert document is not None, "a folder with a plan has a matrix"
    baselines: dict[tuple[str, str, str], Judged] = {}
    for row in document["rows"]:
        place = row["source"], row["test"], row["kind"]
        if "refused" in row or row["kind"] == PUBLISHED:
            continue
        tables = tables_of(planned[place], row["model"], record, folder)
        judged = select(tables, classes_of(tables), planned[place]["shared"])
        row["tumour_auc"] = tumour_auc(judged)
        if row["model"] == record["models"][0]:
            baselines[place] = judged
        elif place in baselines:
            row["gain"] = _gain(judged, baselines[place])
    return list(document["rows"])


def _gain(judged: Judged, baseline: Judged) -> dict[str, Any]:
    try:
        return gain(judged, baseline)
    except UserError as error:  # the methods were tested on other images
        return {"refused": str(error)}


def markdown(record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], probe: Sequence[Mapping[str, Any]]) -> str:
    """The content of ablation.md."""
    first, seeds = record["models"][0], len(record["seeds"])
    methods = record["methods"]
    differing = [key for key in dict.fromkeys(key for each in methods.values() for key in each)
                 if len({json.dumps(each.get(key)) for each in methods.values()}) > 1]  # fmt: skip
    lines = [
        "# Ablation: one row for each method", "",
        f"In %: mean ± standard deviation over {seeds} seed{'s' if seeds > 1 else ''} unless a row says how many of"
        f" them, in brackets the 95 % interval over patients and copies. Gain: the difference to `{first}` on the same"
        " images, paired by patient and seed.", "",
        f"Methods may differ in {', '.join(record['differ'])}; everything else is equal.", "",
        "| method | settings in which methods differ, unless they are the default |", "|---|---|",
        *(_line([name, _settings({key: each[key] for key in differing if key in each})])
          for name, each in methods.items()),
    ]  # fmt: skip
    for source, test, kind in dict.fromkeys((row["source"], row["test"], row["kind"]) for row in rows):
        here = [row for row in rows if (row["source"], row["test"], row["kind"]) == (source, test, kind)]
        lines += ["", f"## Trained on {source}, tested on {test}{KINDS.get(kind, '')}", ""]
        if all("refused" in row for row in here):
            lines.append(f"{here[0]['refused']}.")
            continue
        lines += _table(here, seeds)
    if probe:
        lines += ["", "## How well the collection can be read from the features", ""]
        lines += ["| trained on | method | class | source named right | chance |", "|---|---|---|--:|--:|"]
        for line in probe:
            value = line.get("refused") or shown(dict(line))
            chance = f"{100 * line['chance']:.1f}" if "chance" in line else "–"
            lines.append(_line([line["source"], line["model"], line["class"], value, chance]))
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, Any]], planned: int) -> list[str]:
    """The methods of one test; ``planned`` is the number of seeds."""
    within = any("within" in row for row in rows)
    head = ["method", *(["AUC within patients", "gain"] if within else []), "tumour against none, AUC",
            "balanced accuracy", "gain", "worst class", "images"]  # fmt: skip
    lines = [_line(head), f"|---{'|--:' * (len(head) - 1)}|"]
    for row in rows:
        if "refused" in row:
            lines.append(_line([row["model"], row["refused"], *["–"] * (len(head) - 2)]))
            continue
        change = row.get("gain", {})
        inside = [shown(row.get("within", {})), shown(change.get("within", {}), signed=True)] if within else []
        measured = [shown(row.get("tumour_auc", {})), shown(row[HEADLINE]),
                    with_seeds(shown(change, signed=True), change, planned)]  # fmt: skip
        cells = [with_seeds(row["model"], row, planned), *inside, *measured, worst_class(row), f"{row['images']:,}"]
        lines.append(_line(cells))
    return lines


def _line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', PIPE) for cell in cells)} |"


def _settings(settings: Mapping[str, Any]) -> str:
    """Settings in words."""
    words = (f"`{name}: {json.dumps(value)}`" for name, value in settings.items())
    return ", ".join(words) or "–"
