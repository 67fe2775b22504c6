import errno
import os
from pathlib import Path

import pytest

from ground.files import naming, write_atomically


def test_writes_text_and_bytes_and_creates_folders(tmp_path):
    write_atomically(tmp_path / "a" / "b.txt", "汉字\n")
    write_atomically(tmp_path / "a" / "c", b"\x00")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "汉字\n".encode()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b.txt", "c"]


def test_a_failed_write_leaves_the_former_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_atomically(path, "new")
    assert error.value.filename == str(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_naming_names_what_a_full_disk_leaves_unnamed():
    def fill():
        with naming("x.txt"), Path("/dev/full").open("wb") as stream:
            stream.write(b"x")
            stream.flush()

    with pytest.raises(OSError, match=r"No space left on device: 'x\.txt'"):
        fill()
