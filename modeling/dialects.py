"""The published JSON forms of a model's shape, each a row: how it is recognised and read into the fields of `Config`.

A paper's module lists its dialects; shared here are BERT's keys (Devlin et al. 2019) and transformers' config.json.
"""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from absl.app import UsageError

from ground.words import nearest

Values = Mapping[str, Any]

BERT_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
)
NEVER_READ = (
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "net_structure_type",
    "gap_size",
    "num_memory_blocks",
    "down_scale_factor",
)
"""Keys of Google's and albert_zh's files that no published code reads."""
_TRANSFORMERS_ACTIVATIONS = {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "silu": "swish",
    "swish": "swish",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
}
_MODEL_TYPE = "model_type"


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One published form.

    Attributes:
        recognises: whether values in a file of that name are of this form; of no values two dialects say so.
        mandatory: keys without which nothing can be read.
        read: (values, file name) -> fields of `Config` but the family; raises `UsageError` for what cannot be read.
        model_type: transformers' own word for the form; "" for closed formats, in which an unknown key is an error.
    """

    recognises: Callable[[Values, str], bool]
    mandatory: tuple[str, ...]
    read: Callable[[Values, str], dict[str, Any]]
    model_type: str = ""

    def fields(self, values: Values, file_name: str, known: Collection[str]) -> dict[str, Any]:
        """Check the keys and read the values; `known` are the fields of `Config`."""
        check_keys(values, known=None if self.model_type else [*known, *NEVER_READ], mandatory=self.mandatory)
        return {name: value for name, value in self.read(values, file_name).items() if name in known}


def is_transformers(values: Values) -> bool:
    """Whether the values are from a config.json of transformers."""
    return bool(values.keys() & {_MODEL_TYPE, "architectures", "transformers_version"})


def transformers(
    model_type: str,
    *further_keys: str,
    recognises: Callable[[Values], bool] = lambda values: False,
    fields: Callable[[Values], dict[str, Any]] = lambda values: {},
    absent: Collection[str] = (),
) -> Dialect:
    """Return the dialect of transformers' `model_type`, in whose words "gelu" is the exact form.

    Args:
        model_type: the word by which it is told.
        further_keys: mandatory keys besides BERT's.
        recognises: old files without a `model_type` that are of this form too.
        fields: fields of `Config` that have other names there, or none.
        absent: keys of BERT that the form has not, or that its code does not read.
    """
    keys = (*(key for key in BERT_KEYS if key not in absent), *further_keys)

    def read(values: Values, file_name: str) -> dict[str, Any]:
        check_constants(values, {"position_embedding_type": "absolute", "is_decoder": False})
        taken = {key: values[key] for key in (*keys, "initializer_range", "layer_norm_eps") if key in values}
        return taken | activation(values) | fields(values)

    def recognised(values: Values, file_name: str) -> bool:
        return values[_MODEL_TYPE] == model_type if _MODEL_TYPE in values else recognises(values)

    return Dialect(
        recognises=lambda values, file_name: is_transformers(values) and recognised(values, file_name),
        mandatory=keys,
        read=read,
        model_type=model_type,
    )


def activation(values: Values, key: str = "hidden_act") -> dict[str, str]:
    """Return the field of the activation that stands under a key; raise `UsageError` for an unknown one."""
    named = values[key]
    known = tuple(_TRANSFORMERS_ACTIVATIONS)  # a list or an object has no hash to be looked up by
    if named not in known:
        raise UsageError(f"{key} is {named!r}; expected one of {', '.join(known)}")
    return {"hidden_act": _TRANSFORMERS_ACTIVATIONS[named]}


def whole_number(values: Values, key: str) -> int:
    """Return the whole number that stands under a key; raise `UsageError` for anything else."""
    value = values[key]
    if type(value) is not int:
        raise UsageError(f"{key} is {value!r}; expected a whole number")
    return value


def check_constants(values: Values, constants: Mapping[str, Any]) -> None:
    """Raise `UsageError` for a key with another value than the one that can be read."""
    for key, expected in constants.items():
        if values.get(key, expected) != expected:
            raise UsageError(f"{key} is {values[key]!r}; only {expected!r} can be read")


EXPORTED = Dialect(
    recognises=lambda values, file_name: is_transformers(values) and "family" in values,
    mandatory=("family", *BERT_KEYS),
    read=lambda values, file_name: {**values, **activation(values)},
    model_type="divan",
)
"""Our own code for transformers: every field of `Config` under its own name, and transformers' word for a GELU."""


def check_keys(values: Values, *, known: Sequence[str] | None, mandatory: Sequence[str]) -> None:
    """Raise `UsageError` for the first key that is unknown (None knows all) or missing, with the nearest name."""
    for key in values:
        if known is not None and key not in known:
            raise UsageError(f'unknown key "{key}"; the nearest is "{nearest(key, known)}": correct or remove it')
    for key in mandatory:
        if key not in values:
            near = difflib.get_close_matches(key, values.keys() - set(mandatory) if known is None else values, n=1)
            raise UsageError(
                f'missing key "{key}"' + (f'; the nearest there is "{near[0]}"' if near else "") + ": add it"
            )
