"""The shape of a model as one frozen dataclass, and the reader of every published JSON form of it.

BERT's names (Devlin et al. 2019) with what ALBERT adds (Lan et al. 2020); the JSON dialects of google-research/bert,
google-research/albert, albert_zh and transformers are told apart by their keys.
"""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import app

from ground.words import nearest

FAMILIES = ("bert", "albert", "albert_zh")
ACTIVATIONS = ("gelu", "gelu_erf", "relu", "swish", "tanh", "linear")
SHARING = ("all", "attention", "ffn", "none")
LN_TYPES = ("postln", "preln")

_MANDATORY = (
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
_NEVER_READ = {
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
}
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every choice that decides the graph and the shapes of its variables.

    `family` is the published graph: "bert"; "albert" (Google: the embedding is projected, with a bias, after its
    LayerNorm; the masked-LM head narrows to the embedding width); "albert_zh" (projected without a bias before the sum
    with positions; the head keeps the hidden width). Without `embedding_size` the embedding is as wide as the model.
    `hidden_act` "gelu" is the tanh approximation, "gelu_erf" the exact form. `position_offset` rows of the position
    table come before the first token's. `vocab_padding_multiple` rounds the rows of the word table up.

    Raises:
        absl.app.UsageError: a value is impossible; the message names it.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    embedding_size: int = 0
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    ln_type: str = "postln"
    final_layer_norm: bool = False
    sharing: str = "none"
    num_hidden_groups: int = 1
    inner_group_num: int = 1
    ffn_groups: int = 1
    position_offset: int = 0
    vocab_padding_multiple: int = 1

    def __post_init__(self) -> None:
        if not self.embedding_size:
            object.__setattr__(self, "embedding_size", self.hidden_size)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float and type(value) is int:
                value = float(value)
                object.__setattr__(self, field.name, value)
            if type(value) is not field.type:
                raise app.UsageError(f"{field.name} is {value!r}; expected {field.type.__name__}")  # pyright: ignore[reportAttributeAccessIssue]
        for name, allowed in (
            ("family", FAMILIES),
            ("hidden_act", ACTIVATIONS),
            ("ln_type", LN_TYPES),
            ("sharing", SHARING),
        ):
            if getattr(self, name) not in allowed:
                raise app.UsageError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        for field in dataclasses.fields(self):
            least = 0 if field.name in ("type_vocab_size", "position_offset") else 1
            if field.type is int and getattr(self, field.name) < least:
                raise app.UsageError(f"{field.name} is {getattr(self, field.name)}; expected {least} or more")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise app.UsageError(f"{name} is {getattr(self, name)}; expected 0 <= rate < 1")
        if self.hidden_size % self.num_attention_heads:
            raise app.UsageError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_size % self.ffn_groups or self.intermediate_size % self.ffn_groups:
            raise app.UsageError(
                f"hidden_size {self.hidden_size} and intermediate_size {self.intermediate_size} must both be "
                f"multiples of ffn_groups {self.ffn_groups}"
            )
        if self.family == "bert" and self.embedding_size != self.hidden_size:
            raise app.UsageError(
                f"embedding_size {self.embedding_size} differs from hidden_size {self.hidden_size}: BERT's embedding "
                'is not factorised; use family "albert" or "albert_zh"'
            )

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the word table: `vocab_size` rounded up to a multiple of `vocab_padding_multiple`."""
        multiple = self.vocab_padding_multiple
        return -(-self.vocab_size // multiple) * multiple

    @property
    def max_sequence_length(self) -> int:
        """The most tokens a sequence may have."""
        return self.max_position_embeddings - self.position_offset

    def check_sequence_length(self, length: int) -> None:
        """Refuse sequences of more tokens than there are positions.

        Raises:
            absl.app.UsageError: `length` is above `max_sequence_length`.
        """
        if length > self.max_sequence_length:
            raise app.UsageError(
                f"sequences of {length} tokens, but this model has {self.max_sequence_length} positions: shorten "
                "them (--max_seq_length) or use a config with more max_position_embeddings"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Config":
        """Return the config of `to_json`'s values; fields that an older one lacks have their defaults.

        Raises `UsageError` for an unknown or a missing key and for an impossible value.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        required = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
        _check_keys(values, known=known, mandatory=tuple(required))
        return cls(**values)

    def to_json(self) -> str:
        """Every field as JSON; `load_config` reads it back equal."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def load_config(path: str | Path) -> Config:
    """Read a model's JSON description: ours, albert_zh's, Google's (BERT, ALBERT) or transformers' config.json.

    The form is told by its keys: `family` is ours, `model_type` (or `architectures`) transformers', `ln_type`
    albert_zh's, `num_hidden_groups` Google ALBERT's, and anything without `embedding_size` BERT's. albert_zh's grouped
    feed-forward has no key of its own and is told by the file name `*_google_fast.json`.

    Raises:
        OSError: the file cannot be read.
        absl.app.UsageError: not JSON, an unknown or missing key (the nearest key is named), an impossible value.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise app.UsageError(f"{path}: not a JSON config: {error}") from error
    if not isinstance(values, dict):
        raise app.UsageError(f"{path}: expected a JSON object of config keys, got {type(values).__name__}")
    try:
        return _parse(values, google_fast=path.name.endswith("_google_fast.json"))
    except app.UsageError as error:
        raise app.UsageError(f"{path}: {error}") from error


def _parse(values: Mapping[str, Any], *, google_fast: bool) -> Config:
    fields = [field.name for field in dataclasses.fields(Config)]
    if "family" in values:
        _check_keys(values, known=fields, mandatory=("family", *_MANDATORY))
        return Config(**values)
    if values.keys() & {"model_type", "architectures", "transformers_version"}:
        return _parse_transformers(values)
    known = [*fields[1:], *_NEVER_READ]
    if "ln_type" in values and "num_hidden_groups" not in values:
        _check_keys(values, known=known, mandatory=(*_MANDATORY, "embedding_size"))
        # albert_zh's code treats null as post-LN and any other word than "postln" as pre-LN.
        ln_type = "postln" if values["ln_type"] in (None, "postln") else "preln"
        chosen = {"sharing": "all", **values, "family": "albert_zh", "ln_type": ln_type}
    elif "num_hidden_groups" in values or "embedding_size" in values:
        _check_keys(
            values, known=known, mandatory=(*_MANDATORY, "embedding_size", "num_hidden_groups", "inner_group_num")
        )
        chosen = {"sharing": "all", "ffn_groups": 16 if google_fast else 1, **values, "family": "albert"}
    else:
        _check_keys(values, known=known, mandatory=_MANDATORY)
        chosen = {**values, "family": "bert"}
    return Config(**{name: value for name, value in chosen.items() if name in fields})


def _parse_transformers(values: Mapping[str, Any]) -> Config:
    """Transformers' config.json: an open format, so only near misses of keys that count are refused."""
    model_type = values.get("model_type", "albert" if "embedding_size" in values else "bert")
    if model_type not in ("albert", "bert"):
        raise app.UsageError(f"model_type is {model_type!r}; expected albert or bert")
    albert_only = ("embedding_size", "num_hidden_groups", "inner_group_num")
    mandatory = (*_MANDATORY, *albert_only) if model_type == "albert" else _MANDATORY
    counted = (*mandatory, "initializer_range", "layer_norm_eps")
    missing = [key for key in mandatory if key not in values]
    if missing:
        near = difflib.get_close_matches(missing[0], values.keys() - set(counted), n=1)
        raise app.UsageError(_missing(missing[0], near))
    for key, expected in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        if values.get(key, expected) != expected:
            raise app.UsageError(f"{key} is {values[key]!r}; only {expected!r} can be read")
    activation = values["hidden_act"]
    if activation not in _TRANSFORMERS_ACTIVATIONS:
        raise app.UsageError(f"hidden_act is {activation!r}; expected one of {', '.join(_TRANSFORMERS_ACTIVATIONS)}")
    chosen = {key: values[key] for key in counted if key in values}
    chosen["hidden_act"] = _TRANSFORMERS_ACTIVATIONS[activation]
    return Config(family=model_type, sharing="all" if model_type == "albert" else "none", **chosen)


def _check_keys(values: Mapping[str, Any], *, known: list[str], mandatory: tuple[str, ...]) -> None:
    for key in values:
        if key not in known:
            near = nearest(key, known)
            raise app.UsageError(f'unknown key "{key}"; the nearest is "{near}": correct or remove it')
    for key in mandatory:
        if key not in values:
            raise app.UsageError(_missing(key, difflib.get_close_matches(key, values, n=1)))


def _missing(key: str, near: list[str]) -> str:
    return f'missing key "{key}"' + (f'; the nearest there is "{near[0]}"' if near else "") + ": add it"
