"""The inputs that all observed runs share: two texts, their vocabularies, configs, records, pairs and checkpoints."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import create_pretraining_data
from commands.flags import parse
from conversion.tokenizer_files import sentencepiece_pieces
from conversion.writers import write_ours, write_tf1
from data.tokenizers.training import train_sentencepiece, train_wordpiece
from data.tokenizers.wordpiece import is_ideograph, vocabulary_bytes
from modeling import ClassifierModel, Config, PretrainingModel, variable_shapes
from tasks.datasets import find_row
from tasks.run_file import RunFile, TokenizerFile

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "data/samples"
VOCAB_SIZE = 1200
CONFIG = Config(
    family="albert_zh",
    vocab_size=VOCAB_SIZE,
    embedding_size=4,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=64,
)
CONFIGS = {
    "config": CONFIG,
    "wide": dataclasses.replace(CONFIG, hidden_size=16),
    "shared": dataclasses.replace(CONFIG, sharing="all"),
    "relu": dataclasses.replace(CONFIG, sharing="all", hidden_act="relu"),
    "decodes": dataclasses.replace(CONFIG, family="palm", embedding_size=8, sharing="none", num_decoder_layers=1),
}
PALM = dataclasses.replace(
    CONFIG,
    family="palm",
    embedding_size=8,
    ln_type="preln",
    final_layer_norm=True,
    type_vocab_size=3,
    num_decoder_layers=2,
)
CONFIGS["palm"] = PALM
CONFIGS["sides"] = dataclasses.replace(
    CONFIG, family="veco", embedding_size=8, sharing="none", type_vocab_size=1, position_offset=2, cross_attention=True
)
CONFIGS["across"] = dataclasses.replace(
    CONFIG,
    family="ernie_m",
    embedding_size=8,
    sharing="none",
    type_vocab_size=0,
    position_offset=2,
    max_position_embeddings=128,
)
# A task of one's own, and another meaning for a task that is shipped.
TASK_FILE = "".join(
    f"""
[{name}]
columns = ["text_b", "text_a", "label"]
labels = ["0", "1"]
metric = "accuracy"
files = {{ train = ["train.txt"], dev = ["dev.txt"], test = ["test.txt"] }}
"""
    for name in ("mirrored", "lcqmc_pair")
)
# One that is asked in words, which any vocabulary of English text has.
TASK_FILE += """
[asked]
columns = ["text_a", "text_b", "label"]
labels = ["0", "1"]
metric = "accuracy"
pattern = "{text_a} a [MASK] {text_b}"
verbalizer = ["0=a", "1=b"]
files = { train = ["train.txt"], dev = ["dev.txt"], test = ["test.txt"] }
"""


PARALLEL = f"{SAMPLES}/parallel/train.en:{SAMPLES}/parallel/train.zh"


def make_world(folder: Path) -> None:
    """Write all inputs into `folder`; takes about a second."""
    text, other = (documents(name) for name in ("nature", "history"))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    (folder / "text.gb18030.txt").write_text(text, encoding="gb18030")
    (folder / "other.txt").write_text(other, encoding="utf-8")
    lines = (json.dumps({"text": a, "title": b}) for a, b in zip(text.split("\n\n"), other.split("\n\n"), strict=False))
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    vocabulary = train_wordpiece(text.splitlines(), vocab_size=VOCAB_SIZE, common=False)
    # albert_zh's labels of characters inside words.
    inside = (f"##{token}" for token in vocabulary if len(token) == 1 and is_ideograph(token))
    vocabulary = [
        next(inside) if token.startswith("[unused") and place > 103 else token for place, token in enumerate(vocabulary)
    ]
    (folder / "vocab.txt").write_bytes(vocabulary_bytes(vocabulary))
    (folder / "reversed.txt").write_bytes(vocabulary_bytes([*vocabulary[:104], *reversed(vocabulary[104:])]))
    (folder / "spiece.model").write_bytes(train_sentencepiece((text + other).splitlines(), vocab_size=VOCAB_SIZE))
    make_pieces(folder, (text + other).splitlines())
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(config.to_json())
    (folder / "tasks.toml").write_text(TASK_FILE)
    make_records(folder)
    make_pairs(folder)
    make_questions(folder)
    make_answers(folder)
    make_checkpoints(folder)


def make_pieces(folder: Path, lines: list[str]) -> None:
    """Write the two files of ERNIE-M's tokenizer: a SentencePiece model, and the ids of its pieces."""
    model = train_sentencepiece(lines, vocab_size=VOCAB_SIZE, layout="xlmr")
    pieces = [piece for piece, _, _ in sentencepiece_pieces(model)[0]][3:]
    (folder / "pieces.model").write_bytes(model)
    (folder / "pieces.txt").write_bytes(vocabulary_bytes(["[CLS]", "[PAD]", "[SEP]", "[UNK]", *pieces, "[MASK]"]))


def documents(name: str) -> str:
    """Return a few documents of the samples, Chinese and English in turn."""
    texts = [(SAMPLES / language / f"{name}.txt").read_text(encoding="utf-8") for language in ("zh", "en")]
    chinese, english = (text.strip().split("\n\n")[:6] for text in texts)
    pairs = zip(chinese, english, strict=False)
    return "\n\n".join(document for pair in pairs for document in pair) + "\n"


def make_records(folder: Path) -> None:
    """Write record shards of several kinds, each in a folder of its own."""
    kinds: dict[str, Mapping[str, object]] = {
        "records": {},
        "other": {"input_file": folder / "other.txt"},
        "shuffled": {"trigram_rate": 0.2},
        "dynamic": {"masking": "dynamic"},
        "targets": {"objective": "palm"},
        "sides": {"objective": "veco", "input_file": f"zh={folder}/text.txt,en={folder}/other.txt,en-zh={PARALLEL}"},
        "halves": {"objective": "camlm", "input_file": PARALLEL},
        "pseudo": {"objective": "btmlm"},
        "named_halves": {"objective": "camlm", "input_file": f"en-zh={PARALLEL}"},
        "named": {
            "objective": "btmlm",
            "input_file": f"zh={folder}/text.txt,en={folder}/other.txt,de={folder}/other.txt",
        },
    }
    for kind, flags in kinds.items():
        given = {
            "input_file": folder / "text.txt",
            "output_file": folder / kind / "zh.tfrecord",
            "vocab_file": folder / "vocab.txt",
            "max_seq_length": 40,
            "max_predictions_per_seq": 6,
            "dupe_factor": 2,
            "eval_fraction": 0.3,
            "num_workers": 1,
            **flags,
        }
        options = parse(create_pretraining_data.Options, [f"--{name}={value}" for name, value in given.items()])
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            create_pretraining_data.main(options)
    # As BERT's own script leaves them: without a manifest nothing says which objective they were made for.
    shutil.copytree(folder / "records", folder / "bare", ignore=shutil.ignore_patterns("*.json"))


def make_pairs(folder: Path) -> None:
    """Write two folders of labelled pairs, in which some words have capitals."""
    for name, skipped in (("pairs", 0), ("other_pairs", 40)):
        (folder / name).mkdir()
        for split, count in (("train", 16), ("dev", 6), ("test", 5)):
            lines = (SAMPLES / f"pairs/{split}.txt").read_text(encoding="utf-8").splitlines()
            chosen = [f"The {line}" for line in lines[skipped : skipped + count]]
            (folder / name / f"{split}.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")

    # Tables of one's own: two texts and two labels to choose from.
    for name, splits in (("table", ("train", "dev", "test")), ("train_alone", ("train", "test"))):
        (folder / name).mkdir()
        for split in splits:
            pairs = (folder / f"pairs/{split}.txt").read_text(encoding="utf-8").splitlines()
            cells = [[*line.split("\t"), "ab"[number % 2]] for number, line in enumerate(pairs)]
            with (folder / name / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream).writerows([["text", "other", "label", "class"], *cells])
    # One task in two languages.
    (folder / "languages").mkdir()
    for split, count in (("train", 12), ("dev", 6), ("test", 4)):
        for place, language in enumerate(("en", "fr")):
            pairs = (SAMPLES / f"pairs/{split}.txt").read_text(encoding="utf-8").splitlines()[place * 20 :][:count]
            texts = [line.rpartition("\t")[0] for line in pairs]
            labels = ("neutral", "entailment", "contradiction")
            lines = [f"{text}\t{labels[n % 3]}\n" for n, text in enumerate(texts[: count - place])]
            name = folder / f"languages/{split}-{language}.tsv"
            name.write_text("sentence1\tsentence2\tlabel\n" + "".join(lines), encoding="utf-8")
    # Rows that are the same in both.
    (folder / "aligned").mkdir()
    for path in (folder / "languages").glob("*-en.tsv"):
        for language in ("en", "fr"):
            text = path.read_text(encoding="utf-8").replace(".", "!" if language == "fr" else ".")
            (folder / "aligned" / path.name.replace("-en", f"-{language}")).write_text(text, encoding="utf-8")
    # Translations of each other.
    (folder / "translations").mkdir()
    for place, end in enumerate(("deu", "eng")):
        lines = (folder / "pairs/train.txt").read_text(encoding="utf-8").splitlines()
        texts = [line.split("\t")[place] for line in lines]
        for split in ("train", "dev"):
            name = folder / f"translations/{split}.deu-eng.{end}"
            name.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    rows = [line.split("\t") for line in (folder / "other_pairs/test.txt").read_text(encoding="utf-8").splitlines()]
    trial = ({"premise": a, "hypothesis": b, "label": int(label)} for a, b, label in rows)
    (folder / "trial.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in trial), encoding="utf-8")
    (folder / "gb18030_pairs").mkdir()
    for path in (folder / "pairs").iterdir():
        text = path.read_text(encoding="utf-8")
        (folder / "gb18030_pairs" / path.name).write_text(text.replace("The ", "中文 "), encoding="gb18030")


def make_questions(folder: Path) -> None:
    """Write a folder of answers and paragraphs with the questions to them, made of the labelled pairs."""
    (folder / "questions").mkdir()
    for split in ("train", "dev", "test"):
        lines = (folder / f"pairs/{split}.txt").read_text(encoding="utf-8").splitlines()
        pairs = [line.split("\t")[:2] for line in lines]
        rows = [f"{a[:4]}\t{a}\t{b}" for a, b in pairs]
        (folder / f"questions/{split}.tsv").write_text("answer\tparagraph\tquestion\n" + "\n".join(rows) + "\n")


def make_answers(folder: Path) -> None:
    """Write a folder of questions with their answers in a text, made of the labelled pairs."""
    (folder / "answers").mkdir()
    for split in ("train", "dev", "test"):
        lines = (folder / f"pairs/{split}.txt").read_text(encoding="utf-8").splitlines()
        paragraphs = []
        for number, (question, text, _) in enumerate(line.split("\t") for line in lines):
            answer = {"text": text[:3], "answer_start": len(question)}
            asked = {"id": str(number), "question": question, "answers": [answer]}
            paragraphs.append({"context": question + text, "qas": [asked]})
        content = json.dumps({"data": [{"paragraphs": paragraphs}]}, ensure_ascii=False)
        (folder / f"answers/{split}.json").write_text(content, encoding="utf-8")


def make_checkpoints(folder: Path) -> None:
    """Write checkpoints of ours and of TF 1: pretrained, with a classifier, and a run with a best step."""
    pretrained, shared = tensors(CONFIG), tensors(CONFIGS["shared"])
    write_ours(folder / "pretrained", CONFIG, pretrained, [folder / "vocab.txt"])
    write_ours(folder / "shared", CONFIGS["shared"], shared, [folder / "vocab.txt"])
    write_ours(folder / "run/best", CONFIGS["shared"], tensors(CONFIGS["shared"], seed=1))
    write_ours(folder / "run/checkpoints/step_00000002", CONFIGS["shared"], shared)
    write_ours(folder / "classifier", CONFIG, tensors(CONFIG, classes=2))
    (folder / "another_run").mkdir()
    another = RunFile(
        kind="classification", config=CONFIG, computation={}, tokenizer=TokenizerFile(), row=find_row("sst_2")
    )
    another.write(folder / "another_run")
    write_ours(folder / "ended/best", CONFIG, tensors(CONFIG, classes=2, seed=1))
    write_ours(folder / "ended/checkpoints/step_00000000", CONFIG, tensors(CONFIG, classes=2))
    lacking = {name: value for name, value in tensors(CONFIG, classes=2).items() if "pooler" not in name}
    write_ours(folder / "lacking", CONFIG, lacking)
    write_ours(folder / "three_classes", CONFIG, tensors(CONFIG, pairs=3))
    write_ours(folder / "pretrained_across", CONFIGS["across"], tensors(CONFIGS["across"], pairs=0))
    pruned = tensors(CONFIG)
    pruned["backbone/encoder/feed_forward_1/output/kernel"][3:] = 0
    write_ours(folder / "pruned", CONFIG, pruned)
    exact = dataclasses.replace(PALM, hidden_act="gelu_erf")
    write_ours(folder / "palm", exact, tensors(exact))
    write_tf1(folder / "tf1", CONFIGS["shared"], shared, [folder / "vocab.txt"])
    write_tf1(folder / "other_tf1", CONFIGS["shared"], tensors(CONFIGS["shared"], seed=1), [folder / "vocab.txt"])


def tensors(config: Config, *, classes: int = 0, pairs: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random weights with the heads of pretraining or, with `classes`, of a classifier."""
    shapes = variable_shapes(lambda: ClassifierModel(config, classes) if classes else PretrainingModel(config, pairs))
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
