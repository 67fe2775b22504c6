"""The records of a pretraining run, of every objective: those to train on, those held out, and whether they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from commands.across import with_signal
from commands.objective_files import files_of_objectives, is_named
from data.objectives import OBJECTIVES, same_records
from ground.addresses import shown

if TYPE_CHECKING:
    from conversion.lazy import Array
    from data.mixture import Dataset, Mixture
    from data.reading import PretrainingDataset
    from data.shards import Shards
    from data.spoken import Languages, Spoken
    from modeling.config import Config


@dataclass(frozen=True)
class Records:
    """The data sets of an objective of a pretraining run.

    Attributes:
        training: their examples.
        held_out: examples of documents that `training` does not hold; None without --do_eval.
        objective: that is learnt from them.
        training_languages: the examples of each language, by its code; of one that is not named where there is one.
        held_out_languages: likewise; none without --do_eval.
        shares: how often each language is drawn; empty where there is one.
        signal: languages that tokens say they are to be of, in the order of their numbers; none by default.
        said: the languages of examples of each language of records, where there is a signal.
        beside_written: a data set of them -> one whose batches bring what was written beside their texts before; None
            where nothing was.
    """

    training: PretrainingDataset
    held_out: PretrainingDataset | None
    objective: str
    training_languages: Mapping[str, PretrainingDataset]
    held_out_languages: Mapping[str, PretrainingDataset]
    shares: Mapping[str, float]
    signal: tuple[str, ...] = ()
    said: Mapping[str, Languages] = field(default_factory=dict)
    beside_written: Callable[[Dataset], Dataset] | None = None

    def mixture(self, rows: tuple[int, int], batch_size: int, seed: int) -> Dataset:
        """Return what is trained on.

        Args:
            rows: (index, count): this process computes the index-th of count equal parts of every batch.
            batch_size: of all processes.
            seed: decides which of two languages with equal claims comes first.
        """
        from data.mixture import Mixture

        parts: dict[str, Dataset] = {
            name: self.spoken(name, each.part(*rows, batch_size // rows[1]))
            for name, each in self.training_languages.items()
        }
        if self.beside_written is not None:
            parts = {name: self.beside_written(part) for name, part in parts.items()}
        if not self.shares:
            return next(iter(parts.values()))
        return Mixture({name: (parts[name], share) for name, share in self.shares.items()}, seed)

    def spoken(self, language: str, dataset: PretrainingDataset) -> PretrainingDataset | Spoken:
        """Return the examples of a language of records, with the languages of their texts where they are said."""
        from data.spoken import Spoken

        return Spoken(dataset, self.said[language]) if self.said else dataset

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
    def tokens(self) -> int:
        """Tokens of an example, of all its texts."""
        return self.training.max_seq_length + self.training.max_target_length + self.training.max_other_length

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


@dataclass(frozen=True)
class AllRecords:
    """The data sets of a pretraining run.

    Attributes:
        parts: by objective.
        shares: of the steps, by objective; the sum is 1.
    """

    parts: Mapping[str, Records]
    shares: Mapping[str, float]

    @property
    def first(self) -> Records:
        """Of the first objective; of the only one, where there is one."""
        return next(iter(self.parts.values()))

    @property
    def are_mixed(self) -> bool:
        """Whether several objectives are learnt, so that batches say of which they are."""
        return len(self.parts) > 1

    @property
    def signal(self) -> tuple[str, ...]:
        """The languages that tokens say they are to be of; none by default."""
        return next((part.signal for part in self.parts.values() if part.signal), ())

    @property
    def max_seq_length(self) -> int:
        """The most tokens of a row of any objective."""
        return max(part.training.max_seq_length for part in self.parts.values())

    @property
    def has_held_out(self) -> bool:
        """Whether there is something to evaluate on."""
        return self.first.held_out is not None

    def tokenizer_facts(self, config: Config, config_file: str) -> dict[str, Any]:
        """Return those of the one vocabulary, as far as any manifest tells them; see `Records.tokenizer_facts`."""
        found = [part.tokenizer_facts(config, config_file) for part in self.parts.values()]
        return next((facts for facts in found if facts["fingerprint"]), found[0])

    def paths(self, *, held_out: bool = False) -> list[Path]:
        """Return the files of all objectives."""
        found = [part.held_out if held_out else part.training for part in self.parts.values()]
        return list(dict.fromkeys(path for dataset in found if dataset for path in dataset.paths))

    def mixture(self, rows: tuple[int, int], batch_size: int, seed: int) -> Dataset:
        """Return what is trained on; see `Records.mixture`."""
        from data.mixture import Marked

        if not self.are_mixed:
            return self.first.mixture(rows, batch_size, seed)
        parts = {name: Marked(part.mixture(rows, batch_size, seed), name) for name, part in self.parts.items()}
        return self.order(seed, parts)

    def order(self, seed: int, datasets: Mapping[str, Dataset] | None = None) -> Mixture:
        """Return which objective each step learns; with `datasets` of the objectives also what from."""
        from data.mixture import Mixture

        of = datasets or {name: part.training for name, part in self.parts.items()}
        return Mixture({name: (of[name], share) for name, share in self.shares.items()}, seed)


def open_records(options: Any) -> AllRecords:
    """Open the records that the flags of run_pretraining.py name.

    Raises:
        UsageError: nothing matches, files contradict one another or the flags, or --do_eval finds nothing held out.
    """
    objectives = tuple(options.shares)
    shards = files_of_objectives(options.input_file, objectives, "--input_file")
    held_out: dict[str, Shards] = {}
    if options.eval_input_file:
        held_out = files_of_objectives(options.eval_input_file, objectives, "--eval_input_file")
    parts = {name: open_part(options, name, shards[name], held_out.get(name)) for name in objectives}
    check_lengths(options, parts)
    check_one_vocabulary(parts.values())
    check_language_flags(options, parts)
    parts = with_signal(options, parts)
    if options.pooled_loss and not any(part.shuffled for part in parts.values()):
        raise UsageError(
            "--pooled_loss=True but the records hold no shuffled words: make them with --trigram_rate=0.05"
        )
    return AllRecords(parts, options.shares)


def open_part(options: Any, objective: str, shards: Shards, held_out_shards: Shards | None) -> Records:
    """Open the records of one objective; raises `UsageError` as `open_records`."""
    of = f" of {objective}" if len(options.shares) > 1 else ""
    given = ", ".join(options.input_file)
    training_shards = shards.where(lambda manifest: not is_held_out(manifest))
    if not training_shards.paths:
        raise UsageError(f"all{of} of {given} is held out: give --input_file the training records too")
    held_out_shards = held_out_shards or shards.where(is_held_out)
    if options.do_eval and not held_out_shards.paths:
        raise UsageError(
            f"--do_eval: none{of} of {given} is held out; make the records with --eval_fraction, or give "
            "--eval_input_file"
        )
    sizes = options.train_batch_size, options.eval_batch_size
    seed = seed_of(options, objective)
    training = open_dataset(options, objective, training_shards, sizes[0], seed)
    held_out = open_dataset(options, objective, held_out_shards, sizes[1]) if options.do_eval else None
    training_languages = by_language(options, objective, training, training_shards, sizes[0], seed)
    records = Records(
        training,
        held_out,
        objective,
        training_languages,
        by_language(options, objective, held_out, held_out_shards, sizes[1]) if held_out else {},
        shares_of(options, training_shards, training_languages),
    )
    if not of and not is_named(options.input_file):
        check_objective(training, objective)
    check_form(training, objective)
    if held_out and bool(held_out.max_word_order_per_seq) != records.shuffled:
        with_words, without = ("--input_file", "the held-out ones")[:: 1 if records.shuffled else -1]
        raise UsageError(f"{with_words} hold shuffled words but {without} do not: make both with one --trigram_rate")
    return records


def seed_of(options: Any, objective: str) -> int:
    """Return what decides the order and the dynamic masks of an objective's examples in training.

    Objectives that read the same records would learn from the same batches one after the other; each has an order of
    its own. Held-out examples are masked alike, with any objective beside.
    """
    if len(options.shares) == 1:
        return options.seed
    from data.randomness import keys, stream_number

    return int(keys(options.seed, stream_number(f"order of {objective}"))[0]) >> 1


def open_dataset(
    options: Any, objective: str, shards: Shards, batch_size: int, seed: int | None = None
) -> PretrainingDataset:
    """Open record files of an objective with the lengths that the flags ask for; `seed` is --seed by default."""
    from data.forms.ranges import Bounds
    from data.reading import PretrainingDataset

    return PretrainingDataset(
        shards,
        batch_size,
        seed=options.seed if seed is None else seed,
        # Of several objectives each has a length of its own (`check_lengths`).
        max_seq_length=options.max_seq_length if len(options.shares) == 1 else None,
        max_predictions_per_seq=options.max_predictions_per_seq,
        bounds=Bounds(num_labels=len(OBJECTIVES[objective].labels) or None),
    )


def by_language(
    options: Any,
    objective: str,
    dataset: PretrainingDataset,
    shards: Shards,
    batch_size: int,
    seed: int | None = None,
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
    return {name: open_dataset(options, objective, part, batch_size, seed) for name, part in parts.items()}


def shares_of(options: Any, shards: Shards, languages: Mapping[str, PretrainingDataset]) -> dict[str, float]:
    """Return how often each language is drawn; nothing where there is one."""
    from data.languages import mixed_shares
    from data.manifest import language_of, text_size

    if len(languages) < 2:
        return {}
    manifests = {id(listing.manifest): listing.manifest for listing in shards.listings.values()}
    sizes = dict.fromkeys(languages, 0.0)
    for manifest in manifests.values():
        sizes[language_of(manifest)] += text_size(manifest)
    shares = mixed_shares(sizes, options.language_alpha, options.parallel_share)
    return {name: share for name, share in shares.items() if share > 0}


def check_language_flags(options: Any, parts: Mapping[str, Records]) -> None:
    """Raise `UsageError` for flags that ask for shares of languages where no objective has records of several."""
    from data.languages import ALPHA, is_pair

    codes = [tuple(part.training_languages) for part in parts.values()]
    mixed = [names for names in codes if 0 < sum(map(is_pair, names)) < len(names)]
    if options.parallel_share is not None and not mixed:
        found = (", ".join(names) or "no" for names in codes)
        raise UsageError(
            f"--parallel_share={options.parallel_share:g}: the records are of {'; '.join(found)} language; "
            "expected some of single languages and some of pairs, as create_pretraining_data.py "
            "--input_file=en=TEXT,en-zh=TEXT:TEXT makes them"
        )
    if options.language_alpha != ALPHA and all(len(names) < 2 for names in codes):
        raise UsageError(
            f"--language_alpha={options.language_alpha:g} but the records are of one language: make them with "
            "create_pretraining_data.py --input_file=en=TEXT,zh=TEXT, or leave it out"
        )


def check_lengths(options: Any, parts: Mapping[str, Records]) -> None:
    """Raise `UsageError` where the records of one of several objectives have another length than is asked for."""
    for name, part in parts.items():
        if options.max_seq_length not in (None, found := part.training.max_seq_length):
            raise UsageError(
                f"--max_seq_length={options.max_seq_length} but the records of {name} have max_seq_length={found}: "
                "leave it out, and each objective has its own"
            )


def check_one_vocabulary(parts: Iterable[Records]) -> None:
    """Raise `UsageError` where the records of two objectives have other tokens for the same text."""
    from data.manifest import check_vocabularies

    datasets = [part.training for part in parts]
    known = [(dataset.paths[0], dataset.manifest) for dataset in datasets if dataset.manifest is not None]
    for other in known[1:]:
        check_vocabularies(other, known[0])


def is_held_out(manifest: Mapping[str, Any] | None) -> bool:
    """Whether records were made of documents that were set apart."""
    return manifest is not None and manifest["recipe"]["held_out"]


def check_objective(dataset: PretrainingDataset, objective: str) -> None:
    """Raise `UsageError` where the records were made for another objective than is asked for."""
    made_for = (dataset.manifest or {}).get("objective", objective)
    if not same_records(objective, made_for):
        raise UsageError(
            f"--objective={objective} but the records were made with --objective={made_for}: "
            f"give --objective={made_for}, or make others with create_pretraining_data.py --objective={objective}"
        )


def check_form(dataset: PretrainingDataset, objective: str) -> None:
    """Raise `UsageError` where records without a manifest, which are BERT's, are not what the objective reads."""
    if dataset.manifest is None and (form := OBJECTIVES[objective].form) != "one_row":
        raise UsageError(
            f"--objective={objective} reads examples of the form {form}, but {dataset.paths[0]} has no manifest, and "
            f"examples without one are BERT's: make them with create_pretraining_data.py --objective={objective}"
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


def pair_labels(objectives: Iterable[str]) -> tuple[str, ...]:
    """Return the classes of the one sentence-pair head of a run; none where no objective has pairs."""
    return next((labels for name in objectives if (labels := OBJECTIVES[name].labels)), ())


def keep_pair_head(tensors: dict[str, Array], options: Any) -> None:
    """Remove the sentence-pair head of --init_checkpoint where it is not wanted, or not learnt.

    Raises `UsageError` where it is wanted and has another number of classes than the objective.
    """
    labels, head = pair_labels(options.shares), tensors.get("sentence_pair/bias")
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


def check_pair_head(tensors: dict[str, Array], options: Any) -> None:
    """Raise `UsageError` where weights that are to be scored have no sentence-pair head of the objective's classes."""
    labels, head = pair_labels(options.shares), tensors.get("sentence_pair/bias")
    if labels and (head is None or head.shape[0] != len(labels)):
        got = "no sentence-pair head" if head is None else f"a sentence-pair head of {head.shape[0]} classes"
        raise UsageError(
            f"the weights have {got}, but --objective={options.objective} scores {len(labels)} "
            f"({', '.join(labels)}): give the --objective that they were trained with and records made for it, "
            "or train a head with --do_train"
        )
