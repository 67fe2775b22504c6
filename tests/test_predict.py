"""predict.py from a text, a file or standard input to JSON lines; what is wrong is one line and leaves no file."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from kind_files import CONFIG, SPECIALS, WORDS

import predict
from commands.flags import parse
from conversion.writers import write_ours
from data.tokenizers import load_tokenizer
from ground.tensors import named_variables
from modeling.config import Config
from tasks.datasets import find_row
from tasks.run_file import RunFile, describe_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "words.txt").write_text("\n".join([*SPECIALS, *WORDS]) + "\n")
    row, tokenizer = find_row("lcqmc"), load_tokenizer(vocab_file=folder / "words.txt")
    described = describe_tokenizer(tokenizer, folder, do_lower_case=True, max_seq_length=16)
    content = RunFile(kind=row.kind, config=Config(**CONFIG), computation={}, tokenizer=described, row=row)  # pyright: ignore
    content.write(folder)
    weights = named_variables(content.task().build_model())
    write_ours(folder / "best", content.config, {name: np.asarray(value) for name, value in weights.items()})
    return folder


def call(capsys: pytest.CaptureFixture[str], **flags: Any) -> list[dict[str, Any]]:
    predict.main(parse(predict.Options, [f"--{name}={value}" for name, value in flags.items()]))
    seen = capsys.readouterr()
    assert seen.err == ""
    return [json.loads(line) for line in seen.out.splitlines()]


def test_every_form_of_input_has_the_same_answers(model: Path, tmp_path: Path, capsys, monkeypatch):
    pairs = [("a b", "c"), ("d", "e f g"), ("h", "i")]
    (tmp_path / "pairs.tsv").write_text("\ufeffa b\tc\r\n\nd\te f g\nh\ti\n", encoding="utf-8")
    lines = ['{"sentence1": "a b", "text_b": "c", "label": "1"}', '["d", "e f g"]', '{"text_a": "h", "text_b": "i"}']
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    (one,) = call(capsys, model=model, text="a b", text_pair="c")
    assert one.keys() == {"prediction", "confidence", "probabilities"}
    tsv = call(capsys, model=model, input_file=tmp_path / "pairs.tsv", predict_batch_size=2)
    assert [each.pop("index") for each in tsv] == [0, 2, 3]
    assert tsv[0]["probabilities"]["1"] == pytest.approx(one["probabilities"]["1"], abs=2e-6)
    monkeypatch.setattr(predict, "_BATCHES_AT_A_TIME", 1)
    jsonl = call(capsys, model=model, input_file=tmp_path / "pairs.jsonl", predict_batch_size=1)
    for given in ((tmp_path / "pairs.jsonl").read_bytes(), "".join(f"{a}\t{b}\n" for a, b in pairs).encode()):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given), isatty=lambda: False))
        out = tmp_path / "new/answers.jsonl"
        assert call(capsys, model=model / "best", output_file=out, predict_batch_size=2) == []
        written = [json.loads(line) for line in out.read_text().splitlines()]
        assert [each["index"] for each in written] == [0, 1, 2] == [each["index"] for each in jsonl]
        for found in (written, jsonl):
            for each, wanted in zip(found, tsv, strict=True):
                assert each["prediction"] == wanted["prediction"]
                assert each["confidence"] == pytest.approx(wanted["confidence"], abs=2e-6)
    assert sorted(path.name for path in out.parent.iterdir()) == [".divan.json", "answers.jsonl"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"a\tb\na\n", "x.tsv", r"x\.tsv:2: 'a' has no text_b"),
        (b"a\tb\tc\n", "x.tsv", r"x\.tsv:1: .* is no input"),
        (b'{"text_a": "a"\n', "x.jsonl", r"x\.jsonl:1: not a line of JSON"),
        (b"a\tb\n\xff\tb\n", "x.tsv", r"x\.tsv:2: byte 0 is no UTF-8"),
        (b"a\tb\n", "x.txt", r"x\.txt:1: .* has no text_b"),
        (b"[1, 2]\n", "x.jsonl", r"x\.jsonl:1: text_a is 1; expected text"),
    ],
)
def test_a_wrong_line_is_named_and_leaves_no_file(content: bytes, name: str, message: str, model: Path, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    flags = [f"--model={model}", f"--input_file={tmp_path / name}", f"--output_file={tmp_path}/out/a.jsonl"]
    with pytest.raises(UsageError, match=message) as error:
        predict.main(parse(predict.Options, flags))
    assert "\n" not in str(error.value)
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text=a", "--input_file=b"], "--text and --input_file are both given: leave one of them out"),
        (["--input_file=absent"], "--input_file=absent: no such file"),
        (["--text=a", "--text_pair=b", "--mask_tokens=3"], "unknown setting 'mask_tokens'"),
        (["--text_pair=b"], "--text_pair=b does nothing without --text"),
        (["--text=a", "--text_pair=b", "--output_file=mine.txt"], "mine.txt exists and is not known to be an earlier"),
    ],
)
def test_flags_that_cannot_be_are_one_line(flags: list[str], message: str, model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=message) as error:
        predict.main(parse(predict.Options, [f"--model={model}", *flags]))
    assert "\n" not in str(error.value)
    assert Path("mine.txt").read_text() == "mine"
