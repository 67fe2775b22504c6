"""Names of AliceMind's PALM (Bi et al. 2020) and PLUG in PyTorch: the Chinese graph and the English one.

The Chinese code joins query, key and value of the encoder in one matrix and, in PLUG's files for classification, does
not. The English one is PreSumm's decoder on an encoder of transformers; its tables of positions and masks are computed
here.
"""

import re
from typing import Any

from absl.app import UsageError

from conversion.graphs import Graph, as_it_is
from conversion.namings.dialects import (
    ATTENTION,
    BERT_KEYS,
    FEED_FORWARD,
    bert_block,
    embeddings,
    query_key_value,
    torch_name,
    torch_rules,
)
from conversion.rules import Naming, Rule
from modeling.config import Config

_DECODER = "backbone/decoder"
_SELF, _CROSS = f"{_DECODER}/attention_{{k}}", f"{_DECODER}/cross_attention_{{k}}"
_INNER = f"{_DECODER}/feed_forward_{{k}}"


def _no_class(config: Config) -> str:
    raise UsageError("transformers has no class for PALM: only --format=ours can hold it")


GRAPH = Graph(
    family="palm",
    title="PALM graph (one word table for encoder and decoder)",
    mark=_SELF.format(k=0) + "/query/kernel",
    describes=lambda config: config.family == "palm" and config.num_decoder_layers > 0,
    transformers=_no_class,
)
ENGLISH_GRAPH = Graph(
    family="palm_en",
    title="English PALM graph (target_embeddings)",
    mark="backbone/target_embeddings/word_embeddings",
    describes=lambda config: config.family == "palm_en" and config.num_decoder_layers > 0,
    transformers=_no_class,
)


def _joined(ours: str, roles: tuple[str, ...], theirs: str) -> list[Rule]:
    """Return the rules of projections that are one matrix there: [D, D] each, joined to [n D, D]."""
    kernels, biases = ([f"{ours}/{role}/{part}" for role in roles] for part in ("kernel", "bias"))
    return [
        Rule(tuple(kernels), f"{theirs}.weight", transposed=True, joined_axis=1, cut_axis=0),
        Rule(tuple(biases), f"{theirs}.bias", joined_axis=0, cut_axis=0),
    ]


def _plug_config(config: Config) -> dict[str, Any]:
    """Return SOFA's configuration of PLUG."""
    _check_released(config)
    kept = {name: getattr(config, name) for name in BERT_KEYS}
    return kept | {
        "hidden_act": "gelu",
        "layernorm_epsilon": config.layer_norm_eps,
        "dec_hidden_layers": config.num_decoder_layers,
        "pre_ln": True,
        "attn_separate": False,
        "model_type": "plugNLG",
    }


def _check_released(config: Config) -> None:
    reasons = {
        f"its activation is {config.hidden_act}, theirs is exact GELU": config.hidden_act != "gelu_erf",
        "it is post-LN": config.ln_type != "preln" or not config.final_layer_norm,
        f"it copies ({config.copy})": config.copy != "none",
    }
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(f"this model cannot be written for PLUG's released code: {reason}")


_LAYER, _DECODER_LAYER = "bert.encoder.layer.{k}", "decoder.decoder.layer.{k}"


def _chinese(name: str, detect: tuple[str, ...], encoder: list[Rule]) -> Naming:
    rows = torch_rules(
        [
            *embeddings("bert.embeddings.", words="cut_table"),
            ("row", f"{ATTENTION}/output", f"{_LAYER}.attention.output.dense"),
            ("norm", f"{ATTENTION}/layer_norm", f"{_LAYER}.attention.LayerNorm"),
            ("column", f"{FEED_FORWARD}/intermediate", f"{_LAYER}.intermediate.dense"),
            ("row", f"{FEED_FORWARD}/output", f"{_LAYER}.output.dense"),
            ("norm", f"{FEED_FORWARD}/layer_norm", f"{_LAYER}.LayerNorm"),
            ("norm", "backbone/encoder/layer_norm", "bert.encoder.LayerNorm"),
            ("dense", "backbone/pooler", "bert.pooler.dense"),
            ("row", f"{_SELF}/output", f"{_DECODER_LAYER}.attention.dense"),
            ("norm", f"{_SELF}/layer_norm", f"{_DECODER_LAYER}.input_layernorm"),
            ("column", f"{_CROSS}/query", f"{_DECODER_LAYER}.cross_attention.query"),
            ("row", f"{_CROSS}/output", f"{_DECODER_LAYER}.cross_attention.dense"),
            ("norm", f"{_CROSS}/layer_norm", f"{_DECODER_LAYER}.post_attention_layernorm"),
            ("column", f"{_INNER}/intermediate", f"{_DECODER_LAYER}.intermediate"),
            ("row", f"{_INNER}/output", f"{_DECODER_LAYER}.output"),
            ("norm", f"{_INNER}/layer_norm", f"{_DECODER_LAYER}.post_cross_attention_layernorm"),
            ("norm", f"{_DECODER}/layer_norm", "decoder.decoder.final_layernorm"),
            ("dense", "masked_lm/transform", "cls.predictions.transform.dense"),
            ("norm", "masked_lm/layer_norm", "cls.predictions.transform.LayerNorm"),
            ("cut_bias", "masked_lm/output_bias", "cls.predictions.bias"),
            ("dense", "sentence_pair", "cls.seq_relationship"),
            ("dense", "classifier", "classification_head/cls"),
        ]
    )
    decoder = [
        *_joined(_SELF, ("query", "key", "value"), f"{_DECODER_LAYER}.attention.query_key_value"),
        *_joined(_CROSS, ("key", "value"), f"{_DECODER_LAYER}.cross_attention.key_value"),
    ]
    return Naming(
        name=name,
        family="palm",
        container="palm",
        detect=detect,
        rules=(*rows, *encoder, *decoder),
        canonical=torch_name("bert"),
        backbone=("bert.", "decoder."),
        ties={"cls.predictions.decoder_weight": "bert.embeddings.word_embeddings.weight"},
        implies=lambda tensors: {"copy": "none"},
        rewrite=as_it_is,
        config_keys=(),
        describe=_plug_config,
    )


_ENGLISH_LAYER = "decoder.transformer_layers.{k}"
_ENGLISH_ROLES = (
    ("query", "linear_query"),
    ("key", "linear_keys"),
    ("value", "linear_values"),
    ("output", "final_linear"),
)


def _english_name(name: str) -> str | None:
    """Spell a name of the English release; None for the tables that are computed."""
    name = name.removeprefix("module.").removeprefix("palm.")
    return None if name.endswith((".mask", ".pos_emb.pe", "embeddings.position_ids")) else name


def _english(name: str, generator: str, copy: str, heads: tuple[tuple[str, str, str], ...] = ()) -> Naming:
    encoder = "bert.model.encoder.layer.{k}"
    return Naming(
        name=name,
        family="palm_en",
        container="palm",
        detect=(r"decoder\.transformer_layers\.\d+\.context_attn\.", rf"(^|\.){re.escape(generator)}\."),
        rules=torch_rules(
            [
                *embeddings("bert.model.embeddings."),
                *bert_block(".", f"{encoder}.attention", f"{encoder}.intermediate", f"{encoder}.output"),
                ("dense", "backbone/pooler", "bert.model.pooler.dense"),
                ("table", "backbone/target_embeddings/word_embeddings", "decoder.embeddings"),
                ("bias", "backbone/target_embeddings/output_bias", f"{generator}.bias"),
                *(("dense", f"{_SELF}/{o}", f"{_ENGLISH_LAYER}.self_attn.{t}") for o, t in _ENGLISH_ROLES),
                *(("dense", f"{_CROSS}/{o}", f"{_ENGLISH_LAYER}.context_attn.{t}") for o, t in _ENGLISH_ROLES),
                ("norm", f"{_SELF}/layer_norm", f"{_ENGLISH_LAYER}.layer_norm_1"),
                ("norm", f"{_CROSS}/layer_norm", f"{_ENGLISH_LAYER}.layer_norm_2"),
                ("dense", f"{_INNER}/intermediate", f"{_ENGLISH_LAYER}.feed_forward.w_1"),
                ("dense", f"{_INNER}/output", f"{_ENGLISH_LAYER}.feed_forward.w_2"),
                ("norm", f"{_INNER}/layer_norm", f"{_ENGLISH_LAYER}.feed_forward.layer_norm"),
                ("norm", f"{_DECODER}/layer_norm", "decoder.layer_norm"),
                *heads,
            ]
        ),
        canonical=_english_name,
        backbone=("bert.", "decoder.", f"{generator}."),
        ties={f"{generator}.weight": "decoder.embeddings.weight"},
        implies=lambda tensors: {"copy": copy},
        rewrite=as_it_is,
        config_keys=(),
    )


NAMINGS = (
    _chinese(
        "palm",
        (r"(^|\.)encoder\.layer\.\d+\.attention\.self\.query_key_value\.",),
        _joined(ATTENTION, ("query", "key", "value"), f"{_LAYER}.attention.self.query_key_value"),
    ),
    _chinese(
        "plug_nlu",
        (r"(^|\.)encoder\.layer\.\d+\.attention\.self\.query\.", r"(^|\.)encoder\.layer\.\d+\.attention\.LayerNorm\."),
        list(torch_rules(query_key_value(ATTENTION, f"{_LAYER}.attention.self.", kind="column"))),
    ),
    _english("palm_en", "generator.0", "none"),
    _english(
        "palm_en_copy", "generator.gen_proj", "legacy_attention", (("dense", "copy/gate", "generator.prob_proj"),)
    ),
)
