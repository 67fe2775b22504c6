"""Addresses of the web in the place of paths: what they name, and how they are shown without what is secret in them.

    https://user:password@host/models/albert.tar.gz?token=1#sha256=0f3a...

User and password go to the host alone, the query is asked for and never shown, and the fragment, as pip writes it, is
the checksum of the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from absl.app import UsageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/+)")  # two letters at least: C:/ is a drive
_DIGEST = re.compile(r"sha256=([0-9a-fA-F]{64})")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d+)?")
_MOST_NAME = 100
_MOST_CHARACTERS = 8192
"""Servers take no longer ones."""


@dataclass(frozen=True)
class Address:
    """An address that can be asked for.

    Attributes:
        url: without user and fragment.
        shown: for messages: host and path.
        user: `user:password`, or empty.
        sha256: that the file must have, in small letters; empty where none is given.
        host: its name, and its port where one is given.
        name: of the file, in letters that every file system takes.
    """

    url: str
    shown: str
    user: str
    sha256: str
    host: str
    name: str


def is_address(text: str) -> bool:
    """Return whether a text names a place elsewhere (`http://host/file`, and as `Path` writes it `http:/host/file`)."""
    return _SCHEME.match(text) is not None


def without_password(text: str) -> str:
    """Return an address without user and password; another text as it is."""
    if (found := _SCHEME.match(text)) is None:
        return text
    rest = text[found.end() :]
    place = re.split(r"[/?#]", rest, maxsplit=1)[0]
    end = place.rfind("@")
    if end + 1 == len(place) or not _HOST.fullmatch(place, end + 1):
        # A password with one of these characters in it, which should have been written as %2F, ends at the last @.
        end = rest.rfind("@")
    return text[: found.end()] + rest[end + 1 :]


def shown(text: str) -> str:
    """Return an address without user, password, query and fragment, as it may be printed; another text as it is."""
    return re.split(r"[?#]", without_password(text))[0] if is_address(text) else text


def parse(text: str) -> Address:
    """Return the parts of an http or https address; raises `UsageError` for any other."""
    found = _SCHEME.match(text)
    if found is None or found[1].lower() not in ("http", "https"):
        scheme = found[1] if found else ""
        raise UsageError(f"{shown(text)}: {scheme}:// is not read; expected http://, https:// or a path: copy it here")
    if len(text) > _MOST_CHARACTERS or not text.isprintable() or " " in text:
        kind = f"longer than {_MOST_CHARACTERS:,} characters" if len(text) > _MOST_CHARACTERS else "not one word"
        raise UsageError(f"{shown(text)[:80]!r}: the address is {kind}; copy it once more, spaces as %20")
    # `Path` writes one slash where an address has two.
    improper = UsageError(f"{shown(text)}: the address has no proper host; expected http(s)://HOST/PATH")
    try:
        parts = urlsplit(f"{found[1].lower()}:{'//' if found[2] == '/' else found[2]}{text[found.end() :]}")
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except (ValueError, UnicodeError):
        raise improper from None
    if not host or "%" in host or port == 0 or not _HOST.fullmatch(parts.netloc.rpartition("@")[2]):
        raise improper
    digest = _DIGEST.fullmatch(parts.fragment)
    if parts.fragment and digest is None:
        raise UsageError(
            f"{shown(text)}#{parts.fragment[:20]}: expected #sha256= and 64 hexadecimal digits, or no # at all"
        )
    place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    path, query = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~"), quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    url = urlunsplit((parts.scheme, place, path, query, ""))
    return Address(
        url=url,
        shown=f"{parts.scheme}://{place}{path}",
        user=unquote(parts.netloc.rpartition("@")[0]),
        sha256=digest[1].lower() if digest else "",
        host=place,
        name=plain(PurePosixPath(unquote(parts.path)).name) or "file",
    )


def plain(name: str) -> str:
    """Return a name in letters that every file system takes: hidden by no dot, its end kept where it is long."""
    return _UNSAFE.sub("_", name).lstrip(".-")[-_MOST_NAME:].lstrip(".-")
