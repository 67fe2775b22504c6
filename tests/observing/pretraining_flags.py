"""The flags of run_pretraining.py that are its own."""

from __future__ import annotations

import re

import pytest
from observing import training_flags
from observing.recorders import content, replaced
from observing.rows import ABSENT, DIFFERENT, Row, Verb
from observing.training_flags import RUN_FILE

import run_pretraining

RESULTS = "files/out/eval_results"
BARE = {"input_file": "{world}/bare/zh.tfrecord", "eval_input_file": "{world}/bare/zh.held_out.tfrecord"}
SHUFFLED = {"input_file": "{world}/shuffled/*.tfrecord"}
TARGETS = {
    "objective": "palm",
    "input_file": "{world}/targets/*.tfrecord",
    "bert_config_file": "{world}/decodes.json",
}
SIDES = {"objective": "veco", "input_file": "{world}/sides/*.tfrecord", "bert_config_file": "{world}/sides.json"}
MIXED = {**TARGETS, "objective": "albert,palm", "input_file": "{world}/records/*.tfrecord,{world}/targets/*.tfrecord"}
ACROSS = {"objective": "camlm", "input_file": "{world}/halves/*.tfrecord", "bert_config_file": "{world}/across.json"}
PSEUDO = {"objective": "btmlm", "input_file": "{world}/pseudo/*.tfrecord", "bert_config_file": "{world}/across.json"}
ANYHOW = {**PSEUDO, "allow_any_start": "true"}
SAYING = {**ANYHOW, "input_file": "{world}/named/*.tfrecord", "language_signal": "true"}
_OF_VARIABLES = ("learning_rate_multiplier", "trust_ratio", "weight_decay")
PRETRAINED = {"init_checkpoint": "{world}/pretrained"}
EVALUATES = {"do_train": "false", **PRETRAINED}

ROWS = (
    *training_flags.ROWS,
    Row(
        "bert_config_file",
        "{world}/wide.json",
        {"task/config/hidden_size": 16, "plan/config/hidden_size": 16, "plan/flops_per_unit": DIFFERENT},
    ),
    Row("input_file", "{world}/other/*.tfrecord", {"training": DIFFERENT, "held out": DIFFERENT}),
    Row("eval_input_file", "{world}/other/zh.held_out.tfrecord", {"held out": DIFFERENT}),
    Row("objective", "bert", {"task": DIFFERENT, f"{RUN_FILE}/objective": "bert"}, BARE),
    Row("objective", "albert:2", {}, reason="one objective has all steps, whatever its share"),
    Row(
        "objective",
        "albert:0.25,palm:0.75",
        {
            "training": DIFFERENT,
            "plan/flops_per_unit": DIFFERENT,
            f"{RUN_FILE}/objectives/albert/share": 0.25,
            f"{RUN_FILE}/objectives/palm/share": 0.75,
        },
        MIXED,
    ),
    Row(
        "objective_weights",
        "palm:2",
        {"task/loss_weights/palm_masked_lm": 2.0, "task/loss_weights/palm_next_tokens": 2.0},
        MIXED,
    ),
    Row("masked_lm_loss_weight", "0.5", {"task/loss_weights/masked_lm": 0.5, "task/losses": 0.5}),
    Row("word_order_loss_weight", "0.5", {"task/loss_weights/word_order": 0.5, "task/losses": 0.5}, SHUFFLED),
    Row("sentence_loss_weight", "0.5", {"task/loss_weights/sentence_order": 0.5, "task/losses": 0.5}),
    Row(
        "crossed_loss_weight",
        "0.5",
        {
            "task/loss_weights/crossed": 0.5,
            "task/loss_weights/other_crossed": 0.5,
            "task/losses/0/weights/crossed": 0.5,
            "task/losses/0/weights/other_crossed": 0.5,
        },
        SIDES,
    ),
    Row("camlm_mask", "cross", {"task/losses/0/across/mask": "cross"}, {**ACROSS, "camlm_computation": "dense"}),
    Row(
        "camlm_computation",
        "dense",
        {"task/losses/0/across/computation": "dense", "plan/flops_per_unit": DIFFERENT},
        ACROSS,
    ),
    Row("camlm_positions", "restarted", {"task/losses/0/across/positions": "restarted"}, ACROSS),
    Row(
        "pseudo_length_ratio",
        "0.5",
        {"task/losses/0/pseudo/length_ratio": 0.5, "plan/flops_per_unit": DIFFERENT},
        ANYHOW,
    ),
    Row("pseudo_pick", "sample", {"task/losses/0/pseudo/pick": "sample"}, ANYHOW),
    Row("allow_any_start", "true", {"error": ABSENT}, PSEUDO),
    Row(
        "language_signal",
        "true",
        {
            **{f"optimizer/{each}/languages": DIFFERENT for each in _OF_VARIABLES},
            **dict.fromkeys(("task/losses/0", "training", "held out"), DIFFERENT),
        },
        {**ACROSS, "input_file": "{world}/named_halves/*.tfrecord"},
    ),
    Row(
        "cached_pseudo",
        "true",
        {"written once": "btmlm", "plan/flops_per_unit": DIFFERENT},
        {**ANYHOW, "init_checkpoint": "{world}/pretrained_across"},
    ),
    Row("pseudo_language", "en", {"training": DIFFERENT, "held out": DIFFERENT}, SAYING),
    Row("language_alpha", "0", {"training": DIFFERENT}, SIDES),
    Row("parallel_share", "0.9", {"training": DIFFERENT}, SIDES),
    Row(
        "next_tokens_loss_weight", "0.5", {"task/loss_weights/next_tokens": 0.5, "task/losses/1/weights": 0.5}, TARGETS
    ),
    Row("masked_lm_until", "0.5", {"task/loss_schedules/masked_lm": DIFFERENT}, TARGETS),
    Row("label_smoothing", "0.1", {"task/losses/1/label_smoothing": 0.1}, TARGETS),
    Row("pooled_loss", "true", {"task/losses": True}, SHUFFLED),
    Row("init_checkpoint", "{world}/pretrained", {"loaded": DIFFERENT}),
    Row("init_sentence_head", "false", {"loaded/sentence_pair": ABSENT}, PRETRAINED),
    Row("max_seq_length", "41", {"error": re.compile("--max_seq_length=41 but .* has max_seq_length=40")}),
    Row(
        "max_predictions_per_seq",
        "3",
        {"training": DIFFERENT, "held out": DIFFERENT, "plan/flops_per_unit": DIFFERENT},
        {"input_file": "{world}/dynamic/*.tfrecord"},
    ),
    Row(
        "do_train",
        "true",
        {
            "plan": DIFFERENT,
            "training": DIFFERENT,
            "optimizer": DIFFERENT,
            RESULTS: DIFFERENT,
            f"{RESULTS}.json/global_step": 20.0,
        },
        EVALUATES,
    ),
    Row(
        "do_eval",
        "true",
        {"held out": DIFFERENT, RESULTS: DIFFERENT, "plan/eval_every_steps": 1000, "plan/best_metric": "loss"},
        {"do_eval": "false"},
    ),
    Row(
        "dry_run",
        "true",
        {**dict.fromkeys(("plan", "training", "optimizer", "held out", "files"), DIFFERENT), "plan/num_steps": ABSENT},
    ),
    Row("train_batch_size", "4", {"training": DIFFERENT, "plan/count_units": 160}),
    Row("eval_batch_size", "4", {"held out": DIFFERENT}),
    Row(
        "optimizer",
        "lamb_paper",
        {"optimizer/rule/bias_correction": True, "optimizer/weight_decay": 0.01, "optimizer/trust_ratio": True},
    ),
    Row("optimizer", "adamw", {"optimizer/rule/is": "AdamW", "optimizer/trust_ratio": True}),
    Row("learning_rate", "1", {"optimizer/schedule": DIFFERENT, "optimizer/schedule/4": pytest.approx(0.8)}),
    Row("schedule", "constant", {"optimizer/schedule": pytest.approx(5e-5)}),
    Row("schedule", "linear", {"optimizer/schedule": DIFFERENT, "optimizer/schedule/4": pytest.approx(5e-5)}),
    Row("poly_power", "2", {"optimizer/schedule": DIFFERENT, "optimizer/schedule/10": pytest.approx(5e-5 / 4)}),
    Row(
        "num_train_steps",
        "40",
        {
            "plan/num_steps": 40,
            "optimizer/schedule": DIFFERENT,
            RESULTS: DIFFERENT,
            f"{RESULTS}.json/global_step": 40.0,
        },
    ),
    Row("num_warmup_steps", "8", {"optimizer/schedule": DIFFERENT, "optimizer/schedule/4": pytest.approx(2.5e-5)}),
    Row("start_warmup_step", "1", {"optimizer/schedule": DIFFERENT, "optimizer/schedule/2": pytest.approx(1.25e-5)}),
    Row("save_checkpoints_steps", "5", {"plan/save_every_steps": 5, "plan/eval_every_steps": 5}),
    Row("eval_steps", "3", {"plan/eval_every_steps": 3}),
    Row("max_eval_steps", "1", {"held out": DIFFERENT, "held out/1": ABSENT}, {"eval_batch_size": "2"}),
)
BASE = {
    "bert_config_file": "{world}/config.json",
    "input_file": "{world}/records/*.tfrecord",
    "output_dir": "out",
    "do_train": "true",
    "do_eval": "true",
    "train_batch_size": "8",
    "num_train_steps": "20",
    "num_warmup_steps": "4",
}
VERB = Verb(run_pretraining, BASE, ROWS, replaced, content)
