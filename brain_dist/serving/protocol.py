"""HTTP/1.1 on a connection: uvicorn's protocol with llhttp, and a limit on the head of a request.

Most of what a refusal costs under overload is parsing, in which llhttp is several times faster than h11; but it keeps a
head of any length.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 2**16  # bytes of the request line and the headers


class Protocol(HttpToolsProtocol):
    """Answers 400 and closes the connection once a request's head is longer than :data:`MAX_HEAD`."""

    _head = 0  # bytes of a head that is not complete yet
    _in_body = False
    _went_on = False  # whether what was just received has completed a head or a request

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent."""
        self._went_on = False
        super().data_received(data)
        self._head = 0 if self._in_body or self._went_on else self._head + len(data)
        if self._head > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._in_body = self._went_on = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._in_body, self._went_on = False, True
        super().on_message_complete()
