"""run_classifier.py --teacher: a student of another family learns from a run, on both engines, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl.app import UsageError
from jax_verbs import call_on_jax

import run_classifier
from commands.flags import parse
from conversion.writers import write_ours
from modeling import ClassifierModel, Config, PretrainingModel, variable_shapes
from tasks.datasets import find_row
from tasks.run_file import RunFile, TokenizerFile

WORDS = "abcdefghij"
TEACHER = Config(
    family="bert",
    vocab_size=15,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=16,
    initializer_range=0.2,
)
REGRESSION = {"kind": "regression", "labels": (), "score_range": (0.0, 1.0), "metric": "pearson"}
STUDENT = dataclasses.replace(TEACHER, family="albert", sharing="all", hidden_size=4, embedding_size=2)


def write_teacher(folder: Path, config: Config = TEACHER, classes: int = 2, **changes: object) -> Path:
    """Write a run of the task with random weights."""
    shapes = variable_shapes(lambda: ClassifierModel(config, classes))
    random = np.random.default_rng(7)
    tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    vocabulary = [folder.parent / "vocab.txt"] if config.vocab_size == TEACHER.vocab_size else []
    write_ours(folder / "best", config, tensors, vocabulary)
    row = dataclasses.replace(find_row("chnsenticorp"), **changes)
    RunFile(kind=row.kind, config=config, computation={}, tokenizer=TokenizerFile(), row=row).write(folder)
    return folder


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "config.json").write_text(STUDENT.to_json())
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    rng = np.random.default_rng(0)
    for split, examples in (("train", 12), ("dev", 4)):
        texts = [" ".join(rng.choice(list(WORDS), 5)) for _ in range(examples)]
        (tmp_path / f"{split}.tsv").write_text("".join(f"{text.count('a') % 2}\t{text}\n" for text in texts))
    return {
        "task_name": "chnsenticorp",
        "data_dir": tmp_path,
        "bert_config_file": tmp_path / "config.json",
        "vocab_file": tmp_path / "vocab.txt",
        "output_dir": tmp_path / "out",
        "max_seq_length": 8,
        "train_batch_size": 4,
        "num_train_steps": 3,
        "log_steps": 1,
        "do_train": "true",
        "do_eval": "true",
        "teacher": write_teacher(tmp_path / "teacher"),
    }


def run(arguments: dict[str, object], **more: object) -> None:
    given = {**arguments, **more}
    run_classifier.main(parse(run_classifier.Options, [f"--{name}={value}" for name, value in given.items()]))


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_student_of_another_family_learns_from_a_run_which_its_checkpoint_does_not_hold(arguments, tmp_path, capsys):
    from conversion.readers import read_checkpoint

    run(arguments)
    assert "teacher: bert, 2 layers of width 8" in capsys.readouterr().out
    told = [record["distillation_loss"] for record in records(tmp_path / "out") if "distillation_loss" in record]
    assert told
    assert all(value > 0 for value in told)
    found = read_checkpoint(tmp_path / "out", prefer_best=True)
    assert set(found.tensors) == set(variable_shapes(lambda: ClassifierModel(STUDENT, 2)))
    # The student is scored and used without its teacher.
    shutil.rmtree(tmp_path / "teacher")
    alone = {name: value for name, value in arguments.items() if name not in ("teacher", "do_train")}
    run(alone)


@pytest.mark.slow
def test_layers_of_another_width_are_learnt_and_a_stopped_run_goes_on_to_the_same_weights(arguments, tmp_path):
    from training.checkpoints import latest_state

    layers = {"hidden_distillation_weight": 1, "attention_distillation_weight": 1, "save_checkpoints_steps": 2}
    run(arguments, **layers)
    told = [record for record in records(tmp_path / "out") if "hidden_distillation_loss" in record]
    assert told
    assert all(record["hidden_distillation_loss"] > 0 < record["attention_distillation_loss"] for record in told)
    whole = latest_state(tmp_path / "out")
    assert whole
    assert "model/scaffold/kernel" in whole.tensors
    shutil.rmtree(tmp_path / "out/checkpoints/step_00000003")
    run(arguments, **layers)
    again = latest_state(tmp_path / "out")
    assert again
    for name, value in whole.tensors.items():
        np.testing.assert_array_equal(np.asarray(again.tensors[name]), np.asarray(value), err_msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("operation_by_operation")
def test_a_cached_teacher_is_asked_once_for_all_runs(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIVAN_CACHE", str(tmp_path / "cache"))
    told = {}
    for name, more in (("live", {}), ("first", {"cached_teacher": "true"}), ("second", {"cached_teacher": "true"})):
        run(arguments, output_dir=tmp_path / name, **more)
        found = re.search(r"scores of (\d+) examples, of (\d+) from the cache", capsys.readouterr().err)
        told[name] = found and tuple(map(int, found.groups()))
    assert told["live"] is None
    assert told["first"] == (told["second"][0], 0)
    assert told["second"][0] == told["second"][1] > 0
    wanted, *others = (
        [each["loss"] for each in records(tmp_path / name) if "distillation_loss" in each] for name in told
    )
    assert wanted
    for found in others:
        assert found == pytest.approx(wanted, rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("operation_by_operation")
def test_a_teacher_of_domains_and_its_student(arguments, tmp_path, capsys):
    config = dataclasses.replace(TEACHER, hidden_size=4, embedding_size=4)
    shapes = variable_shapes(lambda: PretrainingModel(config, 2))
    random = np.random.default_rng(7)
    tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    write_ours(tmp_path / "pretrained", config, tensors, [tmp_path / "vocab.txt"])
    (tmp_path / "data").mkdir()
    for split in ("train", "dev"):
        lines = (tmp_path / f"{split}.tsv").read_text().splitlines()
        rows = [f"{line}\t{'news' if number % 3 else 'notes'}\n" for number, line in enumerate(lines)]
        (tmp_path / f"data/{split}.tsv").write_text("label\ttext_a\tsource\n" + "".join(rows))
    of_domains = {
        **{name: value for name, value in arguments.items() if name not in ("teacher", "bert_config_file")},
        "data_dir": tmp_path / "data",
        "init_checkpoint": tmp_path / "pretrained",
        "domain_column": "source",
    }
    run(of_domains, output_dir=tmp_path / "meta")
    assert "2 (news, notes), typicality " in capsys.readouterr().err
    assert any(each.get("domain_corruption_loss", 0) > 0 for each in records(tmp_path / "meta"))
    run(of_domains, teacher=tmp_path / "meta", distillation_weight=1)
    told = [each["distillation_loss"] for each in records(tmp_path / "out") if "distillation_loss" in each]
    run(of_domains, teacher=tmp_path / "meta", distillation_weight=1, domain_column="", output_dir=tmp_path / "plain")
    plain = [each["distillation_loss"] for each in records(tmp_path / "plain") if "distillation_loss" in each]
    assert 0 < told[0] < plain[0]
    with pytest.raises(UsageError, match=r"--domain_column=absent: 12 of 12 training examples have no such column"):
        run(of_domains, domain_column="absent", output_dir=tmp_path / "other")


@pytest.mark.slow
def test_seeds_share_the_teacher_and_jax_distils_too(arguments, tmp_path):
    call_on_jax(tmp_path, [("run_classifier", {**arguments, "backend": "jax", "seeds": "1,2", "num_train_steps": 1})])
    for seed in (1, 2):
        assert any(record.get("distillation_loss", 0) > 0 for record in records(tmp_path / f"out/seed_{seed}"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": "absent"}, r"--teacher=absent: no such folder"),
        ({"distillation_weight": 0}, r"--distillation_weight=0: nothing is learnt"),
        (
            {"cached_teacher": "true", "hidden_distillation_weight": 1},
            r"--cached_teacher keeps what the teacher decides",
        ),
        ({"layer_map": "9:1", "hidden_distillation_weight": 1}, r"--layer_map=9:1: the student has the layers 0 to 2"),
        (
            {"layer_map": "0:0", "attention_distillation_weight": 1},
            r"--layer_map=0:0: the embeddings have no attention",
        ),
        ({"domain_column": "source"}, r"--domain_column=source: how typical a text is .* give --init_checkpoint"),
        ({"do_train": "false"}, r"--teacher=.* does nothing without --do_train"),
        ({"max_seq_length": 32}, r"positions for|has positions for 16 tokens"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(arguments, change, message):
    with pytest.raises(UsageError, match=message) as error:
        run(arguments, **change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (TEACHER, {"labels": ("bad", "good")}, r"knows the labels bad, good; those of chnsenticorp are 0, 1"),
        (TEACHER, REGRESSION, r"was trained for regression, chnsenticorp is classification"),
        (dataclasses.replace(TEACHER, vocab_size=16), {}, r"has a vocabulary of 16 tokens, the student's has 15"),
        (dataclasses.replace(TEACHER, max_position_embeddings=6), {}, r"has positions for 6 tokens"),
    ],
    ids=["labels", "kind", "vocabulary", "positions"],
)
def test_a_teacher_of_something_else_is_one_line(arguments, tmp_path, config, changes, message):
    shutil.rmtree(tmp_path / "teacher")
    write_teacher(tmp_path / "teacher", config, **changes)
    with pytest.raises(UsageError, match=message) as error:
        run(arguments)
    assert str(error.value).startswith("--teacher=")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_another_casing_or_without_a_head_is_one_line(arguments, tmp_path):
    from conversion.readers import read_checkpoint

    (tmp_path / "teacher/best").replace(tmp_path / "bare")
    content = RunFile.read(tmp_path / "teacher")
    (tmp_path / "bare/run.json").unlink(missing_ok=True)
    tensors = {n: np.asarray(x) for n, x in read_checkpoint(tmp_path / "bare").tensors.items() if "classifier" not in n}
    write_ours(tmp_path / "headless", TEACHER, tensors, [tmp_path / "vocab.txt"])
    with pytest.raises(UsageError, match=r"is no model of a classification task with 2 labels: fine-tune it"):
        run(arguments, teacher=tmp_path / "headless")
    other = dataclasses.replace(content, tokenizer=TokenizerFile(file="vocab.txt", fingerprint="0" * 64))
    (tmp_path / "bare").replace(tmp_path / "teacher/best")
    other.write(tmp_path / "teacher")
    with pytest.raises(UsageError, match=r"reads another vocabulary or casing"):
        run(arguments)
