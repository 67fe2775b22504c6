"""Small configurations and inputs that the model tests share; importable as is (also by subprocesses on JAX)."""

import dataclasses
from typing import Any

import numpy as np

from modeling import Config

SMALL: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "initializer_range": 0.2,
}
BERT = Config(family="bert", **SMALL)
ALBERT = Config(family="albert", sharing="all", embedding_size=8, **SMALL)
ALBERT_ZH = dataclasses.replace(ALBERT, family="albert_zh")
CONFIGS = {
    "bert": BERT,
    "bert_erf_offset_no_types": dataclasses.replace(
        BERT, hidden_act="gelu_erf", position_offset=2, type_vocab_size=0, max_position_embeddings=14
    ),
    "bert_preln_final": dataclasses.replace(BERT, ln_type="preln", final_layer_norm=True),
    "albert": dataclasses.replace(ALBERT, vocab_padding_multiple=8),
    "albert_groups": dataclasses.replace(
        ALBERT, hidden_act="relu", num_hidden_layers=4, num_hidden_groups=2, inner_group_num=2
    ),
    "albert_zh": ALBERT_ZH,
    "albert_zh_preln": dataclasses.replace(ALBERT_ZH, ln_type="preln"),
    "albert_zh_equal_widths": dataclasses.replace(ALBERT_ZH, embedding_size=16, projects_equal_widths=True),
    "albert_zh_share_attention": dataclasses.replace(ALBERT_ZH, sharing="attention"),
    "google_fast": dataclasses.replace(ALBERT, sharing="none", hidden_act="swish", ffn_groups=4),
}

_PALM = dataclasses.replace(
    BERT,
    family="palm",
    hidden_act="gelu_erf",
    ln_type="preln",
    final_layer_norm=True,
    type_vocab_size=3,
    num_hidden_layers=2,
    num_decoder_layers=2,
)
_PALM_EN = dataclasses.replace(
    BERT,
    family="palm_en",
    num_hidden_layers=2,
    position_offset=2,
    num_decoder_layers=2,
    decoder_attention_heads=4,
    decoder_intermediate_size=12,
)
PALM_CONFIGS = {
    "palm": _PALM,
    "palm_padded_copy": dataclasses.replace(_PALM, vocab_padding_multiple=8, copy="attention"),
    "palm_additive": dataclasses.replace(_PALM, copy="additive", num_decoder_layers=1),
    "palm_en": _PALM_EN,
    "palm_en_copy": dataclasses.replace(_PALM_EN, copy="legacy_attention", num_decoder_layers=1),
    "palm_en_additive": dataclasses.replace(_PALM_EN, copy="additive"),
}

VECO = dataclasses.replace(
    BERT,
    family="veco",
    hidden_act="gelu_erf",
    layer_norm_eps=1e-5,
    position_offset=2,
    type_vocab_size=1,
    max_position_embeddings=14,
    num_hidden_layers=2,
    cross_attention=True,
)
VECO_DECODER = dataclasses.replace(
    VECO, cross_attention=False, type_vocab_size=0, num_decoder_layers=1, embedding_scale=4.0
)


def without_dropout(config: Config) -> Config:
    return dataclasses.replace(config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def features(seed: int = 0, batch: int = 3, length: int = 9, real: int = 6) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int32)
    mask[1:, real:] = 0
    return {
        "input_ids": generator.integers(0, 37, (batch, length), dtype=np.int32),
        "input_mask": mask,
        "segment_ids": generator.integers(0, 2, (batch, length), dtype=np.int32),
        "masked_lm_positions": generator.integers(0, real, (batch, 4), dtype=np.int32),
    }


def two_sides(seed: int = 0) -> dict[str, np.ndarray]:
    """Two texts of equal length, the first row of each whole, of the others 6 tokens of the one and 4 of the other."""
    sides = (("", features(seed)), ("other_", features(seed + 1, real=4)))
    return {prefix + name: side[name] for prefix, side in sides for name in ("input_ids", "input_mask")}
