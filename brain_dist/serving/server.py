"""The server process: its socket, its start, and its end without losing a request."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from brain_dist.common.notify import notify
from brain_dist.errors import UserError
from brain_dist.serving.protocol import Protocol
from brain_dist.serving.service import Service
from brain_dist.serving.settings import Settings

_BACKLOG = 2048
_QUIET = 0.25  # seconds; a connection that was accepted before the end may send its request so long


def open_socket(settings: Settings) -> socket.socket:
    """The listening socket.

    Raises:
        UserError: the address is in use, or is not one of this machine.
    """
    host, port = settings.host, settings.port
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sets TCP_NODELAY if the protocol is named; without it an answer waits 40 ms for an acknowledgement
        listener = socket.socket(family, kind, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            fix = "choose another --port" if settings.reuse_port else "choose another --port, or replace a process that"
            more = "" if settings.reuse_port else " also runs with --reuse-port by adding it"
            raise UserError(f"port {port} of {host} is in use; {fix}{more}") from None
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error.strerror or error})") from None
    return listener


class Server(uvicorn.Server):
    """A uvicorn server that, on SIGTERM or SIGINT, first says that it is not ready and then ends when it is idle."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        super().__init__(
            uvicorn.Config(
                app, log_config=None, access_log=False, server_header=False, lifespan="on", ws="none", http=Protocol,
                backlog=_BACKLOG, timeout_keep_alive=30, timeout_graceful_shutdown=1, proxy_headers=False,
            )
        )  # fmt: skip
        self._service = service
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and tell systemd so."""
        await super().startup(sockets)
        if self.started:
            notify("READY=1")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second signal ends at once."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.draining = True
        notify("STOPPING=1")
        name = signal.Signals(sig).name
        print(f"brain-dist: {name}: finishing {self._service.in_service} requests", flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if self._service.draining and self._drain is None and self.started:
            self._drain = asyncio.create_task(self._finish())
        return await super().on_tick(counter)

    async def _finish(self) -> None:
        settings = self._service.settings
        await asyncio.sleep(settings.linger)
        for server in self.servers:
            server.close()  # new connections reach the next process, or are refused
        end = time.monotonic() + settings.grace
        quiet_since = time.monotonic()
        while time.monotonic() < end and time.monotonic() - quiet_since < _QUIET:
            if self._service.in_service:
                quiet_since = time.monotonic()
            await asyncio.sleep(0.01)
        if self._service.in_service:
            print(f"brain-dist: {self._service.in_service} requests were not finished after {settings.grace:g} s")
        self.should_exit = True
