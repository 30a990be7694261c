"""A worker of a job: lanes, the source, and the job's folder at the destination, put together."""

import contextlib
import sys
from collections.abc import AsyncIterator
from typing import NamedTuple

from scoring import sources
from scoring.destinations import Destination
from scoring.job import Job
from scoring.manifest import Manifest
from scoring.score import Scorer
from serving import local
from serving.engine.lane import Zygote
from serving.engine.supervisor import Lanes
from serving.engine.wire import PLAIN, Flags
from serving.settings import Settings
from shared.addresses import without_secrets


class Worker(NamedTuple):
    """What does the shards of a job, and the job."""

    scorer: Scorer
    job: Job


@contextlib.asynccontextmanager
async def started(
    settings: Settings, zygote: Zygote, found: Manifest, destination: Destination, *, explain: bool
) -> AsyncIterator[Worker]:
    """Start a worker, which ends with the block.

    Raises:
        ScoreError: the source cannot be used.
        ModelError: the model is refused.
    """
    source = sources.opened(found.source)
    async with lanes(settings, zygote) as ready:
        assert ready.model is not None
        given = {name: getattr(settings, name) for name in ("max_body_bytes", "max_pixels")}
        limits = [f"{name}-{limit}" for name, limit in given.items() if limit != getattr(Settings(), name)]
        job = Job(found, ready.model, destination, evidence=explain, limits=limits)
        yield Worker(Scorer(ready, source, settings.max_body_bytes, flags(explain), job.commit), job)


@contextlib.asynccontextmanager
async def lanes(settings: Settings, zygote: Zygote) -> AsyncIterator[Lanes]:
    """Start lanes, and say so if another model than the one asked for answers."""
    async with local.lanes(settings, zygote, wide=False) as ready:
        assert ready.model is not None
        if reason := ready.model.fallback:
            say(f"{ready.model.file} answers in place of {settings.model_path.name}: {reason}")
        yield ready


def flags(explain: bool) -> Flags:
    """What lanes are to answer."""
    return Flags.EXPLAIN if explain else PLAIN


def say(text: str) -> None:
    """Print a line to stderr."""
    print(without_secrets(text), file=sys.stderr, flush=True)
