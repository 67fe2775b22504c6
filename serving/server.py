"""One process that serves: a socket, the loop, signals. SIGTERM refuses what is new, answers the rest, exits 0.

uvicorn has no limit on how slowly a head may come, tells wrong HTTP in plain text, and ends by the signal that it got;
the two classes here change that.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import h11
import uvicorn
from absl.app import UsageError
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.answering import Answering
from serving.batching import Batcher
from serving.guard import Guard
from serving.http import Routes, create_application, page_files
from serving.limits import Limits
from serving.metrics import Metrics
from serving.models import Models, Say
from serving.refusals import RefusalError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_MOST_HEAD_BYTES = 16_384


class Serving:
    """A server and its parts.

    Args:
        models: that are served; they are loaded when it runs.
        limits: of requests.
        metrics: count.
        key: that requests have to bring; None for none.
        hosts: names that `Host` may have; empty for any.
        reload_seconds: between two looks for something new; 0: never.
        say: takes a line for whoever runs the server.
    """

    def __init__(
        self,
        models: Models,
        limits: Limits,
        metrics: Metrics,
        *,
        key: str | None = None,
        hosts: Collection[str] = (),
        reload_seconds: float = 0.0,
        say: Say = lambda line: None,
    ):
        self.models, self.limits, self._reload_seconds, self._say = models, limits, reload_seconds, say
        self.batcher = Batcher(
            limits.batch_tokens,
            limits.batch_rows,
            computed=metrics.computed,
            failed=lambda error: metrics.failed.inc(),
        )
        metrics.watch_queue(lambda: self.batcher.waiting)
        self.answering = Answering(self.batcher, limits, metrics)
        routes = Routes(models, self.answering, limits, metrics)
        self.guard = Guard(create_application(routes), limits, metrics, key=key, hosts=hosts, open_paths=page_files())
        routes.ready = lambda: models.ready and not self.guard.stopping and self.batcher.alive
        self._failure: BaseException | None = None
        self._server: _Server | None = None

    def run(self, listening: socket.socket) -> None:
        """Serve until a signal or `stop`; raises what kept the models from being loaded."""
        config = uvicorn.Config(
            self.guard,
            http=_protocol(self.limits),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,  # its own would close what others log to
            log_level="critical",
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=_MOST_HEAD_BYTES,
            timeout_keep_alive=max(1, round(self.limits.keep_alive_seconds)),
            timeout_graceful_shutdown=max(1, round(self.limits.grace_seconds)),
        )
        self._server = _Server(config, self._stopping)
        try:
            asyncio.run(self._serve(self._server, listening))
        finally:
            self.answering.close()
        if self._failure is not None:
            raise self._failure

    @property
    def started(self) -> bool:
        """Whether it listens."""
        return self._server is not None and self._server.started

    @property
    def listens(self) -> bool:
        """Whether new connections are taken."""
        return self._server is not None and any(each.is_serving() for each in getattr(self._server, "servers", ()))

    def stop(self) -> None:
        """Do what SIGTERM does; from any thread."""
        if self._server is not None:
            self._server.handle_exit(signal.SIGTERM, None)

    def _stopping(self) -> None:
        self.guard.stopping = True

    async def _serve(self, server: _Server, listening: socket.socket) -> None:
        # Loading is a thread of its own that nobody waits for at the end: it may take minutes.
        threading.Thread(target=self._load, args=(server,), name="load", daemon=True).start()
        watching = asyncio.create_task(self._watch()) if self._reload_seconds else None
        try:
            await server.serve(sockets=[listening])
        finally:
            if watching is not None:
                watching.cancel()

    def _load(self, server: _Server) -> None:
        try:
            self.models.load_all()
            if not self.guard.stopping:
                self._say("ready")
        except BaseException as error:
            self._failure = error
            server.should_exit = True

    async def _watch(self) -> None:
        while not self.models.ready:
            await asyncio.sleep(0.1)
        await self.models.watch(self._reload_seconds)


class _Server(uvicorn.Server):
    """Ends in peace by the first signal, at once by the second."""

    def __init__(self, config: uvicorn.Config, stopping: Callable[[], None]):
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Refuse what is new, and end when all else is answered."""
        self._stopping()
        self.force_exit, self.should_exit = self.should_exit, True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals, which are not raised again at the end: it is what they asked for."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def _protocol(limits: Limits) -> type[H11Protocol]:
    """Return HTTP/1.1 whose heads come in time and whose mistakes are answered by a line of JSON."""

    class Impatient(H11Protocol):
        """Closes a connection whose next head takes too long."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._stop()
            elif self._timer is None:
                self._wait()

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state is h11.IDLE:
                refusal = RefusalError(400, "malformed", "the request is no HTTP/1.1, or its head is too large")
                headers = [("content-type", "application/json"), ("content-length", str(len(refusal.body)))]
                response = h11.Response(status_code=400, headers=[*headers, ("connection", "close")])
                for event in (response, h11.Data(data=refusal.body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _wait(self) -> None:
            self._timer = self.loop.call_later(limits.header_seconds, self.transport.close)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Impatient


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises `UsageError` for what names no machine, `OSError` with host and port."""
    no_host = UsageError(f"--host={host[:80]} names no machine: expected an address, as 127.0.0.1, or 0.0.0.0 for all")
    if not host:
        raise no_host  # the system would take it for all addresses
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
        # A connection has it from here. Without it the body of an answer waits 40 ms until the client has acknowledged
        # the headers; asyncio sets it only where it opened the socket itself.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except UnicodeError:
        raise no_host from None
    except OSError as error:
        if (error.errno or 0) < 0:  # of who knows names, not of the system
            raise no_host from None
        # create_server writes the address into the words of the system.
        fix = "give another --port, 0 for any that is free, or another --host"
        raise OSError(error.errno, os.strerror(error.errno or 0), f"{host}:{port}; {fix}") from None


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
