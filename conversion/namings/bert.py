"""Names of BERT (Devlin et al. 2019): google-research/bert in TF 1, and transformers."""

import functools

from conversion.graphs import Graph, as_bert, as_original
from conversion.namings.dialects import (
    BERT_KEYS,
    TF1_TOP,
    bert_block,
    embeddings,
    tf1_name,
    tf1_rules,
    torch_name,
    torch_rules,
)
from conversion.rules import Naming
from modeling.config import Config


def _is_roberta(config: Config) -> bool:
    """Whether a model is one of RoBERTa's and XLM-R's, so that it is written as it was read."""
    return config.position_offset == 2 and config.type_vocab_size == 1 and config.hidden_act == "gelu_erf"


GRAPH = Graph(
    family="bert",
    title="BERT graph",
    mark="",  # Without factorisation every family has these variables.
    describes=lambda config: not config.projects,
    transformers=lambda config: "roberta" if _is_roberta(config) else "bert",
)


def _refusals(config: Config) -> dict[str, bool]:
    return {
        "it is post-LN": config.ln_type != "postln",
        "its feed-forward is whole": config.ffn_groups != 1,
        "BERT shares no layers": config.sharing != "none",
    }


_LAYER, _TORCH_LAYER = "bert/encoder/layer_{k}", "bert.encoder.layer.{k}"

NAMINGS = (
    Naming(
        name="bert_tf1",
        family="bert",
        container="tf1",
        detect=(r"/encoder/layer_\d+/attention/self/",),
        rules=tf1_rules(
            [
                *embeddings("bert/embeddings/"),
                *bert_block("/", f"{_LAYER}/attention", f"{_LAYER}/intermediate", f"{_LAYER}/output"),
                *TF1_TOP,
            ]
        ),
        canonical=tf1_name,
        backbone=("bert/",),
        rewrite=functools.partial(as_original, refusals=_refusals),
        config_keys=BERT_KEYS,
        config_file=lambda config: "bert_config.json",
    ),
    Naming(
        name="transformers_bert",
        family="bert",
        container="transformers",
        detect=(r"(^|\.)encoder\.layer\.\d+\.attention\.self\.",),
        rules=torch_rules(
            [
                *embeddings("bert.embeddings."),
                *bert_block(".", f"{_TORCH_LAYER}.attention", f"{_TORCH_LAYER}.intermediate", f"{_TORCH_LAYER}.output"),
                ("dense", "backbone/pooler", "bert.pooler.dense"),
                ("dense", "masked_lm/transform", "cls.predictions.transform.dense"),
                ("norm", "masked_lm/layer_norm", "cls.predictions.transform.LayerNorm"),
                ("bias", "masked_lm/output_bias", "cls.predictions.bias"),
                ("dense", "sentence_pair", "cls.seq_relationship"),
                ("dense", "classifier", "classifier"),
                ("dense", "span", "qa_outputs"),
            ]
        ),
        canonical=torch_name("bert"),
        backbone=("bert.",),
        ties={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        rewrite=as_bert,
        config_keys=(*BERT_KEYS, "layer_norm_eps"),
        config_constants={
            "pad_token_id": 0,
            "tie_word_embeddings": True,
            "dtype": "float32",
            "classifier_dropout": 0.1,
        },
        model_type="bert",
        class_prefix="Bert",
        head_classes={"sentence_pair": 2},
    ),
)
