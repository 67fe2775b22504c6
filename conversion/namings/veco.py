"""Names of VECO (Luo et al. 2021): XLM-R's in transformers with cross-attention, and those of AliceMind's fairseq.

transformers' XLM-R opens what is written under the first, and has no use for the cross-attention. The internal spelling
`cross_attention` is read too. fairseq's files are of models that generate: encoder and decoder have positions of their
own, the words are one table. Nothing is written under its names: a model that generates is written as transformers'
BART (bart.py).
"""

import dataclasses
import re
from collections.abc import Mapping

from absl.app import UsageError

from conversion.graphs import Graph, as_roberta, has_stock_block
from conversion.lazy import Array, Tensors
from conversion.namings import bart, roberta
from conversion.namings.dialects import Row, query_key_value, torch_rules
from conversion.rules import Naming
from modeling.bart import MODEL_TYPE
from modeling.config import Config

_CROSS = "backbone/encoder/cross_attention_{k}"


def _transformers(config: Config) -> str:
    if config.num_decoder_layers:
        return MODEL_TYPE
    plain = not config.cross_attention and has_stock_block(config)
    return "roberta" if plain else "xlm-roberta"


GRAPH = Graph(
    family="veco",
    title="VECO graph (cross_attention in the encoder)",
    mark=_CROSS.format(k=0) + "/query/kernel",
    describes=lambda config: config.cross_attention,
    transformers=_transformers,
)
GENERATING_GRAPH = Graph(
    family="veco",
    title="VECO graph with a decoder (target_embeddings of positions alone)",
    mark="backbone/target_embeddings/position_embeddings",
    describes=lambda config: config.family == "veco" and config.num_decoder_layers > 0,
    transformers=_transformers,
)


def _refuse(reasons: Mapping[str, bool]) -> None:
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(f"this model cannot be written under VECO's names: {reason}; --format=ours can hold it")


def _plugged_in(naming: Naming) -> Naming:
    """Return the names of transformers' XLM-R with cross-attention, of the code that `naming` is of."""
    there = "roberta.encoder.layer.{k}.crossattention"
    cross: list[Row] = [
        *query_key_value(_CROSS, f"{there}.self."),
        ("dense", f"{_CROSS}/output", f"{there}.output.dense"),
        ("norm", f"{_CROSS}/layer_norm", f"{there}.output.LayerNorm"),
    ]
    head = [expression for expression in naming.detect if "roberta" not in expression]

    def canonical(name: str) -> str | None:
        return naming.canonical(re.sub(r"(\.layer\.\d+)\.cross_attention\.", r"\1.crossattention.", name))

    def rewrite(config: Config, tensors: Tensors) -> tuple[Config, dict[str, Array]]:
        _refuse(
            {
                "its blocks are none of stock transformers": not has_stock_block(config),
                "its layers are shared": config.sharing != "none" or config.inner_group_num != 1,
            }
        )
        stock = dataclasses.replace(config, family=naming.family, cross_attention=False)
        graph, converted = as_roberta(stock, tensors)
        return dataclasses.replace(graph, family="veco", cross_attention=config.cross_attention), converted

    return dataclasses.replace(
        naming,
        name=naming.name.replace("roberta", "veco"),
        family="veco",
        detect=(*head, r"encoder\.layer\.\d+\.cross_?attention\.self\."),
        rules=(*naming.rules, *torch_rules(cross)),
        canonical=canonical,
        implies=lambda tensors: {"cross_attention": True},
        rewrite=rewrite,
        # With the family in it our reader takes the JSON for one of ours, and transformers for its own.
        config_keys=(*naming.config_keys, "family", "position_offset", "cross_attention"),
        model_type="xlm-roberta",
        class_prefix="XLMRoberta",
    )


def _fairseq_name(name: str) -> str | None:
    """Spell a name of fairseq; None for what it keeps beside weights."""
    name = name.removeprefix("module.")
    return None if name.endswith((".version", "._float_tensor")) else name


def _as_fairseq(config: Config, tensors: Tensors) -> tuple[Config, dict[str, Array]]:
    """Return the model without the pooler, which no model that generates reads."""
    _refuse(
        {
            "it has no decoder": config.num_decoder_layers == 0,
            "it has token types": config.type_vocab_size != 0,
            "its layers are shared": config.sharing != "none" or config.inner_group_num != 1,
            "its layers are pre-LN": config.ln_type != "postln" or config.final_layer_norm,
            f"its feed-forward is split in {config.ffn_groups} groups": config.ffn_groups != 1,
        }
    )
    return config, {name: value for name, value in tensors.items() if not name.startswith("backbone/pooler/")}


_FAIRSEQ = Naming(
    name="veco_fairseq",
    family="veco",
    container="read only",
    detect=(
        r"(^|\.)encoder\.layers\.\d+\.self_attn_layer_norm\.",
        r"(^|\.)decoder\.layers\.\d+\.encoder_attn_layer_norm\.",
    ),
    rules=torch_rules(bart.rows("", "encoder.embed_tokens")),
    canonical=_fairseq_name,
    backbone=("encoder.", "decoder."),
    ties={
        "decoder.embed_tokens.weight": "encoder.embed_tokens.weight",
        "decoder.output_projection.weight": "encoder.embed_tokens.weight",
    },
    rewrite=_as_fairseq,
    config_keys=(),
)
NAMINGS = (_FAIRSEQ, *map(_plugged_in, roberta.NAMINGS))
