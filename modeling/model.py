"""The one model: a body and the heads on it; `PretrainingModel` and its neighbours below are choices of heads."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import keras

from ground.tensors import Tensor
from modeling.beginnings import Computed
from modeling.body import Body
from modeling.computation import Computation, Sizes
from modeling.config import Config
from modeling.encoder import Encoder
from modeling.families import FAMILIES
from modeling.heads import ClassifierHead, Head, MaskedLMHead, PairHead, TokenHead
from modeling.layouts import LayoutRules, transformer_rules
from modeling.randomness import seeded_by_default
from modeling.scaffold import scaffold
from modeling.variables import Initialization

HeadOfModel = Callable[[Config, Initialization, Computation, Body], Head]
"""Constructor of a head: a class of `modeling.heads`, its own arguments filled in by `functools.partial`."""


class LanguageModel(keras.Model):
    """A body and heads; built by its constructor, called on a dict of features.

    Args:
        config: graph and shapes.
        heads: constructors of the heads, in the order in which they are computed.
        computation: precision, initial values, rematerialisation and scan.
        name: of the Keras model; no part of the variables' names.
    """

    def __init__(
        self,
        config: Config,
        heads: Sequence[HeadOfModel],
        computation: Computation = Computation(),  # noqa: B008
        *,
        name: str = "language_model",
    ) -> None:
        super().__init__(dtype=computation.dtype, name=name)
        self.config = config
        initialization = Initialization(config.initializer_range, computation.seed)
        self.backbone = FAMILIES[config.family].body(config, initialization, computation)
        self.heads = tuple(head(config, initialization, computation, self.backbone) for head in heads)
        # Keras tracks layers, not heads. The order is that of the variables, by which gradients are summed.
        self.head_layers = [layer for head in self.heads for layer in head.layers]
        self.scaffold = scaffold(config, initialization, computation)
        # JAX takes no seed of more than 32 bits; engines draw from keys of their own, which have all 64.
        self.seed_generator = keras.random.SeedGenerator(computation.seed % 2**32)
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Create every variable; done by the constructor."""
        for layer in (self.backbone, *self.head_layers, *([self.scaffold] if self.scaffold else [])):
            layer.build(None)

    @property
    def layout_rules(self) -> LayoutRules:
        """How the variables may be cut over devices."""
        return transformer_rules(self.config)

    @property
    def stacks(self) -> tuple[Encoder, ...]:
        """The stacks of blocks, whose weights an engine may gather block by block."""
        return self.backbone.stacks

    def call(
        self, features: Mapping[str, Tensor], training: bool = False, scores_only: bool = False, **further: Any
    ) -> dict[str, Any]:
        """Compute the body and every head.

        Args:
            features: `input_ids` [B, L], and what else body and heads read.
            training: apply dropout, keyed by the surrounding `seeded` scope or, outside of any, by the model itself.
            scores_only: return the outputs of the heads alone. Where all of them read the first position only, the
                last block computes no other: the same scores, from fewer operations.
            **further: arguments of the body, as `word_noise_BLE`.

        Returns:
            The outputs of all heads and of the body, by name.
        """
        if scores_only and all(head.reads_first_only for head in self.heads):
            further["first_only"] = True
        with seeded_by_default(self.seed_generator, training):
            outputs = self.backbone(features, training=training, **further)
            found: dict[str, Any] = {}
            for head in self.heads:
                found |= head(outputs, features, self.backbone, training)
        return found if scores_only else {**found, **outputs}

    def computed(self, names: Collection[str]) -> list[Computed]:
        """Return the variables that heads compute from tensors of a checkpoint, by the names of all that it has."""
        found: list[Computed] = []
        for head in self.heads:
            found += getattr(head, "computed", lambda names: [])({*names})
        return found

    def operations(self, sizes: Sizes) -> int:
        """Return the floating-point operations of the products of one example, forward."""
        return self.backbone.operations(sizes) + sum(head.operations(sizes, self.backbone) for head in self.heads)


def PretrainingModel(  # noqa: N802
    config: Config,
    num_pair_labels: int = 2,
    computation: Computation = Computation(),  # noqa: B008
    *,
    name: str = "pretraining_model",
) -> LanguageModel:
    """Return a model with a masked-LM head and, unless `num_pair_labels` is 0, a sentence-pair head.

    It scores `masked_lm_logits` float32 [B, P, V] at `masked_lm_positions` [B, P] (by default at every position) and
    `sentence_pair_logits` float32 [B, C].
    """
    pair = [partial(PairHead, num_labels=num_pair_labels)] if num_pair_labels else []
    return LanguageModel(config, [MaskedLMHead, *pair], computation, name=name)


def ClassifierModel(  # noqa: N802
    config: Config,
    num_labels: int,
    dropout: float = 0.1,
    computation: Computation = Computation(),  # noqa: B008
    *,
    name: str = "classifier_model",
) -> LanguageModel:
    """Return a model with a linear classifier, `logits` float32 [B, C], on the pooled vector under `dropout`."""
    head = partial(ClassifierHead, num_labels=num_labels, dropout=dropout)
    return LanguageModel(config, [head], computation, name=name)


def TaggerModel(  # noqa: N802
    config: Config,
    num_tags: int,
    dropout: float = 0.1,
    computation: Computation = Computation(),  # noqa: B008
    *,
    name: str = "tagger_model",
) -> LanguageModel:
    """Return a model with `tagger_logits` float32 [B, L, C]: the tags of every token."""
    head = partial(TokenHead, name="tagger", num_labels=num_tags, dropout=dropout)
    return LanguageModel(config, [head], computation, name=name)


def SpanModel(  # noqa: N802
    config: Config,
    dropout: float = 0.1,
    computation: Computation = Computation(),  # noqa: B008
    *,
    name: str = "span_model",
) -> LanguageModel:
    """Return a model with `span_logits` float32 [B, L, 2]: every token as the first and as the last of an answer."""
    head = partial(TokenHead, name="span", num_labels=2, dropout=dropout)
    return LanguageModel(config, [head], computation, name=name)
