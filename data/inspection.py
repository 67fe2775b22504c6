"""Looks into pretraining shards: statistics, checks of all that can be checked, recovery of what is intact."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data.pretraining import MANIFEST_SUFFIX
from data.randomness import keys
from data.reading import (
    COMPACT_FEATURES,
    STATIC_FEATURES,
    WORD_ORDER_FEATURES,
    PretrainingDataset,
    find_manifests,
)
from data.tfrecord.decoding import Column, decode_examples
from data.tfrecord.frames import MalformedRecordError, frame
from data.tfrecord.recovery import scan

_BATCH = 512
_LENGTH_BINS = 8
# Duplicates are counted among all examples up to this many, among an unbiased sample of them beyond.
_KEPT_HASHES = 1 << 22
DAMAGED_SUFFIX = ".damaged"


def restore(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the ids [B, L] of a batch as they were before masking and shuffling (all labels known)."""
    ids = batch["input_ids"].copy()
    for name in ("word_order", "masked_lm"):
        if f"{name}_weights" in batch:
            row, slot = np.nonzero(batch[f"{name}_weights"])
            ids[row, batch[f"{name}_positions"][row, slot]] = batch[f"{name}_ids"][row, slot]
    return ids


@dataclass
class Statistics:
    """Counts over pretraining examples; see the properties for what they mean."""

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
        """(first, last, examples) for eight ranges of length in tokens."""
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
    """Reads all of a dataset once.

    Args:
        dataset: examples; compact ones are masked as for evaluation.
        mask_id: id of [MASK]; None takes the id seen most often where tokens are predicted.
        unk_id: id of [UNK]; None leaves unknown tokens uncounted.
        report: is told how many examples are read.
    """
    result, shown_at_predictions = Statistics(dataset.max_seq_length), Counter[int]()
    hashes, threshold = np.zeros(0, np.uint64), 2**64 - 1
    for batch in dataset.evaluation_batches(_BATCH):
        real = batch["input_mask"].any(axis=1)
        batch = {name: value[real] for name, value in batch.items()}
        ids, lengths = restore(batch), batch["input_mask"].sum(axis=1)
        result.examples += len(ids)
        result.tokens += int(lengths.sum())
        result.lengths.update(lengths.tolist())
        result.labels.update(batch["next_sentence_labels"].tolist())
        if unk_id is not None:
            result.unknown_tokens += int((ids == unk_id).sum())
        if "sequence_ids" in batch:
            result.sequences += int(batch["sequence_ids"].max(axis=1).sum())
        if "word_order_weights" in batch:
            row, slot = np.nonzero(batch["word_order_weights"])
            now = batch["input_ids"][row, batch["word_order_positions"][row, slot]]
            result.shuffled += len(row)
            result.moved += int((now != batch["word_order_ids"][row, slot]).sum())
        row, slot = np.nonzero(batch["masked_lm_weights"])
        shown = batch["input_ids"][row, batch["masked_lm_positions"][row, slot]]
        same = shown == batch["masked_lm_ids"][row, slot]
        result.predictions += len(shown)
        result.kept += int(same.sum())
        values, times = np.unique(shown[~same], return_counts=True)
        shown_at_predictions.update(dict(zip(values.tolist(), times.tolist(), strict=True)))
        hashes = np.concatenate([hashes, _hashes(ids)])
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


def _hashes(ids_BL: np.ndarray) -> np.ndarray:
    factors = keys(np.arange(ids_BL.shape[1])) | np.uint64(1)
    return keys((ids_BL.astype(np.uint64) * factors).sum(axis=1, dtype=np.uint64))


@dataclass
class Finding:
    """What was found in one file.

    Attributes:
        records: records whose checksum holds.
        problems: one line each; empty when all is well.
        damaged: byte ranges without an intact record.
    """

    path: Path
    records: int
    problems: list[str]
    damaged: list[tuple[int, int]]


def verify(paths: Sequence[Path]) -> Iterator[Finding]:
    """Checks files one by one: frames, checksums, schema, sense of the values, and their manifest if there is one."""
    described = find_manifests(paths)
    for path in paths:
        manifest, entry = described.get(path, (None, None))
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        found = scan(content)
        problems = [f"bytes {begin:,} to {end:,}: no intact record" for begin, end in found.damaged]
        if found.damaged_headers:
            problems.append(f"{found.damaged_headers} intact record(s) behind a damaged length")
        if entry is not None:
            if entry["examples"] != len(found.intact):
                problems.append(f"{len(found.intact)} intact records but {entry['examples']} in the manifest")
            if not problems and hashlib.sha256(content).hexdigest() != entry["sha256"]:
                problems.append("the checksum in the manifest is of another content")
        counts = Counter[str]()
        for begin in range(0, len(found.intact), _BATCH):
            records = [content[a:b] for a, b in found.intact[begin : begin + _BATCH]]
            counts.update(_problems(records, manifest))
        problems += [f"{count} record(s): {problem}" for problem, count in counts.items()]
        yield Finding(path, len(found.intact), problems, found.damaged)


def _problems(records: list[bytes], manifest: Mapping[str, Any] | None) -> Counter[str]:
    """What does not make sense, each with the number of records that it is true of."""
    columns, bad = decode_examples(records)
    compact = "token_boundary" in columns and "input_mask" not in columns
    names = COMPACT_FEATURES if compact else STATIC_FEATURES
    if not compact and (any(name in columns for name in WORD_ORDER_FEATURES) or _word_order(manifest)):
        names += WORD_ORDER_FEATURES
    missing = [name for name in names if name not in columns]
    if missing:
        return Counter({f"lacks {', '.join(missing)}": len(records)})
    if bad.any():
        if len(records) == 1:
            return Counter(["not a tf.train.Example with the features of the others"])
        # One bad record spoils the columns of all.
        return sum((_problems([record], manifest) for record in records), Counter())
    try:
        if compact:
            return _compact_problems(columns, manifest)
        return _static_problems({name: columns[name] for name in names}, manifest)
    except MalformedRecordError as error:
        if len(records) == 1:
            return Counter([f"lists of other lengths ({error})"])
        return sum((_problems([record], manifest) for record in records), Counter())


def _count(checks: Mapping[str, np.ndarray]) -> Counter[str]:
    return Counter({name: int(wrong.sum()) for name, wrong in checks.items() if wrong.any()})


def _compact_problems(columns: Mapping[str, Column], manifest: Mapping[str, Any] | None) -> Counter[str]:
    ids, starts = columns["input_ids"], columns["token_boundary"]
    lengths = np.diff(ids.splits)
    first = columns["first_segment_length"].matrix(1)[:, 0]
    checks = {
        "token_boundary has another length than input_ids": np.diff(starts.splits) != lengths,
        "first_segment_length is outside the example": (first < 1) | (first > lengths),
    }
    if manifest:
        checks["longer than max_seq_length"] = lengths > manifest["max_seq_length"]
        wrong = ids.values >= manifest["tokenizer"]["vocab_size"]
        checks["an id outside the vocabulary"] = np.bincount(
            np.repeat(np.arange(len(lengths)), lengths)[wrong], minlength=len(lengths)
        ).astype(bool)
    return _count(checks)


def _word_order(manifest: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What a manifest says of shuffled words; None where it says that there are none, or nothing."""
    return (manifest or {}).get("recipe", {}).get("word_order")


def _static_problems(columns: Mapping[str, Column], manifest: Mapping[str, Any] | None) -> Counter[str]:
    num_records = len(columns["input_ids"].splits) - 1
    first = {name: int(column.splits[1]) for name, column in columns.items()}
    length, slots = first["input_ids"], first["masked_lm_positions"]
    if manifest:
        length, slots = manifest["max_seq_length"], manifest["max_predictions_per_seq"]
    widths = {"input": length, "segment": length, "masked": slots, "next": 1}
    if "word_order_positions" in columns:
        widths["word"] = (
            manifest["max_word_order_per_seq"] if _word_order(manifest) and manifest else first["word_order_positions"]
        )
    rows = {name: column.matrix(widths[name.split("_")[0]]) for name, column in columns.items()}
    mask, positions, weights = rows["input_mask"], rows["masked_lm_positions"], rows["masked_lm_weights"]
    lengths, used = mask.sum(axis=1), weights > 0
    columns_L = np.arange(length)
    checks = {
        "input_mask is not ones and then zeros": (mask != (columns_L < lengths[:, None])).any(axis=1),
        "an id behind the end": ((rows["input_ids"] != 0) & (columns_L >= lengths[:, None])).any(axis=1),
        "segment_ids other than zeros, ones, padding": (np.diff(rows["segment_ids"] + 2 * (mask == 0), axis=1) < 0).any(
            axis=1
        ),
        "a predicted position outside the text": (used & ((positions < 1) | (positions >= lengths[:, None]))).any(
            axis=1
        ),
        "a position predicted twice": _twice(positions, used),
        "weights other than 0 and 1": ((weights != 0) & (weights != 1)).any(axis=1),
        "a label below 0": rows["next_sentence_labels"][:, 0] < 0,
    }
    if manifest:
        size = manifest["tokenizer"]["vocab_size"]
        outside = (rows["input_ids"] >= size).any(axis=1) | (rows["masked_lm_ids"] >= size).any(axis=1)
        checks["an id outside the vocabulary"] = outside
        checks["a label outside the objective's"] = rows["next_sentence_labels"][:, 0] >= manifest["num_pair_labels"]
    if "word" in widths:
        checks |= _word_order_checks(rows, lengths, manifest)
    assert all(len(wrong) == num_records for wrong in checks.values())
    return _count(checks)


def _twice(positions: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The rows with a position that is used more than once; bool [N]."""
    return np.asarray([len(np.unique(row[chosen])) < chosen.sum() for row, chosen in zip(positions, used, strict=True)])


def _word_order_checks(
    rows: Mapping[str, np.ndarray], lengths: np.ndarray, manifest: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    """What is wrong with shuffled words, by row; of windows only what the manifest's choices imply."""
    positions, weights = rows["word_order_positions"], rows["word_order_weights"]
    used = weights > 0
    both = np.concatenate([positions, rows["masked_lm_positions"]], axis=1)
    checks = {
        "a shuffled position outside the text": (used & ((positions < 1) | (positions >= lengths[:, None]))).any(
            axis=1
        ),
        "a position shuffled twice, or masked as well": _twice(
            both, np.concatenate([used, rows["masked_lm_weights"] > 0], axis=1)
        ),
        "word order weights other than 0 and 1": ((weights != 0) & (weights != 1)).any(axis=1),
    }
    choices = _word_order(manifest)
    if not (manifest and choices):
        return checks
    checks["a shuffled id outside the vocabulary"] = (
        rows["word_order_ids"] >= manifest["tokenizer"]["vocab_size"]
    ).any(axis=1)
    whole = choices["labels"] == "all" and not choices["overlap"]
    if whole:
        checks[f"shuffled words that are not {choices['tokens']} to a window"] = (
            used.sum(axis=1) % choices["tokens"] > 0
        )
    if choices["windows"] == "unmasked" and (choices["labels"] == "all" or not choices["overlap"]):
        now = np.take_along_axis(rows["input_ids"], np.clip(positions, 0, rows["input_ids"].shape[1] - 1), axis=1)
        now, before = (np.sort(np.where(used, x, -1), axis=1) for x in (now, rows["word_order_ids"]))
        checks["shuffled words that are not those that stood there"] = (now != before).any(axis=1)
    return checks


@dataclass
class Repair:
    """What `repair` did with one file; `kept_as` is None when nothing was wrong with it.

    How many records were lost is known where a manifest says how many there were.
    """

    recovered: int
    damaged: list[tuple[int, int]]
    kept_as: Path | None
    lost_examples: int | None = None


def repair(path: Path) -> Repair:
    """Rewrites a damaged file with its intact records; the damaged one is kept beside it, the manifest is put right.

    Raises `OSError`; the file is as it was then.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    found = scan(content)
    if not found.damaged and not found.damaged_headers:
        return Repair(len(found.intact), [], None)
    temporary, checksum = path.with_name(f".{path.name}.tmp"), hashlib.sha256()
    with temporary.open("wb") as stream:
        for begin, end in found.intact:
            record = frame(content[begin:end])
            checksum.update(record)
            stream.write(record)
        stream.flush()
        os.fsync(stream.fileno())
    kept_as = path.with_name(path.name + DAMAGED_SUFFIX)
    kept_as.unlink(missing_ok=True)
    os.link(path, kept_as)
    temporary.replace(path)
    lost_examples = _correct_manifest(path, len(found.intact), checksum.hexdigest())
    return Repair(len(found.intact), found.damaged, kept_as, lost_examples)


def _correct_manifest(path: Path, examples: int, sha256: str) -> int | None:
    """Puts the manifest that lists the file right; returns how many examples fewer there are, None without one."""
    lost = None
    for manifest_path in path.parent.glob("*" + MANIFEST_SUFFIX):
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        for shard in manifest["shards"]:
            if (path.parent / shard["name"]).resolve() == path.resolve():
                lost = shard["examples"] - examples
                shard.update(examples=examples, bytes=path.stat().st_size, sha256=sha256)
                manifest["num_examples"] -= lost
                manifest.setdefault("repairs", []).append({"name": shard["name"], "lost_examples": lost})
                temporary = manifest_path.with_name(f".{manifest_path.name}.tmp")
                temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
                temporary.replace(manifest_path)
    return lost
