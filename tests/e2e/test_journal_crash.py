"""A service that is killed in the middle of its work, and the journal that it leaves.

CATSDOGS_TEST_PREDICTIONS=10000 makes more predictions than the ordinary 2,000, in more time.
"""

import os
import re
import signal
import threading
import time
from base64 import b64encode
from pathlib import Path

import httpx
import pytest

from shared import journal
from shared.journal import FeedbackLine, PredictionLine, Unreadable
from tests.conftest import blobs, encoded
from tests.e2e.test_process import Process, serve

pytestmark = pytest.mark.slow

PREDICTIONS = int(os.environ.get("CATSDOGS_TEST_PREDICTIONS", "2000"))
CLIENTS = 4
KEY = "a key that outlives the process"
PICTURES = [b64encode(encoded(blobs(seed, (64, 48)), "PNG")).decode() for seed in range(16)]


class Load:
    """Clients that ask until the service is gone: batches, and feedback on half of the answers."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.answered: list[tuple[str, float]] = []
        self.told: list[str] = []
        self.threads = [threading.Thread(target=self.ask) for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def ask(self) -> None:
        images = [{"data": data} for data in PICTURES]
        with httpx.Client(base_url=self.process.url, timeout=60) as http:
            try:
                while True:
                    results = http.post("/predict/batch", json={"images": images}).json()["results"]
                    self.answered += [(result["id"], time.monotonic()) for result in results if "error" not in result]
                    for result in results[::2]:
                        assert http.post("/feedback", json={"id": result["id"], "label": "cats"}).status_code == 200
                        self.told.append(result["id"])
            except httpx.TransportError:
                return  # killed

    def kill(self) -> float:
        at = time.monotonic()
        assert self.process.stop(signal.SIGKILL) == -signal.SIGKILL
        for thread in self.threads:
            thread.join()
        return at


def on_disk(process: Process) -> int:
    page = httpx.get(f"{process.url}/metrics").text
    found = re.search(r"^catsdogs_journal_lines_total (\S+)", page, re.MULTILINE)
    return int(float(found[1])) if found else 0


def test_kill_9_under_load_costs_only_what_was_not_flushed_and_the_next_start_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    settings = {"CATSDOGS_JOURNAL": str(folder), "CATSDOGS_ID_KEY": KEY}
    process = serve(tmp_path, CATSDOGS_JOURNAL_FILE_BYTES="300000", **settings).ready()
    load = Load(process)
    flushed = 0
    while len(load.answered) < PREDICTIONS:
        time.sleep(0.05)
        flushed = on_disk(process)
    killed = load.kill()

    lines = list(journal.read(journal.gather([folder])))
    assert not [line for line in lines if isinstance(line, Unreadable)]
    assert len(lines) >= flushed > PREDICTIONS / 2
    predicted = [line.id for line in lines if isinstance(line, PredictionLine)]
    told = [line.id for line in lines if isinstance(line, FeedbackLine)]
    assert len(predicted) == len(set(predicted))
    # What was answered five seconds before is there; flushing takes half a second on a disk that has time.
    assert {id_ for id_, at in load.answered if at < killed - 5} <= set(predicted)
    lost = len({id_ for id_, _ in load.answered} - set(predicted))
    print(f"{len(load.answered):,} answered, {len(lines):,} lines on disk, {lost:,} predictions lost with the process")
    assert set(told) <= set(predicted), "a feedback stands after its prediction"

    files = journal.gather([folder])
    with files[-1].open("ab") as file:
        file.write(b'{"type":"prediction","time":"2026-11-')  # as if the kill had come in the middle of a write
    assert list(journal.read(files)) == lines

    process = serve(tmp_path, **settings).ready()
    for id_ in (predicted[0], predicted[-1]):
        answer = httpx.post(f"{process.url}/feedback", json={"id": id_, "label": "dogs"})
        assert answer.status_code == 200
    assert process.stop() == 0
    assert journal.gather([folder]) == files, "it goes on with the last file"
    after = list(journal.read(files))
    assert after[: len(lines)] == lines
    assert [line.id for line in after[len(lines) :] if isinstance(line, FeedbackLine)] == [predicted[0], predicted[-1]]
