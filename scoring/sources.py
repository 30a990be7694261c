r"""Where pictures lie: a folder, a zip or tar file, a table of addresses, a bucket.

A source lists its pictures one at a time, in the same order each time, and reads one by its key. Keys of files and of
archives are paths; a backslash in a name is doubled, and a byte that is no UTF-8 becomes ``\xNN``, so that every name
is text and none is lost.
"""

import contextlib
import csv
import errno
import hashlib
import io
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as arrow
from pyarrow import parquet

from scoring import stores
from scoring.errors import ScoreError

TABLES: Final = (".csv", ".parquet")
# What a column of addresses may be called, unless it is the only one.
COLUMNS: Final = ("key", "address", "url", "uri", "path", "file", "file_name", "filename", "file_path", "image")
# What a file's absence or its rights may be; anything else is a fault of the disk or the network.
_ABSENT: Final = (
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO,
)  # fmt: skip
# What reading a damaged archive raises; bz2 an OSError without a number, and a seek to before the file one with EINVAL.
_BROKEN: Final = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError,
    KeyError, ValueError, struct.error,
)  # fmt: skip
_ESCAPED: Final = re.compile(rb"\\(\\|x[0-9a-f]{2})")


class Entry(NamedTuple):
    """A picture of a source, as it is listed. ``version`` changes with its content; a table knows no more than keys."""

    key: str
    size: int | None = None
    version: str | None = None


class UnreadableError(Exception):
    """The source does not give this picture: it is missing, damaged, encrypted or forbidden."""


class Source(Protocol):
    r"""Where pictures lie."""

    address: str

    def entries(self) -> Iterator[Entry]:
        """List the pictures; no key comes twice."""

    def read(self, key: str, most: int) -> bytes | None:
        """One picture's file; None if it has more than ``most`` bytes.

        Raises:
            UnreadableError: the source does not give it.
            OSError: the source itself fails.
        """


def opened(address: str) -> Source:
    """The source at an address.

    Raises:
        ScoreError: there is none.
    """
    if not address:
        raise ScoreError("the address of the pictures is empty")
    if "://" in address:
        return _remote(address)
    path = Path(address).absolute()
    if not _is_text(str(path)):
        raise ScoreError(f"{escaped(address)}: the path is no UTF-8")
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise ScoreError(f"{address}: no such file or folder")
    if path.suffix.lower() in TABLES:
        return Table(str(path), lambda: path.open("rb"), str(path.parent))
    if zipfile.is_zipfile(path):
        return Zip(path)
    if tarfile.is_tarfile(path):
        return Tar(path)
    raise ScoreError(f"{address}: neither a folder nor a zip, tar, CSV or Parquet file")


def _remote(address: str) -> Source:
    if not stores.is_address(address):
        raise ScoreError(f"{address}: stores are {', '.join(stores.SCHEMES)}")
    if _path(address).lower().endswith(TABLES):
        content = fetched(address)
        return Table(address, lambda: io.BytesIO(content), _path(address).rpartition("/")[0])
    if address.startswith(stores.WEB):
        raise ScoreError(f"{address}: on the web, a source is a table, {' or '.join(TABLES)}")
    return Objects(address)


def fetched(address: str) -> bytes:
    """The object at an address.

    Raises:
        ScoreError: there is none.
    """
    try:
        content = _object(address)
    except UnreadableError as error:
        raise ScoreError(f"{address}: {error}") from error
    assert content is not None
    return content


def escaped(name: str) -> str:
    """The key of a name that the file system or an archive gave."""
    return os.fsencode(name.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")


def unescaped(key: str) -> str:
    """The name of a key."""
    plain = _ESCAPED.sub(
        lambda found: b"\\" if found[1] == b"\\" else bytes([int(found[1][1:], 16)]), key.encode("utf-8")
    )
    return os.fsdecode(plain)


def hidden(name: str) -> bool:
    """Whether a file is hidden by its name or its folder's, or is what macOS adds to archives."""
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Raise an `UnreadableError` for what is a picture's own fault."""
    try:
        yield
    except OSError as error:
        if error.errno not in (None, errno.EINVAL, *_ABSENT):
            raise
        raise UnreadableError(error.strerror or str(error)) from error
    except _BROKEN as error:
        raise UnreadableError(str(error)) from error


def _file(path: Path, most: int) -> bytes | None:
    # Opening a named pipe would wait for somebody to write.
    with _damage(), open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        known = os.fstat(file.fileno())
        if not stat.S_ISREG(known.st_mode):
            raise UnreadableError("it is no file")
        data = file.read(min(most, known.st_size) + 1)  # for which memory is taken
    return data if len(data) <= most else None


def _object(address: str, most: int | None = None) -> bytes | None:
    """What lies at an address; None if it has more than ``most`` bytes."""
    store, key = stores.split(address)
    try:
        if address.startswith(stores.WEB):
            return stores.web(address, most)
        bucket = stores.bucket(store)
    except (OSError, ValueError, ScoreError) as error:
        raise UnreadableError(str(error)) from error
    return _from(bucket, key, most)


def _from(bucket: stores.Bucket, key: str, most: int | None) -> bytes | None:
    try:
        return bucket.get(key, most)
    except (FileNotFoundError, PermissionError) as error:
        raise UnreadableError(str(error)) from error


def _path(address: str) -> str:
    """An address without its query, which only those on the web have."""
    return address.partition("?")[0] if address.startswith(stores.WEB) else address


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class Folder:
    """All files below a folder. Links are followed, and a folder that several lead to is listed once."""

    def __init__(self, top: Path) -> None:
        """Take the folder."""
        self.address = str(top)
        self._top = top

    def entries(self) -> Iterator[Entry]:
        """List the files, sorted within each folder; hidden ones are passed over."""
        return self._below(self._top, "", set())

    def _below(self, folder: Path, prefix: str, seen: set[tuple[int, int]]) -> Iterator[Entry]:
        known = folder.stat()
        if (known.st_dev, known.st_ino) in seen:
            return
        seen.add((known.st_dev, known.st_ino))
        try:
            with os.scandir(folder) as found:
                listed = sorted(found, key=lambda entry: os.fsencode(entry.name))
        except PermissionError as error:
            raise ScoreError(f"{folder}: {error.strerror}") from error
        folders = []
        for entry in listed:
            name = prefix + entry.name
            if hidden(entry.name):
                continue
            try:
                if entry.is_dir():
                    folders.append(name)
                    continue
                about = entry.stat()
            except OSError:  # a link that leads nowhere, which is an error of its own row
                yield Entry(escaped(name))
                continue
            yield Entry(escaped(name), about.st_size, str(about.st_mtime_ns))
        for name in folders:
            yield from self._below(self._top / name, f"{name}/", seen)

    def read(self, key: str, most: int) -> bytes | None:
        """See `Source`."""
        return _file(self.path(key), most)

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self._top / unescaped(key)


class Zip:
    """The files in a zip file; of entries with one name the last counts."""

    def __init__(self, path: Path) -> None:
        """Read its list of files."""
        self.address = str(path)
        try:
            self._archive = zipfile.ZipFile(path)
        except _BROKEN as error:
            raise ScoreError(f"{path}: not a readable zip file ({error})") from error
        self._infos = {escaped(info.filename): info for info in self._archive.infolist() if not info.is_dir()}

    def entries(self) -> Iterator[Entry]:
        """List the files."""
        for key, info in self._infos.items():
            if not hidden(key):
                yield Entry(key, info.file_size, f"{info.CRC:08x}")

    def read(self, key: str, most: int) -> bytes | None:
        """See `Source`."""
        with _damage(), self._archive.open(self._infos[key]) as file:
            data = file.read(most + 1)
        return data if len(data) <= most else None


class Tar:
    """The files in a tar file; of entries with one name the last counts. A compressed one is unpacked aside first."""

    def __init__(self, path: Path) -> None:
        """Read through it, for where each file begins."""
        self.address = str(path)
        self._version = str(path.stat().st_mtime_ns)  # a member's own time may be anything, often 0
        self._members: dict[str, tarfile.TarInfo] = {}
        self._plain = _plain_tar(path)
        weakref.finalize(self, self._plain.close)
        try:
            with tarfile.open(fileobj=self._plain, mode="r:") as archive:
                for member in archive:
                    first = self._members.get(escaped(member.linkname), member) if member.islnk() else member
                    if first.isreg() or first.islnk():
                        self._members[escaped(member.name)] = first
                end = os.pread(self._plain.fileno(), tarfile.BLOCKSIZE, archive.offset)
        except _BROKEN as error:
            raise ScoreError(f"{path}: not a readable tar file ({error})") from error
        if end.strip(b"\0"):  # `tarfile` takes a damaged header for the end
            raise ScoreError(f"{path}: not a readable tar file (damaged at byte {archive.offset:,})")

    def entries(self) -> Iterator[Entry]:
        """List the files."""
        for key, member in self._members.items():
            if not hidden(key):
                yield Entry(key, member.size, self._version)

    def read(self, key: str, most: int) -> bytes | None:
        """See `Source`."""
        member = self._members.get(key)
        if member is None or member.islnk() or member.issparse():
            raise UnreadableError("it is missing, a link to a file that is, or a sparse file")
        return os.pread(self._plain.fileno(), member.size, member.offset_data) if member.size <= most else None


def _plain_tar(path: Path) -> IO[bytes]:
    """The tar file, or an unnamed file with what a compressed one holds."""
    with tarfile.open(path) as archive:
        unpacked: Any = archive.fileobj
        if isinstance(unpacked, io.BufferedReader):
            return path.open("rb")
        plain = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        try:
            unpacked.seek(0)
            shutil.copyfileobj(unpacked, plain)
        except (*_BROKEN, OSError) as error:
            plain.close()
            raise ScoreError(f"{path}: not a readable tar file ({error})") from error
        plain.seek(0)
        return plain


class Objects:
    """The objects of a bucket whose keys begin with a prefix."""

    def __init__(self, address: str) -> None:
        """Open the bucket."""
        self.address = address.rstrip("/")
        self._bucket = stores.Bucket(address)

    def entries(self) -> Iterator[Entry]:
        """List them, in the store's order."""
        for found in self._bucket.listed():
            # What consoles make for a folder is listed like an empty object, without the slash at its end.
            if not found["size"] and not self._bucket.exists(found["path"]):
                continue
            yield Entry(found["path"], found["size"], found["e_tag"])

    def read(self, key: str, most: int) -> bytes | None:
        """See `Source`."""
        return _from(self._bucket, key, most)


class Table:
    """The pictures whose addresses, or paths relative to the table's folder, a CSV or Parquet file names."""

    def __init__(self, address: str, reader: Callable[[], IO[bytes]], folder: str) -> None:
        """Take what opens the table."""
        self.address = address
        self._reader = reader
        self._folder = folder

    def entries(self) -> Iterator[Entry]:
        """List the addresses, each once."""
        # Digests of 8 bytes of all of them, and then the few themselves of which there may be two: 10⁷ take 160 MB.
        digests = np.sort(np.fromiter(map(_digest, self._addresses()), np.uint64))
        twice = set(digests[1:][digests[1:] == digests[:-1]].tolist())
        seen = set()
        for address in self._addresses():
            if _digest(address) in twice:
                if address in seen:
                    continue
                seen.add(address)
            yield Entry(address)

    def read(self, key: str, most: int) -> bytes | None:
        """See `Source`."""
        if stores.is_address(self._folder) and not stores.is_address(key):
            key = f"{self._folder}/{key}"
        return _object(key, most) if stores.is_address(key) else _file(Path(self._folder, key), most)

    def _addresses(self) -> Iterator[str]:
        with self._reader() as file:
            yield from _parquet(file) if _path(self.address).lower().endswith(".parquet") else _csv(file)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _column(names: Sequence[str]) -> str:
    known = {name.strip().lower(): name for name in names}
    found = next((known[name] for name in COLUMNS if name in known), names[0] if len(names) == 1 else None)
    if found is None:
        raise ScoreError(f"no column of addresses: expected one of {', '.join(COLUMNS)}, or a single column")
    return found


def _csv(file: IO[bytes]) -> Iterator[str]:
    try:
        with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            rows = csv.reader(text)
            names = next(rows, [])
            column = names.index(_column(names))
            # A list without a head, as `find` writes one.
            first = [names] if len(names) == 1 and re.search(r"[./]", names[0]) else []
            yield from (row[column] for row in chain(first, rows) if len(row) > column and row[column])
    except (csv.Error, UnicodeError) as error:
        raise ScoreError(f"not a readable CSV file ({error})") from error


def _parquet(file: IO[bytes]) -> Iterator[str]:
    try:
        table = parquet.ParquetFile(file)
        column = _column(table.schema_arrow.names)
        for batch in table.iter_batches(columns=[column]):
            yield from (str(value) for value in batch.column(0).to_pylist() if value)
    except arrow.ArrowException as error:
        raise ScoreError(f"not a readable Parquet file ({error})") from error
