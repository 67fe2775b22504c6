"""How a model is computed (precision, initial weights, rematerialisation, scan), and on how much of one example.

Without Keras, so that flags become a `Computation` before a backend is started.
"""

from collections.abc import Mapping
from dataclasses import dataclass

DTYPES: Mapping[str, str] = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
"""`--precision` -> the Keras dtype policy; variables, LayerNorm, softmax and logits are float32 in all."""

SCAFFOLD = "scaffold"
"""Name of the layer that a model has only while it learns; see `modeling/scaffold.py`."""

LANGUAGES = "languages"
"""Name of the layer of the vectors by which tokens say their language; see `modeling/language_signal.py`."""


@dataclass(frozen=True)
class Computation:
    """The choices that change neither the graph of a model nor the names of its variables.

    Attributes:
        dtype: Keras dtype policy, a value of `DTYPES`.
        seed: initial values are a function of it and of the variables' names.
        remat: recompute blocks in the backward pass instead of keeping their inner states.
        scan: compile one block and loop it over all: deep models compile in minutes; same variables and numbers.
    """

    dtype: str = "float32"
    seed: int = 0
    remat: bool = False
    scan: bool = False


@dataclass(frozen=True)
class Sizes:
    """Lengths of one example, by which bricks count their operations and states.

    Attributes:
        tokens: positions that the brick computes, padding included.
        memory: positions that attention reads; 0: its own `tokens`.
        scored: positions that are scored over the vocabulary.
        target: positions of the decoder, in a model that has one.
        other: positions of the other text, in a model that reads two beside each other.
        queries: positions beside these that read them and themselves alone.
    """

    tokens: int
    memory: int = 0
    scored: int = 0
    target: int = 0
    other: int = 0
    queries: int = 0


@dataclass(frozen=True)
class States:
    """Elements of one example that a brick computes and the backward pass may need.

    Attributes:
        dense: of the model's width.
        inner: of the feed-forward's width.
        scores: of attention, over all heads.
    """

    dense: int = 0
    inner: int = 0
    scores: int = 0

    def __add__(self, other: "States") -> "States":
        return States(self.dense + other.dense, self.inner + other.inner, self.scores + other.scores)
