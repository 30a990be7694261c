"""Sorting pictures by their scores into ``cats/ dogs/ unsure/ unreadable/``, and undoing that.

A list in the folder says what was put there. Each file is listed before it is made, so that a run which was stopped can
go on or be undone. What has changed since is left.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import msgspec
from pyarrow import parquet

from scoring import sources
from scoring.errors import ScoreError
from scoring.job import SUMMARY, Summary
from scoring.sources import Folder, Source, Tar, UnreadableError, Zip

LIST: Final = ".catsdogs-sorted.jsonl"
ASIDE: Final = ".catsdogs-partial"
REFUSED: Final = "unreadable"  # the folder of what has an error
MOST: Final = 2**33  # bytes of a file that is copied
LONGEST_LINE: Final = 2**20  # bytes of a line of the list
NAME_BYTES, PATH_BYTES = 255, 2000  # that file systems take of a name; and of a path, with the folder's own


class _Head(msgspec.Struct, frozen=True):
    """The first line of a list: the result's folder."""

    result: str


class _Made(msgspec.Struct, frozen=True, array_like=True):
    """A file that was put: its name, the picture's key, of a copy size and time, of a link where it leads.

    Names are written as `sources.escaped` does.
    """

    name: str
    key: str
    size: int | None = None
    time: int | None = None
    link: str | None = None

    def is_still(self, path: Path) -> bool:
        """Whether the file is as it was made."""
        if self.link is not None:
            return path.is_symlink() and sources.escaped(str(path.readlink())) == self.link
        known = path.lstat()
        return not path.is_symlink() and (known.st_size, known.st_mtime_ns) == (self.size, self.time)


def sort(result: Path, target: Path, *, link: bool) -> Counter[str]:
    """Put a copy of each picture, or a link to it, into the folder of its verdict; returns how many each has.

    Args:
        result: where ``catsdogs score`` has put its results.
        target: the folder for the four folders. What is there is never replaced.
        link: make symbolic links, which only pictures in a folder can have.

    Raises:
        ScoreError: there is no complete result, or something is in the way.
    """
    folder = _newest(result)
    source = sources.opened(msgspec.json.decode((folder / SUMMARY).read_bytes(), type=Summary).source)
    if link and not isinstance(source, Folder):
        raise ScoreError(f"{source.address} is no folder: copy its pictures, without --link")
    target.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    with _locked(target) as listing:
        if not listing.tell():
            _add(listing, _Head(str(folder)))
        done = {made.key: sources.unescaped(made.name) for made in _listed(listing, str(folder))}
        ours = set(done.values())
        for key, verdict in _verdicts(folder):
            group = verdict or REFUSED
            name = done.get(key) or _free(f"{group}/{_name(key, source)}", key, target, ours)
            if (key in done and os.path.lexists(target / name)) or _put(source, key, target, name, listing, link=link):
                ours.add(name)
                counts[group] += 1
    return counts


def undo(target: Path) -> tuple[int, list[Path]]:
    """Remove what `sort` has put; returns how many files, and those left, as they have changed since.

    Raises:
        ScoreError: nothing was sorted there.
    """
    if not (target / LIST).exists():
        raise ScoreError(f"{target}: nothing was sorted here")
    target = target.absolute()
    removed, left = 0, []
    folders = {target}
    with _locked(target) as listing:
        for made in _listed(listing):
            path = target / sources.unescaped(made.name)
            folders |= {folder for folder in path.parents if folder.is_relative_to(target)}
            if not os.path.lexists(path):
                continue
            if made.is_still(path):
                path.unlink()
                removed += 1
            else:
                left.append(path)
        (target / LIST).unlink()
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return removed, left


def _newest(result: Path) -> Path:
    found = sorted((*result.glob(SUMMARY), *result.glob(f"*/{SUMMARY}")), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise ScoreError(f"{result}: no complete result of `catsdogs score`")
    return found[-1].parent.resolve()


def _verdicts(folder: Path) -> Iterator[tuple[str, str | None]]:
    for shard in sorted(folder.glob("*.parquet")):
        table = parquet.read_table(shard, columns=["key", "verdict"])
        yield from zip(table["key"].to_pylist(), table["verdict"].to_pylist(), strict=True)


def _name(key: str, source: Source) -> str:
    """A name for a picture below a folder, whatever its key."""
    name = sources.unescaped(key) if isinstance(source, Folder | Zip | Tar) else key.replace("://", "/")
    return "/".join("%2E%2E" if part == ".." else part for part in name.split("/") if part not in ("", "."))


def _free(name: str, key: str, target: Path, ours: set[str]) -> str:
    """The name, or another one if it is too long, or has been given to another picture or to a folder."""
    parts = name.split("/")
    above = ("/".join(parts[:depth]) for depth in range(2, len(parts) + 1))
    long = len(os.fsencode(name)) > PATH_BYTES or any(len(os.fsencode(part)) > NAME_BYTES for part in parts)
    if not long and ours.isdisjoint(above) and not (target / name).is_dir():
        return name
    stem, suffix = os.path.splitext(parts[-1])  # noqa: PTH122 - a path's suffix is as long as the name
    return f"{parts[0]}/{stem[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}{suffix[:8]}"


def _put(source: Source, key: str, target: Path, name: str, listing: IO[bytes], *, link: bool) -> bool:
    """Put a picture; False if the source does not give it."""
    path, aside = target / name, target / ASIDE
    listed = sources.escaped(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if link:
            assert isinstance(source, Folder)
            leads = source.path(key)
            _add(listing, _Made(listed, key, link=sources.escaped(str(leads))))
            path.symlink_to(leads)
            return True
        data = source.read(key, MOST)
        if data is None:
            return False
        when = source.path(key).stat().st_mtime_ns if isinstance(source, Folder) else time.time_ns()
        aside.write_bytes(data)
        os.utime(aside, ns=(when, when))
        _add(listing, _Made(listed, key, len(data), aside.stat().st_mtime_ns))
        path.hardlink_to(aside)
    except (FileExistsError, NotADirectoryError) as error:
        raise ScoreError(f"{path} is in the way") from error
    except UnreadableError:
        return False
    finally:
        aside.unlink(missing_ok=True)
    return True


def _add(listing: IO[bytes], line: _Head | _Made) -> None:
    listing.write(msgspec.json.encode(line) + b"\n")
    listing.flush()


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[IO[bytes]]:
    """The list of a folder, at its end, for one run at a time, without what a run left half done."""
    with (target / LIST).open("a+b") as listing:
        try:
            fcntl.flock(listing, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ScoreError(f"{target}: another run is at work here") from error
        (target / ASIDE).unlink(missing_ok=True)
        size = listing.tell()
        listing.seek(max(0, size - LONGEST_LINE))
        _, _, torn = listing.read().rpartition(b"\n")
        listing.truncate(size - len(torn))
        listing.seek(0, os.SEEK_END)
        yield listing


def _listed(listing: IO[bytes], result: str | None = None) -> Iterator[_Made]:
    """The lines of a list; with ``result``, it must be the list of that one."""
    listing.seek(0)
    if head := next(listing, b""):
        known = msgspec.json.decode(head, type=_Head).result
        if result not in (None, known):
            raise ScoreError(f"this folder is sorted by {known}: take that away with --undo first")
        yield from (msgspec.json.decode(line, type=_Made) for line in listing)
