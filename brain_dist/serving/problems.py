"""Errors of the service as problem details (RFC 9457): JSON with type, title, status and detail."""

from __future__ import annotations

import sys
import traceback
from typing import Any

from fastapi.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"
# name → (status, title)
KINDS = {
    "bad-request": (400, "The request is not valid"),
    "unauthorized": (401, "A bearer token is needed"),
    "not-found": (404, "Nothing has this address"),
    "method-not-allowed": (405, "This address has no such method"),
    "slow-upload": (408, "The upload took too long"),
    "too-large": (413, "The file is too large"),
    "unsupported": (415, "This kind of file is not supported"),
    "unreadable": (422, "The file cannot be predicted"),
    "internal": (500, "The service failed"),
    "busy": (503, "The service has no room for this request now"),
    "deadline": (504, "The answer took too long"),
}


class Problem(Exception):
    """An error that is reported to the client.

    Attributes:
        kind: a name of :data:`KINDS`.
        detail: what is wrong, in a sentence without the file's name.
        headers: of the response.
    """

    def __init__(self, kind: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.headers = kind, detail, headers or {}

    @property
    def status(self) -> int:
        """The response's status code."""
        return KINDS[self.kind][0]

    def document(self) -> dict[str, Any]:
        """The members of the problem details."""
        status, title = KINDS[self.kind]
        return {"type": f"urn:brain-dist:{self.kind}", "title": title, "status": status, "detail": self.detail}

    def response(self) -> JSONResponse:
        """The response."""
        return JSONResponse(self.document(), self.status, {**self.headers}, MEDIA_TYPE)


def internal_problem(error: Exception) -> Problem:
    """The problem that stands for a fault of the service. Only its place is printed: its text could quote a client."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    print(f"brain-dist: error: {type(error).__name__} at {frame.filename}:{frame.lineno}", file=sys.stderr, flush=True)
    return Problem("internal", "see the service's log")


def documented(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """The responses of these kinds for an operation of the OpenAPI document."""
    return {
        KINDS[kind][0]: {
            "description": KINDS[kind][1],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
        }
        for kind in kinds
    }
