"""The table of pretraining objectives: a published method is one row, which flags, data, tasks and plans all read.

Only the standard library is imported, so that flags offer the names before NumPy is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Continuing:
    """Amounts of a continuation where flags do not say them; see `data.continuation.Continuation`.

    Attributes:
        fragment_length: most tokens of a fragment that is cut by share; shorter rows make it shorter.
        source_fraction: share of its tokens that is the source.
        stride: sentences from one fragment to the next; 0: a whole fragment.
        drawn: least and greatest length of source and target where both are drawn for each example; None: by share.
    """

    fragment_length: int = 500
    source_fraction: float = 0.8
    stride: int = 1
    drawn: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A published pretraining method: pairing x form x losses. How much is masked is up to `data.masking.Masking`.

    Attributes:
        paper: who published it.
        summary: what is learnt, for `--help`.
        pairing: key of `data.pairing.PAIRINGS`: how spans of text become the segments of an example.
        form: key of `data.forms.FORMS`: how segments become the features of a batch.
        losses: keys of `tasks.losses.LOSSES`, in the order in which they are computed and logged.
        label_name: name under which the loss of the pair label is logged; empty where examples have no label.
        labels: classes of the pair label, in the order of their ids.
        shuffles_words: whether word order belongs to the method, so that words are shuffled unless flags say otherwise.
        text: "documents": a sentence a line and a blank line between documents; "pairs": a document is two sentences,
            such as a sentence and its translation, in a line with a TAB between or in the same line of two files;
            "both": either, as the inputs are named (`data.corpus.inputs`), in records of one schema.
        continuing: amounts of the pairing "continuation"; None with any other.
        streams: of the model, in each of which every labelled token is scored.
        across: whether masked tokens are recovered from another text alone, so that flags say how.
        writes: whether the model writes tokens of its own in every step, so that manifests say which ids are special.
        after: the objective that a model has to have learnt before.
    """

    paper: str
    summary: str
    pairing: str = "single"
    form: str = "one_row"
    losses: tuple[str, ...] = ("masked_lm",)
    label_name: str = ""
    labels: tuple[str, ...] = ()
    shuffles_words: bool = False
    text: str = "documents"
    continuing: Continuing | None = None
    streams: int = 1
    across: bool = False
    writes: bool = False
    after: str = ""

    @property
    def has_queries(self) -> bool:
        """Whether tokens that no other token reads are to be found, which may say what language they are to be of."""
        return self.across or self.writes


_STRUCTURE = ("random", "next", "previous", "later", "earlier")


def _structbert(num_labels: int, summary: str) -> Objective:
    return Objective(
        paper="Wang et al. 2020",
        summary=summary,
        pairing=f"structure_{num_labels}",
        losses=("masked_lm", "pair"),
        label_name="sentence_structure",
        labels=_STRUCTURE[:num_labels],
        shuffles_words=True,
    )


def _continuation(paper: str, summary: str, continuing: Continuing) -> Objective:
    return Objective(
        paper=paper,
        summary=summary,
        pairing="continuation",
        form="source_target",
        losses=("masked_lm", "next_tokens"),
        continuing=continuing,
    )


OBJECTIVES: Mapping[str, Objective] = {
    "albert": Objective(
        paper="Lan et al. 2020",
        summary="masked tokens and sentence order",
        pairing="sop",
        losses=("masked_lm", "pair"),
        label_name="sentence_order",
        labels=("in order", "swapped"),
    ),
    "bert": Objective(
        paper="Devlin et al. 2019",
        summary="masked tokens and next sentence",
        pairing="nsp",
        losses=("masked_lm", "pair"),
        label_name="next_sentence",
        labels=("next", "random"),
    ),
    "btmlm": Objective(
        paper="Ouyang et al. 2021 (ERNIE-M)",
        summary="masked tokens of a text beside a pseudo sentence that the model writes; begins with what camlm learnt",
        losses=("beside_pseudo",),
        writes=True,
        after="camlm",
    ),
    "camlm": Objective(
        paper="Ouyang et al. 2021 (ERNIE-M)",
        summary="masked tokens of a sentence from its translation alone, and the other way round",
        pairing="adjacent",
        form="halves",
        losses=("across",),
        text="pairs",
        across=True,
    ),
    "masked_lm": Objective(paper="Liu et al. 2019 (RoBERTa)", summary="no pairs"),
    "palm": _continuation("Bi et al. 2020", "masked tokens of a source, and the text that follows it", Continuing()),
    "plug": _continuation(
        "AliceMind 2021", "the same, source and target each of a drawn length", Continuing(stride=0, drawn=(32, 512))
    ),
    "structbert": _structbert(3, "masked tokens, word order, and random, next or previous sentence"),
    "structbert_2way": _structbert(2, "random or next sentence"),
    "structbert_5way": _structbert(5, "also later or earlier sentences"),
    "tlm": Objective(
        paper="Conneau and Lample 2019",
        summary="masked tokens of a sentence and its translation, or of adjacent segments, in one row",
        pairing="adjacent",
        text="both",
    ),
    "veco": Objective(
        paper="Luo et al. 2021",
        summary="masked tokens of two such texts, of each alone and with the other in sight",
        pairing="adjacent",
        form="two_sides",
        losses=("both_sides",),
        text="both",
        streams=2,
    ),
}

# What of a row decides its examples; all else is about what is learnt from them.
_OF_RECORDS = ("pairing", "form", "labels", "shuffles_words", "text", "continuing")


def same_records(one: str, other: str) -> bool:
    """Whether the examples of one row are those of the other, so that either learns from records made for the other."""
    if one == other:
        return True
    rows = [OBJECTIVES[name] for name in (one, other) if name in OBJECTIVES]
    return len(rows) == 2 and all(getattr(rows[0], name) == getattr(rows[1], name) for name in _OF_RECORDS)
