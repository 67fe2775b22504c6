"""The part of every tensor on every device (JAX): batches over `data`, weights over `model`, FSDP over both.

A model declares rules, (expression over variable names, axes); Megatron's cuts (Shoeybi et al. 2019) are rules of
`modeling/layouts.py`. FSDP (ZeRO 3, Rajbhandari et al. 2020) further cuts weights, averages and slots over `data`.
The compiler keeps the meaning of the whole step, so that numbers do not depend on the mesh.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from absl.app import UsageError
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from training.engine import LayoutRules

DATA, MODEL = "data", "model"


@dataclass(frozen=True)
class Placement:
    """A mesh of devices and the cuts of tensors over it; `create_placement` makes it."""

    mesh: Mesh
    fsdp: bool = False

    @property
    def data_parts(self) -> int:
        """Parts that a batch is cut into."""
        return self.mesh.shape[DATA]

    @property
    def model_parts(self) -> int:
        """Parts that the weights named by a model's rules are cut into."""
        return self.mesh.shape[MODEL]

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Return the sharding that cuts the leading axes as named; without any, all devices hold the whole."""
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def computed(self, shapes: Mapping[str, Sequence[int]], rules: LayoutRules | None) -> dict[str, NamedSharding]:
        """Return the sharding of each variable during computation: cut over `model` by the first rule that fits.

        Raises `UsageError` where there are no rules, none fits, or an axis cannot be cut into equal parts.
        """
        if self.model_parts == 1:
            return {name: self.sharding() for name in shapes}
        if rules is None:
            raise UsageError(
                f"the weights cannot be cut over {self.model_parts} devices: this model declares no layout rules; "
                "give --model_parallel=1"
            )
        return {name: self._by_rules(name, shape, rules) for name, shape in shapes.items()}

    def _by_rules(self, name: str, shape: Sequence[int], rules: LayoutRules) -> NamedSharding:
        axes = next((axes for expression, axes in rules if re.search(expression, name)), None)
        if axes is None:
            raise UsageError(f"no layout rule covers the variable {name!r}; end the rules with ('', ()) for the rest")
        for length, axis in zip(shape, axes, strict=False):
            if axis and length % self.mesh.shape[axis]:
                raise UsageError(
                    f"{name} of shape {list(shape)} cannot be cut into {self.mesh.shape[axis]} equal parts: choose a "
                    "--model_parallel that divides it, or round the vocabulary up with vocab_padding_multiple in the "
                    "config"
                )
        return self.sharding(*axes)

    def stored(self, shape: Sequence[int], computed: NamedSharding) -> NamedSharding:
        """Return the sharding of a variable between steps: with FSDP its longest whole axis is cut over `data` as well.

        Vectors, and axes that cannot be cut into equal parts, are not cut: they hold few of the weights.

            data 4, model 2, shape [8, 32], computed (None, "model")  ->  ("data", "model"), parts of [2, 16]
        """
        axes = [*computed.spec, *[None] * (len(shape) - len(computed.spec))]
        whole = [i for i, axis in enumerate(axes) if axis is None and shape[i] % self.data_parts == 0]
        if not (self.fsdp and len(shape) > 1 and whole):
            return computed
        axes[max(whole, key=lambda i: shape[i])] = DATA
        return self.sharding(*axes)

    @property
    def host_part(self) -> tuple[int, int]:
        """(index, count): this process holds the index-th of count equal parts of every batch.

        Raises `UsageError` where the devices of a process hold rows that are not one such part.
        """
        process = jax.process_index()
        rows, _ = np.nonzero(np.vectorize(lambda device: device.process_index)(self.mesh.devices) == process)
        mine = sorted(set(rows.tolist()))
        if not mine or mine != list(range(mine[0], mine[0] + len(mine))) or mine[0] % len(mine):
            raise UsageError(
                f"process {process} holds the parts {mine} of the {self.data_parts} of a batch, which are not "
                "neighbours: choose a --model_parallel that divides the devices of a host, or is a multiple of them"
            )
        return mine[0] // len(mine), self.data_parts // len(mine)


def create_placement(devices: Sequence[Any] | None = None, *, model_parallel: int = 1, fsdp: bool = False) -> Placement:
    """Return the placement on `devices` (by default all, those of a `TopologyDescription` too).

    Raises `UsageError` where `model_parallel` does not divide their number.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % model_parallel:
        raise UsageError(
            f"--model_parallel={model_parallel} does not divide the {len(devices)} devices: choose a number that does"
        )
    shape = (len(devices) // model_parallel, model_parallel)
    array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Placement(Mesh(array, (DATA, MODEL)), fsdp)
