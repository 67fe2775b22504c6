"""Everything that decides which examples are made of a text, with the laws between its parts; and the ids to make them.

The laws are checked wherever a recipe is made, by verbs, Beam and tests, and name the flags that break them.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl.app import UsageError

from data.continuation import Continuation
from data.forms import FORMS, Form
from data.masking import Masking, MaskVocabulary
from data.objectives import OBJECTIVES, Objective
from data.pairing import PAIRINGS, Pairing
from data.schema import Lengths
from data.tokenizers import Tokenizer
from data.tokenizers.template import Template
from data.translations import CUT
from data.word_order import WordOrder

_CLAUSE_ENDS = "，、；：。！？,;:.!?"
_AS = {"documents": "them as en=A.txt or A.txt", "pairs": "them as en-zh=A.en:A.zh or A.tsv"}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which examples are made of a text.

    Attributes:
        objective: a key of `OBJECTIVES`.
        masking: amounts; with `dynamic` the reader masks by them.
        dynamic: write compact examples without masks.
        whole_word: hide words rather than tokens.
        segmenter: what finds Chinese words (`data.segmentation`).
        max_seq_length: tokens of an example, specials counted.
        dupe_factor: passes over the text, each with its own pairs and masks.
        short_seq_prob: share of examples with a shorter target length.
        seed: of all draws.
        albert_zh_labels: label a character inside a word '##X' where the vocabulary has that, as published zh weights
            were trained; off, labels are the input ids.
        text_field: of JSON lines.
        held_out_fraction: share of the documents that is set apart; a document's text alone decides on which side it
            falls, so that copies of it fall on the same one.
        held_out: use the documents that are set apart, instead of all others.
        form: a key of `FORMS`; None is the objective's own.
        word_order: what is shuffled after masking, with any objective; None: nothing.
        continuation: how fragments become sources and targets; None is the objective's own, if it has one.
        text: "documents" or "pairs" (`Objective.text`); None is the objective's own, documents where it takes both.
        long_pairs: what becomes of a pair of sentences that is too long (`data.translations`).
        language: of the text, or the two of pairs (`data.languages`); empty where it is not said.

    Raises:
        UsageError: the parts do not go together.
    """

    objective: str
    masking: Masking
    dynamic: bool
    whole_word: bool
    segmenter: str
    max_seq_length: int
    dupe_factor: int
    short_seq_prob: float
    seed: int
    albert_zh_labels: bool = False
    text_field: str = "text"
    held_out_fraction: float = 0.0
    held_out: bool = False
    form: str | None = None
    word_order: WordOrder | None = None
    continuation: Continuation | None = None
    text: str | None = None
    long_pairs: str = CUT
    language: str = ""

    def __post_init__(self) -> None:
        if self.masking.permute and self.dynamic:
            raise UsageError("--do_permutation needs --masking=static: give it, or drop --do_permutation")
        if self.continuation is None and self.row.continuing is not None:
            object.__setattr__(self, "continuation", Continuation.of(self.row.continuing, self.max_seq_length))
        if self.row.text not in (self.reads, "both"):
            others = ", ".join(name for name, row in OBJECTIVES.items() if row.text in (self.reads, "both"))
            raise UsageError(
                f"--input_file has {self.reads}, but --objective={self.objective} learns from {self.row.text}: give "
                f"{_AS[self.row.text]}, or --objective={others}"
            )
        self.layout.check(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Recipe:
        """Return the recipe of a manifest, of this version or an earlier one (which said `packing` for the form)."""
        known = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in content.items() if name in known}
        if content.get("packing"):
            values["form"] = "packed"
        values["masking"] = Masking(**content["masking"])
        values["word_order"] = WordOrder(**content["word_order"]) if content.get("word_order") else None
        if content.get("continuation"):
            values["continuation"] = Continuation.from_json(content["continuation"])
        return cls(**values)

    @property
    def row(self) -> Objective:
        """The objective's row."""
        return OBJECTIVES[self.objective]

    @property
    def pairing(self) -> Pairing:
        """How spans of text become segments."""
        return PAIRINGS[self.row.pairing]

    @property
    def layout(self) -> Form:
        """How segments become features."""
        return FORMS[self.form or self.row.form]

    @property
    def reads(self) -> str:
        """How the text is read: "documents" or "pairs"."""
        return self.text or ("documents" if self.row.text == "both" else self.row.text)

    @property
    def width(self) -> int:
        """How many tokens an example has at most, specials counted."""
        return self.layout.width(self)

    @property
    def lengths(self) -> Lengths:
        """The lengths of a batch, by the axes of the form's schema."""
        shuffled = self.word_order.num_slots(self.max_seq_length) if self.word_order else 0
        # Forms without a target need not know of one.
        further = {"target": self.continuation.max_target_length} if self.continuation else {}
        return self.layout.lengths(self.max_seq_length, self.masking.num_slots, shuffled, **further)

    def takes(self, document: Sequence[str]) -> bool:
        """Whether the document is on this recipe's side of the held-out split."""
        if not self.held_out_fraction:
            return True
        share = zlib.crc32("\n".join(document).encode(), self.seed & 0xFFFFFFFF) / 2**32
        return (share < self.held_out_fraction) == self.held_out


@dataclass(frozen=True)
class Specials:
    """What a reader has to know of a tokenizer's template."""

    cls_id: int
    segment_ids: tuple[int, int] = (0, 1)

    @classmethod
    def from_json(cls, tokenizer: Mapping[str, Any]) -> Specials:
        """Return those of the entry of a manifest; earlier versions knew BERT's segment ids alone."""
        known = {f.name: tokenizer[f.name] for f in dataclasses.fields(cls) if f.name in tokenizer}
        values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in known.items()}
        return cls(**values)


@dataclass(frozen=True)
class Vocabulary:
    """The ids that examples are put together from."""

    template: Template
    unk_id: int
    clause_ends: np.ndarray  # bool [V]
    masking: MaskVocabulary
    token_dtype: np.dtype[Any]  # of token files: id * 2 + (begins a word)

    @property
    def specials(self) -> Specials:
        """The part that readers need too."""
        return Specials(self.template.first[0], self.template.segment_ids)

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, albert_zh_labels: bool = False) -> Vocabulary:
        """Return the ids of a tokenizer."""
        size = tokenizer.vocab_size
        special_V, clause_ends_V = np.zeros(size, bool), np.zeros(size, bool)
        special_V[list(tokenizer.special_ids)] = True
        for mark in _CLAUSE_ENDS:
            clause_ends_V[tokenizer.encode(mark)[-1:]] = True
        clause_ends_V &= ~special_V
        inside = None
        if albert_zh_labels:
            tokens = tokenizer.tokens(range(size))
            id_of = {token: i for i, token in enumerate(tokens)}
            inside = np.asarray([id_of.get("##" + token, i) for i, token in enumerate(tokens)], np.int32)
        masking = MaskVocabulary(tokenizer.mask_id, np.asarray(tokenizer.replacement_ids, np.int32), special_V, inside)
        dtype = np.dtype(np.uint16 if size <= 2**15 else np.uint32)
        return cls(tokenizer.template, tokenizer.unk_id, clause_ends_V, masking, dtype)
