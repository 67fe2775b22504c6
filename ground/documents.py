"""The one reader of JSON and TOML: size, text, depth and shape are checked before anybody uses a value.

    values = read_json(path, Shape, what="a manifest", fix="delete it to read the shards without it")

A shape is a type that msgspec knows (TypedDict, dataclass, `list[int]`, `Annotated[int, Meta(ge=0)]`). It is checked
and not applied: the values come back as the file has them, with keys that the shape does not name. Every mistake is one
`UsageError`: the file, the place in it (`$.shards[0].bytes`), what is there, what is expected, how to mend it.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
from absl.app import UsageError

from ground.files import check_plain

MAX_BYTES = 64 * 2**20
"""A config has kilobytes and the manifest of 100,000 shards 20 megabytes; what is larger is another kind of file."""
MAX_DEPTH = 64
"""Files of this project nest 6 deep; beyond some hundreds Python itself gives up on a value."""

_KINDS = {
    "int": "a whole number",
    "str": "text",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}
SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can spell and no UTF-8 file can hold."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_MAX_SHOWN = 40


def read_json(
    path: str | Path,
    shape: Any = Any,
    *,
    what: str,
    fix: str = "",
    nonfinite: bool = False,
    max_bytes: int = MAX_BYTES,
    where: str = "",
) -> Any:
    """Return the value of a JSON file.

    Args:
        path: of the file; UTF-8, a byte order mark is passed over.
        shape: that the value must have.
        what: the kind of file, for messages, such as "a manifest".
        fix: what the user can do about a wrong file.
        nonfinite: whether NaN and Infinity, which Python writes and JSON does not know, are numbers here.
        max_bytes: a larger file is refused unread.
        where: stands for the file in messages; its path by default.

    Raises:
        OSError: the file cannot be read.
        UsageError: it does not hold such a value.
    """
    where = where or str(path)
    content = _content(Path(path), what, fix, max_bytes, where)
    return parse_json(content, shape, where=where, what=what, fix=fix, nonfinite=nonfinite)


def parse_json(
    content: str | bytes, shape: Any = Any, *, where: str, what: str, fix: str = "", nonfinite: bool = False
) -> Any:
    """Return the value of JSON text; `where` names its place in messages, the rest is as in `read_json`."""
    try:
        value = msgspec.json.decode(content)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if not nonfinite or isinstance(error, RecursionError):
            raise _unreadable(where, what, _reason(error, content), fix) from None
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as other:
            raise _unreadable(where, what, _reason(other, content), fix) from None
    return check_shape(value, shape, where=where, fix=fix)


def read_toml(path: str | Path, shape: Any = Any, *, what: str, fix: str = "") -> Any:
    """Return the tables of a TOML file; the arguments and errors are those of `read_json`."""
    content = _content(Path(path), what, fix, MAX_BYTES, str(path))
    # Python's reader takes minutes over a key of many parts.
    heads = (line.partition(b"=")[0] for line in content.split(b"\n") if b"=" in line or line.lstrip()[:1] == b"[")
    if any(head.count(b".") > MAX_DEPTH for head in heads):
        raise _unreadable(str(path), what, f"a key has more than {MAX_DEPTH} parts", fix)
    try:
        value = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise _unreadable(str(path), what, _reason(error, content), fix) from None
    return check_shape(value, shape, where=str(path), fix=fix)


def json_line(line: str) -> Any:
    """Return the value of one line of foreign JSON, as Python's own reader has it; raises `ValueError` of one line.

    Half of a surrogate pair and NaN, which msgspec refuses, are read as Python reads them.
    """
    try:
        return msgspec.json.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(_reason(error, line)) from None


def as_json(value: Any) -> Any:
    """Return a value of Python as a JSON file gives it back: tuples become lists."""
    return json.loads(json.dumps(value))


def check_shape(value: Any, shape: Any, *, where: str, fix: str = "") -> Any:
    """Return `value` if it has the shape and is at most `MAX_DEPTH` deep; raises `UsageError` that names the place."""
    if _is_too_deep(value):
        raise UsageError(f"{where}: values lie more than {MAX_DEPTH} deep, expected a few{_mending(fix)}")
    if shape is not Any:
        try:
            msgspec.convert(value, shape)
        except msgspec.ValidationError as error:
            message, _, place = str(error).partition(" - at `")
            raise UsageError(f"{where}: {_complaint(value, message, place.rstrip('`'))}{_mending(fix)}") from None
        except UnicodeEncodeError:
            raise UsageError(f"{where}: a text is no Unicode (half of a surrogate pair){_mending(fix)}") from None
    return value


def _content(path: Path, what: str, fix: str, max_bytes: int, where: str) -> bytes:
    with check_plain(path).open("rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UsageError(
            f"{where}: larger than {max_bytes / 2**20:,.0f} MiB, the most that {what} can have{_mending(fix)}"
        )
    content = content.removeprefix(b"\xef\xbb\xbf")
    if content.startswith(_UTF_16) or b"\0" in content[:1000]:
        kind = "UTF-16 text" if content.startswith(_UTF_16) else "a binary file"
        raise _unreadable(where, what, f"it is {kind}; expected UTF-8", fix)
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise _unreadable(where, what, f"byte {error.start:,} is no UTF-8 text; save it as UTF-8", fix) from None
    return content


def _reason(error: Exception, content: str | bytes) -> str:
    """Return what is wrong with text that cannot be read at all, with line and column where they are known."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error).partition("\n")[0]
    if "integer string conversion" in text or text.startswith("Integer value out of range"):
        return "a number has thousands of digits"
    found = re.search(r" \(byte (\d+)\)$", text)
    if found is None:
        return text.removeprefix("JSON is malformed: ")
    before = content[: int(found[1])]
    before = before if isinstance(before, str) else before.decode(errors="replace")
    place = f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
    return f"{text[: found.start()].removeprefix('JSON is malformed: ')} at {place}"


def _unreadable(where: str, what: str, reason: str, fix: str) -> UsageError:
    return UsageError(f"{where}: not {what} ({reason}){_mending(fix)}")


def _mending(fix: str) -> str:
    return f"; {fix}" if fix else ""


def _complaint(value: Any, message: str, place: str) -> str:
    """Return msgspec's message in words: the place, what is there, what is expected."""
    for kind, words in _KINDS.items():
        message = message.replace(f"`{kind}`", words)
    message = re.sub(r", got .*", "", message.replace("`", "'"))
    # Every pattern of a shape is one of names.
    message = re.sub(r"text matching regex .*", "the plain name of a file, without a folder", message)
    message = message[:1].lower() + message[1:]
    if place.startswith("key` in `"):
        return f"a key of {place.removeprefix('key` in `')}: {message}"
    there = _found(value, place)
    shown = "" if there is None else f" is {there}"
    return f"{place or '$'}{shown}: {message}"


def _found(value: Any, place: str) -> str | None:
    """Return the value at a place such as `$.shards[0].bytes`, cut short; None where the place names no one value."""
    for key, index in re.findall(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]", place):
        if index == "...":
            return None
        try:
            value = value[key] if key else value[int(index)]
        except (KeyError, IndexError, TypeError):
            return None
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) > 2**200:
        return "a number of many digits"
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "..."


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
