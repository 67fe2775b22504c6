"""Download the file of an http or https address into the cache: whole, resumed where it broke off, checked.

    downloads/HOST--NAME--KEY/
        NAME               the file, once it is complete
        NAME.part          what has come of it
        .part.json         {"validator": "Tue, 01 Oct 2019 08:00:00 GMT", "bytes": 109540}
        .download.json     {"address": "https://host/NAME", "name": "NAME", "bytes": 109540, "sha256": "0f3a..."}

A part goes on only where the server tells by `validator` that the file there is still the same.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import quote, urldefrag, urljoin, urlsplit

from absl.app import UsageError

from conversion.contents import WEIGHTS, kind_of
from ground import cache
from ground.addresses import Address, parse, shown
from ground.documents import read_json, read_toml
from ground.files import naming, open_new, write_atomically
from ground.outputs import plain_file, plain_name

if TYPE_CHECKING:
    from email.message import Message

    from ground.progress import Progress

TIMEOUT_SECONDS = 30.0
"""Of an answer and of each piece of it; hosts on the other side of the world answer within three."""
PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Before each further attempt while nothing comes; after a piece has come they begin anew."""
MOST_ATTEMPTS = 100
"""A connection that breaks more often than this gives no gigabyte within a day."""
MOST_REDIRECTS = 10
PUBLISHED = Path(__file__).with_name("published.toml")
_PIECE = 2**20
_PART, _RECORD = ".part.json", ".download.json"
_WEB_PAGES = (b"<!doctype html", b"<html")
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)")
_BUSY = (408, 425, 429, 500, 502, 503, 504)


class _Record(TypedDict):
    address: str
    name: str
    bytes: int
    sha256: str


class _Part(TypedDict):
    """What is known of a file that has come in part: what tells it from a later one, and its size if that was told."""

    validator: str
    bytes: int | None


class _Published(TypedDict):
    """A row of published.toml."""

    name: str
    addresses: list[str]
    alternatives: list[str]
    note: str


class _DeadError(Exception):
    """Why an address gives nothing, now or ever."""


class _DroppedError(Exception):
    """Why a connection ended early; another attempt may do better."""


def download(address: str) -> Path:
    """Return the file of an address in the cache, where it is kept for the next call.

    Another process that downloads it is waited for. `#sha256=HEX` at the end of the address is compared with the file.

    Raises:
        UsageError: of one line: the address is none, gives nothing (then the line names where else the checkpoint is to
            be had), gives too much, or another file than the checksum says.
        OSError: the file cannot be written.
    """
    asked = parse(address)
    folder = _folder(asked)
    if (file := _kept(folder, asked)) is None:
        with cache.alone(folder, f"the download of {asked.shown}"):
            if (file := _kept(folder, asked)) is None:
                try:
                    file = _fetch(asked, folder)
                except _DeadError as error:
                    raise UsageError(f"{asked.shown}: {error}; {_alternatives(asked)}") from None
    return file


def forget(address: str) -> None:
    """Remove a file from the cache that turned out to be of no use, so that the next call downloads it anew."""
    folder = _folder(parse(address))
    record = _read_record(folder)
    (folder / _RECORD).unlink(missing_ok=True)
    if record is not None:
        (folder / record["name"]).unlink(missing_ok=True)


def _folder(asked: Address) -> Path:
    return cache.entry("downloads", asked.host, asked.name, key=asked.url)


def _read_record(folder: Path) -> _Record | None:
    try:
        record: _Record = read_json(folder / _RECORD, _Record, what="the record of a download")
    except (OSError, UsageError):
        return None
    return record if plain_name(record["name"]) else None


def _kept(folder: Path, asked: Address) -> Path | None:
    """Return the file of an earlier download, if it is as it came and of the checksum that is asked for."""
    record = _read_record(folder)
    if record is None or (asked.sha256 and asked.sha256 != record["sha256"]):
        return None
    file = folder / record["name"]
    if not plain_file(file, record["bytes"]) or cache.digest(file) != record["sha256"]:
        return None
    return file


# -- one file ----------------------------------------------------------------------------------------------------------


def _fetch(asked: Address, folder: Path) -> Path:
    """Download a file, in as many attempts as it takes, and return it; the folder is held."""
    part = folder / f"{asked.name}.part"
    fruitless, reason = 0, ""
    for _ in range(MOST_ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            _attempt(asked, folder, part)
            return _finish(asked, folder, part)
        except _DroppedError as error:
            reason = str(error)
        has_grown = part.exists() and part.stat().st_size > before
        fruitless = 0 if has_grown else fruitless + 1
        if fruitless > len(PAUSES_SECONDS):
            break
        time.sleep(PAUSES_SECONDS[max(0, fruitless - 1)])
    kept = part.exists() and bool(_known(folder)["validator"])
    raise _DeadError(reason + ("; what has come is kept, the same command goes on from there" if kept else ""))


def _finish(asked: Address, folder: Path, part: Path) -> Path:
    """Check a complete file, give it its name and note what it is."""
    with part.open("rb") as stream:
        head = stream.read(512).lstrip().lower()
    if not part.stat().st_size:
        _drop(folder, part)
        raise _DeadError("the file there is empty")
    if head.startswith(_WEB_PAGES):
        _drop(folder, part)
        raise _DeadError("a web page came, not a file; is it one to sign in to, or to confirm a download on?")
    digest, size = cache.digest(part), part.stat().st_size
    if asked.sha256 and digest != asked.sha256:
        _drop(folder, part)
        raise UsageError(
            f"{asked.shown}: the file has the sha256 {digest}, expected {asked.sha256}; it was removed: see what its "
            "publisher says"
        )
    # Some weights are published under names without an end, by which no reader would know them.
    end = WEIGHTS.get(kind_of(part), "")
    file = folder / (asked.name if Path(asked.name).suffix in (*WEIGHTS.values(), ".pt") else asked.name + end)
    part.replace(file)
    (folder / _PART).unlink(missing_ok=True)
    record = _Record(address=asked.shown, name=file.name, bytes=size, sha256=digest)
    write_atomically(folder / _RECORD, json.dumps(record, indent=2) + "\n")
    _say(f"{asked.shown}: {size:,} bytes, sha256 {digest}")
    return file


def _drop(folder: Path, part: Path) -> None:
    part.unlink(missing_ok=True)
    (folder / _PART).unlink(missing_ok=True)


def _known(folder: Path) -> _Part:
    try:
        return read_json(folder / _PART, _Part, what="the record of a part")
    except (OSError, UsageError):
        return _Part(validator="", bytes=None)


def _attempt(asked: Address, folder: Path, part: Path) -> None:
    """Let one response complete the part; raises `_DroppedError` where it does not."""
    known = _known(folder)
    have = part.stat().st_size if part.exists() and known["validator"] else 0
    if have and have == known["bytes"]:
        return
    with _answer(asked, have, known["validator"], folder, part) as response:
        total, goes_on = _length(response), have > 0 and response.status == 206
        if response.status != 200 and not goes_on:
            raise _DeadError(_refusal(response.status))
        validator = _validator(response.headers)
        if goes_on:
            if not _follows(response.headers, have, known):
                _drop(folder, part)
                raise _DroppedError("the file there has changed, or the server sent another part than was asked for")
            total = known["bytes"]
        else:
            have = 0
        most = _most(asked, folder, part, have, total)
        if not goes_on:
            _drop(folder, part)
            write_atomically(folder / _PART, json.dumps(_Part(validator=validator, bytes=total)), sync=False)
        with (
            naming(part),
            part.open("ab") if goes_on else open_new(part) as stream,
            _progress(asked, have, total) as bar,
        ):
            for piece in _pieces(response, None if total is None else total - have):
                have += len(piece)
                if have > most:
                    break
                stream.write(piece)
                bar.update(have / _scale(total))
    if have > most:
        _drop(folder, part)
        raise UsageError(_too_large(asked, have, None, most))
    if total is not None and have != total:
        raise _DroppedError(f"the connection ended after {have:,} of {total:,} bytes")


def _follows(headers: Message, have: int, known: _Part) -> bool:
    """Return whether a partial response is what follows the first `have` bytes of the file that is known."""
    found = _RANGE.fullmatch(headers.get("Content-Range", ""))
    if found is None or int(found[1]) != have or _validator(headers) not in ("", known["validator"]):
        return False
    return found[2] == "*" or known["bytes"] in (None, int(found[2]))


def _most(asked: Address, folder: Path, part: Path, have: int, total: int | None) -> int:
    """Return at how many bytes to stop; raises `UsageError` for a file that is too large, before anything is written.

    What a part that begins anew takes on the disk is free again by then.
    """
    taken = part.stat().st_size if part.exists() else 0
    most = min(cache.MOST_BYTES, taken + cache.room(folder))
    if total is not None and total > most:
        raise UsageError(_too_large(asked, have, total, most))
    return most


def _too_large(asked: Address, have: int, total: int | None, most: int) -> str:
    size = f"has {total / 1e9:,.1f} GB" if total is not None else f"did not end after {have / 1e9:,.1f} GB"
    if most == cache.MOST_BYTES:
        return f"{asked.shown}: the file {size}, more than any checkpoint ({most / 1e9:,.0f} GB): see what it is"
    return f"{asked.shown}: the file {size}, and {cache.root()} has room for {most / 1e9:,.1f}: {cache.MAKE_ROOM}"


def _pieces(response: http.client.HTTPResponse, left: int | None) -> Iterator[bytes]:
    """Yield the body up to its announced end, each piece as it comes; raises `_DroppedError`."""
    while left is None or left > 0:
        try:
            piece = response.read1(_PIECE if left is None else min(left, _PIECE))
        except TimeoutError:
            raise _DroppedError(f"nothing came for {TIMEOUT_SECONDS:.0f} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _DroppedError(f"the connection broke ({_reason(error)})") from None
        if not piece:
            return
        left = None if left is None else left - len(piece)
        yield piece


def _length(response: http.client.HTTPResponse) -> int | None:
    """Return how many bytes a response announces; None where it does not, or in several ways."""
    text = response.headers.get("Content-Length", "")
    if response.headers.get("Transfer-Encoding") or not re.fullmatch(r"\d{1,18}", text):
        return None
    return int(text)


def _validator(headers: Message) -> str:
    """Return what tells this content of an address from a later one, for `If-Range`; empty where nothing does."""
    tag = headers.get("ETag", "")
    value = tag if tag.startswith('"') else headers.get("Last-Modified", "")
    return value if value.isascii() and value.isprintable() else ""


def _progress(asked: Address, have: int, total: int | None) -> Progress:
    from ground.progress import Progress

    scale = _scale(total)
    unit = "MB" if scale == 1e6 else "kB"
    return Progress(None if total is None else total / scale, unit, f"downloading {asked.name}", done=have / scale)


def _scale(total: int | None) -> float:
    """Return the unit of progress in bytes."""
    return 1e6 if total is None or total > 1e7 else 1e3


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# -- one response ------------------------------------------------------------------------------------------------------


class _Redirects(urllib.request.BaseHandler):
    """Follow redirects to http and https, never from https back to http; user and password stay with the first host."""

    def http_error_302(self, request: Any, answer: Any, code: int, message: str, headers: Message) -> Any:
        """Ask at the place that the answer names; raises `_DeadError`."""
        answer.close()
        where, place = request.full_url, headers.get("Location")
        if place is None:
            raise _DeadError(f"it answers {code} and names no other place")
        target = urldefrag(urljoin(where, place.encode("latin-1", "replace").decode(errors="replace")))[0]
        parts = urlsplit(target)
        if parts.scheme not in ("http", "https") or "@" in parts.netloc or not parts.hostname:
            raise _DeadError(f"it redirects to {shown(target)[:200]!r}, which is no plain http or https address")
        if parts.scheme == "http" and urlsplit(where).scheme == "https":
            raise _DeadError(f"it redirects from https to {shown(target)[:200]!r}, where anybody may change the file")
        hops = getattr(request, "hops", 0) + 1
        if hops > MOST_REDIRECTS:
            raise _DeadError(f"it redirects more than {MOST_REDIRECTS} times")
        # What is secret was added as an "unredirected" header, which is not among these.
        following = urllib.request.Request(quote(target, safe="/%:@!$&'()*+,;=~?[]"), headers=request.headers)
        following.hops = hops  # pyright: ignore[reportAttributeAccessIssue]
        return self.parent.open(following, timeout=request.timeout)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """Return what asks http and https alone: no files, no ftp, no data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


@contextlib.contextmanager
def _answer(asked: Address, have: int, validator: str, folder: Path, part: Path) -> Iterator[http.client.HTTPResponse]:
    """Ask for a file, or for what follows its first `have` bytes; raises `_DeadError` or `_DroppedError`."""
    request = urllib.request.Request(asked.url, headers={"User-Agent": "divan", "Accept-Encoding": "identity"})
    if asked.user:
        secret = base64.b64encode(asked.user.encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)
    try:
        response = _opener().open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            _drop(folder, part)
            raise _DroppedError("the file there is shorter than what had come of it") from None
        raise (_DroppedError if error.code in _BUSY else _DeadError)(_refusal(error.code)) from None
    except urllib.error.URLError as error:
        raise _unreachable(asked, error.reason) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unreachable(asked, error) from None
    with response:
        yield response


def _refusal(code: int) -> str:
    meanings = {401: "it wants a user and a password", 403: "it does not let you", 404: "there is no such file"}
    meaning = meanings.get(code) or http.client.responses.get(code, "unknown")
    return f"the server answers {code}: {meaning}"


def _unreachable(asked: Address, error: object) -> Exception:
    """Return what to raise where there is no response at all."""
    if isinstance(error, socket.gaierror):
        return _DeadError(f"no host {asked.host} is known ({_reason(error)}); is this machine online?")
    if isinstance(error, ConnectionRefusedError):
        return _DeadError(f"{asked.host} refuses the connection")
    if isinstance(error, ssl.SSLCertVerificationError):
        return _DeadError(f"the certificate of {asked.host} is not to be trusted ({_reason(error)})")
    if isinstance(error, TimeoutError):
        return _DroppedError(f"{asked.host} does not answer within {TIMEOUT_SECONDS:.0f} s")
    if isinstance(error, http.client.InvalidURL | UnicodeError):
        return _DeadError("the address cannot be asked for")
    return _DroppedError(f"{asked.host} gives no answer ({_reason(error)})")


def _reason(error: object) -> str:
    text = (getattr(error, "strerror", None) or str(error)).partition("\n")[0][:120].strip()
    return "".join(letter if letter.isprintable() else "?" for letter in text) or type(error).__name__


# -- other places ------------------------------------------------------------------------------------------------------


def _alternatives(asked: Address) -> str:
    """Return where else a published checkpoint is to be had, or what to do about any other."""
    by_hand = "download it by hand and give the file"
    row = find_published(asked.shown)
    if row is None:
        return by_hand
    places = " or ".join(row["alternatives"])
    if not places:
        return f"{row['name']}: {row['note']}; or {by_hand}"
    note = f" ({row['note']})" if row["note"] else ""
    return f"{row['name']} is also to be had from {places}{note}: give the folder that you download there, or {by_hand}"


def find_published(address: str) -> _Published | None:
    """Return the row of a published checkpoint by its address without scheme, or by the name of its file alone."""
    rows: dict[str, list[_Published]] = read_toml(PUBLISHED, dict[str, list[_Published]], what="published checkpoints")
    place = address.partition("://")[2].lower()
    name = place.rpartition("/")[2]
    for by_name in (False, True):
        for row in rows["checkpoint"]:
            for pattern in row["addresses"]:
                pattern = pattern.lower()
                tail = pattern.rpartition("/")[2]
                # A short name such as en_model is one of many.
                if fnmatch(place, pattern) or (by_name and "." in tail and fnmatch(name, tail)):
                    return row
    return None
