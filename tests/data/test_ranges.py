"""Records of strangers: whatever no graph can take is found, by `verify` in every record, in training before a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError

import inspect_records
from data.forms import FORMS
from data.forms.ranges import Bounds, faults
from data.reading import FIRST_RECORDS, PretrainingDataset
from data.schema import lengths_of
from data.tfrecord.decoding import decode_examples
from data.tfrecord.encoding import encode_examples
from data.tfrecord.frames import FOOTER_BYTES, HEADER_BYTES, frame

RECORDS, LENGTH, PREDICTIONS = 40, 12, 3


def features() -> dict[str, Any]:
    """Return what BERT's script would write, of forty texts that are alike."""
    row = np.arange(RECORDS)[:, None]
    return {
        "input_ids": np.tile(np.arange(2, 2 + LENGTH), (RECORDS, 1)),
        "input_mask": np.ones((RECORDS, LENGTH), np.int64),
        "segment_ids": np.tile(np.arange(LENGTH) // 6, (RECORDS, 1)),
        "masked_lm_positions": np.tile([1, 4, 7], (RECORDS, 1)),
        "masked_lm_ids": np.tile([5, 6, 7], (RECORDS, 1)),
        "masked_lm_weights": np.ones((RECORDS, PREDICTIONS), np.float32),
        "next_sentence_labels": row % 2,
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_bytes(b"".join(frame(example(content, row)) for row in range(len(content["input_ids"]))))
    return path


def example(content: dict[str, Any], row: int) -> bytes:
    """Return a tf.train.Example as protobuf writes it; our own encoder refuses what is below 0 or beyond 32 bits."""

    def field(tag: int, value: bytes) -> bytes:
        return bytes([tag]) + varint(len(value)) + value

    def varint(value: int) -> bytes:
        return varint_bytes(value % 2**64)

    entries = b""
    for name, values in content.items():
        if values.dtype.kind == "f":
            list_ = field(0x12, field(0x0A, values[row].astype("<f4").tobytes()))
        else:
            list_ = field(0x1A, field(0x0A, b"".join(map(varint, values[row].tolist()))))
        entries += field(0x0A, field(0x0A, name.encode()) + field(0x12, list_))
    return field(0x0A, entries)


def varint_bytes(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint_bytes(rest) if rest else bytes([low])


VOCABULARY = "an id outside the vocabulary"
WRONG = [
    ("input_ids", (3, 2), -1, f"{VOCABULARY}, input_ids -1", VOCABULARY),
    ("input_ids", (3, 2), 2**32 + 5, f"{VOCABULARY}, input_ids 4294967301", VOCABULARY),
    ("masked_lm_ids", (3, 2), -7, "an id outside the vocabulary, masked_lm_ids -7", "an id outside the vocabulary"),
    ("masked_lm_positions", (3, 2), -1, "a position outside the row, masked_lm_positions -1", "a position outside"),
    ("masked_lm_positions", (3, 2), 12, "a position outside the row, masked_lm_positions 12", "a position outside"),
    ("masked_lm_weights", (3, 2), np.nan, "a weight that is .*, masked_lm_weights nan", "a weight that is negative or"),
    ("masked_lm_weights", (3, 2), np.inf, "a weight that is .*, masked_lm_weights inf", "a weight that is negative or"),
    ("masked_lm_weights", (3, 2), -1, "a weight that is .*, masked_lm_weights -1", "a weight that is negative or"),
    ("segment_ids", (3, 11), 2, "a segment outside 0 to 1, segment_ids 2", "a segment outside 0 to 1"),
    ("segment_ids", (3, 0), -1, "a segment outside 0 to 1, segment_ids -1", "a segment outside 0 to 1"),
    ("next_sentence_labels", (3, 0), -1, "a label below 0, next_sentence_labels -1", "a label below 0"),
    ("next_sentence_labels", (3, 0), 2, "a label outside the objective's, next_sentence_labels 2", None),
    ("input_mask", (3, 0), 2, "input_mask other than 0 and 1, input_mask 2", "input_mask other than 0 and 1"),
    ("input_mask", 3, 0, "no token: input_mask is empty, input_mask 0", "no token: input_mask is empty"),
]


@pytest.mark.parametrize(("name", "place", "value", "refused", "verified"), WRONG)
def test_what_means_nothing_is_refused_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, place: Any, value: Any, refused: str, verified: str
):
    content = features()
    content[name] = content[name].copy()
    content[name][place] = value
    path = write(tmp_path / "x.tfrecord", content)
    with pytest.raises(UsageError, match=rf"x\.tfrecord, record 3: {refused}; list what else.*verify .*x\.tfrecord"):
        PretrainingDataset(str(path), 4, bounds=Bounds(num_labels=2))
    if verified:
        assert inspect_records.main(inspect_records.Options(action="verify", input_file=(str(path),))) == 1
        assert f"1 record(s): {verified}" in capsys.readouterr().out


def test_records_in_range_are_taken(tmp_path: Path):
    path = write(tmp_path / "x.tfrecord", features())
    dataset = PretrainingDataset(str(path), 4, bounds=Bounds(14, 2))
    assert dataset.batch(0)["input_ids"].shape == (4, LENGTH)
    assert inspect_records.main(inspect_records.Options(action="verify", input_file=(str(path),))) == 0


@pytest.mark.parametrize("vocab_size", [13, 14])
def test_ids_are_bounded_by_a_vocabulary_that_is_known(tmp_path: Path, vocab_size: int):
    path = write(tmp_path / "x.tfrecord", features())
    columns, _ = decode_examples([path.read_bytes()[HEADER_BYTES : _first_end(path) - FOOTER_BYTES]])
    lengths = lengths_of(FORMS["one_row"].schema, {name: len(column.values) for name, column in columns.items()})
    found = faults(columns, FORMS["one_row"], lengths, Bounds(vocab_size))
    assert [fault.value for fault in found] == ([] if vocab_size == 14 else ["input_ids 13"])


def _first_end(path: Path) -> int:
    return HEADER_BYTES + int.from_bytes(path.read_bytes()[:8], "little") + FOOTER_BYTES


def test_every_file_is_looked_at_and_the_first_batches_too(tmp_path: Path):
    content = features()
    write(tmp_path / "x-0.tfrecord", content)
    content["input_ids"][FIRST_RECORDS + 2, 1] = -5
    late = write(tmp_path / "x-1.tfrecord", content)
    dataset = PretrainingDataset(str(tmp_path / "x-*"), RECORDS)
    with pytest.raises(UsageError, match=rf"{late}, record {FIRST_RECORDS + 2}: an id outside the vocabulary"):
        list(map(dataset.batch, range(2)))
    content["input_ids"][1, 1] = -5
    write(tmp_path / "x-2.tfrecord", content)
    with pytest.raises(UsageError, match=r"x-2\.tfrecord, record 1: "):
        PretrainingDataset(str(tmp_path / "x-*"), RECORDS)


def test_no_step_is_checked_after_the_first_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = PretrainingDataset(str(write(tmp_path / "x.tfrecord", features())), 4)
    calls: list[int] = []
    monkeypatch.setattr("data.reading.faults", lambda *arguments: calls.append(1) or [])
    for step in range(40):
        dataset.batch(step)
    assert len(calls) == 16


def test_fractions_are_no_ids(tmp_path: Path):
    content = features() | {"input_ids": features()["input_ids"].astype(np.float32) + 0.5}
    with pytest.raises(UsageError, match=r"record 0: fractions where whole numbers are expected, input_ids 2\.5"):
        PretrainingDataset(str(write(tmp_path / "x.tfrecord", content)), 4)


def test_lists_of_another_length_and_empty_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    whole, short, empty = features(), features(), features()
    for name in short:
        whole[name], short[name] = whole[name][:9], short[name][:1]
    short["input_ids"] = short["input_ids"][:, :5]
    for name in empty:
        empty[name] = empty[name][:1, :0]
    path = tmp_path / "x.tfrecord"
    contents = [encode_examples(content)[0].tobytes() for content in (empty, whole, short)]
    path.write_bytes(b"".join(contents))
    options: dict[str, Any] = {"input_file": (str(path),)}
    assert inspect_records.main(inspect_records.Options(action="verify", **options)) == 1
    out = capsys.readouterr().out
    assert "1 record(s): lists of other lengths (input_ids: 5 values where 12 are expected)" in out
    assert "1 record(s): lists of other lengths (input_ids: 0 values where 12 are expected)" in out
    for action in ("show", "stats"):
        with pytest.raises(UsageError, match=r"x\.tfrecord, record 0: .*input_ids.* of no values"):
            inspect_records.main(inspect_records.Options(action=action, **options))
    path.write_bytes(contents[0])
    assert inspect_records.main(inspect_records.Options(action="verify", **options)) == 1
    assert "empty lists" in capsys.readouterr().out


def test_a_vocabulary_that_is_too_small_for_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "x.tfrecord", features())
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    options: dict[str, Any] = {"input_file": (str(path),), "vocab_file": str(tmp_path / "vocab.txt")}
    for action in ("show", "stats"):
        assert inspect_records.main(inspect_records.Options(action=action, **options)) == 0
    assert "<13>" in capsys.readouterr().out
    assert inspect_records.main(inspect_records.Options(action="verify", **options)) == 1
    assert f"{RECORDS} record(s): an id outside the vocabulary" in capsys.readouterr().out


def test_nonsense_further_on_is_a_line_for_show_and_stats(tmp_path: Path):
    content = features()
    content["masked_lm_positions"][RECORDS - 1, 0] = 999
    path = write(tmp_path / "x.tfrecord", content)
    with pytest.raises(UsageError, match=rf"record {RECORDS - 1}: a position outside the row"):
        inspect_records.main(inspect_records.Options(action="stats", input_file=(str(path),)))
