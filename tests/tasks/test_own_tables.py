"""A user's own table (--task_name=csv): columns by name, labels that are found, a share held out, data sets of tfds."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
from absl.app import UsageError

import run_classifier
from commands.flags import parse
from commands.task_files import find_task
from tasks.datasets import Example, find_row, read_examples
from tasks.found_labels import labels_in, with_columns
from tasks.kinds import multilabel, span
from tasks.run_file import RunFile, TokenizerFile
from tasks.sources import find_files
from tasks.splits import held_out

CSV = find_row("csv")


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


class Alone:
    """Stands for a session of one process."""

    def __init__(self):
        self.said: list[str] = []

    def together(self, function):
        return function()

    def say(self, *lines: str):
        self.said += lines


def find(folder: Path, *flags: str, task: str = "csv"):
    given = {"task_name": task, "data_dir": folder, "bert_config_file": "x", "output_dir": folder / "out"}
    options = parse(run_classifier.Options, [*(f"--{name}={value}" for name, value in given.items()), *flags])
    session = Alone()
    row, files = find_task(session, options, "run_classifier")  # pyright: ignore[reportArgumentType]
    return row, files, session.said


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_what_the_csv_module_writes_is_read_as_it_was(tmp_path: Path, delimiter: str):
    rng = random.Random(0)
    texts = ["".join(rng.choices("ab\"',;\t|\n 文\u2028", k=rng.randint(1, 9))) + "x" for _ in range(200)]
    with (tmp_path / "train.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(["label", "id", "text"])
        writer.writerows(["yes" if "a" in text else "no", number, text] for number, text in enumerate(texts))
    row, files, said = find(tmp_path, "--do_train", "--dev_share=0.2")
    assert [example.text_a for example in read_examples(row, files["train"][0], need_labels=True)] == texts
    assert row.labels == ("no", "yes")
    assert said == [f"2 labels in {tmp_path}/train.csv: no, yes"]


def test_labels_are_in_the_order_of_numbers_or_words(tmp_path: Path):
    for labels, expected in ((("10", "9", "-1"), ("-1", "9", "10")), (("10", "9", "b"), ("10", "9", "b"))):
        path = write(tmp_path / "train.tsv", "text\tlabel\n" + "".join(f"t\t{label}\n" for label in labels))
        assert labels_in(CSV, [path]) == expected


@pytest.mark.parametrize(
    ("name", "content", "flags", "message"),
    [
        (
            "train.csv",
            "a,b\nx,y\n",
            (),
            r"its first line names no text_a, it has a, b; say what to read with --text_col",
        ),
        ("train.tsv", "甲\t1\n", (), r"its first line names no text_a, it has 甲, 1; say what to read"),
        (
            "train.csv",
            "text,label\nx,y\n",
            ("--text_column=body",),
            r"no column 'body'; its first line has text, label",
        ),
        (
            "train.jsonl",
            '{"text": "x", "label": 1}\n',
            ("--text_column=body",),
            r"jsonl:1: no 'body'; it has text, label",
        ),
        (
            "train.csv",
            "text,label\nx,y\nz,y\n",
            (),
            r"found 1 labels \(y\) in 2 examples, expected two or more: name the",
        ),
        ("train.csv", "text,label\n" + "".join(f"t,{n}\n" for n in range(30)), (), r"30 labels .*which are no classes"),
        ("train.csv", 'text,label\n"x,y\nz,y\n', (), r"train\.csv:2: unexpected end of data; expected cells in CSV's"),
        ("train.csv", 'text,label\n"x"y,y\n', (), r"train\.csv:2: .*; expected cells in CSV's quotes"),
        ("train.csv", "text,label\nx,y\nx,y,z\n", (), r"train\.csv:3: got 3 cells between ',', expected text_a, label"),
        (
            "train.tsv",
            'text\tlabel\n"x\ny"\t1\n',
            (),
            r"train\.tsv:2: got 1 cells between .*name it \.csv where they have",
        ),
        ("train.csv", "text,label,text\nx,y,z\n", (), r"the header names text_a twice"),
        ("train.csv", "", (), r"its first line names no text_a"),
        ("train.csv", "text,label\n" + "x,y\n" * 99 + "x\0,y\n", (), r"train\.csv:101: a NUL character"),
        ("train.csv", "text,label\nx,1\n" + "x" * 200_000 + ",2\n", (), r"train\.csv:3: field larger than"),
        ("train.csv", "text,label\nx,y\n", ("--label_column=z",), r"train\.csv:2: no label|found 0 labels"),
        ("data.csv", "", (), r"holds none of train\.csv, train\.tsv, train\.jsonl, train\.json for train"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path: Path, name: str, content: str, flags: tuple[str, ...], message: str):
    write(tmp_path / name, content)
    with pytest.raises(UsageError, match=message) as error:
        find(tmp_path, "--do_train", "--dev_share=0.2", *flags)
    assert "\n" not in str(error.value)


def test_a_bad_row_of_another_file_names_file_and_line(tmp_path: Path):
    write(tmp_path / "train.csv", "text,label\nx,1\ny,0\n")
    write(tmp_path / "dev.csv", 'label,text\n1,"two\nlines"\n2,z\n')
    row, files, _ = find(tmp_path, "--do_train")
    with pytest.raises(UsageError, match=r"dev\.csv:4: label '2' is not a label of csv; expected one of 0, 1"):
        read_examples(row, files["dev"][0], need_labels=True)


def test_flags_name_columns_of_every_row_of_texts(tmp_path: Path):
    write(tmp_path / "train.tsv", "a\tb\tc\n甲\t乙\t1\n丙\t丁\t0\n")
    row, files, _ = find(
        tmp_path, "--do_train", "--dev_share=0.4", "--text_column=b", "--text_pair_column=a", "--label_column=c"
    )
    assert read_examples(row, files["train"][0], need_labels=True)[0] == Example("乙", "甲", "1")
    assert row.columns == ("text_a", "label", "text_b")
    row, files, _ = find(tmp_path, "--do_train", "--dev_share=0.4", "--text_column=b", "--label_column=c", task="sst2")
    assert read_examples(row, files["train"][0], need_labels=True)[0] == Example("乙", None, "1")
    with pytest.raises(
        UsageError, match=r"--text_pair_column=a: --task_name=sst_2 has no such column; it has text_a, label"
    ):
        find(tmp_path, "--do_train", "--text_pair_column=a", task="sst2")


def test_a_table_of_several_labels_has_those_of_all_its_cells(tmp_path: Path):
    write(tmp_path / "train.csv", 'text,label\nx,"sport, health"\ny,\nz,politics\n')
    row, files, said = find(tmp_path, "--do_train", "--dev_share=0.4", task="csv_multilabel")
    assert row.labels == ("health", "politics", "sport")
    assert "3 labels in" in said[0]
    examples = multilabel.read(row, files["train"][0], need_labels=True)
    assert [each.label for each in examples] == [("health", "sport"), (), ("politics",)]
    write(tmp_path / "train.jsonl", '{"text": "x", "label": ["a", "b"]}\n{"text": "y", "label": ["c"]}\n')
    (tmp_path / "train.csv").unlink()
    row, _, _ = find(tmp_path, "--do_train", "--dev_share=0.4", task="csv_multilabel")
    assert row.labels == ("a", "b", "c")


def test_a_prediction_has_the_labels_of_the_run_that_made_its_weights(tmp_path: Path):
    from modeling.config import Config

    write(tmp_path / "test.csv", "text\nx\n")
    with pytest.raises(UsageError, match=r"holds none of train\.csv"):
        find(tmp_path, "--do_predict")
    config = Config(
        family="bert", vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    found = dataclasses.replace(CSV, labels=("x", "y"), optional=())
    run = RunFile(kind=CSV.kind, config=config, computation={}, tokenizer=TokenizerFile(), row=found)
    for folder, flags in (("out", ()), ("other", (f"--init_checkpoint={tmp_path}/other/best",))):
        (tmp_path / folder / "best").mkdir(parents=True)
        run.write(tmp_path / folder)
        assert RunFile.read(tmp_path / folder).row == found
        row, _, _ = find(tmp_path, "--do_predict", *flags)
        assert row.labels == ("x", "y")
        (tmp_path / folder / "run.json").rename(tmp_path / folder / "former.json")
    write(tmp_path / "train.csv", "text,label\nx,a\nx,b\n")
    assert find(tmp_path, "--do_predict")[0].labels == ("a", "b")


def test_a_share_is_held_out_by_the_texts_alone():
    examples = [Example(f"text {number // 2}", None, "0", str(number)) for number in range(2000)]
    train, dev = held_out(examples, 0.1)
    assert len(train) + len(dev) == 2000
    assert 150 < len(dev) < 250
    assert not {each.text_a for each in train} & {each.text_a for each in dev}
    shuffled = random.Random(0).sample(examples, 2000)
    assert {each.id for each in held_out(shuffled, 0.1)[1]} == {each.id for each in dev}
    assert {each.id for each in dev} <= {each.id for each in held_out(examples, 0.2)[1]}
    with pytest.raises(UsageError, match=r"--dev_share=0\.01: of 1 training examples 0 would be held out"):
        held_out(examples[:1], 0.01)


def test_a_share_is_not_held_out_beside_a_file(tmp_path: Path):
    for split in ("train", "dev"):
        write(tmp_path / f"{split}.csv", "text,label\nx,1\ny,0\n")
    with pytest.raises(
        UsageError, match=r"--dev_share=0\.1: .*dev\.csv holds the development examples; leave the flag out"
    ):
        find(tmp_path, "--do_train", "--dev_share=0.1")
    (tmp_path / "dev.csv").unlink()
    with pytest.raises(
        UsageError, match=r"holds none of dev\.csv.*hold a share of the training examples out with --dev_share"
    ):
        find(tmp_path, "--do_train")
    assert set(find(tmp_path, "--do_eval", "--dev_share=0.1")[1]) == {"train"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_data_set_that_tfds_has_prepared(tmp_path: Path):
    import tensorflow_datasets as tfds

    class Mine(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path  # pyright: ignore[reportAssignmentType]

        def _info(self):
            label = tfds.features.ClassLabel(names=["equivalent", "not_equivalent"])
            texts = {"sentence1": tfds.features.Text(), "sentence2": tfds.features.Text()}
            return tfds.core.DatasetInfo(
                builder=self,
                description="Invented.",
                features=tfds.features.FeaturesDict({**texts, "label": label, "idx": np.int32}),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "validation", "test")}

        def _generate_examples(self, split):
            for number in range(20):
                label = -1 if split == "test" else number % 2
                yield f"{number}", {"sentence1": f"甲 {number}", "sentence2": split, "label": label, "idx": number}

    builder = Mine(data_dir=str(tmp_path / "prepared"))
    builder.download_and_prepare()
    source = f"tfds:{builder.data_path}"
    row, files = find_files(find_row("mrpc"), source, ["train", "dev", "test"])
    train, dev, test = (read_examples(row, files[split][0], need_labels=split != "test") for split in files)
    assert train[:2] == [Example("甲 0", "train", "1"), Example("甲 1", "train", "0")]
    assert [example.text_a for example in test] == [f"甲 {number}" for number in range(20)]
    assert {example.label for example in test} == {None}
    assert len(dev) == 20
    row = with_columns(dataclasses.replace(CSV, format="tfds"), files["train"][0])
    assert row.columns == ("text_a", "label", "text_b")
    assert labels_in(row, files["train"]) == ("equivalent", "not_equivalent")
    with pytest.raises(UsageError, match=r"label 'equivalent' is not a label of rte.*expected one of entailment, not"):
        read_examples(dataclasses.replace(find_row("rte"), format="tfds"), files["train"][0], need_labels=True)
    info = Path(builder.data_path) / "dataset_info.json"
    content = json.loads(info.read_text())
    content["splits"] = [split for split in content["splits"] if split["name"] != "train"]
    info.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="has no split for train"):
        find_files(find_row("mrpc"), source, ["train"])
    for name, message in (
        ("glue/mrpc", "is not prepared on this machine"),
        ("no_such_set", "does not know it"),
        ("huggingface:x", "does not know it"),
    ):
        with pytest.raises(UsageError, match=f"^--data_dir=tfds:{name}:? .*{message}") as error:
            find_files(find_row("mrpc"), f"tfds:{name}", ["train"])
        assert "\n" not in str(error.value)


def test_a_name_that_no_line_gives_is_not_passed_over(tmp_path: Path):
    write(tmp_path / "train.txt", "甲\t乙\t1\n")
    row, files, _ = find(tmp_path, "--do_train", "--dev_share=0.1", "--label_column=grade", task="lcqmc")
    with pytest.raises(UsageError, match=r"train\.txt: its first line names no columns, so that grade cannot be found"):
        read_examples(row, files["train"][0], need_labels=True)


def test_questions_about_one_text_are_held_out_together():
    questions = [span.Question(f"q{n}", f"问{n}", f"文{n // 3}", ()) for n in range(90)]
    train, dev = held_out(questions, 0.2, span.group)
    assert len(train) + len(dev) == 90
    assert not {each.context for each in train} & {each.context for each in dev}
