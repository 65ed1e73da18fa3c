"""Read the files of a folder that lies anywhere fsspec can reach, each from any byte on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from brain_dist.errors import Fault, UserError

BLOCK = 1 << 22  # bytes read at a time


class Remote:
    """A folder behind a path or a URL; whatever goes wrong in it is told by its own name.

    ``url`` is what it was made from, without a slash at the end. :class:`UserError` for a URL that cannot be opened, or
    that needs a package which is not installed.
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
            raise UserError(f"{url}: such a URL needs another package ({error}); or copy the folder here") from None
        except Exception as error:  # each file system has errors of its own
            raise UserError(f"{url} cannot be opened ({_said(error)}); is the address right?") from None

    def blocks(self, name: str, start: int, *, absent: str) -> tuple[int, Iterator[bytes]]:
        """(where they begin, the bytes of a file from there on): at ``start``, or at 0 where nothing can be skipped.

        :class:`UserError` with the text ``absent`` where there is no such file, or where it may not be read;
        :class:`Fault` where reading fails.
        """
        with self._reading(name, absent):
            try:
                file, first = self._open(name, start)
            except (ValueError, NotImplementedError):  # io.UnsupportedOperation is a ValueError
                start = 0
                file, first = self._open(name, 0)

        def rest() -> Iterator[bytes]:
            with self._reading(name, absent), file:
                block = first
                while block:
                    yield block
                    block = file.read(BLOCK)

        return start, rest()

    def _open(self, name: str, start: int) -> tuple[BinaryIO, bytes]:
        """An open file and its first block: some file systems find out only as they read that they cannot skip."""
        # 0 makes fsspec's HTTP send the file in one answer: many servers give no parts, and parts are slower
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
    def _reading(self, name: str, absent: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(absent) from None
        except PermissionError as error:
            raise UserError(f"{self.url}: {name} may not be read ({_said(error)})") from None
        except Exception as error:  # each file system has errors of its own
            text = f"{self.url}: {name} cannot be read ({_said(error)}); starting again goes on from here"
            raise Fault(text) from None


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
