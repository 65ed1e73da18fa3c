"""The thread that turns received series into reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from brain_dist.dicomnode.header import Header, read_header
from brain_dist.dicomnode.inbox import Inbox, Job
from brain_dist.dicomnode.report import Image, Report, build_report, write_report
from brain_dist.prediction.answers import Prediction
from brain_dist.prediction.predictor import Predictor, file_load
from brain_dist.prediction.sources import Source


class Evaluator(threading.Thread):
    """Evaluates one series after the other until the end of the jobs.

    Attributes:
        fault: why it ended early, such as a full disk; None if it did not. The series stays in the inbox.
    """

    def __init__(
        self, predictor: Predictor, inbox: Inbox, reports: Path, *,
        batch: int, written: Callable[[], None], failed: Callable[[], None],
    ) -> None:  # fmt: skip
        """Prepare the thread.

        Args:
            predictor: the model.
            inbox: where series come from.
            reports: folder for the reports.
            batch: images per forward pass.
            written: called after each report.
            failed: called if the thread ends early.
        """
        super().__init__(name="evaluator", daemon=True)
        self.fault: str | None = None
        self._predictor, self._inbox, self._reports = predictor, inbox, reports
        self._batch, self._written, self._failed = batch, written, failed

    def run(self) -> None:
        """Evaluate series until the end of the jobs."""
        while (job := self._inbox.jobs.get()) is not None:
            try:
                self._evaluate(job)
            except OSError as error:
                self.fault = error.strerror or str(error)
                self._failed()
                return

    def _evaluate(self, job: Job) -> None:
        start = time.monotonic()
        reason = "two evaluations ended the process"
        report = None
        if self._inbox.begin(job):
            try:
                report = evaluate(job, self._predictor, self._batch)
                write_report(self._reports, report)
            except OSError:
                raise
            except Exception as error:  # one series must not end the node; its text might quote the patient's data
                reason, report = type(error).__name__, None
        if report is None:
            self._inbox.done(job, failed=True)
            text = f"a series of {_images(job)} could not be evaluated ({reason}); it is in failed/{job.folder.name}"
            print(text, flush=True)
            return
        self._inbox.done(job)
        self._written()
        print(f"report {report.uid} on {_images(job)} in {time.monotonic() - start:.1f} s", flush=True)


def evaluate(job: Job, predictor: Predictor, batch: int) -> Report:
    """The report about a received series."""
    headers: dict[str, tuple[Path, Header]] = {}
    for path in job.paths:
        header = read_header(path.read_bytes())
        headers[str(header.evidence.SOPInstanceUID)] = path, header  # the newest, if an image was sent twice
    wanted = (path for path, header in headers.values() if header.refusal is None)
    files = ((str(path), file_load(Source(str(path)), predictor.contract, list)) for path in wanted)
    predictions = (replace(each, image=None) for each in predictor.stream(files, batch=batch))
    by_path = {name: tuple(own) for name, own in groupby(predictions, lambda each: each.path)}
    images = [
        Image(header, by_path.get(str(path)) or (Prediction(str(path), error=header.refusal),))
        for path, header in headers.values()
    ]
    return build_report(images, predictor.contract, job.refused)


def _images(job: Job) -> str:
    return f"{job.images:,} image{'s' * (job.images != 1)}"
