"""`predict --sr DIR`: a report about each series among the files that were predicted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from brain_dist.collection.decoding import BadImage
from brain_dist.common.files import check_writable
from brain_dist.dicomnode.header import Header, read_header, silence
from brain_dist.dicomnode.report import Image, build_report, write_report
from brain_dist.errors import UserError
from brain_dist.prediction.answers import Prediction
from brain_dist.prediction.sources import Source
from brain_dist.stream.contract import Contract

MISSING_EXTRA = "Structured Reports need the packages highdicom and pynetdicom: pip install 'brain_dist[dicom]'"


def check_extra() -> None:
    """Check that the packages of the extra ``dicom`` are installed.

    Raises:
        UserError: they are not.
    """
    try:
        import highdicom  # noqa: F401
        import pynetdicom  # noqa: F401
    except ImportError:
        raise UserError(MISSING_EXTRA) from None


def report_writer(folder: Path) -> Callable[[Sequence[Source], Sequence[Prediction], Contract], int]:
    """A function that writes reports into ``folder``: sources, predictions, contract → number of files without one.

    Raises:
        UserError: the packages of the extra are not installed, or the folder cannot be written.
    """
    check_extra()
    check_writable(folder, "choose another folder for --sr")

    def write(sources: Sequence[Source], predictions: Sequence[Prediction], contract: Contract) -> int:
        silence()
        return write_reports(folder, sources, predictions, contract)

    return write


def write_reports(
    folder: Path, sources: Sequence[Source], predictions: Sequence[Prediction], contract: Contract
) -> int:
    """Write a report about each series, and print a line for each report and for each file that is in none.

    Args:
        folder: where they go; it is created.
        sources: the files.
        predictions: their predictions, grouped by file in the order of ``sources``.
        contract: the model's.

    Returns:
        The number of files that are in no report.

    Raises:
        UserError: none of the files can have a report, or the folder cannot be written.
    """
    by_name = {name: tuple(own) for name, own in groupby(predictions, lambda each: each.path)}
    series: dict[tuple[str, str], dict[str, Image]] = {}
    problems: list[str] = []
    for source in sources:
        try:
            header: Header = read_header(source.read())
        except BadImage as error:
            problems.append(f"{source.name}: {error}")
            continue
        images = series.setdefault(header.series, {})
        instance = str(header.evidence.SOPInstanceUID)
        if instance in images:
            problems.append(f"{source.name}: has the SOPInstanceUID of another file of this call")
            continue
        images[instance] = Image(header, by_name[source.name])
    if not series:
        _print_problems(problems)
        raise UserError("--sr writes reports about DICOM images, and none of the files is one; remove --sr")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for images in series.values():
            try:
                report = build_report(list(images.values()), contract)
            except Exception as error:  # one series must not stop the rest; the text might quote the patient's data
                names = [image.predictions[0].path for image in images.values()]
                problems += [f"{name}: its series does not fit into one ({type(error).__name__})" for name in names]
                continue
            path = write_report(folder, report)
            print(f"report on {len(images):,} image{'s' * (len(images) > 1)}: {path}: {report.summary}")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); choose another for --sr") from None
    _print_problems(problems)
    return len(problems)


def _print_problems(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"brain-dist: no report about {problem}", file=sys.stderr)
