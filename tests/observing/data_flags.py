"""The flags of create_pretraining_data.py, inspect_records.py and train_tokenizer.py, on a text of a page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from observing.plain import digest
from observing.rows import ABSENT, DIFFERENT, Notes, Row, Verb, stand_in
from observing.world import PARALLEL

import create_pretraining_data
import data.writing.local
import inspect_records
import train_tokenizer

RECORDS, COUNTS, RECIPE = "files/zh.tfrecord", "files/zh.manifest.json/counts", "files/zh.manifest.json/recipe"
BOTH = {RECORDS: DIFFERENT, COUNTS: DIFFERENT}
SHUFFLED = {"objective": "structbert"}
CUT, TARGETS = f"{RECIPE}/continuation", {"objective": "palm"}


def makes(place: str, value: Any, *, counts: bool = True) -> Mapping[str, Any]:
    """Return what changes where a flag is a value of the recipe: the records and, with `counts`, what is counted."""
    return {f"{RECIPE}/{place}": value, RECORDS: DIFFERENT} | ({COUNTS: DIFFERENT} if counts else {})


def content(path: Path) -> Any:
    """Return counts and recipe of a manifest, whose other fields repeat flags, and the digest of all else."""
    if not path.name.endswith(".manifest.json"):
        return digest(path.read_bytes())
    return {name: value for name, value in json.loads(path.read_bytes()).items() if name in ("counts", "recipe")}


def one_worker(patch: pytest.MonkeyPatch, notes: Notes, machine: str) -> None:
    """Note the number of workers and take one, which needs no process; note what Beam is given and leave it at that."""
    create_examples = data.writing.local.create_examples

    def recorded(*arguments: Any, num_workers: int, **further: Any) -> Any:
        notes.add("workers", num_workers)
        return create_examples(*arguments, num_workers=1, **further)

    def with_beam(inputs: Any, files: Any, recipe: Any, tokenizer: Any, *, flags: Any, **further: Any) -> None:
        notes.add("beam", {"files": files, "recipe": recipe, "tokenizer": tokenizer, **further})

    patch.setattr(data.writing.local, "create_examples", recorded)
    stand_in(patch, "data.writing.beam", create_examples_with_beam=with_beam)


PIECES = {"vocab_file": "{world}/pieces.txt", "spm_model_file": "{world}/pieces.model"}
CREATE_ROWS = (
    Row("input_file", "{world}/other.txt", BOTH),
    Row("output_file", "a.tfrecord,b.tfrecord", {"files": DIFFERENT}),
    Row("vocab_file", "{world}/reversed.txt", {RECORDS: DIFFERENT}),
    Row("spm_model_file", "{world}/spiece.model", BOTH),
    Row("segmentation", "ernie_repo", BOTH, PIECES),
    Row("do_lower_case", "false", BOTH),
    Row("objective", "bert", makes("objective", "bert")),
    Row("trigram_rate", "0.2", {**makes("word_order", DIFFERENT), f"{RECIPE}/word_order/rate": 0.2}),
    Row("trigram_tokens", "4", makes("word_order/tokens", 4), SHUFFLED),
    Row("trigram_windows", "any", makes("word_order/windows", "any"), SHUFFLED),
    Row("trigram_overlap", "true", makes("word_order/overlap", True), SHUFFLED),
    Row("trigram_identity", "false", makes("word_order/identity", False, counts=False), SHUFFLED),
    Row("trigram_labels", "changed", makes("word_order/labels", "changed"), SHUFFLED),
    Row("preset", "released", makes("word_order", DIFFERENT), SHUFFLED),
    Row("fragment_length", "30", makes("continuation", DIFFERENT), TARGETS),
    Row("source_fraction", "0.6", {**makes("continuation", DIFFERENT), f"{CUT}/source_fraction": 0.6}, TARGETS),
    Row("fragment_stride", "0", makes("continuation/stride", 0), TARGETS),
    Row("source_length_range", "8,30", {**makes("continuation", DIFFERENT), f"{CUT}/source_lengths": (8, 30)}, TARGETS),
    Row("target_length_range", "8,30", {**makes("continuation", DIFFERENT), f"{CUT}/target_lengths": (8, 30)}, TARGETS),
    Row("max_target_length", "6", {**makes("continuation", DIFFERENT), f"{CUT}/max_target_length": 6}, TARGETS),
    Row("random_next_sentence", "true", makes("objective", "bert")),
    Row("do_whole_word_mask", "true", makes("whole_word", True)),
    Row("segmenter", "none", makes("segmenter", "none"), {"do_whole_word_mask": "true"}),
    Row("non_chinese", "true", makes("segmenter", "none"), {"do_whole_word_mask": "true"}),
    Row("ngram", "3", makes("masking/ngram", 3, counts=False)),
    Row("favor_shorter_ngram", "false", makes("masking/favor_shorter_ngram", False, counts=False), {"ngram": "3"}),
    Row("do_permutation", "true", makes("masking/permute", True)),
    Row("masking", "dynamic", makes("dynamic", True)),
    Row("max_seq_length", "32", makes("max_seq_length", 32)),
    Row("max_predictions_per_seq", "3", makes("masking/max_predictions", 3)),
    Row("masked_lm_prob", "0.1", makes("masking/rate", 0.1)),
    Row("short_seq_prob", "0.9", makes("short_seq_prob", 0.9)),
    Row("dupe_factor", "3", makes("dupe_factor", 3)),
    Row("random_seed", "7", makes("seed", 7)),
    Row("pack_sequences", "true", makes("form", "packed"), {"objective": "masked_lm", "short_seq_prob": "0.9"}),
    Row("albert_zh_labels", "true", makes("albert_zh_labels", True, counts=False), {"do_whole_word_mask": "true"}),
    Row(
        "long_pairs",
        "drop",
        makes("long_pairs", "drop"),
        {"input_file": PARALLEL, "objective": "veco", "max_seq_length": "32"},
    ),
    Row("input_file_mode", "rb", {}, reason="Google's command lines give it; text is read by --encoding either way"),
    Row("text_field", "title", makes("text_field", "title"), {"input_file": "{world}/text.jsonl"}),
    Row("encoding", "gb18030", BOTH, {"input_file": "{world}/text.gb18030.txt", "accept_bad_text": "true"}),
    Row("accept_bad_text", "true", {"error": ABSENT, "files": DIFFERENT}, {"input_file": "{world}/text.gb18030.txt"}),
    Row("eval_fraction", "0.3", {**makes("held_out_fraction", 0.3), "workers": 1, "files/zh.held_out": DIFFERENT}),
    Row("num_workers", "3", {"workers": 3}),
    Row("num_shards", "2", {"files": DIFFERENT, "files/zh-00000-of-00002.tfrecord": DIFFERENT}),
    Row("shard_size", "20", {"files": DIFFERENT}),
    Row(
        "runner", "DirectRunner", {"beam": DIFFERENT, "beam/runner": "DirectRunner", "files": ABSENT, "workers": ABSENT}
    ),
    Row("beam_options", "--a=b", {"beam/beam_options": ("--a=b",)}, {"runner": "DirectRunner"}),
)
CREATE = Verb(
    create_pretraining_data,
    {
        "input_file": "{world}/text.txt",
        "output_file": "zh.tfrecord",
        "vocab_file": "{world}/vocab.txt",
        "max_seq_length": "40",
        "max_predictions_per_seq": "6",
        "dupe_factor": "2",
        "num_workers": "1",
    },
    CREATE_ROWS,
    one_worker,
    content,
)


def nothing(patch: pytest.MonkeyPatch, notes: Notes, machine: str) -> None:
    """Replace nothing."""


INSPECT = Verb(
    inspect_records,
    {"action": "show", "input_file": "{world}/records/zh.tfrecord"},
    (
        Row("action", "verify", {"printed": DIFFERENT}),
        Row("input_file", "{world}/other/zh.tfrecord", {"printed": DIFFERENT}),
        Row("vocab_file", "{world}/reversed.txt", {"printed": DIFFERENT}),
        Row("spm_model_file", "{world}/spiece.model", {"printed": DIFFERENT}),
        Row("limit", "1", {"printed": DIFFERENT}),
        Row("skip", "1", {"printed": DIFFERENT}),
    ),
    nothing,
    content,
    prints=True,
)
WRITTEN = {"files/vocab": DIFFERENT, "printed": DIFFERENT}
SENTENCEPIECE = {"model_type": "unigram", "vocab_size": "900"}
TRAIN = Verb(
    train_tokenizer,
    {"input_file": "{world}/text.txt", "output_file": "vocab", "vocab_size": "1300", "common_characters": "false"},
    (
        Row("input_file", "{world}/other.txt", WRITTEN),
        Row("output_file", "elsewhere", {"files": DIFFERENT, "printed": re.compile("elsewhere")}),
        Row("model_type", "bpe", {"files/vocab": DIFFERENT}, SENTENCEPIECE),
        Row("model_type", "unigram", WRITTEN, {"vocab_size": "1030"}),
        Row("vocab_size", "1400", WRITTEN),
        Row("do_lower_case", "false", WRITTEN),
        Row("character_coverage", "0.8", WRITTEN),
        Row("character_coverage", "0.98", WRITTEN, SENTENCEPIECE),
        Row("common_characters", "true", WRITTEN, {"vocab_size": "30000"}),
        Row("min_frequency", "1", WRITTEN),
        Row("layout", "xlmr", WRITTEN, SENTENCEPIECE),
        Row("max_sentences", "110", WRITTEN, SENTENCEPIECE),
        Row(
            "language_alpha",
            "0",
            WRITTEN,
            {"model_type": "unigram", "vocab_size": "1400", "input_file": f"zh={{world}}/text.txt,en-zh={PARALLEL}"},
        ),
        Row("text_field", "title", WRITTEN, {"input_file": "{world}/text.jsonl"}),
        Row("encoding", "gb18030", WRITTEN, {"input_file": "{world}/text.gb18030.txt", "accept_bad_text": "true"}),
        Row("accept_bad_text", "true", {"error": ABSENT, **WRITTEN}, {"input_file": "{world}/text.gb18030.txt"}),
    ),
    nothing,
    content,
    prints=True,
)
