"""What the methods of prompts share: a row's pattern and verbalizer settled by a tokenizer, and its examples as rows.

    row.prompt = {"mask_id": 4, "masks": 2, "slots": [-1, 17], "words": [[[5, 6]], [[7]]], "anchors": 0}

It stands in `run.json`, so that a run folder needs no flags to answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from data.labelled import ClassificationDataset
from data.masking import Masking, MaskVocabulary, hide_tokens
from data.randomness import keys, stream_number
from tasks.prompts.pattern import (
    EncodedPrompts,
    Piece,
    encode_prompts,
    parse,
    slots_of,
    with_soft_literals,
)
from tasks.prompts.verbalizer import words_of

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from tasks.datasets import DatasetRow, Example

_HIDDEN = stream_number("auxiliary masked tokens of prompts")
MOST_MASKS = 64
"""Nobody asks for a longer word; `run.json` is read with this bound."""
AUXILIARY = ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")


def pieces_of_row(row: DatasetRow, tokenizer: Tokenizer, *, soft: bool = False) -> tuple[Piece, ...]:
    """Return the parts of the row's pattern; with `soft` its literal text is soft slots, where it has none.

    Raises `UsageError` for a row without a pattern, or a wrong one.
    """
    if not row.pattern:
        fields = "{text_a} and {text_b}" if row.is_pair else "{text}"
        raise UsageError(
            f"--task_name={row.name} has no pattern; give one: --pattern with {fields}, [MASK] and words around them"
        )
    pieces = parse(row.pattern, row.columns if not row.separator else (*row.columns, "text_b"))
    return with_soft_literals(pieces, tokenizer) if soft else pieces


def settled_with_words(row: DatasetRow, tokenizer: Tokenizer, *, soft: bool = False) -> DatasetRow:
    """Return the row with the prompt of its pattern and its verbalizer.

    Raises:
        UsageError: one of them is missing or wrong, or a word has more tokens than the pattern masks.
    """
    pieces = pieces_of_row(row, tokenizer, soft=soft)
    words = words_of(row.verbalizer, row.labels, tokenizer, row.name)
    longest = max(len(word) for of_label in words for word in of_label)
    masks = sum(piece.kind == "mask" for piece in pieces)
    if max(longest, masks) > MOST_MASKS:
        raise UsageError(
            f"--pattern={row.pattern} with these words has {max(longest, masks)} masks; expected {MOST_MASKS} at most, "
            "give shorter words"
        )
    if masks == 1:
        masks = longest
    elif longest > masks:
        raise UsageError(
            f"--pattern={row.pattern} has {masks} masks, but a word of --verbalizer has {longest} tokens; write [MASK] "
            "as often, or once for as many as there have to be"
        )
    slots = slots_of(pieces, tokenizer, f"--pattern={row.pattern}")
    prompt = {"mask_id": tokenizer.mask_id, "masks": masks, "slots": slots, "words": words}
    return dataclasses.replace(row, prompt=prompt)


def encoded_examples(
    row: DatasetRow, pieces: Sequence[Piece], examples: Sequence[Example], tokenizer: Tokenizer, max_seq_length: int
) -> EncodedPrompts:
    """Return the examples in the pattern; a label becomes its index in the row, -1 where there is none."""
    return encode_prompts(
        pieces,
        {"text_a": [each.text_a for each in examples], "text_b": [each.text_b or "" for each in examples]},
        [row.labels.index(each.label) if each.label is not None else -1 for each in examples],
        tokenizer,
        num_masks=row.prompt["masks"],
        max_seq_length=max_seq_length,
    )


def mask_vocabulary(tokenizer: Tokenizer, slots: int) -> MaskVocabulary:
    """Return the ids that hiding asks for, with soft slots behind the vocabulary."""
    special = np.zeros(tokenizer.vocab_size + slots, bool)
    special[list(tokenizer.special_ids)] = True
    special[tokenizer.vocab_size :] = True
    return MaskVocabulary(tokenizer.mask_id, np.asarray(tokenizer.replacement_ids, np.int32), special)


@dataclasses.dataclass
class PromptDataset(ClassificationDataset):
    """Batches of prompts; in training some tokens of the texts are hidden and to be recovered (auxiliary masked LM).

    Attributes:
        hidden: where tokens are hidden: in a copy of the row ("beside": `hidden_ids`), or in the row ("within":
            `input_ids`, with the place of the prompt's mask as `prompt_positions`); "" for nowhere.
        rate: share of a row's tokens that are hidden.
        vocabulary: ids.
    """

    hidden: str = ""
    rate: float = 0.0
    vocabulary: MaskVocabulary | None = None

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return the batch of a step, a pure function of (seed, step), with the features of hidden tokens."""
        members = self.members(step)
        batch = self._collate(members)
        if not self.hidden:
            return batch
        assert self.vocabulary is not None
        examples = self.examples
        assert isinstance(examples, EncodedPrompts)
        rows, length = batch["input_ids"].shape
        spared_BL = np.ones((rows, length), bool)
        for place, member in enumerate(members):
            begin, end = examples.splits[member : member + 2]
            spared_BL[place, : end - begin] = ~examples.is_text[begin:end]
        spared_BL |= self.vocabulary.special.take(batch["input_ids"])
        most = max(1, round(self.rate * self.max_seq_length))
        numbers = np.zeros(rows, np.int64)
        numbers[: len(members)] = members
        features, _ = hide_tokens(
            batch["input_ids"],
            np.ones((rows, length), bool),
            batch["input_mask"].sum(axis=1),
            keys(self.seed, _HIDDEN, step, numbers, np.arange(rows)),
            Masking(self.rate, most),
            self.vocabulary,
            spared_BL,
        )
        found = {name: features[name] for name in AUXILIARY}
        # Rows that fill up the batch weigh nothing.
        found["masked_lm_weights"][len(members) :] = 0
        if self.hidden == "beside":
            hidden = {"hidden_ids": features["input_ids"], **{f"hidden_{name}": found[name] for name in found}}
            return {**batch, **hidden}
        places = (batch["input_ids"] == self.vocabulary.mask_id).argmax(axis=1).astype(np.int32)
        return {**batch, **found, "input_ids": features["input_ids"], "prompt_positions": places[:, None]}


def hiding(row: DatasetRow, tokenizer: Tokenizer, where: str, rate: float) -> Mapping[str, Any]:
    """Return the arguments of `PromptDataset` by which it hides tokens; none with a rate of 0."""
    if not rate:
        return {}
    return {"hidden": where, "rate": rate, "vocabulary": mask_vocabulary(tokenizer, len(row.prompt["slots"]))}
