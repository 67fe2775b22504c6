"""The records of a pretraining run: those to train on, those held out, and whether they are what the flags ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from data.objectives import OBJECTIVES

if TYPE_CHECKING:
    import numpy as np

    from data.reading import PretrainingDataset
    from modeling.config import Config


@dataclass(frozen=True)
class Records:
    """The data sets of a pretraining run.

    Attributes:
        files: record files to train on.
        training: their examples.
        held_out: examples of documents that `training` does not hold; None without --do_eval.
    """

    files: Sequence[str]
    training: PretrainingDataset
    held_out: PretrainingDataset | None

    @property
    def shuffled(self) -> bool:
        """Whether the examples hold shuffled words."""
        return bool(self.training.max_word_order_per_seq)

    @property
    def facts(self) -> str:
        """The size and the filling of the data sets, as text."""
        training, held_out = self.training, self.held_out
        sequences = f"{training.sequences_per_example:.1f} sequences each, " if training.sequences_per_example else ""
        filling = f" ({sequences}{training.fill:.1%} of positions filled)" if training.fill else ""
        return (
            f"{training.num_examples:,} examples of {training.max_seq_length} tokens{filling}, "
            f"{held_out.num_examples if held_out else 0:,} held out"
        )

    def tokenizer_facts(self, config: Config, config_file: str) -> dict[str, Any]:
        """Return `file`, `vocab_size` and `fingerprint` of the vocabulary; the config's where there is no manifest."""
        known = {"file": config_file, "vocab_size": config.vocab_size, "fingerprint": ""}
        return {**known, **(self.training.manifest or {}).get("tokenizer", {})}


def open_records(options: Any) -> Records:
    """Open the records that the flags of run_pretraining.py name.

    Raises:
        UsageError: nothing matches, files contradict one another or the flags, or --do_eval finds nothing held out.
    """
    training_files, held_out_files = split_held_out(options.input_file)
    held_out_files = list(options.eval_input_file) or held_out_files
    if options.do_eval and not held_out_files:
        raise UsageError(
            f"--do_eval: none of {', '.join(options.input_file)} is held out; make the records with --eval_fraction, "
            "or give --eval_input_file"
        )
    training = open_dataset(options, training_files, options.train_batch_size)
    held_out = open_dataset(options, held_out_files, options.eval_batch_size) if options.do_eval else None
    records = Records(training_files, training, held_out)
    check_objective(training, options.objective)
    if held_out and bool(held_out.max_word_order_per_seq) != records.shuffled:
        with_words, without = ("--input_file", "the held-out ones")[:: 1 if records.shuffled else -1]
        raise UsageError(f"{with_words} hold shuffled words but {without} do not: make both with one --trigram_rate")
    if options.pooled_loss and not records.shuffled:
        raise UsageError(
            "--pooled_loss=True but the records hold no shuffled words: make them with --trigram_rate=0.05"
        )
    return records


def open_dataset(
    options: Any, files: Sequence[str], batch_size: int, rows: tuple[int, int] = (0, 1)
) -> PretrainingDataset:
    """Open record files; `rows` is (index, count): of every batch the index-th of count equal parts is read."""
    from data.reading import PretrainingDataset

    return PretrainingDataset(
        files,
        batch_size // rows[1],
        seed=options.seed,
        shard=rows,
        max_seq_length=options.max_seq_length,
        max_predictions_per_seq=options.max_predictions_per_seq,
    )


def split_held_out(patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part record files into those to train on and those whose manifest says that their documents are held out."""
    from data.reading import expand_shards, find_manifests

    paths = expand_shards(patterns)
    described = find_manifests(paths)
    held_out = [path for path in paths if path in described and described[path][0]["recipe"]["held_out"]]
    training = [path for path in paths if path not in held_out]
    if not training:
        raise UsageError(f"all of {', '.join(patterns)} is held out: give --input_file the training records too")
    return [str(path) for path in training], [str(path) for path in held_out]


def check_objective(dataset: PretrainingDataset, objective: str) -> None:
    """Raise `UsageError` where the records were made for another objective than is asked for."""
    made_for = (dataset.manifest or {}).get("objective", objective)
    if made_for != objective:
        raise UsageError(
            f"--objective={objective} but the records were made with --objective={made_for}: "
            f"give --objective={made_for}, or make others"
        )


def check_ids(dataset: PretrainingDataset, vocab_size: int, config_file: str) -> None:
    """Raise `UsageError` where the first batch of records without a manifest has ids beyond the vocabulary."""
    if dataset.manifest is not None:
        return
    batch = dataset.batch(0)
    largest = max(int(batch[name].max()) for name in ("input_ids", "masked_lm_ids"))
    if largest >= vocab_size:
        raise UsageError(
            f"the records hold the id {largest:,} but {config_file} has vocab_size={vocab_size:,}: "
            "use the config whose vocabulary the records were made with"
        )


def keep_pair_head(tensors: dict[str, np.ndarray], options: Any) -> None:
    """Remove the sentence-pair head of --init_checkpoint where it is not wanted, or not learnt.

    Raises `UsageError` where it is wanted and has another number of classes than the objective.
    """
    labels, head = OBJECTIVES[options.objective].labels, tensors.get("sentence_pair/bias")
    if not (options.init_sentence_head and labels):
        for name in ("sentence_pair/kernel", "sentence_pair/bias"):
            tensors.pop(name, None)
    elif head is not None and len(head) != len(labels):
        raise UsageError(
            f"--init_checkpoint={options.init_checkpoint} has a sentence-pair head of {len(head)} classes, but "
            f"--objective={options.objective} has {len(labels)} ({', '.join(labels)}): give an objective "
            f"of {len(head)} classes, or --init_sentence_head=False for a new head"
        )


def check_pair_head(tensors: dict[str, np.ndarray], objective: str) -> None:
    """Raise `UsageError` where weights that are to be scored have no sentence-pair head of the objective's classes."""
    labels, head = OBJECTIVES[objective].labels, tensors.get("sentence_pair/bias")
    if labels and (head is None or len(head) != len(labels)):
        got = "no sentence-pair head" if head is None else f"a sentence-pair head of {len(head)} classes"
        raise UsageError(
            f"the weights have {got}, but --objective={objective} scores {len(labels)} "
            f"({', '.join(labels)}): give the --objective that they were trained with and records made for it, "
            "or train a head with --do_train"
        )
