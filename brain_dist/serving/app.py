"""The addresses of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from brain_dist import __version__
from brain_dist.errors import UserError
from brain_dist.prediction.reading import Choose, parse_slices
from brain_dist.serving import metrics, schemas
from brain_dist.serving.documents import NOTICE, model_document
from brain_dist.serving.gate import Gate
from brain_dist.serving.problems import Problem, documented
from brain_dist.serving.service import Service
from brain_dist.serving.settings import BATCH_FILES
from brain_dist.serving.uploads import FORM, Upload, read_uploads

PAGE = Path(__file__).with_name("page")
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_RAW = dict.fromkeys(("application/octet-stream", "image/jpeg", "image/png", "application/dicom"), _BINARY)


def _form(several: bool) -> dict[str, Any]:
    file: dict[str, Any] = {"type": "string", "format": "binary"}
    files: dict[str, Any] = {"type": "array", "items": file, "minItems": 1, "maxItems": BATCH_FILES}
    name, schema = ("files", files) if several else ("file", file)
    return {FORM: {"schema": {"type": "object", "properties": {name: schema}, "required": [name]}}}


_ONE = {"requestBody": {"required": True, "content": {**_RAW, **_form(False)}}}
_SEVERAL = {"requestBody": {"required": True, "content": _form(True)}}
_ERRORS = documented(
    "bad-request", "unauthorized", "slow-upload", "too-large", "unsupported", "unreadable", "busy", "deadline"
)
Slices = Annotated[
    str,
    Query(
        pattern="^(all|middle|[0-9]{0,6}:[0-9]{0,6})$",
        description="slices of a file with several: all, middle, or FIRST:END, counted from 0",
    ),
]


def create_app(service: Service, about: dict[str, Any]) -> FastAPI:
    """The application.

    Args:
        service: the model in use.
        about: name, card, speed and method of maps of the model.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batches = asyncio.create_task(service.batcher.run())
        yield
        batches.cancel()

    app = FastAPI(
        title="brain_dist", version=__version__, description=NOTICE, docs_url=None, redoc_url=None, lifespan=lifespan,
        redirect_slashes=False,  # behind a proxy with TLS it would send image and token on to http://
    )  # fmt: skip
    app.add_middleware(Gate, service=service)
    _add_predictions(app, service)
    _add_state(app, service, about)
    _add_errors(app)
    app.mount("/page", StaticFiles(directory=PAGE), "page")
    return app


def _add_predictions(app: FastAPI, service: Service) -> None:
    async def answered(request: Request, max_files: int, work: Any) -> Response:
        return await _answered(service, request, max_files, work)

    @app.post("/v1/predict", response_model=schemas.Answer, responses=_ERRORS, openapi_extra=_ONE)
    async def predict(request: Request, slices: Slices = "all") -> Response:
        """Predict a file: an image, a DICOM or a NIfTI file, as the body or as a form's file."""
        choose = _parsed(slices)

        async def work(uploads: list[Upload]) -> dict[str, Any]:
            return {"predictions": await service.predict(_bytes_of(uploads), choose)}

        return await answered(request, 1, work)

    @app.post("/v1/predict/batch", response_model=schemas.Answers, responses=_ERRORS, openapi_extra=_SEVERAL)
    async def predict_batch(request: Request, slices: Slices = "all") -> Response:
        """Predict up to 64 files of a form. A file that cannot be predicted has a problem; the others are predicted."""
        choose = _parsed(slices)

        async def work(uploads: list[Upload]) -> dict[str, Any]:
            return {"items": await service.predict_each(uploads, choose)}

        return await answered(request, BATCH_FILES, work)

    @app.post("/v1/explain", response_model=schemas.Explanation, responses=_ERRORS, openapi_extra=_ONE)
    async def explain(
        request: Request,
        frame: Annotated[
            int | None, Query(ge=0, lt=100_000, description="number of the slice (default: middle)")
        ] = None,
    ) -> Response:
        """What the network saw of a slice, and for each class a map of what raised its score."""

        async def work(uploads: list[Upload]) -> dict[str, Any]:
            return await service.explain(_bytes_of(uploads), frame)

        return await answered(request, 1, work)


def _add_state(app: FastAPI, service: Service, about: dict[str, Any]) -> None:
    @app.get("/v1/model", response_model=schemas.ModelCard, responses=documented("unauthorized"))
    async def model() -> Response:
        """What is served, its limits and its model card."""
        return JSONResponse(model_document(service.predictor, service.settings.limits(), about))

    @app.get("/healthz", response_model=schemas.State)
    async def health() -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", response_model=schemas.State, responses={503: {"model": schemas.State}})
    async def ready() -> Response:
        """Whether new requests are wanted: 503 once the process is about to end."""
        if service.draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics_text() -> Response:
        """Counts and times in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=metrics.MEDIA_TYPE)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        service.load_maps()  # a service that is used without the page never loads it
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        names = ", ".join(sorted({str(each["loc"][-1]) for each in error.errors()}))
        return Problem("bad-request", f"invalid: {names}; /openapi.json says what is allowed").response()

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        kind = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "bad-request")
        return Problem(kind, "/openapi.json lists the addresses", dict(error.headers or {})).response()


def _parsed(slices: str) -> Choose:
    try:
        return parse_slices(slices)
    except UserError as error:
        raise Problem("bad-request", str(error).removeprefix("--")) from None


def _bytes_of(uploads: list[Upload]) -> bytes:
    (upload,) = uploads
    if upload.problem is not None:
        raise upload.problem
    if not upload.data:
        raise Problem("unreadable", "the file is empty (0 bytes)")
    return bytes(upload.data)


async def _answered(service: Service, request: Request, max_files: int, work: Any) -> Response:
    """Read a request's files and work on them, as long as there is time and the client waits for the answer."""
    settings = service.settings
    end = asyncio.get_running_loop().time() + settings.deadline
    with service.admitted():
        try:
            async with asyncio.timeout_at(end):
                uploads = await read_uploads(
                    request.stream(), request.headers.get("content-type"), max_bytes=settings.max_bytes,
                    max_files=max_files,
                )  # fmt: skip
        except TimeoutError:
            raise Problem(
                "slow-upload", f"the request was not complete after {settings.deadline:g} s", {"Connection": "close"}
            ) from None
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        result = await _unless_disconnected(request, work(uploads), end, settings.deadline)
    return Response(status_code=499) if result is None else JSONResponse({"notice": NOTICE, **result})


async def _unless_disconnected(
    request: Request, work: Coroutine[Any, Any, dict[str, Any]], end: float, deadline: float
) -> dict[str, Any] | None:
    """The result of ``work``, or None if the client has gone; then and after the deadline the work is withdrawn."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        remaining = max(0.0, end - asyncio.get_running_loop().time())
        done, _ = await asyncio.wait({task, gone}, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        if gone in done:
            return None
        raise Problem("deadline", f"there was no answer after {deadline:g} s; the service is busy, or the file is long")
    finally:
        for each in (task, gone):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await each


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
