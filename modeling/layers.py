"""The bricks of every Transformer here: dense, LayerNorm, activations, attention, feed-forward (Vaswani et al. 2017).

Attention and FeedForward each carry their residual connection and LayerNorm, before (pre-LN) or after (post-LN).

Legend of shapes: B batch, L length, S key length, D width, E embedding width, F feed-forward width, N heads,
H head size, V vocabulary, P predictions, C classes, M rows (all leading axes as one).
"""

import math
from typing import Any

import keras

from ground.tensors import Tensor, ops
from modeling import masks
from modeling.computation import Sizes, States
from modeling.config import Config
from modeling.fusion import fused
from modeling.randomness import dropout
from modeling.variables import Initialization

KeyValue = tuple[Tensor, Tensor]


@fused
def gelu(x: Tensor) -> Tensor:
    """GELU's tanh approximation (Hendrycks & Gimpel 2016)."""
    # Written out because the stock form raises to the third power with pow, many times slower on a CPU.
    return 0.5 * x * (1.0 + ops.tanh(x * (0.7978845608028654 + 0.035677408136300125 * ops.square(x))))


@fused
def gelu_erf(x: Tensor) -> Tensor:
    """GELU's exact form, through erf because ONNX has no erfc."""
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


def activation(name: str, x: Tensor) -> Tensor:
    """Apply the activation `name` of Config.hidden_act."""
    functions = {"gelu": gelu, "gelu_erf": gelu_erf, "relu": ops.relu, "swish": ops.silu, "tanh": ops.tanh}
    return x if name == "linear" else functions[name](x)


class Dense(keras.layers.Layer):
    """x_..I -> x_..O: one 2-D product over all leading axes, plus bias."""

    def __init__(
        self, inputs: int, outputs: int, initialization: Initialization, *, use_bias: bool = True, dtype: Any, name: str
    ) -> None:
        super().__init__(dtype=dtype, name=name)
        self.inputs = inputs
        self.outputs = outputs
        self.initialization = initialization
        self.use_bias = use_bias

    def build(self, input_shape: Any = None) -> None:
        """Create kernel [I, O] and bias [O]."""
        self.kernel = self.add_weight(
            shape=(self.inputs, self.outputs),
            initializer=self.initialization.truncated_normal(self, "kernel"),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(self.outputs,), initializer="zeros", name="bias") if self.use_bias else None

    def call(self, x: Tensor) -> Tensor:
        """Project the last axis."""
        y_MO = ops.matmul(ops.reshape(x, (-1, self.inputs)), self.kernel)
        if self.bias is not None:
            y_MO = y_MO + self.bias
        return ops.reshape(y_MO, (*ops.shape(x)[:-1], self.outputs))

    def operations(self, positions: int) -> int:
        """Return the floating-point operations of the product; a multiplication and an addition are two."""
        return 2 * positions * self.inputs * self.outputs


class LayerNorm(keras.layers.Layer):
    """Layer normalisation over the last axis (Ba et al. 2016), computed in float32 whatever the policy."""

    def __init__(self, width: int, epsilon: float, *, dtype: Any, name: str = "layer_norm") -> None:
        super().__init__(dtype=dtype, name=name)
        self.width = width

        @fused
        def normalize(x: Tensor, gamma_D: Tensor, beta_D: Tensor) -> Tensor:
            x = ops.cast(x, "float32")
            centered = x - ops.mean(x, axis=-1, keepdims=True)
            variance = ops.mean(ops.square(centered), axis=-1, keepdims=True)
            return ops.cast(centered * ops.rsqrt(variance + epsilon) * gamma_D + beta_D, self.compute_dtype)

        self._normalize = normalize

    def build(self, input_shape: Any = None) -> None:
        """Create gamma and beta [D]."""
        self.gamma = self.add_weight(shape=(self.width,), initializer="ones", name="gamma", autocast=False)
        self.beta = self.add_weight(shape=(self.width,), initializer="zeros", name="beta", autocast=False)

    def call(self, x: Tensor) -> Tensor:
        """Normalise, scale and shift; the result has the compute dtype."""
        return self._normalize(x, self.gamma, self.beta)


class Attention(keras.layers.Layer):
    """Multi-head attention, residual and LayerNorm: self, cross, causal or cached, by its arguments.

    Keys and values are a pair of [B, N, S, H]; a cache is such a pair with room for later positions.
    `heads` are those that are left of the config's.
    """

    def __init__(
        self, config: Config, initialization: Initialization, *, heads: int = 0, dtype: Any, name: str
    ) -> None:
        super().__init__(dtype=dtype, name=name)
        width = config.hidden_size
        self.heads = heads or config.num_attention_heads
        self.head_size = width // config.num_attention_heads
        inner = self.heads * self.head_size
        self.preln = config.ln_type == "preln"
        self.attention_dropout = config.attention_probs_dropout_prob
        self.hidden_dropout = config.hidden_dropout_prob
        self.query = Dense(width, inner, initialization, dtype=dtype, name="query")
        self.key = Dense(width, inner, initialization, dtype=dtype, name="key")
        self.value = Dense(width, inner, initialization, dtype=dtype, name="value")
        self.output_projection = Dense(inner, width, initialization, dtype=dtype, name="output")
        self.layer_norm = LayerNorm(width, config.layer_norm_eps, dtype=dtype)

    def build(self, input_shape: Any = None) -> None:
        """Build the projections and the LayerNorm."""
        for layer in (self.query, self.key, self.value, self.output_projection, self.layer_norm):
            layer.build(None)

    def keys_values(self, memory_BSD: Tensor) -> KeyValue:
        """Project the memory to keys and values; a decoder keeps those of its source between steps."""
        return self._split(self.key(memory_BSD)), self._split(self.value(memory_BSD))

    def call(
        self,
        x_BLD: Tensor,
        memory: KeyValue | None = None,
        attention_mask: Tensor | None = None,
        cache: KeyValue | None = None,
        position: int | Tensor | None = 0,
        training: bool = False,
        decoding: bool = False,
        first_only: bool = False,
    ) -> Any:
        """Attend, add to the input and normalise.

        Args:
            x_BLD: queries.
            memory: keys and values of another sequence (`keys_values`); by default those of `x_BLD` itself.
            attention_mask: boolean, broadcasts to [B, N, L, S]; True keeps.
            cache: keys and values of earlier positions; those of `x_BLD` are written at `position`.
            position: index in the cache of the first query; None appends to the cache.
            training: apply dropout.
            decoding: the queries are the newest positions of a sequence, and its keys are many more.
            first_only: compute the first position alone, which attends to all.

        Returns:
            x_BLD, or (x_BLD, cache) when a cache was given; with `first_only` x_B1D.
        """
        h_BLD = self.layer_norm(x_BLD) if self.preln else x_BLD
        if memory is None:
            memory = self.keys_values(h_BLD)
            if cache is not None:
                memory = cache = _written(cache, memory, position)
        if first_only:
            # A slice of one position would be of unknown length where L is.
            x_BLD, h_BLD, decoding = x_BLD[:, 0][:, None], h_BLD[:, 0][:, None], True
            attention_mask = None if attention_mask is None else attention_mask[:, :, :1]
        context_BLD = self._attend(self._split(self.query(h_BLD)), memory, attention_mask, training, decoding)
        y_BLD = self._added(x_BLD, context_BLD, training)
        return y_BLD if cache is None else (y_BLD, cache)

    def beside(
        self,
        x_BKD: Tensor,
        num_queries: int,
        attention_mask: Tensor | None = None,
        training: bool = False,
        queries_only: bool = False,
    ) -> Tensor:
        """Attend within a text and, for the queries behind it, from each to the text and to itself alone.

        Two tokens a b and a query q in a row: a reads a b, b reads a b, q reads a b q.

        Args:
            x_BKD: L tokens and the queries.
            num_queries: how many there are.
            attention_mask: of the text's tokens, boolean [B, 1, 1, L]; True keeps.
            training: apply dropout.
            queries_only: compute the queries alone, x_BPD.
        """
        length = x_BKD.shape[1] - num_queries
        h_BKD = self.layer_norm(x_BKD) if self.preln else x_BKD
        key_BNKH, value_BNKH = self.keys_values(h_BKD)
        text, itself = ((key_BNKH[:, :, part], value_BNKH[:, :, part]) for part in (slice(length), slice(length, None)))
        if queries_only:
            query_BNPH = self._split(self.query(h_BKD[:, length:]))
            context_BPD = self._attend_with_itself(query_BNPH, itself, text, attention_mask, training)
            return self._added(x_BKD[:, length:], context_BPD, training)
        query_BNKH = self._split(self.query(h_BKD))
        context_BLD = self._attend(query_BNKH[:, :, :length], text, attention_mask, training, False)
        context_BPD = self._attend_with_itself(query_BNKH[:, :, length:], itself, text, attention_mask, training)
        return self._added(x_BKD, ops.concatenate([context_BLD, context_BPD], axis=1), training)

    def attention_weights(
        self, x_BLD: Tensor, memory: KeyValue | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Return where `call` looks, float32 [B, N, L, S], each row a distribution; without dropout."""
        h_BLD = self.layer_norm(x_BLD) if self.preln else x_BLD
        memory = memory or self.keys_values(h_BLD)
        query_BNLH = self._split(self.query(h_BLD)) * self.head_size**-0.5
        scores_BNLS = ops.cast(ops.matmul(query_BNLH, ops.transpose(memory[0], (0, 1, 3, 2))), "float32")
        if attention_mask is not None:
            scores_BNLS = scores_BNLS + masks.additive(attention_mask)
        return ops.softmax(scores_BNLS)

    def operations(self, sizes: Sizes) -> int:
        """Return those of the projections, the scores and their sum over the values, forward and for one example."""
        queries, keys = sizes.tokens + sizes.queries, sizes.memory or sizes.tokens
        projections = self.query.operations(queries) + self.output_projection.operations(queries)
        projections += self.key.operations(keys + sizes.queries) + self.value.operations(keys + sizes.queries)
        return projections + 2 * 2 * queries * keys * self.heads * self.head_size

    def states(self, sizes: Sizes) -> States:
        """Return the elements of one example."""
        width, queries = self.query.inputs, sizes.tokens + sizes.queries
        scores = queries * (sizes.memory or sizes.tokens) * self.heads
        return States(dense=queries * width, scores=scores)

    def _split(self, x_BLD: Tensor) -> Tensor:
        batch, length = ops.shape(x_BLD)[:2]
        return ops.transpose(ops.reshape(x_BLD, (batch, length, self.heads, self.head_size)), (0, 2, 1, 3))

    def _added(self, x_BLD: Tensor, context_BLD: Tensor, training: bool) -> Tensor:
        """Project what attention found, add it to the input and normalise."""
        y_BLD = x_BLD + dropout(self.output_projection(context_BLD), self.hidden_dropout, training)
        return y_BLD if self.preln else self.layer_norm(y_BLD)

    def _attend_with_itself(
        self,
        query_BNPH: Tensor,
        itself: KeyValue,
        memory: KeyValue,
        mask: Tensor | None,
        training: bool,
    ) -> Tensor:
        """Return what each query finds in the memory and in itself, x_BPD; the keys are the memory's and one more."""
        (key_BNPH, value_BNPH), (key_BNSH, value_BNSH) = itself, memory
        batch, _, length, _ = ops.shape(query_BNPH)
        query_BNPH = query_BNPH * self.head_size**-0.5
        scores_BNPS = ops.cast(ops.matmul(query_BNPH, ops.transpose(key_BNSH, (0, 1, 3, 2))), "float32")
        if mask is not None:
            scores_BNPS = scores_BNPS + masks.additive(mask)
        own_BNP1 = ops.cast(ops.sum(query_BNPH * key_BNPH, axis=-1, keepdims=True), "float32")
        weights = ops.cast(ops.softmax(ops.concatenate([scores_BNPS, own_BNP1], axis=-1)), self.compute_dtype)
        weights = dropout(weights, self.attention_dropout, training)
        context_BNPH = ops.matmul(weights[..., :-1], value_BNSH) + weights[..., -1:] * value_BNPH
        return ops.reshape(ops.transpose(context_BNPH, (0, 2, 1, 3)), (batch, length, self.heads * self.head_size))

    def _attend(
        self, query_BNLH: Tensor, memory: KeyValue, mask: Tensor | None, training: bool, decoding: bool
    ) -> Tensor:
        key_BNSH, value_BNSH = memory
        scale = self.head_size**-0.5
        batch, _, length, _ = ops.shape(query_BNLH)
        if keras.config.backend() == "jax" and not decoding and not (training and self.attention_dropout):
            query_BLNH, key_BSNH, value_BSNH = (
                ops.transpose(x, (0, 2, 1, 3)) for x in (query_BNLH, key_BNSH, value_BNSH)
            )
            if mask is not None:
                # cuDNN's fused attention refuses a mask of one row for all queries; Keras then prints a traceback and
                # takes the slow way.
                mask = ops.broadcast_to(mask, (*ops.shape(mask)[:2], length, ops.shape(key_BNSH)[2]))
            context_BLNH = ops.dot_product_attention(query_BLNH, key_BSNH, value_BSNH, mask=mask, scale=scale)
        else:
            if decoding and length == 1:
                # One vector for each head; transposed keys would be a copy of the cache at every step.
                query_BNH1 = ops.transpose(query_BNLH * scale, (0, 1, 3, 2))
                scores_BNLS = ops.transpose(ops.matmul(key_BNSH, query_BNH1), (0, 1, 3, 2))
            else:
                scores_BNLS = ops.matmul(query_BNLH * scale, ops.transpose(key_BNSH, (0, 1, 3, 2)))
            scores_BNLS = ops.cast(scores_BNLS, "float32")
            if mask is not None:
                scores_BNLS = scores_BNLS + masks.additive(mask)
            weights_BNLS = ops.cast(ops.softmax(scores_BNLS), self.compute_dtype)
            weights_BNLS = dropout(weights_BNLS, self.attention_dropout, training)
            context_BLNH = ops.transpose(ops.matmul(weights_BNLS, value_BNSH), (0, 2, 1, 3))
        return ops.reshape(context_BLNH, (batch, length, self.heads * self.head_size))


def _written(cache: KeyValue, new: KeyValue, position: int | Tensor | None) -> KeyValue:
    """Return the cache with new keys and values at `position`, or behind the others."""
    key_BNSH, value_BNSH = cache
    key_BNLH, value_BNLH = new
    if position is None:
        return ops.concatenate([key_BNSH, key_BNLH], axis=2), ops.concatenate([value_BNSH, value_BNLH], axis=2)
    start = (0, 0, position, 0)
    return ops.slice_update(key_BNSH, start, key_BNLH), ops.slice_update(value_BNSH, start, value_BNLH)


class FeedForward(keras.layers.Layer):
    """Dense, activation, dense, residual and LayerNorm; the dense layers fall into `ffn_groups` independent parts.

    `units` are those that are left of the config's `intermediate_size`.
    """

    def __init__(
        self, config: Config, initialization: Initialization, *, units: int = 0, dtype: Any, name: str
    ) -> None:
        super().__init__(dtype=dtype, name=name)
        width, inner = config.hidden_size, units or config.intermediate_size
        self.preln = config.ln_type == "preln"
        self.hidden_act = config.hidden_act
        self.hidden_dropout = config.hidden_dropout_prob
        if config.ffn_groups == 1:
            self.intermediate = Dense(width, inner, initialization, dtype=dtype, name="intermediate")
            self.output_projection = Dense(inner, width, initialization, dtype=dtype, name="output")
        else:
            groups = config.ffn_groups
            self.intermediate = GroupedDense(width, inner, groups, initialization, dtype=dtype, name="intermediate")
            self.output_projection = GroupedDense(inner, width, groups, initialization, dtype=dtype, name="output")
        self.layer_norm = LayerNorm(width, config.layer_norm_eps, dtype=dtype)

    def build(self, input_shape: Any = None) -> None:
        """Build both dense layers and the LayerNorm."""
        for layer in (self.intermediate, self.output_projection, self.layer_norm):
            layer.build(None)

    def call(self, x_BLD: Tensor, training: bool = False) -> Tensor:
        """Transform every position alone."""
        h_BLD = self.layer_norm(x_BLD) if self.preln else x_BLD
        h_BLF = activation(self.hidden_act, self.intermediate(h_BLD))
        y_BLD = x_BLD + dropout(self.output_projection(h_BLF), self.hidden_dropout, training)
        return y_BLD if self.preln else self.layer_norm(y_BLD)

    def operations(self, sizes: Sizes) -> int:
        """Return those of both products, forward and for one example."""
        positions = sizes.tokens + sizes.queries
        return self.intermediate.operations(positions) + self.output_projection.operations(positions)

    def states(self, sizes: Sizes) -> States:
        """Return the elements of one example."""
        positions = sizes.tokens + sizes.queries
        return States(dense=positions * self.intermediate.inputs, inner=positions * self.intermediate.outputs)


class GroupedDense(keras.layers.Layer):
    """Dense in independent groups (albert_zh's modeling_google_fast): input interleaved, output group after group.

    Input feature i belongs to group i mod G; group g computes the outputs g*O/G ... (g+1)*O/G - 1.
    """

    def __init__(
        self, inputs: int, outputs: int, groups: int, initialization: Initialization, *, dtype: Any, name: str
    ) -> None:
        super().__init__(dtype=dtype, name=name)
        self.inputs = inputs
        self.outputs = outputs
        self.groups = groups
        self.initialization = initialization

    def build(self, input_shape: Any = None) -> None:
        """Create kernel [I/G, O/G, G] and bias [O]."""
        self.kernel = self.add_weight(
            shape=(self.inputs // self.groups, self.outputs // self.groups, self.groups),
            initializer=self.initialization.truncated_normal(self, "kernel"),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(self.outputs,), initializer="zeros", name="bias")

    def call(self, x: Tensor) -> Tensor:
        """Project the last axis."""
        x_MIG = ops.reshape(x, (-1, self.inputs // self.groups, self.groups))
        y_GMO = ops.matmul(ops.transpose(x_MIG, (2, 0, 1)), ops.transpose(self.kernel, (2, 0, 1)))
        y_MGO = ops.transpose(y_GMO, (1, 0, 2))
        return ops.reshape(y_MGO, (*ops.shape(x)[:-1], self.outputs)) + self.bias

    def operations(self, positions: int) -> int:
        """Return the floating-point operations of the products of all groups."""
        return 2 * positions * self.inputs * self.outputs // self.groups
