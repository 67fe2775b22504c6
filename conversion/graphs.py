"""The same function written as another published graph: albert_zh as BERT or as ALBERT, shared layers as separate.

Source: the TF 1 graphs of BERT, of ALBERT (Lan et al. 2020, section 3.1) and of albert_zh. What cannot be written as
the target is refused with the reason; nothing here approximates.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl.app import UsageError

from modeling.config import Config
from modeling.sharing import shared_bricks

Tensors = dict[str, np.ndarray]

_EMBEDDINGS = "backbone/embeddings"
_BRICK = re.compile(r"backbone/encoder/(attention|feed_forward)_(\d+)/(.*)")


def as_bert(config: Config, tensors: Mapping[str, np.ndarray]) -> tuple[Config, Tensors]:
    """The BERT graph of equal outputs: projection folded into the word table, shared bricks copied into every layer.

    Raises `UsageError` for pre-LN, a final LayerNorm, grouped feed-forward, no token types, and for Google's ALBERT
    where the embedding is narrower than the model: its LayerNorm comes before the projection.
    """
    _check_block(config, "BERT")
    if config.family == "albert" and config.embedding_size != config.hidden_size:
        raise UsageError(
            "Google's ALBERT graph cannot be written as BERT: its embedding LayerNorm comes before the projection from "
            f"{config.embedding_size} to {config.hidden_size}; use --model_type=albert"
        )
    bricks = shared_bricks(config)
    converted = _folded(config, _plain(config, tensors))
    untied = _renumbered(converted, bricks)
    return _plain_config(config, family="bert", sharing="none", num_hidden_layers=len(bricks)), untied


def as_albert(config: Config, tensors: Mapping[str, np.ndarray]) -> tuple[Config, Tensors]:
    """Google's ALBERT graph of equal outputs; for albert_zh and BERT with an embedding as wide as the model (E := H).

    What is shared stays shared only where all of a layer is; otherwise every layer becomes a group of its own. Raises
    `UsageError` for pre-LN, a final LayerNorm, grouped feed-forward and no token types.
    """
    _check_block(config, "ALBERT")
    bricks = shared_bricks(config)
    converted = _plain(config, tensors)
    if config.family == "albert":
        width = config.embedding_size
    else:
        converted, width = _folded(config, converted), config.hidden_size
    layers, groups, inner = config.num_hidden_layers, config.num_hidden_groups, config.inner_group_num
    # transformers picks the group in floating point, which is off by one for some depths (18 layers in 14 groups).
    same_groups = all(int(i / (layers / groups)) == i * groups // layers for i in range(layers))
    if config.family != "albert" or config.sharing != "all" or groups > layers or not same_groups:
        layers, groups, inner = len(bricks), 1 if len(set(bricks)) == 1 else len(bricks), 1
        converted = _renumbered(converted, bricks[:groups])
    shape = {"num_hidden_layers": layers, "num_hidden_groups": groups, "inner_group_num": inner}
    return _plain_config(config, family="albert", sharing="all", embedding_size=width, **shape), converted


def _check_block(config: Config, target: str) -> None:
    reasons = {
        "its layers are pre-LN, and stock transformers has only post-LN": config.ln_type != "postln",
        "it has a final LayerNorm": config.final_layer_norm,
        f"its feed-forward is split in {config.ffn_groups} groups (google_fast)": config.ffn_groups != 1,
        "it has no token types": config.type_vocab_size == 0,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(f"this model cannot be written as transformers' {target}: {reason}")


def _plain_config(config: Config, **changes: Any) -> Config:
    """The config without what `_plain` and `_folded` took out of the tensors."""
    values: dict[str, Any] = dataclasses.asdict(config) | {
        "embedding_size": config.hidden_size,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
        "max_position_embeddings": config.max_sequence_length,
        "position_offset": 0,
        "projects_equal_widths": False,
        "vocab_padding_multiple": 1,
    }
    return Config(**(values | changes))


def _plain(config: Config, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Without the padded rows of the vocabulary and the positions before the first token's."""
    converted = dict(tensors)
    for name in (f"{_EMBEDDINGS}/word_embeddings", "masked_lm/output_bias"):
        if name in converted:
            converted[name] = converted[name][: config.vocab_size]
    positions = f"{_EMBEDDINGS}/position_embeddings"
    converted[positions] = converted[positions][config.position_offset :]
    return converted


def _folded(config: Config, tensors: Tensors) -> Tensors:
    """albert_zh projects before the sum with positions and without a bias: the product of both is a table [V, D]."""
    converted = dict(tensors)
    kernel = converted.pop(f"{_EMBEDDINGS}/projection/kernel", None)
    if kernel is not None:
        table = f"{_EMBEDDINGS}/word_embeddings"
        converted[table] = (converted[table].astype(np.float64) @ kernel.astype(np.float64)).astype(np.float32)
    return converted


def _renumbered(tensors: Tensors, bricks: Sequence[tuple[int, int]]) -> Tensors:
    """Bricks in order of use, copied where several layers use one; `bricks` are the old (attention, feed-forward)."""
    converted = {name: value for name, value in tensors.items() if not _BRICK.fullmatch(name)}
    for name, value in tensors.items():
        match = _BRICK.fullmatch(name)
        if match is not None:
            side = 0 if match[1] == "attention" else 1
            for new, old in enumerate(bricks):
                if old[side] == int(match[2]):
                    converted[f"backbone/encoder/{match[1]}_{new}/{match[3]}"] = value
    return converted
