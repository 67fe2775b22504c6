"""Names of transformers' BART (Lewis et al. 2020): the graph of a VECO (Luo et al. 2021) that generates.

fairseq, where BART comes from, names the modules alike, so that its VECO (veco.py) takes its rows from here. What VECO
has and BART has not is the row of token types and the pooler, which no text depends on.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl.app import UsageError

from conversion.graphs import without_padding
from conversion.lazy import Array, Tensors, derived
from conversion.namings.dialects import ATTENTION, FEED_FORWARD, Row, torch_rules, transformers_activation
from conversion.rules import Naming
from conversion.tokenizer_files import XLMR_PIECES
from modeling import bart
from modeling.config import Config

_EMBEDDINGS, _OF_TARGET, _DECODER = "backbone/embeddings", "backbone/target_embeddings", "backbone/decoder"
_SPECIALS = 3  # <s>, <pad> and </s>, the first ids of XLM-R's vocabularies


def _attention(ours: str, theirs: str, norm: str) -> list[Row]:
    roles = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    return [
        *(("dense", f"{ours}/{role}", f"{theirs}.{name}") for role, name in roles.items()),
        ("norm", f"{ours}/layer_norm", norm),
    ]


def _feed_forward(ours: str, layer: str) -> list[Row]:
    return [
        ("dense", f"{ours}/intermediate", f"{layer}.fc1"),
        ("dense", f"{ours}/output", f"{layer}.fc2"),
        ("norm", f"{ours}/layer_norm", f"{layer}.final_layer_norm"),
    ]


def _embeddings(ours: str, stack: str) -> list[Row]:
    return [
        ("table", f"{ours}/position_embeddings", f"{stack}.embed_positions"),
        ("norm", f"{ours}/layer_norm", f"{stack}.layernorm_embedding"),
    ]


def rows(prefix: str, words: str) -> list[Row]:
    """Return the rows of an encoder and a decoder whose modules are below `prefix`, and of their table of words."""
    encoder, decoder = f"{prefix}encoder", f"{prefix}decoder"
    layer, target = f"{encoder}.layers.{{k}}", f"{decoder}.layers.{{k}}"
    own, cross = f"{_DECODER}/attention_{{k}}", f"{_DECODER}/cross_attention_{{k}}"
    return [
        ("table", f"{_EMBEDDINGS}/word_embeddings", words),
        *_embeddings(_EMBEDDINGS, encoder),
        *_attention(ATTENTION, f"{layer}.self_attn", f"{layer}.self_attn_layer_norm"),
        *_feed_forward(FEED_FORWARD, layer),
        *_embeddings(_OF_TARGET, decoder),
        *_attention(own, f"{target}.self_attn", f"{target}.self_attn_layer_norm"),
        *_attention(cross, f"{target}.encoder_attn", f"{target}.encoder_attn_layer_norm"),
        *_feed_forward(f"{_DECODER}/feed_forward_{{k}}", target),
    ]


def _refusals(config: Config) -> dict[str, bool]:
    root = bart.scale(config.hidden_size)
    return {
        f"it is of the family {config.family}": config.family != "veco",
        "it has no decoder": config.num_decoder_layers == 0,
        "its layers are shared": config.sharing != "none" or config.inner_group_num != 1,
        "its layers are pre-LN": config.ln_type != "postln",
        "it has a final LayerNorm": config.final_layer_norm,
        f"its feed-forward is split in {config.ffn_groups} groups": config.ffn_groups != 1,
        f"it copies words of the source ({config.copy})": config.copy != "none",
        f"it adds {config.layer_norm_eps:g} in a LayerNorm, BART {bart.EPS:g}": config.layer_norm_eps != bart.EPS,
        f"its positions begin at {config.position_offset}, BART's at {bart.OFFSET}": config.position_offset
        != bart.OFFSET,
        f"its word vectors are multiplied by {config.embedding_scale:g}, BART's by 1 or the root of the width, "
        f"{root:g}": not any(np.float32(config.embedding_scale) == np.float32(scale) for scale in (1.0, root)),
        f"its vocabulary of {config.vocab_size} has no <s>, <pad> and </s>": config.vocab_size < _SPECIALS,
    }


def _as_bart(config: Config, tensors: Tensors) -> tuple[Config, dict[str, Array]]:
    """Return the model with its row of token types added to the positions of either side, and without a pooler.

    The sums are those that the model computes first, so that all outputs keep their bits. What is read back has no
    token types (`type_vocab_size` 0) and no pooler, and is from there on the same model, bit for bit.

    Raises `UsageError` for what BART does not compute.
    """
    for reason, holds in _refusals(config).items():
        if holds:
            raise UsageError(f"this model cannot be written as transformers' BART: {reason}; --format=ours can hold it")
    converted = {
        name: value
        for name, value in without_padding(config, tensors).items()
        if not name.startswith("backbone/pooler/")
    }
    for embeddings in (_EMBEDDINGS, _OF_TARGET):
        types, positions = f"{embeddings}/token_type_embeddings", f"{embeddings}/position_embeddings"
        if types in converted:
            table_PD, row_1D = converted[positions], converted.pop(types)
            converted[positions] = derived(table_PD.shape, lambda table_PD, row_1D: table_PD + row_1D, table_PD, row_1D)
    decoder = config.decoder
    graph = dataclasses.replace(
        config,
        type_vocab_size=0,
        vocab_padding_multiple=1,
        num_hidden_groups=1,
        embedding_scale=1.0 if config.embedding_scale == 1.0 else bart.scale(config.hidden_size),
        decoder_attention_heads=bart.own_or_shared(decoder.num_attention_heads, config.num_attention_heads),
        decoder_intermediate_size=bart.own_or_shared(decoder.intermediate_size, config.intermediate_size),
    )
    return graph, converted


def _described(config: Config) -> Mapping[str, Any]:
    """Return BART's JSON of a model."""
    decoder = config.decoder
    own = {
        "decoder_attention_heads": decoder.num_attention_heads,
        "decoder_intermediate_size": decoder.intermediate_size,
    }
    return {
        **{theirs: own.get(ours, getattr(config, ours)) for ours, theirs in bart.FIELDS.items()},
        bart.ACTIVATION: transformers_activation(config),
        bart.POSITIONS: config.max_sequence_length,
        bart.SCALED: config.embedding_scale != 1.0,
        bart.DEVIATION: config.initializer_range,
    }


def _name(name: str) -> str | None:
    """Spell a name as the model with a head for words does; None for what old files keep beside weights."""
    name = name.removeprefix("module.")
    if name.startswith(("encoder.", "decoder.", "shared.")):
        name = f"model.{name}"
    return None if name.endswith(".version") else name


_WORDS = "model.shared"
NAMINGS = (
    Naming(
        name="transformers_bart",
        family="veco",
        container="transformers",
        detect=(r"(^|\.)shared\.weight$", r"(^|\.)decoder\.layers\.\d+\.encoder_attn_layer_norm\."),
        rules=torch_rules(rows("model.", _WORDS)),
        canonical=_name,
        backbone=("model.",),
        ties={
            f"{other}.weight": f"{_WORDS}.weight"
            for other in ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
        },
        zeros={"final_logits_bias": lambda config: (1, config.vocab_size)},
        rewrite=_as_bart,
        config_keys=(),
        describe=_described,
        config_constants={
            "is_encoder_decoder": True,
            "tie_word_embeddings": True,
            "activation_dropout": 0.0,
            "classifier_dropout": 0.1,
            "forced_eos_token_id": None,  # by default BART ends every text with </s>, whatever it finds most likely
            "dtype": "float32",
        },
        model_type=bart.MODEL_TYPE,
        class_prefix="Bart",
        vocabularies=(XLMR_PIECES,),
        generates=True,
    ),
)
