"""The options of `brain-dist serve`, checked."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from brain_dist.errors import UserError

MIN_TOKEN = 16  # characters
BATCH_FILES = 64  # of one request
BATCH_BODIES = 4  # a request of several files may be as long as so many files of the largest size


@dataclass(frozen=True)
class Settings:
    """How the service runs.

    Attributes:
        host: address to listen at.
        port: port to listen at; 0 takes a free one.
        reuse_port: share the port with another process, which may so be replaced.
        token: the bearer token that requests need; None asks for none.
        threads: threads of a forward pass; None leaves the choice to the model's kind.
        max_batch: images of one forward pass.
        max_wait: seconds to wait for further images while other requests are being decoded.
        queue: requests that may be in the service at once.
        max_bytes: of a file.
        max_pixels: of a file, all its slices together.
        max_frames: slices of a file.
        deadline: seconds until a request is given up.
        grace: seconds for the requests in progress after SIGTERM.
        linger: seconds that new connections are accepted after SIGTERM.
    """

    host: str
    port: int
    reuse_port: bool
    token: str | None
    threads: int | None
    max_batch: int
    max_wait: float
    queue: int
    max_bytes: int
    max_pixels: int
    max_frames: int
    deadline: float
    grace: float
    linger: float

    def limits(self) -> dict[str, float]:
        """What a request may have at most, for clients: bytes, pixels and slices of a file, files, and seconds."""
        return {
            "bytes": self.max_bytes, "pixels": self.max_pixels, "frames": self.max_frames, "files": BATCH_FILES,
            "seconds": self.deadline,
        }  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(path: Path) -> str:
    """The bearer token in a file.

    Raises:
        UserError: the file cannot be read, or its content is not a token.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not ASCII text"
        raise UserError(f"--token-file {path} cannot be read ({reason})") from None
    if len(token) < MIN_TOKEN or not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token):
        raise UserError(
            f"--token-file {path}: must be one word of at least {MIN_TOKEN} letters, digits and ._~+/=-; make one with"
            " `openssl rand -hex 32`"
        )
    return token


def make_settings(
    *, host: str, port: int, reuse_port: bool, token_file: Path | None, allow_anonymous: bool, threads: int | None,
    max_batch: int, max_wait_ms: float, queue: int, max_mb: float, max_mp: float, max_frames: int, deadline: float,
    grace: float, linger: float,
) -> Settings:  # fmt: skip
    """The settings that the command line asks for.

    Raises:
        UserError: a value out of its range, a token that cannot be read, or an address that other machines reach
            without a token.
    """
    ranges = {
        "port": (port, 0, 65535), "max-batch": (max_batch, 1, 1024), "max-wait-ms": (max_wait_ms, 0, 1000),
        "queue": (queue, 1, 100_000), "max-mb": (max_mb, 0.001, 2048), "max-mp": (max_mp, 0.001, 268),
        "max-frames": (max_frames, 1, 10_000), "deadline": (deadline, 0.1, 3600), "grace": (grace, 0, 3600),
        "linger": (linger, 0, 3600), "threads": (1 if threads is None else threads, 1, 1024),
    }  # fmt: skip
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise UserError(f"--{name} {value:g}: must be between {low:g} and {high:g}")
    token = None if token_file is None else read_token(token_file)
    if token is None and not allow_anonymous and not is_loopback(host):
        raise UserError(
            f"--host {host}: other machines reach this address, and anyone on them could use the service; add"
            " --token-file FILE, or --allow-anonymous if something in front of it checks who asks"
        )
    return Settings(
        host, port, reuse_port, token, threads, max_batch, max_wait_ms / 1000, queue, int(max_mb * 1e6),
        int(max_mp * 1e6), max_frames, deadline, grace, linger,
    )  # fmt: skip
