"""Names of AliceMind's PALM (Bi et al. 2020) and PLUG in PyTorch: the Chinese graph and the English one.

The Chinese code joins query, key and value of the encoder in one matrix and, in PLUG's files for classification, does
not. The English one is PreSumm's decoder on an encoder of transformers; its tables of positions and masks are computed
here.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from absl.app import UsageError

from conversion.graphs import Graph
from conversion.lazy import Array, Tensors
from conversion.namings import divan
from conversion.namings.dialects import (
    ATTENTION,
    BERT_KEYS,
    FEED_FORWARD,
    Row,
    bert_block,
    embeddings,
    query_key_value,
    torch_name,
    torch_rules,
)
from conversion.remote import CONFIG_KEYS, RemoteCode
from conversion.rules import Naming, Rule
from conversion.tokenizer_files import ALBERT_PIECES, WORDPIECE, XLMR_PIECES
from modeling.config import Config

_DECODER = "backbone/decoder"
_SELF, _CROSS = f"{_DECODER}/attention_{{k}}", f"{_DECODER}/cross_attention_{{k}}"
_INNER = f"{_DECODER}/feed_forward_{{k}}"


MODEL_TYPE = "divan_palm"
_FAMILIES = ("palm", "palm_en")


def _own_code(config: Config) -> str:
    return MODEL_TYPE if config.num_decoder_layers else divan.MODEL_TYPE


GRAPH = Graph(
    family="palm",
    title="PALM graph (one word table for encoder and decoder)",
    mark=_SELF.format(k=0) + "/query/kernel",
    describes=lambda config: config.family == "palm" and config.num_decoder_layers > 0,
    transformers=_own_code,
)
ENGLISH_GRAPH = Graph(
    family="palm_en",
    title="English PALM graph (target_embeddings)",
    mark="backbone/target_embeddings/word_embeddings",
    describes=lambda config: config.family == "palm_en" and config.num_decoder_layers > 0,
    transformers=_own_code,
)


def _as_released(
    config: Config, tensors: Tensors, refusals: Callable[[Config], Mapping[str, bool]]
) -> tuple[Config, dict[str, Array]]:
    """Return the model unchanged; raise `UsageError` for what the releases have no names for, or another graph."""
    reasons = {
        "it has no decoder": config.num_decoder_layers == 0,
        f"it is of the family {config.family}": config.family not in _FAMILIES,
        "its layers are shared": config.sharing != "none",
        "its layers are groups of blocks": config.inner_group_num != 1,
        f"its feed-forward is split in {config.ffn_groups} groups": config.ffn_groups != 1,
        **refusals(config),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(f"this model cannot be written under PALM's names: {reason}; --format=ours can hold it")
    return config, dict(tensors)


_EXPORT: Mapping[str, Any] = {
    "config_keys": CONFIG_KEYS,
    "config_constants": {
        "pad_token_id": 0,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "classifier_dropout": 0.1,
    },
    "model_type": MODEL_TYPE,
    "class_prefix": "DivanPalm",
    "vocabularies": (WORDPIECE, ALBERT_PIECES, XLMR_PIECES),
    "code": RemoteCode(
        configuration="configuration_divan_palm",
        modeling="modeling_divan_palm",
        prefix="DivanPalm",
        classes={
            "AutoModel": "Model",
            "AutoModelForSeq2SeqLM": "ForConditionalGeneration",
            "AutoModelForSequenceClassification": "ForSequenceClassification",
        },
    ),
    "generates": True,
}


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
        "its layers are shared": config.sharing != "none" or config.inner_group_num != 1,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(f"this model cannot be written for PLUG's released code: {reason}")


def _additive(theirs: str) -> list[Row]:
    """Return the rows of the paper's attention for copying, which no release has."""
    return [
        ("matrix", "copy/memory", f"{theirs}.memory"),
        ("dense", "copy/state", f"{theirs}.state"),
        ("matrix", "copy/score", f"{theirs}.score"),
    ]


def _heads(bias: str) -> list[Row]:
    """Return the rows of the Chinese release's heads, whose output bias is of the kind `bias`; the English has none."""
    return [
        ("dense", "masked_lm/transform", "cls.predictions.transform.dense"),
        ("norm", "masked_lm/layer_norm", "cls.predictions.transform.LayerNorm"),
        (bias, "masked_lm/output_bias", "cls.predictions.bias"),
        ("dense", "sentence_pair", "cls.seq_relationship"),
        ("dense", "classifier", "classification_head/cls"),
    ]


_LAYER, _DECODER_LAYER = "bert.encoder.layer.{k}", "decoder.decoder.layer.{k}"


def _chinese(name: str, detect: tuple[str, ...], encoder: list[Rule], export: Mapping[str, Any]) -> Naming:
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
            *_heads("cut_bias"),
            ("dense", "copy/gate", "copy.gate"),
            *_additive("copy.attention"),
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
        rewrite=functools.partial(_as_released, refusals=lambda config: {"it is English": config.family != "palm"}),
        describe=_plug_config,
        **export,
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


def _english(name: str, generator: str, copy: Mapping[str, str], heads: tuple[Row, ...] = ()) -> Naming:
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
                *_heads("bias"),
                *heads,
            ]
        ),
        canonical=_english_name,
        backbone=("bert.", "decoder.", f"{generator}."),
        ties={f"{generator}.weight": "decoder.embeddings.weight"},
        implies=lambda tensors: copy,
        rewrite=functools.partial(
            _as_released,
            refusals=lambda config: {
                "it is Chinese": config.family != "palm_en",
                "its encoder has a final LayerNorm": config.final_layer_norm,
            },
        ),
        **_EXPORT,
    )


NAMINGS = (
    _chinese(
        "palm",
        (r"(^|\.)encoder\.layer\.\d+\.attention\.self\.query_key_value\.",),
        _joined(ATTENTION, ("query", "key", "value"), f"{_LAYER}.attention.self.query_key_value"),
        _EXPORT,
    ),
    _chinese(
        "plug_nlu",
        (r"(^|\.)encoder\.layer\.\d+\.attention\.self\.query\.", r"(^|\.)encoder\.layer\.\d+\.attention\.LayerNorm\."),
        list(torch_rules(query_key_value(ATTENTION, f"{_LAYER}.attention.self.", kind="column"))),
        {"config_keys": ()},
    ),
    _english("palm_en", "generator.0", {"copy": "none"}),
    # Names do not tell what kind of copying it is: the release's config says p_gen, ours says all.
    _english(
        "palm_en_copy",
        "generator.gen_proj",
        {},
        (("dense", "copy/gate", "generator.prob_proj"), *_additive("generator.attention")),
    ),
)
