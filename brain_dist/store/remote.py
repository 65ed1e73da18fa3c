"""Read the files of a folder that fsspec can reach, each from any byte on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from brain_dist.errors import Fault, UserError

BLOCK = 1 << 22  # bytes read at a time


class Remote:
    """A folder at a path or a URL.

    Args:
        url: its address; kept as ``url`` without a slash at the end.

    Raises:
        UserError: the URL cannot be opened, or needs a package that is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            import fsspec
            from fsspec.implementations.local import LocalFileSystem

            if "://" in url:
                self._system, self._root = fsspec.core.url_to_fs(self.url)
            else:
                self._system, self._root = LocalFileSystem(), os.path.abspath(url)  # noqa: PTH100
        except ImportError as error:
            raise UserError(f"{url}: this kind of URL needs another package ({error}); or copy the folder") from None
        except Exception as error:  # each file system has its own errors
            raise UserError(f"{url} cannot be opened ({_reason(error)}); check the address") from None

    def blocks(self, name: str, start: int, *, absent: str) -> tuple[int, Iterator[bytes]]:
        """Read a file from byte ``start`` on.

        Args:
            name: file name in the folder.
            start: first byte to read.
            absent: text of the error if the file does not exist.

        Returns:
            The byte at which the blocks start (0 if the file system cannot seek) and the blocks.

        Raises:
            UserError: the file does not exist, or may not be read.
            Fault: reading failed.
        """
        with self._errors(name, absent):
            try:
                file, first = self._open(name, start)
            except (ValueError, NotImplementedError):  # io.UnsupportedOperation is a ValueError
                start = 0
                file, first = self._open(name, 0)

        def remaining() -> Iterator[bytes]:
            with self._errors(name, absent), file:
                block = first
                while block:
                    yield block
                    block = file.read(BLOCK)

        return start, remaining()

    def _open(self, name: str, start: int) -> tuple[BinaryIO, bytes]:
        """An open file and its first block, since some file systems report only on reading that they cannot seek."""
        # With block_size 0, fsspec's HTTP requests the whole file at once: many servers do not support ranges
        options = {} if start or not self.url.startswith("http") else {"block_size": 0}
        file = self._system.open(f"{self._root.rstrip('/')}/{name}" if self._root else name, "rb", **options)
        try:
            if start:
                file.seek(start)
            return file, file.read(BLOCK)
        except BaseException:
            file.close()
            raise

    @contextmanager
    def _errors(self, name: str, absent: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(absent) from None
        except PermissionError as error:
            raise UserError(f"{self.url}: no permission to read {name} ({_reason(error)})") from None
        except Exception as error:  # each file system has its own errors
            raise Fault(
                f"{self.url}: {name} cannot be read ({_reason(error)}); start again to continue from here"
            ) from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
