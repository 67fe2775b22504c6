"""Bodies of requests: the shapes that are taken, and one line that names the place for each that is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.limits import Limits
from serving.refusals import RefusalError
from serving.requests import read_predict, read_simple

LIMITS = Limits(texts=3, text_characters=10)


def body(content: Any) -> bytes:
    return json.dumps(content).encode()


def test_rows_columns_and_simple_servings_shape_are_the_same_instances():
    rows = read_predict(body({"instances": [{"text_a": "a", "text_b": "b"}, {"text_a": "c", "text_b": "d"}]}), LIMITS)
    columns = read_predict(body({"inputs": {"text_a": ["a", "c"], "text_b": ["b", "d"]}}), LIMITS)
    simple = read_simple(body({"data": {"text": ["a", "c"], "text_pair": ["b", "d"]}}), LIMITS)
    assert rows.instances == columns.instances
    assert simple.instances == [["a", "b"], ["c", "d"]]
    assert (rows.columns, columns.columns) == (False, True)
    assert rows.places == ["instances[0]", "instances[1]"]
    assert read_simple(body({"data": {"text": "a"}}), LIMITS).instances == ["a"]
    assert read_predict(body({"inputs": ["a", "b"]}), LIMITS).instances == ["a", "b"]


def test_parameters_are_taken_by_the_names_of_each_shape():
    asked = read_predict(body({"instances": ["a"], "parameters": {"max_seq_length": 9, "truncate": False}}), LIMITS)
    assert (asked.max_seq_length, asked.truncate, asked.stream) == (9, False, False)
    simple = read_simple(body({"data": {"text": "a"}, "parameters": {"max_seq_len": 9, "batch_size": 1}}), LIMITS)
    assert (simple.max_seq_length, simple.truncate) == (9, True)
    assert read_predict(body({"instances": ["a"], "parameters": {}, "stream": True}), LIMITS).stream
    numbers = {"max_new_tokens": 3, "num_beams": 2, "temperature": 0.5, "top_p": 1}
    drawn = read_predict(body({"instances": ["a"], "parameters": numbers}), LIMITS)
    assert (drawn.max_new_tokens, drawn.search) == (3, {"num_beams": 2, "temperature": 0.5, "top_p": 1})


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", (400, "malformed", None)),
        (b'{"instances": [NaN]}', (400, "malformed", None)),
        (b'{"instances": ["\xff"]}', (400, "malformed", None)),
        (b'{"instances": ["\\ud800"]}', (400, "malformed", None)),
        (b"[" * 5000, (400, "malformed", None)),
        (b'{"a": ' * 100 + b"1" + b"}" * 100, (400, "malformed", None)),
        (b"9" * 5000, (400, "malformed", None)),
        (body([]), (422, "wrong_input", None)),
        (body({}), (422, "wrong_input", "instances")),
        (body({"instances": []}), (422, "wrong_input", "instances")),
        (body({"instances": "a"}), (422, "wrong_input", "instances")),
        (body({"instances": ["a"], "inputs": ["a"]}), (422, "wrong_input", "instances")),
        (body({"instances": ["a"], "instance": 1}), (422, "unknown_field", "instance")),
        (body({"instances": ["a"], "parameters": {"max_len": 1}}), (422, "unknown_field", "parameters.max_len")),
        (body({"instances": ["a"], "parameters": {"truncate": 1}}), (422, "wrong_input", "parameters.truncate")),
        (
            body({"instances": ["a"], "parameters": {"max_seq_length": True}}),
            (422, "wrong_input", "parameters.max_seq_length"),
        ),
        (body({"instances": ["a"], "parameters": {"num_beams": 1.5}}), (422, "wrong_input", "parameters.num_beams")),
        (body({"instances": ["a"], "parameters": {"top_p": 0}}), (422, "wrong_input", "parameters.top_p")),
        (body({"instances": ["a"], "parameters": {"top_p": True}}), (422, "wrong_input", "parameters.top_p")),
        (b'{"instances": ["a"], "parameters": {"temperature": 1e999}}', (400, "malformed", None)),
        (body({"instances": ["a"], "parameters": 1}), (422, "wrong_input", "parameters")),
        (body({"instances": ["a"], "stream": 1}), (422, "wrong_input", "stream")),
        (body({"instances": ["a"], "signature_name": "x"}), (422, "wrong_input", "signature_name")),
        (body({"instances": ["a"] * 4}), (413, "too_large", "instances")),
        (body({"instances": ["a", "b" * 11]}), (422, "too_long", "instances[1]")),
        (body({"instances": [{"text_a": "b" * 11}]}), (422, "too_long", "instances[0].text_a")),
        (body({"instances": [["a", ["b" * 11]]]}), (422, "too_long", "instances[0][1][0]")),
        (body({"instances": [["a"] * 65]}), (422, "too_long", "instances[0]")),
        (body({"instances": [[[["a", ["b"]]]]]}), (422, "wrong_input", "instances[0][0][0][1]")),
        (body({"inputs": {"text_a": ["a"], "text_b": []}}), (422, "wrong_input", "inputs")),
        (body({"inputs": {}}), (422, "wrong_input", "inputs")),
        (body({"inputs": {"text_a": "a"}}), (422, "wrong_input", "inputs")),
    ],
)
def test_a_wrong_body_names_its_place(content: bytes, error: tuple[int, str, str | None]):
    with pytest.raises(RefusalError) as found:
        read_predict(content, LIMITS)
    assert (found.value.status, found.value.code, found.value.field) == error
    assert "\n" not in found.value.message


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({}, "data"),
        ({"data": []}, "data"),
        ({"data": {}}, "data.text"),
        ({"data": {"text_pair": ["a"]}}, "data.text"),
        ({"data": {"text": 1}}, "data.text"),
        ({"data": {"text": ["a", 1]}}, "data.text"),
        ({"data": {"text": ["a", "b"], "text_pair": ["c"]}}, "data.text_pair"),
        ({"data": {"text": "a", "txet": "b"}}, "data.txet"),
        ({"data": {"text": "a"}, "parameters": {"batch_size": 0}}, "parameters.batch_size"),
        ({"data": {"text": ["a"] * 4}}, "data.text"),
    ],
)
def test_a_wrong_body_of_simple_serving_names_its_place(content: Any, field: str):
    with pytest.raises(RefusalError) as found:
        read_simple(body(content), LIMITS)
    assert found.value.field == field
    assert found.value.status in (413, 422)


def test_the_limits_hold_to_the_character_and_the_text():
    asked = read_predict(body({"instances": ["b" * 10] * 3}), LIMITS)
    assert len(asked.instances) == 3


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["text_a", "text", "data", "instances", "inputs", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(["instances", "inputs", "data", "parameters", "stream", "signature_name", "x"])


def outcome(read: Any, content: bytes) -> Any:
    try:
        return read(content, LIMITS)
    except RefusalError as error:
        return error


@given(st.dictionaries(KEYS, VALUES, max_size=4) | VALUES)
@settings(max_examples=60)
@example({"instances": [None]})
@example({"inputs": {"text_a": []}})
def test_any_json_is_read_or_refused(content: Any):
    for read in (read_predict, read_simple):
        found = outcome(read, json.dumps(content).encode())
        if isinstance(found, RefusalError):
            assert found.status in (400, 413, 422)
            assert found.body.count(b"\n") == 1
        else:
            assert 1 <= len(found.instances) == len(found.places) <= LIMITS.texts


@given(st.binary(max_size=40))
@settings(max_examples=30)
def test_any_bytes_are_read_or_refused(content: bytes):
    for read in (read_predict, read_simple):
        with pytest.raises(RefusalError):
            read(content, LIMITS)
