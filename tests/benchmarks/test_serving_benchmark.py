"""The benchmark of the server: lengths of its texts, cases, and the table with ratios to the plain server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from absl.app import UsageError

from benchmarks import serving
from benchmarks.serving import Options, as_markdown, check, differences, line_of, requests_of, together


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="--contenders=torch is unknown: expected some of run, onnx"):
        check(Options(contenders=("torch",)))
    assert (("128", 32, 64) in serving.cases_of(Options())) is False  # more than a server holds
    assert ("mixed", 1, 64) in serving.cases_of(Options())


def test_texts_have_the_lengths_that_the_table_says():
    for length in serving.LENGTHS:
        texts = [
            each["text_a"] for body in requests_of("天气很好", length, 2) for each in json.loads(body)["instances"]
        ]
        lengths = sorted(map(len, texts))
        assert len(lengths) == 512
        assert lengths[-1] == 126
        assert lengths[0] == (126 if length == "128" else 4)
        assert abs(lengths[256] - {"128": 126, "mixed": 24}[length]) < 4


def row(name: str, rate: float) -> dict[str, Any]:
    turns = [{"milliseconds": [1.0] * 90 + [9.0] * 10, "seconds": 100 / rate, "failed": []}] * 3
    return {"length": "128", "texts": 1, "clients": 8, "contender": name, **together(turns)}


def test_the_table_compares_with_the_plain_server_of_the_same_precision():
    rows = [row("onnx", 30.0), row("onnx_int8", 60.0), row("transformers", 10.0), row("transformers_int8", 40.0)]
    cells = [[cell.strip() for cell in line_of(each, rows).split("|")[1:-1]] for each in rows]
    assert cells[0] == ["8", "onnx", "30.0 (30.0-30.0)", "3.00", "1.0", "9.0", "9.0", "0"]
    assert [each[3] for each in cells] == ["3.00", "1.50", "", ""]
    apart = differences({"transformers": [[0.25, 0.75]], "onnx": [[0.5, 0.5]], "run": [[0.25, 0.75]]})
    assert apart["onnx"] == {"largest": 0.25, "same_label": 1.0}
    assert apart["run"]["largest"] == 0.0
    result = {
        "machine": "m",
        "options": vars(Options()),
        "rows": rows,
        "differences": apart,
        "peak_bytes": {"onnx": 1e9},
    }
    table = as_markdown(result)
    assert "## Texts all of 128 tokens, 1 a request" in table
    assert "| onnx | 2e-01 | 100.0% | 1,000 |" in table
