"""Statistics of pretraining shards, and checks of all that can be checked in them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from absl.app import UsageError

from data import manifest as manifests
from data.forms import Segments, Side
from data.forms.ranges import Bounds, faults
from data.forms.segments import COMPACT_FEATURES
from data.forms.sides import original_ids
from data.pairing import PAIRINGS
from data.randomness import keys
from data.reading import PretrainingDataset
from data.schema import Lengths, lengths_of, present, required, widths_of
from data.tfrecord.decoding import decode_examples
from data.tfrecord.frames import MalformedRecordError
from data.tfrecord.recovery import Recovered, open_content, recover, scan

_BATCH = 512
_LENGTH_BINS = 8
# Duplicates are counted among all examples up to this many, among an unbiased sample of them beyond.
_KEPT_HASHES = 1 << 22
# Of records without a manifest the objective is not known.
_MOST_LABELS = max(pairing.num_labels for pairing in PAIRINGS.values())


# -- statistics --------------------------------------------------------------------------------------------------------


@dataclass
class Statistics:
    """Counts over pretraining examples; see the properties for their meaning."""

    max_seq_length: int
    examples: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    predictions: int = 0
    masked: int = 0
    kept: int = 0
    shuffled: int = 0
    moved: int = 0
    sequences: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    duplicates: float = 0.0

    @property
    def fill(self) -> float:
        """Share of positions that hold a token and not padding."""
        return self.tokens / (self.examples * self.max_seq_length)

    def length_bins(self) -> list[tuple[int, int, int]]:
        """Return (first, last, examples) for eight ranges of length in tokens."""
        edges = [round(i * self.max_seq_length / _LENGTH_BINS) for i in range(_LENGTH_BINS + 1)]
        return [
            (first + 1, last, sum(n for length, n in self.lengths.items() if first < length <= last))
            for first, last in pairwise(edges)
        ]


def statistics(
    dataset: PretrainingDataset,
    *,
    mask_id: int | None = None,
    unk_id: int | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> Statistics:
    """Read all of a dataset once and count.

    Args:
        dataset: examples; compact ones are masked as for evaluation.
        mask_id: id of [MASK]; None takes the id seen most often where tokens are predicted.
        unk_id: id of [UNK]; None leaves unknown tokens uncounted.
        report: is told how many examples are read.
    """
    sides, label, sequences = dataset.form.sides, dataset.form.label, dataset.form.sequences
    result, shown_at_predictions = Statistics(dataset.positions), Counter[int]()
    hashes, threshold = np.zeros(0, np.uint64), 2**64 - 1
    for batch in dataset.evaluation_batches(_BATCH):
        real = batch[sides[0].mask].any(axis=1)
        batch = {name: value[real] for name, value in batch.items()}
        lengths = np.stack([batch[side.mask].sum(axis=1) for side in sides]).sum(axis=0)
        result.examples += len(lengths)
        result.tokens += int(lengths.sum())
        result.lengths.update(lengths.tolist())
        if label:
            result.labels.update(batch[label].tolist())
        if sequences:
            result.sequences += int(batch[sequences].max(axis=1).sum())
        for side in sides:
            _count_side(batch, side, result, shown_at_predictions, unk_id)
        hashes = np.concatenate([hashes, _hashes(np.concatenate([original_ids(batch, s) for s in sides], axis=1))])
        hashes = hashes[hashes <= threshold]
        while len(hashes) > _KEPT_HASHES:
            threshold //= 2
            hashes = hashes[hashes <= threshold]
        report(result.examples)
    if mask_id is None:
        mask_id = max(shown_at_predictions, key=lambda i: shown_at_predictions[i], default=0)
    result.masked = shown_at_predictions[mask_id]
    result.duplicates = 1 - len(np.unique(hashes)) / max(len(hashes), 1)
    return result


def _count_side(
    batch: Mapping[str, np.ndarray],
    side: Side,
    result: Statistics,
    shown_at_predictions: Counter[int],
    unk_id: int | None,
) -> None:
    """Add the hidden and shuffled tokens of one text to the counts."""
    if unk_id is not None:
        result.unknown_tokens += int((original_ids(batch, side) == unk_id).sum())
    for name in side.lists(batch):
        row, slot = np.nonzero(batch[f"{name}_weights"])
        shown = batch[side.ids][row, batch[f"{name}_positions"][row, slot]]
        same = shown == batch[f"{name}_ids"][row, slot]
        if name == side.shuffled:
            result.shuffled += len(row)
            result.moved += int((~same).sum())
            continue
        result.predictions += len(shown)
        result.kept += int(same.sum())
        values, times = np.unique(shown[~same], return_counts=True)
        shown_at_predictions.update(dict(zip(values.tolist(), times.tolist(), strict=True)))


def _hashes(ids_BL: np.ndarray) -> np.ndarray:
    """Return a number for every row that equal rows share; uint64 [B]."""
    factors = keys(np.arange(ids_BL.shape[1])) | np.uint64(1)
    return keys((ids_BL.astype(np.uint64) * factors).sum(axis=1, dtype=np.uint64))


# -- checks ------------------------------------------------------------------------------------------------------------


@dataclass
class Finding:
    """The result of checking one file.

    Attributes:
        records: records whose checksum holds.
        problems: one line each; empty where all is well.
        damaged: byte ranges without an intact record.
    """

    path: Path
    records: int
    problems: list[str]
    damaged: list[tuple[int, int]]


def verify(paths: Sequence[Path], vocab_size: int | None = None) -> Iterator[Finding]:
    """Check files one by one: frames, checksums, features, sense of the values, and the manifest if there is one.

    `vocab_size` bounds the ids of records without a manifest.
    """
    listings = manifests.find_manifests(paths)
    for path in paths:
        listing = listings.get(path)
        content = open_content(path)
        found = scan(content)
        problems = [f"bytes {begin:,} to {end:,}: no intact record" for begin, end in found.damaged]
        if found.damaged_headers:
            problems.append(f"{found.damaged_headers} intact record(s) behind a damaged length")
        if listing is None and not content:
            problems.append("the file is empty")
        if listing is not None:
            expected = listing.entry["examples"]
            if expected != len(found.intact):
                problems.append(f"{len(found.intact)} intact records but {expected} in the manifest")
            if not problems and hashlib.sha256(content).hexdigest() != listing.entry["sha256"]:
                problems.append("the checksum in the manifest is of another content")
        counts, check = Counter[str](), _Check(listing.manifest if listing else None, vocab_size)
        for begin in range(0, len(found.intact), _BATCH):
            counts.update(check.problems([content[a:b] for a, b in found.intact[begin : begin + _BATCH]]))
        problems += [f"{count} record(s): {problem}" for problem, count in counts.items()]
        yield Finding(path, len(found.intact), problems, found.damaged)


class _Check:
    """What every record of a file is checked by; without a manifest the lengths are those of most of the first."""

    def __init__(self, manifest: Mapping[str, Any] | None, vocab_size: int | None):
        self._manifest, self._form = manifest, manifests.form_of(manifest)
        self._bounds = Bounds(vocab_size, _MOST_LABELS) if manifest is None else Bounds.of_manifest(manifest)
        self._lengths: Lengths | None = None

    def problems(self, records: list[bytes]) -> Counter[str]:
        """Return everything that makes no sense, each with the number of records that it is true of."""
        if self._lengths is None:
            self._lengths = _lengths(records, self._manifest)
        columns, bad = decode_examples(records)
        compact, form, lengths = Segments.are_in(columns), self._form, self._lengths
        if not (compact or all(lengths[axis] for axis in lengths if axis not in form.optional)):
            return Counter({"empty lists where every example has some": len(records)})
        names = COMPACT_FEATURES if compact else required(form.schema, lengths, form.optional)
        missing = [name for name in names if name not in columns]
        if missing:
            return Counter({f"lacks {', '.join(missing)}": len(records)})
        if bad.any():
            if len(records) == 1:
                return Counter(["not a tf.train.Example with the features of the others"])
            return self._one_by_one(records)
        try:
            wrong = {fault.what: fault.rows for fault in faults(columns, form, lengths, self._bounds)}
            if compact:
                widths = widths_of(form.schema, lengths, [side.ids for side in form.sides])
                return _count(wrong | Segments.problems(columns, self._manifest, widths))
            stored = [feature for feature in present(form.schema, lengths) if feature.stored]
            features = {
                f.name: columns[f.name].array(f.shape(lengths), str(columns[f.name].values.dtype)) for f in stored
            }
            return _count(wrong | form.problems(features, self._manifest))
        except MalformedRecordError as error:
            if len(records) == 1:
                return Counter([f"lists of other lengths ({error})"])
            return self._one_by_one(records)

    def _one_by_one(self, records: list[bytes]) -> Counter[str]:
        """Return the problems of records of which a bad one spoils the columns of all."""
        return sum((self.problems([record]) for record in records), Counter())


def _lengths(records: list[bytes], manifest: Mapping[str, Any] | None) -> Lengths:
    """Return the manifest's lengths, and those of most records for axes that it does not know."""
    schema = manifests.form_of(manifest).schema
    widths: dict[str, list[int]] = {}
    for record in records:
        columns, bad = decode_examples([record])
        for name, column in ({} if bad.any() else columns).items():
            widths.setdefault(name, []).append(len(column.values))
    found = lengths_of(schema, {name: max(set(each), key=each.count) for name, each in widths.items()})
    said = manifests.lengths_of(manifest) if manifest else {}
    return found | {axis: length for axis, length in said.items() if length}


def _count(checks: Mapping[str, np.ndarray]) -> Counter[str]:
    return Counter({name: int(wrong.sum()) for name, wrong in checks.items() if wrong.any()})


# -- recovery ----------------------------------------------------------------------------------------------------------


def repair(path: Path) -> tuple[Recovered, int | None]:
    """Rewrite a damaged file with its intact records, and correct the manifest that lists it.

    A file that was cut where a record ends is intact but shorter than its manifest says, which is corrected too.

    Returns:
        What was recovered; and how many examples were lost, where a manifest says how many there were.

    Raises:
        UsageError: there is no intact record, or all are but they are others than the manifest's.
        OSError: the file could not be written, and is as it was.
    """
    done = recover(path)
    if done.kept_as is None:
        listing = manifests.find_manifests([path]).get(path)
        if listing is None and not done.records:
            raise UsageError(f"{path} is empty: there is no record to keep; make the file again")
        if listing is None or listing.entry["sha256"] == done.sha256:
            return done, None
        if listing.entry["examples"] <= done.records:
            raise UsageError(
                f"{path} is intact but holds other records than its manifest says: put back the file that was written "
                "with the manifest, or make both again"
            )
    return done, manifests.correct(path, done.records, done.sha256)
