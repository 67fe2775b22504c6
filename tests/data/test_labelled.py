"""Laws of fine-tuning batches: truncation as BERT's, every example once an epoch, padding that weighs nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.labelled import ClassificationDataset, encode_examples
from data.tokenizers.template import Template, kept_lengths

CLS, SEP = 2, 3


class Characters:
    """A tokenizer of one id a character, so that the texts can be read off the batch."""

    template = Template.of_bert(CLS, SEP)

    def encode_batch(self, texts):
        ids = [np.array([ord(c) for c in text], np.int32) for text in texts]
        return SimpleNamespace(
            ids=np.concatenate(ids or [np.zeros(0, np.int32)]),
            splits=np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64),
        )


CHARACTERS: Any = Characters()


def popped(a: list[int], b: list[int], budget: int) -> tuple[list[int], list[int]]:
    """BERT's truncation, one token at a time."""
    a, b = list(a), list(b)
    while len(a) + len(b) > budget:
        (a if len(a) > len(b) else b).pop()
    return a, b


texts = st.text(alphabet="abcdefgh", min_size=1, max_size=24)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=8), st.integers(5, 40))
def test_pairs_are_cut_like_one_token_at_a_time_from_the_longer_side(pairs, max_seq_length):
    encoded = encode_examples(
        [a for a, _ in pairs], [b for _, b in pairs], [0] * len(pairs), CHARACTERS, max_seq_length
    )
    for i, (text_a, text_b) in enumerate(pairs):
        a, b = popped([ord(c) for c in text_a], [ord(c) for c in text_b], max_seq_length - 3)
        span = slice(encoded.splits[i], encoded.splits[i + 1])
        assert encoded.ids[span].tolist() == [CLS, *a, SEP, *b, SEP]
        assert encoded.segments[span].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)


@given(st.lists(texts, min_size=1, max_size=8), st.integers(3, 30))
def test_single_texts_are_cut_at_the_end(singles, max_seq_length):
    encoded = encode_examples(singles, None, [0] * len(singles), CHARACTERS, max_seq_length)
    for i, text in enumerate(singles):
        expected = [CLS, *(ord(c) for c in text[: max_seq_length - 2]), SEP]
        assert encoded.ids[encoded.splits[i] : encoded.splits[i + 1]].tolist() == expected
    assert encoded.truncated_examples == sum(len(text) > max_seq_length - 2 for text in singles)


def rows(batch: dict[str, np.ndarray]) -> list[tuple]:
    """The real rows of a batch as comparable tuples."""
    real = batch["input_mask"][:, 0] == 1
    return [
        (tuple(ids[mask == 1]), int(label))
        for ids, mask, label in zip(
            batch["input_ids"][real], batch["input_mask"][real], batch["label_ids"][real], strict=True
        )
    ]


@settings(deadline=None)
@given(st.lists(st.tuples(texts, st.integers(0, 1)), min_size=1, max_size=40), st.integers(1, 7), st.integers(0, 3))
def test_every_epoch_holds_every_example_once_and_depends_on_seed_and_step_only(examples, batch_size, epoch):
    encoded = encode_examples([t for t, _ in examples], None, [y for _, y in examples], CHARACTERS, 20)
    dataset = ClassificationDataset(encoded, batch_size, 20, seed=7)
    steps = [epoch * dataset.steps_per_epoch + i for i in range(dataset.steps_per_epoch)]
    seen = [row for step in steps for row in rows(dataset.batch(step))]
    every = [row for batch in dataset.evaluation_batches(3) for row in rows(batch)]
    assert sorted(seen) == sorted(every)
    assert len(every) == len(examples)
    again = ClassificationDataset(encoded, batch_size, 20, seed=7)
    for step in reversed(steps):
        for name, values in again.batch(step).items():
            np.testing.assert_array_equal(values, dataset.batch(step)[name])


def test_evaluation_order_leads_back_to_the_file():
    encoded = encode_examples(["aaa", "b", "cc", "dddd"], None, [0, 1, 2, 3], CHARACTERS, 16)
    dataset = ClassificationDataset(encoded, 2, 16)
    labels = np.concatenate([batch["label_ids"] for batch in dataset.evaluation_batches(3)])[:4]
    back = np.empty(4, int)
    back[dataset.evaluation_order()] = labels
    assert back.tolist() == [0, 1, 2, 3]


def test_a_batch_is_padded_to_its_own_longest_example():
    encoded = encode_examples(["a" * 10] * 4 + ["a" * 90], None, [0] * 5, CHARACTERS, 128)
    dataset = ClassificationDataset(encoded, 2, 128, lengths=(12, 92))
    assert {batch["input_ids"].shape[1] for batch in dataset.evaluation_batches(2)} == {12, 92}


def test_the_worked_example_of_evaluation_batches():
    encoded = encode_examples(
        ["a" * (n - 2) for n in (10, 10, 11, 11, 12, 12, 12, 12, 40, 60, 60)], None, [0] * 11, CHARACTERS, 64
    )
    batches = list(ClassificationDataset(encoded, 2, 64, lengths=(16, 64)).evaluation_batches(2))
    assert [batch["input_ids"].shape for batch in batches] == [(8, 16), (2, 64), (2, 64)]
    assert not batches[-1]["input_mask"][1].any()


@settings(deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=90), st.integers(1, 5))
def test_evaluation_batches_are_in_order_and_hold_no_more_tokens_than_full_ones(lengths, batch_size):
    encoded = encode_examples(["a" * n for n in lengths], None, list(range(len(lengths))), CHARACTERS, 64)
    dataset = ClassificationDataset(encoded, batch_size, 64)
    batches = list(dataset.evaluation_batches(batch_size))
    labels = np.concatenate([batch["label_ids"] for batch in batches])
    assert labels[: len(lengths)].tolist() == dataset.evaluation_order().tolist()
    for number, batch in enumerate(batches):
        rows, length = batch["input_ids"].shape
        assert rows * length <= batch_size * 64
        assert (rows // batch_size).bit_count() == 1
        assert rows % batch_size == 0
        assert batch["input_mask"].any(axis=1).all() or number == len(batches) - 1


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
def test_closed_form_of_truncation_is_one_token_at_a_time(a, b, budget):
    left = popped([0] * a, [0] * b, budget)
    assert kept_lengths(a, b, budget) == (len(left[0]), len(left[1]))


@given(texts, texts, st.integers(8, 40))
def test_pairs_in_xlmr_s_template(a, b, max_seq_length):
    tokenizer: Any = Characters()
    tokenizer.template = Template.of_roberta(0, 2)
    encoded = encode_examples([a], [b], [0], tokenizer, max_seq_length)
    first, second = popped([ord(c) for c in a], [ord(c) for c in b], max_seq_length - 4)
    assert encoded.ids.tolist() == [0, *first, 2, 2, *second, 2]
    assert not encoded.segments.any()
    single = encode_examples([a], None, [0], tokenizer, max_seq_length)
    assert single.ids.tolist() == [0, *[ord(c) for c in a][: max_seq_length - 2], 2]
