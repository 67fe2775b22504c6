"""What is handed in: the forms of leaderboards, by the rows that name them, and the checks before a file is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.datasets import find_row
from tasks.submissions import write_submission

CASES: list[tuple[str, list[tuple[Any, Any]], str, str]] = [
    ("sts_b", [(None, "4.600"), (None, "0.000")], "STS-B.tsv", "index\tprediction\n0\t4.600\n1\t0.000\n"),
    ("c3", [("a-1", 2), ("a-2", 0)], "c311_predict.json", '{"id": 0, "label": 2}\n{"id": 1, "label": 0}\n'),
    ("chid", [("#idiom000378#", 4), ("#idiom1#", 0)], "chid11_predict.json", '{"#idiom000378#": 4, "#idiom1#": 0}\n'),
    ("cmrc2018", [("007", "甲"), ("7", "")], "cmrc2018_predict.json", '{"007": "甲", "7": ""}\n'),
    ("xquad_zh", [("56beb", "a")], "xquad/test-zh.json", '{"56beb": "a"}\n'),
    (
        "cluener",
        [(None, {"text": "李雷", "label": {"name": {"李雷": [[0, 1]]}}})],
        "cluener_predict.json",
        '{"id": 0, "text": "李雷", "label": {"name": {"李雷": [[0, 1]]}}}\n',
    ),
]


@pytest.mark.parametrize(("name", "answers", "file", "content"), CASES)
def test_every_form_is_as_its_leaderboard_reads_it(name: str, answers: Any, file: str, content: str, tmp_path: Path):
    said = write_submission(find_row(name), "test", answers, tmp_path)
    assert (tmp_path / file).read_text(encoding="utf-8") == content
    assert f"submission of {len(answers)} rows  {tmp_path / file}" in said
    for line in content.splitlines() if file.endswith(".json") else ():
        json.loads(line)


def test_ids_that_are_not_one_to_one_leave_no_file(tmp_path: Path):
    row = find_row("cmrc2018")
    write_submission(row, "test", [("a", "x")], tmp_path)
    for answers in ([("a", "x"), ("a", "y")], [(None, "x")]):
        (said,) = write_submission(row, "test", answers, tmp_path)
        assert said.startswith("no submission cmrc2018_predict.json: row")
        assert not list(tmp_path.rglob("*.json"))
