"""The recipe of VECO: arms that differ in their objective alone, lines that do not leak, the floor, and the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError

import create_pretraining_data
import run_classifier
import run_generation
import run_pretraining
import train_tokenizer
from commands.flags import parse
from examples import parallel_texts as shared
from examples import veco_languages as recipe
from examples.steps import Step
from modeling import load_config
from tasks.datasets import load_rows

VERBS = {
    f"{verb.__name__}.py": verb
    for verb in (train_tokenizer, create_pretraining_data, run_pretraining, run_classifier, run_generation)
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of 12 lines in three languages, the first two of which are alike in French, and of Tatoeba."""
    for place, names in (("lines", {"en": "dog", "de": "Hund", "fr": "chien"}), ("tatoeba", {})):
        (tmp_path / place).mkdir()
        for language, word in names.items():
            lines = [f"{word} {'a' if language == 'fr' and n == 'b' else n}" for n in "abcdefghijkl"]
            (tmp_path / place / f"train.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for code in ("deu", "fra"):
        for end in (code, "eng"):
            (tmp_path / f"tatoeba/tatoeba.{code}-eng.{end}").write_text(f"{end} a\n{end} b\n", encoding="utf-8")
    return tmp_path


def options_of(folder: Path, **changes: Any) -> recipe.Options:
    given = {
        "data_dir": folder / "lines",
        "tatoeba_dir": folder / "tatoeba",
        "output_dir": folder / "out",
        "held_out": 4,
    }
    return parse(recipe.Options, [f"--{name}={value}" for name, value in {**given, **changes}.items()])


def flags_of(step: Step) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in step.command[1:])


def test_every_command_parses_and_every_row_loads(folder: Path):
    options = options_of(folder, arms="random,masked_lm,tlm,veco")
    steps = recipe.plan(options)
    # A vocabulary, records of two parts; for each seed pretraining, three layers, translation of random weights too.
    assert len(steps) == 1 + 3 * 2 + 3 * (3 + 3 * 3 + 4)
    for step in steps:
        parse(VERBS[step.command[0]].Options, step.command[1:])
    recipe.write_texts(options, *shared.split_lines(options))
    assert load_rows(folder / "out/tasks.toml").keys() >= {
        flags_of(step).get("task_name", "translation") for step in steps
    }


def test_arms_see_the_same_sentences_and_as_many_tokens(folder: Path):
    options = options_of(folder, arms="random,masked_lm,tlm,veco")
    steps = {step.name: flags_of(step) for step in recipe.plan(options)}
    pretraining = {name: steps[f"pretraining {name} seed 1"] for name in ("masked_lm", "tlm", "veco")}
    own = {"input_file", "eval_input_file", "objective", "output_dir", "bert_config_file", "train_batch_size"}
    assert len({json.dumps({k: v for k, v in each.items() if k not in own}) for each in pretraining.values()}) == 1
    for name, flags in pretraining.items():
        rows = int(flags["train_batch_size"]) * recipe.ARMS[name].rows
        assert rows * int(steps[f"records {name} train"]["max_seq_length"]) == 96 * 32
    translation = [steps[f"translation {name} seed 1"] for name in options.arms]
    own = {"output_dir", "init_checkpoint"}
    assert len({json.dumps({k: v for k, v in each.items() if k not in own}) for each in translation}) == 1
    assert ["init_checkpoint" in flags for flags in translation] == [False, True, True, True]


def test_what_is_held_out_is_not_learnt_from_in_any_language(folder: Path):
    options = options_of(folder)
    train, held_out = shared.split_lines(options)
    assert (len(held_out), {*held_out[0]}) == (4, {"en", "de", "fr"})
    for language in shared.LANGUAGES:
        assert not {line[language] for line in train} & {line[language] for line in held_out}
    twins = [{*lines} & {"dog a", "dog b"} for lines in ([line["en"] for line in part] for part in (train, held_out))]
    # Where one of the two lines that are alike in French is held out, the other is left out.
    assert not all(twins)
    assert len(train) == 8 - (len(twins[1]) == 1)
    recipe.write_texts(options, train, held_out)
    out = folder / "out"
    assert (out / "text/train_alone.de").read_text().split("\n\n")[:1] == [train[0]["de"]]
    assert (out / "translation/dev.source").read_text().splitlines() == [line["de"] for line in held_out]
    assert (out / "retrieval/tatoeba_deu-eng.tatoeba_deu").read_text() == "deu a\ndeu b\n"


def test_shapes_are_those_of_one_stack(folder: Path):
    config = load_config(options_of(folder).bert_config_file)
    assert config.cross_attention
    longest = max(arm.texts // arm.rows for arm in recipe.ARMS.values() if arm.objective)
    assert config.max_sequence_length >= max(longest * options_of(folder).max_seq_length, 40)
    assert {arm.shape for arm in recipe.ARMS.values()} == {*recipe.SHAPES}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts_per_step": 7}, r"--texts_per_step=7: expected an even number"),
        ({"held_out": 12}, r"--held_out=12 leaves none of 12 lines to learn from"),
        ({"bert_config_file": "absent.json"}, r"--bert_config_file=absent\.json: no such file"),
        ({"data_dir": "absent"}, r"absent/train\.en: no such file; expected sentences"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, changes: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        recipe.main(options_of(folder, dry_run=True, **changes))


def test_files_of_unequal_lengths_are_refused(folder: Path):
    (folder / "lines/train.fr").write_text("un\n")
    with pytest.raises(
        UsageError, match=r"train\.en 12, train\.de 12, train\.fr 1 lines; expected as many in every file"
    ):
        shared.split_lines(options_of(folder))


def test_the_tables_have_what_is_done(folder: Path):
    options = options_of(folder, seeds="1,2", layers="2")
    for seed, score in ((1, 0.5), (2, 0.6)):
        results = {"crossed_accuracy": score, "other_crossed_accuracy": score + 0.2}
        results |= {"masked_lm_accuracy": score, "other_masked_lm_accuracy": score}
        retrieved = {"retrieval_accuracy_multi30k_de": score, "retrieval_accuracy_tatoeba_fra": 0.25, "mrr": 0.5}
        for place, content in (
            (f"pretraining/veco/seed_{seed}", results),
            (f"retrieval_runs/veco/seed_{seed}/layer_2", retrieved),
        ):
            (folder / "out" / place).mkdir(parents=True)
            (folder / "out" / place / "eval_results.json").write_text(json.dumps(content))
    translated = folder / "out/translation_runs/random/seed_1"
    translated.mkdir(parents=True)
    line = {"generated": "a b c d e", "target": "a b c d e"}
    (translated / "dev_predictions.jsonl").write_text(json.dumps(line) + "\n")
    table = recipe.write_tables(options)
    assert "| random weights |  |  | 100.0 ± 0.0 |" in table
    assert "| alone and across: VECO | 0.550 ± 0.071 | 0.650 ± 0.071 |  |" in table
    assert "| alone and across: VECO | 2 | 0.550 ± 0.071 |  |  | 0.250 ± 0.000 |" in table
    assert "sacrebleu nrefs:1|case:mixed" in table
    content = json.loads((folder / "out/table.json").read_text())
    assert content["arms"]["veco"]["layer_2/multi30k_de"]["seeds"] == {"1": 0.5, "2": 0.6}


def test_the_floor_counts_shared_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch):
    import numpy as np

    from data import tokenizers

    class Words:
        vocab_size = 128

        def encode_batch(self, sentences: list[str]) -> Any:
            ids = [[ord(letter) for letter in sentence.split()[-1]] for sentence in sentences]
            splits = np.cumsum([0, *map(len, ids)])
            return type("Encoded", (), {"ids": np.concatenate(ids), "splits": splits})

    monkeypatch.setattr(tokenizers, "load_tokenizer", lambda **_: Words())
    options = options_of(folder)
    assert recipe.floor(options) == {}
    recipe.write_texts(options, *shared.split_lines(options))
    (folder / "out/spiece.model").write_bytes(b"")
    # The last words are the same in German and English.
    found = recipe.floor(options)
    assert found["tatoeba_deu"] == found["multi30k_de"] == 1.0


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert recipe.main(options_of(folder, dry_run=True)) == 0
    assert "38 steps, 38 left" in capsys.readouterr().out
    assert not (folder / "out").exists()
