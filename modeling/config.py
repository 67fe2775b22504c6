"""The shape of a model as one frozen dataclass, and the reader of every published JSON form of it.

BERT's names (Devlin et al. 2019) with what ALBERT adds (Lan et al. 2020). The JSON dialects are rows of the papers'
modules, told apart by their keys.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl.app import UsageError

from ground.bounds import BOUNDS
from ground.documents import read_json
from modeling.dialects import BERT_KEYS, EXPORTED, check_keys, is_transformers
from modeling.families import FAMILIES

ACTIVATIONS = ("gelu", "gelu_erf", "relu", "swish", "tanh", "linear")
SHARING = ("all", "attention", "ffn", "none")
LN_TYPES = ("postln", "preln")
COPYING = ("none", "additive", "attention", "legacy_attention")
_MAX_BYTES = 8 * 2**20  # transformers' own list thousands of labels
_OF_FAMILIES = ("cross_attention", "embedding_scale", "legacy_mask", "heads_by_brick", "units_by_brick")
_OF_DECODER = ("decoder_attention_heads", "decoder_intermediate_size", "copy")
_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "tuple[int, ...]": tuple}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every choice that decides the graph and the shapes of its variables.

    `family` is the published graph, a row of `modeling.families.FAMILIES`. Without `embedding_size` the embedding is as
    wide as the model; `projects_equal_widths` keeps the projection even then, as albert_zh does. `hidden_act` "gelu" is
    the tanh approximation, "gelu_erf" the exact form. `position_offset` rows of the position table come before the
    first token's. `vocab_padding_multiple` rounds the rows of the word table up. A decoder has `num_decoder_layers`;
    its heads and its feed-forward are the encoder's unless they are given; `copy` is how it takes words from the source
    (`modeling.copying`). `cross_attention` gives every block of the encoder one, which reads the other of two texts;
    `embedding_scale` multiplies word vectors before positions are added; `legacy_mask` computes what Paddle's exported
    ERNIE-M does, which hides the first token and reads padding. A pruned model whose heads and units have left says
    how many each distinct attention and feed-forward has, in order, as `heads_by_brick` and `units_by_brick`. A field
    that is added later has a default that describes every older model, so that `from_json` reads older files.

    Raises:
        UsageError: a value is impossible; the message names it.
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
    projects_equal_widths: bool = False
    num_decoder_layers: int = 0
    decoder_attention_heads: int = 0
    decoder_intermediate_size: int = 0
    copy: str = "none"
    cross_attention: bool = False
    embedding_scale: float = 1.0
    legacy_mask: bool = False
    heads_by_brick: tuple[int, ...] = ()
    units_by_brick: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if type(self.embedding_size) is int and not self.embedding_size:
            object.__setattr__(self, "embedding_size", self.hidden_size)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind = _TYPES[str(field.type)]
            if kind is float and type(value) is int and abs(value) < 2**64:
                value = float(value)
                object.__setattr__(self, field.name, value)
            if kind is tuple and type(value) is list:
                value = tuple(value)  # as JSON has it
                object.__setattr__(self, field.name, value)
            if type(value) is not kind:
                raise UsageError(
                    f"{field.name} is {value!r:.200}; expected {'list' if kind is tuple else kind.__name__}"
                )
        for name, allowed in (
            ("family", tuple(FAMILIES)),
            ("hidden_act", ACTIVATIONS),
            ("ln_type", LN_TYPES),
            ("sharing", SHARING),
            ("copy", COPYING),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        for name in (field.name for field in dataclasses.fields(self) if _TYPES[str(field.type)] in (int, float)):
            if complaint := BOUNDS[name].complaint(getattr(self, name)):
                raise UsageError(f"{name} is {getattr(self, name)}; expected {complaint}")
        for name in ("num_attention_heads", "decoder_attention_heads"):
            heads = getattr(self, name)
            if heads and self.hidden_size % heads:
                raise UsageError(f"hidden_size {self.hidden_size} is not a multiple of {name} {heads}")
        if self.hidden_size % self.ffn_groups or self.intermediate_size % self.ffn_groups:
            raise UsageError(
                f"hidden_size {self.hidden_size} and intermediate_size {self.intermediate_size} must both be "
                f"multiples of ffn_groups {self.ffn_groups}"
            )
        self._check_decoder()
        self._check_bricks()
        self._check_family()
        FAMILIES[self.family].check(self)

    def _check_family(self) -> None:
        """Refuse what the family's graph does not have."""
        for name in _OF_FAMILIES:
            value, usual = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != usual and name not in FAMILIES[self.family].fields:
                able = ", ".join(other for other, family in FAMILIES.items() if name in family.fields)
                raise UsageError(f'{name} is {value}, which family "{self.family}" has not; leave it out or use {able}')

    def _check_bricks(self) -> None:
        """Refuse numbers of heads or units that are not those of the distinct bricks."""
        from modeling.sharing import shared_bricks

        for name, whole, side in (
            ("heads_by_brick", "num_attention_heads", 0),
            ("units_by_brick", "intermediate_size", 1),
        ):
            given, most = getattr(self, name), getattr(self, whole)
            if not given:
                continue
            count = len({pair[side] for pair in shared_bricks(self)})
            if len(given) != count or not all(type(each) is int and 1 <= each <= most for each in given):
                raise UsageError(
                    f"{name} is {list(given)!r:.200}; expected {count} numbers from 1 to {whole}, {most}, one for each "
                    "distinct layer"
                )
            if self.ffn_groups != 1:
                raise UsageError(
                    f"{name} with ffn_groups {self.ffn_groups}: groups have equal widths; leave one of them out"
                )

    def _check_decoder(self) -> None:
        """Refuse a decoder's fields without a decoder, and a decoder in a family that has none."""
        given = [name for name in _OF_DECODER if getattr(self, name) not in (0, "none")]
        if self.num_decoder_layers and not FAMILIES[self.family].decodes:
            able = ", ".join(name for name, family in FAMILIES.items() if family.decodes)
            raise UsageError(
                f'num_decoder_layers is {self.num_decoder_layers}, but family "{self.family}" has no decoder; use '
                f"{able}"
            )
        if given and not self.num_decoder_layers:
            raise UsageError(f"{given[0]} is {getattr(self, given[0])!r} without a decoder; give num_decoder_layers")

    @property
    def encoder(self) -> Config:
        """The shape of the encoder alone, which reads one text."""
        absent = {"num_decoder_layers": 0, "decoder_attention_heads": 0, "decoder_intermediate_size": 0, "copy": "none"}
        return dataclasses.replace(self, **absent, cross_attention=False)

    @property
    def decoder(self) -> Config:
        """The shape of the decoder's stack: the encoder's, but its own depth, heads and feed-forward."""
        return dataclasses.replace(
            self,
            num_hidden_layers=self.num_decoder_layers,
            num_attention_heads=self.decoder_attention_heads or self.num_attention_heads,
            intermediate_size=self.decoder_intermediate_size or self.intermediate_size,
        )

    @property
    def padded_vocab_size(self) -> int:
        """The rows of the word table: `vocab_size` rounded up to a multiple of `vocab_padding_multiple`."""
        multiple = self.vocab_padding_multiple
        return -(-self.vocab_size // multiple) * multiple

    @property
    def projects(self) -> bool:
        """Whether word vectors are projected to the model's width."""
        return self.embedding_size != self.hidden_size or self.projects_equal_widths

    @property
    def max_sequence_length(self) -> int:
        """The most tokens a sequence may have."""
        return self.max_position_embeddings - self.position_offset

    @property
    def max_target_length(self) -> int:
        """The most tokens that the decoder reads."""
        return FAMILIES[self.family].max_target_length(self)

    @property
    def least_parameters(self) -> int:
        """A lower bound of the parameters, without declaring the model: tables, and matrices that no layers share."""
        width, layers = self.hidden_size, self.num_hidden_layers
        attentions = (1 if self.sharing in ("all", "attention") else layers) * (2 if self.cross_attention else 1)
        feed_forwards = 1 if self.sharing in ("all", "ffn") else layers
        if self.heads_by_brick:
            attentions = sum(self.heads_by_brick) // self.num_attention_heads
        if self.units_by_brick:
            feed_forwards = sum(self.units_by_brick) // self.intermediate_size
        words = self.padded_vocab_size * self.embedding_size
        positions = self.max_position_embeddings * min(self.embedding_size, width)
        inner = 2 * width * self.intermediate_size // self.ffn_groups
        decoder_inner = 2 * width * (self.decoder_intermediate_size or self.intermediate_size) // self.ffn_groups
        decoder = self.num_decoder_layers * (8 * width**2 + decoder_inner) if self.sharing == "none" else 0
        return words + positions + attentions * 4 * width**2 + feed_forwards * inner + decoder

    def check_sequence_length(self, length: int) -> None:
        """Refuse sequences of more tokens than there are positions.

        Raises:
            UsageError: `length` is above `max_sequence_length`.
        """
        if length > self.max_sequence_length:
            raise UsageError(
                f"sequences of {length} tokens, but this model has {self.max_sequence_length} positions: shorten "
                "them (--max_seq_length) or use a config with more max_position_embeddings"
            )

    def to_json(self) -> str:
        """Return every field as JSON; `load_config` reads it back equal."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Config:
        """Read the values of `to_json`, also of an older version: a field that is missing has its default.

        Raises:
            absl.app.UsageError: an unknown key (the nearest is named), a missing one that has no default, or an
                impossible value.
        """
        fields = dataclasses.fields(cls)
        needed = [field.name for field in fields if field.default is dataclasses.MISSING]
        check_keys(values, known=[field.name for field in fields], mandatory=needed)
        return cls(**values)


def load_config(path: str | Path) -> Config:
    """Read a model's JSON description: ours, albert_zh's, Google's (BERT, ALBERT) or transformers' config.json.

    The form is told by its keys: `family` is ours, also in the config.json of an export with our own code; the others
    are the dialects of `modeling.families.FAMILIES`.

    Raises:
        OSError: the file cannot be read.
        absl.app.UsageError: not JSON, an unknown or missing key (the nearest key is named), an impossible value.
    """
    path = Path(path)
    values = read_json(path, dict[str, Any], what="a JSON config", max_bytes=_MAX_BYTES)
    try:
        return _parse(values, path.name)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _parse(values: Mapping[str, Any], file_name: str) -> Config:
    fields = [field.name for field in dataclasses.fields(Config)]
    if "family" in values and is_transformers(values):
        return Config(family=values["family"], **EXPORTED.fields(values, file_name, set(fields) - {"family"}))
    if "family" in values:
        check_keys(values, known=fields, mandatory=("family", *BERT_KEYS))
        return Config(**values)
    dialects = [(name, dialect) for name, family in FAMILIES.items() for dialect in family.dialects]
    for family, dialect in dialects:
        if dialect.recognises(values, file_name):
            return Config(family=family, **dialect.fields(values, file_name, set(fields) - {"family"}))
    assert is_transformers(values)
    known = sorted(dialect.model_type for _, dialect in dialects if dialect.model_type)
    raise UsageError(f"model_type is {values.get('model_type')!r}; expected one of {', '.join(known)}")
