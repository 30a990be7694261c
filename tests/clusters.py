"""A Ray cluster of two nodes on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

# Scoring leaves one of the three cores free, so at least one of its actors is on the second node, which can be lost.
NODES = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster()
cluster.add_node(num_cpus=1, object_store_memory=2**27, include_dashboard=False)
second = cluster.add_node(num_cpus=2, object_store_memory=2**27)
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.remove_node(second, allow_graceful=False)
sys.stdin.readline()
cluster.shutdown()
"""


class Nodes:
    """The cluster's process."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": ":".join([str(ROOT), *sys.path]), "RAY_USAGE_STATS_ENABLED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", NODES], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def lose_one(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.communicate("\n\n")


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    started = Nodes()
    yield started
    started.close()
