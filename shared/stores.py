"""Where samples lie: a folder, or a bucket by `obstore`. A file is there whole or not at all."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

# Of addresses of object stores.
SCHEMES: Final = ("s3://", "gs://", "az://")
# Suffix of files that are being written. Older ones were left by a killed process.
PART: Final = ".part"
PART_SECONDS: Final = 60.0


class Store(Protocol):
    """Files by name. Every method raises OSError if the store fails."""

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Names and bytes of all files directly at the address, in any order."""

    def get(self, name: str, most: int | None = None) -> bytes:
        """Read a file, or its first ``most`` bytes; FileNotFoundError if it is not there."""

    def put(self, name: str, data: bytes) -> None:
        """Write a file in place of the one of this name, if there is one."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""


def opened(address: str) -> Store:
    """The store at an address, or the folder at a path."""
    return Bucket(address) if address.startswith(SCHEMES) else Folder(Path(address).expanduser())


class Folder:
    """A folder, made with the first file."""

    def __init__(self, path: Path) -> None:
        """Take it."""
        self._path = path

    def sizes(self) -> Iterator[tuple[str, int]]:
        """See `Store`; deletes what killed processes left half-written."""
        if not self._path.exists():
            return
        with os.scandir(self._path) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):  # another process deleted it
                    about = entry.stat(follow_symlinks=False)
                    if not entry.name.endswith(PART):
                        yield entry.name, about.st_size
                    elif about.st_mtime < time.time() - PART_SECONDS:
                        self.delete(entry.name)

    def get(self, name: str, most: int | None = None) -> bytes:
        """See `Store`."""
        with (self._path / name).open("rb") as file:
            return file.read(-1 if most is None else most)

    def put(self, name: str, data: bytes) -> None:
        """See `Store`."""
        self._path.mkdir(parents=True, exist_ok=True)
        part = self._path / f".{name}-{os.getpid()}{PART}"
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640), "wb") as file:  # noqa: PTH123
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path / name)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def exists(self, name: str) -> bool:
        """See `Store`."""
        return (self._path / name).exists()

    def delete(self, name: str) -> None:
        """See `Store`."""
        (self._path / name).unlink(missing_ok=True)


class Bucket:
    """What lies in a store under an address; credentials come from the environment, as for the store's own tools."""

    def __init__(self, address: str) -> None:
        """Take the address; it is opened when it is first used."""
        self._address = address
        self._bucket: Any = None

    def sizes(self) -> Iterator[tuple[str, int]]:
        """See `Store`."""
        with self._store() as (obstore, store):
            for some in obstore.list(store, chunk_size=1000):
                # What lies deeper is another's, as in a folder.
                yield from ((found["path"], found["size"]) for found in some if "/" not in found["path"])

    def get(self, name: str, most: int | None = None) -> bytes:
        """See `Store`."""
        with self._store() as (obstore, store):
            if most is None:
                return bytes(obstore.get(store, name).bytes())
            return bytes(obstore.get_range(store, name, start=0, length=most))

    def put(self, name: str, data: bytes) -> None:
        """See `Store`."""
        with self._store() as (obstore, store):
            obstore.put(store, name, data, use_multipart=False)

    def exists(self, name: str) -> bool:
        """See `Store`."""
        with self._store() as (obstore, store):
            try:
                obstore.head(store, name)
            except FileNotFoundError:
                return False
            return True

    def delete(self, name: str) -> None:
        """See `Store`."""
        with self._store() as (obstore, store), contextlib.suppress(FileNotFoundError):
            obstore.delete(store, name)

    @contextlib.contextmanager
    def _store(self) -> Iterator[tuple[Any, Any]]:
        try:
            import obstore  # noqa: PLC0415 - an extra, 20 MB
        except ModuleNotFoundError as error:
            raise OSError("a bucket needs obstore, which comes with the extra `samples`") from error
        try:
            if self._bucket is None:
                self._bucket = obstore.store.from_url(self._address)
            yield obstore, self._bucket
        except OSError:
            raise
        except Exception as error:  # the classes of obstore's builders have no common base
            raise OSError(str(error).splitlines()[0]) from error
