import io

import pytest
from absl.app import UsageError
from tokenizers import Tokenizer

from conversion.tokenizer_files import sentencepiece_pieces, unigram_json, wordpiece_entries, wordpiece_json

_ENTRIES = ["[PAD]", "\u2028", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "你", "##好", "好", "ok", "OK", "\u3000x"]
_VOCABULARY = "\n".join(_ENTRIES).encode()


@pytest.fixture(scope="module")
def spm() -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a dog ate the cat", "that toad sang"] * 20),
        model_writer=model,
        vocab_size=40,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        pad_piece="<pad>",
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def test_wordpiece_entries_keep_every_line_break_but_the_line_feed():
    assert wordpiece_entries(_VOCABULARY) == wordpiece_entries(_VOCABULARY + b"\n") == _ENTRIES
    assert Tokenizer.from_str(wordpiece_json(_VOCABULARY, True)).get_vocab() == {e: i for i, e in enumerate(_ENTRIES)}


@pytest.mark.parametrize(("do_lower_case", "id_of_ok"), [(True, 9), (False, 10)])
def test_wordpiece_case_and_specials(do_lower_case: bool, id_of_ok: int):
    tokenizer = Tokenizer.from_str(wordpiece_json(_VOCABULARY, do_lower_case))
    assert tokenizer.encode("OK[MASK]", "你好").ids == [3, id_of_ok, 5, 4, 6, 8, 4]


def test_unigram_agrees_with_sentencepiece(spm: bytes):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=spm)
    tokenizer = Tokenizer.from_str(unigram_json(spm, True))
    pieces, _ = sentencepiece_pieces(spm)
    size = processor.get_piece_size()
    assert [piece for piece, _, _ in pieces] == [processor.id_to_piece(i) for i in range(size)]
    assert [score for _, score, _ in pieces] == [processor.get_score(i) for i in range(size)]
    for text in ("the cat sat", "a  toad", "that song", "mate & dog"):
        assert tokenizer.encode(text, add_special_tokens=False).ids == processor.encode(text)
    assert tokenizer.encode("The Cat").ids == [2, *processor.encode("the cat"), 3]


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [(b"[CLS]\n[SEP]\nx\nx", "has 'x' twice"), (b"[CLS]\nx\ny", r"lacks \[SEP\]")],
)
def test_impossible_wordpiece_vocabularies(vocabulary: bytes, message: str):
    with pytest.raises(UsageError, match=message):
        wordpiece_json(vocabulary, True)


@pytest.mark.parametrize("content", [b"the cat sat on the mat", b"\x0a\xff\xff\xff\xff\x0fabc", b"\x0a\x02ab", b""])
def test_what_is_no_sentencepiece_model_is_said_so(content: bytes):
    with pytest.raises(UsageError, match="not a SentencePiece model"):
        unigram_json(content, True)
