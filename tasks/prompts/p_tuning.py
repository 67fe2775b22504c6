"""P-Tuning (Liu et al. 2021): PET whose pattern has soft slots, made by a prompt encoder in training; the host half.

The literal text of a pattern without soft slots becomes such slots, which begin as its tokens. With --freeze the
language model keeps its weights. EasyNLP's variant has no prompt encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from tasks.kinds import HeadOptions, classification
from tasks.prompts import pet
from tasks.prompts.pattern import parts_of
from tasks.prompts.prompt import PromptDataset, encoded_examples, pieces_of_row, settled_with_words

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling.computation import Computation
    from modeling.config import Config
    from tasks.datasets import DatasetRow, Example
    from tasks.verbalized import VerbalizedTask

flags = ()
new_heads = pet.new_heads
unused_heads = pet.unused_heads
on_strings = pet.on_strings


def __getattr__(name: str) -> Any:
    return getattr(classification, name)


def settled(row: DatasetRow, tokenizer: Tokenizer, examples: Mapping[str, Sequence[Example]]) -> DatasetRow:
    """Return the row with its prompt; raises `UsageError` as for PET, and where there is nothing to tune."""
    found = settled_with_words(row, tokenizer, soft=True)
    if not found.prompt["slots"]:
        raise UsageError(
            f"--pattern={row.pattern} has neither a soft slot nor text that could become some; write [P1][P2] where "
            "they are to stand"
        )
    return found


def dataset(
    row: DatasetRow,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
) -> PromptDataset:
    """Put the examples into the pattern."""
    pieces = pieces_of_row(row, tokenizer, soft=True)
    encoded = encoded_examples(row, pieces, examples, tokenizer, max_seq_length)
    return PromptDataset(encoded, batch_size, max_seq_length, seed=seed)


def parts_of_row(row: DatasetRow, tokenizer: Tokenizer) -> list[list[int] | str]:
    """Return the parts of a row of ids, as PET's, of the pattern with soft slots."""
    return parts_of(pieces_of_row(row, tokenizer, soft=True), tokenizer, row.prompt["masks"])


def task(row: DatasetRow, config: Config, computation: Computation, head: HeadOptions) -> VerbalizedTask:
    """Return a softmax over the words of the labels; where nothing is trained, the encoder is folded away."""
    from tasks.verbalized import VerbalizedTask

    encoder = head.further.get("prompt_encoder") or "none"
    return VerbalizedTask(
        config, row.prompt, prompt_encoder=encoder, computation=computation, regularizers=head.regularizers
    )
