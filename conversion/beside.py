"""What lies beside weights and travels with them: the vocabulary, whether text is lower-cased, the names of classes.

Each is looked for where its writer puts it: `run.json` of a run, `labels.json` of a conversion, transformers'
config.json, tokenizer_config.json and tokenizer.json, which for WordPiece stands in for a vocab.txt that is not there.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from absl.app import UsageError

from conversion.readers import Checkpoint
from conversion.tokenizer_files import SEGMENTATION, VocabularyFile, wordpiece_of_json
from ground.documents import check_shape, read_json
from ground.pieces import lists_pieces

LABELS = "labels.json"
_RUN, _CONFIG, _TOKENIZER, _TOKENIZER_CONFIG = "run.json", "config.json", "tokenizer.json", "tokenizer_config.json"
VOCABULARIES = ("vocab.txt", "spiece.model", "30k-clean.model", "sentencepiece.bpe.model")
_ERNIE_M_MODEL = "sentencepiece.bpe.model"
_DEFAULT_LABEL = "LABEL_"
_LABELS_FIX = "restore it, or name the classes with --labels"
_CASE_FIX = "restore it, or give --do_lower_case"


class _RowShape(TypedDict):
    labels: list[str]


class _KindShape(TypedDict):
    kind: NotRequired[str]


class _RunShape(TypedDict):
    row: _RowShape | None


def find_vocabulary(
    checkpoint: Checkpoint, given: str | None, model: str | None = None, segmentation: str | None = None
) -> list[VocabularyFile]:
    """Return the vocabulary: the given one, else the first beside the checkpoint or in the run's folder; or none.

    Args:
        checkpoint: beside which it may lie.
        given: a vocabulary or a SentencePiece model.
        model: a SentencePiece model; with `given` the two are ERNIE-M's.
        segmentation: of ERNIE-M's tokenizer; by default as the files beside the checkpoint say.
    """
    if given is not None and model is not None:
        return [_ernie_m(checkpoint, Path(model), Path(given), segmentation)]
    if given is not None or model is not None:
        return [VocabularyFile.read(Path(given or model or ""))]
    for folder in checkpoint.folders:
        pair = (folder / _ERNIE_M_MODEL, folder / "vocab.txt")
        if pair[0].is_file() and lists_pieces(pair[1]):
            return [_ernie_m(checkpoint, *pair, segmentation)]
        path = next((folder / name for name in VOCABULARIES if (folder / name).exists()), None)
        if path is not None:
            return [VocabularyFile.read(path)]
    path = checkpoint.folder / _TOKENIZER
    if not path.is_file():
        return []
    content = read_json(path, dict[str, Any], what="a tokenizer.json", fix="give --vocab_file")
    return [VocabularyFile(path, "vocab.txt", wordpiece_of_json(content, path))]


def _ernie_m(checkpoint: Checkpoint, model: Path, vocabulary: Path, segmentation: str | None) -> VocabularyFile:
    found = segmentation or segmentation_of(checkpoint)
    return dataclasses.replace(VocabularyFile.read(model), ids=VocabularyFile.read(vocabulary), segmentation=found)


def segmentation_of(checkpoint: Checkpoint) -> str:
    """Return how ERNIE-M's tokenizer cut the text of a checkpoint.

    What a run or a conversion says, else the way of the program whose names the tensors have: transformers' is "hf",
    and "paddlenlp" is PaddleNLP's and of all others. Raises `UsageError` for a file that nobody can have written.
    """
    for folder in checkpoint.folders:
        for name, place in ((_RUN, ("tokenizer", SEGMENTATION)), (_TOKENIZER_CONFIG, (SEGMENTATION,))):
            if found := _told(folder / name, place, str, "restore it, or give --segmentation"):
                return found
    return "hf" if checkpoint.source_format == "ernie_m" else "paddlenlp"


def _told(path: Path, place: Sequence[str], kind: Any, fix: str) -> Any:
    """Return what a JSON file has at a place, of a type; None where there is no such file, or nothing at the place."""
    value: Any = read_json(path, dict[str, Any], what=f"a {path.name}", fix=fix) if path.is_file() else {}
    for key in place:
        value = value.get(key) if isinstance(value, dict) else None
    return None if value is None else check_shape(value, kind, where=f"{'.'.join(place)} of {path}", fix=fix)


def is_lowered(checkpoint: Checkpoint) -> bool:
    """Return whether the model's text was lower-cased; True, as in BERT's and ALBERT's code, where nothing tells.

    Raises `UsageError` for a file that nobody can have written.
    """
    for folder in checkpoint.folders:
        for name, place in ((_RUN, ("tokenizer", "do_lower_case")), (_TOKENIZER_CONFIG, ("do_lower_case",))):
            value = _told(folder / name, place, bool, _CASE_FIX)
            if value is not None:
                return value
    path = checkpoint.folder / _TOKENIZER
    if not path.is_file():
        return True
    normalizer = read_json(path, dict[str, Any], what="a tokenizer.json", fix=_CASE_FIX).get("normalizer") or {}
    check_shape(normalizer, dict[str, Any], where=f"normalizer of {path}", fix=_CASE_FIX)
    steps = [normalizer, *(step for step in normalizer.get("normalizers") or () if isinstance(step, dict))]
    return any(step.get("type") == "Lowercase" or step.get("lowercase") is True for step in steps)


def labels_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the names of a classifier's classes, in order; empty where nothing beside the weights tells them.

    Runs of old have no file that does, and a pretraining run has no row. Raises `UsageError` for a file that nobody can
    have written.
    """
    if checkpoint.source_format != "ours":
        path = checkpoint.folder / _CONFIG
        values = read_json(path, dict[str, Any], what="a config", fix=_LABELS_FIX) if path.is_file() else {}
        return _labels_by_index(values.get("id2label") or {}, path)
    for folder in checkpoint.folders:
        if (folder / _RUN).is_file():
            row = read_json(folder / _RUN, _RunShape, what="a run.json", fix=_LABELS_FIX)["row"]
            return class_names(checkpoint, () if row is None else row["labels"])
        if (folder / LABELS).is_file():
            return tuple(read_json(folder / LABELS, list[str], what="a list of labels", fix=_LABELS_FIX))
    return ()


def class_names(checkpoint: Checkpoint, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of the labels of a task: of a tagger the tags of its types of entities."""
    if "tagger/kernel" not in checkpoint.tensors:
        return tuple(labels)
    return ("O", *(f"{prefix}-{label}" for label in labels for prefix in "BI"))


def kind_of_run(checkpoint: Checkpoint) -> str:
    """Return the kind of task of the run that wrote the checkpoint, as "classification"; empty where nothing tells it.

    A damaged file tells nothing here: `labels_of` refuses it, unless --labels stands in for it.
    """
    paths = [folder / _RUN for folder in checkpoint.folders if checkpoint.source_format == "ours"]
    for path in paths:
        if path.is_file():
            with contextlib.suppress(UsageError):
                return read_json(path, _KindShape, what="a run.json").get("kind", "")
    return ""


def _labels_by_index(by_index: Any, path: Path) -> tuple[str, ...]:
    """Return the labels of {"0": "no", "1": "yes"}; none where they are transformers' LABEL_0 and so on."""
    check_shape(by_index, dict[str, str], where=f"id2label of {path}", fix=_LABELS_FIX)
    if by_index.keys() != {str(i) for i in range(len(by_index))}:
        raise UsageError(f"id2label of {path} has the keys {', '.join(by_index)}; expected 0, 1, ...; {_LABELS_FIX}")
    names = tuple(by_index[str(i)] for i in range(len(by_index)))
    return () if all(name == f"{_DEFAULT_LABEL}{i}" for i, name in enumerate(names)) else names
