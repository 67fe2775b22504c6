"""The short form of benchmarks/serving_load.py: more than a server can answer, and wrong requests."""

from __future__ import annotations

from pathlib import Path

import pytest
from http_cases import Counted, imitation, running

from benchmarks.serving_load import Server, capacity, fuzz, instances_of, is_same, overload


@pytest.mark.slow
def test_twice_the_capacity_and_wrong_requests_lose_nothing_and_are_no_defect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
        replies = fuzz(server, 300, 3)
        assert replies["bad"] == replies["500"] == 0
        assert {"400", "422"} <= replies.keys()
        assert replies["200"] > 0
        assert client.serving.answering.texts == 0
        assert client.predict("a").status == 200
    assert capsys.readouterr().err == ""


def test_answers_are_the_same_but_for_rounding():
    one = {"prediction": "1", "probabilities": {"0": 0.25, "1": 0.75}}
    assert is_same({"prediction": "1", "probabilities": {"0": 0.25004, "1": 0.74996}}, one)
    assert not is_same({"prediction": "1", "probabilities": {"0": 0.2, "1": 0.8}}, one)
    assert not is_same({"prediction": "0", "probabilities": one["probabilities"]}, one)
