"""The routes of a server (docs/serving.md, "Over HTTP", has the contract); limits stand before them in `serving.guard`.

application = create_application(models, answering, limits, metrics)
Guard(application, limits, metrics)     # an ASGI application
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import fastapi
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from serving.answering import Answering, Stream, Timing, failed
from serving.guard import ROUTE
from serving.limits import Limits
from serving.metrics import CONTENT_TYPE, Metrics
from serving.models import Models
from serving.openapi import ERRORS, NAMED, PREDICT, SIMPLE, described
from serving.refusals import RefusalError, busy
from serving.requests import Request, read_predict, read_simple
from serving.served import Served

VERSION = "0.1.0"
PAGE = Path(__file__).with_name("page")
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "x-frame-options": "DENY",
}
Route = Callable[[fastapi.Request], Awaitable[Response]]
_Value = TypeVar("_Value")


class _Events(StreamingResponse):
    """Server-sent events of a stream, which is released however it ends."""

    media_type = "text/event-stream"

    def __init__(self, stream: Stream):
        super().__init__(self._lines(stream), media_type="text/event-stream")
        self._stream = stream

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.release()

    async def _lines(self, stream: Stream) -> AsyncIterator[bytes]:
        async for part in stream.parts():
            yield b"data: " + _json(part) + b"\n\n"


class Routes:
    """What each route does."""

    def __init__(self, models: Models, answering: Answering, limits: Limits, metrics: Metrics):
        self._models, self._answering, self._limits, self._metrics = models, answering, limits, metrics
        self.ready: Callable[[], bool] = lambda: models.ready

    async def predict(self, request: fastapi.Request) -> Response:
        """Answer in TF Serving's shape."""
        served, asked = await self._asked(request, read_predict)
        if asked.stream:
            return _Events(await self._stream(served, asked))
        answers = await _unless_left(request, self._answering.answers(served, asked))
        found = answers.found
        if asked.columns:
            content: dict[str, Any] = {"outputs": {name: [each.get(name) for each in found] for name in found[0]}}
        else:
            content = {"predictions": found}
        content |= {"model": served.name, "version": served.version, **answers.as_json()}
        return _answer(content, answers.timing)

    async def simple(self, request: fastapi.Request) -> Response:
        """Answer in SimpleServing's shape."""
        served, asked = await self._asked(request, read_simple)
        answers = await _unless_left(request, self._answering.answers(served, asked))
        found = answers.found
        result: dict[str, Any] = {"predictions": found}
        labels = list(served.loaded.labels)
        if labels and all("confidence" in each for each in found):
            result = {
                "label": [labels.index(each["prediction"]) for each in found],
                "confidence": [each["confidence"] for each in found],
                "label_name": [each["prediction"] for each in found],
            }
        return _answer({"result": result}, answers.timing)

    async def status(self, request: fastapi.Request) -> Response:
        """Return what TF Serving says of a model."""
        served = self._named(request)
        state = {"version": "0", "state": "LOADING"} if served is None else {"version": served.version}
        status = {"error_code": "OK", "error_message": ""}
        return _reply({"model_version_status": [{"state": "AVAILABLE", **state, "status": status}]})

    async def info(self, request: fastapi.Request) -> Response:
        """Return models, limits and version."""
        models = {name: self._models.get(name) for name in self._models.names}
        shown = {name: {"state": "loading"} if each is None else each.as_json() for name, each in models.items()}
        return _reply({"models": shown, "limits": self._limits.as_json(), "version": VERSION})

    async def healthz(self, request: fastapi.Request) -> Response:
        """Return that the process lives."""
        return _reply({"status": "ok"})

    async def readyz(self, request: fastapi.Request) -> Response:
        """Return whether every model is warm and nothing is stopping."""
        if not self.ready():
            raise busy("loading", "models are loading, or the server is stopping")
        return _reply({"status": "ready"})

    async def metrics(self, request: fastapi.Request) -> Response:
        """Return the counters for Prometheus."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def _asked(
        self, request: fastapi.Request, read: Callable[[bytes, Limits], Request]
    ) -> tuple[Served, Request]:
        served = self._named(request)
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        # What curl -d says where nobody says anything is taken, as TF Serving takes it.
        if kind not in ("application/json", "application/x-www-form-urlencoded"):
            raise RefusalError(415, "not_json", "Content-Type is no JSON; send application/json", "Content-Type")
        asked = read(await request.body(), self._limits)
        if served is None:
            raise busy("loading", "the model is loading")
        return served, asked

    async def _stream(self, served: Served, asked: Request) -> Stream:
        if not served.streams:
            raise RefusalError(
                422, "wrong_input", f"a model of the kind {served.loaded.kind} does not stream", "stream"
            )
        if len(asked.instances) != 1:
            raise RefusalError(422, "wrong_input", "a stream answers one instance", asked.places[1])
        return await self._answering.stream(served, asked)

    def _named(self, request: fastapi.Request) -> Served | None:
        name = request.path_params["name"]
        try:
            return self._models.get(name)
        except KeyError:
            known = ", ".join(self._models.names)
            raise RefusalError(404, "not_found", f"no model {name[:64]!r}; there are {known}") from None


def page_files() -> dict[str, tuple[bytes, str]]:
    """Return the contents of the files of the page with their types by route; index.html is "/"."""
    files = sorted(PAGE.iterdir()) if PAGE.is_dir() else []
    return {
        "/" if file.name == "index.html" else f"/{file.name}": (file.read_bytes(), _TYPES[file.suffix])
        for file in files
        if file.suffix in _TYPES
    }


def create_application(routes: Routes) -> fastapi.FastAPI:
    """Return the routes as an ASGI application."""
    application = fastapi.FastAPI(
        title="Divan",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,  # a redirection would repeat the Host that it was asked by
    )
    application.add_exception_handler(RefusalError, _refused)  # pyright: ignore[reportArgumentType]
    application.add_exception_handler(Exception, _failed)
    application.add_exception_handler(HTTPException, _not_there)  # pyright: ignore[reportArgumentType]
    for method, path, route, told in (
        ("POST", "/v1/models/{name}:predict", routes.predict, PREDICT),
        ("GET", "/v1/models/{name}", routes.status, NAMED),
        ("POST", "/models/{name}", routes.simple, SIMPLE),
        ("GET", "/info", routes.info, {}),
        ("GET", "/healthz", routes.healthz, {}),
        ("GET", "/readyz", routes.readyz, {}),
        ("GET", "/metrics", routes.metrics, {}),
    ):
        application.add_api_route(
            path, _noted(path, route), methods=[method], responses=ERRORS, openapi_extra=told, response_model=None
        )
    for path, (content, kind) in page_files().items():
        application.add_api_route(path, _noted("page", _file(content, kind)), include_in_schema=False)
    application.openapi = lambda: described(application)
    return application


def _noted(path: str, route: Route) -> Route:
    """Return a route that notes its path, as it was declared, for the counters."""

    async def noted(request: fastapi.Request) -> Response:
        request.scope[ROUTE] = path
        return await route(request)

    noted.__name__, noted.__doc__ = getattr(route, "__name__", "page"), route.__doc__
    return noted


def _file(content: bytes, kind: str) -> Route:
    async def page(request: fastapi.Request) -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=_PAGE_HEADERS)

    return page


async def _unless_left(request: fastapi.Request, answer: Awaitable[_Value]) -> _Value:
    """Return an answer; where the client leaves before it is there, stop computing it."""
    task = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RefusalError(499, "left", "the client has left")
    finally:
        for each in (task, gone):
            each.cancel()


async def _refused(request: fastapi.Request, error: RefusalError) -> Response:
    return Response(error.body, error.status, headers=error.headers, media_type="application/json")


async def _failed(request: fastapi.Request, error: Exception) -> Response:
    refusal = failed()
    return Response(refusal.body, refusal.status, media_type="application/json")


async def _not_there(request: fastapi.Request, error: HTTPException) -> Response:
    code = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "malformed")
    told = {404: "no such route; GET /openapi.json lists them", 405: "the route has another method"}
    refusal = RefusalError(error.status_code, code, told.get(error.status_code, "the request cannot be read"))
    return Response(refusal.body, refusal.status, headers=error.headers, media_type="application/json")


def _answer(content: dict[str, Any], timing: Timing) -> Response:
    return _reply(content, {"server-timing": timing.header})


def _reply(content: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(_json(content) + b"\n", media_type="application/json", headers=headers)


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
