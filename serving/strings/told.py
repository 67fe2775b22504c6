"""What the outputs of a SavedModel on strings say, for forms whose graph answers by itself; needs no TensorFlow.

The graphs of these forms (`entities.py`, `spans.py`, `choices.py`, `masks.py`) are made of a model and tell what they
found with the functions here, and so does whoever opens what was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.pretrained import MASK

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer

Found = Mapping[str, np.ndarray]


class Told:
    """Strings of examples, and the answers to them that stand in the outputs of a graph.

    Args:
        tokenizer: of the texts.
    """

    def __init__(self, tokenizer: Tokenizer):
        (self.mask,) = tokenizer.tokens([tokenizer.mask_id])

    def given(self, examples: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return the strings of examples, by the names of the inputs."""
        raise NotImplementedError

    def answers(self, found: Found, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the answer to each example."""
        raise NotImplementedError


class ToldEntities(Told):
    """Entities of texts."""

    def given(self, examples: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return the texts of examples."""
        return {"text_a": np.array([each.text for each in examples])}

    def answers(self, found: Found, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the entities of each text."""
        names = {"type": "types", "text": "texts", "begin": "begin", "end": "end", "probability": "probability"}
        answers = []
        for n in range(len(examples)):
            count = int((found["types"][n] != "").sum())
            entities = [{key: found[name][n][e].item() for key, name in names.items()} for e in range(count)]
            answers.append({"entities": entities})
        return answers


class ToldSpans(Told):
    """Answers cut from contexts."""

    def given(self, examples: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return the questions and their contexts."""
        return {name: np.array([getattr(each, name) for each in examples]) for name in ("question", "context")}

    def answers(self, found: Found, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the answers with their places; of no answer the places are None."""
        answers = []
        for n in range(len(examples)):
            place = [None if found[name][n] < 0 else int(found[name][n]) for name in ("begin", "end")]
            told = {"answer": str(found["answer"][n]), "begin": place[0], "end": place[1]}
            answers.append({**told, "probability": float(found["probability"][n])})
        return answers


class ToldChoices(Told):
    """The best of choices."""

    def given(self, examples: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return the texts of examples."""
        most = max(len(each.choices) for each in examples)
        return {
            "context": np.array([each.context for each in examples]),
            "question": np.array([each.question for each in examples]),
            "choices": np.array([[*each.choices, *[""] * (most - len(each.choices))] for each in examples]),
        }

    def answers(self, found: Found, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the best choice, by number and text, and the probability of each."""
        return [
            {
                "prediction": int(found["prediction"][n]),
                "choice": str(found["choice"][n]),
                "probabilities": [float(each) for each in found["probabilities"][n][: len(example.choices)]],
            }
            for n, example in enumerate(examples)
        ]


class ToldMasks(Told):
    """Tokens of masks, or the vectors of texts without one."""

    def given(self, examples: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return the texts."""
        return {"text_a": np.array(list(examples))}

    def answers(self, found: Found, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the tokens of each mask, or the vector of a text without one."""
        answers = []
        for n, text in enumerate(examples):
            count = text.replace(self.mask, MASK).count(MASK)
            if not count:
                answers.append({"embedding": [float(each) for each in found["embedding"][n]]})
                continue
            pairs = (zip(found["tokens"][n][p], found["probabilities"][n][p], strict=True) for p in range(count))
            masks = [[{"token": str(t), "probability": float(p)} for t, p in each if t != ""] for each in pairs]
            answers.append({"masks": masks})
        return answers
