import contextlib
import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

import pyarrow as arrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from scoring import sources
from scoring.errors import ScoreError
from scoring.sources import UnreadableError

MOST = 1000


def read(address: Path) -> dict[str, bytes | None]:
    source = sources.opened(str(address))
    entries = list(source.entries())
    found = {entry.key: source.read(entry.key, MOST) for entry in entries}
    assert len(found) == len(entries), "a key comes twice"
    return found


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_folder_is_read_as_deep_as_it_goes_without_what_is_hidden(tmp_path: Path) -> None:
    put(tmp_path / "b", b"1")
    put(tmp_path / "a/c/d.jpg", b"2")
    put(tmp_path / ".hidden/e.jpg", b"3")
    put(tmp_path / "__MACOSX/e.jpg", b"4")
    assert read(tmp_path) == {"b": b"1", "a/c/d.jpg": b"2"}


@pytest.mark.parametrize("name", ["ein Löwe.jpg", "a\nb\r.jpg", "back\\slash", "\\xff.jpg", '"quoted",', "x" * 255])
def test_an_odd_name_survives(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, b"1")
    assert list(read(tmp_path).values()) == [b"1"]


def test_a_name_that_is_no_text_survives_beside_one_that_looks_like_its_key(tmp_path: Path) -> None:
    put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")), b"1")
    put(tmp_path / "caf\\xe9.jpg", b"2")
    assert read(tmp_path) == {"caf\\xe9.jpg": b"1", "caf\\\\xe9.jpg": b"2"}


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_every_name_has_a_key_of_its_own(name: bytes) -> None:
    key = sources.escaped(os.fsdecode(name))
    assert key.encode("utf-8")
    assert os.fsencode(sources.unescaped(key)) == name


def test_links_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/a.jpg", b"1")
    top = tmp_path / "top"
    put(top / "b.jpg", b"2")
    (top / "link").symlink_to(tmp_path / "elsewhere")
    (top / "second").symlink_to(tmp_path / "elsewhere")
    (top / "up").symlink_to(top)
    (top / "file.jpg").symlink_to(tmp_path / "elsewhere/a.jpg")
    assert read(top) == {"b.jpg": b"2", "file.jpg": b"1", "link/a.jpg": b"1"}


def test_what_cannot_be_read_is_listed_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    source = sources.opened(str(tmp_path))
    assert [entry.key for entry in source.entries()] == ["nowhere"]
    with pytest.raises(UnreadableError):
        source.read("nowhere", MOST)


def test_a_file_that_is_too_large_is_not_given(tmp_path: Path) -> None:
    put(tmp_path / "a", bytes(MOST + 1))
    assert read(tmp_path) == {"a": None}


def test_a_zip_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/a.jpg", b"1")
        archive.writestr(".DS_Store", b"2")
        archive.writestr("large", bytes(MOST + 1))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x/a.jpg", b"3")
    assert read(tmp_path / "a.zip") == {"x/a.jpg": b"3", "large": None}


def test_a_damaged_entry_of_a_zip_file_is_unreadable(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", b"some bytes")
    whole = (tmp_path / "a.zip").read_bytes()
    source = sources.opened(str(put(tmp_path / "b.zip", whole.replace(b"some bytes", b"some other", 1))))
    with pytest.raises(UnreadableError):
        source.read("a.jpg", MOST)


@pytest.mark.parametrize("kind", ["w:", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_file(tmp_path: Path, kind: Literal["w:", "w:gz", "w:bz2", "w:xz"]) -> None:
    with tarfile.open(tmp_path / "a.tar", kind) as archive:
        for name, content in (("x/a.jpg", b"1"), ("large", bytes(MOST + 1)), ("x/a.jpg", b"22"), ("b", b"3")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("second")
        link.type, link.linkname = tarfile.LNKTYPE, "b"
        archive.addfile(link)
    assert read(tmp_path / "a.tar") == {"x/a.jpg": b"22", "large": None, "b": b"3", "second": b"3"}


def tar(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def test_a_tar_file_that_is_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", *((name, b"1") for name in "abc"))
    assert len(read(path)) == 3
    whole = path.read_bytes()
    path.write_bytes(whole[:1024] + b"?" + whole[1025:])
    with pytest.raises(ScoreError, match="damaged at byte 1,024"):
        sources.opened(str(path))


def test_a_link_that_leads_nowhere_in_a_tar_file_is_unreadable(tmp_path: Path) -> None:
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.LNKTYPE, "gone"
    source = sources.opened(str(tar(tmp_path / "a.tar", ("a", b"1"), link)))
    assert [entry.key for entry in source.entries()] == ["a", "link"]
    assert source.read("a", MOST) == b"1"
    with pytest.raises(UnreadableError):
        source.read("link", MOST)


def test_a_tar_file_that_was_exchanged_has_other_versions(tmp_path: Path) -> None:
    first = list(sources.opened(str(tar(tmp_path / "a.tar", ("a", b"1")))).entries())
    os.utime(tmp_path / "a.tar", ns=(1, 1))
    assert first != list(sources.opened(str(tmp_path / "a.tar")).entries())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_whatever_is_damaged_in_a_zip_file_costs_no_more_than_itself(tmp_path: Path, method: int) -> None:
    content = bytes(range(256))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("a", content)
        archive.writestr("b", content)
    whole = (tmp_path / "a.zip").read_bytes()
    middle = whole.index(b"PK\x03\x04", 1)
    for at in range(middle):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        source = sources.opened(str(put(tmp_path / "b.zip", bytes(damaged))))
        assert source.read("b", MOST) == content
        with contextlib.suppress(UnreadableError):
            assert source.read("a", MOST) in (content, None)
    for at in range(middle, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        put(tmp_path / "b.zip", bytes(damaged))
        try:
            source = sources.opened(str(tmp_path / "b.zip"))
        except ScoreError:
            continue
        for entry in source.entries():
            with contextlib.suppress(UnreadableError):
                source.read(entry.key, MOST)


def test_a_named_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    source = sources.opened(str(tmp_path))
    with pytest.raises(UnreadableError, match="no file"):
        source.read("pipe", MOST)


def test_a_list_without_a_head_is_read_from_its_first_line(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", b"1")
    put(tmp_path / "b.jpg", b"2")
    assert read(put(tmp_path / "list.csv", b"./a.jpg\nb.jpg\n\n")) == {"./a.jpg": b"1", "b.jpg": b"2"}


@pytest.mark.parametrize("key", ["a\0b", "s3://", "https://[bad/x.jpg", "x" * 5000])
def test_an_address_that_cannot_be_one_is_unreadable(tmp_path: Path, key: str) -> None:
    source = sources.opened(str(put(tmp_path / "a.csv", b"path\n")))
    with pytest.raises(UnreadableError):
        source.read(key, MOST)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_of_paths_each_once(tmp_path: Path, form: str) -> None:
    put(tmp_path / "photos/a.jpg", b"1")
    outside = put(tmp_path.parent / "outside.jpg", b"2")
    paths = ["photos/a.jpg", str(outside), "photos/a.jpg"]
    if form == "csv":
        put(tmp_path / "a.csv", "".join(f"{row}\n" for row in ("id,path", *(f"7,{path}" for path in paths))).encode())
    else:
        parquet.write_table(arrow.table({"id": [1, 2, 3], "path": paths}), tmp_path / "a.parquet")
    assert read(tmp_path / f"a.{form}") == {"photos/a.jpg": b"1", str(outside): b"2"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"one,two\n1,2\n", "no column of addresses"),
        ("a.parquet", b"nothing", "not a readable Parquet"),
        ("a.jpg", b"nothing", "neither a folder nor"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    put(tmp_path / name, content)
    with pytest.raises(ScoreError, match=said):
        list(sources.opened(str(tmp_path / name)).entries())
    with pytest.raises(ScoreError, match="no such file"):
        sources.opened(str(tmp_path / "nowhere"))
