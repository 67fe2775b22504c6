"""BERT (Devlin et al. 2019): embeddings, encoder and pooler; the backbone that all encoder models here share."""

from collections.abc import Mapping
from typing import Any

import keras

from ground.tensors import Tensor, ops
from modeling import masks
from modeling.config import Config
from modeling.embeddings import Embeddings
from modeling.encoder import Encoder
from modeling.layers import Dense
from modeling.randomness import seeded_by_default
from modeling.variables import Initialization


class Backbone(keras.layers.Layer):
    """Features -> `sequence_output` x_BLD, `pooled_output` x_BD and `hidden_states` (embedding, then every block)."""

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        *,
        remat: bool = False,
        scan: bool = False,
        dtype: Any,
        name: str = "backbone",
    ) -> None:
        super().__init__(dtype=dtype, name=name)
        self.config = config
        self.embeddings = Embeddings(config, initialization, dtype=dtype)
        self.encoder = Encoder(config, initialization, remat=remat, scan=scan, dtype=dtype)
        self.pooler = Dense(config.hidden_size, config.hidden_size, initialization, dtype=dtype, name="pooler")
        self.seed_generator = keras.random.SeedGenerator(initialization.seed)

    def build(self, input_shape: Any = None) -> None:
        """Build embeddings, encoder and pooler."""
        for layer in (self.embeddings, self.encoder, self.pooler):
            layer.build(None)

    def call(
        self, features: Mapping[str, Tensor], training: bool = False, word_noise_BLE: Tensor | None = None
    ) -> dict[str, Any]:
        """Encode `input_ids` under `input_mask` (default: all real) with `segment_ids` (default: all 0).

        With `sequence_ids` every row holds several sequences, each encoded as if it stood alone; `pooled_output` is
        then that of a row's first.

        Args:
            features: int32 [B, L] each.
            training: apply dropout, keyed by the surrounding `seeded` scope.
            word_noise_BLE: added to the looked-up word vectors (adversarial training).
        """
        if "sequence_ids" in features:
            mask = masks.sequence_mask(features["sequence_ids"])
        else:
            mask = masks.padding_mask(features["input_mask"]) if "input_mask" in features else None
        with seeded_by_default(self.seed_generator, training):
            x_BLD = self.embeddings(
                features["input_ids"],
                segment_ids_BL=features.get("segment_ids"),
                word_noise_BLE=word_noise_BLE,
                training=training,
                sequence_ids_BL=features.get("sequence_ids"),
            )
            x_BLD, states = self.encoder(x_BLD, attention_mask=mask, training=training)
        pooled_BD = ops.tanh(self.pooler(x_BLD[:, 0]))
        return {"sequence_output": x_BLD, "pooled_output": pooled_BD, "hidden_states": states}
