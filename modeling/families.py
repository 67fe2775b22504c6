"""The table of published graphs, one row each; a row's functions are those of its paper's module.

Keras is imported only where a body is constructed, so that a config is checked without it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modeling import albert, albert_zh, beginnings, bert, ernie_m, palm, palm_en, veco
from modeling.beginnings import Beginning
from modeling.dialects import Dialect

if TYPE_CHECKING:
    from modeling.body import Body
    from modeling.computation import Computation
    from modeling.config import Config
    from modeling.variables import Initialization


def _no(config: Config) -> bool:
    return False


def _of_the_source(config: Config) -> int:
    return config.max_sequence_length


STRIPPED = ("heads_by_brick", "units_by_brick")
"""The fields of a model that a part of its heads and units has left."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One published graph.

    Attributes:
        body: constructor of the part between tokens and heads.
        check: raises `UsageError` for a config that the graph cannot have.
        dialects: the published JSON forms of its configs.
        normalizes_pooled: whether the pooled vector is normalised in front of a classifier.
        decodes: whether a model may have a decoder.
        max_target_length: the positions of a decoder.
        fields: further fields of `Config` that may differ from their default.
        begins: (variables, tensors of a checkpoint) -> how a model may begin from the checkpoint of another shape.
    """

    body: Callable[[Config, Initialization, Computation], Body]
    check: Callable[[Config], None]
    dialects: tuple[Dialect, ...] = ()
    normalizes_pooled: Callable[[Config], bool] = _no
    decodes: bool = False
    max_target_length: Callable[[Config], int] = _of_the_source
    fields: tuple[str, ...] = ()
    begins: Callable[[Collection[str], Collection[str]], Beginning] = beginnings.by_name


FAMILIES: Mapping[str, Family] = {
    "bert": Family(body=bert.body, check=bert.check, dialects=bert.DIALECTS, fields=STRIPPED),
    "albert": Family(body=albert.body, check=albert.check, dialects=albert.DIALECTS, fields=STRIPPED),
    "albert_zh": Family(
        body=albert_zh.body,
        check=albert_zh.check,
        dialects=albert_zh.DIALECTS,
        normalizes_pooled=albert_zh.normalizes_pooled,
        fields=STRIPPED,
    ),
    "palm": Family(body=palm.body, check=palm.check, dialects=palm.DIALECTS, decodes=True),
    "palm_en": Family(
        body=palm_en.body,
        check=palm_en.check,
        dialects=palm_en.DIALECTS,
        decodes=True,
        max_target_length=palm_en.max_target_length,
    ),
    "veco": Family(
        body=veco.body,
        check=veco.check,
        dialects=veco.DIALECTS,
        decodes=True,
        fields=("cross_attention", "embedding_scale"),
        begins=veco.beginning,
    ),
    "ernie_m": Family(
        body=ernie_m.body,
        check=ernie_m.check,
        dialects=ernie_m.DIALECTS,
        fields=("legacy_mask", *STRIPPED),
        begins=ernie_m.beginning,
    ),
}
