"""A small HTTP client that keeps its connections, for many requests at once from one thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What came back for one request, and how long that took from its first byte, with retries."""

    number: int
    status: int
    seconds: float
    body: bytes
    tries: int


class Client:
    """A connection to a service on this machine.

    A request whose connection closed without an answer is sent again, once, as a request that changes nothing may be.
    """

    def __init__(self, port: int, path: str, content_type: str) -> None:
        self._port = port
        self._head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, number: int, data: bytes) -> Answer:
        """POST ``data``."""
        start = time.perf_counter()
        for tries in range(1, 3):
            try:
                status, body = await self._exchange(data)
                return Answer(number, status, time.perf_counter() - start, body, tries)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.close()
        return Answer(number, 0, time.perf_counter() - start, b"", tries)

    async def _exchange(self, data: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(f"{self._head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        body = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(first.split()[1]), body

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def load(
    port: int, path: str, content_type: str, bodies: Sequence[bytes], *, clients: int, more: Callable[[int], bool]
) -> list[Answer]:
    """The answers to requests of several clients, each of which sends its next one when it has the answer to the last.

    Args:
        port: of the service.
        path: to POST to.
        content_type: of the bodies.
        bodies: request n has the body n modulo their number.
        clients: how many.
        more: whether request n shall be sent.
    """
    answers: list[Answer] = []
    number = 0

    async def work() -> None:
        nonlocal number
        client = Client(port, path, content_type)
        while more(number):
            own, number = number, number + 1
            answers.append(await client.post(own, bodies[own % len(bodies)]))
        client.close()

    await asyncio.gather(*(work() for _ in range(clients)))
    return answers
