"""The listening socket of the service."""

from __future__ import annotations

import asyncio
import socket

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
