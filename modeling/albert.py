"""ALBERT (Lan et al. 2020, sections 3.1 and 3.2) as Google released it: a factorised word table and shared layers.

The embedding is normalised in its own width and then projected, with a bias; the masked-LM head narrows to that width.
`*_google_fast.json` of albert_zh is this graph with a feed-forward in 16 groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modeling.bert import body as body
from modeling.dialects import BERT_KEYS, Dialect, is_transformers, transformers

if TYPE_CHECKING:
    from modeling.config import Config

_KEYS = ("embedding_size", "num_hidden_groups", "inner_group_num")


def check(config: Config) -> None:
    """Accept every config."""


DIALECTS = (
    Dialect(
        recognises=lambda values, file_name: (
            not is_transformers(values)
            and ("num_hidden_groups" in values or ("embedding_size" in values and "ln_type" not in values))
        ),
        mandatory=(*BERT_KEYS, *_KEYS),
        # The grouped feed-forward has no key of its own: the name of the file alone tells of it.
        read=lambda values, file_name: {
            "sharing": "all",
            "ffn_groups": 16 if file_name.endswith("_google_fast.json") else 1,
            **values,
        },
    ),
    transformers(
        "albert",
        *_KEYS,
        recognises=lambda values: "embedding_size" in values,
        fields=lambda values: {"sharing": "all"},
    ),
)
