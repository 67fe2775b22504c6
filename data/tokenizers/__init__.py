"""Text to token ids: the interface every tokenizer has, and the function that loads one from its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from absl.app import UsageError

from data.tokenizers.template import Template
from ground.pieces import lists_pieces


@dataclass(frozen=True, slots=True)
class Encoding:
    """The tokens of T texts, concatenated: text t owns the tokens splits[t]:splits[t + 1].

    Offsets count characters (code points) of the text as it was given, before any normalisation.
    """

    ids: np.ndarray  # int32 [N]
    splits: np.ndarray  # int64 [T + 1]
    starts: np.ndarray  # int32 [N]
    ends: np.ndarray  # int32 [N], exclusive
    continuation: np.ndarray  # bool [N]: continues a word, by the tokenizer's own mark ('##', or no SentencePiece '▁')


class Tokenizer(Protocol):
    """Text to ids and back. Raw text never yields a special id, except for that of unknown words.

    Properties so that implementations may keep plain attributes.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def unk_id(self) -> int: ...
    @property
    def cls_id(self) -> int: ...
    @property
    def sep_id(self) -> int: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def template(self) -> Template:
        """Where [CLS] and [SEP], or the tokens in their place, go around texts."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that are not text: padding, unknown, [CLS], [SEP], [MASK] and the [unused] slots."""
        ...

    @property
    def replacement_ids(self) -> np.ndarray:
        """The ids that real text can yield, which random replacements are drawn from; int32, ascending."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides the output: algorithm and its version, vocabulary, casing."""
        ...

    def encode(self, text: str) -> list[int]: ...
    def encode_batch(self, texts: Sequence[str]) -> Encoding: ...
    def tokens(self, ids: Sequence[int]) -> list[str]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def save(self, directory: Path) -> list[Path]:
        """Write the file or files that load this tokenizer again; return their paths."""
        ...


def load_tokenizer(
    *,
    vocab_file: Path | str | None = None,
    spm_model_file: Path | str | None = None,
    do_lower_case: bool = True,
    segmentation: str | None = None,
) -> Tokenizer:
    """Load the tokenizer of a WordPiece vocabulary, of a SentencePiece model, or of both files of ERNIE-M.

    The commands of Google's ALBERT give vocab_file even with spm_model_file, so of the two the model wins, unless the
    vocabulary lists SentencePiece's pieces: then it decides the ids, and `segmentation` says how text is cut.

    Raises:
        UsageError: neither is given, or the file is not such a vocabulary or model; or a segmentation without both.
        FileNotFoundError: there is no such file.
    """
    if segmentation and not (spm_model_file and vocab_file):
        raise UsageError(
            f"--segmentation={segmentation} is of ERNIE-M's tokenizer, which has two files: give --spm_model_file "
            "(sentencepiece.bpe.model) and --vocab_file (vocab.txt)"
        )
    if spm_model_file and vocab_file and (segmentation or lists_pieces(Path(vocab_file))):
        from data.tokenizers.ernie_m import DEFAULT, ErnieMTokenizer

        return ErnieMTokenizer.load(Path(spm_model_file), Path(vocab_file), segmentation or DEFAULT)
    if spm_model_file:
        from data.tokenizers.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer.load(Path(spm_model_file), do_lower_case=do_lower_case)
    if vocab_file:
        from data.tokenizers.wordpiece import WordPieceTokenizer

        return WordPieceTokenizer.load(Path(vocab_file), do_lower_case=do_lower_case)
    raise UsageError("no tokenizer: give --vocab_file (WordPiece) or --spm_model_file (SentencePiece)")
