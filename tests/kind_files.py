"""Invented files in the forms of published sets, for the kinds regression, multilabel, choice and matching.

Texts are of the letters a to j, which the vocabulary here has as words, so that tiny models read them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WORDS = "abcdefghij"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CONFIG = {
    "family": "bert",
    "vocab_size": 15,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "embedding_size": 8,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "initializer_range": 0.2,
}
TAGS = """[tags]
kind = "multilabel"
columns = ["text_a", "label"]
labels = ["early", "late", "both"]
label_separator = "|"
threshold = 0.4
metric = "micro_f1"
files = { train = ["train.tsv"], dev = ["dev.jsonl"], test = ["dev.jsonl"] }
"""
STS_HEAD = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
C3: list[Any] = [
    [["a b c", "d e"], [{"question": "f g", "choice": ["a", "b", "c"], "answer": "b"}], "1-1"],
    [
        ["a", "b"],
        [
            {"question": "c", "choice": ["d", "e"], "answer": "e"},
            {"question": "h", "choice": ["d", "i", "d", "j"], "answer": "d"},
        ],
        "1-2",
    ],
]
C3_OF_ONE_TURN: list[Any] = [[["j i h"], [{"question": "g", "choice": ["a b", "c", "d", "e f"], "answer": "c"}], "2-1"]]
CHID = [
    {"content": ["a b #idiom01# c d #idiom02# e", "f #idiom03#"], "candidates": ["g", "h", "i", "j"]},
    {"content": ["#idiom04# a b c d e f a b c d e f a b c d e f"], "candidates": ["g h", "i", "j", "b"]},
]
CHID_ANSWERS = {"#idiom01#": 1, "#idiom02#": 0, "#idiom03#": 3, "#idiom04#": 2}
COPA = [
    {"premise": "a b", "choice0": "c", "choice1": "d e", "question": "cause", "label": 1, "idx": 0},
    {"premise": "f", "choice0": "g h", "choice1": "i", "question": "effect", "label": "0", "idx": 1},
]


def race(name: str) -> dict[str, Any]:
    """Return an article of RACE with a cloze question and an ordinary one."""
    return {
        "id": name,
        "article": "a b c\nd e f",
        "questions": ["g _ h", "i j"],
        "options": [["a", "b", "c", "d"], ["e", "f", "g", "h"]],
        "answers": ["B", "D"],
    }


def write_world(folder: Path) -> None:
    """Write config, vocabulary and a folder of files for each of sts_b, tags, c3, chid, copa, race, lcqmc, tatoeba."""
    write(folder / "config.json", json.dumps(CONFIG))
    write(folder / "vocab.txt", "\n".join([*SPECIALS, *WORDS]) + "\n")
    write(folder / "rows.toml", TAGS)
    generator = np.random.default_rng(0)

    def text(words: int = 4) -> str:
        return " ".join(generator.choice(list(WORDS), words))

    for split, count in (("train", 12), ("dev", 5), ("test", 3)):
        score = "" if split == "test" else "\tscore"
        rows = [f"{n}\tg\tf\t2012\t1\tx\ty\t{text()}\t{text(3)}" for n in range(count)]
        values = ["" if split == "test" else f"\t{n % 6}.{n}00" if n % 6 < 5 else "\t5" for n in range(count)]
        write(
            folder / f"sts_b/{split}.tsv",
            STS_HEAD + score + "\n" + "".join(f"{r}{v}\n" for r, v in zip(rows, values, strict=True)),
        )
        pairs = [f"{text()}\t{text(3)}\t{n % 2}\n" for n in range(count)]
        write(folder / f"lcqmc/{split}.tsv", "sentence1\tsentence2\tlabel\n" + "".join(pairs))
        name = "tatoeba.deu-eng" if split == "test" else f"{split}.deu-eng"
        for end in ("deu", "eng"):
            write(folder / f"tatoeba/{name}.{end}", "".join(f"{text(n % 3 + 2)}\n" for n in range(count)))
    write(folder / "tags/train.tsv", "text\tlabels\na b\tearly\ni j\tlate|both\na j\t\ni c d\tboth\n")
    write(
        folder / "tags/dev.jsonl",
        json_lines([{"text": x, "labels": y} for x, y in (("a c", ["early"]), ("j", []), ("i a", ["both", "late"]))]),
    )
    for split in ("train", "dev", "test"):
        for kind, content in (("d", C3), ("m", C3_OF_ONE_TURN)):
            name = "test1.1" if split == "test" else f"{kind}-{split}"
            write(folder / f"c3/{name}.json", json.dumps(content, ensure_ascii=False))
        write(folder / f"chid/{split}.json", json_lines(CHID))
        write(folder / f"copa/{split}.json", json_lines(COPA))
        for level in ("middle", "high"):
            for number in (1, 2):
                write(folder / f"race/{split}/{level}/{number}.txt", json.dumps(race(f"{level}{number}.txt")))
    for split in ("train", "dev"):
        write(folder / f"chid/{split}_answer.json", json.dumps(CHID_ANSWERS))


def json_lines(values: list[Any]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def flags_of(folder: Path, task: str, output: str) -> dict[str, object]:
    """Return the flags of a short run on one of the tasks of the world in `folder`."""
    return {
        "task_name": task,
        "task_file": folder / "rows.toml",
        "data_dir": folder / {"lcqmc_matching": "lcqmc"}.get(task, task),
        "bert_config_file": folder / "config.json",
        "vocab_file": folder / "vocab.txt",
        "output_dir": folder / output,
        "max_seq_length": 16,
        "train_batch_size": 4,
        "eval_batch_size": 4,
        "predict_batch_size": 4,
        "num_train_steps": 2,
        "save_checkpoints_steps": 2,
        "learning_rate": 0.01,
        "do_train": True,
        "do_eval": True,
        "do_predict": True,
    }
