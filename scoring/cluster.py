"""Shards on a Ray cluster: Ray Data gives them to a pool of actors, one for each core, each a worker with one lane.

Retries and lost nodes are Ray's. That a shard is done once is the shard's own: its file is created unless it exists.
"""

import asyncio
import contextlib
import logging
import sys
import tempfile
from collections.abc import AsyncIterator, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import ray
import ray.data

from scoring import destinations, manifest
from scoring import worker as workers
from scoring.errors import ScoreError
from scoring.score import Tally
from scoring.worker import Worker
from serving.engine.lane import Zygote
from serving.local import ModelError
from serving.settings import Settings
from shared.clusters import connect

# Ray keeps a record of each block, and does a block again whose node is lost. Up to this many, a block is a shard.
MOST_BLOCKS: Final = 10_000


class Plan(msgspec.Struct, frozen=True):
    """What every actor has to know; the places are reachable from all nodes."""

    settings: Settings
    manifest: str
    destination: str
    explain: bool
    model: str  # digest of the file


class Report(msgspec.Struct, frozen=True):
    """What an actor has done with a shard, or what ends the run."""

    failure: str = ""
    before: int = 0
    done: int = 0
    errors: dict[str, int] = {}


class Actor:
    """A worker in a process of Ray's; it starts with its first shard."""

    def __init__(self, plan: Plan) -> None:
        """Take what is to be done."""
        self._plan = plan
        self._runner = asyncio.Runner()
        self._exits = contextlib.AsyncExitStack()
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the shards of these numbers."""
        try:
            tally = self._runner.run(self._score(batch["item"].tolist()))
            report = Report(before=tally.before, done=tally.done, errors=dict(tally.errors))
        except (ScoreError, ModelError, OSError) as error:
            self._worker = None
            self._runner.run(self._exits.aclose())
            self._runner.close()
            self._runner = asyncio.Runner()
            report = Report(f"node {ray.util.get_node_ip_address()}: {error}")
        return {"report": [msgspec.json.encode(report).decode()]}

    async def _score(self, numbers: list[int]) -> Tally:
        if self._worker is None:
            self._worker = await self._exits.enter_async_context(self._started())
        scorer, job = self._worker
        scorer.tally = tally = Tally()
        await scorer.run(job.shards(numbers, tally))
        return tally

    @contextlib.asynccontextmanager
    async def _started(self) -> AsyncIterator[Worker]:
        plan = self._plan
        with tempfile.TemporaryDirectory() as scratch:  # a fetched manifest is read on when it has no name any more
            found = manifest.at(plan.manifest, Path(scratch))
        assert found is not None
        destination = destinations.opened(plan.destination)
        async with workers.started(plan.settings, Zygote(), found, destination, explain=plan.explain) as worker:
            if worker.job.model.digest != plan.model:
                raise ScoreError(f"{plan.settings.model_path} is another model than where the command was given")
            yield worker


async def run(address: str, plan: Plan, numbers: list[int], tally: Tally) -> None:
    """Do the shards of these numbers on the cluster at ``address``.

    Raises:
        ScoreError: there is no such cluster, or an actor's source or destination fails.
    """
    reports = _reports(address, plan, numbers)
    loop = asyncio.get_running_loop()
    # Ray says on stdout what has become of its nodes. A thread of its own ends what it is at before Ray is shut down.
    with contextlib.redirect_stdout(sys.stderr), ThreadPoolExecutor(1) as thread:
        try:
            while (report := await loop.run_in_executor(thread, next, reports, None)) is not None:
                if report.failure:
                    raise ScoreError(report.failure)
                tally.before += report.before
                tally.done += report.done
                tally.errors.update(report.errors)
        except ConnectionError as error:
            raise ScoreError(str(error)) from error
        except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
            raise ScoreError(f"Ray at {address}: {str(error).splitlines()[0]}") from error
        finally:
            thread.submit(reports.close)
            thread.submit(ray.shutdown)


def _reports(address: str, plan: Plan, numbers: list[int]) -> Generator[Report, None, None]:
    connect(address)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # An actor that takes the last core would hold up what Ray itself has to run.
    actors = max(1, int(ray.cluster_resources().get("CPU", 1)) - 1)
    reports = ray.data.from_items(numbers, override_num_blocks=min(len(numbers), MOST_BLOCKS)).map_batches(
        Actor,
        fn_constructor_args=[plan],
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=actors, initial_size=actors, max_tasks_in_flight_per_actor=1
        ),
    )
    for row in reports.iter_rows():
        yield msgspec.json.decode(row["report"], type=Report)
