"""Scoring on a cluster: a real one of two nodes on this machine."""

import socket
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from scoring import cluster
from serving.settings import Settings
from tests.clusters import Nodes, nodes
from tests.scoring.conftest import refused, results, scored, state
from tests.scoring.test_workers import OBJECTS, Worker, done, generated, start, workers
from tests.waiting import until

__all__ = ["nodes", "workers"]


@pytest.mark.slow
def test_a_node_that_is_lost_costs_no_picture_and_none_twice(
    tmp_path: Path, workers: list[Worker], nodes: Nodes
) -> None:
    pictures, destination = generated(tmp_path / "pictures", OBJECTS), tmp_path / "scores"
    run = (pictures, "--out", destination, "--ray", nodes.address)
    worker = start(workers, *run)
    until(lambda: done(destination) > 4 or worker.poll() is not None)
    nodes.lose_one()
    printed, said = worker.communicate()
    assert worker.returncode == 0, said
    assert printed.split("\n")[0].startswith("       2,000  pictures, ")
    found = results(destination)
    keys = [row["key"] for row in found.rows]
    assert len(keys) == len(set(keys)) == OBJECTS
    assert found.errors() == {f"{number}.jpg": "undecodable_image" for number in range(0, OBJECTS, 100)}
    before_again = state(destination)
    assert start(workers, *run).wait() == 0
    assert state(destination) == before_again


def test_a_cluster_needs_a_place_for_the_results(pictures: Path) -> None:
    assert "--ray needs --out" in refused(pictures, "--csv", "--ray", "auto")


def test_without_ray_it_says_what_to_install(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "[cluster]" in refused(pictures, "--out", tmp_path / "scores", "--ray", "auto")


def test_without_a_cluster_at_the_address_it_says_so(pictures: Path, tmp_path: Path, workers: list[Worker]) -> None:
    with socket.socket() as bound:  # which does not listen
        bound.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*bound.getsockname())
        worker = start(workers, pictures, "--out", tmp_path / "scores", "--ray", address)
        _, said = worker.communicate()
    assert worker.returncode == 1
    assert said == f"Error: no Ray cluster at {address}: [Errno 111] Connection refused\n"


def test_a_node_with_another_model_ends_the_run(pictures: Path, tmp_path: Path) -> None:
    destination = tmp_path / "scores"
    scored(pictures, "--out", destination)
    (listed,) = destination.glob("*.parquet")
    plan = cluster.Plan(Settings(), str(listed), str(destination), explain=False, model="0" * 64)
    answer = cluster.Actor(plan)({"item": np.arange(1)})
    failure = msgspec.json.decode(answer["report"][0], type=cluster.Report).failure
    assert failure.startswith("node ") and failure.endswith("is another model than where the command was given")
