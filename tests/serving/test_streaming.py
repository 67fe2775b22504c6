"""Server-sent events of a generating model: parts in their order, the answer at the end, an end for whoever leaves."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from http_cases import Client, Reply, imitation, running

from serving.loading import Loaded
from tasks.datasets import find_row
from tasks.kinds import generation

pytestmark = pytest.mark.slow
WRITTEN = ["今天", "今天天气", "今天天气很好", "今天的", "今天的风"]


class Writes:
    """Stands for the kind that generates: writes `WRITTEN`, a text every few milliseconds, whatever the source."""

    def __init__(self, seconds: float = 0.001):
        self.seconds = seconds
        self.heard = 0
        self.ended = threading.Event()
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        return getattr(generation, name)

    def predictor(self, model: Any, tokenizer: Any, **settings: Any) -> Callable[..., list[Any]]:
        def predict(dataset: Any, listener: Callable[[int, str], None] | None = None) -> list[Any]:
            sources = next(iter(dataset.sources().values()))
            try:
                for text in WRITTEN:
                    if listener is not None:
                        self.heard += 1
                        listener(0, text)
                        time.sleep(self.seconds)
                if self.fails and listener is not None:
                    raise RuntimeError("no more words")
                return [{"hypotheses": [{"text": WRITTEN[-1], "score": -1.0}]} for _ in sources]
            finally:
                self.ended.set()

        return predict


def writer(folder: Path, host: Writes) -> Loaded:
    row = find_row("lcsts")
    return imitation(folder, host=host, row=row, kind="generation", labels=())


def events(reply: Reply) -> list[dict[str, Any]]:
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    parts = reply.body.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def test_a_stream_has_parts_and_ends_with_the_answer(tmp_path: Path):
    host = Writes()
    with running({"m": "m"}, lambda path: writer(tmp_path, host)) as client:
        assert client.get("/info").json["models"]["m"]["streams"] is True
        *parts, last = events(client.predict("a b", stream=True))
        assert [part["text"] for part in parts] == WRITTEN
        assert [part["token"] for part in parts] == ["今天", "天气", "很好", "的", "风"]
        assert last["done"] is True
        assert last["prediction"] == {"generated": "今天的风", "score": -1.0}
        assert (last["model"], last["version"]) == ("m", "1")
        assert last["timing_ms"].keys() == {"queue", "tokenize", "compute"}
        whole = client.predict("a b", "c").json["predictions"]
        assert whole == [{"generated": "今天的风", "score": -1.0}] * 2
        assert client.predict("a", "b", stream=True).error == (422, "wrong_input")
        assert client.predict("", stream=True).error == (422, "wrong_input")
        assert client.serving.answering.texts == 0


def test_many_streams_are_answered_one_after_the_other(tmp_path: Path):
    with running({"m": "m"}, lambda path: writer(tmp_path, Writes())) as client, ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda text: client.predict(text, stream=True), "abcdef"))
        assert all([part.get("text") for part in events(each)[:-1]] == WRITTEN for each in replies)


def test_what_goes_wrong_in_a_stream_is_its_last_part(tmp_path: Path):
    host = Writes()
    with running({"m": "m"}, lambda path: writer(tmp_path, host)) as client:
        host.fails = True
        *parts, last = events(client.predict("a", stream=True))
        assert len(parts) == len(WRITTEN)
        assert last["error"]["code"] == "failed"
        host.fails = False
        assert events(client.predict("a", stream=True))[-1]["done"] is True
    slow = Writes(seconds=0.2)
    with running({"m": "m"}, lambda path: writer(tmp_path, slow), deadline_seconds=0.3) as client:
        assert events(client.predict("a", stream=True))[-1]["error"]["code"] == "deadline"


def leaves(client: Client) -> None:
    content = json.dumps({"instances": ["a"], "stream": True}).encode()
    head = f"POST /v1/models/m:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.sendall(head.encode() + content)
        while b"data: " not in connection.recv(1000):
            pass


def test_nobody_writes_for_whoever_left(tmp_path: Path):
    host = Writes(seconds=0.3)
    with running({"m": "m"}, lambda path: writer(tmp_path, host)) as client:
        host.ended.clear()
        host.heard = 0
        leaves(client)
        client.until(lambda: client.serving.answering.texts == 0)
        assert host.ended.wait(20)
        assert 1 <= host.heard < len(WRITTEN)
