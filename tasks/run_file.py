"""`run.json`: what a run folder holds, so that prediction, export, conversion and a student can load it without flags.

    {"version": 1, "kind": "classification", "row": {...}, "tokenizer": {...}, "config": {...}, "computation": {...}}

`kind` is "pretraining" (then `objective` is a row of `data.objectives.OBJECTIVES`, or several with commas between, of
which `objectives` tells more) or a key of `tasks.kinds.KINDS`
(then `row` is the row of datasets.toml as it was when the run began, labels included).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from absl.app import UsageError
from msgspec import Meta, Struct

from data.objectives import OBJECTIVES
from ground.bounds import BOUNDS
from ground.documents import check_shape, read_json
from ground.files import write_atomically
from modeling.config import Config
from tasks.datasets import DatasetRow, parse_row
from tasks.kinds import KINDS, METHODS, HeadOptions, find_kind

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer

NAME = "run.json"
PRETRAINING = "pretraining"
_VERSION = 1
_FIX = "restore it: it is not as a run wrote it"


class _VersionShape(TypedDict):
    version: int


class _RowName(TypedDict):
    name: str


class _TokenizerShape(Struct, forbid_unknown_fields=True):
    file: Annotated[str, Meta(pattern=r"^[^/\\\x00]*$")] = ""
    fingerprint: str = ""
    do_lower_case: bool = True
    max_seq_length: Annotated[int, Meta(ge=0, le=int(BOUNDS["max_seq_length"].most))] = 0
    vocabulary: Annotated[str, Meta(pattern=r"^[^/\\\x00]*$")] = ""
    segmentation: str = ""


class _ComputationShape(Struct, forbid_unknown_fields=True):
    dtype: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    remat: bool = False
    scan: bool = False


class _MixedShape(Struct, forbid_unknown_fields=True):
    share: Annotated[float, Meta(gt=0, le=1)]
    shuffles_words: bool = False


class _RunShape(Struct, forbid_unknown_fields=True):
    version: int
    kind: str
    config: dict[str, Any]
    computation: _ComputationShape
    tokenizer: _TokenizerShape
    row: _RowName | None
    objective: str = ""
    shuffles_words: bool = False
    objectives: dict[str, _MixedShape] = {}
    data: dict[str, str | int] = {}


@dataclass(frozen=True, kw_only=True)
class TokenizerFile:
    """The tokenizer of a run.

    Attributes:
        file: the vocabulary or SentencePiece model, in the run folder; empty where the run has none (pretraining, whose
            text was tokenised before).
        fingerprint: SHA-256 of all that decides the tokens.
        do_lower_case: whether text is lower-cased.
        max_seq_length: tokens to which input is cut, specials counted.
        vocabulary: the file that decides the ids of the SentencePiece model's pieces, where one does (ERNIE-M).
        segmentation: how that tokenizer cuts text.
    """

    file: str = ""
    fingerprint: str = ""
    do_lower_case: bool = True
    max_seq_length: int = 512
    vocabulary: str = ""
    segmentation: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the fields as `run.json` has them: those of ERNIE-M alone stand only where they say something."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value or name not in ("vocabulary", "segmentation")}

    def load(self, folder: Path) -> Tokenizer:
        """Return the tokenizer; raises `UsageError` if its file is missing from `folder` or is another one."""
        from data.tokenizers import load_tokenizer

        path = folder / self.file
        named = {"vocab_file": path} if path.suffix == ".txt" else {"spm_model_file": path}
        named |= {"vocab_file": folder / self.vocabulary} if self.vocabulary else {}
        if not self.file or not all(file.is_file() for file in named.values()):
            raise UsageError(f"{folder} holds no vocabulary: copy the one that the run was made with into it")
        tokenizer = load_tokenizer(**named, do_lower_case=self.do_lower_case, segmentation=self.segmentation or None)
        if tokenizer.fingerprint != self.fingerprint:
            raise UsageError(
                f"{path} is not the vocabulary of this run (fingerprint {tokenizer.fingerprint[:8]}, expected "
                f"{self.fingerprint[:8]}): restore the file that the run wrote"
            )
        return tokenizer


@dataclass(frozen=True, kw_only=True)
class MixedObjective:
    """One of several objectives of a run.

    Attributes:
        share: of the steps.
        shuffles_words: whether its records hold shuffled words.
    """

    share: float
    shuffles_words: bool = False


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """What a run folder holds; see the head of this file."""

    kind: str
    config: Config
    computation: Mapping[str, Any]
    tokenizer: TokenizerFile
    objective: str = ""
    shuffles_words: bool = False
    objectives: Mapping[str, MixedObjective] = field(default_factory=dict)
    row: DatasetRow | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def task(self) -> Any:
        """Return the task that was trained, a `training.engine.Task`; needs Keras."""
        from modeling.computation import Computation

        computation = Computation(**self.computation)
        if self.row is not None:
            return find_kind(self.kind).task(self.row, self.config, computation, HeadOptions())
        from tasks.mixing import MixedTask
        from tasks.pretraining import PretrainingTask

        shuffling = {name: each.shuffles_words for name, each in self.objectives.items()}
        tasks = {
            name: PretrainingTask(
                self.config, name, weights={"word_order": 1.0} if shuffles else {}, computation=computation
            )
            for name, shuffles in (shuffling or {self.objective: self.shuffles_words}).items()
        }
        return MixedTask(tasks) if shuffling else tasks[self.objective]

    def write(self, folder: Path) -> None:
        """Write `run.json`; raises `OSError`."""
        content = {"version": _VERSION, **dataclasses.asdict(self), "tokenizer": self.tokenizer.as_json()}
        if not self.objectives:
            # As before there were several: earlier versions refuse keys that they do not know.
            del content["objectives"]
        write_atomically(folder / NAME, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> RunFile:
        """Return what `folder` says of itself; raises `UsageError` if it is no run folder or of a later version."""
        path = folder / NAME
        try:
            content = read_json(path, _VersionShape, what="a run.json", fix=_FIX)
        except FileNotFoundError:
            raise UsageError(f"{folder} is no run folder: it has no {NAME}; give the --output_dir of a run") from None
        if content["version"] != _VERSION:
            raise UsageError(
                f"{path} is of version {content['version']}, this installation reads {_VERSION}: update it"
            )
        check_shape(content, _RunShape, where=str(path), fix=_FIX)
        del content["version"]
        row = content.pop("row")
        kinds = (PRETRAINING, *KINDS, *METHODS)
        if content["kind"] not in kinds or (row is None) != (content["kind"] == PRETRAINING):
            raise UsageError(
                f"{path}: kind is {content['kind']!r}, expected one of {', '.join(kinds)}, with a row but for the "
                f"first; {_FIX}"
            )
        names = content.get("objective", "").split(",")
        mixed = content.get("objectives", {})
        if (mixed or len(names) > 1) and not ({*names} == mixed.keys() <= OBJECTIVES.keys() and len(names) > 1):
            raise UsageError(
                f"{path}: objective is {content['objective']!r} but objectives are {', '.join(mixed) or 'missing'}, "
                f"expected the same names, of {', '.join(OBJECTIVES)}; {_FIX}"
            )
        try:
            return cls(
                **content
                | {
                    "config": Config.from_json(content["config"]),
                    "tokenizer": TokenizerFile(**content["tokenizer"]),
                    "objectives": {
                        name: MixedObjective(**each) for name, each in content.get("objectives", {}).items()
                    },
                    "row": None if row is None else parse_row(row.pop("name"), row, path),
                }
            )
        except UsageError as error:
            raise UsageError(f"{path}: {str(error).removeprefix(f'{path}: ')}; {_FIX}") from None


def describe_tokenizer(
    tokenizer: Tokenizer, folder: Path, *, do_lower_case: bool, max_seq_length: int
) -> TokenizerFile:
    """Save the tokenizer's file or files in `folder` and return their description."""
    path, *vocabulary = tokenizer.save(folder)
    return TokenizerFile(
        file=path.name,
        vocabulary="".join(each.name for each in vocabulary),
        segmentation=getattr(tokenizer, "segmentation", ""),
        fingerprint=tokenizer.fingerprint,
        do_lower_case=do_lower_case,
        max_seq_length=max_seq_length,
    )
