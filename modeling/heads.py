"""Heads on the backbone: masked words, sentence pairs, classes; and the two models made of them.

Those of BERT (Devlin et al. 2019) and ALBERT (Lan et al. 2020). albert_zh's masked-word head keeps the hidden width;
Google's ALBERT narrows to the embedding width.
"""

from collections.abc import Mapping
from typing import Any

import keras

from ground.tensors import Tensor, ops
from modeling.body import Backbone
from modeling.config import Config
from modeling.embeddings import Embeddings
from modeling.encoder import Encoder
from modeling.layers import Dense, LayerNorm, activation
from modeling.layouts import LayoutRules, transformer_rules
from modeling.randomness import dropout, seeded_by_default
from modeling.variables import Initialization


def gather_positions(x_BLD: Tensor, positions_BP: Tensor) -> Tensor:
    """Rows of `x_BLD` at `positions_BP` -> x_BPD."""
    if keras.config.backend() == "jax":
        # Each row by itself: where devices share a batch nothing has to be sent.
        return ops.take_along_axis(x_BLD, positions_BP[:, :, None], axis=1)
    batch, length = ops.shape(x_BLD)[:2]
    width = x_BLD.shape[-1]
    # One flat lookup: take_along_axis is many times slower in TensorFlow.
    rows_BP = positions_BP + length * ops.arange(batch, dtype=positions_BP.dtype)[:, None]
    return ops.take(ops.reshape(x_BLD, (-1, width)), rows_BP, axis=0)


class MaskedLMHead(keras.layers.Layer):
    """Hidden states of predicted positions -> scores over the vocabulary, through the word table itself."""

    def __init__(self, config: Config, initialization: Initialization, *, dtype: Any, name: str = "masked_lm") -> None:
        super().__init__(dtype=dtype, name=name)
        self.hidden_act = config.hidden_act
        self.rows = config.padded_vocab_size
        width = config.hidden_size if config.family == "albert_zh" else config.embedding_size
        self.transform = Dense(config.hidden_size, width, initialization, dtype=dtype, name="transform")
        self.layer_norm = LayerNorm(width, config.layer_norm_eps, dtype=dtype)

    def build(self, input_shape: Any = None) -> None:
        """Build the transform and create output_bias [V]."""
        self.transform.build(None)
        self.layer_norm.build(None)
        self.output_bias = self.add_weight(shape=(self.rows,), initializer="zeros", name="output_bias", autocast=False)

    def call(self, x_BPD: Tensor, embeddings: Embeddings) -> Tensor:
        """Return float32 logits [B, P, V]."""
        h = self.layer_norm(activation(self.hidden_act, self.transform(x_BPD)))
        return embeddings.logits(h) + self.output_bias


class PretrainingModel(keras.Model):
    """Backbone with a masked-LM and a sentence-pair head.

    Args:
        config: graph and shapes.
        num_pair_labels: classes of the sentence-pair task (2 for next sentence and sentence order); 0: no such head.
        dtype: "float32" or "mixed_bfloat16"; variables, LayerNorm, softmax and logits are float32 in both.
        seed: initial values are a function of it and of the variables' names.
        remat: recompute blocks in the backward pass instead of keeping their inner states.
        scan: compile one block and loop it over all: for many layers, which compile long; same variables and numbers.
    """

    def __init__(
        self,
        config: Config,
        num_pair_labels: int = 2,
        *,
        dtype: str = "float32",
        seed: int = 0,
        remat: bool = False,
        scan: bool = False,
        name: str = "pretraining_model",
    ) -> None:
        super().__init__(dtype=dtype, name=name)
        self.config = config
        initialization = Initialization(config.initializer_range, seed)
        self.backbone = Backbone(config, initialization, remat=remat, scan=scan, dtype=dtype)
        self.masked_lm = MaskedLMHead(config, initialization, dtype=dtype)
        self.sentence_pair = None
        if num_pair_labels:
            self.sentence_pair = Dense(
                config.hidden_size, num_pair_labels, initialization, dtype=dtype, name="sentence_pair"
            )
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Create every variable; done by the constructor."""
        for layer in (self.backbone, self.masked_lm, self.sentence_pair):
            if layer is not None:
                layer.build(None)

    @property
    def layout_rules(self) -> LayoutRules:
        """How the variables may be cut over devices."""
        return transformer_rules(self.config)

    @property
    def blocks(self) -> Encoder:
        """The part whose weights an engine may gather block by block."""
        return self.backbone.encoder

    def call(self, features: Mapping[str, Tensor], training: bool = False) -> dict[str, Any]:
        """Score masked words and the pair.

        Args:
            features: `input_ids`, and optionally `input_mask`, `segment_ids` [B, L] and `masked_lm_positions` [B, P];
                without the latter every position is scored.
            training: apply dropout.

        Returns:
            The backbone's outputs, `masked_lm_logits` [B, P, V] and, with that head, `sentence_pair_logits` [B, C];
            both float32.
        """
        outputs = self.backbone(features, training=training)
        x = outputs["sequence_output"]
        if "masked_lm_positions" in features:
            x = gather_positions(x, features["masked_lm_positions"])
        logits = {"masked_lm_logits": self.masked_lm(x, embeddings=self.backbone.embeddings)}
        if self.sentence_pair is not None:
            logits["sentence_pair_logits"] = ops.cast(self.sentence_pair(outputs["pooled_output"]), "float32")
        return {**logits, **outputs}


class ClassifierModel(keras.Model):
    """Backbone with a linear classifier on the pooled vector; albert_zh's pre-LN graph normalises that vector first.

    Args:
        config: graph and shapes.
        num_labels: classes; 1 for regression.
        dropout: rate on the pooled vector.
        dtype: "float32" or "mixed_bfloat16".
        seed: as in PretrainingModel.
        remat: as in PretrainingModel.
        scan: as in PretrainingModel.
    """

    def __init__(
        self,
        config: Config,
        num_labels: int,
        dropout: float = 0.1,
        *,
        dtype: str = "float32",
        seed: int = 0,
        remat: bool = False,
        scan: bool = False,
        name: str = "classifier_model",
    ) -> None:
        super().__init__(dtype=dtype, name=name)
        self.config = config
        self.dropout = dropout
        initialization = Initialization(config.initializer_range, seed)
        self.backbone = Backbone(config, initialization, remat=remat, scan=scan, dtype=dtype)
        self.pooled_layer_norm = None
        if config.family == "albert_zh" and config.ln_type == "preln":
            self.pooled_layer_norm = LayerNorm(
                config.hidden_size, config.layer_norm_eps, dtype=dtype, name="pooled_layer_norm"
            )
        self.classifier = Dense(config.hidden_size, num_labels, initialization, dtype=dtype, name="classifier")
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Create every variable; done by the constructor."""
        self.backbone.build(None)
        if self.pooled_layer_norm is not None:
            self.pooled_layer_norm.build(None)
        self.classifier.build(None)

    @property
    def layout_rules(self) -> LayoutRules:
        """How the variables may be cut over devices."""
        return transformer_rules(self.config)

    @property
    def blocks(self) -> Encoder:
        """The part whose weights an engine may gather block by block."""
        return self.backbone.encoder

    def call(
        self, features: Mapping[str, Tensor], training: bool = False, word_noise_BLE: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return `logits` [B, C], float32; the arguments are the backbone's."""
        with seeded_by_default(self.seed_generator, training):
            outputs = self.backbone(features, training=training, word_noise_BLE=word_noise_BLE)
            pooled_BD = outputs["pooled_output"]
            if self.pooled_layer_norm is not None:
                pooled_BD = self.pooled_layer_norm(pooled_BD)
            pooled_BD = dropout(pooled_BD, self.dropout, training)
        return {"logits": ops.cast(self.classifier(pooled_BD), "float32")}
