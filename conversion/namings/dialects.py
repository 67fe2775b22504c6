"""How TF 1 codes and transformers spell a layer, a normalisation and a table, whichever the family.

Sources: the variable scopes of google-research/bert and the state dicts of transformers 5. A row is (kind, our name,
their name); a dialect expands it into rules.
"""

import re
from collections.abc import Callable, Iterable

from conversion.rules import Rule
from modeling import dialects
from modeling.config import Config

Row = tuple[str, str, str]  # kind, our name, their name

_OPTIMIZER_SLOT = re.compile(
    r"/(adam_[mv]|lamb_[mv]|Adam|Adam_1|AdamWeightDecayOptimizer|LAMBOptimizer|ExponentialMovingAverage)(_\d+)?$"
)
_TRAINING_STATE = re.compile(
    r"^(global_step|beta[12]_power|current_loss_scale|loss_scale|good_steps|save_counter.*|_CHECKPOINTABLE.*)$"
)
_TORCH_DERIVED = re.compile(r"embeddings\.(position_ids|token_type_ids)$")

_ACTIVATIONS = {"gelu": "gelu_new", "gelu_erf": "gelu", "swish": "silu"}

BERT_KEYS = (*dialects.BERT_KEYS, "initializer_range")
ALBERT_KEYS = ("embedding_size", "num_hidden_groups", "inner_group_num")

ATTENTION, FEED_FORWARD = "backbone/encoder/attention_{k}", "backbone/encoder/feed_forward_{k}"
TF1_TOP: tuple[Row, ...] = (
    ("dense", "backbone/pooler", "bert/pooler/dense"),
    ("dense", "masked_lm/transform", "cls/predictions/transform/dense"),
    ("norm", "masked_lm/layer_norm", "cls/predictions/transform/LayerNorm"),
    ("table", "masked_lm/output_bias", "cls/predictions/output_bias"),
    ("logits", "sentence_pair", "cls/seq_relationship/"),
    ("logits", "classifier", ""),
)

Expansion = dict[str, Callable[[str, str], list[Rule]]]
_TF1: Expansion = {
    "table": lambda o, t: [Rule((o,), t)],
    "dense": lambda o, t: [Rule((f"{o}/kernel",), f"{t}/kernel"), Rule((f"{o}/bias",), f"{t}/bias")],
    "norm": lambda o, t: [Rule((f"{o}/gamma",), f"{t}/gamma"), Rule((f"{o}/beta",), f"{t}/beta")],
    # The original code multiplies logits with transpose_b=True and keeps [C, D].
    "logits": lambda o, t: [
        Rule((f"{o}/kernel",), f"{t}output_weights", transposed=True),
        Rule((f"{o}/bias",), f"{t}output_bias"),
    ],
}
_TORCH: Expansion = {
    "bias": lambda o, t: [Rule((o,), t)],
    "table": lambda o, t: [Rule((o,), f"{t}.weight")],
    "matrix": lambda o, t: [Rule((f"{o}/kernel",), f"{t}.weight", transposed=True)],
    "dense": lambda o, t: [Rule((f"{o}/kernel",), f"{t}.weight", transposed=True), Rule((f"{o}/bias",), f"{t}.bias")],
    "norm": lambda o, t: [Rule((f"{o}/gamma",), f"{t}.weight"), Rule((f"{o}/beta",), f"{t}.bias")],
    # Megatron's layers: a column's outputs are cut over processes, and a row's inputs.
    "cut_bias": lambda o, t: [Rule((o,), t, cut_axis=0)],
    "cut_table": lambda o, t: [Rule((o,), f"{t}.weight", cut_axis=0)],
    "column": lambda o, t: [
        Rule((f"{o}/kernel",), f"{t}.weight", transposed=True, cut_axis=0),
        Rule((f"{o}/bias",), f"{t}.bias", cut_axis=0),
    ],
    "row": lambda o, t: [
        Rule((f"{o}/kernel",), f"{t}.weight", transposed=True, cut_axis=1),
        Rule((f"{o}/bias",), f"{t}.bias"),
    ],
}


_PADDLE: Expansion = {
    "table": _TORCH["table"],
    "dense": lambda o, t: [Rule((f"{o}/kernel",), f"{t}.weight"), Rule((f"{o}/bias",), f"{t}.bias")],
    "norm": _TORCH["norm"],
}


def tf1_rules(rows: Iterable[Row]) -> tuple[Rule, ...]:
    """Return the rules of rows whose names are scopes of TF 1."""
    return tuple(rule for kind, ours, theirs in rows for rule in _TF1[kind](ours, theirs))


def torch_rules(rows: Iterable[Row]) -> tuple[Rule, ...]:
    """Return the rules of rows whose names are modules of PyTorch, whose matrices are [out, in]."""
    return tuple(rule for kind, ours, theirs in rows for rule in _TORCH[kind](ours, theirs))


def paddle_rules(rows: Iterable[Row]) -> tuple[Rule, ...]:
    """Return the rules of rows whose names are layers of Paddle, whose matrices are [in, out]."""
    return tuple(rule for kind, ours, theirs in rows for rule in _PADDLE[kind](ours, theirs))


def embeddings(prefix: str, *, words: str = "table") -> list[Row]:
    """Return the rows of BERT's three tables and their LayerNorm; `words` is the kind of the table of words."""
    kinds = {"word_embeddings": words, "position_embeddings": "table", "token_type_embeddings": "table"}
    return [
        *((kind, f"backbone/embeddings/{name}", f"{prefix}{name}") for name, kind in kinds.items()),
        ("norm", "backbone/embeddings/layer_norm", f"{prefix}LayerNorm"),
    ]


def query_key_value(ours: str, theirs: str, *, kind: str = "dense") -> list[Row]:
    """Return the rows of three projections that both sides name alike below `ours` and `theirs`."""
    return [(kind, f"{ours}/{role}", f"{theirs}{role}") for role in ("query", "key", "value")]


def bert_block(
    separator: str,
    attention_there: str,
    intermediate: str,
    output: str,
    *,
    attention: str = ATTENTION,
    feed_forward: str = FEED_FORWARD,
) -> list[Row]:
    """Return the rows of BERT's block, whose three scopes are given; `separator` comes between parts of a name."""
    there = f"{attention_there}{separator}"
    return [
        *query_key_value(attention, f"{there}self{separator}"),
        ("dense", f"{attention}/output", f"{there}output{separator}dense"),
        ("norm", f"{attention}/layer_norm", f"{there}output{separator}LayerNorm"),
        ("dense", f"{feed_forward}/intermediate", f"{intermediate}{separator}dense"),
        ("dense", f"{feed_forward}/output", f"{output}{separator}dense"),
        ("norm", f"{feed_forward}/layer_norm", f"{output}{separator}LayerNorm"),
    ]


def transformers_activation(config: Config) -> str:
    """Return transformers' word for the activation."""
    return _ACTIVATIONS.get(config.hidden_act, config.hidden_act)


def tf1_name(name: str) -> str | None:
    """Return a TF 1 name without TF-Hub's `module/`; None for optimizer slots and counters."""
    name = name.removeprefix("module/")
    return None if _OPTIMIZER_SLOT.search(name) or _TRAINING_STATE.match(name) else name


def torch_name(model: str) -> Callable[[str], str | None]:
    """Return the function that spells names of transformers' `model` ("bert") canonically; None for index buffers.

    PyTorch's `module.` is removed, an absent `bert.` is added, and LayerNorm's gamma and beta of old files become
    weight and bias.
    """

    def canonical(name: str) -> str | None:
        name = name.removeprefix("module.")
        if name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = f"{model}.{name}"
        if _TORCH_DERIVED.search(name):
            return None
        return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))

    return canonical
