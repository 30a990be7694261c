"""A Docker engine, the image, a registry: or one line that says what is skipped, which in CI is a failure."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT
from tests.containers import engine
from tests.containers.engine import Docker, NoEngineError
from tests.ops.edge import free_ports

IMAGE = "cats-dogs-inference:test"


@pytest.fixture(scope="session")
def docker() -> Iterator[Docker]:
    """An engine; one that was started for the tests is stopped after them."""
    try:
        found = engine.find()
    except NoEngineError as error:
        if os.environ.get("CI"):
            pytest.fail(f"no containers, and CI must not pass without: {error}")
        pytest.skip(f"containers: {error}")
    yield found
    if found.standins and not os.environ.get("KEEP_ENGINE"):
        engine.stop()


@pytest.fixture(scope="session")
def image(docker: Docker) -> str:
    """The image that is asked about: the one named by CATSDOGS_IMAGE, or the shipped Dockerfile's, built now."""
    if given := os.environ.get("CATSDOGS_IMAGE"):
        return given
    docker.build(IMAGE, *labels())
    return IMAGE


def labels() -> list[str]:
    """Build arguments, as `make image` gives them."""
    command = ["make", "--silent", "image-labels"]
    told: str = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    return told.split()


@pytest.fixture(scope="session")
def registry(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a registry on this machine that takes what is pushed."""
    folder, (port,) = tmp_path_factory.mktemp("registry"), free_ports(1)
    if docker.standins:
        process = _debians(folder, port)
        yield f"127.0.0.1:{port}"
        process.kill()
        process.wait()
    else:
        docker.run("--rm", "--name", "cats-dogs-registry", "--publish", f"127.0.0.1:{port}:5000", "registry:3")
        _wait(port)
        yield f"127.0.0.1:{port}"
        docker("rm", "--force", "cats-dogs-registry")


def _debians(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    (folder / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
    )
    program = shutil.which("docker-registry")
    assert program is not None
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    _wait(port)
    return process


def _wait(port: int) -> None:
    give_up = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/v2/")
            return
        except httpx.TransportError:
            assert time.monotonic() < give_up
            time.sleep(0.2)
