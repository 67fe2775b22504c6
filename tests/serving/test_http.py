"""The server on a real socket: routes, limits, deadlines, what is refused and how, security; models are of NumPy."""

from __future__ import annotations

import builtins
import gzip
import io
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError
from http_cases import Client, Counted, expected, imitation, running
from prometheus_client.parser import text_string_to_metric_families

from serving.guard import LINGER_SECONDS
from serving.http import PAGE, page_files
from serving.server import listen

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with running(
        {"m": "m", "other": "m"}, lambda path: imitation(folder), body_seconds=1.0, header_seconds=1.0
    ) as each:
        yield each


def of(*texts: str, factor: int = 1) -> list[float]:
    return [expected(text, factor) for text in texts]


def chances(reply: Any) -> list[float]:
    return [each["probabilities"]["1"] for each in reply.json["predictions"]]


def test_the_routes_of_the_contract(client: Client):
    reply = client.predict("a b c", {"text_a": "j"}, ["d e"])
    assert reply.status == 200
    assert chances(reply) == of("a b c", "j", "d e")
    told = reply.json["predictions"][0]
    assert told.keys() == {"prediction", "confidence", "probabilities"}
    assert (reply.json["model"], reply.json["version"], reply.json["tokens"]) == ("m", "1", [5, 3, 4])
    assert reply.json["truncated"] is not None
    assert reply.json["timing_ms"].keys() == {"queue", "tokenize", "compute"}
    assert [part.partition(";")[0] for part in reply.headers["server-timing"].split(", ")] == [
        "queue",
        "tokenize",
        "compute",
    ]
    columns = client.ask("POST", "/v1/models/m:predict", {"inputs": {"text_a": ["a b c", "j"]}})
    assert [each["1"] for each in columns.json["outputs"]["probabilities"]] == of("a b c", "j")
    simple = client.ask("POST", "/models/m", {"data": {"text": ["a b c", "j"]}, "parameters": {"max_seq_len": 16}})
    result = simple.json["result"]
    assert result["label_name"] == [str(label) for label in result["label"]]
    assert result["confidence"] == [max(chance, round(1 - chance, 6)) for chance in of("a b c", "j")]
    status = client.get("/v1/models/m").json["model_version_status"][0]
    assert (status["version"], status["state"]) == ("1", "AVAILABLE")
    assert client.get("/healthz").json == {"status": "ok"}
    assert client.get("/readyz").json == {"status": "ready"}


def test_the_body_of_an_answer_does_not_wait_for_the_client_s_acknowledgement_of_its_headers():
    with (
        listen("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_info_says_what_a_model_takes_and_the_limits(client: Client):
    info = client.get("/info").json
    assert info["models"].keys() == {"m", "other"}
    model = info["models"]["m"]
    assert model["fields"] == [{"name": "text_a", "required": True, "list": False}]
    assert (model["kind"], model["labels"], model["max_seq_length"]) == ("classification", ["0", "1"], 16)
    assert (model["format"], model["precision"], model["state"], model["streams"]) == ("run", "float32", "ready", False)
    assert info["limits"]["body_seconds"] == 1.0
    assert model["examples"]
    assert client.predict(*model["examples"]).status == 200


def test_the_description_and_the_counters_can_be_read(client: Client):
    client.predict("a")
    description = client.get("/openapi.json").json
    assert description["openapi"].startswith("3.1")
    known = description["components"]["schemas"].keys()
    assert {"/v1/models/{name}:predict", "/models/{name}", "/info", "/metrics"} <= description["paths"].keys()
    named = {part.partition('"')[0] for part in json.dumps(description).split("#/components/schemas/")[1:]}
    assert named <= known
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {each.name: each for each in text_string_to_metric_families(reply.body.decode())}
    counts = {each.labels["route"]: each.value for each in families["divan_requests"].samples}
    assert counts["/v1/models/{name}:predict"] >= 1
    assert families["divan_model_info"].samples[0].labels["format"] == "run"
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    assert "a b c" not in reply.body.decode()


def test_parameters_cut_or_refuse(client: Client):
    long = " ".join("abcdefghij" * 3)
    assert chances(client.predict(long)) == of(" ".join("abcdefghij" * 3))
    short = client.predict("a b c d e f g h", parameters={"max_seq_length": 8})
    assert chances(short) == of("a b c d e f")
    assert client.predict(long, parameters={"truncate": False}).error == (422, "too_long")
    assert client.predict("a", parameters={"max_seq_length": 17}).error == (422, "wrong_input")
    assert client.predict("a", stream=True).error == (422, "wrong_input")
    for name in ("num_beams", "temperature", "max_new_tokens"):
        reply = client.predict("a", parameters={name: 1})
        assert (*reply.error, reply.json["error"]["field"]) == (422, "wrong_input", f"parameters.{name}")


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "error"),
    [
        ("POST", "/v1/models/m:predict", b"{", {}, (400, "malformed")),
        ("POST", "/v1/models/m:predict", {"instances": [3]}, {}, (422, "wrong_input")),
        ("POST", "/v1/models/m:predict", {"instances": [{"text": "a", "x": 1}]}, {}, (422, "wrong_input")),
        ("POST", "/v1/models/none:predict", {"instances": ["a"]}, {}, (404, "not_found")),
        ("POST", "/v1/models/m:explain", {"instances": ["a"]}, {}, (405, "wrong_method")),
        ("POST", "/models/none", {"data": {"text": "a"}}, {}, (404, "not_found")),
        ("GET", "/v1/models/m:predict", None, {}, (404, "not_found")),
        ("DELETE", "/info", None, {}, (405, "wrong_method")),
        ("PUT", "/models/m", b"x", {}, (405, "wrong_method")),
        ("GET", "/docs", None, {}, (404, "not_found")),
        ("GET", "/info/", None, {}, (404, "not_found")),
        ("POST", "/models/m", {"data": {"text": "a"}}, {"Content-Type": "text/xml"}, (415, "not_json")),
        ("POST", "/models/m", gzip.compress(b"0" * 10**6), {"Content-Encoding": "gzip"}, (415, "not_json")),
        ("POST", "/models/m", b"x" * 1_000_001, {}, (413, "too_large")),
        ("GET", "/info", None, {"Host": "evil.example"}, (400, "wrong_host")),
        ("GET", "/info", None, {"Host": "localhost.evil.example:80"}, (400, "wrong_host")),
        ("GET", "/info", None, {"Host": ""}, (400, "wrong_host")),
    ],
)
def test_what_is_refused_is_one_line_of_json(
    client: Client, method: str, path: str, content: Any, headers: dict[str, str], error: tuple[int, str]
):
    reply = client.ask(method, path, content, headers)
    assert reply.error == error
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert str(PAGE.parent) not in reply.body.decode()


def test_a_request_keeps_its_own_id_if_it_is_plain(client: Client):
    assert client.get("/healthz", **{"X-Request-Id": "a-1.B_2"}).headers["x-request-id"] == "a-1.B_2"
    first, second = (client.get("/healthz", **{"X-Request-Id": each}).headers["x-request-id"] for each in ("a b", ""))
    assert first != second
    assert len(first) == 32


# -- bodies ------------------------------------------------------------------------------------------------------------


def head(length: str, extra: str = "") -> bytes:
    return f"POST /models/m HTTP/1.1\r\nHost: localhost\r\n{length}\r\n{extra}\r\n".encode()


def test_the_limit_of_a_body_is_exact_and_counts_chunks(client: Client):
    content = json.dumps({"data": {"text": "a"}}).encode()
    assert client.ask("POST", "/models/m", content.ljust(1_000_000)).status == 200
    assert client.ask("POST", "/models/m", content.ljust(1_000_001)).error == (413, "too_large")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    chunked = "Transfer-Encoding: chunked"
    end = f"{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n"
    close = "Connection: close\r\n"
    assert client.raw(head(chunked, close) + chunk * 15 + end).startswith(b"HTTP/1.1 200")
    assert client.raw(head(chunked, close) + chunk * 16 + end).startswith(b"HTTP/1.1 413")


def test_who_sends_all_of_a_large_body_first_reads_the_refusal_and_no_broken_pipe(client: Client):
    size = 12_000_000  # more than the buffers of a connection hold
    assert client.ask("POST", "/models/m", b" " * size).error == (413, "too_large")
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    found = client.raw(head("Transfer-Encoding: chunked") + chunk * 12 + b"0\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 413")
    begin = time.monotonic()
    assert client.raw(head("Content-Length: 2000000") + b" ").startswith(b"HTTP/1.1 413")
    assert time.monotonic() - begin < 2 * LINGER_SECONDS


def test_slow_clients_are_sent_away(client: Client):
    begin = time.monotonic()
    assert b"408" in client.raw(head("Content-Length: 100") + b"{", 6).partition(b"\r\n")[0]
    assert client.raw(b"POST /models/m HTTP/1.1\r\nHost: loc", 6) == b""
    assert client.raw(b"", 6) == b""
    assert time.monotonic() - begin < 12
    assert client.predict("a").status == 200


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\nBroken\r\n\r\n",
        b"GET /" + b"a" * 20_000,
        head("Content-Length: 5\r\nContent-Length: 6") + b"{}",
        head("Content-Length: -1"),
        head("Content-Length: " + "9" * 4000),
    ],
)
def test_what_is_no_http_is_refused_in_json(client: Client, content: bytes):
    found = client.raw(content)
    status, _, rest = found.partition(b"\r\n")
    assert status.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))
    assert json.loads(rest.partition(b"\r\n\r\n")[2])["error"]["code"] in ("malformed", "too_large")
    assert client.predict("a").status == 200


# -- security ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that gets the name of every file that a thread of the server opens."""
    found: list[Any] = []
    for module in (builtins, io, os):

        def watched(name: Any, *given: Any, real: Any = module.open, **further: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                found.append(name)
            return real(name, *given, **further)

        monkeypatch.setattr(module, "open", watched)
    return found


def test_a_file_that_a_thread_opens_is_seen(opened: list[Any]):
    for reads in (lambda: open(os.devnull), lambda: Path(os.devnull).open()):  # noqa: PTH123, SIM115
        thread = threading.Thread(target=lambda reads=reads: reads().close())
        thread.start()
        thread.join()
    assert list(map(str, opened)) == [os.devnull] * 2


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/page.css/../../served.py",
        "//etc/passwd",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/%2e%2e:predict",
        "/models/../models.py",
        "/serving/loading.py",
        "/page/index.html%00",
    ],
)
def test_no_path_of_a_request_reaches_the_file_system(client: Client, path: str, opened: list[Any]):
    for method in ("GET", "POST"):
        content = {"instances": ["a"]} if method == "POST" else None
        status, code = client.ask(method, path, content).error
        assert (status, code) in ((404, "not_found"), (405, "wrong_method"))
    # A text that names a file is a text.
    assert client.predict({"text_a": "/etc/passwd"}, {"text_a": "file:///etc/passwd"}).status == 200
    assert opened == []


def test_no_pickle_is_read(client: Client, monkeypatch: pytest.MonkeyPatch):
    import pickle

    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("a pickle was read"))
    content = pickle.dumps({"instances": ["a"]})
    assert client.ask("POST", "/v1/models/m:predict", content).error == (400, "malformed")
    sources = Path(__file__).resolve().parents[2] / "serving"
    assert [path.name for path in sources.glob("*.py") if "pickle" in path.read_text(encoding="utf-8")] == []


def test_a_key_is_asked_for_everywhere_but_at_the_page_and_for_health(folder: Path):
    with running({"m": "m"}, lambda path: imitation(folder), key="secret-key-1") as client:
        right = {"Authorization": "Bearer secret-key-1"}
        for path in ("/info", "/metrics", "/v1/models/m", "/openapi.json", "/nothing"):
            assert client.get(path).error == (401, "unauthorized")
        assert client.get("/info", **right).status == 200
        for wrong in ("Bearer secret-key-2", "secret-key-1", "Basic secret-key-1", "Bearer ", "Bearer é"):
            assert client.get("/info", Authorization=wrong).error == (401, "unauthorized")
        assert client.ask("POST", "/models/m", {"data": {"text": "a"}}, right).status == 200
        for path in ("/healthz", "/readyz", *page_files()):
            assert client.get(path).status == 200


def test_a_server_for_others_takes_any_host(folder: Path):
    with running({"m": "m"}, lambda path: imitation(folder), hosts=()) as client:
        assert client.get("/info", Host="evil.example").status == 200


def test_the_page_is_served_from_memory_with_its_policy(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "index.html").write_text("<p>page", encoding="utf-8")
    (tmp_path / "page.js").write_text("1", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("2", encoding="utf-8")
    monkeypatch.setattr("serving.http.PAGE", tmp_path)
    with running({"m": "m"}, lambda path: imitation(folder)) as client:
        (tmp_path / "index.html").unlink()
        reply = client.get("/")
        assert (reply.status, reply.body) == (200, b"<p>page")
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        policy = reply.headers["content-security-policy"]
        for part in ("default-src 'self'", "object-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"):
            assert part in policy
        assert client.get("/page.js").headers["content-type"] == "text/javascript; charset=utf-8"
        assert client.get("/secret.txt").error == (404, "not_found")


# -- many requests -----------------------------------------------------------------------------------------------------


def test_requests_of_many_clients_share_batches_and_each_has_its_answer(folder: Path):
    programs = Counted(seconds=0.01)
    texts = [" ".join("abcdefghij"[n % 10] for n in range(first, first + 1 + first % 9)) for first in range(60)]
    with running({"m": "m"}, lambda path: imitation(folder, programs), sizes=(1, 2, 4)) as client:
        before = len(programs.batches)
        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(client.predict, texts))
        assert [chances(reply) for reply in replies] == [of(text) for text in texts]
        computed = programs.batches[before:]
        assert len(computed) < 60
        assert max(shape[0] for shape in computed) > 1
        assert all(shape[0] in (1, 2, 4, 8, 16, 32) for shape in computed)


def test_a_full_queue_refuses_and_recovers(folder: Path):
    programs = Counted()
    with running({"m": "m"}, lambda path: imitation(folder, programs), queue_texts=4, texts=3) as client:
        programs.held.clear()
        with ThreadPoolExecutor(4) as pool:
            accepted = [pool.submit(client.predict, "a"), pool.submit(client.predict, "b", "c")]
            client.until(lambda: client.serving.answering.texts == 3)
            refused = client.predict("d", "e")
            assert refused.error == (503, "queue_full")
            assert refused.headers["retry-after"] == "1"
            last = pool.submit(client.predict, "d")
            client.until(lambda: client.serving.answering.texts == 4)
            assert client.predict("e").error == (503, "queue_full")
            assert client.get("/healthz").status == 200
            programs.held.set()
            assert [chances(each.result()) for each in (*accepted, last)] == [of("a"), of("b", "c"), of("d")]
        assert client.predict("e").status == 200
        assert client.serving.answering.texts == 0


def test_a_deadline_is_kept_and_the_next_request_is_answered(folder: Path):
    programs = Counted()
    with running({"m": "m"}, lambda path: imitation(folder, programs), deadline_seconds=0.3) as client:
        programs.held.clear()
        with ThreadPoolExecutor(2) as pool:
            late = [pool.submit(client.predict, each) for each in ("a", "b")]
            assert [each.result().error for each in late] == [(504, "deadline")] * 2
        before = len(programs.batches)
        programs.held.set()
        assert chances(client.predict("c")) == of("c")
        assert len(programs.batches) <= before + 1  # what was late in the queue was never computed
        assert client.serving.answering.texts == 0


def test_whoever_leaves_takes_its_rows_out_of_the_queue(folder: Path):
    programs = Counted()
    with running({"m": "m"}, lambda path: imitation(folder, programs)) as client:
        before = len(programs.batches)
        programs.held.clear()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(client.predict, "a")
            client.until(lambda: len(programs.batches) == before + 1)
            content = json.dumps({"data": {"text": ["b", "c"]}}).encode()
            leaving = socket.create_connection(("127.0.0.1", client.port))
            leaving.sendall(head(f"Content-Length: {len(content)}") + content)
            client.until(lambda: client.serving.batcher.waiting == 2)
            leaving.close()
            client.until(lambda: client.serving.answering.texts == 1)
            programs.held.set()
            assert chances(first.result()) == of("a")
        assert chances(client.predict("d")) == of("d")
        assert [shape[0] for shape in programs.batches[before:]] == [1, 1]


def test_what_the_model_cannot_bear_fails_alone_and_says_little(folder: Path, capfd: pytest.CaptureFixture[str]):
    with running({"m": "m"}, lambda path: imitation(folder)) as client:
        assert client.predict("j j j j j j j").error == (500, "failed")
        assert chances(client.predict("a")) == of("a")
        assert client.get("/readyz").status == 200
    seen = capfd.readouterr().err
    assert "seven j" in seen  # for whoever runs the server
    assert "j j j" not in seen


# -- starting, stopping, new versions ----------------------------------------------------------------------------------


def test_a_server_is_not_ready_before_its_models_are_warm(folder: Path):
    programs = Counted()
    programs.held.clear()
    with running({"m": "m"}, lambda path: imitation(folder, programs), wait=False) as client:
        client.until(lambda: programs.batches)
        assert client.get("/healthz").status == 200
        assert client.get("/readyz").error == (503, "loading")
        assert client.predict("a").error == (503, "loading")
        assert client.get("/info").json["models"] == {"m": {"state": "loading"}}
        programs.held.set()
        client.until(lambda: client.get("/readyz").status == 200)
        assert set(programs.batches) == {(1, 16)}
        assert client.said[-1] == "ready"


def test_every_shape_is_computed_before_a_server_is_ready(folder: Path):
    programs = Counted()
    loaded = imitation(folder, programs, max_seq_length=64)
    with running({"m": "m"}, lambda path: loaded, sizes=(1, 2, 4), batch_tokens=128, batch_rows=4) as client:
        warm = set(programs.batches)
        assert {(1, 16), (2, 16), (4, 16), (4, 32), (2, 64)} <= warm
        assert (4, 64) not in warm
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(client.predict, [" ".join("a" * n) for n in range(1, 60)]))
        assert set(programs.batches) == warm


def test_a_model_that_cannot_be_loaded_ends_the_server(folder: Path):
    def fails(path: str) -> Any:
        raise OSError(2, "No such file or directory", path)

    def is_none(path: str) -> Any:
        raise UsageError("no vocabulary lies there: copy it there")

    for open_, kind, why in (
        (fails, FileNotFoundError, "No such file or directory: 'nowhere'"),
        (is_none, UsageError, "no vocabulary lies there: copy it there"),
    ):
        with running({"m": "nowhere"}, open_) as client:
            pass
        (error,) = client.failed
        assert isinstance(error, kind)
        assert str(error).endswith(f"the model m at nowhere cannot be served: {why}")


def test_stopping_answers_all_that_was_accepted_and_refuses_the_rest(folder: Path):
    programs = Counted()
    with running({"m": "m"}, lambda path: imitation(folder, programs)) as client:
        kept = socket.create_connection(("127.0.0.1", client.port))
        kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        seen = b""
        while not seen.endswith(b"}\n"):
            seen += kept.recv(1000)
        assert b"200" in seen
        programs.held.clear()
        texts = [" ".join("abcdefghij"[: n % 9 + 1]) for n in range(20)]
        with ThreadPoolExecutor(20) as pool:
            replies = [pool.submit(client.predict, text) for text in texts]
            client.until(lambda: client.serving.answering.texts == 20)
            client.serving.stop()
            client.until(lambda: not client.serving.listens)
            with pytest.raises(OSError):  # noqa: PT011 (refused or reset)
                client.get("/healthz")
            programs.held.set()
            assert [chances(reply.result()) for reply in replies] == [of(text) for text in texts]
        assert kept.recv(1000) == b""
        kept.close()
    assert client.failed == []


def test_a_new_version_takes_over_without_a_lost_or_mixed_answer(folder: Path, tmp_path: Path):
    (tmp_path / "versions/1").mkdir(parents=True)
    (tmp_path / "versions/1/factor").write_text("1")

    def open_(path: str) -> Any:
        return imitation(folder, Counted(0.002, int((Path(path) / "factor").read_text())))

    ended, wrong, seen = threading.Event(), list[Any](), set[str]()
    with running({"m": str(tmp_path / "versions")}, open_, reload_seconds=0.02) as client:

        def ask_on() -> None:
            number = 0
            while not ended.is_set():
                text = " ".join("abcdefghij"[: number % 9 + 1])
                reply, number = client.predict(text), number + 1
                factor = {"1": 1, "7": 3}.get(reply.json.get("version", ""), 0)
                seen.add(reply.json.get("version", ""))
                if reply.status != 200 or chances(reply) != of(text, factor=factor):
                    wrong.append((reply.status, reply.body))

        threads = [threading.Thread(target=ask_on) for _ in range(4)]
        for thread in threads:
            thread.start()
        client.until(lambda: "1" in seen)
        (tmp_path / "versions/.7.tmp").mkdir()
        (tmp_path / "versions/.7.tmp/factor").write_text("3")
        (tmp_path / "versions/.7.tmp").rename(tmp_path / "versions/7")
        client.until(lambda: "7" in seen)
        # What cannot be opened is told once, in one line, and counted; the old one goes on.
        (tmp_path / "versions/8").mkdir()
        (tmp_path / "versions/8/factor").write_text("x")
        client.until(lambda: any("not served" in line for line in client.said))
        ended.set()
        for thread in threads:
            thread.join(20)
        assert client.get("/v1/models/m").json["model_version_status"][0]["version"] == "7"
        (told,) = (line for line in client.said if "not served" in line)
        assert told.startswith(f"m: what is new at {tmp_path}/versions/8 is not served, version 7 goes on: invalid lit")
        assert "\n" not in told
        text = client.get("/metrics").body.decode()
        assert 'divan_reloads_total{model="m",result="served"} 1.0' in text
        assert 'divan_reloads_total{model="m",result="refused"} 1.0' in text
        assert 'divan_model_info{format="run",model="m",precision="float32",version="7"} 1.0' in text
        assert 'version="1"' not in text
    assert wrong == []
