"""ERNIE-M (Ouyang et al. 2021): XLM-R's graph without token types, where masked tokens may read another text alone.

Positions begin at 2 whatever the padding. A model begins from XLM-R's weights too: the one row of its token types is
added to every position.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from modeling import bert
from modeling.beginnings import Beginning
from modeling.dialects import Values, transformers

if TYPE_CHECKING:
    from modeling.body import Body
    from modeling.computation import Computation
    from modeling.config import Config
    from modeling.variables import Initialization

_POSITIONS, _TYPES = (f"backbone/embeddings/{name}_embeddings" for name in ("position", "token_type"))


def body(config: Config, initialization: Initialization, computation: Computation) -> Body:
    """Return XLM-R's encoder, which takes tokens that read a text but are not read."""
    from modeling.queries import WithQueries

    return WithQueries(config, initialization, computation)


def check(config: Config) -> None:
    """Raise `UsageError` for what is not ERNIE-M's graph."""
    bert.check(config)
    if config.type_vocab_size:
        raise UsageError(f"type_vocab_size is {config.type_vocab_size}; ERNIE-M has no token types: 0")


def beginning(variables: Collection[str], tensors: Collection[str]) -> Beginning:
    """Return how a model begins from XLM-R: what is added to every position there is a part of the positions here."""
    return Beginning(added={_POSITIONS: _TYPES}, unused={_TYPES}) if _TYPES in tensors else Beginning()


def _fields(values: Values) -> dict[str, Any]:
    """Return what ERNIE-M's codes have whatever their JSON says: positions from 2, no token types, and its epsilon."""
    return {"position_offset": 2, "type_vocab_size": 0, "layer_norm_eps": 1e-5}


DIALECTS = (transformers("ernie_m", "pad_token_id", fields=_fields, absent=("type_vocab_size",)),)
