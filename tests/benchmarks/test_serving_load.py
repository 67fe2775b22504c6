"""The short form of the long test: more than a server can answer, wrong requests, and the table of the benchmark."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError

from benchmarks import serving
from benchmarks.serving import Options, as_markdown, check, differences, line_of, requests_of, together
from benchmarks.serving_load import Server, capacity, fuzz, instances_of, is_same, overload

sys.path.append(str(Path(__file__).resolve().parents[1] / "serving"))
from http_cases import Counted, imitation, running


@pytest.mark.slow
def test_twice_the_capacity_and_wrong_requests_lose_nothing_and_are_no_defect(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    programs = Counted(seconds=0.02)
    with running({"m": "m"}, lambda path: imitation(tmp_path, programs), queue_texts=4, texts=4) as client:
        server = Server(client.port, "m")
        instances = instances_of(server, 1)
        wanted = [server.predict(each)[1] for each in instances]
        rate = capacity(server, instances, 0.5, 4)
        found = overload(server, instances, wanted, 2 * rate, 1.0, 16)
        assert found["right"] > 0
        assert found["wrong"] == found["lost"] == 0
        assert set(found) <= {"right", "refused", "wrong", "lost"}
        programs.seconds = 0.0
        replies = fuzz(server, 600, 3)
        assert replies["bad"] == replies["500"] == 0
        assert {"400", "422"} <= replies.keys()
        assert replies["200"] > 0
        assert client.serving.answering.texts == 0
        assert client.predict("a").status == 200
    assert capfd.readouterr().err == ""


def test_answers_are_the_same_but_for_rounding():
    one = {"prediction": "1", "probabilities": {"0": 0.25, "1": 0.75}}
    assert is_same({"prediction": "1", "probabilities": {"0": 0.25004, "1": 0.74996}}, one)
    assert not is_same({"prediction": "1", "probabilities": {"0": 0.2, "1": 0.8}}, one)
    assert not is_same({"prediction": "0", "probabilities": one["probabilities"]}, one)


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
    assert abs(lengths[256] - 24) < 4


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
