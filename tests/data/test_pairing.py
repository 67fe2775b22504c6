from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from data import pairing
from data.pairing import PAIRINGS, Block, Chunks, Pairs, chunk_and_pair, make_divisible, pack, truncate
from data.recipe import Vocabulary
from data.tokenizers.wordpiece import WordPieceTokenizer


def block_of(documents):
    """A block of documents, each a list of sentence lengths in tokens."""
    lengths = [n for document in documents for n in document]
    ends = np.cumsum([len(document) for document in documents])
    return Block(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), ends - [len(d) for d in documents], ends)


documents = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=8)


def prepare(shape, max_tokens, num_segments=2, starts=None):
    block = block_of(shape)
    total = int(block.sentences[-1])
    starts = np.ones(total, bool) if starts is None else starts
    return make_divisible(block, starts, np.zeros(total, bool), max_tokens, num_segments)


def spans(pairs):
    rows = zip(pairs.first_start, pairs.first_length, pairs.second_start, pairs.second_length, pairs.label, strict=True)
    return [tuple(int(x) for x in row) for row in rows]


@settings(max_examples=150, deadline=None)
@given(documents, st.integers(4, 40), st.floats(0, 1), st.integers(1, 3), st.integers(0, 99))
def test_sentence_order_uses_every_token_once_a_pass_and_labels_tell_the_truth(shape, max_tokens, short, passes, seed):
    block, unpaired = prepare(shape, max_tokens)
    random = np.random.default_rng(seed)
    pairs = chunk_and_pair(
        block, PAIRINGS["sop"], num_passes=passes, max_tokens=max_tokens, short_seq_prob=short, random=random
    )
    edges = block.sentences[block.begin], block.sentences[block.end]
    use = np.zeros(int(block.sentences[-1]), int)
    for a, a_length, b, b_length, label in spans(pairs):
        assert a_length > 0
        assert b_length > 0
        # The two segments are neighbours; the label says which comes first.
        assert (b + b_length == a) if label else (a + a_length == b)
        document = np.searchsorted(edges[0], min(a, b), side="right") - 1
        assert max(a + a_length, b + b_length) <= edges[1][document]
        assert {a, b} <= set(block.sentences.tolist())
        use[a : a + a_length] += 1
        use[b : b + b_length] += 1
    paired = np.zeros(len(use), bool)
    for begin, end in zip(*edges, strict=True):
        paired[begin:end] = True
    assert (use[paired] == passes).all()
    assert not use[~paired].any()
    assert unpaired == sum(sum(document) == 1 for document in shape)
    assert (~paired).sum() == unpaired


@settings(max_examples=100, deadline=None)
@given(documents, st.integers(4, 40), st.integers(0, 99))
def test_next_sentence_pairs_are_next_or_from_another_document(shape, max_tokens, seed):
    block, _ = prepare(shape, max_tokens)
    random = np.random.default_rng(seed)
    pairs = chunk_and_pair(
        block, PAIRINGS["nsp"], num_passes=2, max_tokens=max_tokens, short_seq_prob=0.1, random=random
    )
    starts = block.sentences[block.begin]
    first_use = np.zeros(int(block.sentences[-1]), int)
    for a, a_length, b, b_length, label in spans(pairs):
        assert min(a_length, b_length) > 0
        document_a, document_b = np.searchsorted(starts, [a, b], side="right") - 1
        if label:
            assert document_a != document_b
            first_use[a : a + a_length] += 1
        else:
            assert document_a == document_b
            assert a + a_length == b
            first_use[a : b + b_length] += 1
    # Random partners aside, every sentence is used once a pass.
    for begin, end in zip(block.begin, block.end, strict=True):
        assert (first_use[block.sentences[begin] : block.sentences[end]] == 2).all()


@settings(max_examples=100, deadline=None)
@given(documents, st.integers(4, 40), st.integers(0, 99))
def test_single_segments_cover_the_text(shape, max_tokens, seed):
    block, unpaired = prepare(shape, max_tokens, num_segments=1)
    random = np.random.default_rng(seed)
    pairs = chunk_and_pair(
        block, PAIRINGS["single"], num_passes=1, max_tokens=max_tokens, short_seq_prob=0.0, random=random
    )
    assert unpaired == 0
    use = np.zeros(int(block.sentences[-1]), int)
    for start, length, _, b_length, label in spans(pairs):
        assert b_length == label == 0
        use[start : start + length] += 1
    assert (use == 1).all()


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(documents, st.integers(4, 60), st.data())
def test_cuts_are_at_words_and_only_where_needed(shape, max_tokens, data):
    total = sum(map(sum, shape))
    starts = np.asarray(data.draw(st.lists(st.booleans(), min_size=total, max_size=total)), bool)
    before, (after, _) = block_of(shape), prepare(shape, max_tokens, starts=starts)
    for cut in set(after.sentences.tolist()) - set(before.sentences.tolist()):
        assert starts[cut]
        begin = before.sentences[before.sentences < cut].max()
        end = before.sentences[before.sentences > cut].min()
        lonely = any(sum(n > 0 for n in document) == 1 for document in shape)
        assert end - begin > max_tokens or lonely


def test_a_long_sentence_is_cut_at_clauses_near_even_places():
    block = block_of([[80, 5]])
    clause_ends = np.zeros(85, bool)
    clause_ends[[11, 19, 44]] = True
    divided, _ = make_divisible(block, np.ones(85, bool), clause_ends, 64, 2)
    # Ten pieces of eight tokens; cuts move behind a clause's last token when it is at most half a piece away.
    assert divided.sentences.tolist() == [0, 12, 20, 32, 40, 45, 56, 64, 72, 80, 85]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 40), st.integers(0, 9))
def test_truncation_equals_popping_from_the_longer_side(a, b, max_tokens, seed):
    assume(a + b > 0)
    one = np.ones(1, np.int64)
    pairs = Pairs(100 * one, a * one, 500 * one, b * one, one)
    cut, lost = truncate(pairs, max_tokens, np.random.default_rng(seed))
    kept_a, kept_b = a, b
    while kept_a + kept_b > max_tokens:
        if kept_a > kept_b:
            kept_a -= 1
        else:
            kept_b -= 1
    assert (cut.first_length[0], cut.second_length[0], lost[0]) == (kept_a, kept_b, a + b - kept_a - kept_b)
    for start, length, origin, size in (
        (cut.first_start[0], kept_a, 100, a),
        (cut.second_start[0], kept_b, 500, b),
    ):
        assert origin <= start
        assert start + length <= origin + size


def test_front_and_back_are_cut_alike():
    n = 20000
    pairs = Pairs(np.zeros(n, int), np.full(n, 30), np.full(n, 30), np.full(n, 10), np.zeros(n, int))
    cut, _ = truncate(pairs, 30, np.random.default_rng(0))
    expected = stats.binom.pmf(np.arange(11), 10, 0.5) * n
    assert stats.chisquare(np.bincount(cut.first_start, minlength=11), expected).pvalue > 1e-4


def same_law(one, two) -> float:
    """The p-value of both samples being from one distribution (Kolmogorov-Smirnov)."""
    result: Any = stats.ks_2samp(one, two)
    return result.pvalue


@pytest.mark.parametrize("name", ["sop", "nsp"])
def test_labels_are_balanced_and_independent_of_length(name):
    rng = np.random.default_rng(3)
    block = block_of([rng.integers(3, 20, 40).tolist() for _ in range(50)])
    pairs = chunk_and_pair(
        block, PAIRINGS[name], num_passes=20, max_tokens=61, short_seq_prob=0.1, random=np.random.default_rng(4)
    )
    share = pairs.label.mean()
    # A lone sentence at a document's end can only get a random partner, so there are a few more of those.
    assert abs(share - 0.5) < (0.02 if name == "sop" else 0.06)
    if name == "sop":
        lengths = pairs.first_length + pairs.second_length
        assert same_law(lengths[pairs.label == 0], lengths[pairs.label == 1]) > 1e-4
        # Swapping tells nothing through the lengths of the segments either.
        assert same_law(pairs.first_length[pairs.label == 0], pairs.first_length[pairs.label == 1]) > 1e-4


def test_short_targets_are_as_frequent_as_asked():
    block = block_of([[1] * 200000])
    pairs = chunk_and_pair(
        block, PAIRINGS["single"], num_passes=1, max_tokens=100, short_seq_prob=0.3, random=np.random.default_rng(0)
    )
    lengths = pairs.first_length[:-1]
    # 1 of 99 short draws is of full length.
    share, n = (lengths < 100).mean(), len(lengths)
    assert abs(share - 0.3 * 98 / 99) < 4 * np.sqrt(0.3 * 0.7 / n)
    short = lengths[lengths < 100]
    assert stats.chisquare(np.bincount(short, minlength=100)[2:100]).pvalue > 1e-4


@settings(max_examples=200, deadline=None)
@given(st.integers(3, 40), st.data())
def test_packing_fills_no_bin_too_far_and_leaves_no_two_that_would_fit_into_one(capacity, data):
    lengths = np.asarray(data.draw(st.lists(st.integers(1, capacity), max_size=60)), np.int64)
    bins = pack(lengths, capacity)
    filled = np.bincount(bins, weights=lengths)
    assert (filled <= capacity).all()
    assert (filled > 0).all()
    assert len(filled) < 2 or np.sort(filled)[:2].sum() > capacity


@pytest.mark.parametrize("marks", ["", "，。", "，、；：。！？,;:.!?"])
def test_clauses_end_at_marks_that_the_vocabulary_has_and_never_at_a_special_token(marks: str):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "国", "-", *marks]
    vocabulary = Vocabulary.of(WordPieceTokenizer(tokens))
    assert [tokens[i] for i in np.flatnonzero(vocabulary.clause_ends)] == list(marks)


several = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(several, st.integers(0, 99), st.integers(-3, 40))
def test_a_random_partner_is_of_another_document_and_as_long_as_wanted(shape, seed, wanted):
    block = block_of(shape)
    count = 40
    number = np.arange(count) % block.num_documents
    chunks = Chunks(block.begin[number], block.end[number], number, np.full(count, 9))
    begin, limit = pairing._elsewhere(chunks, block, np.random.default_rng(seed))
    end = pairing._filling(block, begin, limit, np.full(count, wanted))
    for own, first, last, stop in zip(number, begin, limit, end, strict=True):
        (other,) = [i for i in range(block.num_documents) if block.begin[i] <= first < block.end[i]]
        assert other != own or block.num_documents == 1
        assert last == block.end[other]
        lengths = np.diff(block.sentences)[first:last]
        enough = [n for n in range(1, len(lengths) + 1) if lengths[:n].sum() >= max(1, wanted)]
        assert stop - first == min(enough, default=len(lengths))


def test_every_other_document_and_sentence_may_be_the_partner():
    block = block_of([[1] * 3, [1] * 2, [1], [1] * 4])
    chunks = Chunks(*(np.full(2000, value) for value in (3, 5, 1, 9)))
    begin, _ = pairing._elsewhere(chunks, block, np.random.default_rng(1))
    found = np.bincount(begin, minlength=10)
    assert found[3:5].sum() == 0
    share = np.asarray([1 / 9] * 3 + [0] * 2 + [1 / 3] + [1 / 12] * 4)
    np.testing.assert_allclose(found / 2000, share, atol=0.04)


@pytest.mark.parametrize(
    "name", [name for name, row in PAIRINGS.items() if row.num_labels > 1 and row.min_documents > 1]
)
def test_the_fewest_sentences_of_every_label_are_as_declared(name: str):
    row = PAIRINGS[name]

    def labels(sentences: int) -> set[int]:
        block = block_of([[2] * sentences, [2] * sentences])
        chunks = Chunks(*(np.full(500, value) for value in (0, sentences, 0, 40)))
        assert row.pair
        return set(row.pair(chunks, block, np.random.default_rng(0))[0].label.tolist())

    assert labels(row.min_sentences) == set(range(row.num_labels))
    if row.min_sentences > 2:
        assert labels(row.min_sentences - 1) < set(range(row.num_labels))
