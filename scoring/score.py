"""Scoring shards of pictures in this machine's lanes."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from scoring.errors import ScoreError
from scoring.rows import UNREADABLE, Row
from scoring.sources import Entry, Source, UnreadableError
from serving.engine.supervisor import Lanes
from serving.engine.wire import Answer, Flags
from serving.errors import ProblemError

# Pictures that are read at a time: a thread for each would take a twentieth of what the lanes take.
PIECE: Final = 8
# Pieces under way for each lane: one is read while another is scored.
READERS: Final = 3
# Errors that say more of this moment than of the picture, and how often a picture is tried.
MOMENTARY: Final = ("not_ready", "deadline_exceeded")
TRIES: Final = 3


@dataclass
class Shard:
    """Some pictures, and their rows as they come."""

    number: int
    entries: list[Entry]
    name: str = ""
    began: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        """No row is there yet."""
        self.rows: dict[int, Row] = {}

    def in_order(self) -> list[Row]:
        """All rows, as the keys are listed."""
        return [self.rows[number] for number in range(len(self.entries))]


@dataclass
class Tally:
    """How far the work is."""

    total: int | None = None  # pictures; None if that is not known
    before: int = 0  # that other runs or workers have done
    done: int = 0  # by this worker
    errors: Counter[str] = field(default_factory=Counter)


class Scorer:
    """Scores shards, several pictures at a time.

    Args:
        lanes: which answer.
        source: where the pictures are.
        most: bytes of a picture file that is read.
        flags: what to answer.
        commit: called in a thread with each shard that is complete, one at a time.
    """

    def __init__(
        self, lanes: Lanes, source: Source, most: int, flags: Flags, commit: Callable[[Shard], object]
    ) -> None:
        """Make it; `run` starts it."""
        self.tally = Tally()
        self._lanes = lanes
        self._source = source
        self._most = most
        self._flags = flags
        self._commit = commit
        self._committing = asyncio.Lock()

    async def run(self, shards: Iterator[Shard]) -> None:
        """Score all shards.

        Raises:
            ScoreError: the source or the destination fails, or no lane can be started.
            OSError: likewise.
        """
        readers = READERS * self._lanes.count
        pieces: asyncio.Queue[tuple[Shard, int] | None] = asyncio.Queue(1)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(readers):
                    group.create_task(self._work(pieces))
                while (shard := await asyncio.to_thread(next, shards, None)) is not None:
                    for first in range(0, len(shard.entries), PIECE):
                        await pieces.put((shard, first))
                for _ in range(readers):
                    await pieces.put(None)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _work(self, pieces: asyncio.Queue[tuple[Shard, int] | None]) -> None:
        while (taken := await pieces.get()) is not None:
            shard, first = taken
            entries = shard.entries[first : first + PIECE]
            files = await asyncio.to_thread(lambda entries: [self._read(entry) for entry in entries], entries)
            rows = await asyncio.gather(*map(self._row, entries, files))
            shard.rows.update(enumerate(rows, first))
            self.tally.done += len(rows)
            self.tally.errors.update(row.error for row in rows if row.error)
            if len(shard.rows) == len(shard.entries):
                async with self._committing:
                    await asyncio.to_thread(self._commit, shard)

    def _read(self, entry: Entry) -> bytes | Row:
        if entry.size is None or entry.size <= self._most:
            try:
                data = self._source.read(entry.key, self._most)
            except UnreadableError:
                return Row(key=entry.key, size=entry.size, error=UNREADABLE)
            if data is not None:
                return data
        return Row(key=entry.key, size=entry.size, error="body_too_large")

    async def _row(self, entry: Entry, data: bytes | Row) -> Row:
        if isinstance(data, Row):
            return data
        for attempt in range(1, TRIES + 1):
            try:
                answer, _ = await self._lanes.run(data, self._flags, lambda: True)
            except ProblemError as error:
                if self._lanes.zygote.ended:
                    raise ScoreError("the process that starts the lanes has ended") from error
                if error.code not in MOMENTARY or attempt == TRIES:
                    return Row(key=entry.key, size=len(data), error=error.code)
            else:
                assert isinstance(answer, Answer)
                return Row.of(entry.key, answer)
        raise AssertionError
