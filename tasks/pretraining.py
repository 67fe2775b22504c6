"""Pretraining as a task: a row of `data.objectives.OBJECTIVES` names its losses, and their heads share one body.

Masked tokens (BERT section 3.1), a pair label (BERT section 3.1, ALBERT section 3.1, StructBERT section 2.2.2), and the
order of shuffled words (StructBERT section 2.2.1) where the records hold any; the text that follows (PALM section 2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import keras
import numpy as np

from data.objectives import OBJECTIVES
from ground.tensors import Tensor, ops
from modeling import Computation, LanguageModel
from modeling.fusion import fusing
from modeling.randomness import seeded
from tasks.across import Across, Pseudo
from tasks.losses import LOSSES, Settings, Terms

if TYPE_CHECKING:
    from modeling.config import Config
    from modeling.model import HeadOfModel


@dataclass(frozen=True)
class Until:
    """A factor of a loss: 1 before a step, 0 from it on."""

    step: int

    def __call__(self, step: Tensor) -> Tensor:
        """Return the factor at a step, float32."""
        return ops.cast(step < self.step, "float32")


class PretrainingTask:
    """The losses of an objective, summed; implements `training.engine.Task`.

    Args:
        config: the model's.
        objective: a row of OBJECTIVES.
        weights: of the losses, see `tasks.losses.Settings`.
        pooled: masked and shuffled tokens share one mean, see `tasks.losses.Settings`.
        label_smoothing: of next tokens, see `tasks.losses.Settings`.
        across: likewise, of masked tokens that are recovered from another text.
        pseudo: likewise, of sentences that the model writes.
        until: the step, counted from 0, from which on a loss weighs nothing in training, by name.
        computation: how the model is computed.

    Attributes:
        loss_weights: weight of every loss by the name under which it is logged.
        loss_schedules: factors of these weights, as functions of the step (`training.engine.loss_weights_at`).
        metrics: names of the metrics, in the order of `terms`.
    """

    def __init__(
        self,
        config: Config,
        objective: str = "albert",
        *,
        weights: Mapping[str, float] | None = None,
        pooled: bool = False,
        label_smoothing: float = 0.0,
        across: Across = Across(),  # noqa: B008
        pseudo: Pseudo | None = None,
        until: Mapping[str, int] | None = None,
        computation: Computation = Computation(),  # noqa: B008
    ):
        self.config, self.objective, self.computation = config, OBJECTIVES[objective], computation
        settings = Settings(
            weights=weights or {}, pooled=pooled, label_smoothing=label_smoothing, across=across, pseudo=pseudo
        )
        self.losses = tuple(LOSSES[name](self.objective, settings) for name in self.objective.losses)
        self.loss_weights = {name: weight for loss in self.losses for name, weight in loss.weights.items()}
        ends = (until or {}).items()
        self.loss_schedules = {name: Until(step) for name, step in ends if name in self.loss_weights}
        self.metrics = tuple(name for loss in self.losses for name in loss.metrics)

    @property
    def heads(self) -> dict[str, HeadOfModel]:
        """Constructors of the heads of all losses, by the name of their variables."""
        return {name: head for loss in self.losses for name, head in loss.heads.items()}

    def build_model(self) -> LanguageModel:
        """Return a new model with the heads of all losses."""
        return LanguageModel(self.config, [*self.heads.values()], self.computation, name="pretraining_model")

    def companions(self) -> Mapping[str, keras.Model]:
        """Return no further models."""
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weight of every loss, from the batch alone."""
        return {name: weight for loss in self.losses for name, weight in loss.normalizers(batch).items()}

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return losses and metrics of one pass of the model."""
        losses, metrics = {}, {}
        with seeded(seed), fusing():
            batch = self._prepared(model, batch, seed)
            outputs = model(batch, training=training)
            for loss in self.losses:
                found = loss.terms(outputs, batch)
                losses |= found[0]
                metrics |= found[1]
        return losses, metrics

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what every loss predicts."""
        batch = self._prepared(model, batch, None)
        outputs = model(batch, training=False)
        return {name: value for loss in self.losses for name, value in loss.predictions(outputs, batch).items()}

    def _prepared(self, model: keras.Model, batch: Mapping[str, Tensor], seed: Tensor | None) -> Mapping[str, Tensor]:
        for loss in self.losses:
            batch = loss.prepare(model, batch, seed)
        return batch


def unigram_accuracy(
    training: Iterable[Mapping[str, np.ndarray]], held_out: Iterable[Mapping[str, np.ndarray]], name: str = "masked_lm"
) -> float:
    """Return the share of held-out masked tokens that are the most frequent masked token of training.

    A model that learns anything is above it. `name` is that of the list of labels.
    """
    return _share_of_most_frequent(training, held_out, f"{name}_ids", f"{name}_weights")


def next_tokens_unigram_accuracy(
    training: Iterable[Mapping[str, np.ndarray]], held_out: Iterable[Mapping[str, np.ndarray]]
) -> float:
    """Return the share of held-out targets' tokens that are the most frequent one of the training targets."""
    return _share_of_most_frequent(training, held_out, "target_ids", "target_mask", first=1)


def _share_of_most_frequent(
    training: Iterable[Mapping[str, np.ndarray]],
    held_out: Iterable[Mapping[str, np.ndarray]],
    ids: str,
    weights: str,
    first: int = 0,
) -> float:
    """Count labels from column `first` on where they weigh something."""

    def counts(batches: Iterable[Mapping[str, np.ndarray]]) -> Counter[int]:
        total: Counter[int] = Counter()
        for batch in batches:
            total.update(batch[ids][:, first:][batch[weights][:, first:] > 0].tolist())
        return total

    most_frequent = counts(training).most_common(1)
    held_out_counts = counts(held_out)
    return sum(held_out_counts[label] for label, _ in most_frequent) / max(held_out_counts.total(), 1)


def unchanged_share(held_out: Iterable[Mapping[str, np.ndarray]]) -> float:
    """Return the share of held-out shuffled words that kept their place: the accuracy of answering with the input."""
    same = total = 0
    for batch in held_out:
        row, slot = np.nonzero(batch["word_order_weights"])
        shown = batch["input_ids"][row, batch["word_order_positions"][row, slot]]
        same += int((shown == batch["word_order_ids"][row, slot]).sum())
        total += len(row)
    return same / max(total, 1)
