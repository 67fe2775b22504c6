"""BERT (Devlin et al. 2019), and RoBERTa (2019) and XLM-R (2020), which are one graph.

The word table is as wide as the model. RoBERTa's positions begin behind the row of its padding id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from modeling.dialects import BERT_KEYS, Dialect, Values, is_transformers, transformers, whole_number

if TYPE_CHECKING:
    from modeling.body import Body
    from modeling.computation import Computation
    from modeling.config import Config
    from modeling.variables import Initialization


def body(config: Config, initialization: Initialization, computation: Computation) -> Body:
    """Return embeddings, encoder and pooler."""
    from modeling.body import Backbone

    return Backbone(config, initialization, computation)


def check(config: Config) -> None:
    """Raise `UsageError` for a factorised embedding."""
    if config.embedding_size != config.hidden_size:
        raise UsageError(
            f"embedding_size {config.embedding_size} differs from hidden_size {config.hidden_size}: BERT's embedding "
            'is not factorised; use family "albert" or "albert_zh"'
        )
    if config.projects_equal_widths:
        raise UsageError(
            'projects_equal_widths is True: BERT\'s embedding is not projected; use family "albert" or "albert_zh"'
        )


def roberta_fields(values: Values) -> dict[str, Any]:
    """Return the fields that RoBERTa's JSON has under other names."""
    return {"position_offset": whole_number(values, "pad_token_id") + 1}


DIALECTS = (
    Dialect(
        recognises=lambda values, file_name: (
            not is_transformers(values)
            and not values.keys() & {"embedding_size", "ln_type", "num_hidden_groups", "palm"}
        ),
        mandatory=BERT_KEYS,
        read=lambda values, file_name: dict(values),
    ),
    transformers("bert", recognises=lambda values: "embedding_size" not in values),
    transformers("roberta", "pad_token_id", fields=roberta_fields),
    transformers("xlm-roberta", "pad_token_id", fields=roberta_fields),
    transformers("sbert"),  # SOFA's StructBERT (Wang et al. 2020)
)
