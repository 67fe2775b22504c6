"""Flags that do nothing without another flag: small tables, and the one check that every verb makes with them.

    NEEDS = (Need(("beam_options",), "--runner", lambda options: options.runner),)

A flag that is asked for and has no effect is a misunderstanding, and the user learns of it before the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from absl.app import UsageError


@dataclass(frozen=True)
class Need:
    """Flags and what they need.

    Attributes:
        flags: names of flags that do nothing, whatever their value, unless `met`.
        needed: the flag to give besides, as it is typed.
        met: whether the options have it.
    """

    flags: tuple[str, ...]
    needed: str
    met: Callable[[Any], Any]


DEVICE_NEEDS = (
    Need(("tpu_name", "tpu_zone", "gcp_project", "master", "num_tpu_cores"), "--use_tpu", lambda o: o.use_tpu),
    Need(("num_processes", "process_id"), "--coordinator_address", lambda o: o.coordinator_address),
    Need(("spike_threshold",), "--on_spike=warn, skip or rollback", lambda o: o.on_spike != "ignore"),
)


def check_needs(options: Any, needs: Sequence[Need]) -> None:
    """Raise `UsageError` for the first flag with another value than its default that does nothing here."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for need in needs:
        for name in need.flags:
            value = getattr(options, name)
            if value != defaults[name] and not need.met(options):
                shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
                raise UsageError(f"--{name}={shown} does nothing without {need.needed}; give both or neither")
