"""ERNIE-M's losses (Ouyang et al. 2021): masked tokens from a translation alone, and beside a pseudo sentence.

CAMLM (section 2.2) has two computations of one result. "split" encodes the two texts by themselves and lets the masked
tokens of each stand beside the other as its queries (`modeling.queries`). "dense" is the same as the paper draws it, a
row of both texts under a mask; it alone knows the reading "cross". BTMLM (section 2.3) lets the model fill placeholders
by the same queries, and learns from the text beside what they became.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import keras
import numpy as np
from absl.app import UsageError

from data.pseudo_sentences import PSEUDO
from data.spoken import OTHER_LANGUAGE, OWN_LANGUAGE
from ground.keys import fold_in
from ground.tensors import Tensor, ops
from modeling import masks
from modeling.computation import LANGUAGES
from modeling.heads import QueriesHead, gather_positions
from modeling.language_signal import LanguageSignal
from modeling.losses import label_is_best, negative_log_likelihood
from modeling.randomness import gumbel, next_key, seeded
from modeling.two_sides import apart, side_by_side

if TYPE_CHECKING:
    from data.objectives import Objective
    from modeling.model import HeadOfModel
    from tasks.losses import Batch, Settings, Terms

_SIDES = ("", "other_")
MOST_SCORES = 1 << 26
"""Scores over the vocabulary that are held at a time while sentences are written, 256 MiB of them."""


@dataclass(frozen=True, kw_only=True)
class Across:
    """How masked tokens are recovered from another text alone.

    Attributes:
        mask: "strict", or "cross", which a reproduction of others has; see `modeling.masks.across_mask`.
        computation: "split" or "dense".
        positions: of the second text: "continued" behind the first, or "restarted".
        languages: of which a masked token says its own by a vector, in the order of their numbers in batches
            (`data.spoken`); none: it says nothing, as in the paper.
    """

    mask: str = "strict"
    computation: str = "split"
    positions: str = "continued"
    languages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pseudo:
    """How the model writes a sentence beside a text.

    Attributes:
        mask_id: id of [MASK], which every placeholder shows.
        special_ids: of tokens that are no text.
        length_ratio: placeholders for each token of the text, specials counted; as many as there is room for.
        pick: "argmax" or "sample".
        languages: of which a placeholder says by a vector the one that it is to be of; see `Across`.
    """

    mask_id: int
    special_ids: Sequence[int]
    length_ratio: float = 1.0
    pick: str = "argmax"
    languages: tuple[str, ...] = ()


def named_places(batch: Batch, prefix: str, length: int) -> Tensor:
    """Return which position each slot of a list of labelled tokens names, boolean [B, P, L]; none of weight 0.

    Two slots, of which the second is unused: positions [2 0], weights [1 0] -> [[0 0 1 0], [0 0 0 0]].
    """
    positions_BP, weights_BP = batch[f"{prefix}masked_lm_positions"], batch[f"{prefix}masked_lm_weights"]
    same_BPL = positions_BP[:, :, None] == ops.arange(length, dtype="int32")
    return ops.logical_and(same_BPL, weights_BP[:, :, None] > 0)


def original_ids(batch: Batch) -> Tensor:
    """Return the ids of a text as they were before masking, [B, L]."""
    ids_BL = batch["input_ids"]
    named_BPL = named_places(batch, "", ids_BL.shape[1])
    labels_BL = ops.sum(ops.where(named_BPL, batch["masked_lm_ids"][:, :, None], 0), axis=1)
    return ops.where(ops.any(named_BPL, axis=1), labels_BL, ids_BL)


def heads_of(languages: tuple[str, ...]) -> dict[str, HeadOfModel]:
    """Return the heads of a loss whose queries are scored, and say a language where there are languages."""
    signal = {LANGUAGES: partial(LanguageSignal, languages=languages)} if languages else {}
    return {"masked_lm": QueriesHead, **signal}


def vectors_of(model: keras.Model, numbers_B: Tensor) -> Tensor:
    """Return the vectors of languages by their numbers, x_B1E."""
    (signal,) = (head for head in model.heads if isinstance(head, LanguageSignal))
    return signal.vectors(numbers_B)


class AcrossLoss:
    """Cross-entropy of the masked tokens of two texts, each recovered from what is not masked of the other alone.

    It is a mean over the masked tokens of both. In the split computation row 2b holds the first text of example b and
    the masked tokens of its second, row 2b + 1 the second text and the masked tokens of the first.
    """

    def __init__(self, objective: Objective, settings: Settings):
        self.across = settings.across
        if self.across.mask != "strict" and self.across.computation == "split":
            raise UsageError(
                f"a mask read as {self.across.mask} is computed in one row of both texts alone; "
                "give --camlm_computation=dense"
            )
        self.weights: Mapping[str, float] = {"camlm": settings.weights.get("masked_lm", 1.0)}
        self.metrics: tuple[str, ...] = ("camlm_accuracy",)
        self.heads: Mapping[str, HeadOfModel] = heads_of(self.across.languages)

    def prepare(self, model: keras.Model, batch: Batch, seed: Tensor | None) -> Batch:
        """Return the batch with the rows that the model computes, and the labels and weights of what it scores."""
        length = batch["input_ids"].shape[1]
        continued = self.across.positions == "continued"
        model.config.check_sequence_length(2 * length if continued else length)
        places_BL = ops.zeros_like(batch["input_ids"]) + ops.arange(length, dtype="int32")
        first_B1 = ops.sum(batch["input_mask"], axis=1, keepdims=True) if continued else 0
        begins = {"": 0, "other_": first_B1}
        sides = {
            side: {
                "ids": batch[f"{side}input_ids"],
                "mask": batch[f"{side}input_mask"],
                "masked": ops.any(named_places(batch, side, length), axis=1),
                "places": places_BL + begins[side],
                "positions": batch[f"{side}masked_lm_positions"],
                "query_places": batch[f"{side}masked_lm_positions"] + begins[side],
                "labels": batch[f"{side}masked_lm_ids"],
                "weights": batch[f"{side}masked_lm_weights"],
            }
            for side in _SIDES
        }
        if self.across.languages:
            for side, number in zip(_SIDES, (OWN_LANGUAGE, OTHER_LANGUAGE), strict=True):
                sides[side]["vector"] = vectors_of(model, batch[number])
        rows = _split(*sides.values()) if self.across.computation == "split" else self._dense(*sides.values())
        return {**batch, **rows}

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """Count the predicted tokens of both texts."""
        weights = [ops.cast(batch[f"{side}masked_lm_weights"], "float32") for side in _SIDES]
        return {"camlm": ops.sum(weights[0]) + ops.sum(weights[1])}

    def terms(self, outputs: Mapping[str, Tensor], batch: Batch) -> tuple[Terms, Terms]:
        """Score all masked tokens at once."""
        return _one_term("camlm", outputs, batch["across_ids"], batch["across_weights"])

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the best token at every masked position, `masked_lm_ids` and `other_masked_lm_ids`."""
        best = ops.argmax(outputs["masked_lm_logits"], axis=-1)
        if self.across.computation == "split":
            second, first = apart(best)
        else:
            first, second = ops.split(best, 2, axis=1)
        return {"masked_lm_ids": first, "other_masked_lm_ids": second}

    def _dense(self, first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return one row of both texts, [B, 2L], and its mask."""

        def joined(name: str) -> Tensor:
            return ops.concatenate([first[name], second[name]], axis=1)

        side_ids = ops.concatenate([first["mask"], 2 * second["mask"]], axis=1)
        behind = second["positions"] + first["ids"].shape[1]
        said = {}
        if self.across.languages:
            masked_BL1 = [ops.cast(side["masked"], side["vector"].dtype)[:, :, None] for side in (first, second)]
            vectors_BLE = [first["vector"] * masked_BL1[0], second["vector"] * masked_BL1[1]]
            said["word_vectors"] = ops.concatenate(vectors_BLE, axis=1)
        return {
            **said,
            "input_ids": joined("ids"),
            "places": joined("places"),
            "attention_mask": masks.across_mask(side_ids, joined("masked"), self.across.mask),
            "scored_positions": ops.concatenate([first["positions"], behind], axis=1),
            "across_ids": joined("labels"),
            "across_weights": joined("weights"),
        }


def _split(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a row of each text, [2B, L], and beside it the masked tokens of the other, [2B, P]."""
    shown, queries = [], []
    for side in (first, second):
        shown.append(side["mask"] * ops.cast(ops.logical_not(side["masked"]), "int32"))
        queries.append(gather_positions(side["ids"][:, :, None], side["positions"])[:, :, 0])
    said = {"query_vectors": side_by_side(second["vector"], first["vector"])} if "vector" in first else {}
    return {
        **said,
        "input_ids": side_by_side(first["ids"], second["ids"]),
        "input_mask": side_by_side(*shown),
        "places": side_by_side(first["places"], second["places"]),
        "query_ids": side_by_side(*reversed(queries)),
        "query_places": side_by_side(second["query_places"], first["query_places"]),
        "across_ids": side_by_side(second["labels"], first["labels"]),
        "across_weights": side_by_side(second["weights"], first["weights"]),
    }


class BesidePseudoLoss:
    """Cross-entropy of the masked tokens of a text, with a sentence in sight that the model wrote from the whole text.

    Each step first writes, without a gradient and without dropout: placeholders behind the text read the text and
    themselves, and all are filled at once. Then it learns from <masked text, what was written> with full attention:
        text      [CLS] a b [SEP], of which a is masked, at places 0 1 2 3
        written   u v w x, at places 4 5 6 7
        row       [CLS] [MASK] b [SEP] u v w x
    Without `Settings.pseudo` nothing is written, and the text is all that is read. A batch may bring what was written
    before (`data.pseudo_sentences`); then nothing is written in the step.
    """

    def __init__(self, objective: Objective, settings: Settings):
        self.pseudo = settings.pseudo
        self.weights: Mapping[str, float] = {"btmlm": settings.weights.get("masked_lm", 1.0)}
        written = ("pseudo_repetition", "pseudo_emptiness") if self.pseudo else ()
        self.metrics: tuple[str, ...] = ("btmlm_accuracy", *written)
        self.heads: Mapping[str, HeadOfModel] = heads_of(self.pseudo.languages if self.pseudo else ())

    def prepare(self, model: keras.Model, batch: Batch, seed: Tensor | None) -> Batch:
        """Return the batch with the pseudo sentences in its rows, and they alone as `pseudo_ids` and `pseudo_mask`."""
        prepared = {name: value for name, value in batch.items() if name != "segment_ids"}
        prepared["scored_positions"] = batch["masked_lm_positions"]
        if self.pseudo is None:
            return prepared
        ids_BL, mask_BL = batch["input_ids"], batch["input_mask"]
        length = ids_BL.shape[1]
        width = pseudo_length(length, self.pseudo.length_ratio, model.config.max_sequence_length)
        lengths_B1 = ops.sum(mask_BL, axis=1, keepdims=True)
        written_B1 = ops.cast(ops.round(self.pseudo.length_ratio * ops.cast(lengths_B1, "float32")), "int32")
        slots_K = ops.arange(width, dtype="int32")
        pseudo_mask_BK = ops.cast(slots_K < written_B1, "int32")
        places_BL = ops.zeros_like(ids_BL) + ops.arange(length, dtype="int32")
        pseudo_places_BK = lengths_B1 + slots_K
        places = {"places": places_BL, "query_places": pseudo_places_BK}
        pseudo_BK = batch[PSEUDO] if PSEUDO in batch else self._written(model, batch, places) * pseudo_mask_BK
        prepared |= {
            "input_ids": ops.concatenate([ids_BL, pseudo_BK], axis=1),
            "input_mask": ops.concatenate([mask_BL, pseudo_mask_BK], axis=1),
            "places": ops.concatenate([places_BL, pseudo_places_BK], axis=1),
        }
        return {**prepared, PSEUDO: pseudo_BK, "pseudo_mask": pseudo_mask_BK}

    def _written(self, model: keras.Model, batch: Batch, places: Batch) -> Tensor:
        """Return a token for every placeholder, int32 [B, K], from the text before it was masked."""
        assert self.pseudo is not None
        said = {"query_vectors": vectors_of(model, batch[OTHER_LANGUAGE])} if self.pseudo.languages else {}
        # The body alone: the head would score all placeholders at once.
        outputs = model.backbone(
            {
                **said,
                **places,
                "input_ids": original_ids(batch),
                "input_mask": batch["input_mask"],
                "query_ids": ops.full_like(places["query_places"], self.pseudo.mask_id),
            },
            training=False,
        )
        return self._picked(model, ops.stop_gradient(outputs["queried_output"]))

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """Count the predicted tokens."""
        return {"btmlm": ops.sum(ops.cast(batch["masked_lm_weights"], "float32"))}

    def terms(self, outputs: Mapping[str, Tensor], batch: Batch) -> tuple[Terms, Terms]:
        """Score the masked tokens of the text; say of the pseudo sentences how often a token repeats its neighbour.

        `pseudo_repetition` is the share of tokens that equal the one before them, `pseudo_emptiness` of special ones.
        """
        losses, metrics = _one_term("btmlm", outputs, batch["masked_lm_ids"], batch["masked_lm_weights"])
        if self.pseudo is not None:
            ids_BK, mask_BK = batch[PSEUDO], ops.cast(batch["pseudo_mask"], "float32")
            again = ops.cast(ids_BK[:, 1:] == ids_BK[:, :-1], "float32") * mask_BK[:, 1:]
            special_S = ops.convert_to_tensor(np.asarray([*self.pseudo.special_ids], np.int32))
            empty = ops.cast(ops.any(ids_BK[:, :, None] == special_S, axis=-1), "float32") * mask_BK
            metrics["pseudo_repetition"] = ops.sum(again), ops.sum(mask_BK[:, 1:])
            metrics["pseudo_emptiness"] = ops.sum(empty), ops.sum(mask_BK)
        return losses, metrics

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the best token at every masked position, `masked_lm_ids`, and what was written."""
        found = {"masked_lm_ids": ops.argmax(outputs["masked_lm_logits"], axis=-1)}
        return found | ({PSEUDO: batch[PSEUDO]} if self.pseudo else {})

    def _picked(self, model: keras.Model, x_BKD: Tensor) -> Tensor:
        """Return a token for every placeholder, int32 [B, K], a few placeholders of each text at a time.

        Five placeholders, two at a time: 0 1 | 2 3 | 4 and one of zeros, which is dropped.
        """
        (head,) = (head for head in model.heads if isinstance(head, QueriesHead))
        draws = self.pseudo is not None and self.pseudo.pick == "sample"

        def pick(x_BPD: Tensor) -> Tensor:
            logits_BPV = head.scores(x_BPD, embeddings=model.backbone.embeddings)
            noise = gumbel(tuple(logits_BPV.shape)) if draws else 0.0
            return ops.cast(ops.argmax(logits_BPV + noise, axis=-1), "int32")

        batch_size, width, depth = x_BKD.shape
        slots = max(1, MOST_SCORES // (batch_size * model.config.padded_vocab_size))
        if slots >= width:
            return pick(x_BKD)
        parts, key = -(-width // slots), next_key() if draws else None
        padded = ops.pad(x_BKD, ((0, 0), (0, parts * slots - width), (0, 0)))
        x_NBPD = ops.transpose(ops.reshape(padded, (batch_size, parts, slots, depth)), (1, 0, 2, 3))

        def body(_: Tensor, part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x_BPD, number = part
            with seeded(None if key is None else fold_in(key, number)):
                ids_BP = pick(x_BPD)
            return ids_BP, ids_BP

        nothing_BP = ops.zeros((batch_size, slots), "int32")
        _, ids_NBP = ops.scan(body, nothing_BP, (x_NBPD, ops.arange(parts)))
        return ops.reshape(ops.transpose(ids_NBP, (1, 0, 2)), (batch_size, parts * slots))[:, :width]


def pseudo_length(length: int, ratio: float, positions: int) -> int:
    """Return how many tokens are written at most beside a text of `length`, in a model of so many positions.

    Raises:
        UsageError: there is no room for one.
    """
    wanted, room = max(1, round(ratio * length)), positions - length
    if room < 1:
        raise UsageError(
            f"the records have {length} tokens and the model {positions} positions: beside them no pseudo sentence has "
            "room; make records with a smaller --max_seq_length"
        )
    return min(wanted, room)


def _one_term(name: str, outputs: Mapping[str, Tensor], ids_BP: Tensor, weights_BP: Tensor) -> tuple[Terms, Terms]:
    """Return the cross-entropy of the labels under the name, and the share of them that score best."""
    logits_BPV, weights_BP = outputs["masked_lm_logits"], ops.cast(weights_BP, "float32")
    total = ops.sum(weights_BP)
    losses = {name: (ops.sum(negative_log_likelihood(logits_BPV, ids_BP) * weights_BP), total)}
    return losses, {f"{name}_accuracy": (ops.sum(label_is_best(logits_BPV, ids_BP) * weights_BP), total)}
