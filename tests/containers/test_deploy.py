"""Deployment and roll-back with a registry, an engine, and clients that never stop asking."""

import fcntl
import hashlib
import io
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from serving.settings import SHIPPED_INT8, SHIPPED_MODEL
from tests.conftest import PHOTOS, ROOT, encoded
from tests.containers.containers import CAT
from tests.containers.engine import Docker
from tests.containers.stack import Stack
from tests.ops.edge import CLIENTS, Load
from tests.waiting import until

pytestmark = pytest.mark.slow

SERVE = "from serving.cli import serve; serve()"
# Right about the one photo of the smoke test, wrong about all others.
WRONG = f"""
import msgspec
from serving.messages import Probabilities
from serving.service import Work
right = Work.predict
async def wrong(self, data, *arguments):
    told = await right(self, data, *arguments)
    if len(data) == {len(CAT)}:
        return told
    swapped = Probabilities(told.probabilities.dogs, told.probabilities.cats)
    label = "dogs" if told.predicted_label == "cats" else "cats"
    return msgspec.structs.replace(
        told, predicted_label=label, probabilities=swapped, verdict=label, unsure_because=None
    )
Work.predict = wrong
"""
# Good until it has work to do: the candidate is asked 47 times, a replica in service hundreds of times.
CRASHES = """
import os
from serving.service import Work
right, left = Work.predict, iter(range(150))
async def crash(*arguments):
    if next(left, None) is None:
        os._exit(1)
    return await right(*arguments)
Work.predict = crash
"""


class Releases:
    """Images in a registry, each named by what is wrong with it, known by their digests."""

    def __init__(self, docker: Docker, registry: str, image: str, folder: Path) -> None:
        self._docker, self._registry, self._folder = docker, registry, folder
        docker("tag", image, f"{registry}/cats-dogs-inference:base")
        self.base = f"{registry}/cats-dogs-inference:base"

    def push(self, name: str, *lines: str) -> str:
        """Build on the shipped image, push, forget here; returns the name with its digest."""
        tag = f"{self._registry}/cats-dogs-inference:{name}"
        instructions = [f"FROM {self.base}", f"LABEL release={name}", *lines]
        (self._folder / "Dockerfile").write_text("\n".join(instructions) + "\n")
        self._docker("build", "--quiet", "-t", tag, self._folder)
        told = self._docker("push", tag)
        self._docker("rmi", tag)
        return f"{self._registry}/cats-dogs-inference@{re.findall(r'sha256:[0-9a-f]{64}', told)[-1]}"

    def code(self, name: str, code: str) -> str:
        """A release that runs something else before it serves."""
        return self.push(name, f"ENTRYPOINT {json.dumps(['python3', '-c', code + SERVE])}")


def spoiled(model: Path, to: Path) -> None:
    """The same file with other weights at one place, which its exam finds out."""
    file = onnx.load(model)
    graph = next(attribute.g for attribute in file.graph.node[0].attribute if attribute.name == "else_branch")
    tensor = max((t for t in graph.initializer if len(t.dims) == 4), key=lambda tensor: tensor.ByteSize())
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(values[::-1].copy(), tensor.name))
    onnx.save(file, to)


@pytest.fixture(scope="module")
def releases(docker: Docker, registry: str, image: str, tmp_path_factory: pytest.TempPathFactory) -> Releases:
    return Releases(docker, registry, image, tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="module")
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labelled photos that the smoke test does not know; of one cat, where there are no others."""
    path = tmp_path_factory.mktemp("sample") / "sample.zip"
    if PHOTOS.exists():
        photos: list[tuple[str, bytes]] = request.getfixturevalue("photos")[:40]
    else:
        with Image.open(io.BytesIO(CAT)) as cat:
            views = [cat.crop((edge, edge, cat.width - edge, cat.height - edge)) for edge in range(1, 41)]
            photos = [("cats", encoded(view, "JPEG")) for view in views]
    with zipfile.ZipFile(path, "w") as archive:
        for number, (label, data) in enumerate(photos):
            archive.writestr(f"{label}/{number}.jpg", data)
    return path


class Machine(Stack):
    """A machine that is deployed to."""

    def __init__(self, docker: Docker, folder: Path) -> None:
        super().__init__(docker, folder, "catsdogs-deploy-test")
        self.state = folder / "release.env"
        self.evidence = folder / "evidence"
        self.environment |= {"PYTHON": sys.executable}

    def deploy(self, image: str, *options: str) -> tuple[int, str]:
        """Run the shipped script; returns its exit code and what it said."""
        done = self.run("deploy.sh", "--watch", "6", "--evidence", str(self.evidence), *options, image)
        return done.returncode, done.stdout

    def serving(self) -> set[str]:
        """Images of the replicas that run."""
        ids = self.compose("ps", "--quiet", "service").split()
        return {self.docker.inspect(container)["Config"]["Image"] for container in ids}

    def current(self) -> str:
        """The one image that serves."""
        (image,) = self.serving()
        return image

    def remembered(self) -> list[str]:
        return self.state.read_text().splitlines()


@pytest.fixture(scope="module")
def machine(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(docker, tmp_path_factory.mktemp("machine"))
    machine.down()
    try:
        yield machine
    finally:
        machine.down()


@pytest.fixture(scope="module")
def first(machine: Machine, releases: Releases) -> str:
    """A good release, deployed on a machine where nothing ran."""
    image = releases.push("first")
    machine.environment["COMPOSE_ENV_FILES"] = str(machine.state)
    code, said = machine.deploy(image)
    assert code == 0, said
    return image


def test_called_wrong_it_says_so_and_does_nothing(machine: Machine) -> None:
    done = machine.run("deploy.sh", "--help")
    assert (done.returncode, done.stdout.splitlines()[0][:21]) == (0, "Put an image into ser")
    for arguments in ((), ("--sample",), ("--nonsense", "x"), ("--watch", "long", "x"), ("--sample", "/none", "x")):
        assert machine.run("deploy.sh", *arguments).returncode == 2
    assert machine.run("deploy.sh", "--roll-back").stdout == "no image before this one is known; name one\n"
    assert machine.serving() == set()


def test_a_first_release_is_up_with_all_that_is_around_it(machine: Machine, first: str) -> None:
    assert machine.serving() == {first}
    assert machine.remembered() == [f"CATSDOGS_IMAGE={first}", "CATSDOGS_IMAGE_BEFORE="]
    assert machine.state.stat().st_mode & 0o777 == 0o600  # who keeps keys there keeps them to themselves
    machine.state.write_text("# kept\n" + machine.state.read_text())
    assert httpx.get(f"{machine.prometheus}/-/ready").status_code == 200
    assert "candidate" not in machine.compose("--profile", "deploy", "ps", "--all", "--services")


def test_a_good_release_takes_over_without_a_request_lost_and_a_person_can_go_back(
    machine: Machine, first: str, releases: Releases, sample: Path
) -> None:
    second = releases.push("second")
    with Load(machine.url) as load:
        code, said = machine.deploy(second, "--sample", str(sample))
        assert code == 0, said
        assert machine.serving() == {second}
        load.more()
        done = machine.run("deploy.sh", "--watch", "5", "--roll-back")
        assert done.returncode == 0, done.stdout
        load.more()
    assert (load.failed(), machine.serving()) == (0, {first})
    assert machine.remembered()[1:] == [f"CATSDOGS_IMAGE={first}", f"CATSDOGS_IMAGE_BEFORE={second}"]
    # What a person types next finds the same image.
    before = machine.compose("ps", "--quiet")
    machine.compose("up", "--detach", "--no-build", "--wait")
    assert machine.compose("ps", "--quiet") == before


def test_a_tag_is_deployed_as_the_digest_that_it_had(machine: Machine, first: str, releases: Releases) -> None:
    digest = releases.push("moving")
    code, said = machine.deploy(re.sub("@.*", ":moving", digest))
    assert code == 0, said
    assert machine.serving() == {digest}


@pytest.mark.parametrize("fault", ["crashes at start", "fails its exam", "answers wrong"])
def test_a_bad_release_is_sent_nobody_and_leaves_its_evidence(
    machine: Machine, first: str, releases: Releases, sample: Path, fault: str, tmp_path: Path
) -> None:
    if fault == "crashes at start":
        bad, reason = releases.code("crash", "raise SystemExit('out of luck')\n"), "out of luck"
    elif fault == "answers wrong":
        bad, reason = releases.code("wrong", WRONG), "fewer are right than in the model's own test"
    else:
        for model in (SHIPPED_INT8, SHIPPED_MODEL):
            spoiled(model, releases._folder / model.name)
        bad, reason = releases.push("exam", "COPY --chown=0:0 *.onnx /app/serving/models/"), "fails its exam"
    kept, now = machine.remembered(), machine.current()
    with Load(machine.url) as load:
        code, said = machine.deploy(bad, "--sample", str(sample), "--evidence", str(tmp_path / "evidence"))
        load.more()
    assert (code, load.failed()) == (1, 0), said
    assert f"nobody was sent to it: {now} serves" in said
    assert (machine.serving(), machine.remembered()) == ({now}, kept)
    (folder,) = (tmp_path / "evidence").iterdir()
    assert reason in "".join(path.read_text() for path in folder.iterdir())
    assert bad in (folder / "deploy.log").read_text()


def test_a_release_that_breaks_in_service_is_rolled_back(
    machine: Machine, first: str, releases: Releases, tmp_path: Path
) -> None:
    bad = releases.code("breaks", CRASHES)
    kept, now = machine.remembered(), machine.current()
    with Load(machine.url) as load:
        code, said = machine.deploy(bad, "--evidence", str(tmp_path / "evidence"))
        crashed = load.failed()
        load.more(100)
    assert code == 1, said
    assert f"rolled back: {now} serves" in said
    assert (machine.serving(), machine.remembered()) == ({now}, kept)
    # The crash costs what the broken replica was at, perhaps once more after its restart; the roll-back nothing.
    assert load.failed() == crashed <= 2 * CLIENTS
    (folder,) = (tmp_path / "evidence").iterdir()
    assert [path for path in folder.iterdir() if path.name.startswith("inspect-")]


def test_what_cannot_be_pulled_changes_nothing(machine: Machine, first: str) -> None:
    now = machine.current()
    code, said = machine.deploy(re.sub("@.*", ":no-such-release", now))
    assert code == 1
    assert "it cannot be pulled" in said
    assert machine.serving() == {now}


def test_two_deployments_do_not_run_at_once(machine: Machine, first: str) -> None:
    with (ROOT / "compose.yaml").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert machine.deploy(first) == (2, "another deployment is under way\n")


def test_cut_off_half_way_it_leaves_what_was_there(
    machine: Machine, first: str, releases: Releases, tmp_path: Path
) -> None:
    kept, now, other = machine.remembered(), machine.current(), releases.push("other")
    with Load(machine.url) as load:
        script = machine.begin("deploy.sh", "--watch", "600", "--evidence", str(tmp_path), other)
        until(lambda: machine.serving() == {now, other})
        script.terminate()
        said, _ = script.communicate(timeout=120)
        load.more()
    assert (script.returncode, load.failed()) == (4, 0), said
    assert "cut off" in said
    assert (machine.serving(), machine.remembered()) == ({now}, kept)


def test_replicas_that_are_stopped_or_ill_do_not_keep_a_good_release_out(
    machine: Machine, first: str, releases: Releases
) -> None:
    machine.compose("stop", "service")
    second = releases.push("cure")
    code, said = machine.deploy(second)
    assert code == 0, said
    assert machine.serving() == {second}

    ill = releases.push("ill", 'HEALTHCHECK --interval=1s --retries=1 CMD ["python3", "-c", "raise SystemExit(1)"]')
    machine.compose("up", "--detach", "--no-deps", "--no-build", "service", check=False, CATSDOGS_IMAGE=ill)
    assert machine.serving() == {ill}
    code, said = machine.deploy(first)
    assert code == 0, said
    assert machine.serving() == {first}


def test_what_was_begun_under_a_moving_name_can_be_gone_back_to(
    machine: Machine, first: str, releases: Releases
) -> None:
    machine.down()
    machine.state.write_text("")
    old = releases.push("latest")
    latest = re.sub("@.*", ":latest", old)
    machine.docker("pull", latest)
    machine.compose("up", "--detach", "--no-build", "--wait", CATSDOGS_IMAGE=latest)
    new = releases.push("latest", "LABEL newer=yes")
    assert machine.deploy(new)[0] == 0
    done = machine.run("deploy.sh", "--watch", "1", "--roll-back")
    assert done.returncode == 0, done.stdout
    assert machine.serving() == {old}


def test_a_service_that_wants_keys_is_asked_with_one(machine: Machine, first: str, tmp_path: Path) -> None:
    key, digest = "s3cret", hashlib.sha256(b"s3cret").hexdigest()
    machine.state.write_text(f"CATSDOGS_API_KEYS={digest}\n")
    code, said = machine.deploy(first, "--evidence", str(tmp_path))
    assert code == 1
    assert "it wants an API key: CATSDOGS_KEY" in said
    assert digest not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    done = machine.run("deploy.sh", "--watch", "1", first, CATSDOGS_KEY=key)
    assert done.returncode == 0, done.stdout
    assert machine.predict().json()["code"] == "unauthorized"
