"""The JSON of transformers' BART (Lewis et al. 2020), whose graph is that of a VECO that generates (modeling/veco.py).

Post-LN, learnt positions behind two rows that no token has, a LayerNorm behind the embeddings of either side, and one
table of words. What the JSON does not say, because the code has it as a constant, is said here.
"""

import math
from typing import Any

from absl.app import UsageError

from modeling.dialects import Dialect, Values, activation, check_constants, whole_number

MODEL_TYPE = "bart"
EPS = 1e-5
"""What is added in every LayerNorm."""
OFFSET = 2
"""The rows of the tables of positions before the first token's, which the JSON does not count."""
FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_dim",
    "num_decoder_layers": "decoder_layers",
    "decoder_attention_heads": "decoder_attention_heads",
    "decoder_intermediate_size": "decoder_ffn_dim",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
"""Field of `Config` -> key of the JSON."""
SCALED, ACTIVATION, POSITIONS, DEVIATION = (
    "scale_embedding",
    "activation_function",
    "max_position_embeddings",
    "init_std",
)
_CONSTANTS = {
    "is_decoder": False,
    "is_encoder_decoder": True,
    "tie_word_embeddings": True,
    "normalize_before": False,
    "normalize_embedding": True,
    "add_final_layer_norm": False,
    "static_position_embeddings": False,
}
_START, _FIRST = 2, 0  # decoder_start_token_id and bos_token_id of a JSON without them


def scale(width: int) -> float:
    """Return what scaled word vectors are multiplied by: the root of the width, and 1 for one that no model has."""
    return math.sqrt(width) if 0 < width < 2**31 else 1.0


def own_or_shared(own: Any, shared: Any) -> Any:
    """Return the decoder's number as `Config` has it: 0 where it is the encoder's."""
    return 0 if own == shared else own


def _read(values: Values, file_name: str) -> dict[str, Any]:
    check_constants(values, _CONSTANTS)
    start, first = values.get("decoder_start_token_id", _START), values.get("bos_token_id", _FIRST)
    if start != first:
        raise UsageError(
            f"decoder_start_token_id is {start!r}, bos_token_id {first!r}; expected one id, because a target begins "
            "here as every text does: to read the weights alone, make both equal in a copy"
        )
    scaled = values.get(SCALED, False)
    if type(scaled) is not bool:
        raise UsageError(f"{SCALED} is {scaled!r}; expected true or false")
    width = whole_number(values, FIELDS["hidden_size"])
    fields = {ours: values[theirs] for ours, theirs in FIELDS.items()}
    return {
        **fields,
        **activation(values, ACTIVATION),
        "decoder_attention_heads": own_or_shared(fields["decoder_attention_heads"], fields["num_attention_heads"]),
        "decoder_intermediate_size": own_or_shared(fields["decoder_intermediate_size"], fields["intermediate_size"]),
        "max_position_embeddings": whole_number(values, POSITIONS) + OFFSET,
        "position_offset": OFFSET,
        "type_vocab_size": 0,
        "layer_norm_eps": EPS,
        "embedding_scale": scale(width) if scaled else 1.0,
        **({"initializer_range": values[DEVIATION]} if DEVIATION in values else {}),
    }


DIALECT = Dialect(
    recognises=lambda values, file_name: values.get("model_type") == MODEL_TYPE,
    mandatory=(*FIELDS.values(), ACTIVATION, POSITIONS),
    read=_read,
    model_type=MODEL_TYPE,
)
