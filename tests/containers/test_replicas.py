"""A rehearsal of what Kubernetes would do: three replicas behind a real HAProxy, one of them drained, one killed.

The containers get the settings, limits, privileges and grace period of the production Deployment as kubectl renders it.
"""

from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import ROOT
from tests.containers.engine import Docker
from tests.ops.edge import CLIENTS, Load
from tests.ops.manifests import docker_run, render
from tests.waiting import until

pytestmark = pytest.mark.slow

NETWORK = "catsdogs-replicas-test"


class Pods:
    """Three replicas and an edge on a network of their own."""

    def __init__(self, docker: Docker, image: str) -> None:
        self.docker, self.image = docker, image
        docker("network", "create", NETWORK)
        self.ids = [self.start() for _ in range(3)]
        ports = ("--publish", "127.0.0.1::8000", "--publish", "127.0.0.1::8405")
        self.edge = docker.run(
            "--network", NETWORK, *ports,
            "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
            "--volume", f"{ROOT}/ops/edge/haproxy.cfg:/usr/local/etc/haproxy/haproxy.cfg:ro",
            docker.images()["edge"],
        )  # fmt: skip
        self.url, self.watch = (
            "http://" + docker("port", self.edge, f"{port}/tcp").splitlines()[0] for port in (8000, 8405)
        )

    def start(self) -> str:
        """One more replica, under the name that the edge asks for."""
        options = docker_run(render("production"))
        return self.docker.run("--network", NETWORK, "--network-alias", "service", *options, self.image)

    def up(self) -> int:
        """How many replicas the edge has in its pool."""
        try:
            page = httpx.get(f"{self.watch}/metrics").text
        except httpx.TransportError:
            return 0
        up = 'haproxy_server_status{proxy="service",server="service'
        return sum(line.startswith(up) and 'state="UP"} 1' in line for line in page.splitlines())

    def healthy(self) -> int:
        """How many replicas say themselves that they are ready."""
        return sum(self.docker.inspect(container)["State"]["Health"]["Status"] == "healthy" for container in self.ids)

    def state(self, container: str) -> dict[str, object]:
        return dict(self.docker.inspect(container)["State"])


def remove(docker: Docker) -> None:
    """Take away all that there is of it, from this run or one that was cut off."""
    left = docker("ps", "--all", "--quiet", "--filter", f"network={NETWORK}").split()
    if left:
        docker("rm", "--force", "--volumes", *left)
    docker("network", "rm", NETWORK, check=False)


@pytest.fixture
def pods(docker: Docker, image: str) -> Iterator[Pods]:
    remove(docker)
    try:
        made = Pods(docker, image)
        until(lambda: made.healthy() == 3)  # the edge counts those that it has not asked yet as up
        until(lambda: made.up() == 3)
        yield made
    finally:
        remove(docker)


def test_of_three_replicas_one_is_drained_without_loss_and_one_killed_at_its_own_cost(pods: Pods) -> None:
    drained, killed, left = pods.ids
    with Load(pods.url) as load:
        pods.docker("stop", drained)  # with the grace period of the Deployment
        load.more(100)
        assert load.failed() == 0
        assert (pods.state(drained)["ExitCode"], pods.state(drained)["OOMKilled"]) == (0, False)
        assert pods.up() == 2

        pods.docker("kill", killed)
        load.more(100)
        assert load.failed() <= CLIENTS  # what was on its connections
        until(lambda: pods.up() == 1)
        lost = load.failed()

        pods.start()
        until(lambda: pods.up() == 2)
        load.more(100)
        assert load.failed() == lost
    assert pods.state(left)["Running"]
