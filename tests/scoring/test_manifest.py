from collections.abc import Iterator
from pathlib import Path

import pyarrow as arrow
import pytest
from pyarrow import parquet

from scoring import manifest
from scoring.errors import ScoreError
from scoring.manifest import SHARD
from scoring.sources import Entry


class Listed:
    """A source with this number of keys."""

    address = "s3://bucket"

    def __init__(self, count: int, version: str = "1") -> None:
        self.count = count
        self.version = version

    def entries(self) -> Iterator[Entry]:
        return (Entry(f"{number}.jpg", number, self.version) for number in range(self.count))

    def read(self, key: str, most: int) -> bytes | None:
        raise AssertionError(key, most)


def test_its_shards_are_the_keys_in_order(tmp_path: Path) -> None:
    made = manifest.write(Listed(SHARD + 10), tmp_path / "m.parquet")
    again = manifest.opened(tmp_path / "m.parquet")
    assert again is not None
    assert (again.count, again.shards, again.source, again.digest) == (SHARD + 10, 2, "s3://bucket", made.digest)
    assert [entry for number in range(2) for entry in again.shard(number)] == list(Listed(SHARD + 10).entries())


def test_its_digest_is_of_what_it_lists(tmp_path: Path) -> None:
    digests = [
        manifest.write(source, tmp_path / "m.parquet").digest
        for source in (Listed(10), Listed(10), Listed(11), Listed(10, version="2"))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_another_table_is_none(tmp_path: Path) -> None:
    parquet.write_table(arrow.table({"key": ["a"]}), tmp_path / "a.parquet")
    assert manifest.opened(tmp_path / "a.parquet") is None


def test_a_source_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match="no pictures"):
        manifest.write(Listed(0), tmp_path / "m.parquet")
