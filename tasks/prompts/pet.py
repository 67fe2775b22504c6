"""PET (Schick and Schütze 2021): a text in a pattern, and labels by words at its mask; the host half.

What is not here is classification's. EasyNLP's variant differs: it trains the softmax over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.kinds import HeadOptions, classification
from tasks.prompts import generations
from tasks.prompts.pattern import parts_of
from tasks.prompts.prompt import PromptDataset, encoded_examples, hiding, pieces_of_row, settled_with_words

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling.computation import Computation
    from modeling.config import Config
    from tasks.datasets import DatasetRow, Example
    from tasks.verbalized import VerbalizedTask

AUXILIARY_WEIGHT = 1e-4
"""The paper's."""
flags = ("auxiliary_rate", "auxiliary_weight")
new_heads = ("soft_prompt/.*",)
unused_heads = ("sentence_pair/.*", "classifier/.*")
on_strings = "prompts"
read = generations.read


def __getattr__(name: str) -> Any:
    return getattr(classification, name)


def settled(row: DatasetRow, tokenizer: Tokenizer, examples: Mapping[str, Sequence[Example]]) -> DatasetRow:
    """Return the row with its prompt; see `tasks.prompts.prompt.settled_with_words`."""
    return settled_with_words(row, tokenizer)


def dataset(
    row: DatasetRow,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
    auxiliary_rate: float = 0.0,
    auxiliary_weight: float | None = None,
) -> PromptDataset:
    """Put the examples into the pattern; in training each batch has a copy of its rows with hidden tokens."""
    encoded = encoded_examples(row, pieces_of_row(row, tokenizer), examples, tokenizer, max_seq_length)
    rate = 0.0 if auxiliary_weight == 0 else auxiliary_rate
    return PromptDataset(encoded, batch_size, max_seq_length, seed=seed, **hiding(row, tokenizer, "beside", rate))


def parts_of_row(row: DatasetRow, tokenizer: Tokenizer) -> list[list[int] | str]:
    """Return the parts of a row of ids: ids that are in every row, and names of texts."""
    return parts_of(pieces_of_row(row, tokenizer), tokenizer, row.prompt["masks"])


def task(row: DatasetRow, config: Config, computation: Computation, head: HeadOptions) -> VerbalizedTask:
    """Return a softmax over the words of the labels, and a masked-LM loss beside it."""
    from tasks.verbalized import VerbalizedTask

    weight = head.further.get("auxiliary_weight")
    return VerbalizedTask(
        config,
        row.prompt,
        auxiliary_weight=AUXILIARY_WEIGHT if weight is None else weight,
        computation=computation,
        regularizers=head.regularizers,
    )


def answers(row: DatasetRow, predictions: Sequence[Any], examples: Sequence[Example], **further: Any) -> list[Any]:
    """Return the probabilities of each example, float32 [C]."""
    return classification.answers(row, predictions, examples)
