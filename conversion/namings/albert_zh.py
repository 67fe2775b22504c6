"""Names of albert_zh in TF 1, one naming for each kind of sharing: parts that layers own carry the layer's number.

albert_zh's `shared_type` stands in no file, so names alone tell it. `loss/LayerNorm` normalises the pooled vector of
its pre-LN classifier.
"""

import functools

from conversion.graphs import Graph, as_original
from conversion.namings.dialects import (
    ATTENTION,
    BERT_KEYS,
    FEED_FORWARD,
    TF1_TOP,
    bert_block,
    embeddings,
    tf1_name,
    tf1_rules,
)
from conversion.rules import Naming
from modeling.config import Config

GRAPH = Graph(
    family="albert_zh",
    title="albert_zh graph (word_embeddings_2)",
    mark="backbone/embeddings/projection/kernel",
    describes=lambda config: config.family == "albert_zh" and config.projects,
    transformers=lambda config: "albert" if config.sharing == "all" else "bert",
)


def _refusals(config: Config) -> dict[str, bool]:
    return {
        "its feed-forward is whole": config.ffn_groups != 1,
        "albert_zh always has word_embeddings_2": not config.projects,
    }


def _naming(sharing: str, attention: str, intermediate: str, output: str, detect: str) -> Naming:
    """Return the naming of one kind of sharing; a scope with `{k}` belongs to one layer, a scope without it to all."""
    ours = {
        "attention": ATTENTION if "{k}" in attention else ATTENTION.format(k=0),
        "feed_forward": FEED_FORWARD if "{k}" in output else FEED_FORWARD.format(k=0),
    }
    return Naming(
        name="albert_zh_tf1",
        family="albert_zh",
        container="tf1",
        detect=("embeddings/word_embeddings_2", detect),
        rules=tf1_rules(
            [
                *embeddings("bert/embeddings/"),
                ("table", "backbone/embeddings/projection/kernel", "bert/embeddings/word_embeddings_2"),
                ("norm", "pooled_layer_norm", "loss/LayerNorm"),
                *bert_block("/", attention, intermediate, output, **ours),
                *TF1_TOP,
            ]
        ),
        canonical=tf1_name,
        backbone=("bert/",),
        implies=lambda tensors: {"sharing": sharing},
        rewrite=functools.partial(as_original, refusals=_refusals),
        config_keys=(*BERT_KEYS, "embedding_size", "ln_type"),
        config_file=lambda config: "albert_config.json",
    )


_ALL, _EACH = "bert/encoder/layer_shared", "bert/encoder/layer_{k}"

NAMINGS = (
    _naming("ffn", f"{_ALL}/attention_{{k}}", f"{_ALL}/intermediate", f"{_ALL}/output", "/layer_shared/attention_"),
    _naming(
        "attention",
        f"{_ALL}/attention",
        f"{_ALL}/intermediate_{{k}}",
        f"{_ALL}/output_{{k}}",
        "/layer_shared/intermediate_",
    ),
    _naming("all", f"{_ALL}/attention", f"{_ALL}/intermediate", f"{_ALL}/output", "/layer_shared/"),
    _naming("none", f"{_EACH}/attention", f"{_EACH}/intermediate", f"{_EACH}/output", ""),
)
