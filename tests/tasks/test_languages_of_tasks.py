"""Tasks in several languages without a model: which files are whose, what selects, results by language and average."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from kind_files import CONFIG
from language_files import XNLI_HEAD, write_languages

import run_classifier
from commands.task_files import find_task, language_options
from tasks.datasets import find_family, find_row
from tasks.languages import LanguageSplits


class Alone(SimpleNamespace):
    """A session of one process."""

    def together(self, function: Any) -> Any:
        return function()

    def say(self, *lines: str) -> None:
        pass


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("languages")
    write_languages(folder)
    return folder


def options_of(folder: Path, task: str, **further: Any) -> Any:
    given = {
        "task_name": task,
        "data_dir": str(folder),
        "task_file": None,
        "encoding": None,
        "dev_share": 0.0,
        "do_train": True,
        "do_eval": True,
        "do_predict": True,
        "task_type": "cross-lingual-transfer",
        "languages": (),
        "selection_language": None,
        "metric_for_best_model": None,
        "init_checkpoint": None,
        "plug_in": False,
        "output_dir": str(folder / "out"),
    }
    return run_classifier.Options(**{**given, **further})


def found(folder: Path, task: str, monkeypatch: pytest.MonkeyPatch, **further: Any) -> LanguageSplits:
    options = options_of(folder, task, **further)
    monkeypatch.setattr("commands.task_files.check_needs", lambda *_: None)
    row, files = find_task(Alone(), options, "run_classifier")  # pyright: ignore[reportArgumentType]
    return LanguageSplits(row, files, **language_options(options, row))


def sizes(splits: LanguageSplits) -> dict[str, int]:
    return {split: len(examples) for split, examples in splits.examples.items()}


XNLI = {"dev_de": 4, "dev_en": 4, "dev_fr": 4, "test_de": 3, "test_en": 3, "test_fr": 3}


@pytest.mark.parametrize(
    ("task", "further", "expected", "selecting"),
    [
        ("xnli", {}, {**XNLI, "train": 6}, ("dev_en",)),
        ("XNLI", {"task_type": "translate-train-all"}, {**XNLI, "train": 9}, ("dev_en",)),
        ("xnli", {"selection_language": "all"}, {**XNLI, "train": 6}, ("dev_de", "dev_en", "dev_fr")),
        ("xnli", {"selection_language": "fr", "do_predict": False}, {"dev_fr": 4, "train": 6}, ("dev_fr",)),
        # What selects is read though its language is not asked for; English trains.
        (
            "xnli",
            {"languages": ("fr", "de"), "do_predict": False},
            {"dev_fr": 4, "dev_de": 4, "dev_en": 4, "train": 6},
            ("dev_en",),
        ),
        (
            "xnli",
            {"languages": ("fr",), "task_type": "translate-train-all", "do_predict": False},
            {"dev_fr": 4, "train": 3},
            ("dev_fr",),
        ),
        ("xnli", {"task_type": None, "do_train": False, "do_eval": False}, {"test_de": 3, "test_en": 3}, ("",)),
        ("mlqa", {}, {"train": 3, "dev_de": 2, "dev_en": 2, "test_de": 1, "test_en": 1}, ("dev_en",)),
        (
            "xtreme_panx",
            {"task_type": "translate-train-all"},
            {**dict.fromkeys(("dev_de", "dev_en", "dev_fr", "test_de", "test_en", "test_fr"), 2), "train": 8},
            ("dev_en",),
        ),
    ],
)
def test_whose_files_train_select_and_are_scored(
    world: Path,
    task: str,
    further: Mapping[str, Any],
    expected: Mapping[str, int],
    selecting: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
):
    folder = world / {"xtreme_panx": "panx"}.get(task, task.lower())
    splits = found(folder, task, monkeypatch, **further)
    assert expected.items() <= sizes(splits).items()
    assert splits.selecting == selecting


def test_a_row_of_all_languages_is_read_from_run_json(world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from modeling.config import Config
    from tasks.run_file import RunFile, TokenizerFile

    row = found(world / "mlqa", "mlqa", monkeypatch).row
    assert (row.name, row.of_language("de").scoring) == ("mlqa", "mlqa_de")
    config = Config.from_json(CONFIG)
    RunFile(kind="span", config=config, computation={}, tokenizer=TokenizerFile(), row=row).write(tmp_path)
    stored = RunFile.read(tmp_path).row
    assert stored is not None
    assert stored.of_language("de") == row.of_language("de")
    # Columns and labels of a row of XNLI's one file are read by language.
    assert found(world / "xnli", "xnli", monkeypatch).row_of("dev_fr").only == {"language": "fr"}


def test_results_are_by_language_with_average_and_gap(world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    splits = found(world / "xnli", "xnli", monkeypatch)
    splits.datasets = dict.fromkeys(splits.examples)  # pyright: ignore[reportAttributeAccessIssue]
    assert splits.reports == {
        "dev": ("dev_de", "dev_en", "dev_fr"),
        "test": ("test_de", "test_en", "test_fr"),
    }
    labels = [splits.row.labels.index(example.label) for example in splits.examples["dev_en"]]
    right = np.eye(3)[labels] * 0.8 + 0.1
    # English all right, German half, French a quarter.
    answers = {"dev_en": right, "dev_de": right.copy(), "dev_fr": right.copy()}
    answers["dev_de"][2:] = np.roll(right[2:], 1, axis=1)
    answers["dev_fr"][1:] = np.roll(right[1:], 1, axis=1)
    lists = {split: [*each] for split, each in answers.items()}
    scores = {split: splits.scores(split, each) for split, each in lists.items()}
    result = splits.report_scores("dev", scores)
    expected = {
        "accuracy": 1.0,
        "accuracy_en": 1.0,
        "accuracy_de": 0.5,
        "accuracy_fr": 0.25,
        "accuracy_average": 1.75 / 3,
        "accuracy_average_without_en": 0.375,
        "accuracy_transfer_gap": 0.625,
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert splits.selection_scores({"dev_en": lists["dev_en"]})["accuracy"] == 1.0
    columns, rows = splits.report_table("dev", scores, result)
    assert columns[:2] == ["language", "accuracy"]
    assert [row[:2] for row in rows] == [
        ["en", "1.0000"],
        ["de", "0.5000"],
        ["fr", "0.2500"],
        ["average", "0.5833"],
    ]
    assert splits.report_lists("dev", lists) == {"selected_by": ["en"]}
    everywhere = found(world / "xnli", "xnli", monkeypatch, selection_language="all")
    assert everywhere.report_scores("dev", scores)["accuracy"] == pytest.approx(1.75 / 3)
    # VECO's files of the test set, a label a line; ERNIE-M's lists, of English alone in transfer.
    tests = {f"test_{language}": [*right[:3]] for language in ("de", "en", "fr")}
    splits.submit(tmp_path, "test_fr", tests["test_fr"])
    assert (tmp_path / "submission/xnli/test-fr.tsv").read_text() == "entailment\ncontradiction\nneutral\n"
    told = splits.report_lists("test", tests)
    assert told["label"] == [1, 0, 2]
    assert (told["label_names"], told["languages"], told["examples"]) == ([*splits.row.labels], ["en"], [3])
    together = found(world / "xnli", "xnli", monkeypatch, task_type="translate-train-all")
    told = together.report_lists("test", tests)
    assert (told["label"], told["languages"], told["examples"]) == ([1, 0, 2] * 3, ["de", "en", "fr"], [3, 3, 3])
    assert json.dumps(told)
    assert "train 9: en 6 (66.7%), fr 3 (33.3%); dev de 4, en 4, fr 4" in together.sizes
    assert together.told.startswith("trained on en, fr (translate-train-all); best by dev of en; scored or predicted:")


def test_tags_are_handed_in_a_line_a_word(world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from tasks.entity_scores import Entity
    from tasks.kinds.tagging import Tagged

    splits = found(world / "panx", "xtreme_panx", monkeypatch)
    answers = [Tagged((Entity("PER", 0, 2),), (1.0,)), Tagged((), ())]
    splits.submit(tmp_path, "test_de", answers)
    assert (tmp_path / "submission/panx/test-de.tsv").read_text() == "B-PER\nI-PER\n\nO\n\n"


def test_an_example_is_read_beside_the_same_one_in_the_source(world: Path, monkeypatch: pytest.MonkeyPatch):
    together: dict[str, Any] = {"task_type": "translate-train-all", "plug_in": True}
    splits = found(world / "aligned", "xnli", monkeypatch, **together)
    assert splits.row.plug_in
    # English trains as the partner of both others.
    assert sizes(splits)["train"] == 12
    assert (splits.balance, "each beside en" in splits.told) == ({"de": 6, "fr": 6}, True)
    for split, partner in (("dev_de", "dev_en"), ("dev_fr", "dev_en"), ("dev_en", "dev_de"), ("test_fr", "test_en")):
        assert [each.partner for each in splits.examples[split]] == list(splits.examples[partner])
    alone = found(world / "aligned", "xnli", monkeypatch, languages=("fr",), do_train=False, plug_in=True)
    assert sizes(alone) == {"dev_fr": 3, "dev_en": 3, "test_fr": 3, "test_en": 3}
    with pytest.raises(UsageError, match=r"--plug_in: train_en has 6 examples and train_fr 3; rows have to be transl"):
        found(world / "xnli", "xnli", monkeypatch, **together)
    with pytest.raises(UsageError, match=r"--plug_in with --task_type=cross-lingual-transfer: an example is read"):
        found(world / "aligned", "xnli", monkeypatch, plug_in=True)
    with pytest.raises(UsageError, match=r"--plug_in: dev of --task_name=xnli has files of 'en' alone"):
        found(world / "aligned", "xnli", monkeypatch, do_train=False, languages=("en",), plug_in=True)


def test_rows_of_other_labels_are_no_translations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for language, label in (("en", "neutral"), ("de", "entailment")):
        (tmp_path / f"dev-{language}.tsv").write_text(f"premise\thypo\tlabel\na\tb\tneutral\na\tb\t{label}\n")
    with pytest.raises(
        UsageError, match=r"--plug_in: example 2 is 'entailment' in dev_de and 'neutral' in dev_en; rows"
    ):
        found(tmp_path, "xnli", monkeypatch, do_train=False, do_predict=False, plug_in=True)


NAMED = "ar, bg, de, el, en, es, fr, hi, ru, sw, th, tr, ur, vi, zh"


@pytest.mark.parametrize(
    ("task", "further", "message"),
    [
        (
            "xnli",
            {"task_type": None},
            f"xnli is several tasks: give xnli_X, X one of {NAMED}, or --task_type",
        ),
        (
            "xnli",
            {"languages": ("fr", "dee")},
            f"--languages=fr,dee: 'dee' is no language of --task_name=xnli; did you mean 'de'? it has {NAMED}",
        ),
        ("xnli", {"selection_language": "ger"}, "--selection_language=ger: 'ger' is no language of --task_name=xnli"),
        ("xnli", {"selection_language": "zh"}, "xnli.dev.tsv holds no example of language zh"),
        ("xnli", {"languages": ("en", "zh")}, "xnli.dev.tsv holds no example of language zh"),
        ("xnli_fr", {}, "--task_type=cross-lingual-transfer does nothing for --task_name=xnli_fr, which is one task"),
        ("lcqmc", {"task_type": None, "languages": ("fr",)}, "a task in several languages, as --task_name=xnli"),
        (
            "mlqa",
            {"task_type": "translate-train-all"},
            "no train file of 'ar' for --task_name=mlqa, train-v1.1.json",
        ),
        ("mlqa", {"languages": ("zh",)}, "holds none of dev/dev-context-zh-question-zh.json"),
        ("xnli", {"dev_share": 0.1}, "translations of what is held out would train"),
        ("xnli", {"data_dir": "tfds:xnli"}, "several languages are read from a folder"),
    ],
)
def test_mistakes_are_one_line(
    world: Path, task: str, further: Mapping[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(UsageError) as error:
        found(world / task.partition("_")[0], task, monkeypatch, **further)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_without_languages_is_not_that_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("sentence1\tsentence2\tlabel\na\tb\tneutral\n")
    further: dict[str, Any] = {"do_predict": False, "languages": ("en", "fr")}
    with pytest.raises(UsageError, match=r"dev\.tsv has no column 'language' that tells 'en' from 'fr'"):
        found(tmp_path, "xnli", monkeypatch, **further)
    (tmp_path / "dev.tsv").write_text(
        XNLI_HEAD + "en\tneutral\t\ta\tb\t1\nfr\tneutral\t\ta\tb\t1\nfr\tneutral\t\ta\tc\t2\n"
    )
    assert sizes(found(tmp_path, "xnli", monkeypatch, **further)) == {"dev_en": 1, "dev_fr": 2, "train": 1}


def test_families_by_language_are_known_from_others():
    assert {*find_family("paws-x")} == {"de", "en", "es", "fr", "ja", "ko", "zh"}
    assert find_family("fewclue_tnews") == find_family("xnli_fr") == find_family("lcqmc") == {}
    for row in find_family("xnli").values():
        assert row.source_language == "en"
        assert {row.label_names[number] for number in "012"} == {*row.labels}
    assert find_row("fewclue_tnews_0").language == ""
