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

# Pictures under way for each lane: one in it, the others being read.
LOOK_AHEAD: Final = 4
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
        ahead = LOOK_AHEAD * self._lanes.count
        pictures: asyncio.Queue[tuple[Shard, int] | None] = asyncio.Queue(ahead)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(ahead):
                    group.create_task(self._work(pictures))
                while (shard := await asyncio.to_thread(next, shards, None)) is not None:
                    for number in range(len(shard.entries)):
                        await pictures.put((shard, number))
                for _ in range(ahead):
                    await pictures.put(None)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _work(self, pictures: asyncio.Queue[tuple[Shard, int] | None]) -> None:
        while (taken := await pictures.get()) is not None:
            shard, number = taken
            row = shard.rows[number] = await self._row(shard.entries[number])
            self.tally.done += 1
            if row.error:
                self.tally.errors[row.error] += 1
            if len(shard.rows) == len(shard.entries):
                async with self._committing:
                    await asyncio.to_thread(self._commit, shard)

    async def _row(self, entry: Entry) -> Row:
        if entry.size is not None and entry.size > self._most:
            return Row(key=entry.key, size=entry.size, error="body_too_large")
        try:
            data = await asyncio.to_thread(self._source.read, entry.key, self._most)
        except UnreadableError:
            return Row(key=entry.key, size=entry.size, error=UNREADABLE)
        if data is None:
            return Row(key=entry.key, size=entry.size, error="body_too_large")
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
