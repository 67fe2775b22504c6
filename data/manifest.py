"""`NAME.manifest.json`, beside the shards that it lists: recipe, features, lengths, tokenizer, counts, checksums.

Manifests of earlier versions read too: what they lack is derived from what they have.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl.app import UsageError

from data.corpus.parallel import files_of
from data.forms import FORMS, Form
from data.manifest_shape import check_manifest, read_listing
from data.masking import MaskVocabulary
from data.objectives import OBJECTIVES
from data.recipe import Recipe, Vocabulary
from data.schema import Lengths, Schema, present, schema_from_json, schema_to_json, widths_of
from data.segmentation import segmenter_version
from data.tokenizers import Tokenizer
from ground.files import printable, real, write_atomically

SUFFIX = ".manifest.json"
Manifest = Mapping[str, Any]
# What manifests of shards that are read together have to agree on. Earlier versions had no word order and no forms.
_COMMON = {
    "objective": None,
    "form": None,
    "max_seq_length": None,
    "max_predictions_per_seq": None,
    "max_word_order_per_seq": 0,
    "masking": None,
    "num_pair_labels": None,
}
# The axes whose lengths stand there under names of their own.
_NAMED_AXES = ("tokens", "predictions", "shuffled")


# -- writing -----------------------------------------------------------------------------------------------------------


def describe(
    inputs: Sequence[Path], recipe: Recipe, tokenizer: Tokenizer, vocabulary_file: Path | None
) -> dict[str, Any]:
    """Return the part of a manifest that is known before anything is made."""
    vocabulary = Vocabulary.of(tokenizer, albert_zh_labels=recipe.albert_zh_labels)
    lengths = recipe.lengths
    return {
        "objective": recipe.objective,
        "form": recipe.form or recipe.row.form,
        "recipe": asdict(recipe),
        "features": schema_to_json(present(recipe.layout.schema, lengths)),
        "lengths": dict(lengths),
        "max_seq_length": recipe.max_seq_length,
        "max_predictions_per_seq": lengths.get("predictions", 0),
        "max_word_order_per_seq": lengths.get("shuffled", 0),
        "masking": "dynamic" if recipe.dynamic else "static",
        "num_pair_labels": recipe.pairing.num_labels,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            **asdict(vocabulary.specials),
            "file": None if vocabulary_file is None else vocabulary_file.name,
        },
        **({"mask_vocabulary": mask_vocabulary_to_json(vocabulary.masking)} if _keeps_vocabulary(recipe) else {}),
        "segmenter": segmenter_version(recipe.segmenter) if recipe.whole_word else "none",
        "versions": versions(recipe),
        "inputs": [{"name": printable(path), "bytes": stamp(path)[0]} for path in inputs],
    }


def _keeps_vocabulary(recipe: Recipe) -> bool:
    """Whether a reader or the model itself puts special tokens into rows."""
    return recipe.dynamic or recipe.row.writes


def tally(counts: Mapping[str, int], shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the part of a manifest that is known at the end."""
    labels = {name.removeprefix("label_"): n for name, n in sorted(counts.items()) if name.startswith("label_")}
    others = {name: n for name, n in sorted(counts.items()) if not name.startswith("label_")}
    return {"num_examples": counts["examples"], "counts": {**others, "labels": labels}, "shards": list(shards)}


def to_bytes(manifest: Manifest) -> bytes:
    """Return the content of the file."""
    return json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n"


def versions(recipe: Recipe) -> dict[str, str]:
    """Return the libraries whose version the examples depend on, but for those in the tokenizer's fingerprint."""
    names = ["numpy", *([recipe.segmenter] if recipe.whole_word and recipe.segmenter != "none" else [])]
    return {name: importlib.metadata.version(name) for name in names}


def stamp(path: Path) -> tuple[int, int]:
    """Return size in bytes and time of the last change of a file; zeros for a name that is no file, such as tfds's.

    Of line-aligned files it is the size of both.
    """
    try:
        found = [file.stat() for file in files_of(path)]
    except FileNotFoundError:
        return 0, 0
    return sum(status.st_size for status in found), max(status.st_mtime_ns for status in found)


def _ranges(ids: Iterable[int]) -> list[list[int]]:
    """Return ascending integers as [first, last] of each run: 3 4 5 9 -> [[3, 5], [9, 9]]."""
    values = np.unique(np.fromiter(ids, np.int64))
    breaks = np.flatnonzero(np.diff(values) > 1)
    return np.stack([values[np.append(0, breaks + 1)], values[np.append(breaks, -1)]], axis=1).tolist()


def _from_ranges(ranges: Iterable[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.arange(first, last + 1, dtype=np.int32) for first, last in ranges])


def mask_vocabulary_to_json(vocabulary: MaskVocabulary) -> dict[str, Any]:
    """Return what a manifest keeps of a vocabulary, so that shards can be masked without it."""
    return {
        "mask_id": vocabulary.mask_id,
        "size": len(vocabulary.special),
        "special_ids": _ranges(np.flatnonzero(vocabulary.special)),
        "replacement_ids": _ranges(vocabulary.replacement_ids),
        "inside_labels": None if vocabulary.inside_labels is None else vocabulary.inside_labels.tolist(),
    }


def mask_vocabulary_from_json(content: Mapping[str, Any]) -> MaskVocabulary:
    """Return the inverse of `mask_vocabulary_to_json`."""
    special_V = np.zeros(content["size"], bool)
    special_V[_from_ranges(content["special_ids"])] = True
    inside = content["inside_labels"]
    return MaskVocabulary(
        content["mask_id"],
        _from_ranges(content["replacement_ids"]),
        special_V,
        None if inside is None else np.asarray(inside, np.int32),
    )


# -- reading -----------------------------------------------------------------------------------------------------------


class Listing(NamedTuple):
    """A manifest, and its entry for one file."""

    manifest: dict[str, Any]
    entry: dict[str, Any]


def find_manifests(paths: Sequence[Path]) -> dict[Path, Listing]:
    """Return the listings of the files that a manifest in their folder lists.

    Raises:
        UsageError: a manifest cannot be read.
    """
    listed: dict[Path, Listing] = {}
    wanted = {real(path) for path in paths}
    for folder in {path.parent for path in paths}:
        for manifest_path in sorted(folder.glob("*" + SUFFIX)):
            manifest = read_listing(manifest_path)
            entries = {real(folder / shard["name"]): shard for shard in manifest["shards"]}
            if not wanted.isdisjoint(entries):
                check_manifest(manifest, manifest_path)
            listed.update({path: Listing(manifest, entry) for path, entry in entries.items()})
    return {path: listed[real(path)] for path in paths if real(path) in listed}


def form_name(manifest: Manifest | None) -> str:
    """Return the form of the shards; those without a manifest are BERT's."""
    if manifest is None:
        return "one_row"
    if manifest["recipe"].get("packing"):
        return "packed"
    objective = OBJECTIVES.get(manifest["objective"])
    return manifest.get("form") or (objective.form if objective else "one_row")


def form_of(manifest: Manifest | None) -> Form:
    """Return the row of `FORMS`; raises `UsageError` for a form of a later version."""
    name = form_name(manifest)
    if name not in FORMS:
        raise UsageError(f"the shards have form={name}, which this version does not know; known: {', '.join(FORMS)}")
    return FORMS[name]


def lengths_of(manifest: Manifest) -> Lengths:
    """Return the lengths by name."""
    return manifest.get("lengths") or {
        "tokens": manifest["max_seq_length"],
        "predictions": manifest["max_predictions_per_seq"],
        "shuffled": manifest.get("max_word_order_per_seq", 0),
    }


def positions(manifest: Manifest) -> int:
    """Return how many tokens an example has room for, in all of its rows."""
    form = form_of(manifest)
    return sum(widths_of(form.schema, lengths_of(manifest), [side.ids for side in form.sides]))


def schema_of(manifest: Manifest) -> Schema:
    """Return the features of a batch of the shards; raises `UsageError` where they are nonsense."""
    if "features" not in manifest:
        return present(form_of(manifest).schema, lengths_of(manifest))
    try:
        schema, lengths = schema_from_json(manifest["features"]), lengths_of(manifest)
        if unknown := [axis for feature in schema for axis in feature.axes if axis not in lengths]:
            raise ValueError(f"an axis {unknown[0]}, of which no length is known")
        return schema
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"the manifest's `features` cannot be read ({error}); delete the key, to derive it from the form"
        ) from None


def common_manifest(listings: Mapping[Path, Listing], paths: Sequence[Path]) -> dict[str, Any] | None:
    """Return the manifest of shards that are read together; None where no file has one.

    Raises:
        UsageError: manifests contradict one another, or compact shards lack theirs; both files are named.
    """
    if not listings:
        return None
    (first_path, first), *others = listings.items()
    for path, listing in others:
        _check_agreement((path, listing.manifest), (first_path, first.manifest))
    if len(listings) < len(paths) and first.manifest["masking"] == "dynamic":
        bare = next(path for path in paths if path not in listings)
        raise UsageError(f"{first_path} is to be masked on the fly but {bare} has no manifest: read them apart")
    return first.manifest


def _check_agreement(one: tuple[Path, Manifest], other: tuple[Path, Manifest]) -> None:
    """Raise `UsageError` where two manifests differ in what all shards of a run have in common."""
    (path, manifest), (first_path, first) = one, other
    for name, default in _COMMON.items():
        found, expected = (
            form_name(content) if name == "form" else content.get(name, default) for content in (manifest, first)
        )
        if found != expected:
            raise UsageError(
                f"{path} has {name}={found} but {first_path} has {name}={expected}: "
                "give --input_file shards of one kind"
            )
    lengths, expected = lengths_of(manifest), lengths_of(first)
    for axis in sorted({*lengths, *expected} - {*_NAMED_AXES}):
        if lengths.get(axis, 0) != expected.get(axis, 0):
            raise UsageError(
                f"{path} has lengths.{axis}={lengths.get(axis, 0)} but {first_path} has lengths.{axis}="
                f"{expected.get(axis, 0)}: give --input_file shards of one kind"
            )
    check_vocabularies(one, other)


def check_vocabularies(one: tuple[Path, Manifest], other: tuple[Path, Manifest]) -> None:
    """Raise `UsageError` where the shards of two manifests, each with one of their files, have other tokenizers."""
    (path, manifest), (first_path, first) = one, other
    tokenizer, expected = manifest["tokenizer"], first["tokenizer"]
    if tokenizer["fingerprint"] != expected["fingerprint"]:
        raise UsageError(
            f"{path} was made with tokenizer {tokenizer['file']} ({tokenizer['fingerprint'][:8]}) but {first_path} "
            f"with {expected['file']} ({expected['fingerprint'][:8]}): give --input_file shards of one vocabulary"
        )


def language_of(manifest: Manifest | None) -> str:
    """Return the language of the text, or the two of pairs; empty where it is not said."""
    return "" if manifest is None else manifest["recipe"].get("language", "")


def text_size(manifest: Manifest) -> float:
    """Return how much text there is, in examples of one pass over it."""
    return manifest["num_examples"] / max(manifest["recipe"]["dupe_factor"], 1)


def total_counts(listings: Mapping[Path, Listing]) -> Counter[str]:
    """Return the counts of all manifests together, without those of labels."""
    manifests = {id(listing.manifest): listing.manifest for listing in listings.values()}
    totals = Counter[str]()
    for manifest in manifests.values():
        totals.update({name: n for name, n in manifest["counts"].items() if name != "labels"})
    return totals


# -- correcting --------------------------------------------------------------------------------------------------------


def correct(path: Path, examples: int, sha256: str) -> int | None:
    """Enter the new content of a repaired file in the manifest that lists it.

    Returns:
        How many examples fewer there are; None without a manifest.
    """
    lost = None
    for manifest_path in path.parent.glob("*" + SUFFIX):
        manifest = read_listing(manifest_path)
        for shard in manifest["shards"]:
            if real(path.parent / shard["name"]) == real(path):
                lost = shard["examples"] - examples
                shard.update(examples=examples, bytes=path.stat().st_size, sha256=sha256)
                manifest["num_examples"] -= lost
                manifest.setdefault("repairs", []).append({"name": shard["name"], "lost_examples": lost})
                write_atomically(manifest_path, to_bytes(manifest))
    return lost
