"""The index, ``index.parquet``: one row per sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

INDEX = "index.parquet"

# Column → Arrow type, in the order of the file. The types are names, so that importing this module does not load Arrow.
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

    return pa.schema(
        [pa.field(name, getattr(pa, type_name)(), nullable=name == "patient") for name, type_name in COLUMNS.items()]
    )


def index_bytes(rows: list[dict[str, Any]]) -> bytes:
    """Index rows (one dict per sample, in the order of the file) → the bytes of ``index.parquet``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema()
    table = pa.Table.from_arrays(
        [_array([row[field.name] for row in rows], field.type) for field in schema], schema=schema
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """The values as an Arrow array. ``pyarrow.array`` would import pandas first, which takes a second."""
    import pyarrow as pa

    if kind == pa.string():
        builder = pa.lib.StringBuilder()
        builder.append_values(values)
        return builder.finish()
    numbers = np.array(values, dtype=kind.to_pandas_dtype())  # the NumPy type
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(numbers)])


def read_columns(data: bytes) -> dict[str, np.ndarray]:
    """Bytes of ``index.parquet`` → one array per column.

    Returns:
        Numbers as arrays of the column's type, strings as object arrays (None for an unknown patient), each [N].

    Raises:
        UserError: not a Parquet file, or not with these columns and types.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without threads: an Arrow thread that still runs when the interpreter ends can abort the process
        table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    except pa.ArrowInvalid as error:
        raise UserError(f"{INDEX} is not a Parquet file ({error}); build the shard folder again") from None
    if not table.schema.equals(arrow_schema()):
        raise UserError(f"{INDEX} does not have the columns of this format; build the shard folder again")
    return {
        name: (_strings if type_name == "string" else _numbers)(table[name].combine_chunks())
        for name, type_name in COLUMNS.items()
    }


def _numbers(column: pa.Array) -> np.ndarray:
    """A column of numbers without nulls. Arrow's own ``to_numpy`` would import pandas, which takes a second."""
    return np.array(np.from_dlpack(column))


def _strings(column: pa.Array) -> np.ndarray:
    """A string column as an object array whose equal values are one Python string."""
    values = column.dictionary_encode(null_encoding="encode")
    lookup = np.array(values.dictionary.to_pylist(), dtype=object)
    return lookup[_numbers(values.indices)]
