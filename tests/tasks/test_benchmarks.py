"""Every row of classification reads files in its benchmark's own form, and hands in what the leaderboard takes.

The files are invented, with the traps of the real ones: quotes, U+2028, byte order marks, CR, "-", missing columns.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError

from ground.documents import read_toml
from tasks.datasets import ROWS_FILE, Example, Examples, find_row, read_examples
from tasks.found_labels import labels_in, with_columns
from tasks.sources import find_files
from tasks.splits import Splits, notes_of
from tasks.submissions import FORMS, checked, write_submission


def tsv(*rows: str) -> str:
    """Rows with a bar for every TAB."""
    return "".join(row.replace("|", "\t") + "\n" for row in rows)


def jsonl(*objects: Mapping[str, Any]) -> str:
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects)


def index(*labels: str) -> str:
    return tsv("index|prediction", *(f"{number}|{label}" for number, label in enumerate(labels)))


def ids(*labels: str, at: Sequence[int] = range(9)) -> str:
    return "".join(f'{{"id": {number}, "label": "{label}"}}\n' for number, label in zip(at, labels, strict=False))


@dataclasses.dataclass(frozen=True)
class Case:
    """A folder of files of a row; answers are made up: example i has the label i of the row.

    Attributes:
        files: by name.
        found: what is expected of each split, its examples as (text_a, text_b, label).
        dropped: rows of each split that are no examples.
        submission: files of it by name.
    """

    task: str
    files: Mapping[str, str]
    found: Mapping[str, Sequence[tuple[str, str | None, str | None]]]
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    submission: Mapping[str, str] = dataclasses.field(default_factory=dict)


def nli(*labels: str) -> list[dict[str, str]]:
    return [{"sentence1": f"前提{label}", "sentence2": f"假设{label}", "label": label} for label in labels]


GOLD = "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse|"
MNLI_TEST = GOLD + "sentence1|sentence2"
MNLI_DEV = MNLI_TEST + "|label1|label2|gold_label"
PARSES = "7|7|7e|letters|( a )|( b )|(R a)|(R b)|"
QQP_HEAD = "id|qid1|qid2|question1|question2|is_duplicate"
WSC = {"span1_text": "鱼", "span1_index": 0, "span2_text": "它", "span2_index": 5}
XNLI_HEAD = "language|gold_label|sentence1_binary_parse|sentence1|sentence2|promptID"


def few_clue(task: str, labelled: Mapping[str, Any], text: tuple[str, str | None], label: str, name: str, first: str):
    """A task of FewCLUE, whose hidden test set has ids of its own."""
    hidden = {key: value for key, value in labelled.items() if key not in ("label", "idx", "id")}
    files = {
        "train_few_all.json": jsonl(labelled),
        "dev_few_all.json": jsonl(labelled),
        "test_public.json": jsonl(labelled, labelled),
        "test.json": jsonl({**hidden, "id": 3417}, {**hidden, "id": "12"}),
    }
    second = find_row(task).labels[1:2] or (first,)
    content = ids(first, *second, at=(3417, 12))
    return Case(
        task,
        files,
        {"train": [(*text, label)], "test": [(*text, label)] * 2, "test_hidden": [(*text, None)] * 2},
        submission={f"{name}_predict.json": content, f"{name}_predict_all.json": content},
    )


CASES = [
    Case(
        "lcqmc",
        {"dev.tsv": tsv('他说"好"|好|1', "甲\u2028乙|丙|0"), "test.tsv": tsv("甲|乙", "丙|丁")},
        {"dev": [('他说"好"', "好", "1"), ("甲\u2028乙", "丙", "0")], "test": [("甲", "乙", None), ("丙", "丁", None)]},
    ),
    Case("lcqmc_pair", {"dev.txt": tsv("甲|乙|1")}, {"dev": [("甲", "乙", "1")]}),
    Case("sentence_pair", {"dev_0827.tsv": tsv("1|甲|乙")}, {"dev": [("甲", "乙", "1")]}),
    Case(
        "afqmc",
        {
            "train.json": "\ufeff" + jsonl({"sentence1": "怎么还款", "sentence2": "如何还", "label": "1"}),
            "test.json": jsonl(*({"id": n, "sentence1": "怎么还款", "sentence2": "如何还"} for n in (7, 8, 9))),
        },
        {"train": [("怎么还款", "如何还", "1")], "test": [("怎么还款", "如何还", None)] * 3},
        submission={"afqmc_predict.json": ids("0", "1", "0")},
    ),
    Case(
        "chnsenticorp",
        {"dev.tsv": tsv("label|text_a", '1|房间"很好"')},
        {"dev": [('房间"很好"', None, "1")]},
    ),
    Case(
        "ocnli",
        {
            "train.3k.json": jsonl(*nli("entailment", "-", "-", "neutral")),
            "test.json": jsonl({"sentence1": "甲", "sentence2": "乙", "id": 0}),
        },
        {
            "train": [("前提entailment", "假设entailment", "entailment"), ("前提neutral", "假设neutral", "neutral")],
            "test": [("甲", "乙", None)],
        },
        dropped={"train": 2},
        submission={"ocnli_50k_predict.json": ids("entailment")},
    ),
    Case(
        "xnli_de",
        {
            "multinli.train.de.tsv": tsv("premise|hypo|label", "Es regnet .|Es ist nass .|contradictory"),
            "xnli.dev.tsv": tsv(XNLI_HEAD, "de|neutral|( )|Er ging.|Er kam.|1", "fr|neutral|( )|Il va.|Il vint.|2"),
            "xnli.test.tsv": tsv(XNLI_HEAD, 'fr|neutral|( )|"|a|1', 'de|entailment|( )|"|Er kam."|1'),
        },
        {
            "train": [("Es regnet .", "Es ist nass .", "contradiction")],
            "dev": [("Er ging.", "Er kam.", "neutral")],
            "test": [('"', 'Er kam."', "entailment")],
        },
        submission={"xnli/test-de.tsv": "contradiction\n"},
    ),
    Case("thucnews_title", {"dev.tsv": tsv("text|label", "股市今日上涨|2")}, {"dev": [("股市今日上涨", None, "2")]}),
    Case(
        "cola",
        {
            "train.tsv": tsv("xy81|0|*|Cat the slept.", "xy81|1||The cat slept."),
            "test.tsv": tsv("index|sentence", "0|A dog barked.", '1|"A" dog.'),
        },
        {
            "train": [("Cat the slept.", None, "0"), ("The cat slept.", None, "1")],
            "test": [("A dog barked.", None, None), ('"A" dog.', None, None)],
        },
        submission={"CoLA.tsv": index("0", "1")},
    ),
    Case(
        "sst_2",
        {"train.tsv": tsv("sentence|label", "dull . |0"), "test.tsv": tsv("index|sentence", '0|a " gem "')},
        {"train": [("dull . ", None, "0")], "test": [('a " gem "', None, None)]},
        submission={"SST-2.tsv": index("0")},
    ),
    Case(
        "mrpc",
        {
            "train.tsv": "\ufeff"
            + tsv(
                "Quality|#1 ID|#2 ID|#1 String|#2 String\r", '1|7|8|"No , " he said|He refused .\r', '0|9|10|A " b|C\r'
            ),
            "test.tsv": tsv("index|#1 ID|#2 ID|#1 String|#2 String", '0|1|2|He said "no|She " left'),
        },
        {
            "train": [('"No , " he said', "He refused .", "1"), ('A " b', "C", "0")],
            "test": [('He said "no', 'She " left', None)],
        },
        submission={"MRPC.tsv": index("0")},
    ),
    Case(
        "qqp",
        {
            "train.tsv": tsv(QQP_HEAD, "1|2|3|How far?|How near?|0", "4|5|6|Only one?", "7|8|9|Why?||1"),
            "test.tsv": tsv("id|question1|question2", "0|How?|Why?", "1|Who?", "2|When?|Where?"),
        },
        {
            "train": [("How far?", "How near?", "0")],
            "test": [("How?", "Why?", None), ("Who?", "", None), ("When?", "Where?", None)],
        },
        dropped={"train": 2},
        submission={"QQP.tsv": index("0", "1", "0")},
    ),
    Case(
        "mnli",
        {
            "dev_matched.tsv": tsv(MNLI_DEV, PARSES + "He ran.|He moved.|neutral|entailment|entailment"),
            "dev_mismatched.tsv": tsv(MNLI_DEV, PARSES + "It is.|It was.|neutral|neutral|neutral"),
            "test_matched.tsv": tsv(MNLI_TEST, PARSES + "a|b", PARSES + "c|d"),
            "test_mismatched.tsv": tsv(MNLI_TEST, PARSES + "a|b"),
            "diagnostic.tsv": tsv("index|sentence1|sentence2", '0|"x|y'),
        },
        {
            "dev": [("He ran.", "He moved.", "entailment")],
            "dev_mismatched": [("It is.", "It was.", "neutral")],
            "test": [("a", "b", None), ("c", "d", None)],
            "test_mismatched": [("a", "b", None)],
            "test_ax": [('"x', "y", None)],
        },
        submission={
            "MNLI-m.tsv": index("contradiction", "entailment"),
            "MNLI-mm.tsv": index("contradiction"),
            "AX.tsv": index("contradiction"),
        },
    ),
    Case(
        "mnli_mismatched",
        {"test_mismatched.tsv": tsv(MNLI_TEST, PARSES + "a|b")},
        {"test": [("a", "b", None)]},
        submission={"MNLI-mm.tsv": index("contradiction")},
    ),
    Case(
        "ax",
        {"diagnostic.tsv": tsv("index|sentence1|sentence2", "0|x|y")},
        {"test": [("x", "y", None)]},
        submission={"AX.tsv": index("contradiction")},
    ),
    *(
        Case(
            task,
            {
                "dev.tsv": tsv(f"index|{one}|{two}|label", f'0|A "?|B|{label}'),
                "test.tsv": tsv(f"index|{one}|{two}", "0|A|B", "1|C|D"),
            },
            {"dev": [('A "?', "B", label)], "test": [("A", "B", None), ("C", "D", None)]},
            submission={f"{task.upper()}.tsv": index(*find_row(task).labels)},
        )
        for task, one, two, label in (
            ("qnli", "question", "sentence", "not_entailment"),
            ("rte", "sentence1", "sentence2", "entailment"),
            ("wnli", "sentence1", "sentence2", "1"),
        )
    ),
    Case(
        "tnews",
        {
            "train.json": jsonl(
                {"label": "116", "label_desc": "news_game", "sentence": "新片上映", "keywords": "新片"}
            ),
            "test.json": jsonl(
                {"id": 0, "sentence": "甲", "keywords": ""}, {"id": 1, "sentence": "乙", "keywords": ""}
            ),
            "test1.0.json": jsonl({"id": 0, "sentence": "丙", "keywords": ""}),
        },
        {
            "train": [("新片上映", None, "116")],
            "test": [("甲", None, None), ("乙", None, None)],
            "test_10": [("丙", None, None)],
        },
        submission={"tnews11_predict.json": ids("100", "101"), "tnews10_predict.json": ids("100")},
    ),
    Case(
        "iflytek",
        {
            "train.json": jsonl({"label": "118", "label_des": "其他", "sentence": "说明\u2028下一行"}),
            "test.json": jsonl({"id": 5, "sentence": "说明"}),
        },
        {"train": [("说明\u2028下一行", None, "118")], "test": [("说明", None, None)]},
        submission={"iflytek_predict.json": ids("0")},
    ),
    Case(
        "cmnli",
        {"dev.json": jsonl(*nli("-", "contradiction")), "test.json": jsonl({"sentence1": "甲", "sentence2": "乙"})},
        {"dev": [("前提contradiction", "假设contradiction", "contradiction")], "test": [("甲", "乙", None)]},
        dropped={"dev": 1},
        submission={"cmnli_predict.json": ids("entailment")},
    ),
    Case(
        "csl",
        {
            "dev.json": jsonl({"id": 1, "abst": "研究声音。", "keyword": ["声学", "成像"], "label": "1"}),
            "test.json": jsonl({"id": 9, "abst": "研究光。", "keyword": ["光"]}),
        },
        {"dev": [("声学 成像", "研究声音。", "1")], "test": [("光", "研究光。", None)]},
        submission={"csl_predict.json": ids("0")},
    ),
    Case(
        "cluewsc2020",
        {
            "dev.json": jsonl({"target": WSC, "idx": 3, "label": "true", "text": "鱼吃了虫，它饱了"}),
            "test.json": jsonl({"target": WSC, "id": 8, "text": "鱼吃了虫，它饱了"}),
            "test1.0.json": jsonl({"target": WSC, "id": 8, "text": "鱼吃了虫，它饱了"}),
        },
        {"dev": [("_鱼_吃了虫，[它]饱了", None, "true")], "test": [("_鱼_吃了虫，[它]饱了", None, None)]},
        submission={"cluewsc11_predict.json": ids("false"), "cluewsc10_predict.json": ids("false")},
    ),
    Case(
        "clue_diagnostics",
        {"test.json": jsonl({"index": 0, "sentence1": "甲", "sentence2": "乙"})},
        {"test": [("甲", "乙", None)]},
    ),
    few_clue(
        "fewclue_eprstmt_all",
        {"id": 0, "sentence": "很好", "label": "Positive"},
        ("很好", None),
        "Positive",
        "eprstmt",
        "Negative",
    ),
    few_clue(
        "fewclue_bustm_all",
        {"id": 0, "sentence1": "甲", "sentence2": "乙", "label": "1"},
        ("甲", "乙"),
        "1",
        "bustm",
        "0",
    ),
    few_clue(
        "fewclue_ocnli_all",
        {"level": "easy", "sentence1": "甲", "sentence2": "乙", "label": "neutral", "label0": "neutral", "id": 1},
        ("甲", "乙"),
        "neutral",
        "ocnlif",
        "entailment",
    ),
    few_clue(
        "fewclue_tnews_all",
        {"label": 100, "label_desc": "news_story", "sentence": "故事", "keywords": "", "id": 2},
        ("故事", None),
        "100",
        "tnewsf",
        "100",
    ),
    few_clue(
        "fewclue_iflytek_all",
        {"label": 0, "label_des": "打车", "sentence": "说\u2028明", "id": 0},
        ("说\u2028明", None),
        "0",
        "iflytekf",
        "0",
    ),
    few_clue(
        "fewclue_csl_all",
        {"id": 1, "abst": "研究。", "keyword": ["声学", "成像"], "label": "0"},
        ("声学 成像", "研究。"),
        "0",
        "cslf",
        "0",
    ),
    few_clue(
        "fewclue_cluewsc_all",
        {"target": WSC, "idx": 3, "label": "true", "text": "鱼吃了虫，它饱了"},
        ("_鱼_吃了虫，[它]饱了", None),
        "true",
        "cluewscf",
        "false",
    ),
    Case(
        "fewclue_csldcp_3",
        {
            "train_3.json": jsonl(*({"id": n, "content": f"摘要{n}", "label": each} for n, each in enumerate("力数"))),
            "test_public.json": jsonl(*({"id": 5, "content": "摘要", "label": "力"} for _ in range(2))),
            "test.json": jsonl({"id": 6, "content": "甲"}, {"id": 40, "content": "乙"}),
        },
        {
            "train": [("摘要0", None, "力"), ("摘要1", None, "数")],
            "test": [("摘要", None, "力")] * 2,
            "test_hidden": [("甲", None, None), ("乙", None, None)],
        },
        submission={name: ids("力", "数", at=(6, 40)) for name in ("csldcp_predict.json", "csldcp_predict_3.json")},
    ),
    Case("bq", {"dev.tsv": tsv("利息|多少利息|1")}, {"dev": [("利息", "多少利息", "1")]}),
    Case(
        "qbqtc",
        {"dev.json": jsonl({"id": 0, "query": "天气", "title": "今天天气", "label": "2"})},
        {"dev": [("天气", "今天天气", "2")]},
    ),
    Case(
        "paws_x_fr",
        {
            "fr/translated_train.tsv": tsv(
                "id|sentence1|sentence2|label", '1|Il ``va"|Il vint|0', "2|NS|NS|1", "3|a||0"
            ),
            "fr/test_2k.tsv": tsv("id|sentence1|sentence2|label", "1|a|b|1", "2|NS|b|0"),
        },
        {"train": [('Il ``va"', "Il vint", "0")], "test": [("a", "b", "1"), ("NS", "b", "0")]},
        dropped={"train": 2},
        submission={"pawsx/test-fr.tsv": "0\n1\n"},
    ),
    Case(
        "xtreme_xnli_de",
        {
            "train-en.tsv": tsv('"He said ""go"""|He went|entailment'),
            "dev-de.tsv": tsv('"Zeile eins', 'Zeile zwei"|b|neutral'),
            "test-de.tsv": tsv('"""a"""|b', "c|d"),
        },
        {
            "train": [('He said "go"', "He went", "entailment")],
            "dev": [("Zeile eins\nZeile zwei", "b", "neutral")],
            "test": [('"a"', "b", None), ("c", "d", None)],
        },
        submission={"xnli/test-de.tsv": "contradiction\nentailment\n"},
    ),
    Case(
        "xtreme_pawsx_ko",
        {"dev-ko.tsv": tsv("NS|NS|1", "가|나|0"), "test-ko.tsv": tsv("|NS", "가|나")},
        {"dev": [("가", "나", "0")], "test": [("", "NS", None), ("가", "나", None)]},
        dropped={"dev": 1},
        submission={"pawsx/test-ko.tsv": "0\n1\n"},
    ),
    Case(
        "thucnews",
        {"cnews.train.txt": tsv("体育|球赛", "财经|股市"), "cnews.val.txt": tsv("财经|基金")},
        {"train": [("球赛", None, "体育"), ("股市", None, "财经")], "dev": [("基金", None, "财经")]},
    ),
    Case(
        "csv",
        {
            "train.csv": '\ufeffid,stars,review\r\n1,10,"Good, ""very"" good"\r\n2,9,"Two\r\nlines"\r\n',
            "dev.tsv": tsv("review|stars|id", 'A "bad" one|9|3'),
            "test.jsonl": jsonl({"review": "Fine", "id": 4}),
        },
        {
            "train": [('Good, "very" good', None, "10"), ("Two\nlines", None, "9")],
            "dev": [('A "bad" one', None, "9")],
            "test": [("Fine", None, None)],
        },
    ),
]
ASKED = {"csv": {"label": "stars"}}


def read(case: Case, folder: Path) -> Splits:
    """Write the files of a case and read them as a run does."""
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode())
    row = dataclasses.replace(find_row(case.task), asked=ASKED.get(case.task, {}))
    wanted = {split.partition("_")[0] for split in case.found}
    row, files = find_files(row, str(folder), wanted)
    row = with_columns(row, next(iter(files.values()))[0])
    if row.find_labels:
        row = dataclasses.replace(row, labels=labels_in(row, files["train"]))
    return Splits(row, files)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task)
def test_files_of_a_benchmark_are_read_and_its_submission_is_written(tmp_path: Path, case: Case):
    splits = read(case, tmp_path)
    for split, expected in case.found.items():
        assert splits.examples[split] == [Example(*each) for each in expected], split
        dropped = splits.examples[split].dropped  # pyright: ignore[reportAttributeAccessIssue]
        assert sum(dropped.values()) == case.dropped.get(split, 0)
        assert bool(case.dropped.get(split)) == any(
            f"left out {case.dropped.get(split)} rows" in n for n in splits.notes
        )
    said = []
    for split in splits.examples:
        number = len(splits.examples[split])
        answers = list(np.eye(len(splits.row.labels), dtype=np.float32)[np.arange(number) % len(splits.row.labels)])
        said += splits.submit(tmp_path / "out", split, answers)
    folder = tmp_path / "out/submission"
    written = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert written == case.submission
    for split in case.found:
        # No fixture is as long as the released file.
        assert any("is it another copy?" in note and f" {split} " in note for note in splits.notes) == (
            split in splits.row.counts
        )
    assert all(any(name in line for line in said) for name in case.submission)


def test_every_row_of_classification_has_a_fixture():
    tables = read_toml(ROWS_FILE, what="rows")
    families = {name for name, table in tables.items() if table.get("kind", "classification") == "classification"}
    known = {case.task for case in CASES}
    for family in families:
        names = [f"{family}_{each}" for values in tables[family].get("variants", {}).values() for each in values]
        assert known & set(names or [family]), f"{family} has no fixture"


def test_a_family_of_rows_names_its_members():
    assert find_row("XNLI-sw").files["dev"][1:3] == ("dev.tsv", "xnli.dev.tsv")
    assert find_row("xnli_sw").only == {"language": "sw"}
    assert find_row("sst2") == find_row("SST-2") == find_row("sst_2")
    with pytest.raises(UsageError, match="--task_name=paws-x is several tasks: give paws_x_X, X one of de, en, es"):
        find_row("paws-x")


def test_a_submission_is_checked_before_it_is_written(tmp_path: Path):
    row = find_row("fewclue_bustm_0")
    assert checked(row, [("3000", "1"), ("x", "0")]) == [(3000, "1"), ("x", "0")]
    for answers, message in (
        ([("1", "0"), ("1", "0")], "row 1 of the test file has the id 1 of another row"),
        ([(None, "0")], "row 0 of the test file lacks its id"),
        ([("1", "2")], "row 0 has '2', which is none of the labels of fewclue_bustm_0"),
    ):
        assert len(write_submission(row, "test_hidden", [("1", "0")], tmp_path)) == 3
        assert (tmp_path / "bustm_predict.json").exists()
        (said,) = write_submission(row, "test_hidden", answers, tmp_path)
        assert said.startswith(f"no submission bustm_predict.json, bustm_predict_0.json: {message}")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"span1_index": 1}, r"dev\.json:1: span1 '鱼' does not stand at character 1 of the text, where '吃' is"),
        ({"span2_text": None}, r"dev\.json:1: span2 is missing"),
        ({"span2_index": -1}, r"dev\.json:1: span2 is missing"),
    ],
)
def test_spans_that_do_not_stand_where_they_are_said_to_are_named(tmp_path: Path, change: dict, message: str):
    files = {"dev.json": jsonl({"target": {**WSC, **change}, "label": "true", "text": "鱼吃了虫，它饱了"})}
    with pytest.raises(UsageError, match=message):
        read(Case("cluewsc2020", files, {"dev": []}), tmp_path)


ROW = """[mine]
variants = { place = ["a", "b"] }
columns = ["text_a", "label"]
labels = ["0", "1"]
metric = "accuracy"
files = { test = ["{place}.tsv"] }
submission = { form = "plain_lines", files = { test = ["{place}.txt"] } }
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('{ place = ["a", "b"] }', "{}", "variants"),
        ('{ place = ["a", "b"] }', '{ place = "a" }', "variants"),
        ('"plain_lines"', '"xml"', "unknown form of a submission 'xml'; known: index_tsv"),
        ('form = "plain_lines", ', "", "a submission without form or files"),
        ('files = { test = ["{place}.txt"] }', 'files = { dev = ["x"] }', "unknown split 'dev'; known: test"),
        ("[mine]", '[mine]\ntemplate = "wcs"', "unknown template 'wcs'"),
        ("[mine]", "[mine]\ncounts = { test = 0 }", r"\$.counts\[...\]|\$.counts"),
        ("[mine]", '[mine]\nnames = { text_c = ["x"] }', "unknown column of names 'text_c'"),
        ("[mine]", '[mine]\nincomplete = "drop"', r"\$.incomplete is 'drop'"),
        ("[mine]", '[mine]\nkind = "generation"', "unknown column 'label'|hand nothing in"),
    ],
)
def test_a_wrong_row_is_one_line(tmp_path: Path, old: str, new: str, message: str):
    path = tmp_path / "rows.toml"
    path.write_text(ROW)
    assert find_row("mine_a", path).submission["files"] == {"test": ["a.txt"]}
    assert old in ROW
    path.write_text(ROW.replace(old, new))
    with pytest.raises(UsageError, match=message) as error:
        find_row("mine_a", path)
    assert "\n" not in str(error.value)


def test_an_ignored_label_of_a_test_file_is_predicted_and_not_scored(tmp_path: Path):
    case = Case("ocnli", {"test.json": jsonl(*nli("entailment", "-", "neutral"))}, {"test": []})
    splits = read(case, tmp_path)
    assert [example.label for example in splits.examples["test"]] == ["entailment", None, "neutral"]
    assert splits.labelled("test") == [0, 2]
    answers = list(np.eye(3, dtype=np.float32))
    assert splits.row.labels == ("entailment", "neutral", "contradiction")
    assert splits.scores("test", answers)["accuracy"] == 0.5
    assert len(splits.submit(tmp_path, "test", answers)) == 2
    assert splits.submit(tmp_path, "dev", answers) == []


def test_rows_of_too_many_columns_and_of_another_language_are_said(tmp_path: Path):
    path = tmp_path / "train.tsv"
    path.write_text(tsv(QQP_HEAD, "1|2|3|a|b|0|1"))
    with pytest.raises(
        UsageError, match=r"train\.tsv:2: got 7 TAB separated columns, expected -, -, -, text_a, text_b"
    ):
        read_examples(find_row("qqp"), path, need_labels=True)
    path.write_text(tsv(XNLI_HEAD, "fr|neutral|( )|Il va.|Il vint.|2"))
    with pytest.raises(UsageError, match=r"train\.tsv holds no example of language de: expected a line for each"):
        read_examples(find_row("xnli_de"), path, need_labels=True)
    path.write_text(tsv(QQP_HEAD, "1|2"))
    with pytest.raises(UsageError, match=r"train\.tsv holds no example: expected"):
        read_examples(find_row("qqp"), path, need_labels=True)


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("index_tsv", ["index\tprediction", "0\t甲", "7\t乙"]),
        ("json_lines", ['{"id": 0, "label": "甲"}', '{"id": 7, "label": "乙"}']),
        ("json_object", ['{"0": "甲", "7": "乙"}']),
        ("plain_lines", ["甲", "乙"]),
        ("tag_lines", ["甲", "", "乙", ""]),
    ],
)
def test_forms_of_submissions(form: str, content: list[str]):
    assert list(FORMS[form]([(0, "甲"), (7, "乙")])) == content


def test_a_released_file_is_known_by_its_rows_left_out_ones_too(tmp_path: Path):
    examples = Examples([Example("a", "b", "neutral")])
    examples.dropped["the label '-'"] = 2
    for number, expected in ((3, 1), (4, 2)):
        row = dataclasses.replace(find_row("ocnli"), counts={"dev": number})
        notes = list(notes_of(row, "dev", tmp_path, examples))
        assert notes[0] == f"{tmp_path}: left out 2 rows (2 for the label '-'), 1 remain"
        assert len(notes) == expected
    assert notes[1] == f"{tmp_path}: 3 rows, the released dev file of ocnli has 4: is it another copy?"
