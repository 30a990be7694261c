"""A run of ``catsdogs score``: it lists, scores, and says how far it is."""

import asyncio
import shlex
import sys
import time
from collections.abc import Coroutine, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Final, Literal

import msgspec

from scoring import manifest, rows, sources, stores, worker
from scoring.destinations import Destination
from scoring.errors import ScoreError
from scoring.job import Summary
from scoring.manifest import Manifest
from scoring.progress import Progress
from scoring.score import Scorer, Shard, Tally
from scoring.sources import Source
from scoring.worker import say
from serving.engine.lane import Zygote
from serving.settings import Settings

PRINTED: Final = 32  # rows at a time
LISTED_SECONDS: Final = 2.0  # between two reports of the listing


def listed(address: str, destination: Destination, scratch: Path) -> Manifest:
    """The manifest at an address, or that of the source there; the destination keeps it.

    Raises:
        ScoreError: source or destination cannot be used.
    """
    found = manifest.at(address, scratch) or _made(sources.opened(address), destination, scratch)
    if not destination.exists(found.name):
        destination.create(found.name, found.path)
    return found


def _made(source: Source, destination: Destination, scratch: Path) -> Manifest:
    inner, outer = (_resolved(place.address) for place in (destination, source))
    if f"{inner}/".startswith(f"{outer}/"):
        raise ScoreError(f"{destination.address} lies in {source.address}: its files would be scored as well")
    said = time.monotonic()

    def report(keys: int) -> None:
        nonlocal said
        if time.monotonic() - said > LISTED_SECONDS:
            said = time.monotonic()
            say(f"listing: {keys:,} pictures")

    return manifest.write(source, scratch / "made.parquet", report)


def _resolved(address: str) -> str:
    return address.rstrip("/") if stores.is_address(address) else str(Path(address).resolve())


async def kept(
    settings: Settings, zygote: Zygote, found: Manifest, destination: Destination, *, explain: bool, ray: str | None
) -> Summary:
    """Score what a manifest lists into a destination, on the Ray cluster of this address if one is given.

    Raises:
        ScoreError: the source, the destination or the cluster fails.
        ModelError: the model is refused.
    """
    async with worker.started(settings, zygote, found, destination, explain=explain) as (scorer, job):
        if (summary := job.summary()) is not None:
            return summary
        place, tally = f"{destination.address}/{found.name}", scorer.tally
        left = job.left(tally)
        if left and not destination.keeps_the_first():
            say(
                f"{destination.address} ignores If-None-Match: a shard that two workers are at is written twice, "
                "with the same rows"
            )
        try:
            if ray is None:
                await _watched(tally, scorer.run(job.shards(left, tally)))
            elif left:
                from scoring import cluster  # noqa: PLC0415 - Ray is of use to those with a cluster

                model = settings.model and str(settings.model_path.absolute())
                theirs = msgspec.structs.replace(settings, model=model, api_keys="", id_key="")
                plan = cluster.Plan(theirs, place, destination.address, explain, job.model.digest)
                await _watched(tally, cluster.run(ray, plan, left, tally))
        except asyncio.CancelledError:
            options = ["--explain"] * explain
            for name, value in (("--model", settings.model), ("--ray", ray)):
                options += [name, value] if value else []
            again = ["catsdogs", "score", place, "--out", destination.address, *options]
            say(f"Stopped with {len(job.done()):,} of {found.shards:,} shards done. To go on:\n  {shlex.join(again)}")
            raise
        return await asyncio.to_thread(job.sum_up)


async def printed(
    settings: Settings, zygote: Zygote, address: str, form: Literal["csv", "json"], *, explain: bool
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

    async with worker.lanes(settings, zygote) as lanes:
        scorer = Scorer(lanes, source, settings.max_body_bytes, worker.flags(explain), commit)
        await _watched(scorer.tally, scorer.run(_pieces(source)))
    if not scorer.tally.done:
        raise ScoreError(f"{address}: no pictures")


def _pieces(source: Source) -> Iterator[Shard]:
    entries = source.entries()
    for number in count():
        if not (some := list(islice(entries, PRINTED))):
            return
        yield Shard(number, some)


async def _watched(tally: Tally, work: Coroutine[None, None, None]) -> None:
    showing = asyncio.create_task(Progress(tally).show())
    try:
        await work
    finally:
        showing.cancel()
        await asyncio.wait([showing])
