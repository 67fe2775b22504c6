"""Tagging, the host half: formats, words and tokens, windows, tags that fit together, lines of predictions."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Oracle, tag_oracle

from data.tokenizers.wordpiece import WordPieceTokenizer
from tasks.datasets import find_row
from tasks.entity_scores import Entity, entities_of
from tasks.kinds import tagging
from tasks.splits import Splits

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENIZER = WordPieceTokenizer([*SPECIALS, *"李雷任北京大学校长在美丽的", "new", "##york", "1998", *"abcdefgh", "##b"])
CLUENER, MSRA, CONLL = find_row("cluener"), find_row("msra_ner"), find_row("conll_zh")
TYPES = ("LOC", "ORG", "PER")
LINE = '{"text": "李雷任北京大学校长", "label": {"name": {"李雷": [[0, 1]]}, "organization": {"北京大学": [[3, 6]]}}}'


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def answered(row, examples, tokenizer=TOKENIZER, length=32, stride=None):
    dataset = tagging.dataset(row, examples, tokenizer, max_seq_length=length, batch_size=4, doc_stride=stride)
    return tagging.answers(row, tag_oracle(dataset, len(tagging.tag_names(row.labels))), examples)


FORMS = {
    "words": "北\tB-LOC\n京\tI-LOC\n大\tO\n\n李\tB-PER\n雷\tI-PER\n",
    "words_of_crlf": "北\tB-LOC\r\n京\tI-LOC\r\n大\tO\r\n\r\n\r\n李\tB-PER\r\n雷\tI-PER",
    "spaces": "-DOCSTART- -X- O O\n\n北 NR B-LOC\n京 NR I-LOC\n大 NN O\n\n李 NR B-PER\n雷 NR I-PER\n",
    "sentences": "北 京 大\tB-LOC I-LOC O\n李 雷\tB-PER I-PER\n",
    "header": "text_a\tlabel\n北 京 大\tB-LOC I-LOC O\n李 雷\tB-PER I-PER\n",
    "other_names": "北\tB-NS\n京\tE-NS\n大\tO\n \n李\tB_NR\n雷\tM_NR\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_texts_in_every_form(tmp_path: Path, form: str):
    first, second = tagging.read(MSRA, write(tmp_path / "train.txt", FORMS[form]), need_labels=True)
    assert (first.text, first.entities) == ("北京大", (Entity("LOC", 0, 2),))
    assert (second.text, second.entities) == ("李雷", (Entity("PER", 0, 2),))
    assert first.bounds.tolist() == [[0, 1], [1, 2], [2, 3]]


def test_words_are_joined_with_a_space_and_keep_their_places(tmp_path: Path):
    row = find_row("conll")
    path = write(tmp_path / "train.txt", "New NNP B-LOC\nYork NNP I-LOC\nis VBZ O\n")
    assert tagging.find_labels(row, [path]) == ("LOC",)
    (example,) = tagging.read(dataclasses.replace(row, labels=("LOC",)), path, need_labels=True)
    assert example.text == "New York is"
    assert example.bounds.tolist() == [[0, 3], [4, 8], [9, 11]]


def test_a_test_file_has_no_tags(tmp_path: Path):
    for text in ("北\n京\n\n李\n", "北 京\n李\n", "text_a\n北 京\n李\n"):
        examples = tagging.read(MSRA, write(tmp_path / "test.txt", text), need_labels=False)
        assert [(each.text, each.label) for each in examples] == [("北京", None), ("李", None)]


def test_marked_texts(tmp_path: Path):
    (example,) = tagging.read(CLUENER, write(tmp_path / "train.json", LINE + "\n"), need_labels=True)
    assert example.entities == (Entity("name", 0, 2), Entity("organization", 3, 7))
    (example,) = tagging.read(
        CLUENER, write(tmp_path / "test.json", '{"id": 0, "text": "李\\u2028雷"}'), need_labels=False
    )
    assert (example.text, example.entities) == ("李\u2028雷", None)


@pytest.mark.parametrize(
    ("row", "text", "message"),
    [
        (CLUENER, LINE.replace("[0, 1]", "[0, 2]"), r"x\.json:1: '李雷' is not at \[0, 2\], where '李雷任' is"),
        (CLUENER, LINE.replace("[0, 1]", "[7, 99]"), r"x\.json:1: '李雷' is not at \[7, 99\]"),
        (CLUENER, LINE.replace("[[0, 1]]", "[0, 1]"), r"x\.json:1: \$\.label.*expected a list"),
        (
            CLUENER,
            LINE.replace("name", "nam"),
            r"x\.json:1: 'nam' is not a type of entity of cluener; did you mean 'name",
        ),
        (CLUENER, "{\n" + LINE[1:].replace(", ", ",\n"), r"x\.json:1: JSON over many lines; .* `jq -c \. FILE`"),
        (CLUENER, "[\n" + LINE + "\n]", r"x\.json:1: JSON over many lines"),
        (CLUENER, "oops", r"x\.json:1: not a JSON object"),
        (CLUENER, '{"text": "李雷"}', r"x\.json:1: no label; training and evaluation need text_a, label"),
        (CLUENER, '{"text": " ", "label": {}}', r"x\.json:1: the text is empty"),
        (MSRA, "text_a\tlabel\n北 京\tB-LOC\n", r"x\.json:2: 2 words and 1 tags; expected a tag for each word"),
        (MSRA, "北\tB-LOC\n京\n", r"x\.json:2: got '京'; expected a tag for every word, or for none"),
        (MSRA, "北\tB-GPE\n", r"x\.json:1: 'GPE' is not a type of entity of msra_ner"),
        (MSRA, "北\tX-LOC\n", r"x\.json:1: 'X-LOC' is no tag; expected O, B-TYPE or I-TYPE"),
        (MSRA, "", r"x\.json holds no example"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, row, text: str, message: str):
    with pytest.raises(UsageError, match=message) as caught:
        tagging.read(row, write(tmp_path / "x.json", text), need_labels=True)
    assert "\n" not in str(caught.value)


def test_the_first_token_of_a_word_carries_its_tag_and_dropped_characters_keep_theirs():
    row = dataclasses.replace(MSRA, labels=("LOC",))
    text, bounds = tagging._text(["newyork", "\u200b", "北", " ", "李"], "")
    example = tagging.TaggedText(text, bounds, (Entity("LOC", 0, 3),))
    dataset = tagging.dataset(row, [example], TOKENIZER, max_seq_length=16, batch_size=1)
    batch = dataset.batch(0)
    # [CLS] new ##york 北 李 [SEP]: B-LOC is 1, I-LOC is 2
    assert batch["label_ids"][0, :6].tolist() == [0, 1, 0, 2, 0, 0]
    assert batch["label_weights"][0, :6].tolist() == [0, 1, 0, 1, 1, 0]
    assert answered(row, [example])[0].entities == (Entity("LOC", 0, 3),)
    assert dataset.notes == ""


def test_words_that_share_a_token_follow_the_first_and_what_is_lost_is_counted():
    row = dataclasses.replace(MSRA, labels=("LOC",))
    whole, cut = (
        tagging.TaggedText(*tagging._text("1998李", ""), (entity,))
        for entity in (Entity("LOC", 0, 4), Entity("LOC", 2, 5))
    )
    assert answered(row, [whole])[0].entities == whole.entities
    assert answered(row, [cut])[0].entities != cut.entities
    dataset = tagging.dataset(row, [whole, cut], TOKENIZER, max_seq_length=16, batch_size=1)
    assert dataset.notes == "1 entities begin or end inside of a token, which no tag tells"
    overlapping = tagging.TaggedText("李雷", whole.bounds[:2], (Entity("LOC", 0, 2), Entity("LOC", 1, 2)))
    assert tagging.notes(row, [overlapping, whole]) == "1 entities overlap others, which no tag tells"


WORDS = st.text("李雷任北京大学abc\u200b \u2028é😀Ａ", min_size=1, max_size=30)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(WORDS, st.integers(0, 10**6)), min_size=1, max_size=4), st.integers(3, 20), st.integers(1, 25)
)
def test_the_truth_comes_back_through_windows_of_any_length_and_step(texts, length: int, stride: int):
    """Entities of characters whose ends have tokens of their own are all found, whatever lies between them."""
    row = dataclasses.replace(MSRA, labels=TYPES)
    tokenizer = WordPieceTokenizer([*SPECIALS, *"李雷任北京大学abcea😀", *(f"##{c}" for c in "abcea😀")])
    examples = []
    for text, seed in texts:
        rng = np.random.default_rng(seed)
        tags = rng.choice(["O", *(f"{p}-{t}" for t in TYPES for p in "BI")], len(text))
        visible = [n for n, c in enumerate(text) if c not in "\u200b \u2028"]
        if not visible:
            continue
        begins = [n for n in visible if rng.random() < 0.5]
        entities = []
        for begin, after in itertools.zip_longest(begins, begins[1:], fillvalue=len(text)):
            ends = [n + 1 for n in visible if begin <= n < after]
            entities.append(Entity(str(tags[begin])[2:] or "LOC", begin, int(rng.choice(ends))))
        examples.append(tagging.TaggedText(*tagging._text(text, ""), tuple(entities)))
    if not examples:
        return

    found = answered(row, examples, tokenizer, length, stride)
    for example, answer in zip(examples, found, strict=True):
        lost = _inside_of_tokens(tokenizer, example)
        assert [e for e in answer.entities if e not in lost] == [
            e for e in example.entities or () if e not in lost
        ] or lost


def _inside_of_tokens(tokenizer, example) -> set[Entity]:
    """Entities with an end at which no token begins or ends: an unknown word of several characters is one token."""
    encoding = tokenizer.encode_batch([example.text])
    starts, ends = set(encoding.starts.tolist()), set(encoding.ends.tolist())
    return {e for e in example.entities if e.begin not in starts or e.end not in ends}


def test_the_window_with_most_text_around_a_token_answers_for_it():
    row = dataclasses.replace(MSRA, labels=("LOC",))
    example = tagging.TaggedText(*tagging._text(list("abcdefgh"), " "), ())
    dataset = tagging.dataset(row, [example], TOKENIZER, max_seq_length=7, batch_size=1, doc_stride=3)
    predictions = []
    for number in range(dataset.num_examples):  # windows a-e and d-h
        values = np.full((7, 3), -5.0, np.float32)
        values[:, number] = -0.1  # the first says O everywhere, the second B-LOC
        predictions.append({"log_probabilities": values, **dataset.facts(number)})
    (answer,) = tagging.answers(row, predictions, [example])
    assert [entity.begin for entity in answer.entities] == [4, 5, 6, 7]  # d, the first of its window, is the other's


def best_by_trying_all(scores: np.ndarray) -> float:
    best = -np.inf
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        pairs = zip((0, *path), path, strict=False)
        if all(tag == 0 or tag % 2 or before in (tag, tag - 1) for before, tag in pairs):
            best = max(best, sum(scores[place, tag] for place, tag in enumerate(path)))
    return best


def test_tags_are_the_best_of_all_that_fit_together():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scores = rng.normal(size=(int(rng.integers(1, 5)), 5)).astype(np.float32)
        ids = tagging.best_tags(scores)
        names = [tagging.tag_names(("X", "Y"))[each] for each in ids]
        assert scores[np.arange(len(ids)), ids].sum() == pytest.approx(best_by_trying_all(scores), abs=1e-5)
        assert len(entities_of(names)) == sum(name.startswith("B") for name in names)  # no I begins one
    assert tagging.best_tags(np.zeros((0, 5), np.float32)).tolist() == []


def test_lines_and_the_submission_of_clue(tmp_path: Path):
    examples = tagging.read(CLUENER, write(tmp_path / "dev.json", LINE + "\n"), need_labels=True)
    answers = answered(CLUENER, examples)
    assert tagging.scores(CLUENER, answers, examples)["macro_f1"] == 1.0
    (line,) = map(json.loads, tagging.lines(CLUENER, answers, examples))
    assert line["entities"][1] == {
        "type": "organization",
        "text": "北京大学",
        "begin": 3,
        "end": 7,
        "probability": 0.99,
    }
    assert [each["text"] for each in line["label"]] == ["李雷", "北京大学"]
    assert tagging.submitted(CLUENER, answers, examples) == [(None, json.loads(LINE))]


def test_an_empty_text_between_others_is_answered_with_nothing():
    examples = [tagging.TaggedText(*tagging._text(text, ""), ()) for text in ("\u200b", "李")]
    assert [each.entities for each in answered(dataclasses.replace(MSRA, labels=TYPES), examples)] == [(), ()]


def test_from_files_to_files_whatever_the_batches(tmp_path: Path):
    """Long sentences are windowed and joined, not cut; what cannot be told is said with the sizes."""
    text = "".join("李\tB-PER\n雷\tI-PER\n" + "在\tO\n" * n + "北\tB-LOC\n京\tI-LOC\n\n" for n in (0, 30, 3, 17))
    splits = Splits(MSRA, {"dev": [write(tmp_path / "dev.txt", text + "1\tO\n9\tB-LOC\n9\tO\n8\tO\n")]})
    splits.encode(TOKENIZER, max_seq_length=10, batch_size=4, seed=0, doc_stride=None)
    answers = splits.answers(Oracle(7), "dev", 2)
    assert [[entity.type for entity in each.entities] for each in answers] == [["PER", "LOC"]] * 4 + [[]]
    assert answers[1].entities[1] == Entity("LOC", 32, 34)
    assert splits.scores("dev", answers)["recall"] == pytest.approx(8 / 9)
    splits.write(tmp_path / "dev_predictions.jsonl", "dev", answers)
    assert len((tmp_path / "dev_predictions.jsonl").read_text().splitlines()) == 5
    assert (
        splits.sizes == "dev 5 examples of msra_ner; dev: 1 entities begin or end inside of a token, which no tag tells"
    )


def test_a_combining_mark_belongs_to_the_letter_before_it():
    row = dataclasses.replace(MSRA, labels=TYPES)
    example = tagging.TaggedText(*tagging._text("李e\u0301雷", ""), (Entity("PER", 0, 3),))
    assert answered(row, [example])[0].entities == example.entities
