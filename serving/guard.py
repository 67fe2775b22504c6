"""What stands before every route: who may ask, how much, how fast; and one line of JSON for whatever goes wrong.

An ASGI application around another one, so that no route can forget a limit: it counts the bytes of bodies as they come,
chunked ones too, before anything reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import re
import sys
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from serving.limits import Limits
from serving.metrics import Metrics
from serving.refusals import RefusalError, busy

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
OPEN = ("/healthz", "/readyz")
"""Routes that need no key, beside the page: they say nothing of models or texts."""
_SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
LINGER_SECONDS, LINGER_BODIES = 1.0, 16
"""How long, and how many times the most bytes of a body, a refused client may go on sending before it is cut off."""
ROUTE = "divan.route"
"""Key of a request's scope under which the application notes the name of the route, for the counters."""


class Guard:
    """The application with its limits.

    Args:
        application: that answers.
        limits: of the server.
        metrics: count.
        key: that a request has to bring as `Authorization: Bearer KEY`; None for none.
        hosts: names that `Host` may have; empty for any.
        open_paths: further routes that need no key.

    Attributes:
        stopping: whether nothing new is accepted.
    """

    def __init__(
        self,
        application: Application,
        limits: Limits,
        metrics: Metrics,
        *,
        key: str | None = None,
        hosts: Collection[str] = (),
        open_paths: Collection[str] = (),
    ):
        self._application, self._limits, self._metrics = application, limits, metrics
        self._key = None if key is None else key.encode()
        self._open = frozenset((*OPEN, *open_paths))
        self._hosts = frozenset(host.lower() for host in hosts)
        self.stopping = False
        self._requests = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        body = _Body(receive, self._limits)
        reply = _Reply(send, body, _request_id(headers), self._limits.body_seconds)
        begin = time.perf_counter()
        self._requests += 1
        self._metrics.in_flight.set(self._requests)
        try:
            self._check(scope, headers)
            await self._application(scope, body, reply.send)
        except RefusalError as error:
            await reply.refuse(error)
        except Exception:
            # A reply that has begun, and its reader has stopped reading, is no defect.
            if not reply.stalled:
                print(f"request {reply.id} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
                await reply.refuse(RefusalError(500, "failed", "a defect; the server's log has it under this id"))
        finally:
            self._requests -= 1
            self._metrics.in_flight.set(self._requests)
            self._metrics.requests.labels(scope.get(ROUTE, "other"), str(reply.status or 499)).inc()
            self._metrics.request_seconds.observe(time.perf_counter() - begin)

    def _check(self, scope: Message, headers: dict[str, str]) -> None:
        """Raise `RefusalError` where the head of a request says that it is not answered."""
        close = {"connection": "close"}
        if self._hosts and _name_of(headers.get("host", "")) not in self._hosts:
            raise RefusalError(
                400, "wrong_host", "Host names another machine; allow it with --allowed_hosts", None, close
            )
        if self._key is not None and scope["path"] not in self._open:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
                asks = {**close, "www-authenticate": "Bearer"}
                raise RefusalError(401, "unauthorized", "send Authorization: Bearer KEY", None, asks)
        length = headers.get("content-length", "0")
        # The header's form is the HTTP reader's business; thousands of digits are not ours.
        if len(length) > 15 or (length.isascii() and length.isdigit() and int(length) > self._limits.body_bytes):
            raise _too_large(self._limits)
        if scope["method"] != "POST":
            return
        if self.stopping:
            raise RefusalError(503, "stopping", "the server stops", None, {**close, "retry-after": "5"})
        if self._requests > self._limits.requests:
            self._metrics.rejected.labels("requests").inc()
            raise busy("queue_full", f"{self._limits.requests} requests are being answered, and no more may")
        if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise RefusalError(415, "not_json", "the body is compressed; send it as it is", "Content-Encoding", close)


class _Body:
    """The messages of a request, counted and timed until its body is whole."""

    def __init__(self, receive: Receive, limits: Limits):
        self._receive, self._limits = receive, limits
        self._bytes, self._whole = 0, False
        self._until = time.monotonic() + limits.body_seconds

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(max(self._until - time.monotonic(), 0.001)):
                message = await self._receive()
        except TimeoutError:
            close = {"connection": "close"}
            message = f"the body did not come within {self._limits.body_seconds:g} s"
            raise RefusalError(408, "too_slow", message, None, close) from None
        if message["type"] == "http.disconnect":
            raise RefusalError(499, "left", "the client has left")
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limits.body_bytes:
            raise _too_large(self._limits)
        self._whole = not message.get("more_body", False)
        return message

    async def forget(self) -> None:
        """Read what the client still sends of a refused body, for a while, and keep nothing of it.

        A connection that is closed while bytes come in is reset, and the client finds a broken pipe in the place of the
        refusal that it was sent (RFC 9112, section 9.6).
        """
        left = LINGER_BODIES * self._limits.body_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._whole and left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self._whole = message["type"] == "http.disconnect" or not message.get("more_body", False)


class _Reply:
    """What is sent of an answer, with the headers that every answer has."""

    def __init__(self, send: Send, body: _Body, request_id: str, seconds: float):
        self._send, self._body, self.id, self._seconds = send, body, request_id, seconds
        self.status: int | None = None
        self.stalled = False
        self._closes = False

    async def send(self, message: Message) -> None:
        """Send one message; raises `TimeoutError` where the client does not read it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [(b"x-request-id", self.id.encode()), *_SAFE]
            given = {name.lower() for name, _ in message.get("headers", ())}
            added = [pair for pair in own if pair[0] not in given]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
            self._closes = any(
                name.lower() == b"connection" and value == b"close" for name, value in message["headers"]
            )
        if self._closes and message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._pass({**message, "more_body": True})
            await self._body.forget()
            message = {"type": "http.response.body", "body": b""}
        await self._pass(message)

    async def _pass(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            self.stalled = True
            raise

    async def refuse(self, error: RefusalError) -> None:
        """Send a refusal, unless an answer has begun."""
        if self.status is not None:
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(error.body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": error.body})


def _request_id(headers: dict[str, str]) -> str:
    given = headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


def _name_of(host: str) -> str:
    """Return the name in a Host header without the port: "localhost:8000" is localhost, "[::1]:8000" is ::1."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _too_large(limits: Limits) -> RefusalError:
    message = f"the body is larger than {limits.body_bytes:,} bytes; send less in a request"
    return RefusalError(413, "too_large", message, None, {"connection": "close"})
