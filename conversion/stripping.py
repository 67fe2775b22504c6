"""Take the heads and feed-forward units that pruning has made 0 out of the weights: a smaller model of equal outputs.

A head whose rows of the output matrix are all 0 adds nothing, whatever it attends to, and so does a unit whose row is.
Their columns of the matrices before, their biases and their rows leave. Where all layers keep as many units, that is
the model's `intermediate_size`, which every format has; else the config says how many each layer keeps.
"""

import dataclasses
import re

import numpy as np
from absl.app import UsageError

from conversion.lazy import Array, Tensors, derived
from conversion.readers import Checkpoint
from modeling.config import Config
from modeling.families import FAMILIES, STRIPPED

_TOLERANCE = 1e-4
_OUTPUT = re.compile(r"(backbone/encoder/(attention|feed_forward)_(\d+))/output/kernel")


def strip(config: Config, tensors: Tensors) -> tuple[Config, dict[str, Array]]:
    """Return config and tensors (our names) without heads and units that are 0; a layer keeps one of each at least.

    Raises:
        UsageError: there is nothing to take out, or the family's layers cannot differ.
    """
    if not {*STRIPPED} <= {*FAMILIES[config.family].fields} or config.ffn_groups != 1:
        what = "of this family" if config.ffn_groups == 1 else "whose feed-forward is in groups"
        raise UsageError(f'a model {what} ("{config.family}") cannot be stripped: its layers all have the same widths')
    head_size = config.hidden_size // config.num_attention_heads
    stripped, kept = dict(tensors), {"attention": dict[int, int](), "feed_forward": dict[int, int]()}
    for match in filter(None, map(_OUTPUT.fullmatch, tensors)):
        brick, side, number = match[1], match[2], int(match[3])
        live_R = np.any(np.asarray(tensors[match[0]]) != 0, axis=1, keepdims=True)[:, 0]
        if side == "attention":
            live_R = np.repeat(np.any(live_R.reshape(-1, head_size), axis=1, keepdims=True)[:, 0], head_size)
        if not live_R.any():
            live_R[: head_size if side == "attention" else 1] = True
        kept[side][number] = int(live_R.sum()) // (head_size if side == "attention" else 1)
        if live_R.all():
            continue
        stripped[match[0]] = _taken(tensors[match[0]], live_R, 0)
        for inner in ("query", "key", "value") if side == "attention" else ("intermediate",):
            for name, axis in ((f"{brick}/{inner}/kernel", 1), (f"{brick}/{inner}/bias", 0)):
                stripped[name] = _taken(tensors[name], live_R, axis)
    if all(stripped[name] is tensors[name] for name in tensors):
        raise UsageError(
            "nothing to take out: no head and no unit of this model is all 0; prune it with --pruning=structured"
        )
    heads, units = ([value for _, value in sorted(kept[side].items())] for side in ("attention", "feed_forward"))
    return _described(config, heads, units), stripped


def _described(config: Config, heads: list[int], units: list[int]) -> Config:
    """Return the config of so many heads and units by brick, in the plainest form."""
    alike = len({*units}) == 1
    return dataclasses.replace(
        config,
        heads_by_brick=() if {*heads} == {config.num_attention_heads} else tuple(heads),
        intermediate_size=units[0] if alike else config.intermediate_size,
        units_by_brick=() if alike else tuple(units),
    )


def _taken(value: Array, live_R: np.ndarray, axis: int) -> Array:
    """Return the live rows or columns of a tensor."""
    shape = tuple(int(live_R.sum()) if place == axis else size for place, size in enumerate(value.shape))
    return derived(shape, lambda array: np.compress(live_R, array, axis=axis), value)


def told(whole: Checkpoint, stripped: Checkpoint) -> str:
    """Return what has left and how far the outputs are apart, for people; raises `UsageError` where they differ."""
    from conversion.parity import our_outputs, random_features

    sizes = [sum(value.size for value in each.tensors.values()) for each in (whole, stripped)]
    assert whole.config is not None
    features = random_features(whole.config)
    ours, theirs = (our_outputs(each, features) for each in (whole, stripped))
    gap = max(float(np.max(np.abs(ours[name] - theirs[name]), initial=0.0)) for name in ours)
    if not gap <= _TOLERANCE:
        raise UsageError(f"--strip: the outputs of what is left differ by {gap:.1e}; this is a defect, report it")
    return f"{sizes[0]:,} parameters become {sizes[1]:,}; outputs differ by {gap:.1e} at most"
