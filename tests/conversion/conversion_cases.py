"""Tiny configs of every published graph and random tensors for them, without building a model twice."""

import dataclasses
import functools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conversion.lazy import Tensors
from modeling.config import Config

_BERT = Config(
    family="bert",
    vocab_size=32,
    hidden_size=8,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=24,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
_GOOGLE = dataclasses.replace(_BERT, family="albert", embedding_size=4, sharing="all")
_ZH = dataclasses.replace(_GOOGLE, family="albert_zh")
_PALM = dataclasses.replace(
    _BERT,
    family="palm",
    hidden_act="gelu_erf",
    ln_type="preln",
    final_layer_norm=True,
    type_vocab_size=3,
    num_decoder_layers=2,
)
_PALM_EN = dataclasses.replace(
    _BERT,
    family="palm_en",
    num_decoder_layers=2,
    decoder_attention_heads=4,
    decoder_intermediate_size=12,
    copy="legacy_attention",
)
_VECO = dataclasses.replace(
    _BERT,
    family="veco",
    hidden_act="gelu_erf",
    layer_norm_eps=1e-5,
    position_offset=2,
    type_vocab_size=1,
    cross_attention=True,
)
CONFIGS = {
    "bert": _BERT,
    "bert_erf": dataclasses.replace(_BERT, hidden_act="gelu_erf"),
    "bert_shared": dataclasses.replace(_BERT, sharing="all"),
    "google": _GOOGLE,
    "google_groups": dataclasses.replace(_GOOGLE, num_hidden_groups=2, inner_group_num=3),
    "google_more_groups": dataclasses.replace(_GOOGLE, num_hidden_groups=12),
    "google_odd_groups": dataclasses.replace(_GOOGLE, num_hidden_layers=18, num_hidden_groups=14),
    "google_unshared_ffn": dataclasses.replace(_GOOGLE, sharing="attention"),
    "google_wide": dataclasses.replace(_GOOGLE, embedding_size=8, hidden_act="relu"),
    "google_fast": dataclasses.replace(_GOOGLE, hidden_size=16, intermediate_size=32, ffn_groups=16),
    "google_eps": dataclasses.replace(_GOOGLE, layer_norm_eps=1e-6),
    "zh_all": _ZH,
    "zh_attention": dataclasses.replace(_ZH, sharing="attention"),
    "zh_ffn": dataclasses.replace(_ZH, sharing="ffn"),
    "zh_none": dataclasses.replace(_ZH, sharing="none"),
    "zh_preln": dataclasses.replace(_ZH, ln_type="preln"),
    "roberta": dataclasses.replace(
        _BERT, hidden_act="gelu_erf", layer_norm_eps=1e-5, position_offset=2, type_vocab_size=1
    ),
    "veco": _VECO,
    "veco_plugged_out": dataclasses.replace(_VECO, cross_attention=False),
    "veco_decoder": dataclasses.replace(
        _VECO, cross_attention=False, num_decoder_layers=2, type_vocab_size=0, embedding_scale=8**0.5
    ),
    "no_types": dataclasses.replace(
        _BERT, hidden_act="gelu_erf", layer_norm_eps=1e-5, position_offset=2, type_vocab_size=0
    ),
    "ernie_m": dataclasses.replace(
        _BERT, family="ernie_m", hidden_act="gelu_erf", layer_norm_eps=1e-5, position_offset=2, type_vocab_size=0
    ),
    "palm": _PALM,
    "palm_en": dataclasses.replace(_PALM_EN, copy="none"),
    "palm_en_copy": _PALM_EN,
    "palm_additive": dataclasses.replace(_PALM, copy="additive", vocab_padding_multiple=20, num_hidden_layers=2),
    "palm_attention": dataclasses.replace(
        _PALM, copy="attention", type_vocab_size=0, num_hidden_layers=2, num_decoder_layers=3
    ),
    "palm_encoder": dataclasses.replace(_PALM, num_decoder_layers=0),
    "palm_en_additive": dataclasses.replace(
        _PALM_EN, copy="additive", position_offset=2, type_vocab_size=1, num_hidden_layers=1
    ),
    "palm_en_attention": dataclasses.replace(_PALM_EN, copy="attention", num_hidden_layers=1),
    "final_norm": dataclasses.replace(_BERT, ln_type="preln", final_layer_norm=True, type_vocab_size=0),
    "padded": dataclasses.replace(_BERT, num_hidden_layers=2, vocab_padding_multiple=20, position_offset=2),
}


@functools.cache
def shapes(
    graph: str | Config, num_pair_labels: int = 2, num_labels: int = 0, tokens: str = ""
) -> dict[str, tuple[int, ...]]:
    """Shapes of the pretraining model, or with `num_labels` of the classifier, or with `tokens` of such a head."""
    from modeling import LanguageModel, variable_shapes
    from modeling.heads import ClassifierHead, MaskedLMHead, NextTokenHead, PairHead, TokenHead

    config = graph if isinstance(graph, Config) else CONFIGS[graph]
    heads: list[Any] = [MaskedLMHead, *([partial(PairHead, num_labels=num_pair_labels)] if num_pair_labels else [])]
    if num_labels:
        heads = [partial(ClassifierHead, num_labels=num_labels, dropout=0.0)]
    if tokens:
        heads = [partial(TokenHead, name=tokens, num_labels=2 if tokens == "span" else 5, dropout=0.0)]
    if config.num_decoder_layers:
        heads.append(NextTokenHead)
    return variable_shapes(lambda: LanguageModel(config, heads))


def random_tensors(
    graph: str | Config, *, num_pair_labels: int = 2, num_labels: int = 0, tokens: str = "", seed: int = 0
) -> dict[str, np.ndarray]:
    """Every tensor of the pretraining model (or of the classifier, with `num_labels`), none of them symmetric."""
    generator = np.random.default_rng(seed)
    return {
        key: generator.normal(1.0 if key.endswith("gamma") else 0.0, 0.3, shape).astype(np.float32)
        for key, shape in shapes(graph, num_pair_labels, num_labels, tokens).items()
    }


def all_numbers(tensors: Tensors) -> dict[str, np.ndarray]:
    """Read every tensor; one of a damaged file raises `UsageError` here at the latest."""
    return {name: np.asarray(value) for name, value in tensors.items()}


def save_tf1(prefix: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a TF 1 checkpoint by TensorFlow alone."""
    import tensorflow as tf

    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
