"""Data generation keeps what is not its own: inputs, files of others, what a manifest names; and it can be killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl.app import UsageError

import create_pretraining_data
import train_tokenizer
from commands.flags import parse

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = ("\n".join([f"a {one} c {two}", f"{two} f g {one}"] * 3) for one in "abcdefgh" for two in "cdef")
    (tmp_path / "corpus.txt").write_text("\n\n".join(documents))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path


def flags(folder: Path, **more: object) -> list[str]:
    given = {
        "input_file": folder / "corpus.txt",
        "vocab_file": folder / "vocab.txt",
        "output_file": folder / "x.tfrecord",
        "max_seq_length": 16,
        "dupe_factor": 1,
        "num_workers": 1,
    }
    return [f"--{name}={value}" for name, value in (given | more).items()]


def make(folder: Path, **more: object) -> None:
    create_pretraining_data.main(parse(create_pretraining_data.Options, flags(folder, **more)))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["corpus.txt", "vocab.txt", "link", "notes.tfrecord", "empty.tfrecord"])
@pytest.mark.parametrize("more", [{}, {"num_shards": 2}, {"eval_fraction": 0.3}], ids=str)
def test_nothing_that_is_there_is_written_over(folder: Path, name: str, more: dict[str, object]):
    (folder / "link").symlink_to("corpus.txt")
    for mine in ("notes.tfrecord", "notes-00001-of-00002.tfrecord", "notes.held_out.tfrecord"):
        (folder / mine).write_text("mine")
    (folder / "empty.manifest.json").write_text("[]")
    before = content(folder)
    if "num_shards" in more and not name.startswith(("notes", "empty")):
        pytest.skip("the shards have other names")
    with pytest.raises(UsageError, match=r"would write over|exists and is not known to be an earlier output"):
        make(folder, output_file=folder / name, **more)
    assert content(folder) == before


def test_a_manifest_removes_nothing_outside_of_its_folder_and_nothing_that_it_did_not_list_so(folder: Path):
    (folder / "out").mkdir()
    victims = [folder / "a.txt", folder / "out/b.txt", folder / "c.txt"]
    for victim in victims:
        victim.write_text("mine")
    (folder / "out/d").symlink_to(victims[0])
    names = ["../a.txt", str(victims[2]), "d", ".", "..", "out/../../c.txt"]
    shards = [{"name": name, "examples": 1, "bytes": 4, "sha256": ""} for name in names]
    manifest = folder / "out/x.manifest.json"
    manifest.write_text(
        json.dumps({"recipe": {}, "shards": [{"name": "b.txt", "examples": 1, "bytes": 5, "sha256": ""}]})
    )
    with pytest.raises(UsageError, match=r"b.txt exists and is not known"):
        make(folder, output_file=folder / "out/x.tfrecord")
    (folder / "out/d").unlink()
    manifest.write_text(json.dumps({"recipe": {}, "shards": shards}))
    with pytest.raises(UsageError, match=r"x.manifest.json exists and is not known .*not a manifest"):
        make(folder, output_file=folder / "out/x.tfrecord")
    assert [victim.read_text() for victim in victims] == ["mine"] * 3


def test_earlier_shards_are_replaced_and_removed_also_those_held_out(folder: Path):
    make(folder, num_shards=3, eval_fraction=0.5)
    make(folder, num_shards=2)
    assert sorted(path.name for path in folder.iterdir()) == [
        "corpus.txt",
        "vocab.txt",
        "x-00000-of-00002.tfrecord",
        "x-00001-of-00002.tfrecord",
        "x.manifest.json",
    ]
    with (folder / "x-00001-of-00002.tfrecord").open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(UsageError, match=r"x-00001-of-00002.tfrecord exists .*delete it"):
        make(folder)


def test_a_folder_that_is_no_jobs_is_kept(folder: Path):
    (folder / "x.partial").mkdir()
    (folder / "x.partial/thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"x.partial exists and is not known .*holds other files than a job's"):
        make(folder)
    assert (folder / "x.partial/thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    "files",
    [
        {"plan.json": "my plan"},
        {"claims.json": "my claims"},
        {"claims.json": '{"mine": []}'},
        {"span-000000.tokens": "mine"},
        {"plan.json": '{"recipe": {}}', ".notes.tmp": "mine"},
    ],
    ids=str,
)
def test_names_of_a_job_s_files_are_no_proof_that_it_wrote_them(folder: Path, files: dict[str, str]):
    (folder / "x.partial").mkdir()
    for name, text in files.items():
        (folder / "x.partial" / name).write_text(text)
    before = content(folder)
    with pytest.raises(UsageError, match=r"x.partial exists and is not known .*holds other files than a job's"):
        make(folder)
    assert content(folder) == before


def test_what_a_job_left_at_any_moment_is_known_as_its_own(folder: Path):
    from data.writing.claims import open_work, remove_work

    work = folder / "x.partial"
    open_work(work, {"recipe": {"seed": 1}})
    (work / "span-000000.tokens").write_bytes(b"1")
    (work / ".claims.json.77.tmp").write_bytes(b"[")
    # Killed while another plan clears it: the plan is the last file to go.
    original = Path.unlink
    with pytest.MonkeyPatch.context() as patch:

        def unlink(path: Path, missing_ok: bool = False) -> None:
            if path.name == "plan.json":
                raise KeyboardInterrupt
            original(path, missing_ok=missing_ok)

        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            open_work(work, {"recipe": {"seed": 2}})
        assert [path.name for path in work.iterdir()] == ["plan.json"]
        for name in ("claims.json", "shard-000000.json"):
            (work / name).write_text('["/x"]')
        with pytest.raises(KeyboardInterrupt):
            remove_work(work)
    assert sorted(path.name for path in work.iterdir()) == ["claims.json", "plan.json"]
    make(folder)
    assert not work.exists()


def test_a_tokenizer_is_not_written_over_text_nor_over_other_files(folder: Path):
    options = [
        f"--input_file={folder / 'corpus.txt'}",
        "--vocab_size=200",
        "--nocommon_characters",
        "--min_frequency=1",
    ]

    def train(name: str) -> None:
        train_tokenizer.main(parse(train_tokenizer.Options, [*options, f"--output_file={folder / name}"]))

    before = content(folder)
    for name in ("corpus.txt", "vocab.txt"):
        with pytest.raises(UsageError, match=r"would write over|exists and is not known"):
            train(name)
    assert content(folder) == before
    train("new.txt")
    train("new.txt")


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: object, seconds: float = 20) -> Iterator[None]:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:  # pyright: ignore[reportCallIssue]
        time.sleep(0.02)
        yield


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_workers_end_with_their_parent_and_the_inputs_are_as_they_were(folder: Path, number: signal.Signals):
    (folder / "corpus.txt").write_text((folder / "corpus.txt").read_text() * 1500)
    before = content(folder)
    command = [sys.executable, str(ROOT / "create_pretraining_data.py"), *flags(folder, num_workers=2, dupe_factor=50)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for _ in until(lambda: len(children(process.pid)) >= 2):
        assert process.poll() is None
    workers = children(process.pid)
    time.sleep(random.random() * 0.5)
    process.send_signal(number)
    error = process.communicate(timeout=20)[1]
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert number == signal.SIGKILL or error.splitlines()[-1].endswith(
        f"{number.name}: the same command continues from here"
    )
    assert len(workers) >= 2
    for _ in until(lambda: not any(map(alive, workers))):
        pass
    assert not any(map(alive, workers))
    assert {name: content(folder)[name] for name in before} == before


def test_a_second_job_of_one_output_is_refused(folder: Path):
    from data.writing.claims import locked

    with locked([str(folder / "x.tfrecord")]):
        with pytest.raises(UsageError, match=rf"x.tfrecord is in use by process {os.getpid()}"):
            make(folder)
        make(folder, output_file=folder / "y.tfrecord")
