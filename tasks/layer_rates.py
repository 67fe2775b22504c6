"""Which variables of an encoder learn, how fast and from when: by the depth of the layer that they belong to.

Layer-wise decay as in ELECTRA and its successors, unlike the script released with StructBERT, which gives the upper
layers the smaller rates; gradual unfreezing from the top as Howard and Ruder (2018, section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from absl.app import UsageError

from modeling.sharing import shared_bricks

if TYPE_CHECKING:
    from modeling.config import Config

BLOCKS = r"^backbone/encoder/((cross_)?attention|feed_forward)_\d+/"
"""The variables that Child-Tuning D chooses among; embeddings, pooler and head are always trained."""
EMBEDDINGS = r"^backbone/embeddings/"


def frozen_expressions(config: Config, layers: int) -> list[str]:
    """Return expressions over the names of the variables that do not learn when the `layers` lowest layers are frozen.

    The embeddings below them are frozen, too; 0 freezes nothing.

    Raises:
        UsageError: there are not so many layers, or they share weights with layers above.
    """
    if layers > config.num_hidden_layers:
        raise UsageError(
            f"--freeze_layers={layers}: the model has {config.num_hidden_layers} layers; freeze at most so many"
        )
    _check_separate(config, [layers], f"--freeze_layers={layers}")
    lowest = _blocks(config)[: layers * config.inner_group_num]
    return [EMBEDDINGS, *dict.fromkeys(lowest)] if layers else []


def learning_rate_multipliers(
    config: Config, decay: float, join_proportion: float, num_steps: int
) -> list[tuple[str, float, int]]:
    """Return (expression over names, factor on the learning rate, first step of learning) of embeddings and blocks.

    Pooler and head, which no expression covers, have factor 1 from step 0. The highest of n blocks has `decay`, the
    one below it its square, and so on; the embeddings have `decay`**(n + 1). Blocks join from the highest to the
    lowest at equal distances, the embeddings last, at `join_proportion` of all steps.

    Raises:
        UsageError: layers share weights.
    """
    if decay == 1 and not join_proportion:
        return []
    flag = f"--layer_decay={decay:g}" if decay != 1 else f"--gradual_unfreezing={join_proportion:g}"
    _check_separate(config, range(1, config.num_hidden_layers), flag)
    expressions = [EMBEDDINGS, *_blocks(config)]
    below_head = range(len(expressions), 0, -1)
    return [
        (expression, decay**depth, round(join_proportion * num_steps * depth / len(expressions)))
        for expression, depth in zip(expressions, below_head, strict=True)
    ]


def _blocks(config: Config) -> list[str]:
    return [
        rf"^backbone/encoder/((cross_)?attention_{attention}|feed_forward_{feed_forward})/"
        for attention, feed_forward in shared_bricks(config)
    ]


def _check_separate(config: Config, boundaries: Iterable[int], flag: str) -> None:
    """Raise where layers below one of the boundaries share weights with layers above it."""
    bricks = shared_bricks(config)
    for boundary in boundaries:
        below, above = bricks[: boundary * config.inner_group_num], bricks[boundary * config.inner_group_num :]
        if any({brick[kind] for brick in below} & {brick[kind] for brick in above} for kind in (0, 1)):
            raise UsageError(
                f"{flag}: layers of this model share weights (sharing={config.sharing}, {config.num_hidden_layers} "
                f"layers in {config.num_hidden_groups} groups), and what all use cannot differ by layer; "
                "use a config whose layers have weights of their own, or leave the flag out"
            )
