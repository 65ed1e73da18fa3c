"""``brain-dist benchmark table``: write table.parquet, cells.parquet, costs.parquet and table.md, and print them.

Of `benchmark cross` also its matrix, and of methods their ablation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brain_dist.benchmarking.ablation import write_ablation
from brain_dist.benchmarking.folder import PLAN, Folder
from brain_dist.benchmarking.matrix import TABLE, write_matrix
from brain_dist.benchmarking.matrix_text import markdown as matrix_markdown
from brain_dist.benchmarking.results import Benchmark, Row, read_benchmark
from brain_dist.common.commands import ArgumentParser
from brain_dist.common.files import write_together
from brain_dist.errors import Fault

DESCRIPTION = (
    "Write table.parquet, cells.parquet, costs.parquet and table.md, and print them. Of `benchmark cross` also cross.md"
    " and cross.json, and of methods ablation.md."
)
TYPES = {str: "string", bool: "bool_", int: "int64", float: "float64"}


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    Raises:
        UserError: as :func:`~brain_dist.benchmarking.results.read_benchmark`.
        Fault: the disk is full.
    """
    parser = ArgumentParser("brain-dist benchmark table", description=DESCRIPTION)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the benchmark")
    write_results(Folder(parser.parse_args(list(argv)).out))
    return 0


def write_results(folder: Folder) -> None:
    """Judge a benchmark, and write and print all its tables: also the matrix of collections and the ablation, if any.

    Raises:
        UserError: as :func:`~brain_dist.benchmarking.results.read_benchmark`.
        Fault: the disk is full.
    """
    write_table(folder)
    if (folder.out / PLAN).is_file():
        print(matrix_markdown(write_matrix(folder)))
        print(folder.out / TABLE)
    write_ablation(folder)


def write_table(folder: Folder) -> Benchmark:
    """Judge a benchmark, write its tables, and print the main ones.

    Raises:
        UserError: as :func:`~brain_dist.benchmarking.results.read_benchmark`.
        Fault: the disk is full.
    """
    from brain_dist.benchmarking.wording import markdown, print_tables
    from brain_dist.common.progress import show_activity

    with show_activity("resampling patients"):
        benchmark = read_benchmark(folder)
    tables = {
        "table": [row for part in benchmark.parts for row in part.rows],
        "cells": benchmark.cells,
        "costs": benchmark.costs,
    }
    contents: dict[Path, bytes | str] = {
        folder.out / f"{name}.parquet": parquet_bytes(rows) for name, rows in tables.items()
    }
    try:
        write_together({**contents, folder.out / "table.md": markdown(benchmark)})
    except OSError as error:
        raise Fault(f"{folder.out} cannot be written ({error.strerror or error})") from None
    print_tables(benchmark)
    print(f"{folder.out / 'table.md'}")
    return benchmark


def parquet_bytes(rows: Sequence[Row]) -> bytes:
    """Rows as the bytes of a Parquet file; columns without a value are numbers, but reasons of refusals text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = dict.fromkeys(name for row in rows for name in row)
    schema = pa.schema([(name, getattr(pa, TYPES[_type(rows, name)])()) for name in columns])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), sink)
    return sink.getvalue().to_pybytes()


def _type(rows: Sequence[Mapping[str, Any]], name: str) -> type:
    """Type of a column: of its values, float if some are integers and some floats."""
    kinds = {type(row[name]) for row in rows if row.get(name) is not None}
    if not kinds:
        return str if name.endswith("refused") else float
    return float if kinds == {int, float} else kinds.pop()
