"""Texts in the pattern of a method for few labels, as SavedModels on strings read them (`tasks/prompts/pattern.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow

from data.tokenizers.in_graph import in_graph
from data.tokenizers.template import kept_lengths
from serving.strings.texts import Classes
from serving.strings.windows import first_of
from tasks.inputs import IDS, MASK, TYPES

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from serving.loading import Loaded

tf: Any = tensorflow


class Prompts(Classes):
    """As `Classes`, of a row of features in which the texts stand between the words and slots of the prompt."""

    def text_rows(self, loaded: Loaded) -> list[list[str]]:
        """Return the texts of the pattern, each once."""
        assert loaded.row is not None
        return [["text_a", "text_b"] if loaded.row.is_pair else ["text_a"]]

    def make_features(self, loaded: Loaded) -> Any:
        """Return what puts the texts into the pattern."""
        return InGraphPrompt(
            loaded.tokenizer, loaded.host.parts_of_row(loaded.row, loaded.tokenizer), loaded.max_seq_length
        )


class InGraphPrompt(tf.Module):
    """Strings [B] -> features int32 [B, max_seq_length], those of `tasks.prompts.pattern.encode_prompts`.

    Args:
        tokenizer: of the texts.
        parts: of a row, ids or the name of a text.
        max_seq_length: in tokens, specials counted.
    """

    def __init__(self, tokenizer: Tokenizer, parts: list[list[int] | str], max_seq_length: int):
        super().__init__()
        self.ids, self.max_seq_length = in_graph(tokenizer), max_seq_length
        self._parts, self._segment = tuple(tuple(x) if isinstance(x, list) else x for x in parts), tokenizer.template
        self._used = [part for part in self._parts if isinstance(part, str)]
        self._budget = max_seq_length - sum(len(part) for part in self._parts if not isinstance(part, str))

    def __call__(self, *texts: Any) -> dict[str, Any]:
        names = list(dict.fromkeys(("text_a", "text_b")[: len(texts)]))
        ids = {name: self.ids(each) for name, each in zip(names, texts, strict=True)}
        kept = self._kept({name: each.row_lengths() for name, each in ids.items()})
        cut = {name: first_of(each, kept[name]) for name, each in ids.items()}
        one = tf.ones_like(next(iter(kept.values())), tf.int32)[:, None]
        row = tf.concat([cut[each] if isinstance(each, str) else one * each for each in self._parts if each], axis=1)
        length = self.max_seq_length
        mask = tf.sequence_mask(row.row_lengths(), length, tf.int32)
        return {
            IDS: row.to_tensor(shape=(None, length)),
            MASK: mask,
            TYPES: mask * self._segment.segment_ids[0],
        }

    def _kept(self, lengths: dict[str, Any]) -> dict[str, Any]:
        """Return how many tokens of each text are kept: those of `tasks.prompts.pattern`."""
        if len(lengths) == len(self._used) == 2:
            first, second = dict.fromkeys(self._used)
            kept = kept_lengths(lengths[first], lengths[second], self._budget, tf.minimum)
            return dict(zip((first, second), kept, strict=True))
        return {name: tf.minimum(length, self._budget // len(self._used)) for name, length in lengths.items()}
