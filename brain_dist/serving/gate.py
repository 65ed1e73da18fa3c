"""What surrounds every request: who may ask, security headers, counting, and no trace of an error but its place."""

from __future__ import annotations

import hmac
import time
from typing import TYPE_CHECKING, Any

from brain_dist.serving.problems import Problem, internal_problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from brain_dist.serving.service import Service

WORK = ("/v1/predict", "/v1/predict/batch", "/v1/explain")  # what takes a place in the service
PUBLIC = ("/healthz", "/readyz", "/page/")  # and the page itself: they say nothing of the model
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_ENCODED = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]


class Gate:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        token = service.settings.token
        self._expected = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # whose body the server leaves out
        start, status = time.perf_counter(), 0

        async def guarded_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], *_ENCODED]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                if self._service.draining:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            self._check(scope)
            if scope["path"] in WORK and scope["method"] == "POST":
                self._service.check_room()  # before the framework: refusals have to be cheap when there are many
            await self._app(scope, receive, guarded_send)
        except Problem as problem:
            await problem.response()(scope, receive, guarded_send)
        except Exception as error:
            response = internal_problem(error).response()
            if not status:
                await response(scope, receive, guarded_send)
        finally:
            route: Any = scope.get("route")
            path = getattr(route, "path", scope["path"] if scope["path"] in WORK else "other")
            self._service.metrics.request(path, status or 499, time.perf_counter() - start)

    def _check(self, scope: Scope) -> None:
        """Raise a problem unless the request has the token, or needs none."""
        path = scope["path"]
        if self._expected is None or path == "/" or path.startswith(PUBLIC):
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, value = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(value.strip(), self._expected):
            raise Problem(
                "unauthorized", "send the header `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"}
            )
