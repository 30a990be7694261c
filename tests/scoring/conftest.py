"""Scoring as a user has it: the command, and what it leaves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet

from scoring.cli import score
from scoring.job import SUMMARY
from tests.conftest import blobs, encoded


def scored(*arguments: object) -> Result:
    """The command has run, and succeeded."""
    result = CliRunner().invoke(score, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: object) -> str:
    """The command has failed; returns what it said."""
    result = CliRunner().invoke(score, [str(argument) for argument in arguments])
    assert result.exit_code in (1, 2), result.exception
    return result.stderr


@dataclass
class Found:
    """What lies at a destination."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    shards: list[Path]

    def errors(self) -> dict[str, str]:
        return {row["key"]: row["error"] for row in self.rows if row["error"]}


def results(destination: Path) -> Found:
    shards = sorted(destination.glob("*/*.parquet"))
    rows = [row for shard in shards for row in parquet.read_table(shard).to_pylist()]
    (summary,) = destination.glob(f"*/{SUMMARY}")
    return Found(rows, msgspec.json.decode(summary.read_bytes()), shards)


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file below a folder, and what changes if it is written again."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three pictures, one of them in a folder, and one file that is none."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for seed, name in enumerate(("a.jpg", "b.png", "more/a.jpg")):
        (folder / name).write_bytes(encoded(blobs(seed), "PNG" if name.endswith("png") else "JPEG"))
    (folder / "notes.txt").write_text("not a picture")
    return folder
