"""The recipe of ERNIE-M: arms of equal steps that share their beginnings, labels carried to translations, tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError

import create_pretraining_data
import run_classifier
import run_pretraining
import train_tokenizer
from commands.flags import parse
from data.objectives import OBJECTIVES, same_records
from examples import ernie_m_languages as recipe
from examples import parallel_texts as shared
from examples.steps import Step
from modeling import load_config
from tasks.datasets import load_rows

VERBS = {
    f"{verb.__name__}.py": verb for verb in (train_tokenizer, create_pretraining_data, run_pretraining, run_classifier)
}
LANGUAGES = {"en": "A dog and a man", "de": "Ein Hund und ein Mann", "fr": "Un chien et un homme"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of 12 lines in three languages, of which every third has no subject, and of Tatoeba."""
    for place in ("lines", "tatoeba"):
        (tmp_path / place).mkdir()
    for language, text in LANGUAGES.items():
        lines = [f"{text if n % 3 else 'x'} {language} {n}" for n in range(12)]
        (tmp_path / f"lines/train.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for code in ("deu", "fra"):
        for end in (code, "eng"):
            (tmp_path / f"tatoeba/tatoeba.{code}-eng.{end}").write_text(f"{end} a\n{end} b\n", encoding="utf-8")
    return tmp_path


def options_of(folder: Path, **changes: Any) -> recipe.Options:
    given = {"data_dir": folder / "lines", "tatoeba_dir": folder / "tatoeba", "output_dir": folder / "out"}
    given |= {"held_out": 4, "parallel_lines": 3, **changes}
    return parse(recipe.Options, [f"--{name}={value}" for name, value in given.items()])


def flags_of(step: Step) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in step.command[1:])


def steps_of(options: recipe.Options) -> dict[str, dict[str, str]]:
    return {step.name: flags_of(step) for step in recipe.plan(options)}


def test_every_command_parses_and_every_row_loads(folder: Path):
    options = options_of(folder)
    steps = recipe.plan(options)
    # A vocabulary, records of three objectives in two parts; for each seed what all share, three first halves, four
    # second ones with three layers each, and five classifiers.
    assert len(steps) == 1 + 3 * 2 + 3 * (1 + 3 + 4 * (1 + 3) + 5)
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        parse(VERBS[step.command[0]].Options, step.command[1:])
    recipe.write_texts(options, *shared.split_lines(options))
    known = load_rows(folder / "out/tasks.toml").keys()
    assert {flags_of(step).get("task_name", recipe.TASK) for step in steps} - {recipe.TASK} <= known
    assert {f"{recipe.TASK}_{code}" for code in LANGUAGES} <= known


def test_arms_learn_as_many_steps_from_what_they_share(folder: Path):
    steps = steps_of(options_of(folder, num_foundation_steps=10, num_mixed_steps=7, seeds=1))
    for name, begins in {"masked_lm": "masked_lm", "tlm": "tlm", "camlm": "camlm", "btmlm": "camlm"}.items():
        second, first = steps[f"pretraining {name} seed 1"], steps[f"pretraining {begins}_first seed 1"]
        foundation = steps["pretraining foundation seed 1"]
        assert second["init_checkpoint"] == first["output_dir"]
        assert first["init_checkpoint"] == foundation["output_dir"]
        assert "init_checkpoint" not in foundation
        assert [each["num_train_steps"] for each in (foundation, first, second)] == ["10", "3", "4"]
        own = {"input_file", "eval_input_file", "objective", "output_dir", "init_checkpoint"}
        alike = {
            json.dumps({k: v for k, v in steps[f"pretraining {arm} seed 1"].items() if k not in own})
            for arm in ("masked_lm", name)
        }
        assert len(alike) == 1
    assert "pretraining btmlm_first seed 1" not in steps
    tuned = [steps[f"transfer {name} seed 1"] for name in recipe.ARMS]
    own = {"output_dir", "init_checkpoint"}
    assert len({json.dumps({k: v for k, v in each.items() if k not in own}) for each in tuned}) == 1
    assert ["init_checkpoint" in flags for flags in tuned] == [False, True, True, True, True]


def test_the_beginning_of_another_arm_is_made_without_that_arm(folder: Path):
    steps = steps_of(options_of(folder, arms="btmlm", seeds=1))
    assert [name for name in steps if name.startswith("pretraining")] == [
        "pretraining foundation seed 1",
        "pretraining camlm_first seed 1",
        "pretraining btmlm seed 1",
    ]
    assert not any(name.startswith("pretraining") for name in steps_of(options_of(folder, arms="random")))


def test_a_step_of_any_objective_reads_as_many_tokens(folder: Path):
    options = options_of(folder)
    steps = steps_of(options)
    for objective in ("masked_lm", "tlm", "camlm"):
        rows = 2 if OBJECTIVES[objective].form == "halves" else 1
        length = int(steps[f"records {objective} train"]["max_seq_length"])
        assert 48 * rows * length == options.texts_per_step * options.max_seq_length
    assert all(same_records(name, made_for) for name, made_for in recipe.RECORDS.items())
    # Of a model that writes as many tokens beside a text; all objectives are counted and weighed.
    config = load_config(options.bert_config_file)
    assert config.max_sequence_length >= 2 * 2 * options.max_seq_length
    assert {*recipe.COSTS} == {*recipe.RECORDS} == {*recipe.shares_of(recipe.ARMS["btmlm"].second, OBJECTIVES, "arms")}


@pytest.mark.parametrize(
    ("caption", "subject"),
    [
        ("Two men with a dog", "people"),
        ("A DOG, and two men", "dog"),
        ("A snowman and a lady", "woman"),
        ("A boy's kite", "child"),
        ("Many bushes", ""),
    ],
)
def test_the_first_word_decides_what_a_caption_is_of(caption: str, subject: str):
    assert recipe.subject_of(caption) == subject


def test_a_label_of_english_is_that_of_the_translations(folder: Path):
    options = options_of(folder, max_train_examples=2)
    train, held_out = shared.split_lines(options)
    recipe.write_texts(options, train, held_out)
    out = folder / "out"
    have_one = [line for line in held_out if "dog" in line["en"]]
    assert 0 < len(have_one) < len(held_out)
    for code in LANGUAGES:
        header, *lines = (out / f"caption_subject/dev-{code}.tsv").read_text(encoding="utf-8").splitlines()
        assert (header, lines) == ("text_a\tlabel", [f"{line[code]}\tdog" for line in have_one])
    # English alone is learnt from, of lines that are not scored.
    assert [path.name for path in sorted((out / "caption_subject").glob("train*"))] == ["train-en.tsv"]
    learnt = (out / "caption_subject/train-en.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert len(learnt) == 2
    assert not {line["en"] for line in held_out} & {line.split("\t")[0] for line in learnt}


def test_few_lines_have_translations_and_two_sentences_are_a_document(folder: Path):
    options = options_of(folder)
    train, held_out = shared.split_lines(options)
    recipe.write_texts(options, train, held_out)
    text = folder / "out/text"
    assert (text / "paired.fr").read_text(encoding="utf-8").splitlines() == [line["fr"] for line in train[:3]]
    documents = (text / "train_alone.de").read_text(encoding="utf-8").split("\n\n")[:-1]
    assert [document.split("\n") for document in documents] == [
        [line["de"] for line in train[begin : begin + 2]] for begin in range(0, 8, 2)
    ]
    steps = steps_of(options)
    assert steps["records camlm train"]["input_file"].startswith(f"en-de={text}/paired.en:{text}/paired.de,")
    assert steps["records camlm held_out"]["input_file"].startswith(f"en-de={text}/held_out.en:")
    assert steps["records masked_lm train"]["input_file"].startswith(f"en={text}/train_alone.en,")


def test_the_tables_have_what_is_done_and_notes_of_what_was_written(folder: Path):
    options = options_of(folder, seeds="1,2", layers="2")
    recipe.write_texts(options, *shared.split_lines(options))
    for seed, score in ((1, 0.5), (2, 0.6)):
        learnt = {"masked_lm_accuracy": 0.25, "camlm_accuracy": score, "btmlm_accuracy": 0.375}
        learnt |= {"btmlm_pseudo_repetition": score, "btmlm_pseudo_emptiness": 0.0}
        tuned = {"accuracy_en": 0.875, "accuracy_de": score, "accuracy_fr": 0.125}
        for place, content in (
            (f"pretraining/btmlm/seed_{seed}", learnt),
            (f"pretraining/masked_lm/seed_{seed}", {"masked_lm_accuracy": 0.5, "unigram_accuracy": 0.0625}),
            (f"transfer_runs/random/seed_{seed}", tuned),
            (f"retrieval_runs/btmlm/seed_{seed}/layer_2", {"retrieval_accuracy_tatoeba_fra": 0.25, "mrr": 0.5}),
        ):
            (folder / "out" / place).mkdir(parents=True)
            (folder / "out" / place / "eval_results.json").write_text(json.dumps(content))
    table = recipe.write_tables(options)
    assert "| the most frequent one, no model | 0.062 |  |  |  | 1.000 | 1.000 | 1.000 |" in table
    assert "| random weights |  |  |  |  | 0.875 ± 0.000 | 0.550 ± 0.071 | 0.125 ± 0.000 |" in table
    assert "BTMLM | 0.250 ± 0.000 |  | 0.550 ± 0.071 | 0.375 ± 0.000 |  |  |  |" in table
    assert "BTMLM | 2 |  |  |  | 0.250 ± 0.000 |" in table
    assert "Pseudo sentences, repetition: 0.550 ± 0.071 of their tokens." in table
    content = json.loads((folder / "out/table.json").read_text())
    assert content["notes"]["pseudo_repetition"]["seeds"] == {"1": 0.5, "2": 0.6}
    assert "pseudo_repetition" not in content["arms"]["btmlm"]


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert recipe.main(options_of(folder, dry_run=True)) == 0
    assert "82 steps, 82 left" in capsys.readouterr().out
    assert not (folder / "out").exists()


def test_a_mistake_is_one_line(folder: Path):
    with pytest.raises(UsageError, match=r"--texts_per_step=7: expected an even number"):
        recipe.main(options_of(folder, dry_run=True, texts_per_step=7))
