"""Sources: what a folder, an archive or a table holds, file by file, also where one is packed in another.

Nothing is extracted by name, so that no name leads out of a folder. Archives within archives are copied to memory
or to files without a name.
"""

import csv
import hashlib
import io
import lzma
import os
import posixpath
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import msgspec
import pyarrow as arrow
from pyarrow import parquet

from training.stage import StageError

ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
TABLES: Final = (".csv", ".tsv", ".jsonl", ".parquet")
LARGEST: Final = 256 * 2**20  # bytes of a file that is read; no photograph has more
LARGEST_ARCHIVE: Final = 64 * 2**30  # bytes of an archive within an archive
CHUNK: Final = 2**20  # bytes copied at a time; archives of fewer within an archive stay in memory
DEEPEST: Final = 3  # archives within each other
# What a column of a table may be called that has the pictures, and one that has their labels.
PATHS: Final = (
    "file_name",
    "filename",
    "file",
    "path",
    "file_path",
    "filepath",
    "image_path",
    "image_name",
    "image",
    "img",
)
LABELS: Final = ("label", "labels", "class", "class_name", "category", "species", "animal", "target")
DAMAGE: Final = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError,
    RuntimeError, KeyError, ValueError, struct.error, csv.Error, msgspec.MsgspecError, arrow.ArrowException,
)  # fmt: skip


class PassedOverError(Exception):
    """A file that is passed over; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        """Keep the reason."""
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class File:
    """A file of a source.

    ``name`` is its path in the source; an archive in the source counts as a folder. ``label`` is what a table says, in
    the table's own words; ``same`` is equal for two names of one file; a file with a ``reason`` cannot be read.
    """

    name: str
    open: Callable[[], IO[bytes]]
    label: str | None = None
    same: tuple[int, int] | None = None
    reason: str | None = None

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            PassedOverError: it is missing, damaged, encrypted or too large.
        """
        if self.reason:
            raise PassedOverError(self.reason)
        with _damage_is_a_reason(), self.open() as handle:
            data = handle.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise PassedOverError("too_large")
        return data


class Row(NamedTuple):
    """A row of a table: where the picture lies, or its bytes, and its label."""

    path: str
    label: str
    open: Callable[[], IO[bytes]] | None


@contextmanager
def opened(path: Path, scratch: Path) -> Iterator[list[File]]:
    """The files of a source, which can be read within the block.

    Args:
        path: a folder, a zip or tar file, or a table of paths and labels.
        scratch: folder with room for the archives in the source.

    Raises:
        StageError: there is none at ``path``, or it cannot be read as a whole.
    """
    if not path.exists():
        raise StageError(f"{path}: no such file or folder")
    with ExitStack() as stack:
        if path.name.lower().endswith(TABLES):
            yield list(_of_table(path, stack))
            return
        try:
            first = _of_folder(path) if path.is_dir() else _of_archive(stack.enter_context(path.open("rb")), stack)
            files = list(first)
        except DAMAGE as error:
            raise StageError(
                f"{path}: not a readable zip or tar file ({_line(error)}); a source is a folder, a zip or tar file, "
                f"or a table ({', '.join(TABLES)})"
            ) from error
        yield list(_labelled(list(_unpacked(files, stack, scratch, DEEPEST)), stack))


def digest(path: Path) -> str:
    """SHA-256 that changes with what a source holds: of a file's bytes, of names, sizes and times below a folder."""
    found = hashlib.sha256()
    listed: Iterable[tuple[str, Path]] = ()
    if path.is_dir():
        listed = _walk(path)
    else:
        with path.open("rb") as handle:
            found.update(hashlib.file_digest(handle, "sha256").digest())
    if path.name.lower().endswith(TABLES) and not path.is_dir():
        with ExitStack() as stack:
            listed = [(file.name, path.parent / file.name) for file in _of_table(path, stack) if file.same]
    for name, file in listed:
        known = os.lstat(file) if not file.exists() else file.stat()
        found.update(repr((name, known.st_size, known.st_mtime_ns)).encode())
    return found.hexdigest()


def hidden(name: str) -> bool:
    """Whether a file is hidden by its name or its folder's, or is what macOS adds to archives."""
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


@contextmanager
def _damage_is_a_reason() -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise PassedOverError("broken") from error


def _walk(top: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a folder and its name there, in order; links are followed unless they lead back up."""
    top = top.resolve()
    errors: list[OSError] = []
    for folder, folders, names in os.walk(top, followlinks=True, onerror=errors.append):
        here = Path(folder)
        above = {parent.resolve() for parent in (here, *here.parents)}
        folders[:] = sorted(name for name in folders if (here / name).resolve() not in above)
        yield from (((here / name).relative_to(top).as_posix(), here / name) for name in sorted(names))
    for error in errors:  # folders that may not be listed
        yield Path(error.filename).relative_to(top).as_posix(), Path(error.filename)


def _of_folder(top: Path) -> Iterator[File]:
    for name, path in _walk(top):
        yield _on_disk(name, path) if path.is_file() else File(name, _nothing, reason="broken")


def _on_disk(name: str, path: Path, label: str | None = None) -> File:
    known = path.stat()
    return File(name, partial(_bytes, path), label, same=(known.st_dev, known.st_ino))


def _of_archive(handle: IO[bytes], stack: ExitStack) -> Iterator[File]:
    if zipfile.is_zipfile(handle):
        packed = stack.enter_context(zipfile.ZipFile(handle))
        for entry in packed.infolist():
            name = entry.filename.replace("\\", "/")
            if not name.endswith("/"):
                locked = entry.flag_bits & 1
                yield File(name, partial(packed.open, entry), reason="password_protected" if locked else None)
        return
    handle.seek(0)
    tape = stack.enter_context(tarfile.open(fileobj=handle))  # noqa: SIM115
    for member in tape.getmembers():
        if not member.isdir():
            yield File(member.name, partial(_member, tape, member))


def _member(tape: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """Open a file of a tar, by way of links within it."""
    handle = tape.extractfile(member)
    if handle is None:
        raise PassedOverError("broken")
    return handle


def _bytes(path: Path) -> IO[bytes]:
    return path.open("rb")


def _nothing() -> IO[bytes]:
    raise PassedOverError("missing")


def _unpacked(files: Iterable[File], stack: ExitStack, scratch: Path, deepest: int) -> Iterator[File]:
    """The files, and in place of each archive among them its own files."""
    for file in files:
        if file.reason or hidden(file.name) or not file.name.lower().endswith(ARCHIVES):
            yield file
            continue
        try:
            if not deepest:
                raise PassedOverError("too_large")
            copy = _copied(file, stack, scratch)
            with _damage_is_a_reason():
                inner = list(_of_archive(copy, stack))
        except PassedOverError as error:
            yield replace(file, reason=error.reason)
            continue
        for one in _unpacked(inner, stack, scratch, deepest - 1):
            yield replace(one, name=f"{file.name}/{one.name}")


def _copied(file: File, stack: ExitStack, scratch: Path) -> IO[bytes]:
    copy: IO[bytes] = stack.enter_context(tempfile.SpooledTemporaryFile(CHUNK, "w+b", dir=str(scratch)))  # noqa: SIM115
    with _damage_is_a_reason():
        source = file.open()
    with source:
        while True:
            with _damage_is_a_reason():
                chunk = source.read(CHUNK)
            if not chunk:
                return copy
            if copy.tell() > LARGEST_ARCHIVE:
                raise PassedOverError("too_large")
            copy.write(chunk)  # a full disk is an error of its own, not of the archive


def _labelled(files: list[File], stack: ExitStack) -> Iterator[File]:
    """The files, with the labels of tables among them, and the pictures that are in tables."""
    by_name = {file.name: file for file in files}
    by_end: dict[str, list[str]] = defaultdict(list)
    for name in by_name:
        by_end[posixpath.basename(name)].append(name)
    labels: dict[str, str] = {}
    added: list[File] = []
    used: set[str] = set()
    for file in files:
        if hidden(file.name) or file.reason or not file.name.lower().endswith(TABLES):
            continue
        try:
            rows = list(_rows(file, stack))
        except PassedOverError as error:
            added.append(replace(file, reason=error.reason))
            used.add(file.name)
            continue
        if rows:
            used.add(file.name)
        for path, label, content in rows:
            place = posixpath.normpath(posixpath.join(posixpath.dirname(file.name), path))
            if content:
                added.append(File(f"{file.name}/{path}", content, label))
            elif found := _found(place, path, by_name, by_end):
                labels[found] = label
            else:
                added.append(File(place, _nothing, label, reason="missing"))
    yield from (replace(file, label=labels.get(file.name)) for file in files if file.name not in used)
    yield from added


def _found(place: str, path: str, by_name: dict[str, File], by_end: dict[str, list[str]]) -> str | None:
    """Name of the file that a table means: relative to the table, to the source, or the only one of that name."""
    for name in (place, path):
        if name in by_name:
            return name
    ends = [name for name in by_end[posixpath.basename(path)] if name.endswith(f"/{path}")]
    return ends[0] if len(ends) == 1 else None


def _of_table(table: Path, stack: ExitStack) -> Iterator[File]:
    """The pictures that a table names, in or below its folder, or that it holds."""
    top = table.parent.resolve()
    try:
        rows = list(_rows(File(table.name, partial(_bytes, table)), stack))
    except PassedOverError as error:
        raise StageError(f"{table}: not a readable table") from error
    if not rows:
        raise StageError(
            f"{table}: expected a column of paths ({', '.join(PATHS)}), one of labels ({', '.join(LABELS)}), and rows"
        )
    for path, label, content in rows:
        name = posixpath.normpath(path.removeprefix(f"{top}/"))
        file = top / name
        if content:
            yield File(name, content, label)
        elif name.startswith(("/", "../")) or not file.is_file():
            yield File(name, _nothing, label, reason="missing")
        else:
            yield _on_disk(name, file, label)


def _rows(file: File, stack: ExitStack) -> Iterator[Row]:
    """The rows of a table; none if it has no column of paths or none of labels."""
    kind = file.name.lower().rpartition(".")[2]
    with _damage_is_a_reason():
        if kind == "parquet":
            yield from _parquet(stack.enter_context(file.open()))
            return
        with file.open() as handle, io.TextIOWrapper(handle, "utf-8-sig", "surrogateescape", newline="") as text:
            for row in _json(text) if kind == "jsonl" else _csv(text):
                path, label = _column(list(row), PATHS), _column(list(row), LABELS)
                if path is None or label is None:
                    return
                if row[path] and row[label] is not None:
                    yield Row(str(row[path]).replace("\\", "/"), str(row[label]), None)


def _json(text: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    return (msgspec.json.decode(line, type=dict[str, Any]) for line in text if line.strip())


def _csv(text: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    head = text.readline()
    text.seek(0)
    return csv.DictReader(text, delimiter=max(",;\t", key=head.count))


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(":")


def _column(names: Sequence[Any], known: Sequence[str]) -> str | None:
    said = {str(name).strip().lower().replace(" ", "_"): str(name) for name in names}
    return next((said[name] for name in known if name in said), None)


def _parquet(handle: IO[bytes]) -> Iterator[Row]:
    """As :func:`_rows`; a picture may be in the table, as ``datasets`` writes it, and a label one of named numbers."""
    table = parquet.ParquetFile(handle)
    schema = table.schema_arrow
    path, label = _column(schema.names, PATHS), _column(schema.names, LABELS)
    if path is None or label is None:
        return
    kind = schema.field(path).type
    plain, struct = arrow.types.is_string(kind) or arrow.types.is_large_string(kind), arrow.types.is_struct(kind)
    about = msgspec.json.decode((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = dict(enumerate(about.get("info", {}).get("features", {}).get(label, {}).get("names") or ()))

    @lru_cache(maxsize=1)
    def pictures(group: int) -> Any:
        return table.read_row_group(group, [path]).column(path)

    def content(group: int, place: int) -> IO[bytes]:
        value = pictures(group)[place].as_py()
        data = value["bytes"] if struct and value else value
        if data is None:
            raise PassedOverError("missing")
        return io.BytesIO(data)

    number = 0
    for group in range(table.num_row_groups):
        columns = [label, *([path] if plain else [f"{path}.path"] if struct else [])]
        for place, row in enumerate(table.read_row_group(group, columns).to_pylist()):
            number += 1
            said = row[label]
            if said is None:
                continue
            word = (names.get(said) if isinstance(said, int) else None) or str(said)
            if plain:
                yield Row(str(row[path]).replace("\\", "/"), word, None)
            else:
                known = (row.get(path) or {}).get("path") or "picture"
                yield Row(f"{number}-{known}", word, partial(content, group, place))
