"""Vocabularies from text: WordPiece in BERT's layout with the common Han characters, and SentencePiece models.

WordPiece as BERT's own tools never were published: pieces are merged by frequency (Sennrich et al. 2016), as all open
re-implementations do, and characters come first, so that no word of a known script is [UNK].
"""

from __future__ import annotations

import heapq
import io
import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise, product
from typing import Any

from absl.app import UsageError

from data.tokenizers.wordpiece import IDEOGRAPH_RANGES, is_ideograph, is_punctuation, split_words

# BERT's places: [PAD] 0, [unused1] to [unused99], [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103.
BERT_SPECIALS = ("[PAD]", *(f"[unused{n}]" for n in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_PIECE_CHARACTERS = 40
_BATCH_CHARACTERS = 1 << 20
_MOST_RUNS = 1 << 22
# No word goes beyond these; the runs between are handed to BERT's own rules, each distinct one once.
_SPACES = r" \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_IDEOGRAPHS = "".join(f"{chr(first)}-{chr(last)}" for first, last in IDEOGRAPH_RANGES)
_RUNS = re.compile(f"[^{_SPACES}{_IDEOGRAPHS}{re.escape(string.punctuation)}，。、；：？！“”‘’（）《》]+")
# Ranges of the codecs: Windows Latin; all of GB 2312; Big5's symbols and its level of common characters; the same of
# JIS X 0208.
_COMMON = (
    ("cp1252", 0x80, 0xFF),
    ("gb2312", 0xA1A1, 0xFEFE),
    ("big5", 0xA140, 0xC67E),
    ("shift_jis", 0x8140, 0x9872),
)
_ALBERT_SYMBOLS = ["(", ")", '"', "-", ".", "–", "£", "€"]


def common_characters() -> list[str]:
    """Returns, by code point, the characters of ASCII and those that Latin, Chinese and Japanese standards call common.

    Windows Latin, GB 2312 (6,763 simplified Han characters, symbols, kana, Greek, Cyrillic), level 1 of Big5 (5,401
    traditional ones) and of JIS X 0208 (2,965), with their symbols: typographic quotes, dashes and the ellipsis, too.
    """
    characters = set(string.digits + string.ascii_letters + string.punctuation)
    for character in map(chr, range(0x80, 0x10000)):
        codes = (int.from_bytes(character.encode(codec, "ignore")) for codec, _, _ in _COMMON)
        if any(first <= code <= last for code, (_, first, last) in zip(codes, _COMMON, strict=True)):
            characters.add(character)
    return sorted(characters)


def train_wordpiece(
    texts: Iterable[str],
    *,
    vocab_size: int = 21128,
    do_lower_case: bool = True,
    common: bool = True,
    character_coverage: float = 0.9999,
    min_frequency: int = 2,
) -> list[str]:
    """Return a vocabulary of exactly vocab_size tokens; a function of the texts as a multiset.

    In order: BERT's specials; the common characters, then those of the text; '##' and each of these that can stand
    inside a word; with `common`, all pairs of ASCII letters and of digits, as beginning and as continuation; sub-words
    learnt from the text by frequency; [unused] slots for what remains. But for specials, the tokenizer can yield all.

    Args:
        texts: any division of the text into strings that does not divide words.
        vocab_size: tokens in all.
        do_lower_case: as for the tokenizer.
        common: start from `common_characters`, whether or not the text has them.
        character_coverage: share of the text's characters (other than spaces) that shall be tokens.
        min_frequency: a sub-word is learnt if it occurs that often.

    Raises:
        UsageError: vocab_size does not hold the characters, or there are none.
    """
    words, isolated = _count_words(texts, do_lower_case)
    if not words and not isolated:
        raise UsageError("--input_file: the text holds nothing to learn a vocabulary from; give other files")
    frequencies = isolated.copy()
    for word, count in words.items():
        for character in word:
            frequencies[character] += count

    characters = _known_characters(frequencies, character_coverage, do_lower_case if common else None)
    vocabulary = dict.fromkeys((*BERT_SPECIALS, *characters))
    inside = [c for c in characters if not (is_ideograph(c) or is_punctuation(c))]
    vocabulary.update(dict.fromkeys(f"##{c}" for c in inside))
    if common:
        pairs = [a + b for letters in (string.digits, string.ascii_lowercase) for a, b in product(letters, letters)]
        vocabulary.update(dict.fromkeys(pairs))
        vocabulary.update(dict.fromkeys(f"##{pair}" for pair in pairs))
    if len(vocabulary) > vocab_size:
        raise UsageError(
            f"vocab_size {vocab_size} is below the {len(vocabulary)} of special tokens and characters; "
            "raise it, lower --character_coverage or set --common_characters=false"
        )
    known = set(characters)
    learnable = {word: count for word, count in words.items() if len(word) > 1 and known.issuperset(word)}
    pieces = (piece for piece in _merges(learnable, min_frequency) if piece not in vocabulary)
    vocabulary.update(dict.fromkeys(islice(pieces, vocab_size - len(vocabulary))))
    vocabulary.update(dict.fromkeys(f"[unused{n}]" for n in range(100, 100 + vocab_size - len(vocabulary))))
    return list(vocabulary)


def _known_characters(frequencies: Counter[str], coverage: float, lower_common: bool | None) -> list[str]:
    """Return the common characters, lower-cased or not (None: none of them), and then those that cover the text."""
    characters: dict[str, None] = {}
    if lower_common is not None:
        words_of = (split_words(c, do_lower_case=lower_common) for c in common_characters())
        characters = dict.fromkeys(sorted({c for found in words_of for word, _ in found for c in word}))
    characters.update(dict.fromkeys(sorted(_covering(frequencies, coverage))))
    if not characters:
        raise UsageError(
            f"--character_coverage={coverage:g} takes no character of the text, and --common_characters=false no "
            "other; raise --character_coverage"
        )
    return list(characters)


def _covering(frequencies: Counter[str], coverage: float) -> Iterator[str]:
    """Yield the most frequent characters until they make up the share of the text."""
    remaining = coverage * frequencies.total()
    for character, count in sorted(frequencies.items(), key=lambda item: (-item[1], item[0])):
        if remaining <= 0:
            return
        remaining -= count
        yield character


def _count_words(texts: Iterable[str], do_lower_case: bool) -> tuple[Counter[str], Counter[str]]:
    """Return how often each word occurs that may have several pieces, and each character that is a word of its own."""
    runs: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for batch in _batches(texts):
        characters.update(batch)
        runs.update(_RUNS.findall(batch))
        if len(runs) > _MOST_RUNS:
            # Of so many distinct runs those seen once are noise; memory stays bounded whatever the text.
            runs = Counter({run: count for run, count in runs.items() if count > 1})
    words: Counter[str] = Counter()
    isolated: Counter[str] = Counter()
    for run, count in runs.items():
        for word, _ in split_words(run, do_lower_case=do_lower_case):
            if len(word) > 1 or not is_punctuation(word):
                words[word] += count
    for character, count in characters.items():
        if is_ideograph(character) or is_punctuation(character):
            for word, _ in split_words(character, do_lower_case=do_lower_case):
                isolated[word] += count
    return words, isolated


def _batches(texts: Iterable[str]) -> Iterator[str]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield "\n".join(batch)
            batch, size = [], 0
    yield "\n".join(batch)


def _merges(words: dict[str, int], min_frequency: int) -> Iterator[str]:
    """Yield pieces, '##' included, in the order in which byte-pair merging makes them: most frequent pair first.

    Ties go to the pair that sorts first, so that the result depends on the counts alone.
    """
    spelling = [[word[0], *(f"##{c}" for c in word[1:])] for word in words]
    weight = list(words.values())
    counts: Counter[tuple[str, str]] = Counter()
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for i, pieces in enumerate(spelling):
        for pair in pairwise(pieces):
            counts[pair] += weight[i]
            places[pair].add(i)
    queue = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(queue)
    while queue:
        count, pair = heapq.heappop(queue)
        if -count != counts[pair]:
            continue  # an entry from before a merge that changed the count; the new one is in the queue too
        if -count < min_frequency:
            return
        merged = pair[0] + pair[1].removeprefix("##")
        if len(merged) > MAX_PIECE_CHARACTERS:
            continue
        yield merged
        changed: set[tuple[str, str]] = set()
        for i in places.pop(pair):
            before, after = spelling[i], _merge(spelling[i], pair, merged)
            for old in pairwise(before):
                counts[old] -= weight[i]
                changed.add(old)
            for new in pairwise(after):
                counts[new] += weight[i]
                places[new].add(i)
                changed.add(new)
            spelling[i] = after
        for other in changed:
            if counts[other] > 0:
                heapq.heappush(queue, (-counts[other], other))
            else:
                del counts[other]


def _merge(pieces: Sequence[str], pair: tuple[str, str], merged: str) -> list[str]:
    result: list[str] = []
    i = 0
    while i < len(pieces):
        if i + 1 < len(pieces) and (pieces[i], pieces[i + 1]) == pair:
            result.append(merged)
            i += 2
        else:
            result.append(pieces[i])
            i += 1
    return result


_LEAST_COVERAGE = 0.98  # SentencePiece's own limit


def _check_coverage(share: float) -> None:
    if not _LEAST_COVERAGE <= share <= 1:
        raise UsageError(
            f"--character_coverage={share:g}: SentencePiece takes {_LEAST_COVERAGE} to 1; give such a share, or "
            "--model_type=wordpiece"
        )


def _refusal(error: RuntimeError, vocab_size: int, reserved: int) -> UsageError:
    """Return what SentencePiece's error means for the flags.

    Its message ends with a reason, or with the condition that did not hold in brackets behind a place in the source.
    """
    place, _, told = str(error).rpartition("] ")
    if "sentences_.empty()" in place or "all_chars_count" in place:
        return UsageError("--input_file: the text holds no sentence to learn from; give other files")
    if most := re.search(r"too high.*<= (\d+)", told):
        return UsageError(
            f"--vocab_size={vocab_size}: the text of --input_file is enough for at most {int(most[1]) + reserved} "
            "tokens; give more text or a smaller --vocab_size"
        )
    if least := re.search(r"smaller than required_chars.* vs (\d+)", told):
        return UsageError(
            f"--vocab_size={vocab_size}: the characters of --input_file alone are {int(least[1]) + reserved} tokens; "
            "give so many or more, or a smaller --character_coverage"
        )
    reason = told.strip() or f"this does not hold: {place.partition('[')[2]}"
    return UsageError(
        f"--input_file: SentencePiece cannot learn --vocab_size={vocab_size} tokens from this text: {reason}"
    )


def train_sentencepiece(
    texts: Iterable[str],
    *,
    vocab_size: int = 30000,
    model_type: str = "unigram",
    layout: str = "albert",
    do_lower_case: bool = True,
    character_coverage: float = 0.99995,
    max_sentences: int = 10_000_000,
    num_threads: int = 1,
) -> bytes:
    """Return a SentencePiece model, with ALBERT's published settings where the layout is ALBERT's.

    Args:
        texts: sentences; of more than max_sentences a random sample is taken.
        vocab_size: of the tokenizer; XLM-R's has two ids more than its model.
        model_type: "unigram" or "bpe".
        layout: "albert" ([CLS] 2, [SEP] 3, [MASK] 4; text prepared) or "xlmr" (<s> 0, <pad> 1, </s> 2; text as it is).
        do_lower_case: ALBERT's layout only, as for the tokenizer.
        character_coverage: share of the text's characters that shall be pieces.
        max_sentences: that are learnt from.
        num_threads: of the trainer; the result does not depend on it.

    Raises:
        UsageError: the text is too little for vocab_size, or there is none.
    """
    import sentencepiece

    from data.tokenizers.sentencepiece import prepare

    _check_coverage(character_coverage)
    reserved = 0
    if layout == "albert":
        texts = (prepare(text, do_lower_case=do_lower_case) for text in texts)
        layout_settings: dict[str, Any] = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}
        layout_settings |= {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"], "user_defined_symbols": _ALBERT_SYMBOLS}
    else:
        layout_settings = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
        reserved = 2
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size - reserved,
            model_type=model_type,
            character_coverage=character_coverage,
            input_sentence_size=max_sentences,
            shuffle_input_sentence=True,
            num_threads=num_threads,
            minloglevel=2,
            **layout_settings,
        )
    except RuntimeError as error:
        raise _refusal(error, vocab_size, reserved) from None
    return model.getvalue()
