"""What a model may begin with from a checkpoint of another shape of its family, without Keras."""

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What differs from each variable taking the tensor of its own name.

    Attributes:
        origins: variable -> the tensor that it begins as a copy of.
        new: variables that the checkpoint need not have.
        unused: tensors that the model need not have.
        added: variable -> the tensor whose first row is added to every row of the tensor that it takes.
    """

    origins: Mapping[str, str] = field(default_factory=dict)
    new: Set[str] = frozenset()
    unused: Set[str] = frozenset()
    added: Mapping[str, str] = field(default_factory=dict)


def by_name(variables: Collection[str], tensors: Collection[str]) -> Beginning:
    """Return that every variable takes the tensor of its own name."""
    return Beginning()
