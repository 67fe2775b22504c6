"""Record shards -> batches for pretraining: `batch(step)` is a pure function of (seed, step), whatever was read before.

Reads the shards of `create_pretraining_data.py` with their manifest, and those of BERT, Google and albert_zh without
one. Examples of `--masking=dynamic` are masked here, anew in every epoch.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from absl.app import UsageError

from data.masking import Masking, MaskVocabulary
from data.pretraining import (
    MANIFEST_SUFFIX,
    Assembled,
    mask_vocabulary_from_json,
    sequence_ids,
    static_features,
)
from data.randomness import keys, permuted, stream_number
from data.tfrecord.decoding import Column, decode_examples
from data.tfrecord.files import RecordFile
from data.tfrecord.frames import MalformedRecordError
from data.word_order import WordOrder

STATIC_FEATURES = (
    "input_ids",
    "input_mask",
    "segment_ids",
    "masked_lm_positions",
    "masked_lm_ids",
    "masked_lm_weights",
    "next_sentence_labels",
)
WORD_ORDER_FEATURES = ("word_order_positions", "word_order_ids", "word_order_weights")
COMPACT_FEATURES = ("input_ids", "token_boundary", "first_segment_length", "next_sentence_labels")
# Files are shuffled as wholes, and examples within neighbouring files that hold about this many together.
_SHUFFLE_EXAMPLES = 1 << 20
_OPEN_FILES = 128
_FILE_ORDER = stream_number("order of files")
_EXAMPLE_ORDER = stream_number("order of examples")
_MASK = stream_number("dynamic masks")
# What manifests of shards that are read together have to agree on.
_COMMON = (
    "objective",
    "max_seq_length",
    "max_predictions_per_seq",
    "max_word_order_per_seq",
    "masking",
    "num_pair_labels",
)


def expand_shards(patterns: str | Sequence[str]) -> list[Path]:
    """Returns the files of glob patterns (a sequence, or separated by commas), none twice; manifests are left out.

    Raises `UsageError` when a pattern matches nothing.
    """
    names = [
        part.strip() for name in ([patterns] if isinstance(patterns, str) else patterns) for part in name.split(",")
    ]
    paths: dict[Path, None] = {}
    for name in filter(None, names):
        found = sorted(map(Path, glob(name, recursive=True)))  # noqa: PTH207  (Path.glob takes no absolute pattern)
        files = [path for path in found if path.is_file() and not path.name.endswith(MANIFEST_SUFFIX)]
        if not files:
            advice = f"it is a folder; give {name}/*.tfrecord" if Path(name).is_dir() else ""
            raise UsageError(
                f"no record file matches {name!r}: {advice or 'write some with create_pretraining_data.py'}"
            )
        paths.update(dict.fromkeys(files))
    if not paths:
        raise UsageError("no record files given: expected paths or patterns, separated by commas")
    return list(paths)


def find_manifests(paths: Sequence[Path]) -> dict[Path, tuple[dict[str, Any], dict[str, Any]]]:
    """Returns, for the files that a manifest in their folder lists, that manifest and their entry in it."""
    listed = {}
    for folder in {path.parent for path in paths}:
        for manifest_path in sorted(folder.glob("*" + MANIFEST_SUFFIX)):
            try:
                manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
                entries = {(folder / shard["name"]).resolve(): shard for shard in manifest["shards"]}
            except (ValueError, KeyError, TypeError):
                raise UsageError(f"{manifest_path}: not a manifest; delete it to read the shards without it") from None
            listed.update({path: (manifest, entry) for path, entry in entries.items()})
    return {path: listed[path.resolve()] for path in paths if path.resolve() in listed}


@dataclass(frozen=True)
class _Group:
    """Files whose examples are shuffled together in some epoch, and where they stand in it."""

    first: int
    files: np.ndarray  # indices
    ends: np.ndarray  # cumulative examples

    @property
    def size(self) -> int:
        return int(self.ends[-1])


class PretrainingDataset:
    """Batches of pretraining examples; in every epoch each example occurs exactly once, in a new order.

    The order is a permutation of the files and, in runs of files with about a million examples, of their examples;
    it is computed, not stored. A batch may reach over the end of an epoch.
    """

    def __init__(
        self,
        patterns: str | Sequence[str],
        batch_size: int,
        *,
        seed: int = 0,
        shard: tuple[int, int] = (0, 1),
        max_seq_length: int | None = None,
        max_predictions_per_seq: int | None = None,
        masking: Masking | None = None,
        mask_vocabulary: MaskVocabulary | None = None,
    ):
        """Finds the shards and how many examples they hold.

        Args:
            patterns: record files, as paths or glob patterns.
            batch_size: examples per batch of this reader.
            seed: of order and dynamic masks.
            shard: (index, count): this reader gets the index-th of count equal parts of every batch of
                count * batch_size examples.
            max_seq_length: checked against the shards; None takes theirs.
            max_predictions_per_seq: likewise.
            masking: for dynamic masking; None takes the manifest's.
            mask_vocabulary: for dynamic masking; None takes the manifest's.

        Raises:
            UsageError: nothing matches, no example is there, shards or flags contradict one another, or a file is
                damaged.
        """
        self.batch_size, self.seed, self.shard = batch_size, seed, shard
        self.paths = expand_shards(patterns)
        self._files: OrderedDict[int, RecordFile] = OrderedDict()
        described = find_manifests(self.paths)
        self.manifest = self._common_manifest(described)
        self._counts = np.asarray(
            [
                described[path][1]["examples"] if path in described else len(self._open(i))
                for i, path in enumerate(self.paths)
            ],
            np.int64,
        )
        self._described = described
        self._begins = np.concatenate([[0], np.cumsum(self._counts)])
        self.num_examples = int(self._begins[-1])
        if not self.num_examples:
            raise UsageError(f"no example in {self._names(self.paths)}: write some with create_pretraining_data.py")
        self.dynamic = self.manifest is not None and self.manifest["masking"] == "dynamic"
        self.packed = self.manifest is not None and bool(self.manifest["recipe"].get("packing"))
        self.max_seq_length, self.max_predictions_per_seq = self._lengths(
            max_seq_length, max_predictions_per_seq, masking
        )
        self.max_word_order_per_seq = self._word_order_slots()
        if self.dynamic:
            assert self.manifest is not None
            self._masking = masking or Masking(**self.manifest["recipe"]["masking"])
            self._vocabulary = mask_vocabulary or mask_vocabulary_from_json(self.manifest["mask_vocabulary"])
            word_order = self.manifest["recipe"].get("word_order")
            self._word_order = WordOrder(**word_order) if word_order else None
        self._epoch_groups: tuple[int, list[_Group]] = (-1, [])

    # -- what the shards say -------------------------------------------------------------------------------------------

    @staticmethod
    def _names(paths: Sequence[Path]) -> str:
        return str(paths[0]) if len(paths) == 1 else f"{len(paths)} files from {paths[0]} to {paths[-1]}"

    def _common_manifest(self, described: dict[Path, tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any] | None:
        if not described:
            return None
        (first_path, (first, _)), *others = described.items()
        for path, (manifest, _) in others:
            if manifest["recipe"].get("packing") != first["recipe"].get("packing"):
                raise UsageError(f"of {path} and {first_path} only one has packed sequences: read them apart")
            for name in _COMMON:
                # Manifests of before StructBERT know nothing of word order.
                found, expected = manifest.get(name, 0), first.get(name, 0)
                if found != expected:
                    raise UsageError(
                        f"{path} has {name}={found} but {first_path} has {name}={expected}: "
                        "give --input_file shards of one kind"
                    )
            if manifest["tokenizer"]["fingerprint"] != first["tokenizer"]["fingerprint"]:
                raise UsageError(
                    f"{path} was made with tokenizer {manifest['tokenizer']['file']} "
                    f"({manifest['tokenizer']['fingerprint'][:8]}) but {first_path} with {first['tokenizer']['file']} "
                    f"({first['tokenizer']['fingerprint'][:8]}): give --input_file shards of one vocabulary"
                )
        if len(described) < len(self.paths) and first["masking"] == "dynamic":
            bare = next(path for path in self.paths if path not in described)
            raise UsageError(f"{first_path} is to be masked on the fly but {bare} has no manifest: read them apart")
        return first

    def _lengths(
        self, asked_length: int | None, asked_predictions: int | None, masking: Masking | None
    ) -> tuple[int, int]:
        if self.manifest is None:
            first = int(np.flatnonzero(self._counts)[0])
            columns = self._columns(self._open(first).read(np.asarray([0])), STATIC_FEATURES, [first])
            length, predictions = len(columns["input_ids"].values), len(columns["masked_lm_positions"].values)
        else:
            length, predictions = self.manifest["max_seq_length"], self.manifest["max_predictions_per_seq"]
        if self.dynamic:
            # Dynamic examples are masked here, so that the flag decides; they may also be padded to more.
            predictions = masking.max_predictions if masking else asked_predictions or predictions
        for flag, asked, found in (
            ("max_seq_length", asked_length, length),
            ("max_predictions_per_seq", asked_predictions, predictions),
        ):
            if asked is not None and asked != found:
                raise UsageError(
                    f"--{flag}={asked} but {self._names(self.paths)} has {flag}={found}: "
                    f"give --{flag}={found} or write other shards"
                )
        return length, predictions

    def _word_order_slots(self) -> int:
        if self.manifest is not None:
            return self.manifest.get("max_word_order_per_seq", 0)
        first = int(np.flatnonzero(self._counts)[0])
        columns, _ = decode_examples(self._open(first).read(np.asarray([0])))
        return len(columns["word_order_positions"].values) if "word_order_positions" in columns else 0

    @property
    def fill(self) -> float:
        """Share of positions that hold a token and not padding, as the manifests count it; 0 without manifests."""
        counts = self._counted()
        return counts["example_tokens"] / max(counts["examples"] * self.max_seq_length, 1)

    @property
    def sequences_per_example(self) -> float:
        """Of packed examples, as the manifests count it; 0 for others."""
        counts = self._counted()
        return counts["sequences"] / max(counts["examples"], 1)

    def _counted(self) -> Counter[str]:
        manifests = {id(manifest): manifest for manifest, _ in self._described.values()}
        totals = Counter[str]()
        for manifest in manifests.values():
            totals.update({name: n for name, n in manifest["counts"].items() if name != "labels"})
        return totals

    # -- order ---------------------------------------------------------------------------------------------------------

    def _groups(self, epoch: int) -> list[_Group]:
        if self._epoch_groups[0] != epoch:
            order = np.random.Generator(np.random.PCG64([self.seed % 2**64, _FILE_ORDER, epoch]))
            groups, members, first, total = [], [], 0, 0
            for file in [*order.permutation(len(self.paths)), -1]:
                if members and (file < 0 or total + self._counts[file] > _SHUFFLE_EXAMPLES):
                    ends = np.cumsum(self._counts[members])
                    groups.append(_Group(first, np.asarray(members), ends))
                    first, members, total = first + int(ends[-1]), [], 0
                if file >= 0 and self._counts[file]:
                    members.append(int(file))
                    total += int(self._counts[file])
            self._epoch_groups = (epoch, groups)
        return self._epoch_groups[1]

    def _locate(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        """Maps positions in an epoch to example numbers (files one after the other)."""
        groups = self._groups(epoch)
        group_of = np.searchsorted([group.first for group in groups], positions, side="right") - 1
        examples = np.empty(len(positions), np.int64)
        for number in np.unique(group_of):
            group, chosen = groups[number], group_of == number
            key = int(keys(self.seed, _EXAMPLE_ORDER, epoch, int(number))[0])
            within = permuted(positions[chosen] - group.first, group.size, key)
            file = np.searchsorted(group.ends, within, side="right")
            before = np.concatenate([[0], group.ends])[file]
            examples[chosen] = self._begins[group.files[file]] + within - before
        return examples

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns the batch of optimizer step `step` (from 0).

        int32 `input_ids input_mask segment_ids` [B, L], `masked_lm_positions masked_lm_ids` [B, P],
        `next_sentence_labels` [B]; float32 `masked_lm_weights` [B, P]. Where words were shuffled also
        `word_order_positions word_order_ids word_order_weights` [B, Q]. Of packed examples also int32 `sequence_ids`
        [B, L]: positions may attend to those with the same number only.
        """
        index, count = self.shard
        begin = (step * count + index) * self.batch_size
        positions = np.arange(begin, begin + self.batch_size, dtype=np.int64)
        epochs, positions = np.divmod(positions, self.num_examples)
        examples = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            examples[chosen] = self._locate(positions[chosen], int(epoch))
        return self._read(examples, epochs)

    def evaluation_batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields every example once, in file order and with the same masks each time.

        The last batch is filled up with rows of zeros: their `input_mask` and `masked_lm_weights` are zero throughout.
        All readers of a sharded dataset yield equally many batches.
        """
        index, count = self.shard
        for begin in range(index * batch_size, self.num_examples + index * batch_size, count * batch_size):
            examples = np.arange(begin, min(begin + batch_size, self.num_examples), dtype=np.int64)
            if len(examples):
                batch = self._read(examples, np.full(len(examples), -1))
                missing = batch_size - len(examples)
                yield {
                    name: np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)])
                    if missing
                    else value
                    for name, value in batch.items()
                }
            else:
                yield {
                    name: np.zeros((batch_size, *value.shape[1:]), value.dtype)
                    for name, value in self._shapes().items()
                }

    def _shapes(self) -> dict[str, np.ndarray]:
        return self._read(np.zeros(1, np.int64), np.full(1, -1))

    # -- reading -------------------------------------------------------------------------------------------------------

    def _open(self, number: int) -> RecordFile:
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        file = RecordFile(self.paths[number])
        described = getattr(self, "_described", {}).get(self.paths[number])
        if described is not None and described[1]["examples"] != len(file):
            raise UsageError(
                f"{file.path} holds {len(file)} examples but its manifest says {described[1]['examples']}: "
                "write the shards anew, or delete the manifest"
            )
        self._files[number] = file
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)
        return file

    def _columns(self, records: list[bytes], names: Sequence[str], files: Sequence[int]) -> dict[str, Column]:
        columns, bad = decode_examples(records, names)
        missing = [name for name in names if name not in columns]
        if missing or bad.any():
            path = self.paths[files[int(np.argmax(bad)) if bad.any() else 0]]
            if missing and "token_boundary" in decode_examples(records)[0]:
                raise UsageError(
                    f"{path}: compact examples need the manifest that was written beside them, to mask by: copy it here"
                )
            lacks = f"lacks {', '.join(missing)}" if missing else "is not an example with the features of the others"
            raise UsageError(f"{path}: a record {lacks}; expected BERT's pretraining features {', '.join(names)}")
        return columns

    def _read(self, examples: np.ndarray, epochs: np.ndarray) -> dict[str, np.ndarray]:
        features = self._features(examples, epochs)
        if self.packed:
            assert self.manifest is not None
            cls_id = self.manifest["tokenizer"]["cls_id"]
            features["sequence_ids"] = sequence_ids(features["input_ids"], features["input_mask"], cls_id)
        return features

    def _features(self, examples: np.ndarray, epochs: np.ndarray) -> dict[str, np.ndarray]:
        files = np.searchsorted(self._begins, examples, side="right") - 1
        records: list[bytes] = [b""] * len(examples)
        for number in np.unique(files):
            at = np.flatnonzero(files == number)
            for i, record in zip(at, self._open(int(number)).read(examples[at] - self._begins[number]), strict=True):
                records[i] = record
        stored = STATIC_FEATURES + (WORD_ORDER_FEATURES if self.max_word_order_per_seq else ())
        columns = self._columns(records, COMPACT_FEATURES if self.dynamic else stored, files.tolist())
        try:
            if self.dynamic:
                return self._mask(columns, examples, epochs)
            widths = {
                "input": self.max_seq_length,
                "segment": self.max_seq_length,
                "masked": self.max_predictions_per_seq,
                "word": self.max_word_order_per_seq,
            }
            features = {}
            for name in stored:
                width = widths.get(name.split("_")[0], 1)
                dtype = np.float32 if name.endswith("weights") else np.int32
                try:
                    features[name] = columns[name].matrix(width).astype(dtype, copy=False)
                except MalformedRecordError as error:
                    raise MalformedRecordError(f"{name}: {error}") from None
        except MalformedRecordError as error:
            wrong = self._names([self.paths[i] for i in np.unique(files)])
            raise UsageError(f"{wrong}: {error}; all shards read together need the same lengths") from None
        features["next_sentence_labels"] = features["next_sentence_labels"][:, 0]
        return features

    def _mask(self, columns: dict[str, Column], examples: np.ndarray, epochs: np.ndarray) -> dict[str, np.ndarray]:
        assembled = Assembled(
            columns["input_ids"].padded(self.max_seq_length).astype(np.int32),
            columns["token_boundary"].padded(self.max_seq_length).astype(bool),
            np.diff(columns["input_ids"].splits),
            columns["first_segment_length"].matrix(1)[:, 0],
        )
        masking = Masking(**{**vars(self._masking), "max_predictions": self.max_predictions_per_seq})
        keys_N = keys(self.seed, _MASK, examples, epochs)
        labels = columns["next_sentence_labels"].matrix(1)[:, 0]
        features = static_features(assembled, labels, keys_N, masking, self._vocabulary, self._word_order)
        features["next_sentence_labels"] = features["next_sentence_labels"][:, 0]
        return features
