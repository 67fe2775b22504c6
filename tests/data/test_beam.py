import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from absl.app import UsageError

import create_pretraining_data as verb
from commands.flags import parse
from data.reading import PretrainingDataset
from data.tfrecord.files import RecordFile

pytest.importorskip("apache_beam")
pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好我们学习语言模型，。"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    from data import examples

    monkeypatch.setattr(examples, "SMALLEST_SPAN_BYTES", 700)
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    (tmp_path / "corpus.txt").write_text(
        "".join(f"今天天气很好{'学' * i}。\n我们学习语言模型。\n{'今天' * i}学习。\n\n" for i in range(40)),
        encoding="utf-8",
    )
    return tmp_path


def run(folder, name, *more):
    options = [
        f"--input_file={folder / 'corpus.txt'}",
        f"--vocab_file={folder / 'vocab.txt'}",
        f"--output_file={folder / name / 'x.tfrecord'}",
        *("--max_seq_length=32", "--max_predictions_per_seq=5", "--dupe_factor=2", "--do_whole_word_mask"),
        *more,
    ]
    assert verb.main(parse(verb.Options, options)) == 0
    return sorted((folder / name).glob("*.tfrecord"))


def multiset(paths):
    return Counter(r for file in map(RecordFile, paths) for r in file.read(np.arange(len(file))))


@pytest.mark.parametrize("more", [[], ["--masking=dynamic"], ["--objective=bert"]])
def test_beam_makes_the_examples_that_local_processes_make(folder, more):
    local = run(folder, "local", "--num_workers=1", *more)
    beam = run(folder, "beam", "--runner=DirectRunner", "--num_shards=3", *more)
    assert multiset(local) == multiset(beam)
    ours, theirs = (json.loads((folder / n / "x.manifest.json").read_text()) for n in ("local", "beam"))
    for name in ("num_examples", "counts", "recipe", "tokenizer", "max_seq_length"):
        assert ours[name] == theirs[name]
    assert [path.name for path in beam] == [shard["name"] for shard in theirs["shards"]]
    assert PretrainingDataset(str(folder / "beam" / "x-*"), 4).num_examples == sum(multiset(beam).values())


@pytest.mark.slow
def test_shards_of_beam_do_not_depend_on_its_workers(folder):
    one = run(folder, "one", "--runner=DirectRunner", "--num_shards=2")
    options = "--beam_options=--direct_num_workers=2,--direct_running_mode=multi_threading"
    two = run(folder, "two", "--runner=DirectRunner", "--num_shards=2", options)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_shard_without_examples_is_an_empty_file(folder):
    (folder / "corpus.txt").write_text("今天。\n学习。\n", encoding="utf-8")
    paths = run(folder, "few", "--runner=DirectRunner", "--num_shards=9", "--dupe_factor=1")
    assert sorted(path.stat().st_size > 0 for path in paths) == [False] * 8 + [True]
    assert PretrainingDataset(str(folder / "few" / "x-*"), 1).num_examples == 1


def test_mistakes_are_one_line(folder):
    with pytest.raises(UsageError, match="--shard_size cannot be had with --runner"):
        run(folder, "x", "--runner=DirectRunner", "--shard_size=4")


def test_the_entry_of_a_shard_is_that_of_its_file(tmp_path, monkeypatch):
    from data.writing import beam

    monkeypatch.setattr(beam, "_check", lambda *arguments, **names: None)
    path = tmp_path / "x.tfrecord"
    path.write_bytes(b"of an earlier run")
    writer = beam._WriteShard(["other", str(path)], None, accept_bad_text=False)  # pyright: ignore
    records = [(7, b"seven"), (2, b"two"), (7, b"also seven")]
    ((shard, entry),) = writer.process((1, records), [])
    content = b"twoalso sevenseven"
    assert path.read_bytes() == content
    expected = {"name": path.name, "examples": 3, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert (shard, entry) == (1, expected)
    assert list(tmp_path.iterdir()) == [path]
