"""What --overwrite_output_dir removes: the files of the former run in its folder, each by the name that a run gives it.

Whatever else lies there stays, and where a checkpoint's folder holds a file that no run wrote nothing is removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from absl.app import UsageError

from commands.resuming import RUN, holds_run, targets

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

_OF_CHECKPOINT = re.compile(r"state\.json|(model|optimizer)[\w-]*\.safetensors")
_EVENTS = "events.out.tfevents.*"


def remove_former_run(folder: Path, reads: Mapping[str, Iterable[str | Path | None]]) -> str:
    """Remove the run that lies in a folder, `run.json` last; return what is said of it, empty where there is none.

    Args:
        folder: held by this process, whose targets `ground.outputs.check_outputs` has let pass.
        reads: files that this run reads, by flag; they stay.

    Raises:
        UsageError: the run reads the folder's weights, or a file lies in a checkpoint that no run wrote.
    """
    if not holds_run(folder):
        return ""
    kept = {os.path.realpath(path): flag for flag, paths in reads.items() for path in paths if path}
    if (flag := kept.get(os.path.realpath(folder))) is not None:
        raise UsageError(
            f"--overwrite_output_dir would remove what {flag}={folder} reads: give another --output_dir, or leave it "
            "out"
        )
    folders = list(_checkpoint_folders(folder))
    for checkpoint in folders:
        if foreign := [path.name for path in checkpoint.iterdir() if not _OF_CHECKPOINT.fullmatch(path.name)]:
            raise UsageError(
                f"--overwrite_output_dir: {checkpoint} holds {foreign[0]}, which no run wrote: move it away"
            )
    doomed = [path for checkpoint in folders for path in checkpoint.iterdir()]
    doomed += [*(folder / "tensorboard").glob(_EVENTS), *_plain_files(folder)]
    doomed = [path for path in doomed if path.is_file() and os.path.realpath(path) not in kept]
    # What proves the folder to be a run's goes last, so that a kill leaves a folder that is still known as one.
    for path in sorted(doomed, key=lambda path: path.name == RUN):
        path.unlink()
    for checkpoint in folders:
        checkpoint.rmdir()
    steps = len([checkpoint for checkpoint in folders if checkpoint.name != "best"])
    return f"--overwrite_output_dir: removed {len(doomed)} files of the run in {folder}, {steps} checkpoints among them"


def _checkpoint_folders(folder: Path) -> Iterator[Path]:
    from training.checkpoints import list_checkpoints

    yield from list_checkpoints(folder)
    if (folder / "best").is_dir():
        yield folder / "best"


def _plain_files(folder: Path) -> Iterator[Path]:
    """Yield the files that a run of the folder's row writes beside its checkpoints, and those that it handed in."""
    from tasks.run_file import RunFile
    from tasks.submissions import FOLDER, GROUP

    row: DatasetRow | None = RunFile.read(folder).row if (folder / RUN).is_file() else None
    yield from (target.path for target in targets(folder, row.files if row else ()) if not target.folder)
    for names in row.submission.get("files", {}).values() if row else ():
        for name in names:
            yield from (folder / FOLDER).glob(name.replace(GROUP, "*"))
