"""All classes of cases, and how many of a hundred each makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from tests.hostile import archives, contents, documents, flags, servers, tensors
from tests.hostile.case import Case, change
from tests.hostile.seeds import BASES

Make = Callable[[Random, Path], Case]


def control(random: Random, seeds: Path) -> Case:
    """An ordinary call, which has to succeed."""
    base = BASES[random.choice(list(BASES))]
    return change(
        base, "control", base.name, "succeed", (), trains=base.verb.startswith("run_") and random.random() < 0.2
    )


def killed(random: Random, seeds: Path) -> Case:
    """An ordinary call is killed while it writes; what it reads stays as it is, and made again it succeeds."""
    verb = random.choice(("convert_checkpoint", "run_classifier", ""))
    base = BASES[random.choice([name for name, base in BASES.items() if base.outputs and verb in ("", base.verb)])]
    at, after = random.randrange(1, 60), random.choice((0.0, random.random() * 0.01))
    case = change(base, "killed", f"{base.name} at {at}, {1000 * after:.1f} ms later", "succeed", ())
    return dataclasses.replace(case, killed_at=at, killed_after=after)


CLASSES: Mapping[str, tuple[int, Make]] = {
    "control": (5, control),
    "killed": (3, killed),
    "flag value": (9, flags.value_of_a_flag),
    "flag size": (3, flags.size_of_a_flag),
    "flag name": (3, flags.name_of_a_flag),
    "flag left out": (1, flags.missing_flag),
    "two flags": (3, flags.two_flags),
    "flag path": (5, flags.path_of_a_flag),
    "config file": (4, flags.config_file),
    "special file": (4, flags.special_file),
    "output is input": (5, flags.same_file),
    "foreign output": (5, flags.foreign_output),
    "reused folder": (3, flags.reused_folder),
    "json value": (10, documents.json_value),
    "json key": (3, documents.json_key),
    "json shape": (5, documents.json_shape),
    "toml": (4, documents.toml),
    "bytes": (6, contents.bytes_changed),
    "other kind": (2, contents.other_kind),
    "text": (5, contents.text),
    "json lines": (2, contents.json_lines),
    "vocabulary": (4, contents.vocabulary),
    "pieces": (1, contents.pieces),
    "rows": (4, contents.rows),
    "json rows": (2, contents.json_rows),
    "records": (6, tensors.records),
    "tensors": (3, tensors.tensors),
    "safetensors header": (2, tensors.safetensors_header),
    "torch file": (2, tensors.torch_file),
    "tf1": (2, tensors.tf1),
    "archive": (3, archives.archive),
    "address": (1, archives.address),
    "run folder": (3, tensors.run_folder),
    "server": (4, servers.server),
    "export": (2, servers.export),
}
_ROUND = [name for name, (weight, _) in CLASSES.items() for _ in range(weight)]
# Mixed once, so that any hundred cases in a row hold every class in its share.
Random(0).shuffle(_ROUND)


def kind_of(index: int) -> str:
    """Return the class of the case of that number."""
    return _ROUND[index % len(_ROUND)]


def make_case(seed: int, index: int, seeds: Path) -> Case:
    """Return the case of that number; the same seed and index make the same case."""
    return CLASSES[kind_of(index)][1](Random(f"{seed} {index}"), seeds)
