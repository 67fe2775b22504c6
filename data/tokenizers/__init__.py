"""Text to token ids: the interface every tokenizer has, and the function that loads one from its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from absl import app


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

    def text_of_token(self) -> np.ndarray:
        """Returns int64 [N], the index of the text that each token belongs to."""
        return np.repeat(np.arange(len(self.splits) - 1), np.diff(self.splits))


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
    def special_ids(self) -> frozenset[int]:
        """Ids that are not text: padding, unknown, [CLS], [SEP], [MASK] and the [unused] slots."""
        ...

    @property
    def replacement_ids(self) -> np.ndarray:
        """int32, ascending: what a masked position may be randomly replaced with, the ids that real text can yield."""
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
        """Writes the file or files that load this tokenizer again."""
        ...


def load_tokenizer(
    *, vocab_file: Path | str | None = None, spm_model_file: Path | str | None = None, do_lower_case: bool = True
) -> Tokenizer:
    """Loads the tokenizer of a WordPiece vocabulary or of a SentencePiece model; the model wins when both are given.

    Google's ALBERT requires vocab_file even with spm_model_file, hence that order.

    Raises:
      absl.app.UsageError: neither is given, or the file is not such a vocabulary or model.
      FileNotFoundError: there is no such file.
    """
    if spm_model_file:
        from data.tokenizers.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer.load(Path(spm_model_file), do_lower_case=do_lower_case)
    if vocab_file:
        from data.tokenizers.wordpiece import WordPieceTokenizer

        return WordPieceTokenizer.load(Path(vocab_file), do_lower_case=do_lower_case)
    raise app.UsageError("no tokenizer: give --vocab_file (WordPiece) or --spm_model_file (SentencePiece)")
