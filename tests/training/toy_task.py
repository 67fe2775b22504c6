"""A small task for the engine's tests: a bag of embeddings with dropout, two losses with weights of their own."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import keras
import numpy as np

from ground.tensors import ops
from modeling.randomness import dropout, seeded


class ToyModel(keras.Model):
    def __init__(self, seed: int = 0):
        super().__init__(name="toy")

        def normal(offset: int) -> Any:
            generator = np.random.default_rng([seed, offset])
            return lambda shape, dtype=None: ops.convert_to_tensor(generator.normal(0, 0.5, shape), dtype)

        self.embed = keras.layers.Embedding(11, 6, embeddings_initializer=normal(0), name="embed")
        self.score = keras.layers.Dense(5, kernel_initializer=normal(1), name="score")
        self.unused = keras.layers.Dense(2, kernel_initializer=normal(2), name="unused")
        self.embed.build((None, None))
        self.score.build((None, 6))
        self.unused.build((None, 6))
        self.built = True

    def call(self, ids_BL, mask_BL6=None):
        x_BL6 = self.embed(ids_BL)
        return self.score(x_BL6 if mask_BL6 is None else x_BL6 * mask_BL6)


class ToyTask:
    def __init__(self, dropout: float = 0.0, seed: int = 0):
        self.dropout, self.seed = dropout, seed
        self.loss_weights = {"label": 1.0, "size": 0.5}
        self.metrics: tuple[str, ...] = ("label_accuracy",)

    def build_model(self):
        return ToyModel(self.seed)

    def companions(self):
        return {}

    def normalizers(self, batch):
        return {"label": ops.sum(batch["weights"]), "size": ops.cast(ops.shape(batch["ids"])[0], "float32")}

    def terms(self, model, batch, *, seed, training):
        mask = None
        if training and self.dropout:
            with seeded(seed):
                mask = dropout(ops.ones((*batch["ids"].shape, 6)), self.dropout, training)
        logits = model(batch["ids"], mask)
        crossed = keras.losses.sparse_categorical_crossentropy(batch["labels"], logits, from_logits=True)
        weights = batch["weights"]
        hits = ops.cast(ops.equal(ops.cast(ops.argmax(logits, -1), "int32"), batch["labels"]), "float32")
        size = ops.sum(ops.mean(ops.square(logits), (1, 2))), ops.cast(ops.shape(logits)[0], "float32")
        return (
            {"label": (ops.sum(crossed * weights), ops.sum(weights)), "size": size},
            {"label_accuracy": (ops.sum(hits * weights), ops.sum(weights))},
        )

    def predictions(self, model, batch):
        return {"label": ops.argmax(model(batch["ids"]), -1)}


class MixtureTask(ToyTask):
    """Two objectives: batches with labels train `score` as camlm, those without train `unused` as btmlm."""

    def __init__(self):
        super().__init__()
        self.loss_weights = {"camlm": 1.0, "btmlm": 0.5}
        self.metrics = ("camlm_accuracy", "btmlm_mean")

    def normalizers(self, batch):
        if "labels" in batch:
            return {"camlm": super().normalizers(batch)["label"]}
        return {"btmlm": ops.cast(ops.shape(batch["ids"])[0], "float32")}

    def terms(self, model, batch, *, seed, training):
        if "labels" in batch:
            losses, metrics = super().terms(model, batch, seed=seed, training=training)
            return {"camlm": losses["label"]}, {"camlm_accuracy": metrics["label_accuracy"]}
        x_B2 = ops.mean(model.unused(model.embed(batch["ids"])), 1)
        count = ops.cast(ops.shape(x_B2)[0], "float32")
        mean = ops.sum(ops.mean(x_B2, 1)), count
        return {"btmlm": (ops.sum(ops.mean(ops.square(x_B2), 1)), count)}, {"btmlm_mean": mean}


class ScheduledTask(ToyTask):
    """The size weighs nothing from a step on."""

    def __init__(self, end: int):
        super().__init__()
        self.loss_schedules = {"size": lambda step: ops.cast(step < end, "float32")}


class DistilledTask(ToyTask):
    """Learns the scores of a teacher too."""

    def __init__(self):
        super().__init__()
        self.loss_weights["teacher"] = 2.0
        self.teacher: Any = None

    def companions(self):
        self.teacher = ToyModel(seed=9)
        return {"teacher": self.teacher}

    def normalizers(self, batch):
        return super().normalizers(batch) | {"teacher": ops.cast(ops.shape(batch["ids"])[0], "float32")}

    def terms(self, model, batch, *, seed, training):
        losses, metrics = super().terms(model, batch, seed=seed, training=training)
        distance_B = ops.mean(ops.square(model(batch["ids"]) - self.teacher(batch["ids"])), (1, 2))
        losses["teacher"] = ops.sum(distance_B), ops.cast(ops.shape(distance_B)[0], "float32")
        return losses, metrics

    def predictions(self, model, batch):
        return super().predictions(model, batch) | {"teacher": self.teacher(batch["ids"])}


class ToyDataset:
    num_examples = 1000

    def __init__(
        self, batch_size: int = 8, seed: int = 0, poison: tuple[int, ...] = (), mislabelled: Container[int] = ()
    ):
        self.batch_size, self.seed, self.poison, self.mislabelled = batch_size, seed, poison, mislabelled

    def batch(self, step: int):
        rng = np.random.default_rng([self.seed, step])
        ids = rng.integers(0, 11, (self.batch_size, 4)).astype("int32")
        weights = (rng.random((self.batch_size, 4)) < 0.6).astype("float32")
        if step in self.poison:
            weights[0, 0] = np.nan
        return {"ids": ids, "labels": (ids + (step in self.mislabelled)) % 5, "weights": weights}
