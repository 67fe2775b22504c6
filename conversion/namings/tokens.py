"""Names of transformers' heads on tokens: ForTokenClassification, whose model has no pooler, beside another naming.

Its head is called `classifier`, as that of ForSequenceClassification, whose model has one: by that the two are told
apart. Files of old models for tokens that hold a pooler all the same are read as classifiers of texts.
"""

import dataclasses

from conversion.lazy import Array, Tensors
from conversion.namings.dialects import torch_rules
from conversion.rules import Naming
from modeling.config import Config

_POOLER = "backbone/pooler/"


def tagger_of(naming: Naming) -> Naming:
    """Return the naming of the same code's ForTokenClassification."""

    def rewrite(config: Config, tensors: Tensors) -> tuple[Config, dict[str, Array]]:
        graph, converted = naming.rewrite(config, tensors)
        return graph, {name: value for name, value in converted.items() if not name.startswith(_POOLER)}

    kept = [
        rule
        for rule in naming.rules
        if all(name.startswith("backbone/") and not name.startswith(_POOLER) for name in rule.ours)
    ]
    return dataclasses.replace(
        naming,
        name=f"{naming.name}_tagger",
        detect=(*naming.detect, r"^(module\.)?classifier\.weight$"),
        absent=(r"(^|\.)pooler\.",),
        rules=(*kept, *torch_rules([("dense", "tagger", "classifier")])),
        ties={},
        rewrite=rewrite,
        head_classes={},
    )
