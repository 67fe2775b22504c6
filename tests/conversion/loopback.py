"""A web server on the loopback address that serves files well, or badly in one way by the file's path."""

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; `server.behaviours` take over for a path."""

    server: Any
    timeout = 10

    def do_GET(self) -> None:
        """Answer, and remember who asked for what."""
        path = self.path.partition("?")[0]
        self.server.requests.append((self.path, dict(self.headers)))
        behaviour = self.server.behaviours.get(path, serve)
        with suppress(BrokenPipeError, ConnectionResetError):
            behaviour(self, self.server.files.get(path))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def head(self, status: int, **headers: Any) -> None:
        """Send the status and headers; underscores stand for dashes."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def serve(handler: Handler, content: bytes | None) -> None:
    """Answer as a good server does, parts included."""
    if content is None:
        handler.head(404, Content_Length=0)
        return
    tag = handler.server.tags.get(handler.path, '"1"')
    asked = handler.headers.get("Range", "")
    if asked and handler.headers.get("If-Range") == tag:
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            handler.head(416, Content_Length=0, Content_Range=f"bytes */{len(content)}")
            return
        rest = content[start:]
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.head(206, ETag=tag, Content_Length=len(rest), Content_Range=span)
        handler.wfile.write(rest)
        return
    handler.head(200, ETag=tag, Content_Length=len(content))
    handler.wfile.write(content)


def drops(times: int, **headers: Any) -> Callable[[Handler, bytes], None]:
    """Return a server that hangs up in the middle of the first responses."""
    left = [times]

    def behave(handler: Handler, content: bytes) -> None:
        if left[0] <= 0:
            serve(handler, content)
            return
        left[0] -= 1
        start = 0
        if (asked := handler.headers.get("Range")) and handler.headers.get("If-Range") == headers.get("ETag"):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.head(206 if start else 200, Content_Length=len(content) - start, **headers)
        handler.wfile.write(content[start : start + (len(content) - start) // 2])

    return behave


def says(status: int, **headers: Any) -> Callable[[Handler, bytes], None]:
    """Return a server that answers with a status alone."""
    return lambda handler, _: handler.head(status, Content_Length=0, **headers)


def endless(handler: Handler, _: bytes) -> None:
    """Send zeros without announcing an end."""
    handler.head(200)
    while True:
        handler.wfile.write(bytes(65536))


def stalls(handler: Handler, content: bytes) -> None:
    """Send the first bytes, then nothing."""
    handler.head(200, ETag='"1"', Content_Length=len(content))
    handler.wfile.write(content[:10])
    handler.wfile.flush()
    time.sleep(1)


class Server(http.server.ThreadingHTTPServer):
    """Has files by path, tags of them, behaviours by path, and a list of requests."""

    daemon_threads = True
    address_family = socket.AF_INET

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.behaviours: dict[str, Callable[[Handler, Any], None]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []

    def at(self, path: str) -> str:
        """Return the address of a path."""
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server inside."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
