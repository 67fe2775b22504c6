"""Archives of strangers: the same tree comes out, or one line and nothing is left."""

import bz2
import contextlib
import gzip
import io
import os
import random
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archive_mutations
import pytest
from absl.app import UsageError
from archive_mutations import MODES, TREE, content_of, pack
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion import archives
from conversion.archives import DamagedArchiveError, unpack
from conversion.contents import kind_of
from conversion.sources import obtain
from ground import cache

KINDS = ("zip", *MODES)


@pytest.fixture(autouse=True)
def cache_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what is unpacked in the folder of the test."""
    monkeypatch.setenv("DIVAN_CACHE", str(tmp_path / "cache"))


def refused(path: Path) -> str:
    """Return the one line with which an archive is refused; nothing of it is left."""
    with pytest.raises(UsageError) as caught:
        unpack(path)
    assert [each for each in path.parent.rglob("*") if each.is_file()] == [path]
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith(f"{path} is ")
    return line


# -- what is good ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_gives_its_tree(kind: str, tmp_path: Path):
    path = tmp_path / "no_end_that_tells"
    path.write_bytes(pack(kind, TREE))
    folder = obtain(path)
    assert folder.name == "model"
    assert {f"model/{name}": content for name, content in content_of(folder).items()} == TREE
    assert folder.is_relative_to(tmp_path / "cache/archives")
    for each in [folder, *folder.rglob("*")]:
        assert stat.S_IMODE(each.stat().st_mode) == (0o755 if each.is_dir() else 0o644)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_form_of_tar(form: int, tmp_path: Path):
    tree = {"a/" * 20 + "中文" * (5 if form == tarfile.USTAR_FORMAT else 20): b"x", "b" * 90 + "/" + "c" * 90: b"y"}
    (tmp_path / "x.tar").write_bytes(pack("tar", tree, form=form))
    assert content_of(unpack(tmp_path / "x.tar")) == tree


NAMES = st.text(st.characters(categories=("L", "N", "Zs", "P"), exclude_characters="\\/:"), min_size=1, max_size=8)
TREES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map("/".join),
    st.binary(max_size=2000) | st.integers(0, 100_000).map(bytes),
    min_size=1,
    max_size=6,
)


def is_plain(tree: dict[str, bytes]) -> bool:
    """Return whether any file system can hold a tree, and nothing in it is what macOS adds."""
    parts = [part for name in tree for part in name.split("/")]
    paths = ["/".join(name.split("/")[:depth]) for name in tree for depth in range(1, name.count("/") + 2)]
    keys = {unicodedata.normalize("NFC", path).casefold() for path in paths}
    above = {path for name in tree for path in map(str, list(Path(name).parents)[:-1])}
    return (
        not any(part in (".", "..") or part.startswith("._") for part in parts)
        and len(keys) == len(set(paths))
        and not above & tree.keys()
    )


@given(TREES.filter(is_plain), st.sampled_from(KINDS), st.data())
@settings(max_examples=40)
def test_unpacking_is_the_inverse_of_packing_and_of_no_part_of_it(tree: Any, kind: str, data: st.DataObject):
    content = pack(kind, tree)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "x").write_bytes(content)
        unpack(base / "x", folder=base / "whole")
        assert content_of(base / "whole/files") == tree
        (base / "x").write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        if kind_of(base / "x"):
            try:
                unpack(base / "x", folder=base / "cut")
            except UsageError as error:
                line = str(error)
                assert line.isprintable()  # (a cut in the padding of tar takes nothing away)
            else:
                assert content_of(base / "cut/files") == tree
        assert {path.name for path in base.iterdir()} <= {"x", "whole", "cut"}


def test_what_macos_adds_is_left_out(tmp_path: Path):
    tree = {"m/a.index": b"1", "m/._a.index": b"2", "m/.DS_Store": b"3", "__MACOSX/m/._a.index": b"4"}
    (tmp_path / "x.zip").write_bytes(pack("zip", tree))
    assert content_of(unpack(tmp_path / "x.zip")) == {"a.index": b"1"}


def test_a_second_call_unpacks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.zip"
    path.write_bytes(pack("zip", TREE))
    folder = unpack(path)
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_unpack_anew", None)
        assert unpack(path) == folder
    # A changed archive has a folder of its own, and a folder that is not whole is made anew.
    path.write_bytes(pack("zip", {"model/vocab.txt": b"new"}))
    assert content_of(unpack(path)) == {"vocab.txt": b"new"}
    path.write_bytes(pack("zip", TREE))
    for damage in (Path.unlink, lambda file: file.write_text("")):
        damage(unpack(path) / "vocab.txt")
        assert {f"model/{name}": content for name, content in content_of(unpack(path)).items()} == TREE


def test_what_a_kill_left_is_removed(tmp_path: Path):
    path = tmp_path / "x.zip"
    path.write_bytes(pack("zip", TREE))
    entry = unpack(path).parent.parent.parent
    (entry / "content/listing.json").unlink()
    (entry / ".unpacking-1234/files").mkdir(parents=True)
    unpack(path)
    assert [each.name for each in entry.iterdir()] == ["content"]


@pytest.mark.parametrize("source", ["folder", "missing", "weights.bin", "model.safetensors", "checkpoint", "x.index"])
def test_other_paths_are_left_alone(source: str, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"\x80\x02}.")
    (tmp_path / "model.safetensors").write_bytes(b"\2" + bytes(7) + b"{}" + bytes(600))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n' * 50)
    (tmp_path / "x.index").write_bytes(random.Random(0).randbytes(900))
    assert obtain(str(tmp_path / source)) == tmp_path / source
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_weights_of_torch_are_no_archive_though_they_are_zips(tmp_path: Path):
    import torch

    torch.save({"x": torch.ones(3)}, tmp_path / "x.zip")
    assert kind_of(tmp_path / "x.zip") == "torch"
    assert obtain(tmp_path / "x.zip") == tmp_path / "x.zip"


def test_a_zip_with_the_records_of_large_ones(tmp_path: Path):
    content = pack("zip", TREE)
    start, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, len(TREE), len(TREE), end - start, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    for counts in (content[end + 4 : end + 20], bytes(4) + b"\xff" * 12):
        (tmp_path / "x.zip").write_bytes(content[:end] + record + locator + content[end : end + 4] + counts + bytes(2))
        assert len(content_of(unpack(tmp_path / "x.zip"))) == len(TREE)


# -- what is refused ---------------------------------------------------------------------------------------------------


def tar(*members: tuple[str, dict[str, Any]]) -> bytes:
    """Return a tar file with members of given attributes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, attributes in members:
            member = tarfile.TarInfo(name)
            content = attributes.get("content", b"")
            member.size = len(content)
            for key, value in attributes.items():
                if key != "content":
                    setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def zipped(*members: tuple[str, dict[str, Any]], content: bytes = b"x") -> bytes:
    """Return a zip file with members of given attributes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, attributes in members:
            member = zipfile.ZipInfo("placeholder")
            member.filename = name
            for key, value in attributes.items():
                setattr(member, key, value)
            archive.writestr(member, content, attributes.get("compress_type", zipfile.ZIP_DEFLATED))
    return packed.getvalue()


def both(name: str) -> list[bytes]:
    return [tar(("ok", {}), (name, {})), zipped(("ok", {}), (name, {}))]


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) >= 1
    return content.replace(old, new)


LINK = {"external_attr": (stat.S_IFLNK | 0o777) << 16, "create_system": 3}
BAD_NAMES = {
    "/etc/passwd": "is a path from the root",
    "../outside": "leads to a folder above",
    "a/../../outside": "leads to a folder above",
    "a/..": "leads to a folder above",
    "C:/outside": "is a path from the root",
    "c:outside": "is a path from the root",
    "a\\..\\outside": "has a backslash",
    "\\\\host\\share": "has a backslash",
    "a/" * 40 + "b": "is too long",
    "x" * 240: "is too long",
    "/".join(["y" * 200] * 6): "is too long",
    "a\nb": "has a control character",
    "\x1b[31mred": "has a control character",
    "OK": "are one name for a file system",
    "ok": "are one name for a file system",
    "ok/below": "are one name for a file system",
}


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_lead_elsewhere(name: str, tmp_path: Path):
    for content in both(name):
        (tmp_path / "x").write_bytes(content)
        assert BAD_NAMES[name] in refused(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            tar(("a", {"type": tarfile.SYMTYPE, "linkname": "/etc"}), ("a/x", {})),
            "'a' is a symbolic link; pack the files",
        ),
        (tar(("b", {}), ("a", {"type": tarfile.LNKTYPE, "linkname": "b"})), "'a' is a hard link; pack the files"),
        (tar(("a", {"type": tarfile.CHRTYPE})), "'a' is a device or a pipe"),
        (tar(("a", {"type": tarfile.BLKTYPE})), "'a' is a device or a pipe"),
        (tar(("a", {"type": tarfile.FIFOTYPE})), "'a' is a device or a pipe"),
        (tar(("a", {"type": tarfile.CONTTYPE})), "'a' is no plain file"),
        (tar(("a", {"type": b"Z"})), "'a' is no plain file"),
        (tar(("a\udcff", {})), r"'a\udcff' is no UTF-8"),
        (tar((".", {})), "'.' is no name of a file"),
        (tar((".", {"type": tarfile.DIRTYPE})), "it holds no file"),
        (bytes(10240), ""),
        (zipped(("a", LINK), content=b"/etc/passwd"), "'a' is a symbolic link; pack the files"),
        (zipped(("a", {**LINK, "external_attr": stat.S_IFIFO << 16})), "'a' is a device, pipe or socket"),
        (zipped(("a", {**LINK, "external_attr": stat.S_IFDIR << 16})), "'a' is both a file and a folder"),
        (zipped(("a/", {})), "'a/' is both a file and a folder"),
        (zipped(("a", {"compress_type": zipfile.ZIP_BZIP2})), "'a' is packed by method 12; expected deflate or none"),
        (zipped(("a", {"compress_type": zipfile.ZIP_LZMA})), "'a' is packed by method 14"),
        (zipped(), "it holds no file"),
        (zipped(("dir/", {}), content=b""), "it holds no file"),
    ],
)
def test_members_that_are_no_files(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "x").write_bytes(content)
    if not message:
        assert obtain(tmp_path / "x") == tmp_path / "x"
    else:
        assert message in refused(tmp_path / "x")


def test_encrypted_zips(tmp_path: Path):
    content = bytearray(zipped(("a", {})))
    content[6] |= 1
    content[content.rindex(b"PK\1\2") + 8] |= 1
    (tmp_path / "x").write_bytes(content)
    assert "'a' is encrypted; pack it anew without a password" in refused(tmp_path / "x")


def test_names_that_zip_and_its_list_give_differently(tmp_path: Path):
    content = zipped(("abc", {}))
    at = content.rindex(b"abc")
    (tmp_path / "x").write_bytes(content[:at] + b"abd" + content[at + 3 :])
    assert "is damaged or cut short" in refused(tmp_path / "x")
    for name in (b"a\0c", b"\0bc"):
        (tmp_path / "x").write_bytes(patched(content, b"abc", name))
        assert "has a control character" in refused(tmp_path / "x")
    (tmp_path / "x").write_bytes(zipped(("", {})))
    assert "'' is no name of a file" in refused(tmp_path / "x")


def test_a_list_of_members_that_is_longer_than_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = bytearray(zipped(("abc", {})))
    end = content.rindex(b"PK\5\6")
    for length in (0xFFFFFFF0, 0xFFFFFFFF):
        content[end + 12 : end + 16] = struct.pack("<L", length)
        (tmp_path / "x").write_bytes(content)
        assert "it has no list of members, or one of more than 16 MiB" in refused(tmp_path / "x")
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    for kind in KINDS:
        (tmp_path / "y").mkdir(exist_ok=True)
        (tmp_path / "y/x").write_bytes(pack(kind, {f"{i}": b"" for i in range(4)}))
        assert "it has more than 3 members; pack the files of one checkpoint" in refused(tmp_path / "y/x")


@pytest.mark.parametrize("size", [1, 100])
def test_a_member_of_another_size_than_is_announced(size: int, tmp_path: Path):
    content = bytearray(zipped(("abc", {}), content=b"hello"))
    at = content.rindex(b"PK\1\2") + 24
    content[at : at + 4] = struct.pack("<L", size)
    (tmp_path / "x").write_bytes(content)
    assert "is damaged or cut short" in refused(tmp_path / "x")


def test_a_zip_with_more_members_than_it_announces(tmp_path: Path):
    content = bytearray(zipped(("abc", {}), ("d", {})))
    content[content.rindex(b"PK\5\6") + 10] = 1
    (tmp_path / "x").write_bytes(content)
    assert "1 members are announced, 2 are there" in refused(tmp_path / "x")


# -- bombs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FREE_OF_RATIO_BYTES", 100_000)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("kind", ["zip", "gzip", "bzip2", "xz"])
def test_what_unpacks_to_a_multiple_of_its_size(kind: str, tmp_path: Path):
    (tmp_path / "x").write_bytes(pack(kind, {"zeros": bytes(3_000_000)}))
    assert "unpack to more than 100 times as many, as no weights do" in refused(tmp_path / "x")
    # Up to the limit any content is good.
    (tmp_path / "x").write_bytes(pack(kind, {"zeros": bytes(50_000)}))
    assert content_of(unpack(tmp_path / "x")) == {"zeros": bytes(50_000)}


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("after", [True, False])
def test_zeros_that_belong_to_no_member_count_too(after: bool, tmp_path: Path):
    packed = pack("tar", {"a": b"x"})
    (tmp_path / "x").write_bytes(gzip.compress(packed + bytes(3_000_000)))
    assert "unpack to more than 100 times as many" in refused(tmp_path / "x")
    # Nor does a stream of nothing but empty parts, or of zeros after the end, run for long.
    (tmp_path / "x").write_bytes(gzip.compress(packed) + (bytes(10_000) if after else gzip.compress(b"") * 10_000))
    assert content_of(unpack(tmp_path / "x")) == {"a": b"x"}


@pytest.mark.usefixtures("small_limits")
def test_members_that_share_their_bytes(tmp_path: Path):
    """The list of a zip may name the same packed bytes many times."""
    content = zipped(("a", {}), content=bytes(90_000))
    start, end = content.rindex(b"PK\1\2"), content.rindex(b"PK\5\6")
    entry = content[start:end]
    entries = b"".join(entry[:-1] + bytes([letter]) for letter in range(ord("a"), ord("z")))
    tail = bytearray(content[end:])
    tail[8:12] = struct.pack("<2H", 25, 25)
    tail[12:16] = struct.pack("<L", len(entries))
    (tmp_path / "x").write_bytes(content[:start] + entries + bytes(tail))
    assert refused(tmp_path / "x")


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_a_disk_holds(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x").write_bytes(pack(kind, {"a": random.Random(1).randbytes(50_000)}))
    monkeypatch.setattr(cache, "room", lambda _: 40_000)
    assert "has room for 0.0; free some, or set DIVAN_CACHE to a folder of another disk" in refused(tmp_path / "x")
    monkeypatch.undo()
    monkeypatch.setenv("DIVAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MOST_BYTES", 40_000)
    assert "it unpacks to more than 0 GB; pack the files of one checkpoint alone" in refused(tmp_path / "x")


@pytest.mark.parametrize("size", [2**40, 2**62, -5])
def test_sizes_that_headers_invent(size: int, tmp_path: Path):
    member = tarfile.TarInfo("a")
    member.size = 1
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # pyright: ignore[reportAttributeAccessIssue]
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    (tmp_path / "x").write_bytes(bytes(header) + bytes(2048))
    assert refused(tmp_path / "x")


def headers(kind: bytes, content: bytes, times: int = 1) -> bytes:
    """Return a tar file whose member comes after headers with a given content."""
    packed = io.BytesIO()
    for _ in range(times):
        extra = tarfile.TarInfo("././@Header")
        extra.type, extra.size = kind, len(content)
        packed.write(extra.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
    return packed.getvalue() + tar(("a", {"content": b"x"}))


@pytest.mark.parametrize("wrap", [bytes, gzip.compress, bz2.compress])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (headers(tarfile.XHDTYPE, b"9" * 7000), "a header of it has a number of 200 digits"),
        (headers(tarfile.XHDTYPE, b"1 " * 5000), "a header of it is larger than names need"),
        (headers(tarfile.GNUTYPE_LONGNAME, b"x" * 2**20), "a header of it is larger than names need"),
        (headers(tarfile.GNUTYPE_LONGNAME, b"x", times=300), "a header of it is larger than names need"),
        (headers(tarfile.XHDTYPE, b"13 size=1e99\n"), ""),
        (headers(tarfile.XHDTYPE, b"18 path=../outside\n"[:-1] + b"\n"), "leads to a folder above"),
        (headers(tarfile.XHDTYPE, b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"), "is damaged or cut short"),
        (headers(tarfile.XHDTYPE, b"30 GNU.sparse.map=0,1\n"[:-1].ljust(29) + b"\n"), ""),
    ],
)
def test_headers_of_tar_that_are_traps(content: bytes, message: str, wrap: Callable[[bytes], bytes], tmp_path: Path):
    (tmp_path / "x").write_bytes(wrap(content))
    if message:
        assert message in refused(tmp_path / "x")
    else:
        with contextlib.suppress(UsageError):
            assert content_of(unpack(tmp_path / "x")) == {"a": b"x"}


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"just a text"),
        bz2.compress(b"x" * 2000),
        pack("gzip", TREE) + b"garbage",
        pack("tar", TREE)[:1024],
        gzip.compress(pack("tar", TREE)[:1300]),
        b"PK\3\4" + bytes(100),
        b"PK\5\6",
    ],
    # Packed text differs from second to second, and each process of pytest has to name the tests alike.
    ids=["gzip of text", "bzip2 of zeros", "garbage behind", "cut tar", "cut tar in gzip", "cut zip", "end of a zip"],
)
def test_damaged_archives(content: bytes, tmp_path: Path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DamagedArchiveError, match=r"is damaged or cut short \(.*\); copy or download it again$"):
        unpack(tmp_path / "x")
    assert refused(tmp_path / "x")


@pytest.mark.parametrize("start", [b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07\x01", b"\x28\xb5\x2f\xfd"])
def test_archives_of_other_kinds(start: bytes, tmp_path: Path):
    (tmp_path / "x").write_bytes(start + bytes(600))
    with pytest.raises(
        UsageError, match=r"is a (7z|rar|zstd) archive, which is not read; unpack it, or pack the folder"
    ):
        obtain(tmp_path / "x")


def test_packed_parts_one_after_the_other(tmp_path: Path):
    packed = pack("tar", TREE)
    (tmp_path / "x").write_bytes(gzip.compress(packed[:700]) + gzip.compress(packed[700:]) + bytes(1000))
    assert "config.json" in content_of(unpack(tmp_path / "x"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_that_may_not_be_read(tmp_path: Path):
    (tmp_path / "x").write_bytes(pack("zip", TREE))
    (tmp_path / "x").chmod(0)
    with pytest.raises(PermissionError):
        obtain(tmp_path / "x")


def test_changed_archives_are_refused_or_give_the_same():
    outcomes = archive_mutations.run(100, seed=0)
    assert outcomes.total() == 100
    assert all(outcomes[f"{kind} refused"] for kind in KINDS)
    assert sum(count for name, count in outcomes.items() if name.endswith("taken")) > 3
