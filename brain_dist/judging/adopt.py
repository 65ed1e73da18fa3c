"""Adopt a file of anybody's predictions: write the predictions table and its metrics, and print them."""

from __future__ import annotations

from pathlib import Path

from brain_dist.collection.spellings import SPLITS
from brain_dist.common.files import check_writable, sha256_file
from brain_dist.common.text import print_list
from brain_dist.errors import Fault, UserError
from brain_dist.judging.adoption import BadRows, adopt, read_foreign_file
from brain_dist.judging.evaluation import print_metrics, write_evaluation
from brain_dist.judging.predictions import predictions_file
from brain_dist.store.dataset import open_dataset


def adopt_file(
    predictions: Path,
    shards: str,
    split: str,
    fold: int | None,
    columns: str | None,
    run: Path | None,
    name: str | None,
) -> None:
    """Write RUN/predictions/NAME.parquet and NAME.json, and print the metrics.

    Args:
        predictions: the file.
        shards: the shard folder of the images.
        split: train, val or test.
        fold: the test fold, for shards with folds.
        columns: names of the columns, separated by commas; None finds them by their usual names.
        run: the folder to write; None is named after the file, in ``runs``.
        name: name of the table; None is the split.

    Raises:
        UserError: the file or the shards cannot be used, or ``run`` is the folder of a training.
        Fault: the disk is full.
    """
    if name in SPLITS and name != split:
        raise UserError(f"--name {name}: these are the predictions of split {split}; choose another --name")
    folder = run or Path("runs") / predictions.stem
    path = predictions_file(folder / "predictions", name or split)
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} is the folder of a training, which has its own predictions; choose another --run")
    check_writable(path.parent, "choose another --run")
    dataset = open_dataset(shards).of_fold(fold, "--fold")
    file = read_foreign_file(predictions, dataset.classes, columns.split(",") if columns else None)
    origin = f"{predictions.name}, sha256 {sha256_file(predictions)}"
    try:
        table, elsewhere = adopt(file, dataset, split, folder.resolve().name, origin)
    except BadRows as error:
        print_list(error.rows, predictions.with_name(f"{predictions.name}.bad-rows.txt"))
        raise
    try:
        metrics = write_evaluation(path, table, table.row)
    except OSError as error:
        raise Fault(f"{path} cannot be written ({error.strerror}); choose another --run") from None
    print_metrics(metrics, f"{predictions.name}, {dataset.name}, {split} split")
    if elsewhere:
        print(f"left out: {elsewhere:,} rows about other splits")
    print(f"predictions: {path}")
