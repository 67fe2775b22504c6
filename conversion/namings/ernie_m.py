"""Names of ERNIE-M (Ouyang et al. 2021) in transformers 4 and in Paddle: XLM-R's graph without token types.

Paddle keeps matrices as [in, out], and makes the feed-forward four times as wide as the model whatever its JSON says.
transformers 5 has no class for ERNIE-M, so that nothing is written under these names: a model is written under those of
RoBERTa and XLM-R, with a token type that adds nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from absl.app import UsageError

from conversion.graphs import Graph
from conversion.lazy import Array, Tensors
from conversion.namings.dialects import ATTENTION, FEED_FORWARD, Row, paddle_rules, torch_rules
from conversion.rules import Naming, Rule
from modeling.config import Config

_LAYER = "ernie_m.encoder.layers.{k}"
_OFFSET = 2
GRAPH = Graph(
    family="ernie_m",
    title="ERNIE-M graph",
    mark="none: its variables are those of BERT",
    describes=lambda config: False,
    transformers=lambda config: "roberta",
)


def _name(name: str) -> str | None:
    """Spell a name as models with a head do."""
    name = name.removeprefix("module.")
    if name.startswith(("embeddings.", "encoder.", "pooler.")):
        name = f"ernie_m.{name}"
    return None if name.endswith("embeddings.position_ids") else name


def _width(tensors: Tensors) -> Mapping[str, Any]:
    kernel = tensors.get("backbone/encoder/feed_forward_0/intermediate/kernel")
    return {} if kernel is None else {"intermediate_size": kernel.shape[-1]}


def _as_ernie(config: Config, tensors: Tensors) -> tuple[Config, dict[str, Array]]:
    """Return the model itself; raise `UsageError` for a graph that ERNIE-M's codes do not compute."""
    reasons = {
        "it has token types": config.type_vocab_size != 0,
        f"its positions begin at {config.position_offset}": config.position_offset != _OFFSET,
        "its layers are shared": config.sharing != "none",
        "its layers are groups of blocks": config.inner_group_num != 1,
        "its layers are pre-LN": config.ln_type != "postln",
        "it has a final LayerNorm": config.final_layer_norm,
        "its feed-forward is split": config.ffn_groups != 1,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(f"this model is none of ERNIE-M's: {reason}")
    return config, dict(tensors)


def _naming(name: str, projections: str, rules: Callable[[Iterable[Row]], tuple[Rule, ...]]) -> Naming:
    embeddings = "backbone/embeddings"
    rows: list[Row] = [
        ("table", f"{embeddings}/word_embeddings", "ernie_m.embeddings.word_embeddings"),
        ("table", f"{embeddings}/position_embeddings", "ernie_m.embeddings.position_embeddings"),
        ("norm", f"{embeddings}/layer_norm", "ernie_m.embeddings.layer_norm"),
        *(("dense", f"{ATTENTION}/{role}", f"{projections}.{role[0]}_proj") for role in ("query", "key", "value")),
        ("dense", f"{ATTENTION}/output", f"{_LAYER}.self_attn.out_proj"),
        ("norm", f"{ATTENTION}/layer_norm", f"{_LAYER}.norm1"),
        ("dense", f"{FEED_FORWARD}/intermediate", f"{_LAYER}.linear1"),
        ("dense", f"{FEED_FORWARD}/output", f"{_LAYER}.linear2"),
        ("norm", f"{FEED_FORWARD}/layer_norm", f"{_LAYER}.norm2"),
        ("dense", "backbone/pooler", "ernie_m.pooler.dense"),
        ("dense", "classifier", "classifier"),
    ]
    return Naming(
        name=name,
        family="ernie_m",
        container="read only",
        detect=(rf"encoder\.layers\.\d+{projections.removeprefix(_LAYER)}\.q_proj\.", r"embeddings\.layer_norm\."),
        rules=rules(rows),
        canonical=_name,
        backbone=("ernie_m.",),
        implies=_width,
        rewrite=_as_ernie,
        config_keys=(),
    )


NAMINGS = (
    _naming("ernie_m", f"{_LAYER}.self_attn.self_attn", torch_rules),
    _naming("ernie_m_paddle", f"{_LAYER}.self_attn", paddle_rules),
)
