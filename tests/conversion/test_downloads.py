"""Downloads from a server on the loopback address: whole, resumed, checked, or refused in one line."""

import hashlib
import io
import json
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.request import Request

import numpy as np
import pytest
from absl.app import UsageError
from conversion_cases import CONFIGS, random_tensors
from hypothesis import given
from hypothesis import strategies as st
from loopback import Server, drops, endless, says, serve, serving, stalls

from conversion import downloads
from conversion.downloads import download, find_published
from conversion.sources import obtain
from ground import cache
from ground.addresses import parse, shown, without_password
from ground.documents import read_toml
from ground.locks import holding

CONTENT = bytes(range(256)) * 64
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(shared: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Return the server with one file, /model.bin, and a cache of the test's own."""
    monkeypatch.setenv("DIVAN_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(downloads, "PAUSES_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 5.0)
    cache._digests.clear()
    shared.files, shared.behaviours, shared.tags = {"/model.bin": CONTENT}, {}, {}
    shared.requests.clear()
    return shared


def refused(address: str) -> str:
    """Return the one line with which an address is refused; nothing but parts may stay of it."""
    with pytest.raises(UsageError) as caught:
        download(address)
    line = str(caught.value)
    assert line.isprintable()
    return line


def left_over(tmp_path: Path) -> list[str]:
    """Return the names of all files in the cache."""
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_a_file_comes_once_and_is_kept(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    file = download(server.at("/model.bin"))
    assert file.read_bytes() == CONTENT
    assert file.name == "model.bin"
    assert file.parent.parent == tmp_path / "cache/downloads"
    record = json.loads((file.parent / ".download.json").read_text())
    assert (record["bytes"], record["sha256"]) == (len(CONTENT), SHA)
    assert f"{len(CONTENT):,} bytes, sha256 {SHA}" in capfd.readouterr().err
    assert download(server.at("/model.bin")) == file
    assert download(server.at(f"/model.bin#sha256={SHA.upper()}")) == file
    assert len(server.requests) == 1
    assert left_over(tmp_path) == [".download.json", "model.bin"]


def test_two_addresses_are_two_files(server: Server):
    server.files |= {"/a/model.bin": b"a", "/b/model.bin": b"b"}
    assert [
        download(server.at(path)).read_bytes() for path in ("/a/model.bin", "/b/model.bin", "/b/model.bin?v=2")
    ] == [
        b"a",
        b"b",
        b"b",
    ]
    assert len(server.requests) == 3


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], b"?" + CONTENT[1:]])
def test_a_file_that_changed_in_the_cache_comes_anew(damage: bytes, server: Server):
    file = download(server.at("/model.bin"))
    file.write_bytes(damage)
    cache._digests.clear()
    assert download(server.at("/model.bin")).read_bytes() == CONTENT


def test_records_of_anything_else_are_no_records(server: Server):
    file = download(server.at("/model.bin"))
    for record in (b"[]", b"\0", b'{"address": "", "name": "../x", "bytes": 1, "sha256": ""}'):
        (file.parent / ".download.json").write_bytes(record)
        (file.parent / ".part.json").write_bytes(record)
        assert download(server.at("/model.bin")).read_bytes() == CONTENT


def test_checksums(server: Server, tmp_path: Path):
    wrong = "0" * 64
    line = refused(server.at(f"/model.bin#sha256={wrong}"))
    assert f"has the sha256 {SHA}, expected {wrong}" in line
    assert left_over(tmp_path) == []
    assert "expected #sha256= and 64 hexadecimal digits" in refused(server.at("/model.bin#md5=1"))
    # A new file at the same address is asked for by its checksum.
    download(server.at("/model.bin"))
    server.files["/model.bin"] = b"new"
    digest = hashlib.sha256(b"new").hexdigest()
    assert download(server.at(f"/model.bin#sha256={digest}")).read_bytes() == b"new"


# -- broken connections ------------------------------------------------------------------------------------------------


def ranges(server: Server) -> list[str]:
    return [headers.get("Range", "") for _, headers in server.requests]


@pytest.mark.parametrize("headers", [{"ETag": '"1"'}, {"Last_Modified": "Tue, 01 Oct 2019 08:00:00 GMT"}, {}])
def test_a_dropped_connection_goes_on_where_it_ended(headers: dict[str, str], server: Server):
    server.behaviours["/model.bin"] = drops(2 if "ETag" in headers else 1, **headers)
    assert download(server.at("/model.bin")).read_bytes() == CONTENT
    half = len(CONTENT) // 2
    expected = ["", f"bytes={half}-", f"bytes={half + half // 2}-"] if "ETag" in headers else ["", f"bytes={half}-"]
    assert ranges(server) == (expected if headers else ["", ""])


def test_the_next_call_goes_on_where_the_last_one_ended(server: Server, tmp_path: Path):
    server.behaviours["/model.bin"] = stalls
    downloads.TIMEOUT_SECONDS = 0.1
    line = refused(server.at("/model.bin"))
    assert "nothing came for 0 s; what has come is kept, the same command goes on from there; download it" in line
    assert left_over(tmp_path) == [".part.json", "model.bin.part"]
    server.behaviours.clear()
    downloads.TIMEOUT_SECONDS = 5.0
    assert download(server.at("/model.bin")).read_bytes() == CONTENT
    assert ranges(server)[-1] == "bytes=10-"
    # A part that had come whole needs no further answer.
    folder = download(server.at("/model.bin")).parent
    (folder / "model.bin").rename(folder / "model.bin.part")
    (folder / ".part.json").write_text(json.dumps({"validator": '"1"', "bytes": len(CONTENT)}))
    count = len(server.requests)
    assert download(server.at("/model.bin")).read_bytes() == CONTENT
    assert len(server.requests) == count


def test_a_file_that_changed_meanwhile_begins_anew(server: Server):
    new = CONTENT[::-1]

    def changes(handler: Any, content: bytes) -> None:
        drops(1, ETag='"1"')(handler, content)
        server.files["/model.bin"], server.tags["/model.bin"] = new, '"2"'
        server.behaviours.clear()

    server.behaviours["/model.bin"] = changes
    assert download(server.at("/model.bin")).read_bytes() == new


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"2"', "Content_Range": f"bytes {len(CONTENT) // 2}-{len(CONTENT) - 1}/{len(CONTENT)}"},
        {"ETag": '"1"', "Content_Range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"},
        {"ETag": '"1"', "Content_Range": f"bytes {len(CONTENT) // 2}-99/100"},
        {"ETag": '"1"', "Content_Range": "bytes 1" + "0" * 5000},
        {"ETag": '"1"'},
    ],
)
def test_a_part_of_another_file_is_not_taken(headers: dict[str, str], server: Server):
    def lies(handler: Any, content: bytes) -> None:
        if "Range" in handler.headers:
            handler.head(206, **headers, Content_Length=len(content) // 2)
            handler.wfile.write(bytes(len(content) // 2))
        elif len(server.requests) == 1:
            drops(1, ETag='"1"')(handler, content)
        else:
            serve(handler, content)

    server.behaviours["/model.bin"] = lies
    assert download(server.at("/model.bin")).read_bytes() == CONTENT


def test_a_file_that_became_shorter(server: Server):
    server.behaviours["/model.bin"] = drops(1, ETag='"1"')
    server.files["/model.bin"] = CONTENT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads, "MOST_ATTEMPTS", 1)
        refused(server.at("/model.bin"))
    server.files["/model.bin"] = b"short"
    assert download(server.at("/model.bin")).read_bytes() == b"short"


def wrong_length(handler: Any, content: bytes) -> None:
    handler.head(200, Content_Length=len(content) + 5)
    handler.wfile.write(content)


def no_http(handler: Any, _: bytes) -> None:
    handler.wfile.write(b"\x00\x01 this is not HTTP\r\n\r\n")


def bad_chunks(handler: Any, _: bytes) -> None:
    handler.head(200, Transfer_Encoding="chunked")
    handler.wfile.write(b"5\r\nabcde\r\nzz\r\n")


def no_answer(handler: Any, _: bytes) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def web_page(handler: Any, _: bytes) -> None:
    handler.head(200)
    handler.wfile.write(b"\n <!DOCTYPE html><html>sign in</html>")


HAND = "download it by hand and give the file"


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (wrong_length, f"ended after {len(CONTENT):,} of {len(CONTENT) + 5:,} bytes; {HAND}"),
        (no_http, "gives no answer"),
        (bad_chunks, "the connection broke"),
        (no_answer, "gives no answer"),
        (web_page, "a web page came, not a file"),
        (says(404), f"the server answers 404: there is no such file; {HAND}"),
        (says(403), "the server answers 403: it does not let you"),
        (says(401), "the server answers 401: it wants a user and a password"),
        (says(410), "the server answers 410: Gone"),
        (says(418), "the server answers 418: I'm a Teapot"),
        (says(503), "the server answers 503: Service Unavailable"),
        (says(204), "the server answers 204: No Content"),
        (says(200), "the file there is empty"),
        (says(206), "the server answers 206: Partial Content"),
        (says(416), "shorter than what had come"),
        (says(302), "it answers 302 and names no other place"),
        (says(302, Location="/model.bin"), "it redirects more than 10 times"),
        (says(301, Location="file:///etc/passwd"), "it redirects to 'file:///etc/passwd', which is no plain http"),
        (says(307, Location="ftp://127.0.0.1/x"), "it redirects to 'ftp://127.0.0.1/x', which is no plain http"),
        (says(302, Location="http://me:word@127.0.0.1/x?t=1"), "it redirects to 'http://127.0.0.1/x', which is no"),
    ],
)
def test_an_address_that_gives_nothing(behaviour: Any, message: str, server: Server, tmp_path: Path):
    server.behaviours["/model.bin"] = behaviour
    line = refused(server.at("/model.bin"))
    assert message in line
    assert line.startswith(server.at("/model.bin") + ": ")
    assert not [name for name in left_over(tmp_path) if name == "model.bin"]


def test_a_busy_server_is_asked_again(server: Server):
    def busy(handler: Any, content: bytes) -> None:
        (serve if len(server.requests) > 2 else says(503))(handler, content)

    server.behaviours["/model.bin"] = busy
    assert download(server.at("/model.bin")).read_bytes() == CONTENT


def test_redirects_are_followed_without_the_password(server: Server):
    server.behaviours["/old"] = says(302, Location="/model.bin#part")
    address = server.at("/old").replace("://", "://me:%3Aword@")
    assert download(address).read_bytes() == CONTENT
    assert server.requests[0][1]["Authorization"] == "Basic bWU6OndvcmQ="
    assert "Authorization" not in server.requests[1][1]


def test_https_never_becomes_http():
    request, headers, answer = Request("https://host/x"), Message(), io.BytesIO()
    request.timeout = 1.0
    headers["Location"] = "http://host/y?secret"
    with pytest.raises(downloads._DeadError, match=r"from https to 'http://host/y', where anybody may change the file"):
        downloads._Redirects().http_error_302(request, answer, 302, "Found", headers)
    assert answer.closed


def test_hosts_that_are_not_there(server: Server, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert f"{address} refuses the connection" in refused(f"http://{address}/x.zip")

    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "no host nowhere.invalid is known (Name or service not known)" in refused("http://nowhere.invalid/x.zip")


def test_a_server_that_never_answers(server: Server):
    downloads.TIMEOUT_SECONDS = 0.1
    server.behaviours["/model.bin"] = lambda *_: time.sleep(0.5)
    assert "does not answer within 0 s" in refused(server.at("/model.bin"))


# -- too much ----------------------------------------------------------------------------------------------------------


def test_an_endless_answer_ends_at_the_limit(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 2**20)
    server.behaviours["/model.bin"] = endless
    assert "did not end after 0.0 GB, more than any checkpoint" in refused(server.at("/model.bin"))
    assert left_over(tmp_path) == []
    monkeypatch.setattr(cache, "room", lambda _: 100_000)
    assert f"{tmp_path / 'cache'} has room for 0.0: free some, or set DIVAN_CACHE" in refused(server.at("/model.bin"))
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("length", [len(CONTENT), 300 * 10**9, 10**17])
def test_an_announced_length_is_compared_before_anything_is_written(
    length: int, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cache, "room", lambda _: len(CONTENT) - 1)
    server.behaviours["/model.bin"] = lambda handler, _: handler.head(200, Content_Length=length)
    line = refused(server.at("/model.bin"))
    assert f"the file has {length / 1e9:,.1f} GB, and {tmp_path / 'cache'} has room for 0.0" in line
    assert left_over(tmp_path) == []
    monkeypatch.undo()
    if length > 10**12:
        monkeypatch.setenv("DIVAN_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(cache, "room", lambda _: 10**18)
        assert "more than any checkpoint (200 GB)" in refused(server.at("/model.bin"))


@pytest.mark.parametrize("length", ["-5", "abc", "9" * 4000, "1 2"])
def test_a_length_that_is_none(length: str, server: Server):
    def behave(handler: Any, content: bytes) -> None:
        handler.head(200, Content_Length=length)
        handler.wfile.write(content)

    server.behaviours["/model.bin"] = behave
    assert download(server.at("/model.bin")).read_bytes() == CONTENT


# -- several processes -------------------------------------------------------------------------------------------------


def test_two_that_want_the_same_file_download_it_once(server: Server, capfd: pytest.CaptureFixture[str]):
    came, go_on, results = threading.Event(), threading.Event(), []

    def slow(handler: Any, content: bytes) -> None:
        came.set()
        go_on.wait(5)
        serve(handler, content)

    server.behaviours["/model.bin"] = slow
    threads = [threading.Thread(target=lambda: results.append(download(server.at("/model.bin")))) for _ in range(2)]
    threads[0].start()
    assert came.wait(5)
    threads[1].start()
    time.sleep(0.1)
    go_on.set()
    for thread in threads:
        thread.join()
    assert results[0] == results[1]
    assert results[0].read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert f"the download of {server.at('/model.bin')}: waiting for process" in capfd.readouterr().err


def test_waiting_ends(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with holding(tmp_path / ".lock", "x"):
        late = holding(tmp_path / ".lock", "x", wait_seconds=0.3)
        with pytest.raises(UsageError, match=r"x is in use by process \d+ on .*: wait for it to end$"), late:
            pass
    assert capfd.readouterr().err.count("x: waiting for process") == 1


def test_waiting_for_one_that_leaves_nothing(tmp_path: Path):
    """The folder of the lock goes with it, and is made anew."""
    path, entered, go_on = tmp_path / "a/b/.lock", threading.Event(), threading.Event()

    def first() -> None:
        with holding(path, "x"):
            entered.set()
            go_on.wait(5)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(5)
    threading.Timer(0.1, go_on.set).start()
    with holding(path, "x", wait_seconds=5):
        assert path.exists()
    thread.join()
    assert not path.exists()


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://host/x", "ftp:// is not read; expected http://, https:// or a path"),
        ("file:///etc/passwd", "file:// is not read"),
        ("s3://bucket/x", "s3:// is not read"),
        ("http://", "no proper host"),
        ("http:///x", "no proper host"),
        ("http://host:port/x", "no proper host"),
        ("http://host:99999/x", "no proper host"),
        ("http://a..b/x", "no proper host"),
        ("http://[::1/x", "no proper host"),
        ("http://host/a b", "not one word"),
        ("http://host/a\nb", "not one word"),
        ("http://host/" + "x" * 9000, "longer than 8,192 characters"),
        ("http://host/x#sha256=12", "expected #sha256="),
    ],
)
def test_addresses_that_are_none(address: str, message: str):
    with pytest.raises(UsageError) as caught:
        obtain(address)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["x", "a/b.tar.gz", "/x:/y", "C:/x", "C:\\x", "x:y", "", "./http:x"])
def test_paths_are_left_alone(text: str):
    assert obtain(text) == Path(text)
    assert obtain(Path(text)) == Path(text)
    assert shown(text) == without_password(text) == text


def test_names_of_files():
    assert parse("https://Host.org/a/%E4%B8%AD x.tar.gz?x=1".replace(" ", "%20")).name == "_x.tar.gz"
    assert parse("https://host").name == "file"
    assert parse("https://host/a/%2e%2e").name == "file"
    assert parse("https://host/.bashrc").name == "bashrc"
    assert parse("https://host/" + "x" * 300 + ".tar.gz").name.endswith("xx.tar.gz")
    assert parse("http://[::1]:80/中文").url == "http://[::1]:80/%E4%B8%AD%E6%96%87"
    assert parse("http:/host/x") == parse("http://host/x")


SECRET = "Sesame"


@given(st.text("ab:/?#%[]\\ é", max_size=6), st.text("ab:/?#@%[]", max_size=6), st.sampled_from(["", ":99", ":x"]))
def test_passwords_are_never_shown(before: str, after: str, port: str):
    text = f"http://me:{before}{SECRET}{after}@host{port}/x.zip"
    assert SECRET not in shown(text)
    assert SECRET not in without_password(text)
    try:
        address = parse(text)
        told = address.shown + address.url + address.name + address.host
    except UsageError as error:
        told = str(error)
    assert SECRET not in told


def test_passwords_and_tokens_are_neither_printed_nor_written(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    secret = server.at("/model.bin?token=Sesame").replace("://", f"://me:{SECRET}@")
    download(secret)
    server.files.clear()
    line = refused(secret.replace("model", "other"))
    out = capfd.readouterr()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    names = " ".join(map(str, (tmp_path / "cache").rglob("*")))
    assert SECRET not in line + out.out + out.err + names
    assert SECRET.encode() not in kept


# -- published checkpoints ---------------------------------------------------------------------------------------------


def test_a_dead_link_gives_the_alternatives(server: Server):
    line = refused(server.at("/somewhere/albert_base_v2.tar.gz"))
    assert "ALBERT base v2 is also to be had from Hugging Face albert/albert-base-v2: give the folder" in line
    assert "ModelScope damo/nlp_structbert" not in refused(server.at("/somewhere/en_model"))
    assert "albert_zh base: no other place is known" in refused(server.at("/x/ALBERT_base_zh.zip"))


def test_the_table_of_published_checkpoints_finds_its_own_rows():
    rows = read_toml(downloads.PUBLISHED, what="a table")["checkpoint"]
    for row in rows:
        assert row["alternatives"] or row["note"]
        assert all("/" in place and place.isprintable() for place in row["alternatives"])
        for pattern in row["addresses"]:
            assert not pattern.startswith("http")
            found = find_published("https://" + pattern.replace("*", "x"))
            assert found is not None
            assert found["name"] == row["name"]
    assert find_published("https://host/anything.tar.gz") is None


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\x80\x02}q\x00.", "en_model.bin"),
        ((20).to_bytes(8, "little") + b'{"__metadata__": {}}', "en_model.safetensors"),
        (b"something", "en_model"),
    ],
)
def test_weights_get_the_end_by_which_they_are_known(content: bytes, name: str, server: Server):
    server.files["/en_model"] = content
    assert obtain(server.at("/en_model")).name == name


# -- end to end --------------------------------------------------------------------------------------------------------


def test_a_damaged_archive_is_asked_for_again(server: Server, tmp_path: Path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("model/empty"))
    server.files["/x.tar.gz"] = packed.getvalue()[:-6]
    with pytest.raises(UsageError, match=r"x.tar.gz is damaged or cut short \(the end is missing\)"):
        obtain(server.at("/x.tar.gz"))
    server.files["/x.tar.gz"] = packed.getvalue()
    folder = obtain(server.at("/x.tar.gz"))
    assert [path.name for path in folder.iterdir()] == ["empty"]
    assert folder.is_relative_to(tmp_path / "cache/downloads")
    assert obtain(Path(server.at("/x.tar.gz"))) == folder
    assert len(server.requests) == 2


@pytest.mark.slow
def test_an_archived_checkpoint_of_tf1_is_converted_from_its_address(server: Server, tmp_path: Path):
    import convert_checkpoint
    from conversion.readers import read_checkpoint
    from conversion.writers import write_tf1

    config, tensors = CONFIGS["zh_all"], random_tensors("zh_all")
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz1"])
    )
    write_tf1(tmp_path / "albert_tiny", config, tensors, [tmp_path / "vocab.txt"])
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(tmp_path / "albert_tiny", "albert_tiny")
    server.files["/albert_tiny.tar.gz"] = packed.getvalue()
    server.behaviours["/albert_tiny.tar.gz"] = drops(1, ETag='"1"')
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    address = server.at(f"/albert_tiny.tar.gz#sha256={digest}")
    for source in (address, Path(address)):
        found = read_checkpoint(source)
        assert found.config == config
        assert {name: np.asarray(value).tobytes() for name, value in found.tensors.items()} == {
            name: value.tobytes() for name, value in tensors.items()
        }
    options = convert_checkpoint.Options(input=address, output=str(tmp_path / "ours"), format="ours")
    assert convert_checkpoint.main(options) == 0
    assert (tmp_path / "ours/vocab.txt").read_bytes() == (tmp_path / "vocab.txt").read_bytes()
    assert len(server.requests) == 2


def test_runs_keep_no_password():
    import run_classifier
    from commands.flags import resolved

    paths: dict[str, Any] = {"data_dir": "d", "bert_config_file": "c", "output_dir": "o", "task_name": "lcqmc"}
    options = run_classifier.Options(**paths, init_checkpoint=f"https://me:{SECRET}@host/x.zip?v=2#sha256=1")
    kept = resolved(options)
    assert kept["init_checkpoint"] == "https://host/x.zip?v=2#sha256=1"
    assert {name: kept[name] for name in paths} == paths
