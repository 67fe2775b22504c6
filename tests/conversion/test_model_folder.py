"""What a folder of weights says of itself, where flags do not; no backend is imported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from absl.app import UsageError
from conversion_cases import CONFIGS, random_tensors
from test_beside import VOCABULARY

import run_classifier
from commands.flags import parse
from commands.model_folder import with_folder
from conversion.writers import write_ours, write_transformers


def asked(**flags: object) -> run_classifier.Options:
    given = {"output_dir": "out", "do_train": True, **flags}
    return parse(run_classifier.Options, [f"--{name}={value}" for name, value in given.items()])


@pytest.fixture
def vocab_file(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_bytes(VOCABULARY)
    return tmp_path / "vocab.txt"


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_a_folder_of_transformers_has_config_vocabulary_and_casing(
    do_lower_case: bool, tmp_path: Path, vocab_file: Path
):
    folder = tmp_path / "bert"
    write_transformers(folder, CONFIGS["bert"], random_tensors("bert"), [vocab_file], do_lower_case=do_lower_case)
    options, config = with_folder(asked(model_name_or_path=folder))
    assert config is not None
    assert (config.hidden_size, options.vocab_file) == (CONFIGS["bert"].hidden_size, str(folder / "vocab.txt"))
    assert options.do_lower_case == do_lower_case
    assert not with_folder(asked(init_checkpoint=folder, do_lower_case=False))[0].do_lower_case
    # What is given wins, and is not looked for.
    given = asked(init_checkpoint=folder, vocab_file=vocab_file, bert_config_file="x.json")
    assert with_folder(given) == (given, None)
    (folder / "vocab.txt").unlink()
    with pytest.raises(UsageError, match=r"no vocab.txt or .model lies .*, only tokenizer.json: give --vocab_file or"):
        with_folder(asked(init_checkpoint=folder))


def test_a_run_of_ours_has_them_too_and_may_be_the_output_folder(tmp_path: Path, vocab_file: Path):
    write_ours(tmp_path / "run/best", CONFIGS["bert"], random_tensors("bert"))
    (tmp_path / "run/vocab.txt").write_bytes(vocab_file.read_bytes())
    (tmp_path / "run/run.json").write_text(json.dumps({"tokenizer": {"do_lower_case": False}}))
    for flags in ({"init_checkpoint": tmp_path / "run"}, {"output_dir": tmp_path / "run", "do_train": False}):
        options, config = with_folder(asked(**flags))
        assert config == CONFIGS["bert"]
        assert (options.vocab_file, options.do_lower_case) == (str(tmp_path / "run/vocab.txt"), False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"model_name_or_path": "ernie-m-base"},
            "--init_checkpoint=ernie-m-base: there is no such folder, and names of",
        ),
        ({"model_name_or_path": "/absent/folder"}, "checkpoint /absent/folder does not exist"),
        (
            {},
            r"missing required flag: --bert_config_file; or give --init_checkpoint \(--model_name_or_path\), a ",
        ),
        (
            {"bert_config_file": "x.json"},
            "missing required flag: --vocab_file or --spm_model_file; or give --init_check",
        ),
    ],
)
def test_what_is_missing_is_one_line(
    flags: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        with_folder(asked(**flags))


def test_weights_without_a_config_say_so(tmp_path: Path, vocab_file: Path):
    write_ours(tmp_path / "a", CONFIGS["bert"], random_tensors("bert"), [vocab_file])
    (tmp_path / "b").mkdir()
    (tmp_path / "a/model.safetensors").rename(tmp_path / "b/model.safetensors")
    vocab_file.rename(tmp_path / "b/vocab.txt")
    with pytest.raises(UsageError, match=r"no config lies beside the weights .*/b: give --bert_config_file"):
        with_folder(asked(init_checkpoint=tmp_path / "b"))


def test_a_task_in_several_languages_needs_neither_name_nor_folder_where_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    wanted = asked(task_type="cross-lingual-transfer")
    with pytest.raises(UsageError, match="missing required flag: --task_name; or --task_type, which is of xnli"):
        run_classifier.with_defaults(asked())
    with pytest.raises(
        UsageError, match=r"missing required flag: --data_dir, the folder of xnli's files; .* in xnli and d"
    ):
        run_classifier.with_defaults(wanted)
    (tmp_path / "data/xnli").mkdir(parents=True)
    assert run_classifier.with_defaults(wanted) == dataclasses.replace(wanted, task_name="xnli", data_dir="data/xnli")
    (tmp_path / "xnli").mkdir()
    assert run_classifier.with_defaults(wanted).data_dir == "xnli"
    trial = dataclasses.replace(wanted, test_data_path="x.json")
    assert run_classifier.with_defaults(trial).data_dir == ""
