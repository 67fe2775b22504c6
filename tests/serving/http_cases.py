"""Servers of tests: real sockets on the loopback, models of NumPy whose answers follow from their tokens alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from kind_files import SPECIALS, WORDS

from data.tokenizers import load_tokenizer
from serving.limits import Limits
from serving.loading import Loaded
from serving.metrics import Metrics
from serving.models import Models
from serving.server import LOOPBACK_NAMES, Serving, listen
from tasks.datasets import find_row
from tasks.kinds import classification


class Counted:
    """Stands for the programs of a classifier: the chance of "1" is a function of the sum of a text's ids.

    Attributes:
        batches: shapes of all that was computed.
        seconds: that a batch takes.
        held: while it is clear, nothing is computed.
        factor: another one is another version of the model.
    """

    free = False

    def __init__(self, seconds: float = 0.0, factor: int = 1):
        self.batches: list[tuple[int, ...]] = []
        self.seconds, self.factor = seconds, factor
        self.held = threading.Event()
        self.held.set()

    def predict(self, batches: Any) -> Iterator[dict[str, np.ndarray]]:
        for batch in batches:
            ids = batch["input_ids"]
            self.batches.append(ids.shape)
            self.held.wait(20)
            time.sleep(self.seconds)
            if np.any(np.sum(ids == 14, axis=1) >= 7):
                raise RuntimeError("a text of seven j is more than this model can bear")
            chances = chance(np.sum(ids, axis=1), self.factor)
            yield {"probabilities": np.stack([1 - chances, chances], axis=1)}


def chance(total: Any, factor: int = 1) -> Any:
    """Return the chance of "1" of texts whose ids have these sums."""
    return (np.asarray(total) * factor % 97 + 1) / 100


def expected(words: str, factor: int = 1) -> float:
    """Return the chance of "1" that a text of single letters is answered with: [CLS] 2, [SEP] 3, a 5, b 6 ..."""
    ids = [5 + WORDS.index(word) for word in words.split()][:14]
    return round(float(chance(5 + sum(ids), factor)), 6)


def imitation(folder: Path, programs: Any = None, **changed: Any) -> Loaded:
    """Return a classifier of single texts with a real tokenizer and without a network."""
    (folder / "words.txt").write_text("\n".join([*SPECIALS, *WORDS]) + "\n")
    nothing: Any = None
    values: dict[str, Any] = {
        "kind": "classification",
        "labels": ("0", "1"),
        "tokenizer": load_tokenizer(vocab_file=folder / "words.txt"),
        "model": nothing,
        "config": nothing,
        "row": find_row("chnsenticorp"),
        "max_seq_length": 16,
        "checkpoint": nothing,
        "task": nothing,
        "host": classification,
        "settings": {},
        "programs": programs or Counted(),
    }
    return Loaded(**{**values, **changed})


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """The status and the code of a refusal, which is one line of JSON with three values."""
        assert self.headers["content-type"] == "application/json"
        assert self.body.endswith(b"\n")
        assert self.body.count(b"\n") == 1
        (content,) = self.json.values()
        assert content.keys() == {"code", "message", "field"}
        assert "Traceback" not in content["message"]
        return self.status, content["code"]


@dataclass
class Client:
    """Asks a server."""

    serving: Serving
    port: int
    said: list[str] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Return the reply to one request; a body that is no bytes is written as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, content, dict(headers or {}))
            found = connection.getresponse()
            return Reply(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, headers=headers)

    def predict(self, *instances: Any, name: str = "m", **further: Any) -> Reply:
        return self.ask("POST", f"/v1/models/{name}:predict", {"instances": list(instances), **further})

    def raw(self, content: bytes, seconds: float = 5.0) -> bytes:
        """Return all that comes back for bytes, until the server closes or nothing comes for so long."""
        import socket

        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(content)
            found = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while part := connection.recv(65536):
                    found += part
            return found

    def until(self, true: Callable[[], Any], seconds: float = 20.0) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "it did not come to be"
            time.sleep(0.005)


@contextlib.contextmanager
def running(
    paths: Mapping[str, str],
    open_: Callable[[str], Loaded],
    *,
    sizes: tuple[int, ...] = (1,),
    wait: bool = True,
    hosts: tuple[str, ...] = LOOPBACK_NAMES,
    key: str | None = None,
    reload_seconds: float = 0.0,
    **limits: Any,
) -> Iterator[Client]:
    """Serve models in a thread; at the end stop as SIGTERM does, and all threads have ended."""
    metrics, chosen, said = Metrics(), Limits(**limits), list[str]()
    models = Models(paths, open_, sizes=sizes, budget_tokens=chosen.batch_tokens, say=said.append, metrics=metrics)
    serving = Serving(models, chosen, metrics, key=key, hosts=hosts, reload_seconds=reload_seconds, say=said.append)
    with listen("127.0.0.1", 0) as listening:
        client = Client(serving, listening.getsockname()[1], said)

        def run() -> None:
            try:
                serving.run(listening)
            except BaseException as error:
                client.failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            if wait:
                client.until(lambda: models.ready or client.failed)
            yield client
        finally:
            client.until(lambda: serving.started or client.failed)
            serving.stop()
            thread.join(30)
            assert not thread.is_alive()
