"""Copies of texts with new words: what is not written anew stays, labels and lines too, and the seed decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError

from data.tokenizers import load_tokenizer
from tasks.augmentation import Recipe, allowed_ids, augmented
from tasks.augmented_files import check_row, labelled_rows, with_copies
from tasks.datasets import find_row, parse_row
from tasks.filling import CLASSES, FORMER, POSITIONS

WORDS = ["film", "book", "song", "play", "##ing", "##er", "good", "bad", "天", "地", "人", ",", "!", '"']
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
PAIR = ("A GOOD film,  playing 天地!", "bad song")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in VOCABULARY), encoding="utf-8")
    return load_tokenizer(vocab_file=path)


class Filler:
    """Gives the same candidates everywhere, of the class of each place, and remembers what it was asked."""

    def __init__(self, tokenizer: Any, *scores: float):
        self.allowed, self.scores, self.seen = allowed_ids(tokenizer, len(VOCABULARY)), scores, []

    def __call__(self, batches: Iterator[Mapping[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        for batch in batches:
            self.seen.append(batch)
            shape = (*batch[POSITIONS].shape, len(self.scores))
            candidates, scores = np.zeros(shape, np.int32), np.full(shape, -1e9, np.float32)
            for place in np.ndindex(shape[:2]):
                ids = np.flatnonzero(self.allowed[batch[CLASSES][place]])
                ids = ids[ids != batch[FORMER][place]][: shape[2]]
                candidates[place][: len(ids)], scores[place][: len(ids)] = ids, self.scores[: len(ids)]
            yield {"candidates": candidates, "scores": scores}


def made(tokenizer: Any, fill: Any, examples: Sequence[tuple[str, ...]] = (PAIR,), **recipe: Any) -> Any:
    given = {"num_copies": 4, "mask_share": 0.3, "seed": 7, **recipe}
    return augmented(examples, tokenizer, Recipe(**given), fill, max_seq_length=32, batch_size=4)


def test_words_stay_words_and_signs_are_none(tokenizer: Any):
    plain, marked = allowed_ids(tokenizer, len(VOCABULARY))
    assert [VOCABULARY[n] for n in np.flatnonzero(marked)] == ["##ing", "##er"]
    assert [VOCABULARY[n] for n in np.flatnonzero(plain)] == [*WORDS[:4], *WORDS[6:11]]


def test_what_is_not_written_anew_is_the_text_character_by_character(tokenizer: Any):
    found = made(tokenizer, Filler(tokenizer, 0.0, 0.0, 0.0))
    (copies,) = found.copies
    assert len(copies) == len({*copies}) == 4
    assert PAIR not in copies
    for first, second in copies:
        # Of "A", an unknown word, of signs and of spaces nothing is changed.
        assert first.startswith("A ")
        assert ",  " in first
        assert first.endswith("!")
        changed = [
            a != b
            for a, b in zip(first[2:-1].replace(",", "").split(), ["GOOD", "film", "playing", "天地"], strict=True)
        ]
        assert sum(changed) + sum(a != b for a, b in zip(second.split(), ["bad", "song"], strict=True)) >= 1
    assert found.words >= 4


def test_the_model_reads_masks_where_words_were_and_a_word_of_two_tokens_is_hidden_whole(tokenizer: Any):
    fill = Filler(tokenizer, 0.0)
    made(tokenizer, fill, [("playing",)], num_copies=1)
    (batch,) = fill.seen[:1]
    play, ing = VOCABULARY.index("play"), VOCABULARY.index("##ing")
    assert batch["input_ids"][0, :4].tolist() == [2, 4, 4, 3]
    assert batch["input_mask"][0].sum() == 4
    assert batch[POSITIONS][0].tolist() == [1, 2]
    assert batch[FORMER][0].tolist() == [play, ing]
    assert batch[CLASSES][0].tolist() == [0, 1]


def test_the_seed_decides_whatever_the_batches(tokenizer: Any):
    examples = [PAIR, ("good film", "song"), ("人 book", "play")]

    def copies(batch_size: int, seed: int) -> Any:
        recipe = Recipe(num_copies=3, mask_share=0.4, seed=seed)
        fill = Filler(tokenizer, 0.3, 0.2, 0.1, 0.0)
        return augmented(examples, tokenizer, recipe, fill, max_seq_length=32, batch_size=batch_size).copies

    assert copies(2, 7) == copies(5, 7)
    assert copies(2, 7) != copies(2, 8)


def test_the_best_word_is_taken_or_drawn_by_its_probability(tokenizer: Any):
    best = made(tokenizer, Filler(tokenizer, 1.0, 0.9), [("song",)], pick="best", num_copies=1)
    assert best.copies == [[("film",)]]
    drawn = [
        made(tokenizer, Filler(tokenizer, np.log(3), 0.0), [("song",)], num_copies=1, seed=seed).copies[0][0][0]
        for seed in range(60)
    ]
    assert {*drawn} == {"film", "book"}
    assert 30 < drawn.count("film") < 58


def test_a_text_that_cannot_be_written_anew_lacks_copies(tokenizer: Any):
    # One candidate gives one copy; of unknown words and signs there is none.
    found = made(tokenizer, Filler(tokenizer, 0.0), [("song",), ("unknown !",)], num_copies=2)
    assert [len(copies) for copies in found.copies] == [1, 0]
    assert found.lacking == 3


def test_text_behind_the_longest_row_stays(tokenizer: Any):
    text = ("good " * 20).strip()
    found = augmented(
        [(text,)],
        tokenizer,
        Recipe(num_copies=3, mask_share=1.0),
        Filler(tokenizer, 0.0, 0.0),
        max_seq_length=6,
        batch_size=4,
    )
    for (copy,) in found.copies[0]:
        assert copy.split()[4:] == ["good"] * 16


ROW: dict[str, Any] = {"columns": ["text_a", "label"], "labels": ["0", "1"], "metric": "accuracy", "files": {}}
FILES = [
    ("t.tsv", {}, "text_a\tlabel\ngood  film\t1\nbad\t0", "good  film\t1", "song\t1"),
    ("t.tsv", {"columns": ["-", "label", "text_a"]}, "x\t1\tgood film\r\ny\t0\tbad\r\n", "good film", "x\t1\tsong"),
    ("t.jsonl", {}, '{"id": 3, "text": "good", "label": 1}\n', "good", '{"id": 3, "text": "song", "label": 1}'),
    ("t.csv", {"format": "csv"}, 'text,label\n"good, film",1\n', "good, film", "song,1"),
]


@pytest.mark.parametrize(("name", "fields", "content", "text", "line"), FILES, ids=range(len(FILES)))
def test_a_file_keeps_its_bytes_and_gets_rows_of_its_form(
    name: str, fields: Any, content: str, text: str, line: str, tmp_path: Path
):
    row = parse_row("own", {**ROW, **fields}, tmp_path)
    check_row(row)
    path = tmp_path / name
    path.write_bytes(content.encode())
    rows = labelled_rows(row, path)
    assert rows[0].texts[0] in text
    made = with_copies(row, path, rows, [[("song",)], *[[]] * (len(rows) - 1)])
    assert made.startswith(content.encode())
    assert made.decode().splitlines()[-1] == line
    again = labelled_rows(row, _written(path, made))
    assert [each.texts for each in again] == [*(each.texts for each in rows), ("song",)]


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_copies_are_in_the_encoding_of_the_file(tmp_path: Path):
    row = dataclasses.replace(parse_row("own", ROW, tmp_path), encoding="gb18030")
    path = tmp_path / "t.tsv"
    path.write_bytes("天地\t1\n".encode("gb18030"))
    made = with_copies(row, path, labelled_rows(row, path), [[("人",)]])
    assert made.decode("gb18030") == "天地\t1\n人\t1\n"
    latin = dataclasses.replace(row, encoding="latin-1")
    path.write_bytes(b"caf\xe9\t1\n")
    with pytest.raises(UsageError, match="which latin-1 has no code for") as error:
        with_copies(latin, path, labelled_rows(latin, path), [[("人",)]])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["squad", "msra_ner", "c3"])
def test_a_task_of_other_files_is_one_line(name: str):
    with pytest.raises(UsageError, match=r"--task_name=.*: its files \(format .*\) do not hold a text") as error:
        check_row(find_row(name))
    assert "\n" not in str(error.value)
