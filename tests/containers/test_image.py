"""The image that is shipped: what is in it, what it may do, and that it answers.

What it measures (sizes, start, memory) it prints, and writes to the file that CATSDOGS_IMAGE_REPORT names.
"""

import base64
import io
import json
import os
import re
import tarfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.containers.containers import HARDENED, Container, running
from tests.containers.engine import Docker
from tests.waiting import until

pytestmark = pytest.mark.slow

UNPACKED, COMPRESSED = 150e6, 70e6
# Bytes of each layer, by what begins the instruction that made it.
LAYERS = {"base": 32e6, "packages": 100e6, "journal": 1e4, "models": 30e6, "app": 1.2e6}
# Kilobytes of the processes in it, but for the one that asks; what they share counts once.
MEMORY = """
import os, pathlib, re
print(sum(
    int(re.search(r"^Pss:\\s+(\\d+)", path.read_text(), re.MULTILINE)[1])
    for path in pathlib.Path("/proc").glob("[0-9]*/smaps_rollup")
    if path.parent.name != str(os.getpid())
))
"""


@pytest.fixture(scope="module")
def service(docker: Docker, image: str) -> Iterator[Container]:
    with running(docker, image, *HARDENED) as container:
        container.ready()
        yield container


@pytest.fixture(scope="module")
def files(docker: Docker, image: str) -> list[str]:
    """Every path in the image."""
    container = docker("create", image)
    with docker.stream("export", container) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        found = [member.name for member in tar]
    docker("rm", container)
    return found


def in_container(service: Container, code: str) -> str:
    """Run Python in it: there is no shell to run."""
    return service.docker("exec", service.id, "python3", "-c", code, check=False)


def test_there_is_nothing_in_it_but_python_and_what_the_service_imports(files: list[str]) -> None:
    programs = [path for path in files if re.search(r"(^|/)s?bin/[^/]+$", path)]
    assert sorted(Path(path).name for path in programs) == ["python3", "python3.12"]
    names = {part for path in files for part in Path(path).parts}
    assert names.isdisjoint(("bash", "busybox", "pip", "setuptools", "ensurepip", "gcc"))
    assert names.isdisjoint(("torch", "torchvision", "onnx", "mlflow", "dvc", "training", "ops", "tests", "idlelib"))
    assert {"onnxruntime", "serving", "shared", "cats-dogs.int8.onnx", "cats-dogs.fp32.onnx"} <= names


def test_it_runs_as_nobody_in_particular_and_may_do_nothing_in_particular(service: Container) -> None:
    told = in_container(service, "print(open('/proc/1/status').read())")
    status = dict(re.findall(r"^(\w+):\s*(.*)$", told, re.MULTILINE))
    assert status["Uid"].split() == status["Gid"].split() == ["10001"] * 4
    assert {status[kind] for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert "Read-only file system" in in_container(service, "open('/app/x', 'w')")
    assert "executable file not found" in service.docker("exec", service.id, "sh", "-c", "true", check=False)


def test_it_is_healthy_by_its_own_check_and_not_once_it_is_told_to_go(docker: Docker, image: str) -> None:
    with running(docker, image, *HARDENED, "--env", "CATSDOGS_DRAIN_DELAY_SECONDS=100") as container:
        container.ready()
        until(lambda: container.docker.inspect(container.id)["State"]["Health"]["Status"] == "healthy")
        docker("kill", "--signal", "TERM", container.id)
        until(lambda: container.docker.inspect(container.id)["State"]["Health"]["Status"] == "unhealthy")
        assert container.predict().json()["verdict"] == "cats"


def test_lanes_follow_the_quota_and_not_the_machine_s_cores(docker: Docker, image: str, service: Container) -> None:
    assert service.logged("started")["lanes"] == 1
    with running(docker, image, "--cpus", "1.5" if (os.cpu_count() or 1) > 1 else "1") as more:
        more.ready()
        assert more.logged("started")["lanes"] == min(2, os.cpu_count() or 1)


def test_it_knows_real_photographs(service: Container, photos: list[tuple[str, bytes]]) -> None:
    assert service.predict().json()["verdict"] == "cats"
    right = sum(service.predict(data).json()["predicted_label"] == label for label, data in photos[:40])
    assert right >= 38


def test_its_labels_say_what_it_is(docker: Docker, image: str, service: Container) -> None:
    labels = docker.inspect(image)["Config"]["Labels"]
    assert labels["cats-dogs.model.version"].split("-int8")[0] in httpx.get(f"{service.url}/model").json()["version"]
    assert re.fullmatch(r"[0-9a-f]{40}", labels["org.opencontainers.image.revision"])
    assert labels["org.opencontainers.image.source"].startswith("https://github.com/")
    assert labels["org.opencontainers.image.version"] not in ("", "unknown")
    assert not labels["org.opencontainers.image.version"].startswith("v")
    assert docker.inspect(image)["Config"]["StopSignal"] == "SIGTERM"


def test_a_stop_loses_no_request_while_clients_go_on_asking(docker: Docker, image: str) -> None:
    with running(docker, image, *HARDENED, "--env", "CATSDOGS_DRAIN_DELAY_SECONDS=2") as container:
        container.ready()
        answers: list[httpx.Response] = []
        clients = [threading.Thread(target=lambda: answers.append(container.predict())) for _ in range(24)]
        for client in clients:
            client.start()
        until(lambda: len(answers) >= 2)
        docker("stop", "--time", "30", container.id)
        for client in clients:
            client.join()
        assert [answer.json().get("verdict") for answer in answers] == ["cats"] * len(clients)
        assert (container.state()["ExitCode"], container.state()["OOMKilled"]) == (0, False)


def test_a_reload_leaves_no_process_behind(docker: Docker, image: str) -> None:
    with running(docker, image, *HARDENED) as container:
        container.ready()
        front = container.state()["Pid"]
        for reloads in range(1, 4):
            docker("kill", "--signal", "HUP", container.id)
            until(lambda reloads=reloads: container.said().count('"message":"ready"') == 1 + reloads)  # type: ignore[misc]
        until(
            lambda: len(Path(f"/proc/{front}/task/{front}/children").read_text().split()) == 1, "a zygote, and others"
        )


def test_whatever_it_is_sent_it_stays_within_its_memory(docker: Docker, image: str) -> None:
    grain = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    large = Image.fromarray(grain).resize((4000, 3000))
    pictures = {}
    for name, options in {
        "JPEG": {"quality": 90}, "WEBP": {"method": 0}, "PNG": {"compress_level": 1}, "AVIF": {"speed": 10},
    }.items():  # fmt: skip
        for mode in ("RGB",) if name == "JPEG" else ("RGB", "RGBA"):
            data = io.BytesIO()
            large.convert(mode).save(data, name, **options)
            pictures[f"{name} {mode}"] = data.getvalue()
    jpeg = pictures["JPEG RGB"]
    item = {"data": base64.b64encode(jpeg).decode()}
    batch = json.dumps({"images": [item] * min(64, 19_000_000 // len(item["data"]))}).encode()
    too_large = b'{"images": [{"data": "' + b"A" * 60_000_000 + b'"}]}'

    with running(docker, image, *HARDENED) as container:
        container.ready()
        told = {name: container.predict(data) for name, data in pictures.items()}
        assert told["JPEG RGB"].status_code == 200
        assert {
            name: answer.json().get("code") for name, answer in told.items() if answer.status_code != 200
        } == dict.fromkeys(("WEBP RGB", "WEBP RGBA", "PNG RGB", "PNG RGBA", "AVIF RGB", "AVIF RGBA"), "image_too_large")
        kinds: list[tuple[str, int]] = []

        def ask(path: str, **content: object) -> None:
            try:
                answer = httpx.post(f"{container.url}{path}", timeout=180, **content)  # type: ignore[arg-type]
                kinds.append((path, answer.status_code))
            except (httpx.ReadError, httpx.WriteError):  # it answered and closed before it had read all
                kinds.append((path, 0))

        json_type = {"Content-Type": "application/json"}
        requests = [
            *[threading.Thread(target=ask, args=("/predict",), kwargs={"files": {"file": data}})
              for data in pictures.values() for _ in range(6)],
            *[threading.Thread(target=ask, args=("/predict/batch",), kwargs={"content": body, "headers": json_type})
              for body in (batch, too_large) for _ in range(3)],
        ]  # fmt: skip
        for request in requests:
            request.start()
        for request in requests:
            request.join()
        assert len(kinds) == len(requests)
        assert {status for path, status in kinds if path == "/predict"} <= {200, 408, 413, 503, 0}
        assert {status for path, status in kinds if path == "/predict/batch"} <= {200, 408, 413, 503, 0}
        assert container.predict().json()["verdict"] == "cats"
        assert (container.state()["Running"], container.state()["OOMKilled"]) == (True, False)


def test_it_is_small(docker: Docker, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    layers = {}
    for line in docker(
        "history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", image
    ).splitlines():
        size, _, made = line.partition("\t")
        if int(size):
            layers[next(name for name in LAYERS if re.search(rf"{name}\b", made))] = int(size)
    packer, compressed = zlib.compressobj(6, wbits=31), 0
    with docker.stream("save", image) as stream:
        while block := stream.read(1 << 20):
            compressed += len(packer.compress(block))
    compressed += len(packer.flush())

    starts = []
    for _ in range(3):
        with running(docker, image, *HARDENED) as container:
            starts.append(round(container.ready(), 2))
            resident = 1024 * int(in_container(container, MEMORY))
    figures = {
        "layers_mb": {name: round(size / 1e6, 1) for name, size in layers.items()},
        "unpacked_mb": round(sum(layers.values()) / 1e6, 1),
        "compressed_mb": round(compressed / 1e6, 1),
        "ready_seconds": sorted(starts),
        "resident_mb": round(resident / 1e6),
    }
    with capsys.disabled():
        print("\n| layer | MB |\n|---|---:|")
        for name, size in sorted(figures["layers_mb"].items(), key=lambda pair: -pair[1]):  # type: ignore[attr-defined]
            print(f"| {name} | {size} |")
        print(f"| all, unpacked | {figures['unpacked_mb']} |\n| all, compressed | {figures['compressed_mb']} |")
        seconds = ", ".join(map(str, starts))
        print(f"ready after {seconds} s with 1 CPU and 256 MB, then {figures['resident_mb']} MB resident")
    if report := os.environ.get("CATSDOGS_IMAGE_REPORT"):
        (ROOT / report).write_text(json.dumps(figures, indent=2) + "\n")
    assert set(layers) <= set(LAYERS)
    assert {name: size for name, size in layers.items() if size > LAYERS[name]} == {}
    assert sum(layers.values()) <= UNPACKED
    assert compressed <= COMPRESSED
