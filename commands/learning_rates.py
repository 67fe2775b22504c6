"""The learning rate of fine-tuning where none is given: by the size of the encoder, after what its authors used.

A rate that suits a base model throws the weights of a very large one away (ALBERT xlarge and xxlarge learn nothing at
2e-5 in many reports), and leaves a tiny one where it was. Size is the number of weights that an input passes in the
encoder, shared or not: ALBERT's sharing cuts parameters, not the depth through which an error comes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modeling.config import Config


@dataclass(frozen=True)
class Size:
    """One row of `SIZES`.

    Attributes:
        name: what models up to here are called.
        most: weights of the encoder, at most.
        rate: of fine-tuning.
        source: who used it.
    """

    name: str
    most: float
    rate: float
    source: str


SIZES = (
    # 4 layers of 312: 4.7M; 6 of 384: 10.6M.
    Size("small", 30e6, 1e-4, "albert_zh's recipe for tiny and small"),
    # 12 layers of 768: 85M.
    Size("base", 150e6, 5e-5, "the scripts of BERT, StructBERT and ERNIE-M; BERT's paper tries 2e-5 to 5e-5"),
    # 24 layers of 1,024: 302M.
    Size("large", 600e6, 2e-5, "albert_zh's recipe for large, StructBERT's and VECO's"),
    # 24 layers of 2,048: 1.2G; 12 of 4,096: 2.4G.
    Size("very large", float("inf"), 1e-5, "ALBERT's rates for xxlarge, which is known to fail at 2e-5"),
)
"""From small to large; the first one whose `most` is not exceeded is the model's."""


def encoder_weights(config: Config) -> int:
    """Return how many weights of matrices a token passes in the encoder, those that layers share counted every time."""
    width, inner = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * config.inner_group_num * (4 * width * width + 2 * width * inner)


def default_learning_rate(config: Config) -> tuple[float, str]:
    """Return the learning rate for a model of this shape, and why it is that one, for the preamble."""
    weights = encoder_weights(config)
    size = next(row for row in SIZES if weights <= row.most)
    shape = f"{config.num_hidden_layers} layers of width {config.hidden_size}"
    return size.rate, f"{size.rate:g}, for a {size.name} model ({shape}): {size.source}; --learning_rate is not given"
