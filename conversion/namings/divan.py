"""Names of our own code for transformers (`conversion/remote_code`) where that has no class: encoders of every family.

PALM's code has the names of its releases, which `palm.py` lists. Bricks keep their numbers, so that shared ones stand
once in the file.
"""

import dataclasses

from absl.app import UsageError

from conversion.lazy import Array, Tensors
from conversion.namings.dialects import ATTENTION, FEED_FORWARD, embeddings, query_key_value, torch_name, torch_rules
from conversion.remote import CONFIG_KEYS, RemoteCode
from conversion.rules import Naming
from modeling.config import Config

MODEL_TYPE = "divan_encoder"
FAMILIES = ("bert", "albert", "albert_zh", "palm", "palm_en")
"""Those that `configuration_divan_encoder.py` has the particulars of."""
_ALIKE = {"ernie_m": "bert"}
_ATTENTION, _FEED_FORWARD = "divan.encoder.attention.{k}", "divan.encoder.feed_forward.{k}"


def _as_it_is(config: Config, tensors: Tensors) -> tuple[Config, dict[str, Array]]:
    """Return the model unchanged; raise `UsageError` for a decoder, and for a family that the code does not know.

    What the code computes under another family's name has that.
    """
    family = _ALIKE.get(config.family, config.family)
    if not config.legacy_mask:
        config = dataclasses.replace(config, family=family)
    if config.num_decoder_layers:
        raise UsageError(f"this model has a decoder, which {MODEL_TYPE} has not; use --model_type=auto")
    if config.family not in FAMILIES:
        raise UsageError(
            f'{MODEL_TYPE} has no graph for the family "{config.family}", only for {", ".join(FAMILIES)}; use '
            "--format=ours"
        )
    return config, dict(tensors)


NAMINGS = (
    Naming(
        name="transformers_divan_encoder",
        family="",
        container="transformers",
        detect=(r"(^|\.)encoder\.attention\.\d+\.query\.", r"(^|\.)encoder\.feed_forward\.\d+\.intermediate\."),
        rules=torch_rules(
            [
                *embeddings("divan.embeddings."),
                ("dense", "backbone/embeddings/projection", "divan.embeddings.embedding_hidden_mapping_in"),
                *query_key_value(ATTENTION, f"{_ATTENTION}."),
                ("dense", f"{ATTENTION}/output", f"{_ATTENTION}.dense"),
                ("norm", f"{ATTENTION}/layer_norm", f"{_ATTENTION}.LayerNorm"),
                ("dense", f"{FEED_FORWARD}/intermediate", f"{_FEED_FORWARD}.intermediate"),
                ("dense", f"{FEED_FORWARD}/output", f"{_FEED_FORWARD}.output"),
                ("norm", f"{FEED_FORWARD}/layer_norm", f"{_FEED_FORWARD}.LayerNorm"),
                ("norm", "backbone/encoder/layer_norm", "divan.encoder.LayerNorm"),
                ("dense", "backbone/pooler", "divan.pooler"),
                ("dense", "masked_lm/transform", "predictions.dense"),
                ("norm", "masked_lm/layer_norm", "predictions.LayerNorm"),
                ("bias", "masked_lm/output_bias", "predictions.decoder.bias"),
                ("dense", "sentence_pair", "seq_relationship"),
                ("norm", "pooled_layer_norm", "pooled_layer_norm"),
                ("dense", "classifier", "classifier"),
            ]
        ),
        canonical=torch_name("divan"),
        backbone=("divan.",),
        ties={"predictions.decoder.weight": "divan.embeddings.word_embeddings.weight"},
        rewrite=_as_it_is,
        config_keys=CONFIG_KEYS,
        config_constants={
            "pad_token_id": 0,
            "tie_word_embeddings": True,
            "dtype": "float32",
            "classifier_dropout": 0.1,
        },
        model_type=MODEL_TYPE,
        class_prefix="DivanEncoder",
        code=RemoteCode(
            configuration="configuration_divan_encoder",
            modeling="modeling_divan_encoder",
            prefix="DivanEncoder",
            classes={
                "AutoModel": "Model",
                "AutoModelForMaskedLM": "ForMaskedLM",
                "AutoModelForPreTraining": "ForPreTraining",
                "AutoModelForSequenceClassification": "ForSequenceClassification",
            },
        ),
    ),
)
