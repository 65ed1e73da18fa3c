"""HTTP/1.1 on a connection: uvicorn's protocol with llhttp, and limits on the size and the time of a request.

Most of what a refusal costs under overload is parsing, in which llhttp is several times faster than h11; but it keeps a
head of any length. Uvicorn itself waits without end for the first request of a connection, for the rest of a head, and
for the rest of a body that was refused; each such connection keeps a file descriptor, of which there are few.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 2**16  # bytes of the request line and the headers


class Protocol(HttpToolsProtocol):
    """Closes the connection of a request whose head is too long, after an answer with status 400, or too slow.

    Attributes:
        patience: seconds for a head, from the connection or from the first byte after an earlier request, and, once a
            request has been answered, for the rest of its body. In between the application limits the time.
    """

    patience = 30.0
    _head = 0  # bytes of a head that is not complete yet
    _in_body = False
    _went_on = False  # whether what was just received has completed a head or a request
    _limit: asyncio.TimerHandle | None = None  # until which the head or the rest of the body has to come

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has connected."""
        super().connection_made(transport)
        self._start_limit()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._end_limit()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent."""
        self._went_on = False
        super().data_received(data)
        self._head = 0 if self._in_body or self._went_on else self._head + len(data)
        if self._limit is None and not self._in_body and not self._went_on:
            self._start_limit()  # this is the beginning of a further request's head
        if self._head > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._end_limit()
        self._in_body = self._went_on = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._end_limit()
        self._in_body, self._went_on = False, True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is sent."""
        super().on_response_complete()
        if self._in_body and not self.pipeline:  # it was answered before all of it had come
            self._start_limit()

    def _start_limit(self) -> None:
        self._end_limit()
        self._limit = self.loop.call_later(self.patience, self.transport.close)

    def _end_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
