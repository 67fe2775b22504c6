"""Say whether two checkouts compute the same, to the last bit, on this machine.

    python -m tests.identity.compare --base=/path/to/other/checkout

takes three steps of every loss case (cases.py) with the code of both, on both backends. It compares the values of every
step, the weights, optimizer state and averages after the last one, scores and predictions, and prints every difference;
the exit code is 1 if there is one. `--cases=REGEX` takes some cases only;
`--change='{"seed": 4}'` changes flags of this side alone, to see that a difference is found.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from .cases import BOTH, LOSSES, NUM_STEPS, ROOT
from .measure import Losses, start


def differences(base: Losses, here: Losses) -> Iterator[str]:
    """Yield a line for every value of a case that differs; numbers in hexadecimal, which hides no bit."""
    for phase in ("training", "evaluation"):
        for name in sorted(base[phase].keys() | here[phase].keys()):
            values = [side[phase].get(name) for side in (base, here)]
            if values[0] != values[1]:
                yield f"{phase} {name}: base {_text(values[0])}, here {_text(values[1])}"
    if base["state"] != here["state"]:
        yield f"checkpoint of step {NUM_STEPS}: base {base['state'][:16]}, here {here['state'][:16]}"
    for name in sorted(base["results"].keys() | here["results"].keys()):
        if base["results"].get(name) != here["results"].get(name):
            yield f"{name} differs"


def _text(values: list[float | None] | None) -> str:
    if values is None:
        return "has none"
    return " ".join("nan" if value is None else float(value).hex() for value in values)


def compare(base: Path, backend: str, devices: int, cases: re.Pattern[str], change: Mapping[str, object]) -> int:
    """Compare the cases of a backend and a number of devices; returns how many differ."""
    names = [
        name
        for name, case in LOSSES.items()
        if backend in case.backends and case.devices == devices and cases.search(name)
    ]
    if not names:
        return 0
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        running = [
            start(base, backend, names, Path(one), devices=devices),
            start(ROOT, backend, names, Path(two), devices=devices, changes=change),
        ]
        before, here = (measurement.results() for measurement in running)
    found = {name: list(differences(before[name], here[name])) for name in names}
    for name, lines in found.items():
        for line in lines:
            print(f"  {name}: {line}")
    different = sum(map(bool, found.values()))
    where = f"{backend}, {devices} device{'s' * (devices > 1)}"
    print(f"{where}: {len(names) - different} of {len(names)} cases are bit-identical", flush=True)
    return different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--backends", type=lambda text: text.split(","), default=BOTH)
    parser.add_argument("--cases", type=re.compile, default=re.compile(""))
    parser.add_argument("--change", type=json.loads, default={})
    options = parser.parse_args()
    devices = sorted({case.devices for case in LOSSES.values()})
    different = sum(
        compare(options.base.resolve(), backend, count, options.cases, options.change)
        for backend in options.backends
        for count in devices
    )
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
