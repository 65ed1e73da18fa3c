"""The table of predictions: its columns, and CSV, JSON and Parquet files of it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from brain_dist.errors import UserError
from brain_dist.prediction.answers import Prediction

SCHEMA = 1  # of the columns
FORMATS = (".csv", ".json", ".parquet")
DIGITS = 6  # of probabilities: what remains of the last bits of float32 is not information
Row = list[Any]


def columns(classes: Sequence[str]) -> list[str]:
    """The columns, always in this order."""
    answers = ["label", "probability", *(f"p_{name}" for name in classes), "set", "ood_p", "verdict"]
    return ["path", "frame", *answers, "error"]


def row(prediction: Prediction, classes: Sequence[str]) -> Row:
    """The values of :func:`columns`: text or numbers; None where nothing is known. A set is joined by ``|``."""
    numbers = [prediction.probabilities.get(name) for name in classes]
    return [
        prediction.path,
        None if prediction.frame is None else str(prediction.frame),
        prediction.label,
        _rounded(prediction.probability),
        *map(_rounded, numbers),
        None if prediction.set is None else "|".join(prediction.set),
        _rounded(prediction.ood_p),
        prediction.verdict,
        prediction.error,
    ]


def prediction_of(values: Row, classes: Sequence[str]) -> Prediction:
    """The prediction that a :func:`row` was made from, without its image."""
    known = dict(zip(columns(classes), values, strict=True))
    members = known["set"]
    return Prediction(
        known["path"],
        known["frame"],
        known["label"],
        known["probability"],
        {name: known[f"p_{name}"] for name in classes if known[f"p_{name}"] is not None},
        None if members is None else tuple(name for name in classes if name in members.split("|")),
        known["ood_p"],
        known["verdict"],
        known["error"],
    )


def check_format(path: Path) -> None:
    """Check that a table can be written in the format that its name says.

    Raises:
        UserError: its suffix is not one of :data:`FORMATS`, or the format needs a package that is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--out {path}: must end in {', '.join(FORMATS)}")
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise UserError(f"--out {path}: pyarrow is not installed; run `pip install pyarrow`, or choose .csv or .json")


def encode(path: Path, rows: list[Row], classes: Sequence[str], model: dict[str, Any]) -> bytes:
    """The content of a table, in the format that its name says.

    Args:
        path: its name.
        rows: see :func:`row`.
        classes: the model's classes.
        model: what the predictions come from; JSON and Parquet keep it.
    """
    names = columns(classes)
    suffix = path.suffix.lower()
    if suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_text(value) for value in each] for each in rows)
        return text.getvalue().encode()
    about = {"schema": SCHEMA, "model": model}
    if suffix == ".json":
        document = {**about, "predictions": [dict(zip(names, each, strict=True)) for each in rows]}
        return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = {"path", "frame", "label", "set", "verdict", "error"}
    fields = [pa.field(name, pa.string() if name in texts else pa.float64()) for name in names]
    schema = pa.schema(fields, metadata={"brain_dist": json.dumps(about)})
    arrays = [pa.array([each[n] for each in rows], field.type) for n, field in enumerate(fields)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink)
    return sink.getvalue()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.{DIGITS}f}" if isinstance(value, float) else str(value)
