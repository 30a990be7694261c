"""A run of ``catsdogs score``: it lists, scores, and says how far it is."""

import asyncio
import contextlib
import shlex
import sys
import time
from collections.abc import AsyncIterator, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Final, Literal

from scoring import manifest, rows, sources, stores
from scoring.destinations import Destination
from scoring.errors import ScoreError
from scoring.job import Job, Summary
from scoring.manifest import Manifest
from scoring.progress import Progress
from scoring.score import Scorer, Shard
from scoring.sources import Source
from serving import local
from serving.engine.lane import Zygote
from serving.engine.supervisor import Lanes
from serving.engine.wire import PLAIN, Flags
from serving.settings import Settings
from shared.addresses import without_secrets

PRINTED: Final = 32  # rows at a time
LISTED_SECONDS: Final = 2.0  # between two reports of the listing


def listed(address: str, destination: Destination, scratch: Path) -> Manifest:
    """The manifest at an address, or that of the source there; the destination keeps it.

    Raises:
        ScoreError: source or destination cannot be used.
    """
    found = _given(address, scratch) or _made(sources.opened(address), destination, scratch)
    if not destination.exists(found.name):
        destination.create(found.name, found.path)
    return found


def _given(address: str, scratch: Path) -> Manifest | None:
    if not address.endswith(".parquet"):
        return None
    path = Path(address)
    if stores.is_address(address):
        path = scratch / "given.parquet"
        path.write_bytes(sources.fetched(address))
    return manifest.opened(path)


def _made(source: Source, destination: Destination, scratch: Path) -> Manifest:
    inner, outer = (_resolved(place.address) for place in (destination, source))
    if f"{inner}/".startswith(f"{outer}/"):
        raise ScoreError(f"{destination.address} lies in {source.address}: its files would be scored as well")
    said = time.monotonic()

    def report(keys: int) -> None:
        nonlocal said
        if time.monotonic() - said > LISTED_SECONDS:
            said = time.monotonic()
            _say(f"listing: {keys:,} pictures")

    return manifest.write(source, scratch / "made.parquet", report)


def _resolved(address: str) -> str:
    return address.rstrip("/") if stores.is_address(address) else str(Path(address).resolve())


async def kept(settings: Settings, zygote: Zygote, found: Manifest, destination: Destination, explain: bool) -> Summary:
    """Score what a manifest lists into a destination.

    Raises:
        ScoreError: the source or the destination fails.
        ModelError: the model is refused.
    """
    source = sources.opened(found.source)
    async with _lanes(settings, zygote) as lanes:
        assert lanes.model is not None
        job = Job(found, lanes.model, destination, evidence=explain)
        if (summary := job.summary()) is not None:
            return summary
        if len(job.done()) < found.shards and not destination.keeps_the_first():
            _say(
                f"{destination.address} ignores If-None-Match: a shard that two workers are at is written twice, "
                "with the same rows"
            )
        scorer = Scorer(lanes, source, settings.max_body_bytes, _flags(explain), job.commit)
        try:
            await _watched(scorer, job.unfinished(scorer.tally))
        except asyncio.CancelledError:
            place = f"{destination.address}/{found.name}"
            again = ["catsdogs", "score", place, "--out", destination.address, *(["--explain"] if explain else [])]
            _say(f"Stopped with {len(job.done()):,} of {found.shards:,} shards done. To go on:\n  {shlex.join(again)}")
            raise
        return await asyncio.to_thread(job.sum_up)


async def printed(
    settings: Settings, zygote: Zygote, address: str, form: Literal["csv", "json"], explain: bool
) -> None:
    """Print the rows of a source, in its order.

    Raises:
        ScoreError: the source fails.
        ModelError: the model is refused.
    """
    source = sources.opened(address)
    waiting: dict[int, Shard] = {}
    following = count()
    number = next(following)

    def commit(shard: Shard) -> None:
        nonlocal number
        waiting[shard.number] = shard
        while (ready := waiting.pop(number, None)) is not None:
            number = next(following)
            if form == "json":
                text = rows.to_json(ready.in_order(), evidence=explain)
            else:
                text = rows.to_csv(ready.in_order(), evidence=explain, head=ready.number == 0)
            sys.stdout.write(text)
        sys.stdout.flush()

    async with _lanes(settings, zygote) as lanes:
        scorer = Scorer(lanes, source, settings.max_body_bytes, _flags(explain), commit)
        await _watched(scorer, _pieces(source))


def _pieces(source: Source) -> Iterator[Shard]:
    entries = source.entries()
    for number in count():
        if not (some := list(islice(entries, PRINTED))):
            return
        yield Shard(number, some)


def _flags(explain: bool) -> Flags:
    return Flags.EXPLAIN if explain else PLAIN


@contextlib.asynccontextmanager
async def _lanes(settings: Settings, zygote: Zygote) -> AsyncIterator[Lanes]:
    async with local.lanes(settings, zygote) as lanes:
        assert lanes.model is not None
        if reason := lanes.model.fallback:
            _say(f"{lanes.model.file} answers in place of {settings.model_path.name}: {reason}")
        yield lanes


async def _watched(scorer: Scorer, shards: Iterator[Shard]) -> None:
    showing = asyncio.create_task(Progress(scorer.tally).show())
    try:
        await scorer.run(shards)
    finally:
        showing.cancel()
        await asyncio.wait([showing])


def _say(text: str) -> None:
    print(without_secrets(text), file=sys.stderr, flush=True)
