"""Write a model as another published graph of equal outputs: albert_zh as BERT or as ALBERT, shared layers as separate.

Source: the TF 1 graphs of BERT, of ALBERT (Lan et al. 2020, section 3.1) and of albert_zh. A model that the target
cannot express is refused with the reason; nothing here approximates.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl.app import UsageError

from conversion.lazy import Array, Tensors, derived, rows
from modeling.config import Config
from modeling.sharing import shared_bricks

_EMBEDDINGS = "backbone/embeddings"
_ROBERTA_OFFSET = 2  # rows of the position table before the first token's: one past its padding id
_ORIGINAL_EPS = 1e-12  # a constant of all three TF 1 codes; their JSON does not have it
_PROJECTION_BIAS = f"{_EMBEDDINGS}/projection/bias"
_BRICK = re.compile(r"backbone/encoder/(attention|feed_forward)_(\d+)/(.*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """The graph of a family: the variable that tells it from others, and its form in transformers.

    Args:
        family: `Config.family`.
        title: for people.
        mark: our name of a variable that no graph before this one in `namings.GRAPHS` has; empty for the last.
        describes: whether a config has the graph's variables.
        transformers: the model_type of transformers, or of our code for it, that keeps what a model of the family
            shares; its blocks may still be none of stock transformers (`has_stock_block`).
    """

    family: str
    title: str
    mark: str
    describes: Callable[[Config], bool]
    transformers: Callable[[Config], str]


def as_bert(config: Config, tensors: Tensors) -> tuple[Config, dict[str, Array]]:
    """Return BERT's graph of equal outputs: projection folded into the word table, shared bricks copied to every layer.

    Raises `UsageError` for pre-LN, a final LayerNorm, grouped feed-forward, no token types, and for Google's ALBERT
    where the embedding is narrower than the model: its LayerNorm comes before the projection.
    """
    _check_block(config, "BERT")
    if _PROJECTION_BIAS in tensors:
        raise UsageError(
            "Google's ALBERT graph cannot be written as BERT: its embedding LayerNorm comes before the projection from "
            f"{config.embedding_size} to {config.hidden_size}; use --model_type=albert"
        )
    bricks = shared_bricks(config)
    untied = _renumbered(_folded(_plain(config, tensors)), bricks)
    return _plain_config(config, family="bert", sharing="none", num_hidden_layers=len(bricks)), untied


def as_roberta(config: Config, tensors: Tensors) -> tuple[Config, dict[str, Array]]:
    """Return RoBERTa's graph of equal outputs: BERT's, but positions keep the two rows before the first token's.

    A model without token types gets one, whose row of zeros adds nothing.

    Raises `UsageError` for what `as_bert` refuses, for positions that do not begin at 2, and for a masked-LM head
    without exact GELU, which transformers' head has whatever the config says.
    """
    if config.position_offset != _ROBERTA_OFFSET:
        raise UsageError(
            f"this model cannot be written as transformers' RoBERTa: its positions begin at {config.position_offset}, "
            f"RoBERTa's at {_ROBERTA_OFFSET}; use --model_type=bert"
        )
    if "masked_lm/output_bias" in tensors and config.hidden_act != "gelu_erf":
        raise UsageError(
            f"this model cannot be written as transformers' RoBERTa: its masked-LM head has {config.hidden_act}, "
            "RoBERTa's always has exact GELU; use --model_type=bert"
        )
    if not config.type_vocab_size and not config.legacy_mask:
        config = dataclasses.replace(config, family="bert", type_vocab_size=1)
        row = np.zeros((1, config.embedding_size), np.float32)
        tensors = {**tensors, f"{_EMBEDDINGS}/token_type_embeddings": row}
    graph, converted = as_bert(config, tensors)
    positions = f"{_EMBEDDINGS}/position_embeddings"
    places = {"max_position_embeddings": config.max_position_embeddings, "position_offset": config.position_offset}
    return dataclasses.replace(graph, **places), {**converted, positions: tensors[positions]}


def as_albert(config: Config, tensors: Tensors) -> tuple[Config, dict[str, Array]]:
    """Return Google's ALBERT graph of equal outputs; albert_zh and BERT get an embedding as wide as the model (E := H).

    Layers stay shared only where all of a layer is shared; otherwise every layer becomes a group of its own. Raises
    `UsageError` for pre-LN, a final LayerNorm, grouped feed-forward and no token types.
    """
    _check_block(config, "ALBERT")
    bricks = shared_bricks(config)
    converted = _plain(config, tensors)
    width = config.embedding_size
    if _PROJECTION_BIAS not in tensors:
        converted, width = _folded(converted), config.hidden_size
    layers, groups, inner = config.num_hidden_layers, config.num_hidden_groups, config.inner_group_num
    # transformers picks the group in floating point, which is off by one for some depths (18 layers in 14 groups).
    same_groups = all(int(i / (layers / groups)) == i * groups // layers for i in range(layers))
    if config.sharing != "all" or groups > layers or not same_groups:
        layers, groups, inner = len(bricks), 1 if len(set(bricks)) == 1 else len(bricks), 1
        converted = _renumbered(converted, bricks[:groups])
    shape = {"num_hidden_layers": layers, "num_hidden_groups": groups, "inner_group_num": inner}
    return _plain_config(config, family="albert", sharing="all", embedding_size=width, **shape), converted


def as_original(
    config: Config, tensors: Tensors, refusals: Callable[[Config], Mapping[str, bool]]
) -> tuple[Config, dict[str, Array]]:
    """Return the model for the TF 1 code of its own family, which does not pad the vocabulary.

    Raises `UsageError` for what that code cannot compute: exact GELU, a final LayerNorm, shifted positions, no token
    types, another epsilon of LayerNorm than its constant, and the `refusals` of the family (reason -> whether it
    holds).
    """
    reasons = {
        "it has only the tanh form of GELU": config.hidden_act == "gelu_erf",
        "it has no final LayerNorm": config.final_layer_norm,
        "it has no offset of positions": config.position_offset != 0,
        "it always has token types": config.type_vocab_size == 0,
        "its layers all have the same heads and units": bool(config.heads_by_brick or config.units_by_brick),
        f"it adds {_ORIGINAL_EPS:g} in a LayerNorm, not {config.layer_norm_eps:g}": config.layer_norm_eps
        != _ORIGINAL_EPS,
        **refusals(config),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(f"this model cannot be written for the original TF 1 code of {config.family}: {reason}")
    return dataclasses.replace(config, vocab_padding_multiple=1), without_padding(config, tensors)


def has_stock_block(config: Config) -> bool:
    """Return whether a block is one that stock transformers has."""
    return not any(_block_refusals(config).values())


def _block_refusals(config: Config) -> dict[str, bool]:
    return {
        "its layers are pre-LN, and stock transformers has only post-LN": config.ln_type != "postln",
        "it has a final LayerNorm": config.final_layer_norm,
        f"its feed-forward is split in {config.ffn_groups} groups (google_fast)": config.ffn_groups != 1,
        "its mask hides the first token and reads padding (legacy_mask)": config.legacy_mask,
        "it has no token types": config.type_vocab_size == 0,
        f"its word vectors are multiplied by {config.embedding_scale:g}": config.embedding_scale != 1.0,
        "its layers have different numbers of heads or units": bool(config.heads_by_brick or config.units_by_brick),
    }


def _check_block(config: Config, target: str) -> None:
    for reason, holds in _block_refusals(config).items():
        if holds:
            raise UsageError(
                f"this model cannot be written as transformers' {target}: {reason}; use --model_type=auto, which "
                "writes code of ours where transformers has no class"
            )


def _plain_config(config: Config, **changes: Any) -> Config:
    """Return the config without what `_plain` and `_folded` took out of the tensors."""
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


def _plain(config: Config, tensors: Tensors) -> dict[str, Array]:
    """Return the tensors without padded rows of the vocabulary and without positions before the first token's."""
    converted = without_padding(config, tensors)
    positions = f"{_EMBEDDINGS}/position_embeddings"
    converted[positions] = rows(converted[positions], config.position_offset)
    return converted


def without_padding(config: Config, tensors: Tensors) -> dict[str, Array]:
    """Return the tensors without padded rows of the vocabulary."""
    converted = dict(tensors)
    for name in (f"{_EMBEDDINGS}/word_embeddings", "masked_lm/output_bias"):
        if name in converted:
            converted[name] = rows(converted[name], 0, config.vocab_size)
    return converted


def _product(table_VE: np.ndarray, kernel_ED: np.ndarray) -> np.ndarray:
    return (table_VE.astype(np.float64) @ kernel_ED.astype(np.float64)).astype(np.float32)


def _folded(tensors: Tensors) -> dict[str, Array]:
    """Multiply word table and projection into one table [V, D], for a projection before the sum with positions.

    albert_zh's has no bias, so that the product computes the same.
    """
    converted = dict(tensors)
    kernel = converted.pop(f"{_EMBEDDINGS}/projection/kernel", None)
    if kernel is not None:
        table = f"{_EMBEDDINGS}/word_embeddings"
        shape = (converted[table].shape[0], kernel.shape[1])
        converted[table] = derived(shape, _product, converted[table], kernel)
    return converted


def _renumbered(tensors: Tensors, bricks: Sequence[tuple[int, int]]) -> dict[str, Array]:
    """Number bricks in order of use, with copies where several layers use one.

    Args:
        tensors: by our names.
        bricks: for every block the former numbers of its attention and its feed-forward.
    """
    converted = {name: value for name, value in tensors.items() if not _BRICK.fullmatch(name)}
    for name, value in tensors.items():
        match = _BRICK.fullmatch(name)
        if match is not None:
            side = 0 if match[1] == "attention" else 1
            for new, old in enumerate(bricks):
                if old[side] == int(match[2]):
                    converted[f"backbone/encoder/{match[1]}_{new}/{match[3]}"] = value
    return converted
