"""Models: tensors in, tensors out; `keras.ops` only, on any Keras backend. Keras is imported when first needed."""

import importlib
from typing import TYPE_CHECKING, Any

from modeling.config import Config, load_config

if TYPE_CHECKING:
    from modeling.body import Backbone
    from modeling.decoder import Decoder
    from modeling.heads import ClassifierModel, PretrainingModel
    from modeling.losses import cross_entropy
    from modeling.randomness import fold_in, seeded
    from modeling.variables import Initialization, count_parameters, declared, named_variables, variable_shapes

__all__ = [
    "Backbone",
    "ClassifierModel",
    "Config",
    "Decoder",
    "Initialization",
    "PretrainingModel",
    "count_parameters",
    "cross_entropy",
    "declared",
    "fold_in",
    "load_config",
    "named_variables",
    "seeded",
    "variable_shapes",
]

_MODULES = {
    "Backbone": "body",
    "ClassifierModel": "heads",
    "Decoder": "decoder",
    "Initialization": "variables",
    "PretrainingModel": "heads",
    "count_parameters": "variables",
    "cross_entropy": "losses",
    "declared": "variables",
    "fold_in": "randomness",
    "named_variables": "variables",
    "seeded": "randomness",
    "variable_shapes": "variables",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'modeling' has no attribute {name!r}")
    return getattr(importlib.import_module(f"modeling.{_MODULES[name]}"), name)
