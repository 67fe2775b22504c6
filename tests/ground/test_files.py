import errno
import os
import socket
from pathlib import Path

import pytest
from absl.app import UsageError

from ground.documents import read_json
from ground.files import check_plain, naming, real, write_atomically


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


def test_pipes_sockets_and_devices_are_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    Path("zero").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a pipe"), ("socket", "a socket"), ("zero", "a device")):
        with pytest.raises(UsageError, match=f"^{name} is {kind}: expected a file"):
            check_plain(Path(name))
        with pytest.raises(UsageError, match=f"^{name} is {kind}: expected a file"):
            read_json(name, what="a config")
    with pytest.raises(FileNotFoundError):
        check_plain(Path("nothing"))
    assert check_plain(Path()) == Path()


def test_links_in_a_ring_have_a_path(tmp_path):
    (tmp_path / "ring").symlink_to("ring")
    assert real(tmp_path / "ring").name == "ring"
    (tmp_path / "link").symlink_to("file")
    assert real(tmp_path / "link") == real(tmp_path) / "file"
