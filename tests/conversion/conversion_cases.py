"""Tiny configs of every published graph and random tensors for them, without building a model twice."""

import functools
from typing import Any

import numpy as np

from modeling.config import Config

_SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_WIDE: dict[str, Any] = _SIZES | {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
CONFIGS = {
    "bert": Config(family="bert", **_SIZES),
    "bert_erf": Config(family="bert", **(_SIZES | {"hidden_act": "gelu_erf"})),
    "bert_shared": Config(family="bert", sharing="all", **_SIZES),
    "google": Config(family="albert", embedding_size=4, sharing="all", **_SIZES),
    "google_groups": Config(
        family="albert", embedding_size=4, sharing="all", num_hidden_groups=2, inner_group_num=3, **_SIZES
    ),
    "google_more_groups": Config(family="albert", embedding_size=4, sharing="all", num_hidden_groups=12, **_SIZES),
    "google_odd_groups": Config(
        family="albert",
        embedding_size=4,
        sharing="all",
        num_hidden_groups=14,
        **(_SIZES | {"num_hidden_layers": 18}),
    ),
    "google_unshared_ffn": Config(family="albert", embedding_size=4, sharing="attention", **_SIZES),
    "google_wide": Config(family="albert", embedding_size=8, sharing="all", **(_SIZES | {"hidden_act": "relu"})),
    "google_fast": Config(family="albert", embedding_size=4, sharing="all", ffn_groups=16, **_WIDE),
    "zh_all": Config(family="albert_zh", embedding_size=4, sharing="all", **_SIZES),
    "zh_attention": Config(family="albert_zh", embedding_size=4, sharing="attention", **_SIZES),
    "zh_ffn": Config(family="albert_zh", embedding_size=4, sharing="ffn", **_SIZES),
    "zh_none": Config(family="albert_zh", embedding_size=4, sharing="none", **_SIZES),
    "zh_preln": Config(family="albert_zh", embedding_size=4, sharing="all", ln_type="preln", **_SIZES),
    "padded": Config(
        family="bert", vocab_padding_multiple=20, position_offset=2, **(_SIZES | {"num_hidden_layers": 2})
    ),
}


@functools.cache
def shapes(name: str, num_pair_labels: int = 2, num_labels: int = 0) -> dict[str, tuple[int, ...]]:
    """Shapes of the pretraining model, or with `num_labels` of the classifier."""
    from modeling import ClassifierModel, PretrainingModel, variable_shapes

    config = CONFIGS[name]
    if num_labels:
        return variable_shapes(lambda: ClassifierModel(config, num_labels))
    return variable_shapes(lambda: PretrainingModel(config, num_pair_labels=num_pair_labels))


def random_tensors(name: str, *, num_pair_labels: int = 2, num_labels: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of the pretraining model (or of the classifier, with `num_labels`), none of them symmetric."""
    generator = np.random.default_rng(seed)
    return {
        key: generator.normal(1.0 if key.endswith("gamma") else 0.0, 0.3, shape).astype(np.float32)
        for key, shape in shapes(name, num_pair_labels, num_labels).items()
    }
