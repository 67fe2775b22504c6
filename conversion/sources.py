"""What a person gives as a checkpoint, an address of the web or an archive, as the folder or the file that is meant."""

from __future__ import annotations

import os
from pathlib import Path

from ground.addresses import is_address, shown


def obtain(source: str | Path) -> Path:
    """Return the path of a checkpoint: downloaded where an address is given, unpacked where an archive is.

    Any other path is returned as it is, whether or not something is there.

    Raises:
        UsageError: the address gives nothing, or the archive is damaged or not to be trusted.
        OSError: the file cannot be read, or the cache not be written.
    """
    text = str(source)
    if not is_address(text) or os.path.exists(text):  # noqa: PTH110  (Path.exists raises for a text that is too long)
        path = Path(source)
        if not path.is_file():
            return path
        from conversion.archives import is_archive, unpack

        return unpack(path) if is_archive(path) else path

    from conversion.archives import DamagedArchiveError, is_archive, unpack
    from conversion.downloads import download, forget

    file = download(text)
    if not is_archive(file):
        return file
    try:
        return unpack(file, folder=file.with_name(f"{file.name}.unpacked"), called=shown(text))
    except DamagedArchiveError:
        forget(text)
        raise
