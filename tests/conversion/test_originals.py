"""The TF 1 graphs of BERT, ALBERT and albert_zh, computed in NumPy under their own names, against an import of them.

Independent of every table in conversion/: the formulas are those of the papers, the names those of the published
checkpoints. Two tensors of equal shape that an import mixes up (query and key, both LayerNorms) change the outputs.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conversion_cases import CONFIGS, save_tf1

from conversion.parity import our_outputs, random_features
from conversion.readers import read_checkpoint
from modeling.config import Config

Weights = dict[str, np.ndarray]
_BERT_BLOCK = {
    "query": "attention/self/query",
    "key": "attention/self/key",
    "value": "attention/self/value",
    "attention_output": "attention/output/dense",
    "attention_norm": "attention/output/LayerNorm",
    "intermediate": "intermediate/dense",
    "output": "output/dense",
    "output_norm": "output/LayerNorm",
}
_ALBERT_BLOCK = {
    "query": "attention_1/self/query",
    "key": "attention_1/self/key",
    "value": "attention_1/self/value",
    "attention_output": "attention_1/output/dense",
    "attention_norm": "LayerNorm",
    "intermediate": "ffn_1/intermediate/dense",
    "output": "ffn_1/intermediate/output/dense",
    "output_norm": "LayerNorm_1",
}


@dataclasses.dataclass(frozen=True)
class Original:
    """A published graph: scope of layer i, names in it, and what is done to the word vectors before and after."""

    graph: str
    scope: Callable[[int], str]
    block: dict[str, str]
    sum_width: Callable[[Config], int]
    head_width: Callable[[Config], int]


ORIGINALS = {
    "bert": Original("bert", lambda i: f"layer_{i}/", _BERT_BLOCK, lambda c: c.hidden_size, lambda c: c.hidden_size),
    "albert_zh": Original(
        "zh_all", lambda i: "layer_shared/", _BERT_BLOCK, lambda c: c.hidden_size, lambda c: c.hidden_size
    ),
    "albert": Original(
        "google",
        lambda i: "transformer/group_0/inner_group_0/",
        _ALBERT_BLOCK,
        lambda c: c.embedding_size,
        lambda c: c.embedding_size,
    ),
    "albert_two_groups": Original(
        "google_two_groups",
        lambda i: f"transformer/group_{i // 2}/inner_group_0/",
        _ALBERT_BLOCK,
        lambda c: c.embedding_size,
        lambda c: c.embedding_size,
    ),
}
_CONFIGS = {**CONFIGS, "google_two_groups": dataclasses.replace(CONFIGS["google"], num_hidden_groups=2)}


def random_weights(original: Original, config: Config) -> Weights:
    """Weights under the original's names; no two tensors are equal, no value is one of an initialiser."""
    generator, weights = np.random.default_rng(7), {}

    def table(name: str, *shape: int) -> None:
        weights[name] = generator.normal(0, 0.5, shape).astype(np.float32)

    def dense(name: str, rows: int, columns: int) -> None:
        table(f"{name}/kernel", rows, columns)
        table(f"{name}/bias", columns)

    def norm(name: str, width: int) -> None:
        weights[f"{name}/gamma"] = generator.normal(1, 0.3, width).astype(np.float32)
        table(f"{name}/beta", width)

    width, inner, narrow = config.hidden_size, config.intermediate_size, config.embedding_size
    table("bert/embeddings/word_embeddings", config.vocab_size, narrow)
    table("bert/embeddings/position_embeddings", config.max_position_embeddings, original.sum_width(config))
    table("bert/embeddings/token_type_embeddings", config.type_vocab_size, original.sum_width(config))
    norm("bert/embeddings/LayerNorm", original.sum_width(config))
    if config.family == "albert_zh":
        table("bert/embeddings/word_embeddings_2", narrow, width)
    if config.family == "albert":
        dense("bert/encoder/embedding_hidden_mapping_in", narrow, width)
    for scope in dict.fromkeys(f"bert/encoder/{original.scope(i)}" for i in range(config.num_hidden_layers)):
        for role, name in original.block.items():
            if role.endswith("norm"):
                norm(scope + name, width)
            else:
                dense(scope + name, inner if role == "output" else width, inner if role == "intermediate" else width)
    dense("bert/pooler/dense", width, width)
    dense("cls/predictions/transform/dense", width, original.head_width(config))
    norm("cls/predictions/transform/LayerNorm", original.head_width(config))
    table("cls/predictions/output_bias", config.vocab_size)
    table("cls/seq_relationship/output_weights", 2, width)
    table("cls/seq_relationship/output_bias", 2)
    return weights


def forward(original: Original, config: Config, weights: Weights, features: Weights) -> Weights:
    """The published graph in float64: embeddings, post-LN blocks, pooler, masked-LM and pair heads."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * w[f"{name}/gamma"] + w[f"{name}/beta"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], config.num_attention_heads, -1).transpose(0, 2, 1, 3)

    ids, mask, segments = features["input_ids"], features["input_mask"], features["segment_ids"]
    batch, length = ids.shape
    word_table = w["bert/embeddings/word_embeddings"]
    x = word_table[ids]
    if config.family == "albert_zh":
        x = x @ w["bert/embeddings/word_embeddings_2"]
    x = x + w["bert/embeddings/position_embeddings"][:length] + w["bert/embeddings/token_type_embeddings"][segments]
    x = norm("bert/embeddings/LayerNorm", x)
    if config.family == "albert":
        x = dense("bert/encoder/embedding_hidden_mapping_in", x)
    for i in range(config.num_hidden_layers):
        name = {role: f"bert/encoder/{original.scope(i)}{there}" for role, there in original.block.items()}
        query, key, value = (heads(dense(name[role], x)) for role in ("query", "key", "value"))
        scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1]) - 1e9 * (1 - mask[:, None, None, :])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        context = (scores / scores.sum(-1, keepdims=True)) @ value
        context = context.transpose(0, 2, 1, 3).reshape(batch, length, -1)
        x = norm(name["attention_norm"], x + dense(name["attention_output"], context))
        x = norm(name["output_norm"], x + dense(name["output"], gelu(dense(name["intermediate"], x))))
    pooled = np.tanh(dense("bert/pooler/dense", x[:, 0]))
    h = norm("cls/predictions/transform/LayerNorm", gelu(dense("cls/predictions/transform/dense", x)))
    if config.family == "albert_zh":
        h = h @ w["bert/embeddings/word_embeddings_2"].T
    pair = pooled @ w["cls/seq_relationship/output_weights"].T + w["cls/seq_relationship/output_bias"]
    return {
        "last hidden state": x,
        "pooled output": pooled,
        "masked-LM logits": h @ word_table.T + w["cls/predictions/output_bias"],
        "sentence-pair logits": pair,
    }


@pytest.mark.parametrize("name", ORIGINALS)
def test_an_imported_checkpoint_computes_what_its_own_graph_computes(name: str, tmp_path: Path):
    original = ORIGINALS[name]
    config = _CONFIGS[original.graph]
    weights = random_weights(original, config)
    save_tf1(tmp_path / "model.ckpt", weights)
    features = random_features(config)
    got = our_outputs(read_checkpoint(tmp_path / "model.ckpt", config=config), features)
    expected = forward(original, config, weights, features)
    for output, value in expected.items():
        np.testing.assert_allclose(got[output], value, atol=2e-5, rtol=1e-5, err_msg=output)
