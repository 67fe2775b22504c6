"""Classification of a text or a pair of texts on the pooled output (BERT section 4.1), ALBERT's fine-tuning task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras import ops

from data.features import EncodedExamples, encode_examples
from modeling import ClassifierModel
from modeling.fusion import fusing
from modeling.losses import cross_entropy
from modeling.randomness import seeded
from tasks.pretraining import Terms, accuracy_term, example_weights

if TYPE_CHECKING:
    import keras

    from data.tokenizers import Tokenizer
    from modeling.config import Config
    from tasks.datasets import DatasetRow, Example

Tensor = Any


def encode(row: DatasetRow, examples: Sequence[Example], tokenizer: Tokenizer, max_seq_length: int) -> EncodedExamples:
    """Tokenises the examples of a row; a label becomes its index in the row, -1 where there is none."""
    return encode_examples(
        [example.text_a for example in examples],
        [example.text_b or "" for example in examples] if row.is_pair else None,
        [row.labels.index(example.label) if example.label is not None else -1 for example in examples],
        tokenizer,
        max_seq_length,
    )


class ClassificationTask:
    """A softmax over the labels of a row; implements `training.engine.Task`.

    Args:
        config: the model's.
        num_labels: C.
        classifier_dropout: on the pooled output while training (0.1 in BERT's and ALBERT's scripts).
        dtype: Keras dtype policy of the model.
        seed: of the initial weights.
        remat: recompute activations in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        config: Config,
        num_labels: int,
        *,
        classifier_dropout: float = 0.1,
        dtype: str = "float32",
        seed: int = 0,
        remat: bool = False,
    ):
        self.config, self.num_labels, self.classifier_dropout = config, num_labels, classifier_dropout
        self.dtype, self.seed, self.remat = dtype, seed, remat
        self.loss_weights = {"classification": 1.0}

    def build_model(self) -> keras.Model:
        return ClassifierModel(
            self.config,
            num_labels=self.num_labels,
            dropout=self.classifier_dropout,
            dtype=self.dtype,
            seed=self.seed,
            remat=self.remat,
        )

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"classification": ops.sum(example_weights(batch))}

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        with seeded(seed), fusing():
            logits_BC = model(batch, training=training)["logits"]
        labels_B, weights_B = batch["label_ids"], example_weights(batch)
        losses = {"classification": cross_entropy(logits_BC, labels_B, weights_B)}
        return losses, {"accuracy": accuracy_term(logits_BC, labels_B, weights_B)}

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`probabilities` float32 [B, C]."""
        return {"probabilities": ops.softmax(ops.cast(model(batch, training=False)["logits"], "float32"))}
