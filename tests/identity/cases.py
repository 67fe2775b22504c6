"""Commands whose results are recorded: verbs and flags, on the sample text and on the records in before/, all tiny."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BEFORE = HERE / "before"
EXPECTED = HERE / "expected.json"
VOCABULARY = ROOT / "albert_config/vocab.txt"
CHINESE = ROOT / "data/samples/zh/nature.txt"
ENGLISH = ROOT / "data/samples/en/nature.txt"
# By name: the sample has grown since the records in before/ were made.
_THEMES = ("arts", "daily_life", "history", "nature", "science", "society", "stories", "technology")
ALL_CHINESE = ",".join(str(ROOT / f"data/samples/zh/{theme}.txt") for theme in _THEMES)

Flags = Mapping[str, object]

OBJECTIVES = ("albert", "bert", "masked_lm", "structbert", "structbert_2way", "structbert_5way")

# -- tokenizers: one file each, learnt from the sample text ------------------------------------------------------------

TOKENIZERS: dict[str, Flags] = {
    "wordpiece": {"vocab_size": 1200, "common_characters": False, "min_frequency": 1},
    "unigram": {"model_type": "unigram", "vocab_size": 900},
    "bpe": {"model_type": "bpe", "vocab_size": 1100},
    "xlmr": {"model_type": "unigram", "vocab_size": 1000, "layout": "xlmr", "do_lower_case": False},
}
"""Flags of train_tokenizer.py, without the files."""

# -- shards ------------------------------------------------------------------------------------------------------------

_USUAL: Flags = {
    "input_file": CHINESE,
    "max_seq_length": 64,
    "max_predictions_per_seq": 10,
    "dupe_factor": 1,
    "num_workers": 1,
    "do_whole_word_mask": True,
    # So many that among few examples there are some.
    "short_seq_prob": 0.3,
}
_LONG: Flags = {"input_file": ALL_CHINESE, "max_seq_length": 1 << 16, "masking": "dynamic", "dupe_factor": 8}
_PACKED: Flags = {"objective": "masked_lm", "pack_sequences": True}
WITH_INSIDES = "a vocabulary with ##X for every character X"
_VARIATIONS: dict[str, Flags] = {
    "tokens not words": {"do_whole_word_mask": False},
    "ngram": {"ngram": 3},
    "ngram, longer ones": {"ngram": 3, "favor_shorter_ngram": False},
    "permutation": {"do_permutation": True},
    "permutation of ngrams": {"do_permutation": True, "ngram": 3},
    "albert_zh labels": {"albert_zh_labels": True, "vocab_file": WITH_INSIDES},
    "non_chinese": {"non_chinese": True, "input_file": f"{ENGLISH},{CHINESE}"},
    "nothing hidden": {"masked_lm_prob": 0},
    "more hidden": {"masked_lm_prob": 0.3, "max_predictions_per_seq": 20},
    "all short": {"short_seq_prob": 1},
    "none short": {"short_seq_prob": 0},
    "random_next_sentence": {"random_next_sentence": True},
    "another seed": {"random_seed": 7},
    "passes": {"dupe_factor": 2},
    "held out": {"eval_fraction": 0.3},
    "held out, dynamic": {"eval_fraction": 0.3, "masking": "dynamic"},
    "English": {"input_file": ENGLISH},
    "cased English": {"input_file": ENGLISH, "do_lower_case": False},
    "several files": {"input_file": f"{ENGLISH},{ALL_CHINESE}"},
    "three processes": {"input_file": ALL_CHINESE, "num_workers": 3},
    "num_shards": {"input_file": ALL_CHINESE, "num_shards": 3},
    "num_shards, three processes": {"input_file": ALL_CHINESE, "num_shards": 3, "num_workers": 3},
    "shard_size": {"input_file": ALL_CHINESE, "shard_size": 100},
    # A shard of more than 8 Mi tokens, padding counted, is written in parts, which several processes share. Compact
    # examples are not padded on disk: a great length costs nothing.
    "parts": {**_LONG, "num_shards": 2},
    "parts, three processes": {**_LONG, "num_shards": 2, "num_workers": 3},
    "packed": _PACKED,
    "packed, dynamic": {**_PACKED, "masking": "dynamic"},
    "packed with word order": {**_PACKED, "trigram_rate": 0.1},
    "trigrams with albert": {"trigram_rate": 0.1},
    "trigrams with bert": {"objective": "bert", "trigram_rate": 0.2, "trigram_tokens": 4},
    "trigrams of ngrams": {"objective": "structbert", "ngram": 3},
    "trigrams, overlapping": {"objective": "structbert", "trigram_overlap": True, "trigram_rate": 0.2},
    "trigrams, all moved": {"objective": "structbert", "trigram_identity": False, "trigram_labels": "changed"},
    "released": {"objective": "structbert", "preset": "released"},
    "released, 5 ways": {"objective": "structbert_5way", "preset": "released"},
}

SHARDS: dict[str, Flags] = {
    "defaults": {"input_file": CHINESE},
    **{
        f"{objective}, {masking}": {**_USUAL, "objective": objective, "masking": masking}
        for objective in OBJECTIVES
        for masking in ("static", "dynamic")
    },
    **{name: {**_USUAL, **flags} for name, flags in _VARIATIONS.items()},
}
"""Flags of create_pretraining_data.py, without the output and, in most, the vocabulary."""

SENTENCEPIECE: dict[str, tuple[str, Flags]] = {
    "unigram": ("unigram", _USUAL),
    "unigram, dynamic structbert": ("unigram", {**_USUAL, "objective": "structbert", "masking": "dynamic"}),
    "unigram, English": ("unigram", {**_USUAL, "input_file": ENGLISH}),
    "bpe": ("bpe", _USUAL),
    # Recorded anew when XLM-R's own template, <s> A </s></s> B </s>, took the place of BERT's.
    "xlmr": ("xlmr", {**_USUAL, "do_lower_case": False}),
}
"""Likewise, with the row of `TOKENIZERS` that they are made with."""

# -- what before/ holds ------------------------------------------------------------------------------------------------

SEED = 3
BATCH_SIZE = 8
DOCUMENTS = 3
"""Of `CHINESE`, in before/text.txt."""
# Paths are relative to before/, so that no machine's paths are in manifests and config.json.
_FROM_BEFORE: Flags = {
    **_USUAL,
    "input_file": "text.txt",
    "vocab_file": "vocab.txt",
    "max_seq_length": 32,
    "max_predictions_per_seq": 5,
    "random_seed": SEED,
}
VOCABULARY_BEFORE: Flags = {
    "input_file": "text.txt,pairs/train.txt",
    "output_file": "vocab.txt",
    "vocab_size": 540,
    "common_characters": False,
    "character_coverage": 0.9,
}
RECORDS: dict[str, Flags] = {
    **{objective: {**_FROM_BEFORE, "objective": objective} for objective in OBJECTIVES},
    "albert": {**_FROM_BEFORE, "num_shards": 2, "eval_fraction": 0.3},
    "albert_dynamic": {**_FROM_BEFORE, "masking": "dynamic"},
    "structbert_dynamic": {**_FROM_BEFORE, "objective": "structbert", "masking": "dynamic"},
    "structbert_released": {**_FROM_BEFORE, "objective": "structbert", "preset": "released"},
    "packed": {**_FROM_BEFORE, **_PACKED},
    "packed_dynamic": {**_FROM_BEFORE, **_PACKED, "masking": "dynamic"},
}
"""Flags of create_pretraining_data.py for before/records/NAME*.tfrecord."""

PAIRS = {"train": 24, "dev": 9, "test": 7}
"""Lines of data/samples/pairs that before/pairs has."""

_TINY: Flags = {
    "vocab_size": 540,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "initializer_range": 0.2,
}
_ALBERT: Flags = {**_TINY, "family": "albert", "embedding_size": 4, "sharing": "all"}
CONFIGS: dict[str, Flags] = {
    "albert": _ALBERT,
    "bert": {**_TINY, "family": "bert"},
    "shallow": {**_TINY, "family": "bert", "num_hidden_layers": 1},
    "albert_zh": {**_ALBERT, "family": "albert_zh"},
    "albert_zh_preln": {**_ALBERT, "family": "albert_zh", "ln_type": "preln", "sharing": "ffn"},
    "albert_fast": {**_ALBERT, "sharing": "none", "ffn_groups": 4, "num_hidden_groups": 2, "inner_group_num": 1},
    "roberta": {**_TINY, "family": "bert", "hidden_act": "gelu_erf", "position_offset": 2, "type_vocab_size": 0},
}
"""Model shapes of before/configs/NAME.json, of every family."""

RUNS: dict[str, tuple[str, Flags]] = {
    "pretraining": (
        "run_pretraining",
        {
            "input_file": "records/albert-*.tfrecord,records/albert.held_out.tfrecord",
            "output_dir": "pretraining",
            "bert_config_file": "configs/albert.json",
            "do_train": True,
            "do_eval": True,
            "train_batch_size": BATCH_SIZE,
            "num_train_steps": 4,
            "num_warmup_steps": 1,
            "save_checkpoints_steps": 2,
            "log_steps": 1,
            "learning_rate": 0.01,
            "seed": SEED,
        },
    ),
    "classifier": (
        "run_classifier",
        {
            "task_name": "lcqmc_pair",
            "data_dir": "pairs",
            "output_dir": "classifier",
            "bert_config_file": "configs/albert.json",
            "vocab_file": "vocab.txt",
            "init_checkpoint": "pretraining",
            "max_seq_length": 16,
            "do_train": True,
            "do_eval": True,
            "do_predict": True,
            "train_batch_size": BATCH_SIZE,
            "num_train_steps": 4,
            "save_checkpoints_steps": 2,
            "log_steps": 1,
            "learning_rate": 0.01,
            "ema_decay": 0.5,
            "seed": SEED,
        },
    ),
}
"""Runs that stopped in before/NAME after two steps of four; the second begins with the weights of the first."""
INTERRUPTED_STEP = 2
CONTINUED = ("classifier",)
"""Runs whose numbers newer code changes on purpose: how each goes on is recorded with newer code."""

# -- losses ------------------------------------------------------------------------------------------------------------

NUM_STEPS = 3


@dataclass(frozen=True)
class LossCase:
    """A run from nothing whose every step is compared."""

    verb: str
    flags: Flags
    tested: tuple[str, ...] = ()
    """Backends on which test_identity.py takes the steps too; on all others compare.py alone does."""
    backends: tuple[str, ...] = ("tensorflow", "jax")
    devices: int = 1
    """Virtual ones, of JAX."""


def pretraining(records: str = "albert", config: str = "albert", objective: str = "", **flags: object) -> Flags:
    """Return the flags of run_pretraining.py on before/records/RECORDS*.tfrecord, but for the output."""
    return {
        "input_file": BEFORE / f"records/{records}.tfrecord" if records != "albert" else ALBERT_SHARDS,
        "bert_config_file": BEFORE / f"configs/{config}.json",
        "objective": objective or records,
        "do_train": True,
        "train_batch_size": BATCH_SIZE,
        "num_train_steps": NUM_STEPS,
        "num_warmup_steps": 0,
        "save_checkpoints_steps": NUM_STEPS,
        "log_steps": 1,
        "learning_rate": 0.01,
        "seed": SEED,
        **flags,
    }


def fine_tuning(config: str = "bert", **flags: object) -> Flags:
    """Return the flags of run_classifier.py on before/pairs, but for the output."""
    return {
        "task_name": "lcqmc_pair",
        "data_dir": BEFORE / "pairs",
        "bert_config_file": BEFORE / f"configs/{config}.json",
        "vocab_file": BEFORE / "vocab.txt",
        "max_seq_length": 40,
        "do_train": True,
        "train_batch_size": BATCH_SIZE,
        "num_train_steps": NUM_STEPS,
        "save_checkpoints_steps": NUM_STEPS,
        "log_steps": 1,
        "learning_rate": 0.01,
        "seed": SEED,
        **flags,
    }


ALBERT_SHARDS = BEFORE / "records/albert-*.tfrecord"
_TECHNIQUES: dict[str, Any] = {
    "adversarial_weight": 1,
    "adversarial_sigma": 1e-3,
    "r_drop_weight": 2,
    "child_tuning_fraction": 0.3,
    "layer_decay": 0.8,
    "freeze_layers": 1,
    "freeze": "pooler/bias",
    "gradual_unfreezing": 0.9,
    "ema_decay": 0.5,
    "gradient_accumulation_steps": 2,
}
_ON_HELD_OUT: dict[str, Any] = {"do_eval": True, "eval_input_file": BEFORE / "records/albert.held_out.tfrecord"}
_ON_TRAINED: dict[str, Any] = {"do_eval": True, "eval_input_file": BEFORE / "records/structbert.tfrecord"}


BOTH = ("tensorflow", "jax")
ALONE: dict[str, tuple[int, dict[str, Any]]] = {
    "scan": (1, {"scan_layers": True, "remat": True}),
    "data parallel": (8, {}),
    "model parallel": (8, {"model_parallel": 2}),
    "FSDP": (8, {"model_parallel": 2, "fsdp": True, "remat": True}),
}
"""What only JAX can do: virtual devices, flags."""

PRETRAINING_ON_BOTH: dict[str, Flags] = {
    "albert": pretraining(),
    "bert": pretraining("bert", "shallow", optimizer="adamw"),
    "masked_lm": pretraining("masked_lm", "shallow", optimizer="adamw"),
    "structbert": pretraining("structbert", "shallow"),
    "structbert_2way": pretraining("structbert_2way", "shallow", optimizer="adamw"),
    "structbert_5way": pretraining("structbert_5way", "shallow", optimizer="adamw"),
}
PRETRAINING_ON_TENSORFLOW: dict[str, Flags] = {
    "albert, dynamic": pretraining("albert_dynamic", objective="albert"),
    "structbert, dynamic": pretraining("structbert_dynamic", "bert", "structbert"),
    "structbert, released": pretraining("structbert_released", "bert", "structbert", pooled_loss=True),
    "packed": pretraining("packed", "bert", "masked_lm"),
    "packed, dynamic": pretraining("packed_dynamic", "albert", "masked_lm"),
    "family albert_zh": pretraining(config="albert_zh"),
    "family albert_zh, preln": pretraining(config="albert_zh_preln"),
    "grouped feed-forward": pretraining(config="albert_fast"),
    "positions of RoBERTa": pretraining("masked_lm", "roberta"),
    "averaged and accumulated": pretraining(ema_decay=0.5, gradient_accumulation_steps=2, norm_steps=1),
    "weights of losses": pretraining(
        "structbert", "bert", masked_lm_loss_weight=0.5, word_order_loss_weight=2, sentence_loss_weight=3
    ),
    "from weights": pretraining(init_checkpoint=BEFORE / "pretraining", **_ON_HELD_OUT),
}
PRETRAINING_COMPARED: dict[str, Flags] = {
    "adamw": pretraining(optimizer="adamw", adam_bias_correction=True, clip_norm=0, weight_decay=0.1),
    "lamb_paper": pretraining(optimizer="lamb_paper"),
    "lamb_albert_zh": pretraining(optimizer="lamb_albert_zh"),
    "schedule": pretraining(poly_power=2, start_warmup_step=1, num_warmup_steps=2),
    "constant": pretraining(schedule="constant"),
    "skipped spikes": pretraining(on_spike="skip"),
    "structbert, two layers": pretraining("structbert", "bert"),
    "evaluated": pretraining(
        "structbert", "bert", do_eval=True, eval_input_file=BEFORE / "records/structbert.tfrecord"
    ),
    "from weights, new head": pretraining(init_checkpoint=BEFORE / "pretraining", init_sentence_head=False),
    "remat": pretraining("structbert", "bert", remat=True),
    "bfloat16": pretraining(precision="bfloat16"),
    "float16": pretraining("structbert", "bert", precision="float16"),
}
# Batches of one length, which is compiled once; without the limit they have several.
FINE_TUNING_ON_BOTH: dict[str, Flags] = {
    "techniques, child F": fine_tuning(child_tuning="F", max_seq_length=16, **_TECHNIQUES),
}
FINE_TUNING_ON_TENSORFLOW: dict[str, Flags] = {
    "from weights": fine_tuning("albert", init_checkpoint=BEFORE / "pretraining", do_eval=True, do_predict=True),
    "albert_zh, preln": fine_tuning("albert_zh_preln", optimizer="lamb"),
}
FINE_TUNING_COMPARED: dict[str, Flags] = {
    "techniques, child D": fine_tuning(child_tuning="D", do_eval=True, do_predict=True, **_TECHNIQUES),
    "techniques, child D as released": fine_tuning(child_tuning="D", child_tuning_fisher="released", **_TECHNIQUES),
    "from nothing": fine_tuning(do_eval=True, do_predict=True),
    "albert_zh": fine_tuning("albert_zh", classifier_dropout=0.3, warmup_proportion=0.7),
    "adversarial alone": fine_tuning("albert", adversarial_weight=1, adversarial_sigma=1e-3),
    "R-Drop alone": fine_tuning("albert", r_drop_weight=2),
}

LOSSES: dict[str, LossCase] = {
    f"{title}: {name}": LossCase(verb, flags, tested)
    for verb, title, tested, table in (
        ("run_pretraining", "pretraining", BOTH, PRETRAINING_ON_BOTH),
        ("run_classifier", "fine-tuning", BOTH, FINE_TUNING_ON_BOTH),
        ("run_pretraining", "pretraining", ("tensorflow",), PRETRAINING_ON_TENSORFLOW),
        ("run_classifier", "fine-tuning", ("tensorflow",), FINE_TUNING_ON_TENSORFLOW),
        ("run_pretraining", "pretraining", (), PRETRAINING_COMPARED),
        ("run_classifier", "fine-tuning", (), FINE_TUNING_COMPARED),
    )
    for name, flags in table.items()
}
LOSSES |= {
    f"pretraining: {name}": LossCase(
        "run_pretraining", pretraining("structbert", "bert", **flags), backends=("jax",), devices=devices
    )
    for name, (devices, flags) in ALONE.items()
}
