"""The classifier of a checkpoint in the order of a task's classes: two files may list the same names in another order.

Contradiction, entailment and neutral are 0, 1 and 2 in VECO's released models, and 2, 0 and 1 in ERNIE-M's.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from conversion.beside import class_names, labels_of
from conversion.lazy import derived
from conversion.readers import Checkpoint


def in_order_of(checkpoint: Checkpoint, labels: Sequence[str]) -> tuple[Checkpoint, str]:
    """Return the checkpoint with its classes in the order of a task's, and what is to be said of that; empty: nothing.

    Classes are matched by name where both have the same names. Other names are taken one by one, as they stand.

    Example:
        classes of the checkpoint no yes, labels yes no
        classifier/bias [1 2] becomes [2 1]

    Args:
        checkpoint: in our names.
        labels: of the task, in the order of their ids; types of entities for a tagger.

    Raises:
        UsageError: a file beside the checkpoint that names its classes is damaged.
    """
    theirs, ours = labels_of(checkpoint), class_names(checkpoint, labels)
    if not labels or not theirs or len(theirs) != len(ours) or theirs == ours:
        return checkpoint, ""
    if set(theirs) != set(ours):
        return checkpoint, f"; its classes {_listed(theirs)} are taken for {_listed(ours)}, in this order"
    order = np.array([theirs.index(name) for name in ours])
    tensors = dict(checkpoint.tensors)
    for name, value in tensors.items():
        if name.partition("/")[0] in _HEADS and value.shape[-1] == len(ours):
            tensors[name] = derived(value.shape, lambda array: array[..., order], value)
    return dataclasses.replace(
        checkpoint, tensors=tensors
    ), f"; its classes {_listed(theirs)} were put in the order {_listed(ours)}"


_HEADS = ("classifier", "tagger")


def _listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
