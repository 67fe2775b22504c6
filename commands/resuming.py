"""Whether a run may go on in its output folder: one rule for every flag, and the facts that a run is made of.

    SAME      what the flag leads to is compared through run.json: the model, the task, the tokenizer, the data
    FIXED     training goes on with the former value only
    START     where training started from; it may be left out later, but not be another
    NAMED     training goes on with another value, and says so
    FREE      decides no result

Only facts that also decide what an evaluation means (`SAME`) are compared where a finished run is scored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from commands.flags import resolved
from ground.addresses import shown
from ground.documents import as_json, read_json
from ground.locks import is_lock
from ground.outputs import Target

if TYPE_CHECKING:
    from commands.records import AllRecords
    from data.reading import PretrainingDataset
    from tasks.run_file import RunFile

SAME, FIXED, START, NAMED, FREE = "same", "fixed", "start", "named", "free"
LOCK = ".divan.lock"
RUN = "run.json"

_SHARED = {
    SAME: "bert_config_file",
    FIXED: "seed optimizer ema_decay",
    START: "init_checkpoint",
    NAMED: "adam_beta1 adam_beta2 adam_bias_correction adam_epsilon backend clip_norm gradient_accumulation_steps "
    "learning_rate max_seq_length num_train_steps on_spike precision save_checkpoints_steps spike_threshold "
    "train_batch_size weight_decay",
    FREE: "coordinator_address do_eval do_train dry_run eval_batch_size fsdp gcp_project iterations_per_loop "
    "keep_checkpoint_max log_steps master model_parallel norm_steps num_processes num_tpu_cores output_dir process_id "
    "profile_steps remat scan_layers tpu_name tpu_zone use_tpu",
}
_PRETRAINING = {
    SAME: "input_file eval_input_file objective",
    # Another model: with a vector for each language, or without.
    FIXED: "language_signal",
    NAMED: "cached_pseudo camlm_computation camlm_mask camlm_positions crossed_loss_weight eval_steps label_smoothing "
    "language_alpha masked_lm_loss_weight masked_lm_until max_eval_steps max_predictions_per_seq "
    "next_tokens_loss_weight num_warmup_steps objective_weights parallel_share poly_power pooled_loss pseudo_language "
    "pseudo_length_ratio pseudo_pick schedule sentence_loss_weight start_warmup_step word_order_loss_weight",
    # Of use with --init_checkpoint alone, whose rule is START.
    FREE: "allow_any_start init_sentence_head",
}
_FINE_TUNING = {
    SAME: "data_dir do_lower_case encoding segmentation spm_model_file task_file task_name vocab_file",
    # The best score so far is compared with those that follow.
    FIXED: "dev_share metric_for_best_model",
    NAMED: "early_stopping_evaluations eval_steps num_train_epochs num_warmup_steps warmup_proportion",
    # Each seed has a folder of its own, whose flags have --seed.
    FREE: "do_predict load_best_model_at_end num_seeds per_device_train_batch_size predict_batch_size "
    "restart_degenerate seeds",
}
_CLASSIFICATION = {
    SAME: "method pattern plug_in pooling pooling_layer test_data_path unlabelled_file verbalizer",
    FIXED: "domain_column freeze freeze_layers label_column languages pet_generations prompt_encoder pruning "
    "pruning_levels selection_language sparsity task_type text_column text_pair_column",
    NAMED: "adversarial_bound adversarial_sigma adversarial_step adversarial_weight child_tuning child_tuning_fisher "
    "child_tuning_fraction classifier_dropout doc_stride gradual_unfreezing layer_decay max_query_length r_drop_weight "
    "in_batch_temperature attention_distillation_weight auxiliary_rate auxiliary_weight cached_teacher "
    "distillation_temperature distillation_weight domain_weight hidden_distillation_weight layer_map teacher "
    "contrast_temperature contrast_weight pruning_cooldown pruning_warmup score_learning_rate score_penalty "
    "supervised_contrast_weight",
    # Which of the candidates is the answer belongs to an evaluation.
    FREE: "do_export export_model_dir margin_neighbours max_answer_length n_best_size null_score_diff_threshold "
    "overwrite_output_dir retrieval_margin threshold version_2_with_negative",
}
_GENERATION = {
    NAMED: "label_smoothing max_target_length",
    # What is generated belongs to an evaluation, not to what is trained.
    FREE: "do_interactive do_sample early_stopping finishing_rule length_penalty long_sources min_new_tokens "
    "no_repeat_ngram_size num_beams num_return_sequences preset repetition_penalty temperature top_k top_p",
}


def _table(*parts: Mapping[str, str]) -> dict[str, str]:
    return {name: rule for part in parts for rule, names in part.items() for name in names.split()}


RULES = {
    "run_pretraining": _table(_SHARED, _PRETRAINING),
    "run_classifier": _table(_SHARED, _FINE_TUNING, _CLASSIFICATION),
    "run_generation": _table(_SHARED, _FINE_TUNING, _GENERATION),
}
"""The rule of every flag of the training verbs; a test keeps it total."""

_RUN_NAMES = (
    "config.json model_config.json run.json vocab.txt spiece.model sentencepiece.bpe.model metrics.jsonl report.html "
    "tensorboard checkpoints best replay submission"
)
_PREDICTIONS = (
    "predictions.tsv predictions.jsonl predictions.json nbest_predictions.json null_odds.json embeddings.npy "
    "report.html"
)
_INPUT, _TOKENIZER = "--input_file", "--vocab_file, --spm_model_file, --segmentation or --do_lower_case"
# What a run writes into its own folder is what it read there, since `compare` finds no difference.
_READ_OF_OWN = ("--config", "--bert_config_file", "--vocab_file", "--spm_model_file")


def results_name(split: str) -> str:
    """Return the name of the file of scores: eval_results of dev, eval_results_x of dev_x, test_results of test."""
    base, _, further = split.partition("_")
    return {"dev": "eval_results", "test": "test_results"}[base] + (f"_{further}" if further else "")


def holds_run(folder: Path) -> bool:
    """Whether what lies in a folder is a run's, by its own files."""
    states = (folder / "checkpoints").glob("step_*/state.json")
    return (folder / RUN).is_file() or any(states) or any(folder.glob("seed_*/" + RUN))


def targets(folder: Path, splits: Iterable[str] = ()) -> list[Target]:
    """Return what a run writes in its folder, for `ground.outputs.check_outputs`.

    Args:
        folder: of the run.
        splits: that its row has besides dev and test, such as dev_mismatched.
    """
    # The lock of a run that was killed before it wrote run.json tells as much.
    own = holds_run(folder) or is_lock(folder / LOCK)
    evaluated = [split for split in dict.fromkeys(("dev", "test", *splits)) if split != "train"]
    predicted = [f"{split}_{name}" for split in evaluated for name in _PREDICTIONS.split()]
    scored = [f"{results_name(split)}.{suffix}" for split in evaluated for suffix in ("json", "txt")]
    return [
        Target(
            folder / name,
            "--output_dir",
            lambda path: own,
            f"{folder} holds no {RUN}",
            folder=name in ("checkpoints", "best", "replay", "tensorboard", "submission"),
            reads_own=_READ_OF_OWN,
        )
        for name in (*_RUN_NAMES.split(), *predicted, *scored)
    ]


def compare(folder: Path, options: Any, run: RunFile, *, trains: bool, goes_on: bool) -> list[str]:
    """Return the changes that a run which goes on has to name: `learning_rate 5e-05 -> 0.0001`.

    Args:
        folder: of the run.
        options: its flags.
        run: what it is made of.
        trains: with --do_train.
        goes_on: from a checkpoint that lies there.

    Raises:
        UsageError: the folder holds another run; flag, both values and the way out are named.
    """
    from tasks.run_file import RunFile

    changes: list[str] = []
    if (folder / RUN).exists():
        former = RunFile.read(folder)
        for (flag, name), (old, new) in _facts(former, run).items():
            if old != new:
                raise _another(folder, flag, name, old, new, "give the former one")
        if trains and goes_on:
            changes += _compare_data(folder, former.data, run.data)
            changes += _compare_shares(former, run)
    if trains and goes_on:
        changes += _compare_flags(folder, options)
    return changes


def _facts(former: RunFile, run: RunFile) -> dict[tuple[str, str], tuple[Any, Any]]:
    """Return what is the same in every part of a run, by the flag that it comes from and its name."""
    pretraining = run.row is None and former.row is None
    facts = {("--objective" if pretraining else "--task_name", "task"): (_task(former), _task(run))}
    if former.row and run.row:
        for name in ("columns", "labels", "score_range", "pooling", "pooling_layer", "plug_in"):
            facts["--task_name", name] = (getattr(former.row, name), getattr(run.row, name))
        for flag, name in (("--method", "kind"), ("--pattern", "pattern"), ("--verbalizer", "verbalizer")):
            facts[flag, name] = (getattr(former.row, name), getattr(run.row, name))
    if former.tokenizer.fingerprint and run.tokenizer.fingerprint:
        short = (former.tokenizer.fingerprint[:12], run.tokenizer.fingerprint[:12])
        facts[_INPUT if pretraining else _TOKENIZER, "a tokenizer"] = short
    for field in dataclasses.fields(run.config):
        name = field.name
        facts["--bert_config_file", name] = (getattr(former.config, name), getattr(run.config, name))
    return facts


def _task(run: RunFile) -> str:
    if run.row is not None:
        return run.row.name
    return run.objective + (" and word order" if run.shuffles_words else "")


def _compare_data(folder: Path, former: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """Return the changes of data that are named; raises `UsageError` for other training data."""
    changes = []
    for name in data.keys() & former.keys():
        if former[name] != data[name]:
            if name == "training data":
                flag = _INPUT if "training examples" in data else "--data_dir"
                raise _another(folder, flag, name, former[name], data[name], "give the former data")
            changes.append(f"{name} {former[name]} -> {data[name]}")
    return sorted(changes)


def _compare_shares(former: RunFile, run: RunFile) -> list[str]:
    """Return the changes of how often each objective is learnt."""
    shares = {
        name: (former.objectives[name].share, each.share)
        for name, each in run.objectives.items()
        if name in former.objectives
    }
    return [f"share of {name} {old:g} -> {new:g}" for name, (old, new) in shares.items() if old != new]


def _compare_flags(folder: Path, options: Any) -> list[str]:
    rules = {name: rule for table in RULES.values() for name, rule in table.items()}
    former, present, changes = _former_flags(folder), as_json(resolved(options)), []
    for field in dataclasses.fields(options):
        name, rule = field.name, rules[field.name]
        old, new = former.get(name, field.default), present[name]
        old = list(old) if isinstance(old, tuple) else old
        if old is dataclasses.MISSING or old == new:
            continue
        if rule == NAMED:
            changes.append(f"{name} {old} -> {new}")
        elif rule == FIXED or (rule == START and new and _absolute(old) != _absolute(new)):
            fix = f"give --{name}={old}" if rule == FIXED else f"leave --{name} out"
            raise _another(folder, f"--{name}", name, old, new, fix)
    return changes


def _absolute(path: Any) -> Any:
    return os.path.realpath(path) if isinstance(path, str) and path else path


def _another(folder: Path, flag: str, name: str, old: Any, new: Any, fix: str) -> UsageError:
    return UsageError(
        f"{flag}: --output_dir={folder} was trained with {name} {_shown(old)}, this run has {_shown(new)}: {fix}, or "
        "another --output_dir"
    )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list | tuple) else shown(str(value))


def _former_flags(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return read_json(path, dict[str, Any], what="the flags of a run", fix="restore it, or delete it")
    except FileNotFoundError:
        return {}


def check_records(folder: Path, checkpoints: Sequence[Path], config: Mapping[str, Any], seed: int) -> None:
    """Raise `UsageError` for metrics or a newest checkpoint by which the run cannot go on, before anything is written.

    A checkpoint that is damaged is no matter here: the one before it is taken.
    """
    from modeling.config import Config
    from training.checkpoints import CorruptCheckpointError, read_state
    from training.hooks import read_metrics
    from training.loop import check_config, check_seed
    from training.run import LoopProgress

    read_metrics(folder / "metrics.jsonl")
    with contextlib.suppress(CorruptCheckpointError):
        if checkpoints:
            found = read_state(checkpoints[-1], groups=())
            try:
                former = as_json(dataclasses.asdict(Config.from_json(found.config)))
            except UsageError as error:
                raise UsageError(f"{checkpoints[-1] / 'state.json'}: config: {error}") from None
            check_config(config, former, checkpoints[-1])
            check_seed(seed, found.seed, checkpoints[-1])
            try:
                LoopProgress.of(found)
            except UsageError as error:
                raise UsageError(f"{checkpoints[-1] / 'state.json'}: {error}") from None


def check_steps(folder: Path, reached: int, num_steps: int) -> None:
    """Raise `UsageError` where a run is longer already than it is asked to be."""
    if reached > num_steps:
        raise UsageError(
            f"--output_dir={folder} is at step {reached:,}, this run would end at step {num_steps:,}: ask for more "
            "steps (--num_train_steps), leave out --do_train, or give another --output_dir"
        )


# -- data --------------------------------------------------------------------------------------------------------------


def data_of_records(records: AllRecords) -> dict[str, Any]:
    """Return what tells the data of a pretraining run from other data, at no cost: manifests, or names and sizes."""
    parts: dict[str, dict[str, Any]] = {
        "training": {name: part.training for name, part in records.parts.items()},
        "held-out": {name: part.held_out for name, part in records.parts.items()},
    }
    known = {name: found for name, found in parts.items() if None not in found.values()}

    def origins(found: Mapping[str, PretrainingDataset]) -> list[str]:
        # Which objective learns from what is part of it where there are several.
        return [
            f"{objective}: {line}" if records.are_mixed else line
            for objective, dataset in found.items()
            for line in dataset.origins()
        ]

    return {f"{name} data": _digest(origins(found)) for name, found in known.items()} | {
        f"{name} examples": sum(dataset.num_examples for dataset in found.values()) for name, found in known.items()
    }


def data_of_files(files: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Return what tells the data of a labelled task from other data: a digest of each split's files but the test's."""
    names = {"train": "training", "dev": "development"}
    found = {}
    for split, name in names.items():
        # Of a task in several languages each has files of its own.
        of_languages = [each for key, paths in files.items() if key.startswith(f"{split}_") for each in paths]
        if paths := files.get(split, of_languages):
            digest = hashlib.sha256()
            for path in paths:
                with path.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
            found[f"{name} data"] = digest.hexdigest()[:12]
    return found


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
