"""Record shards -> batches for pretraining: `batch(step)` is a pure function of (seed, step), whatever was read before.

Reads the shards of `create_pretraining_data.py` with their manifest, and those of BERT, Google and albert_zh without
one. Examples of `--masking=dynamic` are masked here, anew in every epoch.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from absl.app import UsageError

from data import manifest as manifests
from data.forms import Form, texts_read
from data.forms.ranges import Bounds, faults
from data.forms.segments import COMPACT_FEATURES, Segments
from data.manifest import find_manifests
from data.masking import Masking, MaskVocabulary
from data.order import EpochOrder
from data.randomness import keys, stream_number
from data.recipe import Recipe, Specials
from data.schema import Feature, Lengths, Schema, lengths_of, padding, present, required, widths_of
from data.shards import Shards, expand_shards
from data.tfrecord.decoding import Column, decode_examples
from data.tfrecord.files import OPEN_FILES, RecordFile, RecordFiles
from data.tfrecord.frames import MalformedRecordError

__all__ = ["PretrainingDataset", "Shards", "expand_shards", "find_manifests"]

# What is looked at before it is trained on: records of every file, and batches of files that have no manifest.
FIRST_RECORDS = 32
FIRST_BATCHES = 16
_MASK = stream_number("dynamic masks")


class PretrainingDataset:
    """Batches of pretraining examples; in every epoch each example occurs exactly once, in a new order.

    The order is a permutation of the files and, in runs of files with about a million examples, of their examples
    (`data.order`). A batch may reach over the end of an epoch.

    Attributes:
        manifest: of the shards, None where no file has one.
        form: how the examples are laid out, a row of `data.forms.FORMS`.
        schema: the features of a batch.
        lengths: the lengths that the schema's axes name.
        num_examples: of all shards.
    """

    def __init__(
        self,
        patterns: str | Sequence[str] | Shards,
        batch_size: int,
        *,
        seed: int = 0,
        shard: tuple[int, int] = (0, 1),
        max_seq_length: int | None = None,
        max_predictions_per_seq: int | None = None,
        masking: Masking | None = None,
        mask_vocabulary: MaskVocabulary | None = None,
        bounds: Bounds | None = None,
        check_all: bool = False,
    ):
        """Find the shards and count their examples.

        Args:
            patterns: record files, as paths or glob patterns, or found before.
            batch_size: examples per batch of this reader.
            seed: of order and dynamic masks.
            shard: (index, count): this reader gets the index-th of count equal parts of every batch of
                count * batch_size examples.
            max_seq_length: checked against the shards; None takes theirs.
            max_predictions_per_seq: likewise; decides where masking is dynamic.
            masking: for dynamic masking; None takes the manifest's.
            mask_vocabulary: for dynamic masking; None takes the manifest's.
            bounds: of the values of records without a manifest, as far as they are known.
            check_all: validate every batch, for reading that is not training.

        Raises:
            UsageError: nothing matches, no example is there, shards or flags contradict one another, or a file is
                damaged or its first records hold values that mean nothing.
        """
        self.batch_size, self.seed, self.shard = batch_size, seed, shard
        self._shards = patterns if isinstance(patterns, Shards) else Shards.find(patterns)
        listings = self._shards.listings
        self.manifest = manifests.common_manifest(listings, self.paths)
        listed = [listings[path].entry["examples"] if path in listings else None for path in self.paths]
        self._checked: set[Path] | None = None
        self._files = RecordFiles(self.paths, listed, self._check)
        self.num_examples = int(self._files.begins[-1])
        if not self.num_examples:
            raise UsageError(f"no example in {self._shards}: write some with create_pretraining_data.py")
        self._order = EpochOrder(self._files.counts, seed)
        self.form: Form = manifests.form_of(self.manifest)
        self.dynamic = self.manifest is not None and self.manifest["masking"] == "dynamic"
        self.lengths: Lengths = self._found_lengths()
        self._specials: Specials | None = None
        if self.manifest is not None:
            self._specials = Specials.from_json(self.manifest["tokenizer"])
        if self.dynamic:
            self._begin_masking(masking, mask_vocabulary, max_predictions_per_seq)
        self._check_flags(max_seq_length, max_predictions_per_seq)
        self.schema: Schema = present(self.form.schema, self.lengths)
        if self.manifest is not None and not self.dynamic:
            self.schema = manifests.schema_of(self.manifest)
        self._bounds = Bounds.of_manifest(self.manifest) if self.manifest is not None else bounds or Bounds()
        self._begin_checks([number for number, count in enumerate(listed) if count is None], check_all=check_all)

    def _begin_masking(
        self, masking: Masking | None, mask_vocabulary: MaskVocabulary | None, predictions: int | None
    ) -> None:
        """Find what dynamic examples are masked by, which is what is given or, for None, the manifest's."""
        assert self.manifest is not None
        recipe = Recipe.from_json(self.manifest["recipe"])
        # Dynamic examples are masked here, so that the flag decides how many predictions there is room for.
        amounts = masking or recipe.masking
        slots = masking.max_predictions if masking else predictions or self.max_predictions_per_seq
        self._recipe = dataclasses.replace(recipe, masking=dataclasses.replace(amounts, max_predictions=slots))
        self._vocabulary = mask_vocabulary or manifests.mask_vocabulary_from_json(self.manifest["mask_vocabulary"])
        self.lengths = self._recipe.lengths

    # -- what the shards say -------------------------------------------------------------------------------------------

    @property
    def paths(self) -> tuple[Path, ...]:
        """The record files."""
        return self._shards.paths

    def origins(self) -> list[str]:
        """Return a line for every manifest (recipe, tokenizer, texts), and for every file without one (name, size).

        A shard that was repaired, or is read from another folder, changes nothing.
        """
        keys = ("recipe", "tokenizer", "inputs")
        listings = self._shards.listings
        bare = [f"{path.name} {path.stat().st_size}" for path in self.paths if path not in listings]
        made = ({key: listing.manifest.get(key) for key in keys} for listing in listings.values())
        return sorted({json.dumps(each, sort_keys=True) for each in made}) + sorted(bare)

    @property
    def max_seq_length(self) -> int:
        """Tokens of a row."""
        return self.lengths["tokens"]

    @property
    def max_target_length(self) -> int:
        """Positions of a decoder; 0 in forms without a target."""
        return max(self.lengths.get("target", 0) - 1, 0)

    @property
    def max_other_length(self) -> int:
        """Tokens of the second text that is read; 0 in forms of one."""
        return self.max_seq_length * (texts_read(self.form) - 1)

    @property
    def positions(self) -> int:
        """Tokens that an example has room for, in all of its rows."""
        return sum(widths_of(self.form.schema, self.lengths, [side.ids for side in self.form.sides]))

    @property
    def max_predictions_per_seq(self) -> int:
        """Masked tokens of a row that there is room for; 0 in forms without."""
        return self.lengths.get("predictions", 0)

    @property
    def max_word_order_per_seq(self) -> int:
        """Shuffled tokens of a row that there is room for; 0 where no words are shuffled."""
        return self.lengths.get("shuffled", 0)

    @property
    def fill(self) -> float:
        """Share of positions that hold a token and not padding, as the manifests count it; 0 without manifests."""
        counts = manifests.total_counts(self._shards.listings)
        return counts["example_tokens"] / max(counts["examples"] * self.positions, 1)

    @property
    def sequences_per_example(self) -> float:
        """Sequences of a row, as the manifests count them; 0 where rows are not packed."""
        counts = manifests.total_counts(self._shards.listings)
        return counts["sequences"] / max(counts["examples"], 1)

    def _found_lengths(self) -> Lengths:
        """Return the lengths of the manifest, or those of the first example where there is none."""
        if self.manifest is not None:
            return manifests.lengths_of(self.manifest)
        first = np.flatnonzero(self._files.counts)[:1]
        records = self._files.read(self._files.begins[first])
        columns, _ = decode_examples(records)
        lengths = lengths_of(self.form.schema, {name: len(column.values) for name, column in columns.items()})
        names = required(self.form.schema, lengths, self.form.optional)
        columns = self._columns(records, names, [int(first[0])])
        if empty := [name for name in names if not len(columns[name].values)]:
            path = self.paths[first[0]]
            raise UsageError(
                f"{path}, record 0: {', '.join(empty)} of no values; expected values in every feature of an example: "
                f"list what else is wrong with: python3 inspect_records.py verify {path}"
            )
        return lengths

    def _check_flags(self, length: int | None, predictions: int | None) -> None:
        """Raise `UsageError` where flags ask for other lengths than the shards have."""
        for flag, asked, found in (
            ("max_seq_length", length, self.max_seq_length),
            ("max_predictions_per_seq", predictions, self.max_predictions_per_seq),
        ):
            if asked is not None and asked != found:
                raise UsageError(
                    f"--{flag}={asked} but {self._shards} has {flag}={found}: "
                    f"give --{flag}={found} or write other shards"
                )

    def _check(self, file: RecordFile) -> None:
        """Raise `UsageError` where a file that is opened is not what its manifest says, or begins with nonsense."""
        self._check_count(file)
        if self._checked is not None:
            self._check_values(file)

    def _begin_checks(self, foreign: Sequence[int], *, check_all: bool) -> None:
        """Validate the first records of the files without a manifest, numbered so, and from now on of all others."""
        self._checked = set()
        self._to_check = sys.maxsize if check_all else FIRST_BATCHES if foreign else 0
        for number in foreign[:OPEN_FILES]:
            self._check_values(self._files.file(number))

    def _check_values(self, file: RecordFile) -> None:
        """Validate the first records of a file, once."""
        assert self._checked is not None
        if file.path in self._checked:
            return
        self._checked.add(file.path)
        numbers = np.arange(min(len(file), FIRST_RECORDS))
        if len(numbers):
            columns, bad = decode_examples(file.read(numbers), self._names)
            if not bad.any() and len(columns) == len(self._names):  # else reading says so
                self._refuse(columns, [(file.path, int(number)) for number in numbers])

    def _refuse(self, columns: Mapping[str, Column], where: Sequence[tuple[Path, int]]) -> None:
        """Raise `UsageError` where a value of records, each at (file, number), means nothing."""
        lengths = manifests.lengths_of(self.manifest) if self.manifest is not None else self.lengths
        try:
            found = faults(columns, self.form, lengths, self._bounds)
        except MalformedRecordError:
            return  # reading says so
        for fault in found:
            path, number = where[fault.first]
            raise UsageError(
                f"{path}, record {number}: {fault.what}, {fault.value}; list what else is wrong with: "
                f"python3 inspect_records.py verify {path}"
            )

    @property
    def _names(self) -> Sequence[str]:
        """The features that are read."""
        return COMPACT_FEATURES if self.dynamic else [feature.name for feature in self.schema if feature.stored]

    def _check_count(self, file: RecordFile) -> None:
        """Raise `UsageError` where a file holds another number of examples than its manifest says."""
        listing = self._shards.listings.get(file.path)
        if listing is not None and listing.entry["examples"] != len(file):
            raise UsageError(
                f"{file.path} holds {len(file)} examples but its manifest says {listing.entry['examples']}: "
                "write the shards anew, or delete the manifest"
            )

    # -- batches -------------------------------------------------------------------------------------------------------

    def part(self, index: int, count: int, batch_size: int) -> Self:
        """Return the reader of the index-th of `count` parts of every batch; it shares the open files of this one."""
        other = copy.copy(self)
        other.shard, other.batch_size = (index, count), batch_size
        return other

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return the batch of optimizer step `step` (from 0), as `schema` and `lengths` say.

        Of BERT's form: int32 `input_ids input_mask segment_ids` [B, L], `masked_lm_positions masked_lm_ids` [B, P],
        `next_sentence_labels` [B]; float32 `masked_lm_weights` [B, P]. Where words were shuffled also
        `word_order_positions word_order_ids word_order_weights` [B, Q]; of packed examples int32 `sequence_ids` [B, L].
        """
        index, count = self.shard
        begin = (step * count + index) * self.batch_size
        positions = np.arange(begin, begin + self.batch_size, dtype=np.int64)
        epochs, positions = np.divmod(positions, self.num_examples)
        examples = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            examples[chosen] = self._order.examples(positions[chosen], int(epoch))
        return self._read(examples, epochs)

    def evaluation_batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield every example once, in file order and with the same masks each time.

        The last batch is filled up with rows of zeros: their `input_mask` and `masked_lm_weights` are zero throughout.
        All readers of a sharded dataset yield equally many batches.
        """
        index, count = self.shard
        for begin in range(index * batch_size, self.num_examples + index * batch_size, count * batch_size):
            examples = np.arange(begin, min(begin + batch_size, self.num_examples), dtype=np.int64)
            rest = padding(self.schema, self.lengths, batch_size - len(examples))
            if not len(examples):
                yield rest
                continue
            batch = self._read(examples, np.full(len(examples), -1))
            if len(examples) < batch_size:
                batch = {name: np.concatenate([value, rest[name]]) for name, value in batch.items()}
            yield batch

    def _read(self, examples: np.ndarray, epochs: np.ndarray) -> dict[str, np.ndarray]:
        """Return the features of examples; `epochs` decides their dynamic masks."""
        stored = [feature for feature in self.schema if feature.stored]
        columns = self._columns(self._files.read(examples), self._names, self._files.numbers(examples).tolist())
        if self._to_check:
            self._to_check -= 1
            files = self._files.numbers(examples)
            places = (examples - self._files.begins[files]).tolist()
            self._refuse(columns, [(self.paths[file], place) for file, place in zip(files, places, strict=True)])
        try:
            if self.dynamic:
                features = self._masked(columns, examples, epochs)
            else:
                features = {feature.name: _decoded(columns, feature, self.lengths) for feature in stored}
        except MalformedRecordError as error:
            wrong = Shards(tuple(self.paths[i] for i in np.unique(self._files.numbers(examples))), {})
            raise UsageError(f"{wrong}: {error}; all shards read together need the same lengths") from None
        if self._specials is not None:
            features = self.form.complete(features, self._specials)
        return {feature.name: features[feature.name] for feature in self.schema}

    def _masked(self, columns: Mapping[str, Column], examples: np.ndarray, epochs: np.ndarray) -> dict[str, np.ndarray]:
        """Return compact examples with tokens hidden by (seed, example, epoch)."""
        assert self._specials is not None
        segments = Segments.from_record(columns, self.form.width(self._recipe))
        keys_N = keys(self.seed, _MASK, examples, epochs)
        return self.form.features(segments, keys_N, self._recipe, self._specials, self._vocabulary)

    def _columns(self, records: list[bytes], names: Sequence[str], files: Sequence[int]) -> dict[str, Column]:
        """Decode records of the files numbered so; raises `UsageError` where one lacks a feature."""
        columns, bad = decode_examples(records, names)
        missing = [name for name in names if name not in columns]
        if missing or bad.any():
            path = self.paths[files[int(np.argmax(bad)) if bad.any() else 0]]
            if missing and Segments.are_in(decode_examples(records)[0]):
                raise UsageError(
                    f"{path}: compact examples need the manifest that was written beside them, to mask by: copy it here"
                )
            lacks = f"lacks {', '.join(missing)}" if missing else "is not an example with the features of the others"
            raise UsageError(f"{path}: a record {lacks}; expected BERT's pretraining features {', '.join(names)}")
        return columns


def _decoded(columns: Mapping[str, Column], feature: Feature, lengths: Lengths) -> np.ndarray:
    """Return one stored feature as the schema says; raises `MalformedRecordError` that names it."""
    try:
        return columns[feature.name].array(feature.shape(lengths), feature.dtype)
    except MalformedRecordError as error:
        raise MalformedRecordError(f"{feature.name}: {error}") from None
