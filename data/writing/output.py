"""Where shards go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from absl.app import UsageError

from data.manifest import SUFFIX


@dataclass(frozen=True)
class Output:
    """The files of a job: those named, or numbered files of one name.

    Attributes:
        files: paths; examples are dealt over them.
        num_shards: write this many numbered files of the only name.
        shard_size: write as many numbered files of the only name as hold about this many examples each.

    Raises:
        UsageError: the parts do not go together.
    """

    files: tuple[Path, ...]
    num_shards: int | None = None
    shard_size: int | None = None

    def __post_init__(self) -> None:
        if self.num_shards and self.shard_size:
            raise UsageError("--num_shards and --shard_size exclude each other: give one of them")
        if len(self.files) > 1 and (self.num_shards or self.shard_size):
            raise UsageError(
                f"--output_file names {len(self.files)} files but --num_shards and --shard_size make "
                "numbered files of one name: give one name, or leave the other flag out"
            )
        if folder := next((path for path in self.files if path.name in ("", "..") or path.is_dir()), None):
            raise UsageError(f"--output_file={folder} is a folder: name a file in it, such as {folder / 'x.tfrecord'}")
        if len({path.parent for path in self.files}) > 1:
            # A manifest lists files of its own folder alone, and readers look for it there.
            raise UsageError(
                f"--output_file={','.join(map(str, self.files))}: files of several folders; name files of one folder"
            )
        if len(set(self.files)) < len(self.files):
            raise UsageError(f"--output_file={','.join(map(str, self.files))}: a file is named twice")

    def paths(self, num_examples: int) -> list[Path]:
        """Return the files for `num_examples` examples."""
        if self.num_shards is None and self.shard_size is None:
            return list(self.files)
        count = self.num_shards or max(1, -(-num_examples // (self.shard_size or 1)))
        (path,) = self.files
        return [path.with_name(f"{path.stem}-{i:05d}-of-{count:05d}{path.suffix}") for i in range(count)]

    @property
    def manifest_path(self) -> Path:
        """The manifest, beside the first file and named after it."""
        return self.files[0].with_suffix(SUFFIX)

    @property
    def work_path(self) -> Path:
        """The folder of an unfinished job."""
        return self.files[0].with_suffix(".partial")
