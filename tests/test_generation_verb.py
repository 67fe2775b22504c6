"""run_generation.py from files to texts, on a toy language in which the target is the first word of the source."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError

import run_classifier
import run_generation
import serving
from commands import seeds
from commands.fine_tuning import Finished
from commands.flags import parse
from modeling import Config

WORDS = "abcdefghij"
CONFIG = Config(
    family="palm",
    vocab_size=15,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    hidden_act="gelu_erf",
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    max_position_embeddings=16,
    type_vocab_size=3,
    initializer_range=0.1,
    ln_type="preln",
    final_layer_norm=True,
    num_decoder_layers=1,
    copy="attention",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    (folder / "config.json").write_text(CONFIG.to_json())
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    generator = np.random.default_rng(1)
    for split, count in (("train", 300), ("dev", 12), ("test", 5)):
        rows = [" ".join(generator.choice(list(WORDS), 5)) for _ in range(count)]
        (folder / f"{split}.tsv").write_text("".join(f"{row}\t{row[0]}\n" for row in rows))
    return folder


def options(world: Path, **flags: Any) -> run_generation.Options:
    usual: dict[str, Any] = {
        "task_name": "text_to_text",
        "data_dir": world,
        "bert_config_file": world / "config.json",
        "vocab_file": world / "vocab.txt",
        "output_dir": world / "out",
        "max_seq_length": 8,
        "max_target_length": 4,
        "num_beams": 2,
    }
    return parse(run_generation.Options, [f"--{name}={value}" for name, value in {**usual, **flags}.items()])


@pytest.fixture(scope="module")
def trained(world: Path) -> Path:
    flags = {"do_train": True, "do_eval": True, "do_predict": True, "num_train_epochs": 14, "learning_rate": 1e-2}
    run_generation.main(options(world, **flags, train_batch_size=25, label_smoothing=0.0, save_checkpoints_steps=84))
    return world / "out"


@pytest.mark.slow
def test_a_loaded_model_writes_what_the_verb_wrote(trained: Path):
    """With the run's own settings, which its `config.json` keeps."""
    wanted = [json.loads(line) for line in (trained / "test_predictions.jsonl").read_text().splitlines()]
    loaded = serving.load(trained)
    found = loaded.predict([each["source"] for each in wanted])
    assert [each["generated"] for each in found] == [each["generated"] for each in wanted]
    assert [each["score"] for each in found] == pytest.approx([each["score"] for each in wanted], abs=2e-6)
    greedy = serving.load(trained, preset="greedy", num_beams=1, num_return_sequences=1)
    assert len(greedy.predict(wanted[0]["source"])) == 2


@pytest.mark.slow
def test_the_toy_language_is_learnt_and_written(trained: Path):
    scores = json.loads((trained / "eval_results.json").read_text())
    assert scores["rouge_l"] > 0.8
    assert scores["perplexity"] < 2
    lines = [json.loads(line) for line in (trained / "test_predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    assert all(line["source"].startswith(line["target"]) for line in lines)
    assert np.mean([line["generated"] == line["target"] for line in lines]) > 0.5
    assert json.loads((trained / "run.json").read_text())["kind"] == "generation"


@pytest.mark.slow
def test_lines_of_standard_input_are_answered_in_turn(
    world: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert trained.exists()
    monkeypatch.setattr(sys, "stdin", io.StringIO("a b c d e\n\t\nf g h i j\n"))
    run_generation.main(options(world, do_interactive=True))
    seen = capsys.readouterr()
    assert seen.out.splitlines()[-2:] == ["a", "f"]
    assert seen.err.count("expected a text") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "nothing to do: give at least one of --do_train, --do_eval, --do_predict, --do_interactive"),
        (
            {"do_train": True, "task_name": "lcqmc"},
            r"--task_name=lcqmc is a row of classification: run run_classifier\.py",
        ),
        (
            {"do_train": True, "num_beams": 1, "num_return_sequences": 3},
            "--preset=palm .*num_return_sequences 3 is above",
        ),
        ({"do_train": True, "top_k": 5}, "top_k is 5, which does nothing without do_sample"),
        ({"do_train": True, "max_target_length": 40}, "--max_target_length=40 but .* has positions for 16"),
        (
            {"do_train": True, "max_seq_length": 5, "long_sources": "refuse"},
            "300 sources of train have more than --max_seq_length=5 tokens; raise it, or cut them",
        ),
        ({"do_interactive": True, "seeds": "1,2"}, "answers with one model, --seeds trains several"),
        ({"do_train": True, "preset": "plum"}, "plum"),
    ],
)
def test_a_mistake_is_one_line(world: Path, flags: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(UsageError, match=message):
        run_generation.main(options(world, output_dir=tmp_path / "new", **flags))
    assert not (tmp_path / "new").exists()


def test_a_model_without_a_decoder_and_a_row_of_generation_are_sent_where_they_belong(world: Path, tmp_path: Path):
    encoder = tmp_path / "encoder.json"
    encoder.write_text(json.dumps(json.loads(CONFIG.to_json()) | {"num_decoder_layers": 0, "copy": "none"}))
    with pytest.raises(UsageError, match=r"encoder\.json has no decoder; use a config with num_decoder_layers"):
        run_generation.main(options(world, do_train=True, bert_config_file=encoder, output_dir=tmp_path / "new"))
    given = {"task_name": "dureader_qg", "data_dir": world, "bert_config_file": encoder, "output_dir": tmp_path / "c"}
    words = [f"--{name}={value}" for name, value in given.items()]
    with pytest.raises(UsageError, match=r"--task_name=dureader_qg is a row of generation: run run_generation\.py"):
        run_classifier.main(parse(run_classifier.Options, [*words, "--do_eval", f"--vocab_file={world / 'vocab.txt'}"]))


def test_every_seed_has_a_course_of_its_own(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A course keeps the search of one model, compiled: with another's all seeds would write the same texts."""
    seen: list[tuple[int, int, run_generation.Generation]] = []

    def fine_tune(session: Any, own: Any, row: Any, files: Any, course: run_generation.Generation) -> Finished:
        seen.append((own.seed, course._preset.settings.seed, course))
        return Finished({"dev": {"rouge_l": 0.5}})

    monkeypatch.setattr(seeds, "fine_tune", fine_tune)
    run_generation.main(options(world, do_train=True, do_sample=True, num_beams=1, seeds="4,2", output_dir=tmp_path))
    assert [(seed, of_search) for seed, of_search, _ in seen] == [(4, 4), (2, 2)]
    assert len({id(course) for _, _, course in seen}) == 2
