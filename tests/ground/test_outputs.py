"""The guard of all verbs: what is read is not written over, nor what is of somebody else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import filelock
import pytest
from absl.app import UsageError

from ground.files import write_atomically
from ground.locks import holding, is_lock
from ground.outputs import (
    Target,
    announce,
    check_outputs,
    is_left_over,
    note_read,
    note_written,
    plain_name,
    was_written,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("years of work")
    return path


def other_names(source: Path) -> dict[str, Path]:
    """One file under as many names as there are kinds of names."""
    folder = source.parent
    (folder / "soft").symlink_to(source)
    os.link(source, folder / "hard")
    (folder / "elsewhere").symlink_to(folder, target_is_directory=True)
    return {
        "itself": source,
        "symbolic link": folder / "soft",
        "hard link": folder / "hard",
        "linked folder": folder / "elsewhere/corpus.txt",
    }


@pytest.mark.parametrize("kind", ["itself", "symbolic link", "hard link", "linked folder"])
@pytest.mark.parametrize("proven", [True, False])
def test_no_name_of_a_read_file_is_written(source: Path, kind: str, proven: bool):
    path = other_names(source)[kind]
    with pytest.raises(UsageError, match=r"--output would write over .*corpus.txt, which --input reads: give --output"):
        check_outputs({"--input": [None, source]}, [Target(path, "--output", lambda _: proven)])


def test_a_folder_that_holds_what_is_read_is_not_replaced(source: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="which --input reads"):
        check_outputs({"--input": [source]}, [Target(tmp_path, "--output", lambda _: True, folder=True)])
    check_outputs({"--input": [tmp_path]}, [Target(tmp_path / "new", "--output", folder=True)])


def test_files_of_others_are_kept_and_broken_links_are_files(source: Path, tmp_path: Path):
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    for path in (source, tmp_path / "broken"):
        with pytest.raises(UsageError, match=r"exists and is not known to be an earlier output .*: give another name"):
            check_outputs({}, [Target(path, "--output")])


def test_the_file_of_config_is_read_by_every_verb(source: Path):
    note_read("--config", source)
    try:
        with pytest.raises(UsageError, match="which --config reads"):
            check_outputs({}, [Target(source, "--output", lambda _: True)])
        check_outputs({}, [Target(source, "--output", lambda _: True, reads_own=("--config",))])
    finally:
        note_read("--config", None)


def test_a_name_that_no_file_system_takes_is_refused_before_anything_is_written(tmp_path: Path):
    check_outputs({}, [Target(tmp_path / ("x" * 235), "--output")])
    with pytest.raises(UsageError, match=r"--output: 文{40}\.\.\. has 237 bytes, a name has at most 235: shorten it"):
        check_outputs({}, [Target(tmp_path / ("文" * 79), "--output")])


def test_what_a_kill_leaves_of_the_record_and_of_what_was_announced_is_known(tmp_path: Path):
    announce(tmp_path, "verb", {"parity.json": 3})
    for name in ("..divan.json.77.tmp", ".parity.json.7.tmp", ".notes.7.tmp", ".parity.json.tmp", "parity.json.7.tmp"):
        (tmp_path / name).write_text("")
    known = {path.name for path in tmp_path.iterdir() if is_left_over(path, "verb")}
    assert known == {"..divan.json.77.tmp", ".parity.json.7.tmp"}
    assert not is_left_over(tmp_path / ".parity.json.7.tmp", "another")


def test_what_is_announced_is_known_before_and_after_it_is_written(tmp_path: Path):
    path = tmp_path / "vocab.txt"
    announce(tmp_path, "verb", {path.name: 3})
    path.write_text("mine")
    assert not was_written(path, "verb")
    path.write_text("abc")
    assert was_written(path, "verb")
    announce(tmp_path, "verb", {path.name: 5})
    assert was_written(path, "verb")
    path.write_text("abcde")
    assert was_written(path, "verb")
    announce(tmp_path, "verb", {path.name: 7})
    path.write_text("abc")
    assert not was_written(path, "verb")


def test_the_record_of_a_folder_proves_what_a_verb_wrote_as_long_as_it_is_so(tmp_path: Path):
    path = tmp_path / "vocab.txt"
    path.write_text("abc")
    assert not was_written(path, "verb")
    note_written(tmp_path, "verb", [path.name])
    (tmp_path / "more").write_text("")
    note_written(tmp_path, "verb", ["more"])
    assert was_written(path, "verb")
    assert not was_written(path, "another")
    path.write_text("mine now")
    assert not was_written(path, "verb")
    for damaged in ("[]", "{", '{"files": []}', '{"files": {"../x": 1, "vocab.txt": 3}}'):
        (tmp_path / ".divan.json").write_text(damaged)
        assert not was_written(path, "verb")


@pytest.mark.parametrize("name", ["../a", "/a", "a/b", "..", ".", "", "a\0", "a\\b", 3, None])
def test_only_plain_names_are_names(name: object):
    assert not plain_name(name)
    assert plain_name("a.txt")


def test_a_planted_link_at_the_temporary_name_is_not_followed(source: Path, tmp_path: Path):
    (tmp_path / f".new.{os.getpid()}.tmp").symlink_to(source)
    write_atomically(tmp_path / "new", "content")
    assert source.read_text() == "years of work"
    assert (tmp_path / "new").read_text() == "content"


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path: Path):
    path = tmp_path / "a/b/.lock"
    with holding(path, "--output_dir=b"):
        assert is_lock(path)
        message = rf"--output_dir=b is in use by process {os.getpid()} on .*since"
        with pytest.raises(UsageError, match=message), holding(path, "--output_dir=b"):
            pass
    assert not (tmp_path / "a").exists()


def test_a_dead_holders_lock_is_taken(tmp_path: Path):
    path = tmp_path / ".lock"
    pid = os.fork()
    if not pid:
        with holding(path, "x"):
            os._exit(9)
    os.waitpid(pid, 0)
    assert is_lock(path)
    with holding(path, "x"):
        pass


def test_a_file_of_somebody_else_is_no_lock(tmp_path: Path):
    (tmp_path / ".lock").write_text("my notes")
    with pytest.raises(UsageError, match="is not the lock of a run: move it away"), holding(tmp_path / ".lock", "x"):
        pass
    assert (tmp_path / ".lock").read_text() == "my notes"


def test_a_lock_that_its_holder_removed_meanwhile_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between opening and locking the holder ends: the file that was opened has no name any more and locks nothing."""
    path, lock, removed = tmp_path / ".lock", filelock.lock_descriptor, []

    def after_removal(descriptor: int, *, blocking: bool) -> bool:
        if len(removed) < 2:
            removed.append(path.unlink())
        return lock(descriptor, blocking=blocking)

    monkeypatch.setattr(filelock, "lock_descriptor", after_removal)
    with holding(path, "x"):
        assert len(removed) == 2
        assert is_lock(path)
        with pytest.raises(UsageError, match="x is in use"), holding(path, "x"):
            pass
    assert not path.exists()


def test_of_a_longer_note_of_a_dead_holder_nothing_stays(tmp_path: Path):
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"pid": 1, "command": "x" * 500}))
    with holding(path, "x"):
        assert json.loads(path.read_bytes())["pid"] == os.getpid()
        with pytest.raises(UsageError, match=rf"x is in use by process {os.getpid()} on"), holding(path, "x"):
            pass


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(UsageError, match="is a folder, but a file of this name is written: move the folder away"):
        check_outputs({}, [Target(tmp_path, "--output", lambda _: True)])
