"""The manifest: every key of a source, in a Parquet file whose row groups are the shards.

Its digest is of the source and what it lists, so that workers which list the same name their shards alike.
"""

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as arrow
from pyarrow import parquet

from scoring import sources, stores
from scoring.errors import ScoreError
from scoring.sources import Entry, Source

SHARD: Final = 2048  # keys of a shard
SCHEMA: Final = arrow.schema(
    [arrow.field("key", arrow.string(), nullable=False), ("size", arrow.int64()), ("version", arrow.string())]
)
_SOURCE, _DIGEST = "catsdogs.source", "catsdogs.manifest"


def write(source: Source, path: Path, listed: Callable[[int], None] = lambda _: None) -> "Manifest":
    """List a source into a file; ``listed`` is called with the number of keys after each shard.

    Raises:
        ScoreError: it is empty, or cannot be listed.
    """
    found = hashlib.sha256(source.address.encode())
    count = 0
    with parquet.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=False, write_statistics=False) as file:
        entries = source.entries()
        while shard := list(islice(entries, SHARD)):
            found.update(digest(shard).encode())
            columns = [
                arrow.array(column, field.type) for column, field in zip(zip(*shard, strict=True), SCHEMA, strict=True)
            ]
            file.write_table(arrow.Table.from_arrays(columns, schema=SCHEMA), row_group_size=SHARD)
            count += len(shard)
            listed(count)
        if not count:
            raise ScoreError(f"{source.address}: no pictures")
        file.add_key_value_metadata({_SOURCE: source.address, _DIGEST: found.hexdigest()})
    made = opened(path)
    assert made is not None
    return made


def opened(path: Path) -> "Manifest | None":
    """Open a manifest; None if this is another table.

    Raises:
        ScoreError: it is no Parquet file.
    """
    try:
        file = parquet.ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        raise ScoreError(f"{path}: not a readable Parquet file ({error})") from error
    return Manifest(path, file) if _DIGEST.encode() in (file.metadata.metadata or {}) else None


def at(address: str, scratch: Path) -> "Manifest | None":
    """The manifest at an address, fetched to ``scratch`` from a store; None if something else is there.

    Raises:
        ScoreError: it cannot be read.
    """
    if not address.endswith(".parquet"):
        return None
    if not stores.is_address(address):
        return opened(Path(address))
    path = scratch / "fetched.parquet"
    path.write_bytes(sources.fetched(address))
    return opened(path)


def digest(shard: list[Entry]) -> str:
    """SHA-256 of the keys of a shard, with their sizes and versions."""
    return hashlib.sha256(msgspec.msgpack.encode(shard)).hexdigest()


class Manifest:
    """A manifest that has been written.

    Attributes:
        digest: of the source's address and the keys, sizes and versions.
        source: the address of the source.
        count: number of keys.
        shards: number of shards.
    """

    def __init__(self, path: Path, file: Any) -> None:
        """Take its file; see `opened`."""
        about = file.metadata.metadata
        self._file = file
        self.path = path
        self.digest = about[_DIGEST.encode()].decode()
        self.source = about[_SOURCE.encode()].decode()
        self.count: int = self._file.metadata.num_rows
        self.shards: int = self._file.metadata.num_row_groups

    @property
    def name(self) -> str:
        """What it is called at a destination."""
        return f"manifest-{self.digest[:16]}.parquet"

    def size(self, number: int) -> int:
        """Count the keys of a shard."""
        rows: int = self._file.metadata.row_group(number).num_rows
        return rows

    def shard(self, number: int) -> list[Entry]:
        """Read the keys of a shard."""
        columns: Iterator[list[Any]] = (
            column.to_pylist() for column in self._file.read_row_group(number, use_threads=False).columns
        )
        return [Entry(*row) for row in zip(*columns, strict=True)]
