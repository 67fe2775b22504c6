"""PALM (Bi et al. 2020), the graph of its English release (PreSumm's decoder): RoBERTa or BERT encodes, post-LN.

The decoder is pre-LN with the tanh GELU, has a word table of its own, which is scaled by the square root of the width,
sinusoids for positions, and a bias on its scores. Words may be copied (`Config.copy`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from modeling.dialects import BERT_KEYS, Dialect, Values, transformers

if TYPE_CHECKING:
    from modeling.body import Body
    from modeling.computation import Computation
    from modeling.config import Config
    from modeling.variables import Initialization

_DECODER_EPSILON = 1e-6
POSITIONS = 5000
"""Rows of the table of sinusoids, which is computed and no part of a checkpoint; the released code has as many."""


def body(config: Config, initialization: Initialization, computation: Computation) -> Body:
    """Return an encoder, and a decoder with a word table of its own."""
    from modeling.encoder_decoder import EncoderDecoder
    from modeling.sinusoids import ScaledEmbeddings

    decoder = embeddings = None
    if config.num_decoder_layers:
        decoder = dataclasses.replace(
            config.decoder,
            hidden_act="gelu",
            layer_norm_eps=_DECODER_EPSILON,
            ln_type="preln",
            final_layer_norm=True,
        )
        embeddings = lambda _: ScaledEmbeddings(config, initialization, dtype=computation.dtype)  # noqa: E731
    return EncoderDecoder(config, decoder, initialization, computation, target_embeddings=embeddings, pools=True)


def check(config: Config) -> None:
    """Raise `UsageError` for what the released graph does not have."""
    if config.projects:
        raise UsageError(
            f"embedding_size {config.embedding_size} is projected to hidden_size {config.hidden_size}: PALM's "
            "embedding is as wide as the model; leave embedding_size out"
        )
    if config.hidden_size % 2:
        raise UsageError(f"hidden_size is {config.hidden_size}; sinusoids need an even width")


def max_target_length(config: Config) -> int:
    """Return the positions of the decoder, which its sinusoids have."""
    return POSITIONS


def _read(values: Values, file_name: str) -> dict[str, Any]:
    encoder, decoder = values["encoder_config"], values["palm"]
    if not isinstance(encoder, dict) or not isinstance(decoder, dict):
        raise UsageError("encoder_config and palm have to be objects")
    for key in BERT_KEYS:
        if key not in encoder:
            raise UsageError(f'missing key "{key}" in encoder_config: add it')
    kind = decoder.get("encoder", "roberta")
    if kind not in _ENCODERS:
        raise UsageError(f"palm.encoder is {kind!r}; expected one of {', '.join(_ENCODERS)}")
    taken = {"model_type": _ENCODERS[kind], "pad_token_id": 1 if kind == "roberta" else 0, **encoder}
    fields = transformers("").read(taken, file_name)
    return {
        **fields,
        "position_offset": taken["pad_token_id"] + 1 if kind == "roberta" else 0,
        "num_decoder_layers": decoder.get("dec_layers", 12),
        "decoder_attention_heads": decoder.get("dec_heads", 8),
        "decoder_intermediate_size": decoder.get("dec_ff_size", 2048),
        "copy": "legacy_attention" if decoder.get("p_gen") else "none",
    }


_ENCODERS = {"roberta": "roberta", "bert": "bert", "zh_bert": "bert"}
DIALECTS = (
    Dialect(
        recognises=lambda values, file_name: "encoder_config" in values and "palm" in values,
        mandatory=("encoder_config", "palm"),
        read=_read,
        model_type="palm_en",
    ),
)
