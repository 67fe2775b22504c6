"""albert_zh, the Chinese ALBERT (https://github.com/brightmart/albert_zh): ALBERT's factorisation in another order.

Word vectors are projected, without a bias, before positions and segments are added in the model's width; the masked-LM
head keeps that width. Its pre-LN graph normalises the pooled vector in front of a classifier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modeling.dialects import BERT_KEYS, Dialect, Values, is_transformers

if TYPE_CHECKING:
    from modeling.body import Body
    from modeling.computation import Computation
    from modeling.config import Config
    from modeling.variables import Initialization


def body(config: Config, initialization: Initialization, computation: Computation) -> Body:
    """Return BERT's body, whose embeddings project before the sum."""
    from modeling.body import Backbone

    return Backbone(config, initialization, computation, projects_first=True)


def check(config: Config) -> None:
    """Accept every config."""


def normalizes_pooled(config: Config) -> bool:
    """Whether a LayerNorm is between pooler and classifier: in the pre-LN graph."""
    return config.ln_type == "preln"


def _read(values: Values, file_name: str) -> dict[str, Any]:
    # The original code treats null as post-LN and any other word than "postln" as pre-LN, and projects equal widths.
    ln_type = "postln" if values["ln_type"] in (None, "postln") else "preln"
    equal = values["embedding_size"] == values["hidden_size"]
    return {"sharing": "all", "projects_equal_widths": equal, **values, "ln_type": ln_type}


DIALECTS = (
    Dialect(
        recognises=lambda values, file_name: (
            not is_transformers(values) and "ln_type" in values and "num_hidden_groups" not in values
        ),
        mandatory=(*BERT_KEYS, "embedding_size"),
        read=_read,
    ),
)
