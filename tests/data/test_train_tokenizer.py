"""Learning vocabularies, and the one that is shipped: its rules, and that it is what the documented command makes."""

from __future__ import annotations

import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from absl import app
from hypothesis import given
from hypothesis import strategies as st

import train_tokenizer
from data.tokenizers import load_tokenizer
from data.tokenizers.training import (
    BERT_SPECIALS,
    _batches,
    _count_words,
    _merges,
    common_characters,
    train_sentencepiece,
    train_wordpiece,
)
from data.tokenizers.wordpiece import WordPieceTokenizer, is_ideograph, is_punctuation, split_words

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "albert_config" / "vocab.txt"
TEXT = ["the cats and the dogs, the bats", "中国人民在北京。", "2023年，the cats"] * 2


@pytest.fixture(scope="module")
def shipped() -> WordPieceTokenizer:
    return WordPieceTokenizer.load(SHIPPED)


def test_shipped_vocabulary_is_what_the_documented_command_makes(tmp_path: Path, capsys, monkeypatch):
    command = (train_tokenizer.__doc__ or "").replace("\\\n", "").split("train_tokenizer.py", 1)[1].split()
    flags = dict(argument.removeprefix("--").replace("'", "").split("=") for argument in command)
    assert flags.pop("output_file") == "albert_config/vocab.txt"
    assert set(flags) == {"input_file", "character_coverage", "min_frequency"}
    monkeypatch.chdir(ROOT)
    options = train_tokenizer.Options(
        input_file=(flags["input_file"],),
        output_file=str(tmp_path / "vocab.txt"),
        character_coverage=float(flags["character_coverage"]),
        min_frequency=int(flags["min_frequency"]),
    )
    train_tokenizer.main(options)
    assert (tmp_path / "vocab.txt").read_bytes() == SHIPPED.read_bytes(), "run the command in train_tokenizer.py again"
    assert "0.000% [UNK]" in capsys.readouterr().out


def test_shipped_vocabulary_keeps_its_rules(shipped):
    content = SHIPPED.read_bytes()
    assert b"\r" not in content
    assert content.endswith(b"\n")
    tokens = shipped.vocabulary
    assert len(tokens) == len(set(tokens)) == 21128
    assert tokens[:104] == BERT_SPECIALS
    ids = (shipped.pad_id, shipped.unk_id, shipped.cls_id, shipped.sep_id, shipped.mask_id)
    assert ids == (0, 100, 101, 102, 103)
    assert not [t for t in tokens if t.startswith("##") and is_ideograph(t[2])]
    assert sum(map(is_ideograph, (t for t in tokens if len(t) == 1))) > 9200
    # Every token that is not special is one that text can yield: no slot is wasted, none deceives a random replacement.
    assert len(shipped.replacement_ids) == 21128 - len(shipped.special_ids)


def test_typographic_characters_that_googles_vocabulary_lacks_are_there(shipped):
    assert shipped.unk_id not in shipped.encode(
        "“”‘’—–…·•《》「」『』、。，．！？；：（）【】〔〕～％℃①ⅡㄅあアαЯ〇々©€$"
    )


@given(st.text("abcxyzABCXYZ0123456789éüñ -'.,", max_size=60))
def test_no_latin_word_or_number_is_unknown_to_the_shipped_vocabulary(shipped, text: str):
    encoding = shipped.encode_batch([text])
    assert shipped.unk_id not in encoding.ids
    # Pairs of letters and of digits are tokens, so that no run of one kind takes a token a character.
    for word, _ in split_words(text, do_lower_case=True):
        if len(word) > 1 and (word.isdigit() or (word.isalpha() and word.isascii())):
            assert len(shipped.encode(word)) <= (len(word) + 1) // 2


def test_every_character_of_gb2312_is_known_to_the_shipped_vocabulary(shipped):
    characters = [
        bytes([row, cell]).decode("gb2312", "ignore") for row in range(0xA1, 0xFF) for cell in range(0xA1, 0xFF)
    ]
    assert len("".join(characters)) == 7445
    assert shipped.unk_id not in shipped.encode(" ".join(characters))
    assert shipped.unk_id not in shipped.encode("".join(characters[:94]))


def test_common_characters_are_of_the_standards():
    characters = common_characters()
    assert characters == sorted(set(characters))
    assert set("的國广辻あЯ“”‘’—…€æ") <= set(characters)
    assert not {"龘", "𠀀", "\x80"} & set(characters)
    assert all(unicodedata.category(c) not in {"Cc", "Cn", "Co"} for c in characters)


def naive_merges(words: dict[str, int], min_frequency: int) -> list[str]:
    """Byte-pair merging that recounts everything at every step."""
    spelling = {word: [word[0], *(f"##{c}" for c in word[1:])] for word in words}
    merges = []
    while True:
        counts = Counter()
        for word, pieces in spelling.items():
            for pair in pairwise(pieces):
                counts[pair] += words[word]
        frequent = [(-count, pair) for pair, count in counts.items() if count >= min_frequency]
        if not frequent:
            return merges
        left, right = min(frequent)[1]
        merges.append(left + right[2:])
        for word, pieces in spelling.items():
            joined, i = [], 0
            while i < len(pieces):
                both = pieces[i : i + 2] == [left, right]
                joined.append(merges[-1] if both else pieces[i])
                i += 2 if both else 1
            spelling[word] = joined


@given(st.dictionaries(st.text("abc", min_size=1, max_size=9), st.integers(1, 5), max_size=8), st.integers(1, 4))
def test_merges_equal_those_of_recounting_at_every_step(words: dict[str, int], min_frequency: int):
    assert list(_merges(words, min_frequency)) == naive_merges(words, min_frequency)


@given(st.lists(st.text(), max_size=4), st.booleans())
def test_words_are_counted_as_the_tokenizer_cuts_them(batch: list[str], lower: bool):
    batch = [text.replace("Σ", "") for text in batch]  # its lower case depends on what the count sets apart
    words, isolated = _count_words(batch, lower)
    expected = Counter(word for text in batch for word, _ in split_words(text, do_lower_case=lower))
    alone = {word for word in expected if len(word) == 1 and (is_ideograph(word) or is_punctuation(word))}
    assert isolated == Counter({word: expected[word] for word in alone})
    assert words == Counter({word: count for word, count in expected.items() if word not in alone})


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("common", [True, False])
def test_learnt_vocabularies(lower: bool, common: bool):
    size = 14000 if common else 150
    vocabulary = train_wordpiece(
        TEXT, vocab_size=size, do_lower_case=lower, common=common, character_coverage=1.0, min_frequency=2
    )
    assert len(vocabulary) == len(set(vocabulary)) == size
    assert {"cats", "the", "中", "##2" if common else "##0"} <= set(vocabulary)
    assert ("國" in vocabulary) == common
    tokenizer = WordPieceTokenizer(vocabulary, do_lower_case=lower)
    assert tokenizer.unk_id not in tokenizer.encode_batch(TEXT).ids
    assert len(tokenizer.replacement_ids) == size - len(tokenizer.special_ids)
    assert ("A" in vocabulary) == (common and not lower)


@given(st.permutations(TEXT), st.data())
def test_learning_depends_on_the_text_alone(order: list[str], data: st.DataObject):
    cut = data.draw(st.integers(0, len(order)))
    texts = [*order[:cut], "\n".join(order[cut:])]
    assert train_wordpiece(texts, vocab_size=160, common=False) == train_wordpiece(TEXT, vocab_size=160, common=False)


def test_coverage_leaves_out_the_rarest_characters():
    texts = ["的" * 990 + "一" * 9 + "龘"]
    vocabulary = train_wordpiece(texts, vocab_size=110, common=False, character_coverage=0.999)
    assert vocabulary[104:] == ["一", "的", *(f"[unused{n}]" for n in range(100, 104))]


def test_runs_seen_once_are_dropped_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr("data.tokenizers.training._MOST_RUNS", 5)
    monkeypatch.setattr("data.tokenizers.training._BATCH_CHARACTERS", 20)
    words, _ = _count_words(["often often often once1", "often once2 once3 once4 once5", "often once6", "last"], True)
    assert words["often"] == 5
    assert len(words) <= 5


def test_usage_errors(tmp_path: Path):
    with pytest.raises(
        app.UsageError, match=r"vocab_size 1000 is below the \d+ of special tokens and characters; raise"
    ):
        train_wordpiece(TEXT, vocab_size=1000)
    with pytest.raises(
        app.UsageError, match="--input_file: the text holds nothing to learn a vocabulary from; give other"
    ):
        train_wordpiece(["", " \n"])
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n", encoding="utf-8")
    output = tmp_path / "out" / "vocab.txt"
    with pytest.raises(app.UsageError, match="the text holds nothing"):
        train_tokenizer.main(train_tokenizer.Options(input_file=(str(empty),), output_file=str(output)))
    assert not output.parent.exists()


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize(("layout", "size"), [("albert", 30), ("xlmr", 22)])
def test_sentencepiece_from_the_same_inputs(tmp_path: Path, capsys, model_type: str, layout: str, size: int):
    text = tmp_path / "text.txt"
    nouns, verbs = ["cats", "dogs", "bats", "hats", "goats"], ["sat", "ate", "ran", "are fat", "got the"]
    sentences = [f"the {a} and the {b} {verb}" for a in nouns for b in nouns for verb in verbs]
    text.write_text("\n".join(sentences), encoding="utf-8")
    output = tmp_path / "spiece.model"
    options = train_tokenizer.Options(
        input_file=(str(text),), output_file=str(output), model_type=model_type, layout=layout, vocab_size=size
    )
    train_tokenizer.main(options)
    tokenizer = load_tokenizer(spm_model_file=output)
    assert tokenizer.vocab_size == size
    assert tokenizer.decode(tokenizer.encode("the cats are fat")) == "the cats are fat"
    assert "125 sentences" in (printed := capsys.readouterr().out)
    assert f"{size} tokens" in printed


@given(st.lists(st.text("ab", max_size=30), max_size=40))
def test_texts_are_counted_some_at_a_time_and_none_is_lost(texts: list[str]):
    limit = 50
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.tokenizers.training._BATCH_CHARACTERS", limit)
        batches = list(_batches(texts))
    assert [text for batch in batches for text in batch.split("\n") if text] == [text for text in texts if text]
    # A text joins a batch that is below the limit; line feeds come on top.
    assert all(len(batch.replace("\n", "")) < limit + 30 for batch in batches)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_coverage_that_sentencepiece_does_not_take_is_refused_with_its_range(model_type):
    with pytest.raises(app.UsageError, match=r"--character_coverage=0.8: SentencePiece takes 0.98 to 1"):
        train_sentencepiece(["a text"], model_type=model_type, character_coverage=0.8)


def test_without_any_character_is_refused() -> None:
    with pytest.raises(app.UsageError, match="raise --character_coverage"):
        train_wordpiece(["some text"], vocab_size=110, common=False, character_coverage=-0.0)
