"""A pretrained model without a task, the serving half of a kind: it fills masks (BERT section 3.1) and embeds texts.

A text that holds the mask token, as "今天天气很[MASK]", is answered with the likeliest tokens for each; any other with
its vector, the mean of its tokens' last states, of length 1. There is no row: the functions take None in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from data.labelled import ClassificationDataset, EncodedExamples, assembled, padded
from ground.ragged import bounds_of

if TYPE_CHECKING:
    import keras

    from data.tokenizers import Tokenizer
    from ground.tensors import Tensor
    from tasks.kinds import Prediction

settings = ("mask_tokens",)
on_strings = "masks"
MASK = "[MASK]"
tried = ("今天天气很[MASK]。", "a [MASK] b [MASK]")
"""What an export of such a model is asked too."""
TOP = 5
"""How many tokens are told for a mask, where nobody says how many."""


def example_of(row: None, given: Any) -> str:
    """Return a text, or an object of `text_a` or `text`, as an example; raises `UsageError` for anything else."""
    if isinstance(given, Mapping) and len(given) == 1:
        given = given.get("text_a", given.get("text"))
    if not isinstance(given, str) or not given.strip():
        raise UsageError(f"{repr(given)[:60]} is no text; expected one, with {MASK} where a token is to be found")
    return given


@dataclass
class MaskedTexts(ClassificationDataset):
    """Batches of texts whose masks stand at `positions`, places in the row by example."""

    positions: list[list[int]] = field(default_factory=list)
    tokenizer: Tokenizer | None = None

    def _collate(self, members: np.ndarray, batch_size: int | None = None) -> dict[str, np.ndarray]:
        """Return the features of the texts, and where any has a mask `masked_lm_positions` int32 [B, P].

        P is a power of two, so that few programs are compiled; what a text has not is place 0.
        """
        rows = batch_size or self.batch_size
        batch = padded(self.examples, members, rows, self._padded_length(members))
        most = max(len(self.positions[member]) for member in members)
        if most:
            places = np.zeros((rows, 1 << (most - 1).bit_length()), np.int32)
            for number, member in enumerate(members):
                places[number, : len(self.positions[member])] = self.positions[member]
            batch["masked_lm_positions"] = places
        return batch

    def facts(self, row: int) -> dict[str, Any]:
        """Return what `answers` has to know of a text."""
        return {"count": len(self.positions[row]), "tokenizer": self.tokenizer}


def dataset(
    row: None,
    examples: Sequence[str],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
    **settings: Any,
) -> MaskedTexts:
    """Tokenise the texts, with the mask's id where a text has its name.

    Raises:
        UsageError: a mask lies behind what the model reads of a text.
    """
    template = tokenizer.template
    room = template.max_tokens(max_seq_length, 1)
    (name,) = tokenizer.tokens([tokenizer.mask_id])
    parts = [text.replace(name, MASK).split(MASK) for text in examples]
    encoding = tokenizer.encode_batch([part for each in parts for part in each])
    rows, positions, part = [], [], 0
    for each in parts:
        ids: list[int] = []
        for number in range(len(each)):
            span = slice(encoding.splits[part + number], encoding.splits[part + number + 1])
            ids += [*([tokenizer.mask_id] if number else []), *encoding.ids[span].tolist()]
        part += len(each)
        places = [place for place, token in enumerate(ids) if token == tokenizer.mask_id]
        if places and places[-1] >= room:
            raise UsageError(
                f"a {MASK} stands behind {places[-1]:,} tokens; the model reads {room:,}: shorten the text"
            )
        rows.append(ids[:room])
        positions.append([place + len(template.first) for place in places])
    lengths = np.array([len(ids) for ids in rows], np.int64)
    flat = np.concatenate([np.zeros(0, np.int32), *(np.array(ids, np.int32) for ids in rows)])
    tokens, segments, splits = assembled(template, [(flat, bounds_of(lengths)[:-1], lengths)])
    encoded = EncodedExamples(tokens, segments, splits, np.full(len(rows), -1, np.int32))
    return MaskedTexts(encoded, batch_size, max_seq_length, seed=seed, positions=positions, tokenizer=tokenizer)


class Reader:
    """What a pretrained model says of texts: half of a `training.engine.Task`.

    Args:
        top: tokens that are told for a mask.
    """

    def __init__(self, top: int = TOP):
        self.top = top

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `embedding` float32 [B, D] and, where masks are to be filled, `tokens` and `chances` [B, P, top].

        Raises:
            UsageError: the model has no scores of tokens.
        """
        from ground.tensors import ops
        from modeling.fusion import fusing

        with fusing():
            outputs = model(batch, training=False)
        x_BLD = ops.cast(outputs["sequence_output"], "float32")
        weights_BL1 = ops.cast(batch["input_mask"], "float32")[:, :, None]
        mean_BD = ops.sum(x_BLD * weights_BL1, axis=1) / ops.maximum(ops.sum(weights_BL1, axis=1), 1.0)
        found = {"embedding": mean_BD / ops.maximum(ops.norm(mean_BD, axis=-1, keepdims=True), 1e-12)}
        if "masked_lm_positions" in batch:
            if "masked_lm_logits" not in outputs:
                raise UsageError(f"the model has no head that fills {MASK}: leave it out of the texts")
            logits_BPV = ops.cast(outputs["masked_lm_logits"], "float32")
            chances_BPV = ops.softmax(logits_BPV)
            chances, tokens = ops.top_k(chances_BPV, min(self.top, chances_BPV.shape[-1]))
            found |= {"tokens": tokens, "chances": chances}
        return found


def answers(row: None, predictions: Sequence[Prediction], examples: Sequence[str], **settings: Any) -> list[Any]:
    """Return the vector of each text, or for each of its masks the tokens with their probabilities, best first."""
    found: list[Any] = []
    for prediction in predictions:
        if not prediction["count"]:
            found.append(prediction["embedding"])
            continue
        masks = zip(prediction["tokens"][: prediction["count"]], prediction["chances"], strict=False)
        found.append([_top(prediction["tokenizer"], tokens, chances) for tokens, chances in masks])
    return found


def _top(tokenizer: Tokenizer, tokens: np.ndarray, chances: np.ndarray) -> list[dict[str, Any]]:
    # The table of words may have more rows than the vocabulary has tokens.
    real = [
        (token, p) for token, p in zip(tokens.tolist(), chances.tolist(), strict=True) if token < tokenizer.vocab_size
    ]
    return [{"token": tokenizer.tokens([token])[0], "probability": round(p, 6)} for token, p in real]


def told(row: None, answer: Any, example: str) -> dict[str, Any]:
    """Return the tokens for each mask, or the vector of a text without one."""
    if isinstance(answer, list):
        return {"masks": answer}
    return {"embedding": [round(float(each), 6) for each in answer]}
