"""Samples in a folder, and pages about them, served."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn

from shared.contract import Actual
from shared.samples import SUFFIX, Reason, Sample, encode
from tests.conftest import blobs
from tests.shared.test_journal import prediction
from training.labelling.evidence import Evidence
from training.labelling.samples import Samples
from training.labelling.server import Labelling, application

Serve = Callable[..., httpx.Client]


def keep(
    folder: Path, id_: str, *why: Reason, sure: float = 0.9, feedback: Actual | None = None, seed: int = 0
) -> None:
    """Put a sample into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    line = prediction(id_, probabilities={"cats": sure, "dogs": 1 - sure}, model="shipped-1")
    pixels = np.asarray(blobs(seed, (224, 224))).tobytes()
    (folder / (id_ + SUFFIX)).write_bytes(encode(pixels, Sample(why=why, prediction=line, feedback=feedback)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six samples, whose names tell the order in which they are to be labelled."""
    samples = tmp_path / "samples"
    keep(samples, "a4-disputed", "disputed", sure=0.97, feedback="dogs")
    keep(samples, "b1-unsure", "unsure", sure=0.55)
    keep(samples, "c3-unsure", "unsure", "disputed", sure=0.7, feedback="both")
    keep(samples, "d2-unsure", "unsure", sure=0.6)
    keep(samples, "e5-random", "random", sure=0.99)
    keep(samples, "f6-random", "random", "unsure", sure=0.51)
    return samples


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


@pytest.fixture
def serve(folder: Path, ledger: Path, shipped: Path) -> Iterator[Serve]:
    """Serve a page for a person; answers a client of it."""
    servers: list[tuple[uvicorn.Server, threading.Thread, httpx.Client]] = []

    def start(who: str = "Anna", *, settle: bool = False, model: Path = shipped) -> httpx.Client:
        app = application(Labelling(Samples(str(folder)), ledger, who, Evidence(model), settle=settle))
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
        listening = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        client = httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=60)
        servers.append((server, thread, client))
        return client

    yield start
    for server, thread, client in servers:
        client.close()
        server.should_exit = True
        thread.join()


def queued(page: httpx.Client) -> list[str]:
    """Ids of the samples that a page would show, in its order."""
    return [sample["id"] for sample in page.get("/queue").json()["samples"]]


def decide(page: httpx.Client, id_: str, label: str) -> httpx.Response:
    return page.post("/decisions", json={"id": id_, "label": label})
