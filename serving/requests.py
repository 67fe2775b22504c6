"""The bodies of requests: JSON of a known shape becomes inputs of a model, anything else one line that names the place.

{"instances": [...]}                                     TF Serving's rows
{"inputs": {"text_a": [...], "text_b": [...]}}           TF Serving's columns
{"data": {"text": [...], "text_pair": [...]}}            PaddleNLP's SimpleServing

Every other key, kind of value, number or length is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from absl.app import UsageError

from ground.documents import parse_json
from ground.words import did_you_mean
from serving.limits import Limits
from serving.refusals import RefusalError

LEAST_LENGTH = 8
MOST_LISTED = 64
"""Texts of one instance."""
_SEARCH = ("num_beams", "temperature", "top_p")
_PARAMETERS = ("max_seq_length", "max_new_tokens", *_SEARCH, "truncate")
_FRACTIONS = ("temperature", "top_p")
_SIMPLE = {"max_seq_len": "max_seq_length", "batch_size": ""}


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        instances: inputs of the model.
        places: what each is called in the request.
        max_seq_length: to which they are cut, where the request says so.
        max_new_tokens: of what is generated, where the request says so.
        search: how text is searched for, by the names of `generation.settings`, where the request says so.
        truncate: whether a text that is too long is cut rather than refused.
        stream: whether the answer is to come in parts.
        columns: whether it is asked by columns, and so to be answered.
    """

    instances: list[Any]
    places: list[str]
    max_seq_length: int | None = None
    max_new_tokens: int | None = None
    search: Mapping[str, float] = field(default_factory=dict)
    truncate: bool = True
    stream: bool = False
    columns: bool = False


def read_predict(body: bytes, limits: Limits) -> Request:
    """Return a request in TF Serving's shape; raises `RefusalError`."""
    content = _object(body)
    _check_keys(content, ("instances", "inputs", "parameters", "stream", "signature_name"), "")
    if ("instances" in content) == ("inputs" in content):
        raise _wrong("give either instances, a list, or inputs, an object of columns", "instances")
    if content.get("signature_name", "serving_default") != "serving_default":
        raise _wrong("signature_name is unknown; leave it out, or give serving_default", "signature_name")
    stream = content.get("stream", False)
    if not isinstance(stream, bool):
        raise _wrong(f"stream is {_shown(stream)}; expected true or false", "stream")
    columns = "inputs" in content
    instances = _rows(content["inputs"]) if columns else content["instances"]
    if not isinstance(instances, list) or not instances:
        raise _wrong("instances is no list with something in it", "instances")
    places = [f"inputs[{n}]" if columns else f"instances[{n}]" for n in range(len(instances))]
    return _checked(instances, places, limits, stream=stream, columns=columns, **_parameters(content, {}))


def read_simple(body: bytes, limits: Limits) -> Request:
    """Return a request in SimpleServing's shape; raises `RefusalError`."""
    content = _object(body)
    _check_keys(content, ("data", "parameters"), "")
    data = content.get("data")
    if not isinstance(data, Mapping):
        raise _wrong("data is missing; expected an object of text and, for pairs, text_pair", "data")
    _check_keys(data, ("text", "text_pair"), "data.")
    columns = []
    for name in ("text", "text_pair"):
        value = data.get(name)
        if value is not None:
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise _wrong(f"{name} is {_shown(value)}; expected a text or a list of texts", f"data.{name}")
            columns.append(texts)
    if not columns or "text" not in data:
        raise _wrong("data has no text; expected a text or a list of texts", "data.text")
    if len(columns) == 2 and len(columns[0]) != len(columns[1]):
        raise _wrong(
            f"text has {len(columns[0])} texts, text_pair {len(columns[1])}; expected as many", "data.text_pair"
        )
    instances = columns[0] if len(columns) == 1 else [list(pair) for pair in zip(*columns, strict=True)]
    places = [f"data.text[{n}]" for n in range(len(instances))]
    return _checked(instances, places, limits, **_parameters(content, _SIMPLE))


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        content = parse_json(body, where="the body", what="JSON")
    except UsageError as error:
        raise RefusalError(400, "malformed", str(error)) from None
    if not isinstance(content, dict):
        raise _wrong(f"the body is {_shown(content)}; expected an object", None)
    return content


def _rows(columns: Any) -> list[Any]:
    """Return the rows of columns; a list alone is of one column."""
    if isinstance(columns, list):
        return columns
    if not isinstance(columns, dict) or not all(isinstance(values, list) for values in columns.values()):
        raise _wrong(f"inputs is {_shown(columns)}; expected an object of lists", "inputs")
    if len({len(values) for values in columns.values()}) != 1:
        raise _wrong("the columns of inputs are not equally long, or there are none", "inputs")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _parameters(content: Mapping[str, Any], others: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters that decide answers by our names; `others` are names of other servers and their meaning."""
    given = content.get("parameters")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _wrong(f"parameters is {_shown(given)}; expected an object", "parameters")
    _check_keys(given, (*_PARAMETERS, *others), "parameters.")
    found: dict[str, Any] = {}
    for name, value in given.items():
        place = f"parameters.{name}"
        if name == "truncate":
            if not isinstance(value, bool):
                raise _wrong(f"{name} is {_shown(value)}; expected true or false", place)
        elif name in _FRACTIONS:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise _wrong(f"{name} is {_shown(value)}; expected a number above 0", place)
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise _wrong(f"{name} is {_shown(value)}; expected a whole number from 1 on", place)
        if ours := others.get(name, name):
            found[ours] = value
    search = {name: found.pop(name) for name in _SEARCH if name in found}
    return found | ({"search": search} if search else {})


def _checked(instances: list[Any], places: list[str], limits: Limits, **further: Any) -> Request:
    """Return the request if it has neither too many nor too long texts."""
    if len(instances) > limits.texts:
        message = f"{len(instances):,} instances; at most {limits.texts} in a request: send several"
        raise RefusalError(413, "too_large", message, places[0].partition("[")[0])
    for instance, place in zip(instances, places, strict=True):
        _check_texts(instance, place, limits.text_characters)
    return Request(instances, places, **further)


def _check_texts(value: Any, place: str, most: int, depth: int = 0) -> None:
    if isinstance(value, str):
        if len(value) > most:
            message = f"a text of {len(value):,} characters; at most {most:,}: shorten it"
            raise RefusalError(422, "too_long", message, place)
    elif isinstance(value, list | dict):
        if depth > 2:
            raise _wrong("an input within inputs; expected a text, a list of texts, or an object of them", place)
        if len(value) > MOST_LISTED:
            raise RefusalError(422, "too_long", f"{len(value):,} texts of one instance; at most {MOST_LISTED}", place)
        named = isinstance(value, dict)
        for key, each in value.items() if named else enumerate(value):
            _check_texts(each, f"{place}.{str(key)[:40]}" if named else f"{place}[{key}]", most, depth + 1)


def _check_keys(content: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
    for key in content:
        if key not in known:
            hint = did_you_mean(key[:40], known) or f"; expected {', '.join(known)}"
            place = f"{prefix}{key[:40]}"
            raise RefusalError(422, "unknown_field", f"unknown key {key[:40]!r}{hint}", place)


def _wrong(message: str, field: str | None) -> RefusalError:
    return RefusalError(422, "wrong_input", message, field)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
