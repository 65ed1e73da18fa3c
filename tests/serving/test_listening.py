"""The listening socket and the connections of the service."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import uvicorn

from brain_dist.serving.protocol import Protocol
from brain_dist.serving.server import open_socket
from brain_dist.serving.settings import Settings

SETTINGS = Settings("127.0.0.1", 0, False, None, None, 16, 0.005, 64, 1, 1, 1, 1.0, 1.0, 0.0)


def test_answers_do_not_wait_for_an_acknowledgement() -> None:
    """Headers and body are two writes; without TCP_NODELAY the second one waits 40 ms for the client's kernel."""

    async def accepted() -> int:
        nodelay: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nodelay.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = open_socket(SETTINGS)
        async with await asyncio.start_server(connected, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            value = await nodelay
            writer.close()
            return value

    assert asyncio.run(accepted()) != 0


class Hasty(Protocol):
    """The service's protocol with less patience."""

    patience = 1.0


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once, without reading the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize(
    ("pieces", "answers"),
    [
        ([b""], 0),
        ([b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ", *[b"x"] * 100], 0),
        ([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", *[b"GET / HTTP/1.1\r\nX-Long: ", *[b"x"] * 100]], 1),
        ([b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n", *[b"x"] * 100], 1),
        ([b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n", b"x" * 8, *[b""] * 15], 1),
    ],
    ids=["nothing", "slow head", "slow second head", "slow body after the answer", "complete"],
)
def test_connections_that_do_not_go_on_are_closed(pieces: list[bytes], answers: int) -> None:
    """Each keeps a file descriptor; without a limit a few hundred of them shut everybody out."""

    async def main() -> None:
        listener = open_socket(SETTINGS)
        config = uvicorn.Config(application, http=Hasty, log_config=None, lifespan="off", timeout_keep_alive=60)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        received = asyncio.create_task(reader.read())
        for piece in pieces:
            if writer.is_closing():
                break
            writer.write(piece)
            await asyncio.sleep(0.1)
        is_complete = pieces[-1] == b"" and answers == 1
        if is_complete:
            assert not received.done()
            writer.close()
        assert (await asyncio.wait_for(received, 30)).count(b"HTTP/1.1 200 OK") == answers
        server.should_exit = True
        await serving

    asyncio.run(main())
