"""Heads on a body: masked words, next words, sentence pairs, classes, tokens (BERT, ALBERT; PALM, Bi et al. 2020).

A head is a plain object, not a layer: its variables keep the published names at the top of the model, as
`classifier/kernel` beside `pooled_layer_norm/gamma`, which layers inside of one layer could not have.
"""

from collections.abc import Mapping
from typing import Any, Protocol, cast

import keras
from absl.app import UsageError

from ground.tensors import Tensor, ops
from modeling.body import Body
from modeling.computation import Computation, Sizes
from modeling.config import Config
from modeling.copying import Copying
from modeling.embeddings import Embeddings
from modeling.encoder_decoder import EncoderDecoder
from modeling.families import FAMILIES
from modeling.layers import Dense, LayerNorm, activation
from modeling.queries import WithQueries
from modeling.randomness import dropout
from modeling.variables import Initialization


class Head(Protocol):
    """Outputs of a body -> scores, by name."""

    @property
    def layers(self) -> tuple[keras.layers.Layer, ...]:
        """The layers with variables, which the model builds and tracks in this order."""
        ...

    @property
    def reads_first_only(self) -> bool:
        """Whether the head reads `pooled_output` or the first of `sequence_output` alone."""
        ...

    def __call__(
        self, outputs: Mapping[str, Any], features: Mapping[str, Tensor], body: Body, training: bool
    ) -> dict[str, Tensor]:
        """Return the scores.

        Args:
            outputs: of the body.
            features: of the batch.
            body: with the tables that a head may share.
            training: apply dropout.
        """
        ...

    def operations(self, sizes: Sizes, body: Body) -> int:
        """Return the floating-point operations of one example, forward."""
        ...

    # May be absent:
    # computed(names) -> list[modeling.beginnings.Computed]: its variables that follow from other tensors of a
    #     checkpoint, of which it is told the names.


def gather_positions(x_BLD: Tensor, positions_BP: Tensor) -> Tensor:
    """Return the rows of `x_BLD` at `positions_BP`, x_BPD."""
    if keras.config.backend() == "jax":
        # Each row by itself: devices that share a batch then send nothing.
        return ops.take_along_axis(x_BLD, positions_BP[:, :, None], axis=1)
    batch, length = ops.shape(x_BLD)[:2]
    width = x_BLD.shape[-1]
    # One flat lookup: take_along_axis is many times slower in TensorFlow.
    rows_BP = positions_BP + length * ops.arange(batch, dtype=positions_BP.dtype)[:, None]
    return ops.take(ops.reshape(x_BLD, (-1, width)), rows_BP, axis=0)


class VocabularyScores(keras.layers.Layer):
    """Dense, activation, LayerNorm and the word table transposed: hidden states -> scores over the vocabulary."""

    def __init__(self, config: Config, width: int, initialization: Initialization, *, dtype: Any, name: str) -> None:
        super().__init__(dtype=dtype, name=name)
        self.hidden_act = config.hidden_act
        self.rows = config.padded_vocab_size
        self.transform = Dense(config.hidden_size, width, initialization, dtype=dtype, name="transform")
        self.layer_norm = LayerNorm(width, config.layer_norm_eps, dtype=dtype)

    def build(self, input_shape: Any = None) -> None:
        """Build the transform and create output_bias [V]."""
        self.transform.build(None)
        self.layer_norm.build(None)
        self.output_bias = self.add_weight(shape=(self.rows,), initializer="zeros", name="output_bias", autocast=False)

    def call(self, x_BPD: Tensor, embeddings: Embeddings) -> Tensor:
        """Return float32 logits [B, P, V]."""
        return embeddings.logits(self.transformed(x_BPD)) + self.output_bias

    def transformed(self, x_BPD: Tensor) -> Tensor:
        """Return what is compared with the word table, [B, P, E] (albert_zh: [B, P, D])."""
        return self.layer_norm(activation(self.hidden_act, self.transform(x_BPD)))


class MaskedLMHead:
    """`masked_lm_logits` float32 [B, P, V] at `scored_positions` or `masked_lm_positions` [B, P]; else everywhere."""

    reads_first_only = False

    def __init__(self, config: Config, initialization: Initialization, computation: Computation, body: Body) -> None:
        width = body.embeddings.sum_width
        self.scores = VocabularyScores(config, width, initialization, dtype=computation.dtype, name="masked_lm")
        self.layers = (self.scores,)

    def __call__(
        self, outputs: Mapping[str, Any], features: Mapping[str, Tensor], body: Body, training: bool
    ) -> dict[str, Tensor]:
        """Score the words at the positions; see `Head`."""
        x = outputs["sequence_output"]
        positions = next((features[name] for name in _POSITIONS if name in features), None)
        if positions is not None:
            x = gather_positions(x, positions)
        return {"masked_lm_logits": self.scores(x, embeddings=body.embeddings)}

    def operations(self, sizes: Sizes, body: Body) -> int:
        """Return those of the transform and of the scores over the vocabulary."""
        return self.scores.transform.operations(sizes.scored) + body.embeddings.logits_operations(sizes.scored)


class BothSidesHead(MaskedLMHead):
    """`masked_lm_logits` float32 [B, 4P, V] of two texts that read each other, by one call of one head (VECO).

    Beside one another stand the masked tokens of the first text and of the second as each is read alone, and both again
    as each is read with the other in sight: `SIDES_SCORED`. A single text is scored as by `MaskedLMHead`.

    Raises:
        absl.app.UsageError: the model has no cross-attention.
    """

    def __init__(self, config: Config, initialization: Initialization, computation: Computation, body: Body) -> None:
        if not config.cross_attention:
            raise UsageError(
                f'the objective reads two texts across, but the config (family "{config.family}", cross_attention '
                "false) has no cross-attention; give one that has, as --bert_config_file=albert_config/veco_tiny.json"
            )
        super().__init__(config, initialization, computation, body)

    def __call__(
        self, outputs: Mapping[str, Any], features: Mapping[str, Tensor], body: Body, training: bool
    ) -> dict[str, Tensor]:
        """Score the words at the positions; see `Head`."""
        if "crossed_output" not in outputs:
            return super().__call__(outputs, features, body, training)
        places = (gather_positions(outputs[stream], features[positions]) for stream, positions in SIDES_SCORED)
        return {"masked_lm_logits": self.scores(ops.concatenate([*places], axis=1), embeddings=body.embeddings)}


class QueriesHead(MaskedLMHead):
    """`masked_lm_logits` float32 [B, P, V] of the queries of a row (ERNIE-M); where it has none, as of `MaskedLMHead`.

    Raises:
        absl.app.UsageError: the model has no queries, or a mask of its own.
    """

    def __init__(self, config: Config, initialization: Initialization, computation: Computation, body: Body) -> None:
        if not isinstance(body, WithQueries):
            raise UsageError(
                f'the objective recovers masked tokens from another text alone, which family "{config.family}" cannot; '
                "give a config of ERNIE-M, as --bert_config_file=albert_config/ernie_m_tiny.json"
            )
        if config.legacy_mask:
            raise UsageError(
                "the config has legacy_mask true, with which masked tokens would be read; set it to false to learn"
            )
        super().__init__(config, initialization, computation, body)

    def __call__(
        self, outputs: Mapping[str, Any], features: Mapping[str, Tensor], body: Body, training: bool
    ) -> dict[str, Tensor]:
        """Score the words of the queries; see `Head`."""
        if "queried_output" not in outputs:
            return super().__call__(outputs, features, body, training)
        return {"masked_lm_logits": self.scores(outputs["queried_output"], embeddings=body.embeddings)}


SIDES_SCORED = (
    ("sequence_output", "masked_lm_positions"),
    ("other_sequence_output", "other_masked_lm_positions"),
    ("crossed_output", "masked_lm_positions"),
    ("other_crossed_output", "other_masked_lm_positions"),
)
"""State of the body, and the positions at which it is scored, in the order of `BothSidesHead`."""


def check_decoder(config: Config) -> None:
    """Raise `UsageError` for a config whose model generates no text."""
    if not config.num_decoder_layers:
        raise UsageError(
            f'the objective generates text, but the config (family "{config.family}", num_decoder_layers 0) has no '
            "decoder; give one that has, as --bert_config_file=albert_config/palm_tiny_zh.json"
        )


_POSITIONS = ("scored_positions", "masked_lm_positions")


class NextTokenHead:
    """`next_token_logits` float32 [B, T, V] at every position of the decoder, through the target's word table.

    With `Config.copy` they are log-probabilities, into which the words of the source are mixed.

    Raises:
        absl.app.UsageError: the model has no decoder.
    """

    reads_first_only = False

    def __init__(self, config: Config, initialization: Initialization, computation: Computation, body: Body) -> None:
        check_decoder(config)
        self.copying = None
        if config.copy != "none":
            self.copying = Copying(config, initialization, dtype=computation.dtype)
        self.layers = () if self.copying is None else (self.copying,)

    def __call__(
        self, outputs: Mapping[str, Any], features: Mapping[str, Tensor], body: Body, training: bool
    ) -> dict[str, Tensor]:
        """Score the words that follow; see `Head`. Without `target_ids` there is nothing to score."""
        x_BTD = outputs.get("decoder_output")
        if x_BTD is None:
            return {}
        logits_BTV = cast(EncoderDecoder, body).target_embeddings.logits(x_BTD)
        if self.copying is not None:
            ids_BS = features["input_ids"]
            source = {"ids": ids_BS, "states": outputs["sequence_output"]}
            source["mask"] = features.get("memory_mask", features.get("input_mask", ops.ones_like(ids_BS)))
            if "copy_attention" in outputs:
                source["attention"] = outputs["copy_attention"]
            logits_BTV = self.copying(logits_BTV, source, x_BTD)
        return {"next_token_logits": logits_BTV}

    def operations(self, sizes: Sizes, body: Body) -> int:
        """Return those of the scores over the vocabulary and of copying."""
        own = cast(EncoderDecoder, body).target_embeddings.logits_operations(sizes.target)
        return own + (self.copying.operations(sizes.target, sizes.tokens) if self.copying is not None else 0)


class PairHead:
    """`sentence_pair_logits` float32 [B, C], linear in the pooled vector."""

    reads_first_only = True

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        computation: Computation,
        body: Body,
        *,
        num_labels: int,
    ) -> None:
        self.dense = Dense(
            config.hidden_size, num_labels, initialization, dtype=computation.dtype, name="sentence_pair"
        )
        self.layers = (self.dense,)

    def __call__(
        self, outputs: Mapping[str, Any], features: Mapping[str, Tensor], body: Body, training: bool
    ) -> dict[str, Tensor]:
        """Score the classes of the pair; see `Head`."""
        return {"sentence_pair_logits": ops.cast(self.dense(outputs["pooled_output"]), "float32")}

    def operations(self, sizes: Sizes, body: Body) -> int:
        """Return those of the one product."""
        return self.dense.operations(1)


class ClassifierHead:
    """`logits` float32 [B, C], linear in the pooled vector under dropout, which some families normalise first.

    Args:
        config: graph and shapes.
        initialization: of the variables.
        computation: precision.
        body: the model's.
        num_labels: classes; 1 for a regression.
        dropout: rate on the pooled vector.
    """

    reads_first_only = True

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        computation: Computation,
        body: Body,
        *,
        num_labels: int,
        dropout: float,
    ) -> None:
        width, dtype = config.hidden_size, computation.dtype
        self.dropout = dropout
        self.layer_norm = None
        if FAMILIES[config.family].normalizes_pooled(config):
            self.layer_norm = LayerNorm(width, config.layer_norm_eps, dtype=dtype, name="pooled_layer_norm")
        self.dense = Dense(width, num_labels, initialization, dtype=dtype, name="classifier")
        self.layers = (self.dense,) if self.layer_norm is None else (self.layer_norm, self.dense)

    def __call__(
        self, outputs: Mapping[str, Any], features: Mapping[str, Tensor], body: Body, training: bool
    ) -> dict[str, Tensor]:
        """Score the classes; see `Head`."""
        pooled_BD = outputs["pooled_output"]
        if self.layer_norm is not None:
            pooled_BD = self.layer_norm(pooled_BD)
        pooled_BD = dropout(pooled_BD, self.dropout, training)
        return {"logits": ops.cast(self.dense(pooled_BD), "float32")}

    def operations(self, sizes: Sizes, body: Body) -> int:
        """Return those of the one product."""
        return self.dense.operations(1)


class CrossedClassifierHead:
    """`logits` and `other_logits` float32 [B, C] of two texts that read each other (VECO plugged in).

    A text is classified by the first states of its two streams, H alone and S with the other text, [H ; S] of twice the
    width: dropout, dense, tanh, dropout, linear, as XLM-R's classifier has it of one.

    Args:
        config: graph and shapes.
        initialization: of the variables.
        computation: precision.
        body: the model's, of two texts.
        num_labels: classes.
        dropout: rate in front of both layers.
    """

    reads_first_only = True

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        computation: Computation,
        body: Body,
        *,
        num_labels: int,
        dropout: float,
    ) -> None:
        width, dtype = config.hidden_size, computation.dtype
        self.dropout = dropout
        self.pooler = Dense(2 * width, width, initialization, dtype=dtype, name="crossed_pooler")
        self.dense = Dense(width, num_labels, initialization, dtype=dtype, name="classifier")
        self.layers = (self.pooler, self.dense)

    def __call__(
        self, outputs: Mapping[str, Any], features: Mapping[str, Tensor], body: Body, training: bool
    ) -> dict[str, Tensor]:
        """Score the classes of both texts; see `Head`."""
        found = {}
        for side in ("", "other_"):
            streams = [outputs[f"{side}{name}_output"][:, 0] for name in ("sequence", "crossed")]
            x_BD = dropout(ops.concatenate(streams, axis=-1), self.dropout, training)
            x_BD = dropout(ops.tanh(self.pooler(x_BD)), self.dropout, training)
            found[f"{side}logits"] = ops.cast(self.dense(x_BD), "float32")
        return found

    def operations(self, sizes: Sizes, body: Body) -> int:
        """Return those of the two products of both texts."""
        return self.pooler.operations(2) + self.dense.operations(2)


class TokenHead:
    """`NAME_logits` float32 [B, L, C], linear in the hidden state of every token under dropout (BERT section 4).

    Families that normalise the pooled vector in front of a classifier leave hidden states as their last block adds
    them up: there each is normalised first.

    Args:
        config: graph and shapes.
        initialization: of the variables.
        computation: precision.
        body: the model's.
        name: of the variables: "tagger" scores tags, "span" the beginning and the end of an answer.
        num_labels: C.
        dropout: rate on the hidden states.
    """

    reads_first_only = False

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        computation: Computation,
        body: Body,
        *,
        name: str,
        num_labels: int,
        dropout: float,
    ) -> None:
        width, dtype = config.hidden_size, computation.dtype
        self.name, self.dropout = name, dropout
        self.layer_norm = None
        if FAMILIES[config.family].normalizes_pooled(config) and not config.final_layer_norm:
            self.layer_norm = LayerNorm(width, config.layer_norm_eps, dtype=dtype, name=f"{name}_layer_norm")
        self.dense = Dense(width, num_labels, initialization, dtype=dtype, name=name)
        self.layers = (self.dense,) if self.layer_norm is None else (self.layer_norm, self.dense)

    def __call__(
        self, outputs: Mapping[str, Any], features: Mapping[str, Tensor], body: Body, training: bool
    ) -> dict[str, Tensor]:
        """Score every token; see `Head`."""
        x_BLD = outputs["sequence_output"]
        if self.layer_norm is not None:
            x_BLD = self.layer_norm(x_BLD)
        x_BLD = dropout(x_BLD, self.dropout, training)
        return {f"{self.name}_logits": ops.cast(self.dense(x_BLD), "float32")}

    def operations(self, sizes: Sizes, body: Body) -> int:
        """Return those of the product of every token."""
        return self.dense.operations(sizes.tokens)


class EmbeddingHead:
    """`embedding` float32 [B, D] of length 1: the first token's state, or the mean over all tokens, under dropout.

    It has no variables. The mean is over every real token, specials too (Reimers and Gurevych 2019).

    Args:
        config: graph and shapes.
        initialization: of the variables.
        computation: precision.
        body: the model's.
        pooling: "mean" or "cls".
        layer: block whose states are pooled, from 0 (the embeddings); -1 is what the body returns at last, and -2 the
            block before.
        dropout: rate on the pooled vector.

    Raises:
        UsageError: the model has not so many layers.
    """

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        computation: Computation,
        body: Body,
        *,
        pooling: str,
        layer: int,
        dropout: float,
    ) -> None:
        if not -1 - config.num_hidden_layers <= layer <= config.num_hidden_layers:
            raise UsageError(
                f"pooling_layer {layer}: the model has {config.num_hidden_layers} layers; expected 0 to "
                f"{config.num_hidden_layers}, or from -1, the last, to {-1 - config.num_hidden_layers}"
            )
        self.pooling, self.layer, self.dropout = pooling, layer, dropout
        self.reads_first_only = pooling == "cls" and layer == -1
        self.layers = ()

    def __call__(
        self, outputs: Mapping[str, Any], features: Mapping[str, Tensor], body: Body, training: bool
    ) -> dict[str, Tensor]:
        """Pool the states of the layer and scale them to length 1; see `Head`. Rows without a token become zeros."""
        x_BLD = outputs["sequence_output"] if self.layer == -1 else outputs["hidden_states"][self.layer]
        x_BLD = ops.cast(x_BLD, "float32")
        if self.pooling == "cls":
            pooled_BD = x_BLD[:, 0]
        else:
            weights_BL1 = ops.cast(features["input_mask"], "float32")[:, :, None]
            pooled_BD = ops.sum(x_BLD * weights_BL1, axis=1) / ops.maximum(ops.sum(weights_BL1, axis=1), 1.0)
        pooled_BD = dropout(pooled_BD, self.dropout, training)
        squares_B1 = ops.sum(ops.square(pooled_BD), axis=-1, keepdims=True)
        return {"embedding": pooled_BD * ops.rsqrt(ops.maximum(squares_B1, _LEAST_SQUARE))}

    def operations(self, sizes: Sizes, body: Body) -> int:
        """Return 0: there is no product of matrices."""
        return 0


_LEAST_SQUARE = 1e-24
