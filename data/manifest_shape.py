"""What a manifest must be before anything is read by it: the shape of every field, and the laws between the fields.

A field that is not named here is read by nobody. Fields that earlier versions did not write are `NotRequired`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from absl.app import UsageError
from msgspec import Meta

from data.continuation import Continuation
from data.forms import FORMS
from data.objectives import OBJECTIVES
from data.pairing import PAIRINGS
from data.schema import present, schema_to_json
from data.word_order import MAX_TOKENS, WordOrder
from ground.bounds import BOUNDS
from ground.documents import check_shape, read_json
from ground.words import nearest

FIX = "delete it to read the shards without it"
_MAX_BYTES = 512 * 2**20  # 100,000 shards take 20 MB; a vocabulary with labels of its own 10 bytes a token.

Count = Annotated[int, Meta(ge=0, le=2**53)]
Share = Annotated[float, Meta(ge=0, le=1)]
Length = Annotated[int, Meta(ge=0, le=int(BOUNDS["max_seq_length"].most))]
Token = Annotated[int, Meta(ge=0, lt=int(BOUNDS["vocab_size"].most))]
Size = Annotated[int, Meta(ge=1, le=int(BOUNDS["vocab_size"].most))]
Range = Annotated[list[Token], Meta(min_length=2, max_length=2)]
DrawnLengths = Annotated[list[Length], Meta(min_length=2, max_length=2)]
Language = Annotated[str, Meta(pattern=r"^([a-z_]+(-[a-z_]+)?)?$", max_length=100)]
# One file of the manifest's own folder: any other name could lead to a file that no verb wrote.
FileName = Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[^/\\\x00]+$", max_length=255)]


class ShardShape(TypedDict):
    """The entry of one file."""

    name: FileName
    examples: Count
    bytes: NotRequired[Count]
    sha256: str


class ListingShape(TypedDict):
    """What tells which files a manifest is of."""

    shards: list[ShardShape]


class MaskingShape(TypedDict):
    """The fields of `data.masking.Masking`."""

    rate: Share
    max_predictions: Annotated[int, Meta(ge=1, le=int(BOUNDS["max_predictions_per_seq"].most))]
    ngram: NotRequired[Annotated[int, Meta(ge=1, le=int(BOUNDS["ngram"].most))]]
    favor_shorter_ngram: NotRequired[bool]
    permute: NotRequired[bool]


class WordOrderShape(TypedDict, total=False):
    """The fields of `data.word_order.WordOrder`."""

    rate: Share
    tokens: Annotated[int, Meta(ge=2, le=MAX_TOKENS)]
    windows: Literal["unmasked", "any"]
    overlap: bool
    identity: bool
    labels: Literal["all", "changed"]


class ContinuationShape(TypedDict):
    """The fields of `data.continuation.Continuation`."""

    fragment_length: Length
    source_fraction: Share
    stride: Count
    max_target_length: Annotated[int, Meta(ge=2, le=int(BOUNDS["max_target_length"].most))]
    source_lengths: DrawnLengths | None
    target_lengths: DrawnLengths | None


class RecipeShape(TypedDict):
    """The fields of `data.recipe.Recipe` that a reader masks by."""

    objective: str
    masking: MaskingShape
    dynamic: bool
    whole_word: bool
    segmenter: str
    max_seq_length: Length
    dupe_factor: Count
    short_seq_prob: Share
    seed: int
    albert_zh_labels: NotRequired[bool]
    text_field: NotRequired[str]
    held_out_fraction: NotRequired[Share]
    held_out: bool
    packing: NotRequired[bool]
    form: NotRequired[str | None]
    word_order: NotRequired[WordOrderShape | None]
    continuation: NotRequired[ContinuationShape | None]
    text: NotRequired[Literal["documents", "pairs"] | None]
    long_pairs: NotRequired[Literal["cut", "drop"]]
    language: NotRequired[Language]


class TokenizerShape(TypedDict):
    """What is known of the vocabulary."""

    fingerprint: str
    vocab_size: Size
    file: str | None
    cls_id: Token
    segment_ids: NotRequired[Annotated[list[Token], Meta(min_length=2, max_length=2)]]


class MaskVocabularyShape(TypedDict):
    """The fields of `data.masking.MaskVocabulary`, sets of ids as ranges."""

    mask_id: Token
    size: Size
    special_ids: Annotated[list[Range], Meta(min_length=1)]
    replacement_ids: Annotated[list[Range], Meta(min_length=1)]
    inside_labels: list[Token] | None


class FlagsShape(TypedDict, total=False):
    """The flags of the verb that wrote the shards, as far as a reader looks at them."""

    vocab_file: str | None
    spm_model_file: str | None
    do_lower_case: bool
    segmentation: str | None


class FeatureShape(TypedDict):
    """The fields of `data.schema.Feature`."""

    name: str
    axes: list[str]
    dtype: Literal["int32", "float32"]
    stored: bool


class BalanceShape(TypedDict):
    """What a text of several languages has of one."""

    examples: Count
    share: Share
    drawn: Share


class ManifestShape(TypedDict):
    """A whole manifest."""

    objective: str
    form: NotRequired[str | None]
    recipe: RecipeShape
    features: NotRequired[list[FeatureShape]]
    lengths: NotRequired[dict[str, Length]]
    max_seq_length: Annotated[int, Meta(ge=1, le=int(BOUNDS["max_seq_length"].most))]
    max_predictions_per_seq: Length
    max_word_order_per_seq: NotRequired[Length]
    masking: Literal["static", "dynamic"]
    num_pair_labels: Annotated[int, Meta(ge=0, le=1000)]
    tokenizer: TokenizerShape
    mask_vocabulary: NotRequired[MaskVocabularyShape]
    num_examples: Count
    counts: dict[str, Count | dict[str, Count]]
    shards: list[ShardShape]
    flags: NotRequired[FlagsShape]
    repairs: NotRequired[list[Any]]
    languages: NotRequired[dict[str, BalanceShape]]


def read_listing(path: Path) -> dict[str, Any]:
    """Return a manifest of which no more is known than that it lists files; raises `UsageError` or `OSError`."""
    return read_json(path, ListingShape, what="a manifest", fix=FIX, max_bytes=_MAX_BYTES)


def check_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """Raise `UsageError`, one line that names `path`, for a manifest by which no shards can be read."""
    check_shape(manifest, ManifestShape, where=str(path), fix=FIX)
    try:
        for check in (_check_counts, _check_parts, _check_recipe, _check_lengths, _check_dynamic, _check_features):
            check(manifest)
    except UsageError as error:
        raise UsageError(f"{path}: {error}; {FIX}") from None


def _agree(what: str, found: object, expected: object, whence: str) -> None:
    if found != expected:
        raise UsageError(f"{what} is {found} but {expected} by {whence}")


def _check_counts(manifest: Mapping[str, Any]) -> None:
    shards, counts = manifest["shards"], manifest["counts"]
    _agree("num_examples", manifest["num_examples"], sum(shard["examples"] for shard in shards), "its shards")
    for name, count in counts.items():
        if isinstance(count, dict) != (name == "labels"):
            raise UsageError(f"counts.{name} is {'an object' if isinstance(count, dict) else 'a number'}")
    rows, tokens = counts.get("examples", 0), counts.get("example_tokens", 0)
    if tokens > rows * _widest(manifest):
        raise UsageError(f"counts.example_tokens is {tokens:,}, more than {rows:,} examples have positions")


def _widest(manifest: Mapping[str, Any]) -> int:
    lengths, form = manifest.get("lengths") or {}, FORMS.get(_form_name(manifest))
    # Lengths are checked later; a form whose texts have rows of their own has one of `tokens` for each.
    rows = len(form.sides) if form else 1
    return max(sum(lengths.values()), manifest["max_seq_length"] * rows)


def _form_name(manifest: Mapping[str, Any]) -> str:
    objective = OBJECTIVES.get(manifest["objective"])
    packed = manifest["recipe"].get("packing")
    return "packed" if packed else manifest.get("form") or (objective.form if objective else "one_row")


def _lengths(manifest: Mapping[str, Any]) -> Mapping[str, int]:
    """Return the lengths by name; manifests of earlier versions have three."""
    return manifest.get("lengths") or {
        "tokens": manifest["max_seq_length"],
        "predictions": manifest["max_predictions_per_seq"],
        "shuffled": manifest.get("max_word_order_per_seq", 0),
    }


def _check_features(manifest: Mapping[str, Any]) -> None:
    form = FORMS.get(_form_name(manifest))
    if form is None or "features" not in manifest:
        return
    expected = schema_to_json(present(form.schema, _lengths(manifest)))
    for feature in expected:
        if feature not in manifest["features"]:
            raise UsageError(f"features: {feature['name']} of form {_form_name(manifest)} is missing or differs")
    for feature in manifest["features"]:
        if feature not in expected:
            raise UsageError(f"features: {feature['name'][:40]!r} is none of form {_form_name(manifest)}")


def _check_lengths(manifest: Mapping[str, Any]) -> None:
    lengths, recipe = manifest.get("lengths"), manifest["recipe"]
    _agree("max_seq_length", manifest["max_seq_length"], recipe["max_seq_length"], "the recipe")
    _agree("objective", manifest["objective"], recipe["objective"], "the recipe")
    objective = OBJECTIVES.get(manifest["objective"])
    name = _form_name(manifest)
    form = FORMS.get(name)
    if objective:
        _agree("num_pair_labels", manifest["num_pair_labels"], PAIRINGS[objective.pairing].num_labels, "the objective")
    if recipe.get("form"):
        _agree("form", name, recipe["form"], "the recipe")
    if form is None:
        return  # `data.manifest.form_of` refuses it, where it is asked for
    # A known objective has said how many there are; a form may leave them out.
    if objective is None and (form.sequences or not form.label) and manifest["num_pair_labels"] > 1:
        raise UsageError(f"form is {name}, which has no label, but num_pair_labels is {manifest['num_pair_labels']}")
    if lengths is None:
        lengths = {
            "tokens": manifest["max_seq_length"],
            "predictions": manifest["max_predictions_per_seq"],
            "shuffled": manifest.get("max_word_order_per_seq", 0),
        }
    axes = {axis for feature in form.schema for axis in feature.axes} - set(form.optional)
    if missing := sorted(axes - set(lengths)):
        raise UsageError(f"lengths lacks {', '.join(missing)}")
    _agree("max_predictions_per_seq", manifest["max_predictions_per_seq"], lengths.get("predictions", 0), "lengths")
    _agree("max_word_order_per_seq", manifest.get("max_word_order_per_seq", 0), lengths.get("shuffled", 0), "lengths")
    word_order = recipe.get("word_order")
    slots = WordOrder(**word_order).num_slots(manifest["max_seq_length"]) if word_order else 0
    _agree("max_word_order_per_seq", lengths.get("shuffled", 0), slots, "the recipe")
    expected = form.lengths(
        manifest["max_seq_length"],
        recipe["masking"]["max_predictions"] * (2 if recipe["masking"].get("permute") else 1),
        lengths.get("shuffled", 0),
        **_target(recipe),
    )
    here = {axis for feature in present(form.schema, expected) for axis in feature.axes}
    for axis in sorted(here | axes):
        _agree(f"lengths.{axis}", lengths.get(axis, 0), expected.get(axis, 0), "the recipe")


def _target(recipe: Mapping[str, Any]) -> dict[str, int]:
    """Return the length of targets as `Form.lengths` takes it."""
    continuation = recipe.get("continuation")
    return {"target": continuation["max_target_length"]} if continuation else {}


def _check_parts(manifest: Mapping[str, Any]) -> None:
    """Raise `UsageError` for a key of the recipe's parts that is unknown: another recipe would be read without it."""
    parts = {"masking": MaskingShape, "word_order": WordOrderShape, "continuation": ContinuationShape}
    for part, shape in parts.items():
        known = shape.__annotations__
        for key in (manifest["recipe"].get(part) or {}).keys() - known.keys():
            raise UsageError(f"recipe.{part} has the unknown key {key!r}; the nearest is {nearest(key, known)!r}")


def _check_recipe(manifest: Mapping[str, Any]) -> None:
    """Raise `UsageError` where the recipe of compact records cannot be had, by which they are masked."""
    continuation, row = manifest["recipe"].get("continuation"), OBJECTIVES.get(manifest["objective"])
    if row is None:
        return
    if (continuation is None) != (row.continuing is None):
        raise UsageError(f"recipe.continuation is {continuation}, with objective {manifest['objective']}")
    if continuation:
        Continuation.from_json(continuation).check(manifest["max_seq_length"])


def _check_dynamic(manifest: Mapping[str, Any]) -> None:
    recipe, tokenizer = manifest["recipe"], manifest["tokenizer"]
    _agree("masking", manifest["masking"], "dynamic" if recipe["dynamic"] else "static", "the recipe")
    if not recipe["dynamic"]:
        return
    if manifest["objective"] not in OBJECTIVES:
        raise UsageError(f"objective is {manifest['objective']}; known: {', '.join(OBJECTIVES)}")
    if "mask_vocabulary" not in manifest:
        raise UsageError("mask_vocabulary is missing, by which the examples are masked")
    vocabulary, size = manifest["mask_vocabulary"], tokenizer["vocab_size"]
    _agree("mask_vocabulary.size", vocabulary["size"], size, "the tokenizer")
    ranges = [*vocabulary["special_ids"], *vocabulary["replacement_ids"], [0, vocabulary["mask_id"]]]
    ranges.append([0, tokenizer["cls_id"]])
    for first, last in ranges:
        if not first <= last < size:
            raise UsageError(f"mask_vocabulary has ids from {first} to {last}, of a vocabulary of {size:,}")
    for first, last in vocabulary["replacement_ids"]:
        if any(first <= until and begin <= last for begin, until in vocabulary["special_ids"]):
            raise UsageError(f"mask_vocabulary replaces tokens by special ones, between {first} and {last}")
    labels = vocabulary["inside_labels"]
    if labels is not None and (len(labels) != size or max(labels) >= size):
        raise UsageError(f"mask_vocabulary.inside_labels is not one id for each of {size:,} tokens")
