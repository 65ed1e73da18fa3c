"""The files of a request, read into memory with a limit on every byte; nothing is written to disk.

The framework's own form parser writes larger files to the disk, where images of patients must not be left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from brain_dist.serving.problems import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from python_multipart.multipart import MultipartParser

RAW_TYPES = ("image/", "application/dicom", "application/octet-stream", "application/gzip", "application/x-gzip")
FORM = "multipart/form-data"
_MAX_NAME = 255  # characters of a file's name that an answer repeats
_MAX_FIELDS = 256  # parts of a form


@dataclass
class Upload:
    """A file of a request.

    Attributes:
        name: what the client calls it; None if it does not. It is only returned to the client.
        data: its bytes.
        problem: why it is not used; its bytes are then not kept.
    """

    name: str | None = None
    data: bytearray = field(default_factory=bytearray)
    problem: Problem | None = None


async def read_uploads(
    stream: AsyncIterator[bytes], content_type: str | None, *, max_bytes: int, max_files: int
) -> list[Upload]:
    """The files of a request.

    Args:
        stream: the body.
        content_type: the request's header.
        max_bytes: of a file. The whole body may have four times as many if it has several files.
        max_files: number of files.

    Raises:
        Problem: the body is too large, empty, malformed, or of another type.
    """
    from brain_dist.serving.settings import BATCH_BODIES

    kind = (content_type or "application/octet-stream").partition(";")[0].strip().lower()
    if kind == FORM:
        limit = max_bytes * (1 if max_files == 1 else BATCH_BODIES) + 4096 * max_files  # of headers
        return await _read_form(stream, content_type or "", limit, max_bytes, max_files)
    if max_files > 1:
        raise Problem("unsupported", f"this address takes {FORM}; POST one file to /v1/predict")
    if not kind.startswith(RAW_TYPES):
        raise Problem("unsupported", f"send an image as image/…, application/dicom, application/octet-stream or {FORM}")
    upload = Upload()
    async for chunk in stream:
        if len(upload.data) + len(chunk) > max_bytes:
            raise _too_large(max_bytes)
        upload.data += chunk
    if not upload.data:
        raise Problem("unreadable", "the file is empty (0 bytes)")
    return [upload]


def _too_large(max_bytes: int) -> Problem:
    return Problem("too-large", f"the file has more than {max_bytes / 1e6:g} million bytes")


async def _read_form(
    stream: AsyncIterator[bytes], content_type: str, limit: int, max_bytes: int, max_files: int
) -> list[Upload]:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import parse_options_header

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Problem("bad-request", f"{FORM} needs a boundary in its Content-Type")
    form = _Form(max_bytes, max_files)
    total = 0
    try:
        parser = form.parser(boundary)
        async for chunk in stream:
            total += len(chunk)
            if total > limit:
                raise Problem("too-large", f"the request has more than {limit / 1e6:.3g} million bytes")
            parser.write(chunk)
        parser.finalize()
    except FormParserError:
        raise Problem("bad-request", f"the body is not valid {FORM}") from None
    if not form.ended:
        raise Problem("bad-request", f"the body of {FORM} is incomplete")
    if not form.files:
        raise Problem("unreadable", "the form contains no file; a part with a file has a `filename`")
    return form.files


class _Form:
    """Collects the files of a form; parts without a file name are skipped."""

    def __init__(self, max_bytes: int, max_files: int) -> None:
        self.files: list[Upload] = []
        self.ended = False
        self._max_bytes, self._max_files, self._parts = max_bytes, max_files, 0
        self._name, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._current: Upload | None = None

    def parser(self, boundary: bytes) -> MultipartParser:
        from python_multipart.multipart import MultipartParser

        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_part_data": self._data,
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header,
                "on_headers_finished": self._content,
                "on_end": self._end,
            },
        )

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_FIELDS:
            raise Problem("bad-request", f"the form has more than {_MAX_FIELDS} parts")
        self._disposition, self._current = b"", None

    def _header(self) -> None:
        if bytes(self._name).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _content(self) -> None:
        from python_multipart.multipart import parse_options_header

        options = parse_options_header(self._disposition)[1]
        if b"filename" not in options:
            return
        if len(self.files) == self._max_files:
            raise Problem(
                "too-large",
                f"the request has more than {self._max_files} files"
                if self._max_files > 1
                else "the request has several files; POST them to /v1/predict/batch",
            )
        name = options[b"filename"].decode("utf-8", "replace")[:_MAX_NAME]
        self._current = Upload(name or None)
        self.files.append(self._current)

    def _data(self, data: bytes, start: int, end: int) -> None:
        upload = self._current
        if upload is None or upload.problem is not None:
            return
        if len(upload.data) + end - start > self._max_bytes:
            upload.problem = _too_large(self._max_bytes)
            upload.data = bytearray()
            return
        upload.data += data[start:end]

    def _end(self) -> None:
        self.ended = True
