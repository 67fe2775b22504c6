"""The kind of generation: files to examples to batches, the task's numbers, texts out of a search, lines and scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

from data.labelled import encode_examples, padded
from data.source_target import SourceTargetDataset, encode_sources_targets
from data.tokenizers.wordpiece import WordPieceTokenizer
from generation.settings import PRESETS, Preset, Settings
from modeling import Config
from tasks.datasets import DatasetRow, find_row
from tasks.generation import GenerationTask
from tasks.kinds import HeadOptions, generation
from tasks.kinds.generation import SourceTarget
from tasks.text_generator import TextGenerator

WORDS = "abcdefghij"
TOKENIZER = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
CONFIG = Config(
    family="palm",
    vocab_size=15,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    hidden_act="gelu_erf",
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    max_position_embeddings=24,
    type_vocab_size=3,
    initializer_range=0.3,
    ln_type="preln",
    final_layer_norm=True,
    num_decoder_layers=1,
)
ROW, QUESTIONS = find_row("text_to_text"), find_row("dureader_qg")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_sources_and_targets_are_read_in_every_form(tmp_path: Path):
    expected = [SourceTarget("a b", None, "c"), SourceTarget("d", None, "e f")]
    for name, text in (
        ("x.tsv", "a b\tc\nd\te f\n"),
        ("y.tsv", "target\tsource\nc\ta b\ne f\td\n"),
        ("x.jsonl", '{"source": "a b", "target": "c"}\n{"summary": "e f", "content": "d"}\n'),
    ):
        assert generation.read(ROW, write(tmp_path / name, text), need_labels=True) == expected, name
    source = write(tmp_path / "x.source", "a b\nd\n")
    write(tmp_path / "x.target", "c\ne f\n")
    assert generation.read(ROW, source, need_labels=True) == expected
    questions = write(tmp_path / "q.tsv", "paragraph\tquestion\tanswer\nb c\td\tb\n")
    assert generation.read(QUESTIONS, questions, need_labels=True) == [SourceTarget("b", "b c", "d")]
    joined = write(tmp_path / "q.txt", "b[SEP]b c\td\n")
    assert generation.read(find_row("alicemind_qg"), joined, need_labels=True) == [SourceTarget("b", "b c", "d")]
    without = write(tmp_path / "test.tsv", "a b\nd\n")
    assert [e.target for e in generation.read(ROW, without, need_labels=False)] == [None, None]


@pytest.mark.parametrize(
    ("row", "name", "text", "message"),
    [
        (ROW, "x.tsv", "a\tb\n\tc\n", r"x\.tsv:2: text_a is missing or empty; expected text_a, target"),
        (ROW, "x.tsv", "a\tb\nc\t \n", r"x\.tsv:2: no target; training and evaluation need text_a, target"),
        (ROW, "x.tsv", "", "holds no example"),
        (ROW, "x.source", "a\nb\n", r"x\.source has 2 lines of text and x\.target 1, which have to pair line by line"),
        (ROW, "y.source", "a\n", r"y\.source has no y\.target beside it"),
        (find_row("alicemind_qg"), "x.txt", "a b\tc\n", r"x\.txt:1: no \[SEP\] in the source"),
        (QUESTIONS, "x.tsv", "a\tb\tc\nd\t\te\n", r"x\.tsv:2: text_b is missing or empty"),
    ],
)
def test_a_line_that_is_no_example_is_named(row: DatasetRow, name: str, text: str, message: str, tmp_path: Path):
    write(tmp_path / "x.target", "c\n")
    with pytest.raises(UsageError, match=message):
        generation.read(row, write(tmp_path / name, text), need_labels=True)


TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=7), st.integers(6, 20), st.integers(3, 12), st.integers(1, 3)
)
def test_every_example_comes_once_an_epoch_between_its_specials(pairs, length: int, target: int, size: int):
    sources, targets = map(list, zip(*pairs, strict=True))
    encoded = encode_sources_targets(sources, None, targets, TOKENIZER, length, target)
    dataset = SourceTargetDataset(encoded, size, length, seed=3)
    kept = [TOKENIZER.encode(text)[: length - 2] for text in sources]
    wanted = [[2, *TOKENIZER.encode(text)[: target - 1], 3] for text in targets]
    assert encoded.sources.truncated_examples == sum(len(TOKENIZER.encode(s)) > length - 2 for s in sources)
    for batches in ([dataset.batch(step) for step in range(dataset.steps_per_epoch)], dataset.evaluation_batches(size)):
        found = []
        for batch in batches:
            assert batch["target_ids"].shape[1] <= target + 1
            for row in range(len(batch["input_ids"])):
                ids, mask = batch["input_ids"][row], batch["input_mask"][row]
                given, seen = batch["target_ids"][row], batch["target_mask"][row]
                assert not ids[mask == 0].any()
                assert not given[seen == 0].any()
                if mask.any():
                    found.append((ids[mask == 1].tolist(), given[seen == 1].tolist()))
        assert sorted(found) == sorted(([2, *k, 3], w) for k, w in zip(kept, wanted, strict=True))
    everything = dataset.sources()
    assert [row[m == 1].tolist() for row, m in zip(everything["input_ids"], everything["input_mask"], strict=True)] == [
        [2, *k, 3] for k in kept
    ]


def examples() -> list[SourceTarget]:
    return [SourceTarget("a b c", None, "d e"), SourceTarget("f", None, "g"), SourceTarget("h i j a", None, "b c d e")]


def test_losses_of_targets_are_those_of_the_model_and_smoothing_is_of_training_alone():
    data = generation.dataset(ROW, examples(), TOKENIZER, max_seq_length=12, batch_size=3, max_target_length=8)
    task = generation.task(ROW, CONFIG, GenerationTask(CONFIG).computation, HeadOptions(label_smoothing=0.2))
    model, batch = task.build_model(), next(data.evaluation_batches(4))
    predictions = task.predictions(model, batch)
    logits = np.asarray(model(batch)["next_token_logits"], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    weights = batch["target_mask"][:, 1:]
    loss = -np.take_along_axis(log_p, batch["target_ids"][:, 1:, None], -1)[..., 0] * weights
    np.testing.assert_allclose(predictions["target_loss"], loss.sum(1), atol=1e-4)
    assert np.asarray(predictions["target_tokens"]).tolist() == [2, 3, 5, 0]
    losses, _ = task.terms(model, batch, seed=np.array([1, 2], np.uint32), training=True)
    smoothed = 0.8 * loss - 0.2 * log_p.mean(-1) * weights
    assert float(losses["next_tokens"][0]) == pytest.approx(smoothed.sum(), rel=1e-4)
    assert float(task.normalizers(batch)["next_tokens"]) == float(losses["next_tokens"][1]) == 10


def test_texts_are_those_of_the_sources_in_their_order_and_hold_no_specials():
    model = GenerationTask(CONFIG).build_model()
    encoded = encode_examples(["a b c", "f", "h i j a b c d"], None, [-1] * 3, TOKENIZER, 12)
    preset = Preset("a test", Settings(num_beams=3, num_return_sequences=2, min_new_tokens=2, max_new_tokens=6))
    generate = TextGenerator(model, TOKENIZER, preset, batch_size=2, max_seq_length=12)
    together = generate(padded(encoded, np.arange(3), 3, 12))
    alone = [generate(padded(encoded, np.array([number]), 1, 12))[0] for number in range(3)]
    for found, expected in zip(together, alone, strict=True):
        assert [each["text"] for each in found] == [each["text"] for each in expected]
        assert [each["score"] for each in found] == pytest.approx([each["score"] for each in expected], abs=1e-4)
        assert all(set(each["text"].replace(" ", "")) <= set(WORDS) for each in found)
        assert found[0]["score"] >= found[1]["score"]


def test_long_texts_are_written_in_chunks():
    model = GenerationTask(CONFIG).build_model()
    plug = PRESETS["plug"]
    assert plug.chunks
    settings = plug.settings.changed(max_new_tokens=20, top_k=4, seed=3)
    preset = Preset("a test", settings, type(plug.chunks)(chunk_tokens=8))
    generate = TextGenerator(model, TOKENIZER, preset, batch_size=2, max_seq_length=12)
    encoded = encode_examples(["a b c", "f"], None, [-1] * 2, TOKENIZER, 12)
    found = generate(padded(encoded, np.arange(2), 2, 12))
    assert all(16 <= len(texts[0]["text"].split()) <= 20 for texts in found)


def test_lines_and_scores_are_of_the_best_hypothesis():
    given = [
        {
            "hypotheses": [{"text": "d e", "score": -1.0}, {"text": "x", "score": -2.0}],
            "target_loss": 3.0,
            "target_tokens": 3,
        },
        {"hypotheses": [{"text": "q", "score": -3.0}], "target_loss": 1.0, "target_tokens": 2},
    ]
    lines = [json.loads(line) for line in generation.lines(ROW, given, examples()[:2])]
    assert lines[0] == {
        "index": 0,
        "generated": "d e",
        "score": -1.0,
        "target": "d e",
        "source": "a b c",
        "hypotheses": given[0]["hypotheses"],
    }
    assert lines[1] == {"index": 1, "generated": "q", "score": -3.0, "target": "g", "source": "f"}
    scores = generation.scores(ROW, given, examples()[:2])
    assert scores["loss"] == pytest.approx(4 / 5)
    assert scores["perplexity"] == pytest.approx(np.exp(4 / 5))
    assert scores["rouge_l"] == pytest.approx(0.5)
    assert set(scores) == {*generation.metrics, "loss", "perplexity"}
