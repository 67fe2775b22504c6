"""PALM (Bi et al. 2020) and PLUG (AliceMind), the graph of their Chinese releases: encoder, decoder, one word table.

Both stacks are pre-LN and end in a LayerNorm, which the released code applies twice to the encoder's last state; the
embeddings, which the decoder shares, keep their own. The pooled vector is the first state itself: the released pooler
has weights, which nothing reads. PLUG differs in sizes alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from modeling.dialects import BERT_KEYS, Dialect, Values

if TYPE_CHECKING:
    from modeling.body import Body
    from modeling.computation import Computation
    from modeling.config import Config
    from modeling.variables import Initialization

_MODEL_TYPES = ("palm", "plug", "plugNLG", "plugNLU")
_ACTIVATIONS = {"gelu": "gelu_erf"}
_KEYS = tuple(key for key in BERT_KEYS if key != "type_vocab_size")


def body(config: Config, initialization: Initialization, computation: Computation) -> Body:
    """Return encoder and decoder over one word table."""
    from modeling.encoder_decoder import EncoderDecoder

    decoder = config.decoder if config.num_decoder_layers else None
    return EncoderDecoder(config, decoder, initialization, computation, normalizes_twice=True)


def check(config: Config) -> None:
    """Raise `UsageError` for what the released graph does not have."""
    if config.projects:
        raise UsageError(
            f"embedding_size {config.embedding_size} is projected to hidden_size {config.hidden_size}: PALM's "
            "embedding is as wide as the model; leave embedding_size out"
        )


def _read(values: Values, file_name: str) -> dict[str, Any]:
    renamed = {"layer_norm_eps": values.get("layernorm_epsilon", 1e-12)}
    if "dec_hidden_layers" in values:
        renamed["num_decoder_layers"] = values["dec_hidden_layers"]
    pre_ln = values.get("pre_ln", True)
    activation = values["hidden_act"]
    kept = {key: values[key] for key in (*BERT_KEYS, "initializer_range") if key in values}
    return {
        "type_vocab_size": 3,
        **kept,
        **renamed,
        "hidden_act": _ACTIVATIONS.get(activation, activation) if isinstance(activation, str) else activation,
        "ln_type": "preln" if pre_ln else "postln",
        "final_layer_norm": bool(pre_ln),
    }


DIALECTS = tuple(
    Dialect(
        recognises=lambda values, file_name, model_type=model_type: values.get("model_type") == model_type,
        mandatory=_KEYS,
        read=_read,
        model_type=model_type,
    )
    for model_type in _MODEL_TYPES
)
