"""Names of ALBERT (Lan et al. 2020): google-research/albert in TF 1, and transformers.

Both codes number groups of layers and the blocks inside of a group. transformers projects the embedding even to an
equal width, where the graph here has no projection.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from conversion.graphs import Graph, as_albert, as_original
from conversion.lazy import Tensors
from conversion.namings.dialects import (
    ALBERT_KEYS,
    ATTENTION,
    BERT_KEYS,
    FEED_FORWARD,
    TF1_TOP,
    embeddings,
    query_key_value,
    tf1_name,
    tf1_rules,
    torch_name,
    torch_rules,
)
from conversion.rules import Naming
from modeling.config import Config

GRAPH = Graph(
    family="albert",
    title="Google ALBERT graph (embedding_hidden_mapping_in)",
    mark="backbone/embeddings/projection/bias",
    describes=lambda config: config.family == "albert" and config.projects,
    transformers=lambda config: "albert",
)
_PROJECTION = "backbone/embeddings/projection"
_FAST_GROUPS = 16  # of the feed-forward in google_fast, which no key of its JSON tells


def _refusals(config: Config) -> dict[str, bool]:
    return {
        "it is post-LN": config.ln_type != "postln",
        "its feed-forward is whole, or google_fast's in 16 groups": config.ffn_groups not in (1, _FAST_GROUPS),
        "Google's ALBERT shares all of a layer": config.sharing != "all",
    }


def _ffn_groups(tensors: Tensors) -> Mapping[str, Any]:
    kernel = tensors.get("backbone/encoder/feed_forward_0/intermediate/kernel")
    return {"ffn_groups": kernel.shape[2]} if kernel is not None and kernel.ndim == 3 else {}


_BLOCK = "bert/encoder/transformer/group_{g}/inner_group_{j}"
_TORCH_BLOCK = "albert.encoder.albert_layer_groups.{g}.albert_layers.{j}"

NAMINGS = (
    Naming(
        name="albert_google_tf1",
        family="albert",
        container="tf1",
        detect=("/encoder/transformer/group_",),
        rules=tf1_rules(
            [
                *embeddings("bert/embeddings/"),
                ("dense", _PROJECTION, "bert/encoder/embedding_hidden_mapping_in"),
                *query_key_value(ATTENTION, f"{_BLOCK}/attention_1/self/"),
                ("dense", f"{ATTENTION}/output", f"{_BLOCK}/attention_1/output/dense"),
                ("norm", f"{ATTENTION}/layer_norm", f"{_BLOCK}/LayerNorm"),
                ("dense", f"{FEED_FORWARD}/intermediate", f"{_BLOCK}/ffn_1/intermediate/dense"),
                ("dense", f"{FEED_FORWARD}/output", f"{_BLOCK}/ffn_1/intermediate/output/dense"),
                ("norm", f"{FEED_FORWARD}/layer_norm", f"{_BLOCK}/LayerNorm_1"),
                *TF1_TOP,
            ]
        ),
        canonical=tf1_name,
        backbone=("bert/",),
        implies=_ffn_groups,
        rewrite=functools.partial(as_original, refusals=_refusals),
        config_keys=(*BERT_KEYS, *ALBERT_KEYS),
        config_file=lambda config: "albert_config.json" if config.ffn_groups == 1 else "albert_config_google_fast.json",
    ),
    Naming(
        name="transformers_albert",
        family="albert",
        container="transformers",
        detect=(r"encoder\.albert_layer_groups\.",),
        rules=torch_rules(
            [
                *embeddings("albert.embeddings."),
                ("dense", _PROJECTION, "albert.encoder.embedding_hidden_mapping_in"),
                *query_key_value(ATTENTION, f"{_TORCH_BLOCK}.attention."),
                ("dense", f"{ATTENTION}/output", f"{_TORCH_BLOCK}.attention.dense"),
                ("norm", f"{ATTENTION}/layer_norm", f"{_TORCH_BLOCK}.attention.LayerNorm"),
                ("dense", f"{FEED_FORWARD}/intermediate", f"{_TORCH_BLOCK}.ffn"),
                ("dense", f"{FEED_FORWARD}/output", f"{_TORCH_BLOCK}.ffn_output"),
                ("norm", f"{FEED_FORWARD}/layer_norm", f"{_TORCH_BLOCK}.full_layer_layer_norm"),
                ("dense", "backbone/pooler", "albert.pooler"),
                ("dense", "masked_lm/transform", "predictions.dense"),
                ("norm", "masked_lm/layer_norm", "predictions.LayerNorm"),
                ("bias", "masked_lm/output_bias", "predictions.bias"),
                ("dense", "sentence_pair", "sop_classifier.classifier"),
                ("dense", "classifier", "classifier"),
                ("dense", "span", "qa_outputs"),
            ]
        ),
        canonical=torch_name("albert"),
        backbone=("albert.",),
        ties={
            "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
            "predictions.decoder.bias": "predictions.bias",
        },
        neutral={
            f"{_PROJECTION}/kernel": lambda width: np.eye(width, dtype=np.float32),
            f"{_PROJECTION}/bias": lambda width: np.zeros(width, np.float32),
        },
        rewrite=as_albert,
        config_keys=(*BERT_KEYS, "layer_norm_eps", *ALBERT_KEYS),
        config_constants={
            "pad_token_id": 0,
            "tie_word_embeddings": True,
            "dtype": "float32",
            "classifier_dropout_prob": 0.1,
        },
        model_type="albert",
        class_prefix="Albert",
        head_classes={"sentence_pair": 2},
    ),
)
