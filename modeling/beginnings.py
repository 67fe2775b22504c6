"""What a model may begin with from a checkpoint of another shape of its family, without Keras."""

from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, field
from typing import Any


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


@dataclass(frozen=True)
class Computed:
    """A variable that is computed from tensors of a checkpoint.

    Attributes:
        variable: its name.
        shape: of it.
        sources: names of the tensors.
        function: their numbers -> its own.
        unused: tensors that the model has no further use for.
    """

    variable: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    function: Callable[..., Any]
    unused: Set[str] = frozenset()
