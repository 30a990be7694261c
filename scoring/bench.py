"""The rate of scoring, as a share of what this machine's cores can do.

    python -m scoring.bench FOLDER [--rounds 10] [--pictures 400]

Each round scores the same pictures twice, one after the other: with ``catsdogs score``'s own code, and with nothing but
a thread for each core that reads, decodes and looks. Starting up is not counted. The median of the ratios is printed.
"""

import asyncio
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import click

from scoring import sources
from scoring.score import Scorer, Shard
from scoring.sources import Entry, Source
from serving import local
from serving.engine.cores import usable_cores
from serving.engine.wire import PLAIN
from serving.model.classify import classify
from serving.model.session import Model, load
from serving.settings import from_environment
from shared.spec import Limits

MOST = 2**30


def bare(source: Source, models: list[Model], entries: list[Entry]) -> float:
    """Score with one thread for each model; returns seconds."""

    def work(number: int) -> None:
        for entry in entries[number :: len(models)]:
            data = source.read(entry.key, MOST)
            assert data is not None
            classify(models[number], data, Limits())

    began = time.perf_counter()
    with ThreadPoolExecutor(len(models)) as threads:
        list(threads.map(work, range(len(models))))
    return time.perf_counter() - began


async def scored(scorer: Scorer, entries: list[Entry]) -> float:
    """Score as ``catsdogs score`` does; returns seconds."""
    began = time.perf_counter()
    await scorer.run(iter([Shard(0, entries)]))
    return time.perf_counter() - began


async def compare(folder: str, rounds: int, pictures: int) -> None:
    """Print the rates of each round, and the median of the ratios."""
    settings = from_environment()
    source = sources.opened(folder)
    entries = list(islice(source.entries(), pictures))
    models = [load(settings.model_path) for _ in range(settings.lanes or usable_cores())]
    ratios = []
    async with local.lanes(settings, wide=False) as lanes:
        scorer = Scorer(lanes, source, MOST, PLAIN, lambda _: None)
        ways = [partial(asyncio.to_thread, bare, source, models, entries), partial(scored, scorer, entries)]
        for number in range(rounds + 1):
            times = {way: await way() for way in (ways if number % 2 else ways[::-1])}
            if number:  # the first round warms up
                limit, ours = (len(entries) / times[way] for way in ways)
                ratios.append(ours / limit)
                click.echo(f"bare {limit:6.1f} a second, scored {ours:6.1f}, {ratios[-1]:.3f}")
    click.echo(f"{statistics.median(ratios):.3f} of the bare limit, with {len(models)} lanes")


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=10)
@click.option("--pictures", default=400)
def main(folder: Path, rounds: int, pictures: int) -> None:
    """Measure it on the pictures in FOLDER."""
    asyncio.run(compare(str(folder), rounds, pictures))


if __name__ == "__main__":
    main()
