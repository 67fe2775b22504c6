"""Record files by patterns, with the manifests beside them, and the examples in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from absl.app import UsageError

from data.manifest import SUFFIX, Listing, find_manifests


@dataclass(frozen=True)
class Shards:
    """Record files, and the manifests that list them: found once, read by everything that opens the shards.

    Attributes:
        paths: the files.
        listings: of the files that a manifest lists.
    """

    paths: tuple[Path, ...]
    listings: dict[Path, Listing]

    @classmethod
    def find(cls, patterns: str | Sequence[str], flag: str = "--input_file") -> Shards:
        """Return the files of patterns (`expand_shards`) with their manifests; raises `UsageError`."""
        paths = expand_shards(patterns, flag)
        return cls(tuple(paths), find_manifests(paths))

    def where(self, keep: Callable[[dict[str, Any] | None], bool]) -> Shards:
        """Return the files whose manifest (None where there is none) passes `keep`; maybe none."""
        kept = tuple(
            path for path in self.paths if keep(self.listings[path].manifest if path in self.listings else None)
        )
        return Shards(kept, {path: listing for path, listing in self.listings.items() if path in kept})

    def joined(self, other: Shards) -> Shards:
        """Return the files of both, none twice."""
        return Shards(tuple(dict.fromkeys([*self.paths, *other.paths])), {**self.listings, **other.listings})

    def __str__(self) -> str:
        first, last = self.paths[0], self.paths[-1]
        return str(first) if len(self.paths) == 1 else f"{len(self.paths)} files from {first} to {last}"


def expand_shards(patterns: str | Sequence[str], flag: str = "--input_file") -> list[Path]:
    """Return the files of glob patterns (a sequence, or separated by commas), none twice and no manifest.

    Args:
        patterns: of the files.
        flag: that gives them, for messages.

    Raises:
        UsageError: a pattern matches nothing.
    """
    names = [
        part.strip() for name in ([patterns] if isinstance(patterns, str) else patterns) for part in name.split(",")
    ]
    paths: dict[Path, None] = {}
    for name in filter(None, names):
        found = sorted(map(Path, glob(name, recursive=True)))  # noqa: PTH207  (Path.glob takes no absolute pattern)
        files = [path for path in found if path.is_file() and not path.name.endswith(SUFFIX)]
        if not files:
            advice = f"it is a folder; give {name}/*.tfrecord" if Path(name).is_dir() else ""
            raise UsageError(
                f"{flag}={name}: no record file matches: {advice or 'write some with create_pretraining_data.py'}"
            )
        paths.update(dict.fromkeys(files))
    if not paths:
        raise UsageError(f"{flag}: no record files given: expected paths or patterns, separated by commas")
    return list(paths)
