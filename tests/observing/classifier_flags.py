"""The flags of run_classifier.py that are its own, those of the techniques of fine-tuning among them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from observing import training_flags, world
from observing.recorders import content, replaced
from observing.rows import ABSENT, DIFFERENT, Row, Verb
from observing.training_flags import RUN_FILE

import run_classifier

PRETRAINED = {"init_checkpoint": "{world}/pretrained"}
FINISHED = {"init_checkpoint": "{world}/classifier"}
ENDED = {"output_dir": "{world}/ended", "do_train": "false"}
ADVERSARIAL = {"adversarial_weight": "1"}
# The results of development and test name the step of their weights.
STEP = {f"files/out/{name}": DIFFERENT for name in ("eval_results", "test_results", "dev_report", "test_report")}
SEEN = dict.fromkeys(("task", "engine", "plan", "training", "optimizer", "predicted", "files"), DIFFERENT)
TRAINED = ("plan", "training", "optimizer")
NAMES = sorted(world.tensors(world.CONFIG))
EMBEDDINGS = tuple(name for name in NAMES if "embeddings" in name)
LOWEST = tuple(name for name in NAMES if "embeddings" in name or "_0/" in name)
MULTIPLIER = "optimizer/learning_rate_multiplier"
ANSWERS = {"task_name": "squad", "data_dir": "{world}/answers", "max_seq_length": "24"}
ANSWERED = {"files": DIFFERENT}
CUT_OTHERWISE: dict[str, Any] = dict.fromkeys(
    ("plan", "training", "optimizer/schedule", "predicted", "files"), DIFFERENT
)
TAUGHT = {"teacher": "{world}/classifier"}
CHILD_F, CHILD_D = {"child_tuning": "F"}, {"child_tuning": "D"}

PIECES = {"vocab_file": "{world}/pieces.txt", "spm_model_file": "{world}/pieces.model"}
TABLE = {"task_name": "csv", "data_dir": "{world}/table"}
DOMAINS = {**TABLE, **PRETRAINED, "label_column": "label"}
OF_DOMAINS = {**DOMAINS, "domain_column": "class"}
TOLD = {"training": DIFFERENT, "predicted": DIFFERENT, "files": DIFFERENT}
MATCHES = {"task_name": "lcqmc_matching", "do_predict": "false"}
PARTNERS = {"task_name": "tatoeba", "data_dir": "{world}/translations", "do_predict": "false"}
FOUND = {f"files/out/{name}": DIFFERENT for name in ("eval_results", "dev_predictions", "dev_report")}
ASKED = {"task_name": "asked", "task_file": "{world}/tasks.toml"}
PET = {**ASKED, "method": "pet"}
PRUNED, CONTRASTED = {"pruning": "structured"}, {"pruning": "structured", **PRETRAINED}
LANGUAGES = {"task_name": "xnli", "data_dir": "{world}/languages", "task_type": "cross-lingual-transfer"}

ROWS = (
    *training_flags.ROWS,
    Row(
        "task_name",
        "mirrored",
        {"training": DIFFERENT, "predicted": DIFFERENT, "files": DIFFERENT},
        {"task_name": "lcqmc", "task_file": "{world}/tasks.toml"},
    ),
    Row("task_file", "{world}/tasks.toml", {"training": DIFFERENT, "predicted": DIFFERENT, "files": DIFFERENT}),
    Row(
        "encoding",
        "gb18030",
        {"error": ABSENT, "training": DIFFERENT, "predicted": DIFFERENT},
        {"data_dir": "{world}/gb18030_pairs"},
    ),
    Row(
        "test_data_path",
        "{world}/trial.jsonl",
        {f"files/out/test_{name}": DIFFERENT for name in ("results", "predictions", "report")}
        | {"predicted (2)": DIFFERENT},
    ),
    Row("do_export", "true", {"export": "out/export"}),
    Row("export_model_dir", "best_models", {"export": "best_models/export"}, {"do_export": "true"}),
    Row(
        "overwrite_output_dir",
        "true",
        {"error": ABSENT},
        {"output_dir": "{world}/another_run", "dry_run": "true"},
    ),
    Row("text_column", "other", TOLD, TABLE),
    Row("text_pair_column", "other", {**TOLD, f"{RUN_FILE}/row/columns": ("text_a", "label", "text_b")}, TABLE),
    Row("label_column", "class", {**TOLD, f"{RUN_FILE}/row/labels": ("a", "b")}, TABLE),
    Row(
        "dev_share",
        "0.3",
        {"error": ABSENT, **SEEN},
        {**TABLE, "data_dir": "{world}/train_alone"},
    ),
    Row(
        "task_type",
        "translate-train-all",
        dict.fromkeys(("plan", "training", "optimizer/schedule", "files"), DIFFERENT),
        LANGUAGES,
    ),
    Row("languages", "en", {"predicted": DIFFERENT, "files": DIFFERENT}, LANGUAGES),
    Row(
        "selection_language",
        "fr",
        {"predicted": DIFFERENT, "files": DIFFERENT},
        LANGUAGES,
    ),
    Row("data_dir", "{world}/other_pairs", {"training": DIFFERENT, "predicted": DIFFERENT, "files": DIFFERENT}),
    Row("bert_config_file", "{world}/wide.json", {"task/config/hidden_size": 16, "plan/config/hidden_size": 16}),
    Row(
        "vocab_file",
        "{world}/reversed.txt",
        {
            "training": DIFFERENT,
            "predicted": DIFFERENT,
            "files/out/vocab.txt": DIFFERENT,
            f"{RUN_FILE}/tokenizer/fingerprint": DIFFERENT,
        },
    ),
    Row("spm_model_file", "{world}/spiece.model", {"training": DIFFERENT, "predicted": DIFFERENT, "files": DIFFERENT}),
    Row(
        "segmentation",
        "ernie_repo",
        {"training": DIFFERENT, "predicted": DIFFERENT, f"{RUN_FILE}/tokenizer": DIFFERENT},
        PIECES,
    ),
    Row(
        "do_lower_case",
        "false",
        {
            "training": DIFFERENT,
            "predicted": DIFFERENT,
            f"{RUN_FILE}/tokenizer": DIFFERENT,
            f"{RUN_FILE}/tokenizer/do_lower_case": False,
        },
    ),
    Row("init_checkpoint", "{world}/pretrained", {"loaded": DIFFERENT}),
    Row(
        "max_seq_length",
        "16",
        {"training": DIFFERENT, "predicted": DIFFERENT, f"{RUN_FILE}/tokenizer/max_seq_length": 16},
    ),
    Row(
        "do_train",
        "true",
        {"plan": DIFFERENT, "training": DIFFERENT, "optimizer": DIFFERENT, **STEP},
        {"do_train": "false", **FINISHED},
    ),
    Row(
        "do_eval",
        "true",
        {
            "predicted": DIFFERENT,
            **{f"files/out/{name}": DIFFERENT for name in ("eval_results", "dev_predictions", "dev_report")},
        },
        {"do_train": "false", "do_eval": "false", **FINISHED},
    ),
    Row(
        "do_predict",
        "true",
        {
            "predicted": DIFFERENT,
            **{f"files/out/{name}": DIFFERENT for name in ("test_results", "test_predictions", "test_report")},
        },
        {"do_predict": "false"},
    ),
    Row("dry_run", "true", {**dict.fromkeys((*TRAINED, "predicted", "files"), DIFFERENT), "plan/num_steps": ABSENT}),
    Row(
        "train_batch_size",
        "4",
        {"training": DIFFERENT, "plan/num_steps": 40, "plan/count_units": 4, "optimizer/schedule": DIFFERENT, **STEP},
    ),
    Row(
        "per_device_train_batch_size",
        "2",
        {"training": DIFFERENT, "plan/num_steps": 40, "plan/count_units": 4, "optimizer/schedule": DIFFERENT, **STEP},
        {"train_batch_size": "32", "gradient_accumulation_steps": "2"},
    ),
    Row("eval_batch_size", "4", {"predicted": DIFFERENT}, {"do_predict": "false"}),
    Row("predict_batch_size", "4", {"predicted (2)": DIFFERENT}),
    Row("optimizer", "lamb", {"optimizer/rule/is": "LAMB", "optimizer/trust_ratio": False}),
    Row("learning_rate", "1", {"optimizer/schedule": DIFFERENT, "optimizer/schedule/4": pytest.approx(0.8)}),
    Row("num_train_epochs", "5", {"plan/num_steps": 10, "optimizer/schedule": DIFFERENT, **STEP}),
    Row("num_train_steps", "40", {"plan/num_steps": 40, "optimizer/schedule": DIFFERENT, **STEP}),
    Row("warmup_proportion", "0.2", {"optimizer/schedule": DIFFERENT, "optimizer/schedule/2": pytest.approx(5e-5)}),
    Row("num_warmup_steps", "8", {"optimizer/schedule": DIFFERENT, "optimizer/schedule/2": pytest.approx(2.5e-5)}),
    Row("save_checkpoints_steps", "5", {"plan/save_every_steps": 5, "plan/eval_every_steps": 5}),
    Row("eval_steps", "5", {"plan/eval_every_steps": 5}),
    Row("load_best_model_at_end", "false", {"loaded": DIFFERENT}, ENDED),
    Row("metric_for_best_model", "loss", {"plan/best_metric": "loss", "plan/lower_is_better": True}),
    Row("early_stopping_evaluations", "3", {"plan/early_stopping_evaluations": 3}),
    Row("classifier_dropout", "0.5", {"task/classifier_dropout": 0.5}),
    Row("doc_stride", "2", CUT_OTHERWISE, ANSWERS),
    Row("max_query_length", "2", CUT_OTHERWISE, ANSWERS),
    Row(
        "plug_in",
        "true",
        dict.fromkeys(("task", "plan/num_steps", "training", "optimizer", "predicted", "files"), DIFFERENT),
        {
            **LANGUAGES,
            "task_type": "translate-train-all",
            "data_dir": "{world}/aligned",
            "bert_config_file": "{world}/sides.json",
        },
    ),
    Row("pooling", "cls", {f"{RUN_FILE}/row/pooling": "cls", "task/pooling": "cls"}, MATCHES),
    Row("pooling_layer", "1", {f"{RUN_FILE}/row/pooling_layer": 1, "task/pooling_layer": 1}, MATCHES),
    Row(
        "in_batch_temperature",
        "0.5",
        {f"{RUN_FILE}/row/temperature": 0.5, "task/temperature": 0.5},
        PARTNERS,
    ),
    Row(
        "threshold",
        "0.9",
        {f"{RUN_FILE}/row/threshold": 0.9, **FOUND},
        MATCHES,
    ),
    Row("retrieval_margin", "ratio", {f"{RUN_FILE}/row/retrieval_margin": "ratio", **FOUND}, PARTNERS),
    Row(
        "margin_neighbours",
        "1",
        {f"{RUN_FILE}/row/margin_neighbours": 1, **FOUND},
        PARTNERS | {"retrieval_margin": "ratio"},
    ),
    Row("n_best_size", "2", ANSWERED, ANSWERS),
    Row("max_answer_length", "2", ANSWERED, ANSWERS),
    Row("null_score_diff_threshold", "99", ANSWERED, ANSWERS | {"version_2_with_negative": "true"}),
    Row("version_2_with_negative", "true", ANSWERED, ANSWERS),
    Row(
        "seeds",
        "1,2",
        {**SEEN, "engine/seed": 1, "engine (2)/seed": 2, "files/out/seed_1": DIFFERENT, "files/out/seed_2": DIFFERENT},
    ),
    Row(
        "num_seeds",
        "2",
        {**SEEN, "engine/seed": 1, "engine (2)/seed": 2, "files/out/seed_1": DIFFERENT, "files/out/seed_2": DIFFERENT},
    ),
    # The recorder's answers are all alike, with either seed.
    Row("restart_degenerate", "1", {**SEEN, "engine (2)/seed": 12346, "files/out/seed_12346": DIFFERENT}),
    Row(
        "adversarial_weight",
        "0.5",
        {"task/loss_weights/adversarial": 0.5, "task/regularizers": DIFFERENT, "task/regularizers/0/is": "Adversarial"},
    ),
    Row("adversarial_sigma", "0.5", {"task/regularizers/0/sigma": 0.5}, ADVERSARIAL),
    Row("adversarial_step", "0.5", {"task/regularizers/0/step": 0.5}, ADVERSARIAL),
    Row("adversarial_bound", "0.5", {"task/regularizers/0/bound": 0.5}, ADVERSARIAL),
    Row(
        "r_drop_weight",
        "0.5",
        {"task/loss_weights/r_drop": 0.5, "task/regularizers": DIFFERENT, "task/regularizers/0/is": "RDrop"},
    ),
    Row("teacher", "{world}/classifier", {"task": DIFFERENT}),
    Row(
        "distillation_weight",
        "0.25",
        {
            "task/distillation/weight": 0.25,
            "task/loss_weights/classification": 0.75,
            "task/loss_weights/distillation": 0.25,
        },
        TAUGHT,
    ),
    Row("distillation_temperature", "4", {"task/distillation/temperature": 4.0}, TAUGHT),
    Row(
        "hidden_distillation_weight",
        "2",
        {
            "task/distillation/hidden_weight": 2.0,
            "task/loss_weights/hidden_distillation": 2.0,
            "task/_of_layers/hidden_distillation": 2.0,
        },
        TAUGHT,
    ),
    Row(
        "attention_distillation_weight",
        "2",
        {
            "task/distillation/attention_weight": 2.0,
            "task/loss_weights/attention_distillation": 2.0,
            "task/_of_layers/attention_distillation": 2.0,
        },
        TAUGHT,
    ),
    Row(
        "cached_teacher", "true", {"task/distillation/cached": True, "training": DIFFERENT, "taught": DIFFERENT}, TAUGHT
    ),
    Row(
        "domain_column",
        "class",
        {
            **dict.fromkeys(("task", "training", "domains", "optimizer"), DIFFERENT),
            f"{RUN_FILE}/row/domain": "class",
        },
        DOMAINS,
    ),
    Row("domain_weight", "2", {"task/teaching/weight": 2.0, "task/loss_weights/domain_corruption": 2.0}, OF_DOMAINS),
    Row(
        "layer_map",
        "1:2",
        {"task/distillation/layers": ("1:2",), "task/_pairs": DIFFERENT},
        {**TAUGHT, "hidden_distillation_weight": "1"},
    ),
    Row(
        "pruning",
        "structured",
        {"optimizer/pruning": DIFFERENT, "optimizer/pruning/is": "Structured", "plan/best_from_step": 3},
    ),
    Row("sparsity", "0.25", {"optimizer/pruning/sparsity": 0.25}, PRUNED),
    # The recorder leaves no weights that the second level could begin from.
    Row(
        "pruning_levels",
        "2",
        {"error": re.compile("level_1"), "optimizer/pruning/sparsity": 0.25, "plan/output_dir": "out/level_1"},
        PRUNED,
    ),
    Row("pruning_warmup", "0.5", {"optimizer/pruning/at": 10, "plan/best_from_step": 11}, PRUNED),
    Row(
        "pruning_cooldown",
        "0.5",
        {"optimizer/pruning/sparsity/end": 9, "plan/best_from_step": 10},
        {"pruning": "magnitude"},
    ),
    Row("score_learning_rate", "0.5", {"optimizer/pruning/rate/rate": 0.5}, {"pruning": "movement"}),
    Row("score_penalty", "7", {"optimizer/pruning/penalty/final": 7.0}, {"pruning": "soft"}),
    Row("contrast_weight", "0.5", dict.fromkeys(("task", "training", "bank"), DIFFERENT), CONTRASTED),
    Row("supervised_contrast_weight", "0.5", dict.fromkeys(("task", "training", "bank"), DIFFERENT), CONTRASTED),
    Row(
        "contrast_temperature",
        "0.5",
        {"task/contrast/temperature": 0.5},
        {**CONTRASTED, "contrast_weight": "1"},
    ),
    Row("child_tuning", "F", {"optimizer/transforms_after_clipping": DIFFERENT}),
    Row("child_tuning", "D", {"optimizer/transforms_after_clipping": DIFFERENT, "fisher": DIFFERENT}),
    Row("child_tuning_fraction", "0.5", {"optimizer/transforms_after_clipping/0/fraction": 0.5}, CHILD_F),
    Row("child_tuning_fraction", "0.5", {"optimizer/transforms_after_clipping": DIFFERENT}, CHILD_D),
    Row("child_tuning_fisher", "released", {"fisher/released": True, "fisher/batches": DIFFERENT}, CHILD_D),
    Row("seed", "7", {"optimizer/transforms_after_clipping/0/seed": 7, **training_flags.SEEDED}, CHILD_F),
    Row(
        "layer_decay",
        "0.5",
        {
            MULTIPLIER: DIFFERENT,
            f"{MULTIPLIER}/backbone/encoder/attention_1": 0.5,
            f"{MULTIPLIER}/backbone/encoder/attention_0": 0.25,
        },
    ),
    Row("method", "pet", dict.fromkeys(("task", "training", "optimizer", "predicted", RUN_FILE), DIFFERENT), ASKED),
    Row(
        "pattern",
        "{text_a} b [MASK] {text_b}",
        {
            "training": DIFFERENT,
            "predicted": DIFFERENT,
            f"{RUN_FILE}/row/pattern": "{text_a} b [MASK] {text_b}",
        },
        PET,
    ),
    Row("verbalizer", "0=c,1=d", {"task/prompt/words": DIFFERENT, f"{RUN_FILE}/row": DIFFERENT}, PET),
    Row(
        "unlabelled_file",
        "{world}/trial.jsonl",
        {
            **dict.fromkeys(("plan", "training", "optimizer", "predicted", "files"), DIFFERENT),
            "engine (2)": DIFFERENT,
            "task": DIFFERENT,
        },
        PET,
    ),
    Row(
        "pet_generations",
        "1",
        dict.fromkeys(("plan", "training", "optimizer", "predicted", "files", "engine", "task"), DIFFERENT),
        {**PET, "unlabelled_file": "{world}/trial.jsonl"},
    ),
    Row("auxiliary_weight", "0.5", {"task/loss_weights": DIFFERENT, "task/loss_weights/auxiliary": 0.5}, PET),
    Row("auxiliary_rate", "0.5", {"training": DIFFERENT}, PET),
    Row(
        "prompt_encoder",
        "none",
        {"task/prompt_encoder": "none", "optimizer": DIFFERENT},
        {**ASKED, "method": "p_tuning"},
    ),
    Row("freeze", "embeddings", {"optimizer/frozen": EMBEDDINGS}),
    Row("freeze_layers", "1", {"optimizer/frozen": LOWEST}),
    Row(
        "gradual_unfreezing",
        "0.5",
        {
            MULTIPLIER: DIFFERENT,
            f"{MULTIPLIER}/backbone/embeddings/word_embeddings/4": 0.0,
            f"{MULTIPLIER}/backbone/embeddings/word_embeddings/10": 1.0,
        },
    ),
)
BASE = {
    "task_name": "lcqmc_pair",
    "data_dir": "{world}/pairs",
    "output_dir": "out",
    "bert_config_file": "{world}/config.json",
    "vocab_file": "{world}/vocab.txt",
    "max_seq_length": "40",
    "do_train": "true",
    "do_eval": "true",
    "do_predict": "true",
    "train_batch_size": "8",
    "num_train_epochs": "10",
}
VERB = Verb(run_classifier, BASE, ROWS, replaced, content)
