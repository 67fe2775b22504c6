"""The weights that a run starts from, or that it is scored with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from absl.app import UsageError

from ground.addresses import shown

if TYPE_CHECKING:
    import keras

    from commands.devices import AnyEngine
    from conversion.lazy import Array
    from modeling.config import Config

    Adjust = Callable[[dict[str, Array]], None]


def initialize(
    model: keras.Model,
    config: Config,
    path: str,
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    adjust: Adjust | None = None,
    labels: Sequence[str] = (),
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Load the weights of any checkpoint into the model; return what became of every tensor.

    Args:
        model: built.
        config: its own.
        path: a folder of this project, a TensorFlow 1 prefix, a transformers folder; an archive or an address of one.
        allow_missing: expressions over names of variables that the checkpoint need not have.
        allow_unexpected: expressions over names of tensors that the model need not have.
        adjust: looks at the tensors by name, and may remove some, before they are loaded.
        labels: of the task, in the order of their ids; a classifier with the same classes is put in this order.
        aliases: what else these are called.

    Raises:
        UsageError: there is no such checkpoint, or it does not fit the model.
    """
    from conversion.class_order import in_order_of
    from conversion.loading import load_into
    from conversion.readers import read_checkpoint

    checkpoint, reordered = in_order_of(read_checkpoint(path, config=config), labels, aliases)
    if adjust:
        tensors = dict(checkpoint.tensors)
        adjust(tensors)
        checkpoint = dataclasses.replace(checkpoint, tensors=tensors)
    report = load_into(model, checkpoint, allow_missing=allow_missing, allow_unexpected=allow_unexpected)
    return f"{shown(path)} ({checkpoint.source_format}): {report}{reordered}"


def restore(
    engine: AnyEngine,
    config: Config,
    output_dir: str,
    init_checkpoint: str | None = None,
    *,
    allow_unexpected: Sequence[str] = (),
    adjust: Adjust | None = None,
    only_reads: bool = False,
    best: bool = True,
    labels: Sequence[str] = (),
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Load the weights of a finished run: its best, else its newest, else `init_checkpoint`; return their step.

    Args:
        engine: receives the weights, also as their average where it keeps one.
        config: of its model.
        output_dir: of the run.
        init_checkpoint: where the output folder holds none; of a run its best or its newest too, and else of step 0.
        allow_unexpected: expressions over names of tensors that `init_checkpoint` may have besides.
        adjust: as in `initialize`.
        only_reads: leave what a crash left in the output folder as it is.
        best: take the best where there are some.
        labels: as in `initialize`.
        aliases: as in `initialize`.

    Raises:
        UsageError: there are no weights, or they do not fit the model.
    """
    from conversion.locating import locate
    from training.checkpoints import CorruptCheckpointError, checkpoint_folder, latest_state, read_state
    from training.processes import current

    folder, source, step, unused = Path(output_dir) / "best", init_checkpoint, 0, allow_unexpected
    if best and folder.is_dir():
        try:
            source, step, unused = str(folder), read_state(folder, groups=()).step, ()
        except CorruptCheckpointError as error:
            raise UsageError(f"{error}; remove {folder}, and the newest checkpoint is taken") from None
    elif found := latest_state(Path(output_dir), processes=current(), only_reads=only_reads):
        source, step, unused = str(checkpoint_folder(Path(output_dir), found.step)), found.step, ()
    elif init_checkpoint:
        kind, place = locate(init_checkpoint, prefer_best=best)
        if kind == "ours":
            try:
                # Otherwise a finished run would have other scores from another output folder than from its own.
                source, step = str(place), read_state(place, groups=()).step
            except CorruptCheckpointError as error:
                raise UsageError(str(error)) from None
    if not source:
        raise UsageError(
            f"no weights: --output_dir={output_dir} holds no checkpoint; "
            "train with --do_train, or give --init_checkpoint"
        )
    initialize(engine.model, config, source, allow_unexpected=unused, adjust=adjust, labels=labels, aliases=aliases)
    _average_present_weights(engine)
    return step


def _average_present_weights(engine: AnyEngine) -> None:
    """Let the average of the weights, with which an engine evaluates, be the weights themselves."""
    state = engine.state()
    averages = {name: state[f"model/{name.removeprefix('ema/')}"] for name in state if name.startswith("ema/")}
    if averages:
        engine.load_state(state | averages)
