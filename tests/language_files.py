"""Invented files of benchmarks in several languages, in their own forms; texts are of the letters of `kind_files`."""

from __future__ import annotations

import json
from pathlib import Path

from kind_files import CONFIG, SPECIALS, WORDS, write

XNLI_HEAD = "language\tgold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpairID\n"
LABELS = ("entailment", "contradiction", "neutral")
# Of the first letters in one language, of the others in another.
VECO = {
    **CONFIG,
    "family": "veco",
    "type_vocab_size": 1,
    "position_offset": 2,
    "cross_attention": True,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
ALPHABETS = {"en": "abc", "fr": "def", "de": "ghi"}


def write_languages(folder: Path) -> None:
    """Write a config, a vocabulary and a folder of each benchmark into `folder`."""
    write(folder / "config.json", json.dumps({**CONFIG, "num_hidden_layers": 2}))
    write(folder / "vocab.txt", "\n".join([*SPECIALS, *WORDS]) + "\n")
    write_xnli(folder / "xnli")
    write_panx(folder / "panx")
    write_mlqa(folder / "mlqa")
    write(folder / "veco.json", json.dumps({**VECO, "num_hidden_layers": 2}))
    for language in ALPHABETS:
        write_aligned(folder / "aligned", language)
    for language in ("de", "fr"):
        write_bucc(folder / "bucc", language)
    for code, words in (("deu", "ghi"), ("fra", "def")):
        for language in (code, "eng"):
            letters = words if language == code else "abc"
            lines = [" ".join(letters[(n + k) % 3] for k in range(1 + n % 3)) for n in range(4)]
            write(folder / f"tatoeba/tatoeba.{code}-eng.{language}", "\n".join(lines) + "\n")


def write_xnli(folder: Path) -> None:
    """Write XNLI-1.0's one file of all languages and XNLI-MT-1.0's file for each; German has none to train on."""
    for language, rows in (("en", 6), ("fr", 3)):
        letters = ALPHABETS[language]
        lines = [f"{letters[n % 3]} j\t{letters[n % 2]}\t{_spelt(LABELS[n % 3])}\n" for n in range(rows)]
        write(folder / f"multinli.train.{language}.tsv", "premise\thypo\tlabel\n" + "".join(lines))
    for split, rows in (("dev", 4), ("test", 3)):
        lines = [
            f"{language}\t{LABELS[n % 3]}\t( )\t{letters[n % 3]} j\t{letters[n % 2]}\t{n}\n"
            for language, letters in ALPHABETS.items()
            for n in range(rows)
        ]
        write(folder / f"xnli.{split}.tsv", XNLI_HEAD + "".join(lines))


def write_aligned(folder: Path, language: str) -> None:
    """Write files of one language whose rows are those of the other languages, letter for letter."""
    letters = ALPHABETS[language]
    for split, rows in (("train", 6), ("dev", 3), ("test", 3)):
        lines = [f"{letters[n % 3]} j\t{letters[n % 2]}\t{LABELS[n % 3]}\n" for n in range(rows)]
        write(folder / f"{split}-{language}.tsv", "premise\thypo\tlabel\n" + "".join(lines))


def write_bucc(folder: Path, language: str) -> None:
    """Write BUCC's sentences with ids, some of which are translations; the pairs of the test files are not told."""
    letters = ALPHABETS[language]
    for split, rows in (("dev", 5), ("test", 4)):
        for end, words in ((language, letters), ("en", "abc")):
            lines = [f"{end}-{n}\t{' '.join(words[(n + k) % 3] for k in range(1 + n % 3))}\n" for n in range(rows)]
            write(folder / f"{language}-en.{split}.{end}", "".join(lines))
    write(folder / f"{language}-en.dev.gold", "".join(f"{language}-{n}\ten-{n}\n" for n in range(3)))


def _spelt(label: str) -> str:
    return "contradictory" if label == "contradiction" else label


def write_panx(folder: Path) -> None:
    """Write WikiAnn as XTREME prepares it: the test files have no tags."""
    for language, letters in ALPHABETS.items():
        a, b, c = letters
        tagged = f"{a}\tB-PER\n{b}\tI-PER\n{c}\tO\n\n{c}\tB-LOC\n{a}\tO\n\n"
        if language != "de":
            write(folder / f"train-{language}.tsv", tagged * 2)
        write(folder / f"dev-{language}.tsv", tagged)
        write(folder / f"test-{language}.tsv", f"{a}\n{b}\n\n{c}\n\n")


def write_mlqa(folder: Path) -> None:
    """Write SQuAD's training file and MLQA's of two languages."""
    write(folder / "train-v1.1.json", questions("en", "abc", 3))
    for language in ("en", "de"):
        for split, number in (("dev", 2), ("test", 1)):
            name = f"{split}-context-{language}-question-{language}.json"
            write(folder / split / name, questions(language, ALPHABETS[language], number))


def questions(language: str, letters: str, number: int) -> str:
    """Return a file of SQuAD's form."""
    a, b, c = letters
    asked = [
        {"id": f"{language}{n}", "question": f"{a} j", "answers": [{"text": letters[n % 3], "answer_start": n % 3 * 2}]}
        for n in range(number)
    ]
    return json.dumps({"version": 1, "data": [{"paragraphs": [{"context": f"{a} {b} {c}", "qas": asked}]}]})
