"""The index, ``index.parquet``: one row a sample; its columns, writing and reading."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


INDEX = "index.parquet"


# column → Arrow type (by name, so that this module imports without Arrow); the order is the file's order
COLUMNS = {
    "key": "string",
    "shard": "string",
    "offset": "int64",
    "size": "int32",
    "crc32": "uint32",
    "label": "int16",
    "dataset": "string",
    "split": "string",
    "group": "string",
    "patient": "string",
    "width": "int32",
    "height": "int32",
    "mode": "string",
    "pixel_hash": "string",
    "phash": "string",
    "source": "string",
    "head_x": "int32",
    "head_y": "int32",
    "head_w": "int32",
    "head_h": "int32",
    "attributes": "string",
}


def arrow_schema() -> pa.Schema:
    """The index's Arrow schema; only ``patient`` may be null."""
    import pyarrow as pa

    kinds = {
        "string": pa.string(),
        "int16": pa.int16(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "uint32": pa.uint32(),
    }
    return pa.schema([pa.field(name, kinds[kind], nullable=name == "patient") for name, kind in COLUMNS.items()])


def index_bytes(rows: list[dict[str, Any]]) -> bytes:
    """Index rows (one dict a sample, in the order of the file) → the bytes of ``index.parquet``."""
    import pyarrow as pa
    import pyarrow.json as pj
    import pyarrow.parquet as pq

    # By way of JSON: what else makes Arrow's arrays of Python's values imports pandas first, which takes a second
    text = "\n".join(map(json.dumps, rows)).encode()
    table = pj.read_json(
        pa.BufferReader(text),
        pj.ReadOptions(use_threads=False, block_size=len(text)),
        pj.ParseOptions(explicit_schema=arrow_schema(), unexpected_field_behavior="error"),
    ).cast(arrow_schema())  # which fields may be null gets lost on the way
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_columns(data: bytes) -> dict[str, np.ndarray]:
    """Bytes of ``index.parquet`` → arrays by column; :class:`UserError` where columns or types are others."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without Arrow's threads: one of them still running as the interpreter ends aborts the process, now and then
        table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    except pa.ArrowInvalid as error:
        raise UserError(f"{INDEX} is not a Parquet file ({error}); build the shard folder again") from None
    if not table.schema.equals(arrow_schema()):
        raise UserError(f"{INDEX} does not have this format's columns; build the shard folder again")
    return {
        name: table[name].to_numpy() if kind != "string" else _strings(table[name]) for name, kind in COLUMNS.items()
    }


def _strings(column: pa.ChunkedArray) -> np.ndarray:
    # Dictionary-encoding first: a column of 100,000 splits or groups then holds few Python strings, shared.
    values = column.combine_chunks().dictionary_encode(null_encoding="encode")
    lookup = np.array(values.dictionary.to_pylist(), dtype=object)
    return lookup[values.indices.to_numpy()]
