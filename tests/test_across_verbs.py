"""ERNIE-M's two objectives from text to weights: pairs, CAMLM, what BTMLM may begin with, and both backends."""

from __future__ import annotations

import json
import re
import shutil
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from jax_verbs import call_on_jax

import convert_checkpoint
import create_pretraining_data
import run_pretraining
from commands.across import check_start
from commands.flags import parse
from conversion.readers import read_checkpoint
from tasks.run_file import RunFile

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SAMPLES, VOCABULARY = ROOT / "data/samples", ROOT / "albert_config/vocab.txt"
INPUTS = {
    "camlm": f"en-zh={SAMPLES}/parallel/train.en:{SAMPLES}/parallel/train.zh",
    "btmlm": f"en={SAMPLES}/en/*.txt",
    "masked_lm": f"zh={SAMPLES}/zh/*.txt",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("across")
    values = json.loads((ROOT / "albert_config/ernie_m_tiny.json").read_text())
    words = len(VOCABULARY.read_text(encoding="utf-8").splitlines())
    values |= {"vocab_size": words, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 1, "max_position_embeddings": 66}))
    (folder / "short.json").write_text(json.dumps(values | {"num_hidden_layers": 1, "max_position_embeddings": 50}))
    (folder / "full.json").write_text(json.dumps(values | {"num_hidden_layers": 1, "max_position_embeddings": 34}))
    (folder / "bert.json").write_text(json.dumps(values | {"family": "bert", "type_vocab_size": 1}))
    for name, given in INPUTS.items():
        make(folder, name, name, input_file=given)
    make(folder, "shuffled", "masked_lm", input_file=INPUTS["masked_lm"], trigram_rate=0.1)
    make(folder, "packed", "masked_lm", input_file=INPUTS["masked_lm"], pack_sequences=True)
    make(folder, "dynamic", "masked_lm", input_file=INPUTS["masked_lm"], masking="dynamic")
    make(folder, "unnamed", "camlm", input_file=INPUTS["camlm"].removeprefix("en-zh="))
    make(folder, "both", "btmlm", input_file=f"{INPUTS['btmlm']},{INPUTS['masked_lm']}")
    return folder


def make(folder: Path, name: str, objective: str, **flags: Any) -> None:
    given = {"output_file": folder / f"{name}/x.tfrecord", "vocab_file": VOCABULARY, "objective": objective}
    given |= {"max_seq_length": 32, "max_predictions_per_seq": 5, "dupe_factor": 1, "eval_fraction": 0.2}
    given |= {"num_workers": 1, **flags}
    create_pretraining_data.main(
        parse(create_pretraining_data.Options, [f"--{flag}={value}" for flag, value in given.items()])
    )


def flags_of(world: Path, objective: str, output: str, **flags: Any) -> dict[str, Any]:
    given = {"input_file": world / f"{objective}/*.tfrecord", "bert_config_file": world / "config.json"}
    given |= {"objective": objective, "output_dir": world / output, "do_train": True, "do_eval": True}
    given |= {"train_batch_size": 8, "num_train_steps": 4, "num_warmup_steps": 1, "save_checkpoints_steps": 4}
    return {**given, "optimizer": "adamw", "learning_rate": 0.003, **flags}


def run(world: Path, objective: str, output: str, **flags: Any) -> None:
    given = flags_of(world, objective, output, **flags)
    run_pretraining.main(parse(run_pretraining.Options, [f"--{name}={value}" for name, value in given.items()]))


@pytest.fixture(scope="module")
def camlm(world: Path) -> Path:
    run(world, "camlm", "camlm", do_eval=False)
    (record,) = map(json.loads, (world / "camlm/metrics.jsonl").read_text().splitlines())
    assert {"loss", "camlm_loss", "camlm_accuracy"} <= record.keys()
    return world / "camlm"


def test_what_camlm_learnt_goes_on_as_btmlm_on_jax_and_is_one_model(world: Path, camlm: Path):
    # Records that were made for masked tokens alone serve too, where they say which id is [MASK].
    records = {"input_file": world / "dynamic/*.tfrecord", "backend": "jax", "init_checkpoint": camlm}
    call_on_jax(world, [("run_pretraining", flags_of(world, "btmlm", "btmlm", **records))])
    scores = json.loads((world / "btmlm/eval_results.json").read_text())
    assert {"btmlm_loss", "btmlm_accuracy", "pseudo_repetition", "pseudo_emptiness"} <= scores.keys()
    assert RunFile.read(world / "btmlm").objective == "btmlm"
    assert read_checkpoint(world / "btmlm").tensors.keys() == read_checkpoint(camlm).tensors.keys()
    # It is a beginning of a further btmlm, and goes on in its own folder without --init_checkpoint.
    for start, output in ((world / "btmlm/checkpoints/step_00000004", "further"), (None, "btmlm")):
        check_start(start_of(world, output, start))


def test_a_signal_goes_from_camlm_to_btmlm_and_is_left_out_of_other_formats(
    world: Path, camlm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    asking: dict[str, Any] = {"language_signal": "true", "input_file": world / "both/*.tfrecord"}
    with pytest.raises(UsageError, match="needs a vector of en, zh, but the weights have no vectors of languages"):
        run(world, "btmlm", "refused_start", init_checkpoint=camlm, **asking)
    run(world, "camlm", "saying", language_signal="true", do_eval="false")
    found = read_checkpoint(world / "saying").tensors
    vectors = {"languages/en", "languages/zh"}
    assert found.keys() - read_checkpoint(camlm).tensors.keys() == vectors
    assert all(np.asarray(found[name]).any() for name in vectors)
    with pytest.raises(UsageError, match="which are not read without --language_signal=True: give it"):
        run(world, "camlm", "saying", do_train="false")
    with pytest.raises(UsageError, match="was trained with language_signal True, this run has False"):
        run(world, "camlm", "saying", num_train_steps=5, do_eval="false")
    run(world, "btmlm", "asking", init_checkpoint=world / "saying", pseudo_language="zh", **asking)
    assert {"btmlm_loss_en", "btmlm_loss_zh"} <= json.loads((world / "asking/eval_results.json").read_text()).keys()
    assert vectors < read_checkpoint(world / "asking").tensors.keys()
    capsys.readouterr()
    monkeypatch.setattr(convert_checkpoint, "prove", lambda *arguments: 0)
    for form, kept in (("transformers", set()), ("ours", vectors)):
        flags = {"input": world / "saying", "output": world / f"saying_{form}", "format": form}
        given = [f"--{name}={value}" for name, value in flags.items()]
        assert convert_checkpoint.main(parse(convert_checkpoint.Options, given)) == 0
        told = capsys.readouterr().out
        line = "left out: the vectors of the languages en, zh have no place in transformers"
        assert (line in told) == (not kept)
        assert {name for name in read_checkpoint(world / f"saying_{form}").tensors if "languages" in name} == kept


@pytest.mark.usefixtures("operation_by_operation")
def test_sentences_of_the_start_are_written_once_and_read_in_every_step(
    world: Path, camlm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DIVAN_CACHE", str(world / "cache"))
    given = {"init_checkpoint": camlm, "input_file": world / "both/*.tfrecord", "do_eval": "false", "log_steps": 1}
    losses, written = {}, {}
    for name, flags in {"in_step": {}, "once": {"cached_pseudo": "true"}, "again": {"cached_pseudo": "true"}}.items():
        capsys.readouterr()
        run(world, "btmlm", name, **given, **flags)
        lines = (world / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["btmlm_loss"] for line in lines]
        told = " ".join("".join(capsys.readouterr()).split())
        written[name] = [int(count.replace(",", "")) for count in re.findall(r"of which (\S+) are written now", told)]
    assert losses["once"] == losses["again"]
    # The first step writes by the same weights.
    assert losses["once"][0] == pytest.approx(losses["in_step"][0], rel=1e-5)
    assert (written["in_step"], written["again"]) == ([], [0])
    assert len(written["once"]) == 1
    assert written["once"][0] > 100
    with pytest.raises(UsageError, match="--cached_pseudo=True does nothing without an --objective that writes"):
        run(world, "btmlm", "refused", cached_pseudo="true", allow_any_start="true")


def start_of(world: Path, output: str, checkpoint: Path | None, **further: Any) -> Any:
    given: dict[str, Any] = {
        "objective": "btmlm",
        "do_train": True,
        "allow_any_start": False,
        "output_dir": str(world / output),
    }
    given |= {"init_checkpoint": None if checkpoint is None else str(checkpoint), **further}
    return types.SimpleNamespace(**given, shares={given["objective"]: 1.0})


def test_btmlm_begins_with_what_camlm_learnt_or_says_why_not(world: Path, camlm: Path):
    masked = shutil.copytree(camlm, world / "masked")
    content = json.loads((masked / "run.json").read_text())
    (masked / "run.json").write_text(json.dumps(content | {"objective": "masked_lm"}))
    bare = shutil.copytree(camlm / "checkpoints/step_00000004", world / "bare")
    for given, message in (
        (None, "but there is no --init_checkpoint: give the --output_dir of a run of camlm, or --allow_any_start=True"),
        (masked, f"--init_checkpoint={masked} learnt masked_lm: give the --output_dir"),
        (bare, "does not say what it learnt: give the --output_dir"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            check_start(start_of(world, "refused", given))
        assert "\n" not in str(error.value)
        for further in ({"allow_any_start": True}, {"objective": "masked_lm"}, {"do_train": False}):
            check_start(start_of(world, "refused", given, **further))
    for found in (camlm, camlm / "checkpoints/step_00000004"):
        check_start(start_of(world, "refused", found))
    with pytest.raises(UsageError, match="but there is no --init_checkpoint"):
        run(world, "btmlm", "refused")
    assert not (world / "refused").exists()


@pytest.mark.parametrize(
    ("objective", "flags", "message"),
    [
        (
            "camlm",
            {"input_file": "btmlm/*.tfrecord"},
            "--objective=camlm but the records were made with --objective=bt",
        ),
        ("camlm", {"bert_config_file": "bert.json"}, 'which family "bert" cannot; give a config of ERNIE-M'),
        ("camlm", {"bert_config_file": "short.json"}, "sequences of 64 tokens, but this model has 48 positions"),
        ("camlm", {"camlm_mask": "cross"}, "give --camlm_computation=dense"),
        ("camlm", {"pseudo_pick": "sample"}, "--pseudo_pick=sample does nothing without an --objective that writes"),
        ("btmlm", {"camlm_mask": "cross"}, "--camlm_mask=cross does nothing without an --objective across texts"),
        ("btmlm", {"input_file": "masked_lm/*.tfrecord"}, "writes \\[MASK\\] itself, but the records do not say"),
        ("btmlm", {"input_file": "shuffled/*.tfrecord"}, "but the records hold shuffled words: make others without"),
        ("btmlm", {"input_file": "packed/*.tfrecord"}, "but the records hold several sequences a row"),
        (
            "camlm",
            {"language_signal": "true", "input_file": "unnamed/*.tfrecord"},
            "but the records of camlm do not say their language: make them with .*--input_file=en-zh=TEXT:TEXT",
        ),
        ("btmlm", {"language_signal": "true"}, "all records are of en, so that no pseudo sentence can be of another"),
        (
            "btmlm",
            {"language_signal": "true", "input_file": "both/*.tfrecord", "pseudo_language": "de"},
            "--pseudo_language=de but the records are of en, zh: give one of these, or records of de too",
        ),
        ("btmlm", {"pseudo_language": "en"}, "--pseudo_language=en does nothing without --language_signal"),
        ("btmlm", {"bert_config_file": "full.json"}, "the records have 32 tokens and the model 32 positions"),
    ],
)
def test_what_does_not_go_together_is_one_line(world: Path, objective: str, flags: dict[str, str], message: str):
    files = ("input_file", "bert_config_file")
    given: dict[str, Any] = {name: world / value if name in files else value for name, value in flags.items()}
    if objective == "btmlm":
        given["allow_any_start"] = True
    with pytest.raises(UsageError, match=message) as error:
        run(world, objective, "refused", **given)
    assert "\n" not in str(error.value)
    assert not (world / "refused").exists()
