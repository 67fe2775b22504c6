"""Asks a server more than it can answer, and things that are no requests: nothing is lost, wrong, or a defect.

python3 -m benchmarks.serving_load --model=m=RUN starts serve.py with a model of texts or pairs, measures what it can
answer, asks twice as much for --seconds, checks every answer against the first one to the same text, and looks at the
memory; then it sends --fuzzed wrong requests. It ends with 1 where an answer was wrong or lost, where a reply was a 500
or not one line, or where the memory of the second half grew by more than a tenth.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders import ROOT
from commands.flags import flag, run

WORDS = ("今天天气怎么样", "北京", "上海", "the", "weather", "is", "fine", *"abcdefghij")
TEXTS = 64


@dataclass(frozen=True, kw_only=True)
class Options:
    """Ask a server more than it can answer, and things that are no requests."""

    model: str = flag(help="NAME=PATH, as serve.py takes it; a classifier of texts or pairs")
    seconds: float = flag(600.0, help="of asking twice as much as it can answer", minimum=0)
    fuzzed: int = flag(100_000, help="wrong requests", minimum=0)
    clients: int = flag(400, help="that ask at once: fewer than the server's queue holds never fill it", minimum=1)
    seed: int = flag(0, help="of what is asked")


def main(options: Options) -> int:
    """Does both, prints what came, returns 1 where anything was wrong."""
    name = options.model.partition("=")[0]
    with served(options.model) as (process, port):
        server = Server(port, name)
        instances = instances_of(server, options.seed)
        wanted = [server.predict(each)[1] for each in instances]
        rate = capacity(server, instances, 10.0, min(64, options.clients))
        print(f"it answers {rate:.1f} requests a second; asked {2 * rate:.1f} for {options.seconds:g} s", flush=True)
        memory = [memory_bytes(process.pid)]
        found = Counter[str]()
        for _ in range(4):
            found += overload(server, instances, wanted, 2 * rate, options.seconds / 4, options.clients)
            memory.append(memory_bytes(process.pid))
        quarters = [round(each / 1e6) for each in memory]
        print(f"answers: {dict(found)}; memory after each quarter, MB: {quarters}", flush=True)
        fuzzed = fuzz(server, options.fuzzed, options.seed)
        print(f"wrong requests: {dict(sorted(fuzzed.items()))}")
        memory.append(memory_bytes(process.pid))
        process.terminate()
        code = process.wait(60)
        told = process.stderr.read() if process.stderr else ""
    bad = found["wrong"] + found["lost"] + fuzzed["500"] + fuzzed["bad"] + ("Traceback" in told) + (code != 0)
    grown = memory[-1] > 1.1 * memory[2]
    print(f"memory at the end {memory[-1] / 1e6:,.0f} MB; {'grown' if grown else 'flat'}; exit code {code}; {bad} bad")
    return int(bool(bad or grown))


@dataclass
class Server:
    """Where a model is asked."""

    port: int
    name: str

    def connection(self) -> http.client.HTTPConnection:
        """Return a new connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def predict(self, instance: Any, connection: http.client.HTTPConnection | None = None) -> tuple[int, Any]:
        """Return the status of one request and its only prediction, or what was said instead."""
        own = connection or self.connection()
        try:
            own.request("POST", f"/v1/models/{self.name}:predict", json.dumps({"instances": [instance]}))
            reply = own.getresponse()
            content = json.loads(reply.read())
            return reply.status, content["predictions"][0] if reply.status == 200 else content
        finally:
            if connection is None:
                own.close()


def instances_of(server: Server, seed: int) -> list[dict[str, str]]:
    """Return random inputs of a model by the fields that it says."""
    connection = server.connection()
    with contextlib.closing(connection):
        connection.request("GET", "/info")
        fields = json.loads(connection.getresponse().read())["models"][server.name]["fields"]
    draw = random.Random(seed)
    names = [each["name"] for each in fields if each["required"]]
    return [{name: " ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for name in names} for _ in range(TEXTS)]


def capacity(server: Server, instances: Sequence[Any], seconds: float, clients: int) -> float:
    """Return the requests a second that are answered while so many clients ask again and again."""
    counts, end = [0] * clients, time.monotonic() + seconds

    def ask_on(number: int) -> None:
        with contextlib.closing(server.connection()) as connection:
            while time.monotonic() < end:
                server.predict(instances[(number + counts[number]) % len(instances)], connection)
                counts[number] += 1

    _in_threads(ask_on, clients)
    return sum(counts) / seconds


def overload(
    server: Server, instances: Sequence[Any], wanted: Sequence[Any], rate: float, seconds: float, clients: int
) -> Counter[str]:
    """Ask at a rate, whatever comes back, and count what did: right, wrong, refused (503, 504), lost.

    A client asks when its turn has come and its last request was answered: fewer clients than the server's queue holds
    would wait for answers, and so ask no more than the server can answer.
    """
    found, lock = Counter[str](), threading.Lock()
    begin = time.monotonic()
    end = begin + seconds

    def ask_on(number: int) -> None:
        own, place = Counter[str](), number
        connection = server.connection()
        while (due := begin + place / rate) < end and time.monotonic() < end:
            if (wait := due - time.monotonic()) > 1:
                connection.close()  # the server ends one on which nobody asks for seconds; the next request opens it
            time.sleep(max(0.0, wait))
            which, place = place % len(instances), place + clients
            try:
                status, told = server.predict(instances[which], connection)
            except (OSError, ValueError, http.client.HTTPException):
                own["lost"] += 1
                connection.close()
                continue
            if status == 200:
                own["right" if is_same(told, wanted[which]) else "wrong"] += 1
            elif status in (503, 504):
                own["refused"] += 1
            else:
                own["wrong"] += 1
        connection.close()
        with lock:
            found.update(own)

    _in_threads(ask_on, clients)
    return found


def is_same(found: Any, wanted: Any) -> bool:
    """Return whether two answers are the same but for the rounding of other batches."""
    if isinstance(wanted, Mapping):
        return found.keys() == wanted.keys() and all(is_same(found[name], value) for name, value in wanted.items())
    if isinstance(wanted, float):
        return abs(found - wanted) <= 1e-4
    return found == wanted


def fuzz(server: Server, count: int, seed: int) -> Counter[str]:
    """Send so many wrong requests; count the statuses, and as bad what is no line of JSON, or nothing at all."""
    draw, found = random.Random(seed), Counter[str]()
    connection = server.connection()
    for number in range(count):
        if number % 50 == 49:
            found[_raw(server.port, draw)] += 1
            continue
        method, path, headers, body = _request(draw, server.name)
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
        except (OSError, ValueError, http.client.HTTPException):
            # A server that refuses a body closes while it is still being sent.
            connection.close()
            found["closed"] += 1
            continue
        found[str(reply.status)] += 1
        if reply.status >= 400 and (content.count(b"\n") != 1 or b"Traceback" in content or not _is_error(content)):
            found["bad"] += 1
    connection.close()
    return found


def _is_error(content: bytes) -> bool:
    try:
        return json.loads(content)["error"].keys() == {"code", "message", "field"}
    except (ValueError, KeyError, AttributeError, TypeError):
        return False


def _request(draw: random.Random, name: str) -> tuple[str, str, dict[str, str], bytes | None]:
    """Return method, path, headers and body of a request that is wrong in some way, or strange."""
    method = draw.choices(["POST", "GET", "PUT", "HEAD"], [20, 3, 1, 0])[0]
    paths = [
        f"/v1/models/{name}:predict",
        f"/models/{name}",
        "/info",
        "/metrics",
        "/%00",
        "/v1/models/..%2f",
        "/x" * 20,
    ]
    path = draw.choices(paths, [20, 10, 1, 1, 1, 1, 1])[0]
    valid = json.dumps({"instances": [_value(draw, 3)], "parameters": _value(draw, 1)}).encode()
    simple = json.dumps({"data": _value(draw, 2)}).encode()
    wrong = json.dumps(_value(draw, 4), ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    body = bytearray(draw.choice([valid, simple, wrong, draw.randbytes(draw.randint(0, 60))]))
    for _ in range(draw.choice([0, 0, 1, 3])):
        if body:
            body[draw.randrange(len(body))] = draw.randrange(256)
    if draw.random() < 0.1:
        body = body[: draw.randint(0, len(body))] * draw.randint(1, 3)
    kinds = ["application/json", "text/plain", "application/json; charset=utf-7", "\u00ff"]
    headers = {"Content-Type": draw.choices(kinds, [20, 1, 1, 1])[0]}
    if draw.random() < 0.05:
        headers["Content-Encoding"] = draw.choice(["gzip", "br", "identity", "x"])
    return method, path, headers, bytes(body) if method != "GET" else None


_KEYS = ("instances", "inputs", "text_a", "text_b", "text", "text_pair", "question", "context", "choices", "label", "x")


def _value(draw: random.Random, depth: int) -> Any:
    """Return a random value of JSON with the keys of requests."""
    kind = draw.randrange(8 if depth else 6)
    if kind == 0:
        return draw.choice([None, True, 0, -1, 10**30, 1.5, ""])
    if kind < 6:
        letters = "".join(chr(draw.choice([65, 0x4E2D, 0x1F600, 0x200B, 0, 9, 0x300, 0xFFFF])) for _ in range(4))
        return draw.choice([letters, "a b c", "[MASK]", "天气", letters * draw.randint(1, 500), " "])
    if kind == 6:
        return [_value(draw, depth - 1) for _ in range(draw.randint(0, 4))]
    return {draw.choice(_KEYS): _value(draw, depth - 1) for _ in range(draw.randint(0, 4))}


def _raw(port: int, draw: random.Random) -> str:
    """Send bytes that are no HTTP; return the status that came, or "closed"."""
    head = b"POST /models/m HTTP/1.1\r\nHost: localhost\r\n"
    content = draw.choice(
        [
            draw.randbytes(40) + b"\r\n\r\n",
            head + b"Content-Length: x\r\n\r\n",
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            head + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}",
            b"GET / HTTP/9.9\r\n\r\n",
            head + b"Broken\r\n\r\n",
        ]
    )
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        found = re.match(rb"HTTP/1\.1 (\d+)", connection.recv(1000))
        return found[1].decode() if found else "closed"
    return "closed"


def memory_bytes(process: int) -> int:
    """Return the resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(encoding="ascii"))
    return int(found[1]) * 1024 if found else 0


@contextlib.contextmanager
def served(model: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield the process of serve.py once it is ready, and its port."""
    process = subprocess.Popen(
        [sys.executable, "serve.py", f"--model={model}", "--port=0"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        port, line = 0, " "
        while line and not line.endswith(": ready\n"):
            line = process.stderr.readline() if process.stderr else ""
            found = re.search(r"listening on http://[^ ]*:(\d+)", line)
            port = int(found[1]) if found else port
        yield process, port
    finally:
        process.kill()
        process.communicate()


def _in_threads(function: Any, count: int) -> None:
    threads = [threading.Thread(target=function, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    run(main, Options)
