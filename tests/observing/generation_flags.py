"""The flags of run_generation.py beside those of every fine-tuning verb, which the table of run_classifier.py has."""

from __future__ import annotations

import pytest
from observing.recorders import content, replaced
from observing.rows import DIFFERENT, Notes, Row, Verb

import run_generation

SETTINGS = "generator/settings"
SAMPLING = {"preset": "plug"}
GENERATED = {"generator": DIFFERENT}

ROWS = (
    Row("max_target_length", "8", {"training": DIFFERENT, "predicted": DIFFERENT, f"{SETTINGS}/max_new_tokens": 8}),
    Row(
        "long_sources",
        "refuse",
        {"error": DIFFERENT, **dict.fromkeys(("task", "engine", "plan", "training", "optimizer"), DIFFERENT)}
        | dict.fromkeys(("predicted", "generator", "generated", "files"), DIFFERENT),
        {"max_seq_length": "16"},
    ),
    Row("label_smoothing", "0.25", {"task/label_smoothing": 0.25, "task/_loss/label_smoothing": 0.25}),
    Row("preset", "plug_fine_tuned", {f"{SETTINGS}/rule": "palm", **GENERATED}),
    Row("preset", "plug", {"generator/chunks/chunk_tokens": 128, **GENERATED}),
    Row("num_beams", "2", {f"{SETTINGS}/num_beams": 2}),
    Row("num_return_sequences", "3", {f"{SETTINGS}/num_return_sequences": 3}),
    Row("min_new_tokens", "7", {f"{SETTINGS}/min_new_tokens": 7}),
    Row("length_penalty", "0.5", {f"{SETTINGS}/length_penalty": 0.5}),
    Row("early_stopping", "never", {f"{SETTINGS}/early_stopping": "never"}),
    Row("no_repeat_ngram_size", "3", {f"{SETTINGS}/no_repeat_ngram_size": 3}),
    Row("repetition_penalty", "1.5", {f"{SETTINGS}/repetition_penalty": 1.5}),
    Row("do_sample", "true", {f"{SETTINGS}/do_sample": True}, {"num_beams": "1"}),
    Row("temperature", "0.5", {f"{SETTINGS}/temperature": 0.5}, SAMPLING),
    Row("top_k", "5", {f"{SETTINGS}/top_k": 5}, SAMPLING),
    Row("top_p", "0.5", {f"{SETTINGS}/top_p": 0.5}, SAMPLING),
    Row("finishing_rule", "gnmt", {f"{SETTINGS}/rule": "gnmt"}),
    Row("do_interactive", "true", {"answered": DIFFERENT}),
)
BASE = {
    "task_name": "dureader_qg",
    "data_dir": "{world}/questions",
    "output_dir": "out",
    "bert_config_file": "{world}/palm.json",
    "vocab_file": "{world}/vocab.txt",
    "max_seq_length": "40",
    "max_target_length": "32",
    "do_train": "true",
    "do_eval": "true",
    "train_batch_size": "8",
}


def _replaced(patch: pytest.MonkeyPatch, notes: Notes, machine: str) -> None:
    replaced(patch, notes, machine)
    patch.setattr(run_generation, "answer_lines", lambda *given: notes.add("answered", "standard input"))


VERB = Verb(run_generation, BASE, ROWS, _replaced, content)
