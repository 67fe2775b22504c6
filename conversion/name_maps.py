"""Names of tensors here and in the checkpoints of others (TF 1 BERT, both TF 1 ALBERTs, transformers), a table each.

Every row is read forwards to import and backwards to export, so the two directions cannot disagree. Sources: the
variable scopes of google-research/bert, google-research/albert and albert_zh (its `shared_type` included), the
state dicts of transformers 5. Differs from the usual converters in that no name is ever guessed: what no row names is
handed back to the caller.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable

from modeling.config import Config

TF1_LAYOUTS = ("bert_tf1", "albert_google_tf1", "albert_zh_tf1")
TORCH_LAYOUTS = ("transformers_bert", "transformers_albert")
LAYOUTS = (*TF1_LAYOUTS, *TORCH_LAYOUTS)

GRAPH_TITLES = {
    "bert": "BERT graph",
    "zh": "albert_zh graph (word_embeddings_2)",
    "google": "Google ALBERT graph (embedding_hidden_mapping_in)",
}

_INDEX = "(0|[1-9][0-9]*)"
_OPTIMIZER_SLOT = re.compile(
    r"/(adam_[mv]|lamb_[mv]|Adam|Adam_1|AdamWeightDecayOptimizer|LAMBOptimizer|ExponentialMovingAverage)(_\d+)?$"
)
_TRAINING_STATE = re.compile(
    r"^(global_step|beta[12]_power|current_loss_scale|loss_scale|good_steps|save_counter.*|_CHECKPOINTABLE.*)$"
)
_TORCH_DERIVED = re.compile(r"embeddings\.(position_ids|token_type_ids)$")
_TORCH_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
    "predictions.decoder.bias": "predictions.bias",
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """One name here and there; `{k}` stands for the index of a brick, `{g}` and `{j}` for ALBERT's group and block."""

    ours: str
    theirs: str
    transposed: bool = False


@dataclasses.dataclass(frozen=True)
class NameMap:
    """The rules of one layout, with the sharing and the blocks in a group (`k = g * inner + j`) that names imply."""

    layout: str
    rules: tuple[Rule, ...]
    sharing: str = "all"
    inner_group_num: int = 1

    @functools.cached_property
    def _by_ours(self) -> list[tuple[re.Pattern[str], str, bool]]:
        return [(_pattern(rule.ours), rule.theirs, rule.transposed) for rule in self.rules]

    @functools.cached_property
    def _by_theirs(self) -> list[tuple[re.Pattern[str], str, bool]]:
        return [(_pattern(rule.theirs), rule.ours, rule.transposed) for rule in self.rules]

    def to_ours(self, name: str) -> tuple[str, bool] | None:
        """Our name of a canonical foreign one and whether the matrix is transposed; None when no row names it."""
        return self._read(name, self._by_theirs)

    def to_theirs(self, name: str) -> tuple[str, bool] | None:
        """The canonical foreign name of ours and whether the matrix is transposed; None when no row names it."""
        return self._read(name, self._by_ours)

    def _read(self, name: str, rows: list[tuple[re.Pattern[str], str, bool]]) -> tuple[str, bool] | None:
        for pattern, target, transposed in rows:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            indices = {key: int(value) for key, value in match.groupdict().items()}
            if "g" in indices:
                if indices["j"] >= self.inner_group_num:
                    return None
                indices = {"k": indices["g"] * self.inner_group_num + indices["j"]}
            elif "k" in indices:
                indices["g"], indices["j"] = divmod(indices["k"], self.inner_group_num)
            return target.format(**indices), transposed
        return None


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    for letter in "kgj":
        escaped = escaped.replace(rf"\{{{letter}\}}", _INDEX.replace("(", f"(?P<{letter}>", 1))
    return re.compile(escaped)


Row = tuple[str, str, str]  # kind, our name, their name


def _tf1_rules(rows: Iterable[Row]) -> tuple[Rule, ...]:
    expand: dict[str, Callable[[str, str], list[Rule]]] = {
        "table": lambda o, t: [Rule(o, t)],
        "dense": lambda o, t: [Rule(f"{o}/kernel", f"{t}/kernel"), Rule(f"{o}/bias", f"{t}/bias")],
        "norm": lambda o, t: [Rule(f"{o}/gamma", f"{t}/gamma"), Rule(f"{o}/beta", f"{t}/beta")],
        # The original code multiplies logits with transpose_b=True and keeps [C, D].
        "logits": lambda o, t: [Rule(f"{o}/kernel", f"{t}output_weights", True), Rule(f"{o}/bias", f"{t}output_bias")],
    }
    return tuple(rule for kind, ours, theirs in rows for rule in expand[kind](ours, theirs))


def _torch_rules(rows: Iterable[Row]) -> tuple[Rule, ...]:
    expand: dict[str, Callable[[str, str], list[Rule]]] = {
        "bias": lambda o, t: [Rule(o, t)],
        "table": lambda o, t: [Rule(o, f"{t}.weight")],
        "dense": lambda o, t: [Rule(f"{o}/kernel", f"{t}.weight", True), Rule(f"{o}/bias", f"{t}.bias")],
        "norm": lambda o, t: [Rule(f"{o}/gamma", f"{t}.weight"), Rule(f"{o}/beta", f"{t}.bias")],
    }
    return tuple(rule for kind, ours, theirs in rows for rule in expand[kind](ours, theirs))


def _embeddings(prefix: str) -> list[Row]:
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    return [
        *(("table", f"backbone/embeddings/{name}", f"{prefix}{name}") for name in names),
        ("norm", "backbone/embeddings/layer_norm", f"{prefix}LayerNorm"),
    ]


def _bert_block(attention: str, feed_forward: str, there: str, intermediate: str, output: str, sep: str) -> list[Row]:
    """The block of BERT and of albert_zh; `there` is the scope of the attention, `sep` the separator of names."""
    return [
        *(("dense", f"{attention}/{role}", f"{there}{sep}self{sep}{role}") for role in ("query", "key", "value")),
        ("dense", f"{attention}/output", f"{there}{sep}output{sep}dense"),
        ("norm", f"{attention}/layer_norm", f"{there}{sep}output{sep}LayerNorm"),
        ("dense", f"{feed_forward}/intermediate", f"{intermediate}{sep}dense"),
        ("dense", f"{feed_forward}/output", f"{output}{sep}dense"),
        ("norm", f"{feed_forward}/layer_norm", f"{output}{sep}LayerNorm"),
    ]


_EACH = ("backbone/encoder/attention_{k}", "backbone/encoder/feed_forward_{k}")
_FIRST = ("backbone/encoder/attention_0", "backbone/encoder/feed_forward_0")
_TF1_TOP: list[Row] = [
    ("dense", "backbone/pooler", "bert/pooler/dense"),
    ("dense", "masked_lm/transform", "cls/predictions/transform/dense"),
    ("norm", "masked_lm/layer_norm", "cls/predictions/transform/LayerNorm"),
    ("table", "masked_lm/output_bias", "cls/predictions/output_bias"),
    ("logits", "sentence_pair", "cls/seq_relationship/"),
    ("logits", "classifier", ""),
]


def _bert_tf1() -> tuple[Rule, ...]:
    scope = "bert/encoder/layer_{k}"
    block = _bert_block(*_EACH, f"{scope}/attention", f"{scope}/intermediate", f"{scope}/output", "/")
    return _tf1_rules([*_embeddings("bert/embeddings/"), *block, *_TF1_TOP])


def _albert_zh_tf1(sharing: str) -> tuple[Rule, ...]:
    """Rules of albert_zh's scopes for one of SHARING: what is not shared carries the number of its layer."""
    scope = "bert/encoder/layer_{k}" if sharing == "none" else "bert/encoder/layer_shared"
    own_attention, own_feed_forward = sharing in ("ffn", "none"), sharing in ("attention", "none")
    attention, feed_forward = _EACH[0] if own_attention else _FIRST[0], _EACH[1] if own_feed_forward else _FIRST[1]
    there = f"{scope}/attention" + ("_{k}" if sharing == "ffn" else "")
    suffix = "_{k}" if sharing == "attention" else ""
    block = _bert_block(attention, feed_forward, there, f"{scope}/intermediate{suffix}", f"{scope}/output{suffix}", "/")
    own: list[Row] = [
        ("table", "backbone/embeddings/projection/kernel", "bert/embeddings/word_embeddings_2"),
        ("norm", "pooled_layer_norm", "loss/LayerNorm"),
    ]
    return _tf1_rules([*_embeddings("bert/embeddings/"), *own, *block, *_TF1_TOP])


def _albert_google_tf1() -> tuple[Rule, ...]:
    attention, feed_forward = _EACH
    scope = "bert/encoder/transformer/group_{g}/inner_group_{j}"
    block: list[Row] = [
        *(("dense", f"{attention}/{role}", f"{scope}/attention_1/self/{role}") for role in ("query", "key", "value")),
        ("dense", f"{attention}/output", f"{scope}/attention_1/output/dense"),
        ("norm", f"{attention}/layer_norm", f"{scope}/LayerNorm"),
        ("dense", f"{feed_forward}/intermediate", f"{scope}/ffn_1/intermediate/dense"),
        ("dense", f"{feed_forward}/output", f"{scope}/ffn_1/intermediate/output/dense"),
        ("norm", f"{feed_forward}/layer_norm", f"{scope}/LayerNorm_1"),
    ]
    mapping: Row = ("dense", "backbone/embeddings/projection", "bert/encoder/embedding_hidden_mapping_in")
    return _tf1_rules([*_embeddings("bert/embeddings/"), mapping, *block, *_TF1_TOP])


def _transformers_bert() -> tuple[Rule, ...]:
    scope = "bert.encoder.layer.{k}"
    return _torch_rules(
        [
            *_embeddings("bert.embeddings."),
            *_bert_block(*_EACH, f"{scope}.attention", f"{scope}.intermediate", f"{scope}.output", "."),
            ("dense", "backbone/pooler", "bert.pooler.dense"),
            ("dense", "masked_lm/transform", "cls.predictions.transform.dense"),
            ("norm", "masked_lm/layer_norm", "cls.predictions.transform.LayerNorm"),
            ("bias", "masked_lm/output_bias", "cls.predictions.bias"),
            ("dense", "sentence_pair", "cls.seq_relationship"),
            ("dense", "classifier", "classifier"),
        ]
    )


def _transformers_albert() -> tuple[Rule, ...]:
    attention, feed_forward = _EACH
    scope = "albert.encoder.albert_layer_groups.{g}.albert_layers.{j}"
    return _torch_rules(
        [
            *_embeddings("albert.embeddings."),
            ("dense", "backbone/embeddings/projection", "albert.encoder.embedding_hidden_mapping_in"),
            *(("dense", f"{attention}/{role}", f"{scope}.attention.{role}") for role in ("query", "key", "value")),
            ("dense", f"{attention}/output", f"{scope}.attention.dense"),
            ("norm", f"{attention}/layer_norm", f"{scope}.attention.LayerNorm"),
            ("dense", f"{feed_forward}/intermediate", f"{scope}.ffn"),
            ("dense", f"{feed_forward}/output", f"{scope}.ffn_output"),
            ("norm", f"{feed_forward}/layer_norm", f"{scope}.full_layer_layer_norm"),
            ("dense", "backbone/pooler", "albert.pooler"),
            ("dense", "masked_lm/transform", "predictions.dense"),
            ("norm", "masked_lm/layer_norm", "predictions.LayerNorm"),
            ("bias", "masked_lm/output_bias", "predictions.bias"),
            ("dense", "sentence_pair", "sop_classifier.classifier"),
            ("dense", "classifier", "classifier"),
        ]
    )


def name_map(layout: str, *, sharing: str = "all", inner_group_num: int = 1) -> NameMap:
    """The map of one of LAYOUTS; `sharing` (a config's) is read for albert_zh_tf1 only, which spells it in names."""
    match layout:
        case "bert_tf1":
            rules = _bert_tf1()
        case "albert_zh_tf1":
            rules = _albert_zh_tf1(sharing)
        case "albert_google_tf1":
            rules = _albert_google_tf1()
        case "transformers_bert":
            rules = _transformers_bert()
        case "transformers_albert":
            rules = _transformers_albert()
        case _:
            raise ValueError(f"no layout {layout!r} among {LAYOUTS}")
    grouped = layout in ("albert_google_tf1", "transformers_albert")
    return NameMap(layout, rules, sharing if layout == "albert_zh_tf1" else "all", inner_group_num if grouped else 1)


def detect_layout(names: Iterable[str]) -> NameMap | None:
    """The map that fits raw names of a foreign checkpoint, sharing and groups included; None for an unknown layout."""
    joined = "\n".join(sorted(names))
    inner = [int(j) for j in re.findall(r"(?:/inner_group_|\.albert_layers\.)(\d+)", joined)]
    inner_group_num = max(inner, default=0) + 1
    if "embeddings/word_embeddings_2" in joined:
        if "/layer_shared/attention_" in joined:
            return name_map("albert_zh_tf1", sharing="ffn")
        if "/layer_shared/intermediate_" in joined:
            return name_map("albert_zh_tf1", sharing="attention")
        return name_map("albert_zh_tf1", sharing="all" if "/layer_shared/" in joined else "none")
    if "/encoder/transformer/group_" in joined:
        return name_map("albert_google_tf1", inner_group_num=inner_group_num)
    if re.search(r"/encoder/layer_\d+/attention/self/", joined):
        return name_map("bert_tf1")
    if "encoder.albert_layer_groups." in joined:
        return name_map("transformers_albert", inner_group_num=inner_group_num)
    if re.search(r"(^|\n|\.)encoder\.layer\.\d+\.attention\.self\.", joined):
        return name_map("transformers_bert")
    return None


def canonical_name(layout: str, name: str) -> str | None:
    """The name as the rules spell it: wrappers and old spellings removed; None for what is known not to be a weight.

    Removed are TF-Hub's `module/`, PyTorch's `module.`, an absent `bert.` or `albert.` is added, LayerNorm's
    gamma/beta become weight/bias. Not weights are optimizer slots, counters and index buffers.
    """
    if layout in TF1_LAYOUTS:
        name = name.removeprefix("module/")
        return None if _OPTIMIZER_SLOT.search(name) or _TRAINING_STATE.match(name) else name
    name = name.removeprefix("module.")
    model = layout.removeprefix("transformers_")
    if name.startswith(("embeddings.", "encoder.", "pooler.")):
        name = f"{model}.{name}"
    if _TORCH_DERIVED.search(name):
        return None
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


def tied_to(name: str) -> str | None:
    """The tensor that a canonical transformers name repeats (its tied decoder), or None."""
    return _TORCH_TIED.get(name)


def is_backbone(name: str) -> bool:
    """Whether a canonical foreign name belongs to the encoder rather than to a head or to the optimizer."""
    return name.startswith(("bert/", "bert.", "albert."))


def graph_of_config(config: Config) -> str:
    """The graph that a config's variables belong to; without factorisation all families have BERT's."""
    if not config.projects:
        return "bert"
    return "zh" if config.family == "albert_zh" else "google"


def graph_of(names: Iterable[str]) -> str:
    """The graph that our names belong to: `zh` (bare projection), `google` (projection with bias) or `bert` (none).

    Post-LN and pre-LN of albert_zh have the same names and shapes: only the config tells them apart.
    """
    names = set(names)
    if "backbone/embeddings/projection/bias" in names:
        return "google"
    return "zh" if "backbone/embeddings/projection/kernel" in names else "bert"
