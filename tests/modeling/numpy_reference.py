"""Every graph's forward pass written again in NumPy and float64, from the papers and the original codes; no Keras.

The weights are a dict under the names of the checkpoint format. Nothing of `modeling` is used but the fields of Config.
"""

import math

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
