"""How a model is computed, as one value: precision, initial weights, and what is recomputed or looped over.

Without Keras, so that flags become a `Computation` before a backend is started.
"""

from collections.abc import Mapping
from dataclasses import dataclass

DTYPES: Mapping[str, str] = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
"""`--precision` -> the Keras dtype policy; variables, LayerNorm, softmax and logits are float32 in all."""


@dataclass(frozen=True)
class Computation:
    """What changes how a model is computed but neither its graph nor the names of its variables.

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
