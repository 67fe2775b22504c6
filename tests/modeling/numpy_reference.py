"""Every graph's forward pass written again in NumPy and float64, from the papers and the original codes; no Keras.

The weights are a dict under the names of the checkpoint format. Nothing of `modeling` is used but the fields of Config.
"""

import math
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def dense(weights: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    kernel, bias = weights[f"{name}/kernel"], weights.get(f"{name}/bias", 0.0)
    if kernel.ndim == 2:
        return x @ kernel + bias
    # Group g reads every G-th feature from the g-th on, and its outputs lie behind those of group g - 1.
    groups = kernel.shape[2]
    return np.concatenate([x[..., g::groups] @ kernel[:, :, g] for g in range(groups)], axis=-1) + bias


def layer_norm(weights: Arrays, name: str, x: np.ndarray, epsilon: float) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * weights[f"{name}/gamma"] + weights[f"{name}/beta"]


def activation(name: str, x: np.ndarray) -> np.ndarray:
    if name == "gelu":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "gelu_erf":
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return {"relu": lambda x: np.maximum(x, 0), "swish": lambda x: x / (1 + np.exp(-x))}[name](x)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(weights: Arrays, name: str, h: np.ndarray, mask: np.ndarray, heads: int) -> np.ndarray:
    query, key, value = (dense(weights, f"{name}/{part}", h) for part in ("query", "key", "value"))
    size = h.shape[-1] // heads
    context = np.zeros_like(query)
    for row in range(len(h)):
        for head in range(heads):
            part = np.s_[row, :, head * size : (head + 1) * size]
            scores = query[part] @ key[part].T / math.sqrt(size)
            scores[:, mask[row] == 0] = -1e30
            context[part] = softmax(scores) @ value[part]
    return dense(weights, f"{name}/output", context)


def bricks_of(config) -> list[tuple[int, int]]:
    order = []
    for layer in range(config.num_hidden_layers):
        group = math.floor(layer * config.num_hidden_groups / config.num_hidden_layers)
        for inner in range(config.inner_group_num):
            shared, own = (i * config.inner_group_num + inner for i in (group, layer))
            order.append(
                {"all": (shared, shared), "attention": (shared, own), "ffn": (own, shared), "none": (own, own)}[
                    config.sharing
                ]
            )
    return order


def body(config, weights: Arrays, features: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """(sequence_output [B, L, D], pooled_output [B, D])."""
    epsilon, preln, ids = config.layer_norm_eps, config.ln_type == "preln", features["input_ids"]
    tables, projection = "backbone/embeddings", "backbone/embeddings/projection"
    x = weights[f"{tables}/word_embeddings"][ids]
    if config.family == "albert_zh":
        x = dense(weights, projection, x)
    x = x + weights[f"{tables}/position_embeddings"][config.position_offset :][: ids.shape[1]]
    if config.type_vocab_size:
        x = x + weights[f"{tables}/token_type_embeddings"][features["segment_ids"]]
    x = layer_norm(weights, f"{tables}/layer_norm", x, epsilon)
    if config.family == "albert":
        x = dense(weights, projection, x)
    for i, j in bricks_of(config):
        first, second = f"backbone/encoder/attention_{i}", f"backbone/encoder/feed_forward_{j}"
        h = layer_norm(weights, f"{first}/layer_norm", x, epsilon) if preln else x
        x = x + attention(weights, first, h, features["input_mask"], config.num_attention_heads)
        x = x if preln else layer_norm(weights, f"{first}/layer_norm", x, epsilon)
        h = layer_norm(weights, f"{second}/layer_norm", x, epsilon) if preln else x
        x = x + dense(
            weights, f"{second}/output", activation(config.hidden_act, dense(weights, f"{second}/intermediate", h))
        )
        x = x if preln else layer_norm(weights, f"{second}/layer_norm", x, epsilon)
    if config.final_layer_norm:
        x = layer_norm(weights, "backbone/encoder/layer_norm", x, epsilon)
    if config.family == "palm":
        return (x := layer_norm(weights, "backbone/encoder/layer_norm", x, epsilon)), x[:, 0]
    return x, np.tanh(dense(weights, "backbone/pooler", x[:, 0]))


def vocabulary_logits(config, weights: Arrays, x: np.ndarray) -> np.ndarray:
    h = activation(config.hidden_act, dense(weights, "masked_lm/transform", x))
    h = layer_norm(weights, "masked_lm/layer_norm", h, config.layer_norm_eps)
    if config.family == "albert_zh":
        h = h @ weights["backbone/embeddings/projection/kernel"].T
    logits = h @ weights["backbone/embeddings/word_embeddings"].T + weights["masked_lm/output_bias"]
    return logits[..., : config.vocab_size]


def surprise(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.log(np.take_along_axis(softmax(logits), labels[..., None], axis=-1)[..., 0])


def pretraining_loss(config, weights: Arrays, batch: Arrays) -> float:
    """Mean over weighted masked tokens plus mean over pair labels, in nats."""
    x, pooled = body(config, weights, batch)
    rows = np.take_along_axis(x, batch["masked_lm_positions"][..., None], axis=1)
    tokens = surprise(vocabulary_logits(config, weights, rows), batch["masked_lm_ids"])
    counted = batch["masked_lm_weights"]
    pairs = surprise(dense(weights, "sentence_pair", pooled), batch["next_sentence_labels"])
    return float((tokens * counted).sum() / counted.sum() + pairs.mean())


def class_loss(config, weights: Arrays, batch: Arrays) -> float:
    """Mean over labels, in nats."""
    _, pooled = body(config, weights, batch)
    if config.family == "albert_zh" and config.ln_type == "preln":
        pooled = layer_norm(weights, "pooled_layer_norm", pooled, config.layer_norm_eps)
    return float(surprise(dense(weights, "classifier", pooled), batch["label_ids"]).mean())


def heads_of(weights: Arrays, name: str, h: np.ndarray, memory: np.ndarray, mask: np.ndarray, heads: int) -> np.ndarray:
    """Attention weights of h on memory, [B, N, L, S]; mask [B, L, S]."""
    query, key = dense(weights, f"{name}/query", h), dense(weights, f"{name}/key", memory)
    size = h.shape[-1] // heads
    scores = np.stack(
        [query[..., n * size :][..., :size] @ np.swapaxes(key[..., n * size :][..., :size], 1, 2) for n in range(heads)]
    )
    scores = np.moveaxis(scores, 0, 1) / math.sqrt(size)
    return softmax(np.where(mask[:, None], scores, -1e30))


def cross_attention(
    weights: Arrays, name: str, h: np.ndarray, memory: np.ndarray, mask: np.ndarray, heads: int
) -> np.ndarray:
    looks, value = heads_of(weights, name, h, memory, mask, heads), dense(weights, f"{name}/value", memory)
    size = h.shape[-1] // heads
    parts = [looks[:, n] @ value[..., n * size :][..., :size] for n in range(heads)]
    return dense(weights, f"{name}/output", np.concatenate(parts, axis=-1))


def palm_decoder(config, weights: Arrays, features: Arrays, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(decoder_output [B, T, D], mean attention of the last block [B, T, S]), of both graphs of PALM."""
    ids, english = features["target_ids"][:, :-1], config.family == "palm_en"
    length, width = ids.shape[1], config.hidden_size
    if english:
        x = weights["backbone/target_embeddings/word_embeddings"][ids] * math.sqrt(width)
        for place in range(length):
            for column in range(width):
                angle = place / 10000 ** ((column - column % 2) / width)
                x[:, place, column] += math.cos(angle) if column % 2 else math.sin(angle)
    else:
        tables = "backbone/embeddings"
        x = weights[f"{tables}/word_embeddings"][ids] + weights[f"{tables}/position_embeddings"][:length]
        x = x + weights[f"{tables}/token_type_embeddings"][0]
        x = layer_norm(weights, f"{tables}/layer_norm", x, config.layer_norm_eps)
    epsilon, act = (1e-6, "gelu") if english else (config.layer_norm_eps, config.hidden_act)
    heads = config.decoder_attention_heads or config.num_attention_heads
    causal = np.broadcast_to(np.tril(np.ones((length, length), bool)), (len(ids), length, length))
    seen = np.broadcast_to(features["input_mask"][:, None, :] > 0, (len(ids), length, memory.shape[1]))
    looks = seen
    for k in range(config.num_decoder_layers):
        first, second, third = (f"backbone/decoder/{n}_{k}" for n in ("attention", "cross_attention", "feed_forward"))
        h = layer_norm(weights, f"{first}/layer_norm", x, epsilon)
        x = x + cross_attention(weights, first, h, h, causal, heads)
        h = layer_norm(weights, f"{second}/layer_norm", x, epsilon)
        looks = heads_of(weights, second, h, memory, seen, heads).mean(1)
        x = x + cross_attention(weights, second, h, memory, seen, heads)
        h = layer_norm(weights, f"{third}/layer_norm", x, epsilon)
        x = x + dense(weights, f"{third}/output", activation(act, dense(weights, f"{third}/intermediate", h)))
    return layer_norm(weights, "backbone/decoder/layer_norm", x, epsilon), looks


def palm_probabilities(config, weights: Arrays, features: Arrays, memory: np.ndarray) -> np.ndarray:
    """Probabilities of the next tokens, [B, T, V], words of the source copied as `config.copy` says."""
    x, looks = palm_decoder(config, weights, features, memory)
    # Rows that only pad the table have no probability.
    words = slice(config.vocab_size)
    if config.family == "palm_en":
        scores = x @ weights["backbone/target_embeddings/word_embeddings"][words].T
        generated = softmax(scores + weights["backbone/target_embeddings/output_bias"][words])
    else:
        generated = softmax(x @ weights["backbone/embeddings/word_embeddings"][words].T)
    if config.copy == "none":
        return generated
    if config.copy == "additive":
        sums = dense(weights, "copy/memory", memory)[:, None] + dense(weights, "copy/state", x)[:, :, None]
        scores = dense(weights, "copy/score", np.tanh(sums))[..., 0]
        looks = softmax(np.where(features["input_mask"][:, None, :] > 0, scores, -1e30))
    copied = np.zeros_like(generated)
    for row, ids in enumerate(features["input_ids"]):
        for place, word in enumerate(ids):
            copied[row, :, word] += looks[row, :, place]
    if config.copy == "legacy_attention":
        copied = softmax(copied)
    gate = 1 / (1 + np.exp(-dense(weights, "copy/gate", np.concatenate([looks @ memory, x], axis=-1))))
    return gate * generated + (1 - gate) * copied


def veco_embedded(config, weights: Arrays, tables: str, ids: np.ndarray) -> np.ndarray:
    """Words times the scale, positions from the offset on and the one token type, normalised."""
    x = weights["backbone/embeddings/word_embeddings"][ids] * config.embedding_scale
    x = x + weights[f"{tables}/position_embeddings"][config.position_offset :][: ids.shape[1]]
    if config.type_vocab_size:
        x = x + weights[f"{tables}/token_type_embeddings"][0]
    return layer_norm(weights, f"{tables}/layer_norm", x, config.layer_norm_eps)


def veco_blocks(config, weights: Arrays, stack: str, x: np.ndarray, own: np.ndarray, memory=None, seen: Any = None):
    """The last state of a stack: every sub-module post-LN, the cross-attention left out without a memory."""
    depth = config.num_decoder_layers if stack == "decoder" else config.num_hidden_layers
    heads, epsilon = config.num_attention_heads, config.layer_norm_eps
    for k in range(depth):
        first, second, third = (f"backbone/{stack}/{n}_{k}" for n in ("attention", "cross_attention", "feed_forward"))
        y = cross_attention(weights, first, x, x, own, heads)
        x = layer_norm(weights, f"{first}/layer_norm", x + y, epsilon)
        if memory is not None:
            y = cross_attention(weights, second, x, memory, seen, heads)
            x = layer_norm(weights, f"{second}/layer_norm", x + y, epsilon)
        y = dense(weights, f"{third}/intermediate", x)
        y = dense(weights, f"{third}/output", activation(config.hidden_act, y))
        x = layer_norm(weights, f"{third}/layer_norm", x + y, epsilon)
    return x


def veco_streams(config, weights: Arrays, features: Arrays) -> Arrays:
    """H and S of both texts: S of each reads the last state of the other's H in every block."""
    x, h, keys = {}, {}, {}
    for side in ("", "other_"):
        ids = features[f"{side}input_ids"]
        keys[side] = np.repeat(features[f"{side}input_mask"][:, None, :] > 0, ids.shape[1], axis=1)
        x[side] = veco_embedded(config, weights, "backbone/embeddings", ids)
        h[side] = veco_blocks(config, weights, "encoder", x[side], keys[side])
    found = {f"{side}sequence_output": value for side, value in h.items()}
    for side, other in (("", "other_"), ("other_", "")):
        found[f"{side}pooled_output"] = np.tanh(dense(weights, "backbone/pooler", h[side][:, 0]))
        found[f"{side}crossed_output"] = veco_blocks(
            config, weights, "encoder", x[side], keys[side], h[other], keys[other]
        )
    return found


def veco_next_scores(config, weights: Arrays, features: Arrays) -> np.ndarray:
    """Scores of the next tokens, [B, T, V], by the word table alone."""
    ids, target = features["input_ids"], features["target_ids"][:, :-1]
    length = target.shape[1]
    x = veco_embedded(config, weights, "backbone/embeddings", ids)
    keys = features["input_mask"][:, None, :] > 0
    memory = veco_blocks(config, weights, "encoder", x, np.repeat(keys, ids.shape[1], axis=1))
    y = veco_embedded(config, weights, "backbone/target_embeddings", target)
    causal = np.broadcast_to(np.tril(np.ones((length, length), bool)), (len(ids), length, length))
    y = veco_blocks(config, weights, "decoder", y, causal, memory, np.repeat(keys, length, axis=1))
    return y @ weights["backbone/embeddings/word_embeddings"].T
