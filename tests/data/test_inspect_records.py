import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError

import inspect_records as verb
from commands.flags import parse
from data import inspection
from data.display import marked_lines
from data.forms import Side
from data.masking import Masking
from data.reading import PretrainingDataset
from data.recipe import Recipe
from data.tfrecord.encoding import encode_examples
from data.tfrecord.frames import frame
from data.tfrecord.recovery import scan
from data.tokenizers.wordpiece import WordPieceTokenizer
from data.word_order import WordOrder
from data.writing.local import create_examples
from data.writing.output import Output

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好我们学习语言模型，。"]
LABELS = {"masked_lm_positions": (2, 3), "masked_lm_ids": (2, 3), "next_sentence_labels": (2, 1)}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(
        "今天天气很好。\n我们学习语言模型。\n今天学习。\n\n" * 40 + "怪。今天。\n很好。\n", encoding="utf-8"
    )
    tokenizer = WordPieceTokenizer.load(tmp_path / "vocab.txt", do_lower_case=True)
    kinds: dict[str, dict[str, Any]] = {
        "static": {},
        "dynamic": {"dynamic": True},
        "words": {"objective": "structbert", "word_order": WordOrder(0.1)},
        "dynamic_words": {"objective": "structbert", "word_order": WordOrder(0.1), "dynamic": True},
        "packed": {"objective": "masked_lm", "form": "packed", "word_order": WordOrder(0.1, labels="changed")},
    }
    for name, changes in kinds.items():
        recipe = Recipe("albert", Masking(0.2, 6), False, True, "rjieba", 24, 4, 0.1, 1)
        recipe = dataclasses.replace(recipe, **changes)
        output = Output((tmp_path / f"{name}.tfrecord",), num_shards=2)
        flags = {"vocab_file": str(tmp_path / "vocab.txt"), "spm_model_file": None, "do_lower_case": True}
        create_examples([corpus], output, recipe, tokenizer, num_workers=1, flags=flags)
    return tmp_path


def run(*words):
    return verb.main(parse(verb.Options, verb.as_flags([str(word) for word in words])))


@pytest.mark.parametrize("name", ["static", "dynamic"])
def test_show_prints_text_with_its_predictions(folder, capsys, name):
    assert run("show", folder / f"{name}-*", "--limit=2", "--skip=1") == 0
    out = capsys.readouterr().out
    assert out.count("# ") == 2
    assert out.startswith("predicted: [masked] ")
    assert "\n# 1: label " in out
    assert "[CLS]" in out
    assert re.search(r"\[[今天气很好我们学习语言模型，。]\]", out)
    (folder / "vocab.txt").unlink()
    assert run("show", folder / f"{name}-*", "--limit=1") == 0
    assert "give --vocab_file or --spm_model_file for text" in capsys.readouterr().out


def test_show_marks_what_is_hidden_kept_and_replaced():
    tokenizer: Any = type("Tokens", (), {"mask_id": 4, "tokens": staticmethod(lambda ids: [TOKENS[i] for i in ids])})()
    example = {
        "input_ids": np.asarray([2, 4, 6, 9, 3, 0]),
        "input_mask": np.asarray([1, 1, 1, 1, 1, 0]),
        "segment_ids": np.asarray([0, 0, 0, 1, 1, 0]),
        "masked_lm_positions": np.asarray([1, 2, 3]),
        "masked_lm_ids": np.asarray([5, 6, 7]),
        "masked_lm_weights": np.ones(3),
    }
    assert verb.as_text(example, Side(), tokenizer, colour=False) == "[CLS][今][天|天]\n[气|好] [SEP]"
    assert "\033[7;32m今\033[0m" in verb.as_text(example, Side(), tokenizer, colour=True)


def test_an_example_without_predictions_is_shown_plain_where_the_mask_is_not_known():
    example = {
        "input_ids": np.asarray([2, 4, 6, 3]),
        "input_mask": np.ones(4, int),
        "segment_ids": np.zeros(4, int),
        "masked_lm_positions": np.zeros(2, int),
        "masked_lm_ids": np.zeros(2, int),
        "masked_lm_weights": np.zeros(2),
    }
    kinds = [mark.kind for line in marked_lines(example, Side()) for mark in line]
    assert kinds == ["plain"] * 4


def test_show_marks_shuffled_words_with_what_stood_there():
    tokenizer: Any = type("Tokens", (), {"mask_id": 4, "tokens": staticmethod(lambda ids: [TOKENS[i] for i in ids])})()
    example = {
        "input_ids": np.asarray([2, 7, 5, 6, 4, 9, 3, 0]),
        "input_mask": np.asarray([1, 1, 1, 1, 1, 1, 1, 0]),
        "segment_ids": np.zeros(8, int),
        "masked_lm_positions": np.asarray([4]),
        "masked_lm_ids": np.asarray([8]),
        "masked_lm_weights": np.ones(1),
        "word_order_positions": np.asarray([1, 2, 3, 0, 0, 0]),
        "word_order_ids": np.asarray([5, 6, 7, 0, 0, 0]),
        "word_order_weights": np.asarray([1, 1, 1, 0, 0, 0]),
    }
    assert verb.as_text(example, Side(), tokenizer, colour=False) == "[CLS]{今天气|气今天}[很]好 [SEP]"
    assert "\033[7;35m气今天\033[0m\033[2;35m今天气\033[0m" in verb.as_text(example, Side(), tokenizer, colour=True)


def test_shuffled_words_and_packing_are_shown_and_counted(folder, capsys):
    for name in ("words", "dynamic_words", "packed"):
        dataset = PretrainingDataset(str(folder / f"{name}-*"), 1)
        found, counts = inspection.statistics(dataset, unk_id=1), (dataset.manifest or {})["counts"]
        assert found.shuffled > 0
        assert 0.3 < found.moved / found.shuffled <= 1
        assert found.sequences == counts.get("sequences", 0)
        if name != "dynamic_words":
            assert found.shuffled == counts["word_order_predictions"]
        assert run("stats", folder / f"{name}-*") == 0
        out = capsys.readouterr().out
        assert re.search(r"shuffled +\d\.\d\d an example, \d+\.\d\d% of tokens\n  moved +\d+\.\d\d%", out)
        assert ("packing" in out) == (name == "packed")
        assert run("show", folder / f"{name}-*", "--limit=20") == 0
        out = capsys.readouterr().out
        for before, now in re.findall(r"\{([^{}]+)\|([^{}]+)\}", out)[1:]:
            # Of a window in the packed records only what moved is marked.
            assert sorted(before) == sorted(now) or name == "packed"
        assert re.search(r"predictions, \d+ shuffled" + (", \\d sequence.s." if name == "packed" else "") + "\n", out)


def test_stats_agree_with_the_manifest(folder, capsys):
    manifest = json.loads((folder / "static.manifest.json").read_text(encoding="utf-8"))
    dataset = PretrainingDataset(str(folder / "static-*"), 1)
    found = inspection.statistics(dataset, unk_id=1)
    counts = manifest["counts"]
    assert (found.examples, found.tokens, found.predictions) == (
        manifest["num_examples"],
        counts["example_tokens"],
        counts["predictions"],
    )
    assert {str(label): n for label, n in found.labels.items()} == counts["labels"]
    assert sum(n for *_, n in found.length_bins()) == found.examples
    assert found.masked / found.predictions == pytest.approx(0.8, abs=0.05)
    assert found.kept / found.predictions == pytest.approx(0.1, abs=0.04)
    assert found.unknown_tokens == 4
    assert found.duplicates > 0.5
    assert run("stats", folder / "static-*") == 0
    assert "labels            0: " in capsys.readouterr().out


def test_duplicates_are_counted_before_masking(folder):
    ids = np.asarray([[2, 7, 8, 3], [2, 7, 8, 3], [2, 8, 7, 3]])
    features = {
        "input_ids": ids,
        "input_mask": np.ones_like(ids),
        "segment_ids": np.zeros_like(ids),
        "masked_lm_positions": np.asarray([[1], [2], [2]]),
        "masked_lm_ids": np.take_along_axis(ids, np.asarray([[1], [2], [2]]), axis=1),
        "masked_lm_weights": np.ones((3, 1), np.float32),
        "next_sentence_labels": np.zeros((3, 1), np.int64),
    }
    features["input_ids"] = np.where(np.arange(4) == features["masked_lm_positions"], 4, ids)
    path = folder / "y.tfrecord"
    path.write_bytes(encode_examples(features)[0].tobytes())
    found = inspection.statistics(PretrainingDataset(str(path), 1))
    assert found.duplicates == pytest.approx(1 / 3)
    assert found.masked == 3


@pytest.mark.parametrize("name", ["static", "dynamic", "words", "dynamic_words", "packed"])
def test_verify_finds_nothing_wrong_with_what_we_write(folder, capsys, name):
    assert run("verify", folder / f"{name}-*") == 0
    assert "2 file(s), 0 with problems" in capsys.readouterr().out


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(("at", "message"), [(40, "no intact record"), (1, "behind a damaged length")])
def test_verify_finds_a_flipped_bit(folder, capsys, at, message):
    flip(folder / "static-00001-of-00002.tfrecord", at)
    assert run("verify", folder / "static-*") == 1
    out = capsys.readouterr().out
    assert "static-00001-of-00002.tfrecord: " in out
    assert message in out
    assert "2 file(s), 1 with problems" in out


def test_verify_finds_missing_records_and_foreign_content(folder, capsys):
    paths = sorted(folder.glob("static-*.tfrecord"))
    paths[0].write_bytes(paths[1].read_bytes() * 2)
    assert run("verify", paths[0]) == 1
    assert "in the manifest" in capsys.readouterr().out


def changed(folder, change, name="static"):
    dataset = PretrainingDataset(str(folder / f"{name}-*"), 8)
    features = {name: value.copy() for name, value in dataset.batch(0).items()}
    features["next_sentence_labels"] = features["next_sentence_labels"][:, None]
    change(features)
    path = folder / "changed.tfrecord"
    path.write_bytes(encode_examples(features)[0].tobytes())
    return path


def put(name, index, value):
    def change(features):
        features[name][index] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("input_mask", (3, 1), 0), "1 record(s): input_mask is not ones and then zeros"),
        (put("segment_ids", (3, 0), 1), "1 record(s): segment_ids other than"),
        (put("next_sentence_labels", (3, 0), 5), "1 record(s): a label outside the objective's"),
        (put("masked_lm_positions", (3, 0), 0), "a predicted position outside the text"),
        (put("masked_lm_weights", (3, 0), 0.5), "weights other than 0 and 1"),
        (lambda features: features.pop("segment_ids"), "8 record(s): lacks segment_ids"),
    ],
)
def test_verify_finds_nonsense(folder, capsys, change, message):
    assert run("verify", changed(folder, change)) == 1
    assert message in capsys.readouterr().out


def swap_words(features):
    """Puts a word from outside into the first window of the fourth example."""
    position = features["word_order_positions"][3, 0]
    features["input_ids"][3, position] = 5 + (features["input_ids"][3, position] - 4) % 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("word_order_positions", (3, 0), 0), "a shuffled position outside the text"),
        (put("word_order_weights", (3, 0), 0.5), "word order weights other than 0 and 1"),
        (put("word_order_weights", (3, 0), 0), "shuffled words that are not 3 to a window"),
        (put("word_order_ids", (3, 0), 99), "a shuffled id outside the vocabulary"),
        (swap_words, "shuffled words that are not those that stood there"),
        (lambda f: put("word_order_positions", (3, 0), f["masked_lm_positions"][3, 0])(f), "or masked as well"),
        (lambda features: features.pop("word_order_ids"), "8 record(s): lacks word_order_ids"),
    ],
)
def test_verify_finds_what_no_shuffling_makes(folder, capsys, change, message):
    path = changed(folder, change, "words")
    manifest = json.loads((folder / "words.manifest.json").read_text(encoding="utf-8"))
    manifest |= {"num_examples": 8, "shards": [{"name": path.name, "examples": 8, "sha256": ""}]}
    (folder / "changed.manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert run("verify", path) == 1
    assert message in capsys.readouterr().out


def test_verify_counts_records_of_another_kind(folder, capsys):
    path = changed(folder, lambda features: None)
    path.write_bytes(path.read_bytes() + frame(b"no example"))
    assert run("verify", path) == 1
    out = capsys.readouterr().out
    assert "9 intact records" in out
    assert "1 record(s): not a tf.train.Example" in out or "1 record(s): lacks" in out


def test_repair_recovers_all_but_the_damaged_record_and_says_so(folder, capsys):
    path = folder / "static-00000-of-00002.tfrecord"
    whole = PretrainingDataset(str(folder / "static-*"), 1).num_examples
    before = path.read_bytes()
    flip(path, 1)
    flip(path, len(before) - 30)
    assert run("repair", folder / "static-*") == 1
    out = capsys.readouterr().out
    assert out.count("lost: bytes") == 1
    assert "records recovered, 1 lost; the damaged file is kept" in out
    assert "nothing to mend" in out
    assert (folder / (path.name + ".damaged")).exists()
    assert run("verify", folder / "static-*.tfrecord") == 0
    dataset = PretrainingDataset(str(folder / "static-*.tfrecord"), 1)
    assert dataset.num_examples == whole - 1
    assert dataset.batch(0)["input_ids"].shape == (1, 24)
    assert dataset.manifest is not None
    assert dataset.manifest["repairs"] == [{"name": path.name, "lost_examples": 1}]
    assert run("repair", folder / "static-*.tfrecord") == 0


def test_repair_of_damaged_headers_loses_nothing(folder):
    path = folder / "static-00000-of-00002.tfrecord"
    before = path.read_bytes()
    flip(path, 3)
    assert run("repair", path) == 0
    assert path.read_bytes() == before


def test_mistakes_are_one_line(folder):
    with pytest.raises(UsageError, match="--action=look: expected one of show"):
        run("look", folder / "static-*")
    with pytest.raises(UsageError, match="missing required flags: --action, --input_file"):
        run()
    with pytest.raises(UsageError, match="no record file matches"):
        run("verify", folder / "none*")
    with pytest.raises(UsageError, match=r"it is a folder; give .*/\*\.tfrecord"):
        run("verify", folder)


def test_repair_leaves_a_text_as_it_is_and_every_damaged_file(folder):
    path = folder / "static-00000-of-00002.tfrecord"
    (folder / "notes.txt").write_text("years of work\n" * 20)
    with pytest.raises(UsageError, match=r"notes.txt holds no intact record and is left as it is"):
        run("repair", folder / "notes.txt")
    assert (folder / "notes.txt").read_text() == "years of work\n" * 20
    damaged = []
    for _ in range(3):
        flip(path, path.stat().st_size - 30)
        damaged.append(path.read_bytes())
        assert run("repair", path) == 1
    kept = [folder / f"{path.name}.damaged{suffix}" for suffix in ("", ".2", ".3")]
    assert [each.read_bytes() for each in kept] == damaged


def test_an_empty_file_is_a_problem_that_no_repair_mends(tmp_path):
    (tmp_path / "empty.tfrecord").touch()
    with pytest.raises(UsageError, match=r"empty\.tfrecord is empty: there is no record to keep"):
        run("repair", tmp_path / "empty.tfrecord")
    assert run("verify", tmp_path / "empty.tfrecord") == 1


def test_verify_and_repair_agree_about_a_shard_cut_where_a_record_ends(folder, capsys):
    path = folder / "static-00000-of-00002.tfrecord"
    whole, records = path.read_bytes(), scan(path.read_bytes()).intact
    path.write_bytes(whole[: records[-2][1] + 4])
    assert run("verify", path) == 1
    assert run("repair", path) == 1
    assert "1 lost, its manifest is corrected" in capsys.readouterr().out
    assert run("verify", path) == run("repair", path) == 0
    path.write_bytes(whole)
    assert run("verify", path) == 1
    with pytest.raises(UsageError, match="is intact but holds other records than its manifest says"):
        run("repair", path)
