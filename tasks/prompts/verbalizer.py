"""The words that stand for labels: "0=不同" or "1=相同|一样", one or several a label, each of one token or more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl.app import UsageError

from ground.words import did_you_mean, few_names
from tasks.prompts.pattern import pieces_of

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer

Words = list[list[list[int]]]
"""Ids of the tokens of each word of each label, in the order of the labels."""


def words_of(verbalizer: Sequence[str], labels: Sequence[str], tokenizer: Tokenizer, task_name: str) -> Words:
    """Return the ids of the words of every label.

    Example:
        verbalizer ("0=bad", "1=good|very good"), labels ("0", "1")
        words [[[7]], [[8], [9, 8]]]

    Raises:
        UsageError: a label without words or an unknown label, a word that the vocabulary lacks, or one of two labels.
    """
    if not verbalizer:
        raise UsageError(
            f"--task_name={task_name} has no words for its labels; give them: --verbalizer={labels[0]}=WORD,"
            f"{labels[1]}=WORD"
        )
    given: dict[str, list[str]] = {}
    for entry in verbalizer:
        label, sign, words = entry.partition("=")
        label = label.strip()
        if not sign or not all(word.strip() for word in words.split("|")):
            raise UsageError(f"--verbalizer: {entry!r} is no LABEL=WORD or LABEL=WORD|WORD; write one for each label")
        if label not in labels:
            hint = did_you_mean(label, labels) or f"; expected one of {few_names(labels)}"
            raise UsageError(f"--verbalizer: {label!r} is no label of --task_name={task_name}{hint}")
        if label in given:
            raise UsageError(f"--verbalizer names the label {label!r} twice; join its words by |")
        given[label] = [word.strip() for word in words.split("|")]
    if missing := [label for label in labels if label not in given]:
        raise UsageError(f"--verbalizer has no word for the label {missing[0]!r}; add {missing[0]}=WORD")
    found: Words = []
    owners: dict[tuple[int, ...], str] = {}
    for label in labels:
        found.append([])
        for word in given[label]:
            ids = pieces_of(word, tokenizer)
            if not ids or tokenizer.unk_id in ids:
                raise UsageError(
                    f"--verbalizer: the vocabulary lacks the word {word!r} of the label {label!r}; give another word"
                )
            other = owners.setdefault(tuple(ids), label)
            if len(found[-1]) and list(ids) in found[-1]:
                raise UsageError(f"--verbalizer: the label {label!r} has the word {word!r} twice; give it once")
            if other != label:
                raise UsageError(
                    f"--verbalizer: the labels {other!r} and {label!r} share the word {word!r}, as the vocabulary has "
                    "it; give each words of its own"
                )
            found[-1].append(list(ids))
    return found
