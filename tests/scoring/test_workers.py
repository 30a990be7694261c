"""Workers as processes: they race, they are killed, and they are stopped."""

import random
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, blobs, encoded, measured
from tests.scoring.conftest import results, state
from tests.waiting import until

# With shards that are small enough for some to be done before a worker is killed.
WORKER = "from scoring import manifest; manifest.SHARD = 40; from scoring.cli import score; score()"
OBJECTS = 2000
KILLS = 5
Worker = subprocess.Popen[str]


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """Those that a test starts; they end with it."""
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.kill()
        worker.communicate()


def start(workers: list[Worker], *arguments: object) -> Worker:
    command = [sys.executable, "-c", WORKER, *map(str, arguments)]
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": "/usr/bin:/bin", **measured()}
    worker = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    workers.append(worker)
    return worker


def done(destination: Path) -> int:
    return len(list(destination.glob("*-*/*.parquet")))


def generated(folder: Path, count: int) -> Path:
    """Small pictures, of every hundred of which one is cut short."""
    folder.mkdir()
    files = [encoded(blobs(seed, (64, 48)), "JPEG") for seed in range(50)]
    for number in range(count):
        data = files[number % len(files)]
        (folder / f"{number}.jpg").write_bytes(data[:500] if number % 100 == 0 else data)
    return folder


@pytest.mark.slow
def test_racing_workers_that_are_killed_leave_one_row_for_each_picture(tmp_path: Path, workers: list[Worker]) -> None:
    pictures, destination = generated(tmp_path / "pictures", OBJECTS), tmp_path / "scores"
    chance = random.Random(1)
    racing = [start(workers, pictures, "--out", destination) for _ in range(2)]
    for _ in range(KILLS):
        before, more = done(destination), chance.randint(1, 4)
        until(lambda before=before, more=more: done(destination) >= before + more)  # type: ignore[misc]
        victim = racing.pop(chance.randrange(2))
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        racing.append(start(workers, pictures, "--out", destination))
    for worker in racing:
        _, said = worker.communicate()
        assert worker.returncode == 0, said
    found = results(destination)
    keys = [row["key"] for row in found.rows]
    assert len(keys) == len(set(keys)) == OBJECTS
    assert found.errors() == {f"{number}.jpg": "undecodable_image" for number in range(0, OBJECTS, 100)}
    assert found.summary["pictures"] == OBJECTS
    assert found.summary["errors"] == {"undecodable_image": OBJECTS // 100}
    assert not list(destination.rglob(".*")), "what killed workers left is swept"
    before_again = state(destination)
    assert start(workers, pictures, "--out", destination).wait() == 0
    assert state(destination) == before_again


def test_a_worker_that_is_stopped_says_how_to_go_on(tmp_path: Path, workers: list[Worker]) -> None:
    pictures, destination = generated(tmp_path / "the pictures", 200), tmp_path / "scores"
    worker = start(workers, pictures, "--out", destination)
    until(lambda: done(destination) or worker.poll() is not None)
    worker.send_signal(signal.SIGINT)
    _, said = worker.communicate()
    assert worker.returncode == 130, said
    assert "Traceback" not in said
    stopped, command = said.splitlines()[-2:]
    assert f"{done(destination)} of 5 shards" in stopped
    name, verb, *arguments = shlex.split(command)
    assert (name, verb) == ("catsdogs", "score")
    kept = {path: state(destination)[path] for path in destination.glob("*-*/*.parquet")}
    _, said = start(workers, *arguments).communicate()
    assert len(results(destination).rows) == 200, said
    assert kept.items() <= state(destination).items()
