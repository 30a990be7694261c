"""Where results go: a folder or a bucket, in both of which a file is created whole, once, or not at all."""

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Final, Protocol

from scoring import stores
from scoring.errors import ScoreError

_ASIDE: Final = ".partial"


class Destination(Protocol):
    """Where results go; names are relative, with slashes."""

    address: str

    def names(self, folder: str) -> set[str]:
        """The names of the files in a folder."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    def read(self, name: str) -> bytes:
        """The content of a file."""

    def create(self, name: str, content: bytes | Path) -> bool:
        """Create a file with that content, or a copy of that file; False if there is one already."""

    def keeps_the_first(self) -> bool:
        """Whether `create` succeeds for one of several workers only."""

    def sweep(self, folder: str) -> None:
        """Remove what workers that were killed have left in a folder whose files are all there."""


def opened(address: str) -> Destination:
    """The destination at an address.

    Raises:
        ScoreError: results cannot be put there.
    """
    if not address:
        raise ScoreError("the address for the results is empty")
    if address.startswith(stores.SCHEMES):
        return Bucket(address)
    if "://" in address:
        raise ScoreError(f"{address}: results go to a folder or to {', '.join(stores.SCHEMES)}")
    return Folder(Path(address).absolute())


class Folder:
    """A folder. A file is written aside, synced, and linked to its name, which fails if that exists."""

    def __init__(self, top: Path) -> None:
        """Take the folder, which `create` makes."""
        self.address = str(top)
        self._top = top

    def names(self, folder: str) -> set[str]:
        """See `Destination`."""
        try:
            return {path.name for path in (self._top / folder).iterdir()}
        except FileNotFoundError:
            return set()

    def exists(self, name: str) -> bool:
        """See `Destination`."""
        return (self._top / name).exists()

    def read(self, name: str) -> bytes:
        """See `Destination`."""
        return (self._top / name).read_bytes()

    def create(self, name: str, content: bytes | Path) -> bool:
        """See `Destination`."""
        path = self._top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_ASIDE}")
        try:
            with aside.open("xb") as file:
                if isinstance(content, Path):
                    with content.open("rb") as other:
                        shutil.copyfileobj(other, file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # FileNotFoundError: another worker has swept, since all files are there.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                path.hardlink_to(aside)
                _sync(path.parent)
                return True
            return False
        finally:
            aside.unlink(missing_ok=True)

    def keeps_the_first(self) -> bool:
        """See `Destination`."""
        return True

    def sweep(self, folder: str) -> None:
        """See `Destination`."""
        for name in self.names(folder):
            if name.endswith(_ASIDE):
                (self._top / folder / name).unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Bucket:
    """A bucket, or a prefix in one."""

    def __init__(self, address: str) -> None:
        """Open it."""
        self.address = address.rstrip("/")
        self._bucket = stores.Bucket(self.address)
        self.exists = self._bucket.exists
        self.create = self._bucket.create
        self.keeps_the_first = self._bucket.keeps_the_first

    def names(self, folder: str) -> set[str]:
        """See `Destination`."""
        return {found["path"].rpartition("/")[2] for found in self._bucket.listed(folder)}

    def read(self, name: str) -> bytes:
        """See `Destination`."""
        content = self._bucket.get(name)
        assert content is not None
        return content

    def sweep(self, folder: str) -> None:
        """Nothing is left: an object is put whole."""
