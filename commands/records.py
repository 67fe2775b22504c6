"""The records of a pretraining run: those to train on, those held out, and whether they are what the flags ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from data.objectives import OBJECTIVES
from ground.addresses import shown

if TYPE_CHECKING:
    from conversion.lazy import Array
    from data.mixture import Dataset
    from data.reading import PretrainingDataset
    from data.shards import Shards
    from modeling.config import Config


@dataclass(frozen=True)
class Records:
    """The data sets of a pretraining run.

    Attributes:
        training: their examples.
        held_out: examples of documents that `training` does not hold; None without --do_eval.
        objective: that is learnt from them.
        training_languages: the examples of each language, by its code; of one that is not named where there is one.
        held_out_languages: likewise; none without --do_eval.
        shares: how often each language is drawn; empty where there is one.
    """

    training: PretrainingDataset
    held_out: PretrainingDataset | None
    objective: str
    training_languages: Mapping[str, PretrainingDataset]
    held_out_languages: Mapping[str, PretrainingDataset]
    shares: Mapping[str, float]

    def mixture(self, rows: tuple[int, int], batch_size: int, seed: int) -> Dataset:
        """Return what is trained on.

        Args:
            rows: (index, count): this process computes the index-th of count equal parts of every batch.
            batch_size: of all processes.
            seed: decides which of two languages with equal claims comes first.
        """
        from data.mixture import Mixture

        if not self.shares:
            return self.training.part(*rows, batch_size // rows[1])
        parts = {name: each.part(*rows, batch_size // rows[1]) for name, each in self.training_languages.items()}
        return Mixture({name: (parts[name], share) for name, share in self.shares.items()}, seed)

    @property
    def drawn(self) -> str:
        """How often each language is drawn, as text; empty where there is one."""
        sizes = {name: dataset.num_examples for name, dataset in self.training_languages.items()}
        return ", ".join(f"{name} {share:.1%} ({sizes[name]:,} examples)" for name, share in self.shares.items())

    @property
    def shuffled(self) -> bool:
        """Whether the examples hold shuffled words."""
        return bool(self.training.max_word_order_per_seq)

    @property
    def scored(self) -> int:
        """Positions of an example that are scored over the vocabulary."""
        from data.forms import scored_per_prediction

        training = self.training
        masked = training.max_predictions_per_seq * scored_per_prediction(self.objective)
        return masked + training.max_word_order_per_seq + training.max_target_length

    @property
    def facts(self) -> str:
        """The size and the filling of the data sets, as text."""
        training, held_out = self.training, self.held_out
        sequences = f"{training.sequences_per_example:.1f} sequences each, " if training.sequences_per_example else ""
        filling = f" ({sequences}{training.fill:.1%} of positions filled)" if training.fill else ""
        target = f" and targets of {training.max_target_length}" if training.max_target_length else ""
        return (
            f"{training.num_examples:,} examples of {training.max_seq_length} tokens{target}{filling}, "
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
    from data.shards import Shards

    shards = Shards.find(options.input_file)
    training_shards = shards.where(lambda manifest: not is_held_out(manifest))
    if not training_shards.paths:
        raise UsageError(
            f"all of {', '.join(options.input_file)} is held out: give --input_file the training records too"
        )
    held_out_shards = shards.where(is_held_out)
    if options.eval_input_file:
        held_out_shards = Shards.find(options.eval_input_file, "--eval_input_file")
    if options.do_eval and not held_out_shards.paths:
        raise UsageError(
            f"--do_eval: none of {', '.join(options.input_file)} is held out; make the records with --eval_fraction, "
            "or give --eval_input_file"
        )
    training = open_dataset(options, training_shards, options.train_batch_size)
    held_out = open_dataset(options, held_out_shards, options.eval_batch_size) if options.do_eval else None
    training_languages = by_language(options, training, training_shards, options.train_batch_size)
    records = Records(
        training,
        held_out,
        options.objective,
        training_languages,
        by_language(options, held_out, held_out_shards, options.eval_batch_size) if held_out else {},
        shares_of(options, training_shards, training_languages),
    )
    check_objective(training, options.objective)
    if held_out and bool(held_out.max_word_order_per_seq) != records.shuffled:
        with_words, without = ("--input_file", "the held-out ones")[:: 1 if records.shuffled else -1]
        raise UsageError(f"{with_words} hold shuffled words but {without} do not: make both with one --trigram_rate")
    if options.pooled_loss and not records.shuffled:
        raise UsageError(
            "--pooled_loss=True but the records hold no shuffled words: make them with --trigram_rate=0.05"
        )
    return records


def open_dataset(options: Any, shards: Shards, batch_size: int) -> PretrainingDataset:
    """Open record files with the lengths that the flags ask for."""
    from data.forms.ranges import Bounds
    from data.reading import PretrainingDataset

    return PretrainingDataset(
        shards,
        batch_size,
        seed=options.seed,
        max_seq_length=options.max_seq_length,
        max_predictions_per_seq=options.max_predictions_per_seq,
        bounds=Bounds(num_labels=len(OBJECTIVES[options.objective].labels) or None),
    )


def by_language(
    options: Any, dataset: PretrainingDataset, shards: Shards, batch_size: int
) -> dict[str, PretrainingDataset]:
    """Return the examples of each language, opened apart; all of them where there is one.

    Raises `UsageError` where some shards say their language and others do not.
    """
    from data.manifest import language_of

    languages: dict[str, Path] = {}
    for path in shards.paths:
        manifest = shards.listings[path].manifest if path in shards.listings else None
        languages.setdefault(language_of(manifest), path)
    if len(languages) < 2:
        return dict.fromkeys(languages, dataset)
    if "" in languages:
        named = next(path for name, path in languages.items() if name)
        raise UsageError(
            f"{languages['']} is of a language that its manifest does not say, but {named} says it: make the records "
            "of all with create_pretraining_data.py --input_file=en=TEXT,..."
        )
    parts = {name: shards.where(lambda manifest, name=name: language_of(manifest) == name) for name in languages}
    return {name: open_dataset(options, part, batch_size) for name, part in parts.items()}


def shares_of(options: Any, shards: Shards, languages: Mapping[str, PretrainingDataset]) -> dict[str, float]:
    """Return how often each language is drawn; nothing where there is one.

    Raises `UsageError` for flags that ask for shares of what is not there.
    """
    from data.languages import ALPHA, is_pair, mixed_shares
    from data.manifest import language_of, text_size

    pairs = [name for name in languages if is_pair(name)]
    if options.parallel_share is not None and not 0 < len(pairs) < len(languages):
        raise UsageError(
            f"--parallel_share={options.parallel_share:g}: the records are of {', '.join(languages) or 'no'} language; "
            "expected some of single languages and some of pairs, as create_pretraining_data.py "
            "--input_file=en=TEXT,en-zh=TEXT:TEXT makes them"
        )
    if len(languages) < 2:
        if options.language_alpha != ALPHA:
            raise UsageError(
                f"--language_alpha={options.language_alpha:g} but the records are of one language: make them with "
                "create_pretraining_data.py --input_file=en=TEXT,zh=TEXT, or leave it out"
            )
        return {}
    manifests = {id(listing.manifest): listing.manifest for listing in shards.listings.values()}
    sizes = dict.fromkeys(languages, 0.0)
    for manifest in manifests.values():
        sizes[language_of(manifest)] += text_size(manifest)
    shares = mixed_shares(sizes, options.language_alpha, options.parallel_share)
    return {name: share for name, share in shares.items() if share > 0}


def is_held_out(manifest: Mapping[str, Any] | None) -> bool:
    """Whether records were made of documents that were set apart."""
    return manifest is not None and manifest["recipe"]["held_out"]


def check_objective(dataset: PretrainingDataset, objective: str) -> None:
    """Raise `UsageError` where the records were made for another objective than is asked for."""
    made_for = (dataset.manifest or {}).get("objective", objective)
    if made_for not in (objective, OBJECTIVES[objective].served_by):
        raise UsageError(
            f"--objective={objective} but the records were made with --objective={made_for}: "
            f"give --objective={made_for}, or make others"
        )


def check_ids(dataset: PretrainingDataset, vocab_size: int, config_file: str) -> None:
    """Raise `UsageError` where the first batch of records without a manifest has ids beyond the vocabulary."""
    if dataset.manifest is not None:
        return
    batch = dataset.batch(0)
    features = [name for side in dataset.form.sides for name in (side.ids, f"{side.hidden}_ids") if name in batch]
    largest = max(int(batch[name].max()) for name in features)
    if largest >= vocab_size:
        raise UsageError(
            f"the records hold the id {largest:,} but {config_file} has vocab_size={vocab_size:,}: "
            "use the config whose vocabulary the records were made with"
        )


def keep_pair_head(tensors: dict[str, Array], options: Any) -> None:
    """Remove the sentence-pair head of --init_checkpoint where it is not wanted, or not learnt.

    Raises `UsageError` where it is wanted and has another number of classes than the objective.
    """
    labels, head = OBJECTIVES[options.objective].labels, tensors.get("sentence_pair/bias")
    classes = 0 if head is None else head.shape[0]
    if not (options.init_sentence_head and labels):
        for name in ("sentence_pair/kernel", "sentence_pair/bias"):
            tensors.pop(name, None)
    elif head is not None and classes != len(labels):
        raise UsageError(
            f"--init_checkpoint={shown(options.init_checkpoint)} has a sentence-pair head of {classes} classes, but "
            f"--objective={options.objective} has {len(labels)} ({', '.join(labels)}): give an objective "
            f"of {classes} classes, or --init_sentence_head=False for a new head"
        )


def check_pair_head(tensors: dict[str, Array], objective: str) -> None:
    """Raise `UsageError` where weights that are to be scored have no sentence-pair head of the objective's classes."""
    labels, head = OBJECTIVES[objective].labels, tensors.get("sentence_pair/bias")
    if labels and (head is None or head.shape[0] != len(labels)):
        got = "no sentence-pair head" if head is None else f"a sentence-pair head of {head.shape[0]} classes"
        raise UsageError(
            f"the weights have {got}, but --objective={objective} scores {len(labels)} "
            f"({', '.join(labels)}): give the --objective that they were trained with and records made for it, "
            "or train a head with --do_train"
        )
