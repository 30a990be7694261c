"""The shell in the workflows, run as GitHub runs it: what deployment takes, what it refuses, what is skipped."""

import http.server
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.ops.test_workflows import BIN, GITHUB, STEPS

DIGEST = "sha256:" + "0123456789abcdef" * 4


def named(workflow: str, name: str) -> str:
    """The shell of the step with that name."""
    (run,) = [step["run"] for file, _, step in STEPS if file == workflow and step.get("name") == name]
    return str(run)


def bash(script: str, folder: Path, **environment: str) -> tuple[int, str, dict[str, str]]:
    """Run a step as GitHub does; returns its exit code, what it said, and its outputs."""
    output = folder / "output"
    output.touch()
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder, check=False, capture_output=True, text=True,
        env={
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(folder / "summary"),
            "GITHUB_ENV": str(folder / "env"),
            "GITHUB_REPOSITORY": "Cats-Dogs/Cats-Dogs",
            **environment,
        },
    )  # fmt: skip
    pairs = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return done.returncode, done.stdout + done.stderr, pairs


def test_deployment_takes_a_digest(tmp_path: Path) -> None:
    code, said, outputs = bash(named("cd", "A digest, and nothing that could move"), tmp_path, DIGEST=DIGEST)
    assert code == 0, said
    assert outputs == {"image": f"ghcr.io/cats-dogs/cats-dogs/cats-dogs-inference@{DIGEST}"}


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "latest",
        "v1.2.3",
        DIGEST.removeprefix("sha256:"),
        DIGEST[:-1],
        DIGEST + "0",
        DIGEST.upper(),
        f"{DIGEST}\nimage=ghcr.io/somebody/else:latest",
        f"x\n{DIGEST}",
        f"{DIGEST} --privileged",
        f"ghcr.io/somebody/else@{DIGEST}",
        "$(touch escaped)",
    ],
)
def test_deployment_takes_nothing_else(tmp_path: Path, digest: str) -> None:
    code, said, outputs = bash(named("cd", "A digest, and nothing that could move"), tmp_path, DIGEST=digest)
    assert code == 1
    assert "Not a digest" in said
    assert outputs == {}
    assert not (tmp_path / "escaped").exists()


def test_a_deployment_without_a_runner_says_so(tmp_path: Path) -> None:
    code, said, _ = bash(named("cd", "Say so where there is nowhere to deploy to"), tmp_path, IMAGE=f"x@{DIGEST}")
    assert code == 0
    assert "Nothing was deployed" in said
    assert f"`ops/deploy.sh x@{DIGEST}`" in (tmp_path / "summary").read_text()


def planned(folder: Path, kind: str, name: str) -> tuple[int, str, dict[str, str]]:
    for path in ("serving/__init__.py", "serving/models/cats-dogs.int8.json"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    script = named("publish", "Read them from the repository")
    return bash(script, folder, GITHUB_REF_TYPE=kind, GITHUB_REF_NAME=name)


def test_the_images_name_and_versions_are_the_repositorys(tmp_path: Path) -> None:
    from serving import __version__

    code, said, outputs = planned(tmp_path, "tag", f"v{__version__}")
    assert code == 0, said
    assert outputs["image"] == "ghcr.io/cats-dogs/cats-dogs/cats-dogs-inference"
    assert outputs["version"] == __version__
    assert re.fullmatch(r"\d{4}\.\d\d\.\d\d-[\w-]+", outputs["model"])


def test_a_tag_that_is_not_the_version_is_refused(tmp_path: Path) -> None:
    code, said, outputs = planned(tmp_path, "tag", "v99.0.0")
    assert code == 1
    assert "The tag must be v" in said
    assert outputs == {}


def named_by(folder: Path, *architectures: str) -> tuple[int, str, dict[str, str]]:
    """Run the step that pushes and names, with skopeo and docker that only say what they are asked."""
    (folder / "images").mkdir()
    for architecture in architectures:
        index = json.dumps({"manifests": [{"digest": f"sha256:{architecture}"}]}).encode()
        with tarfile.open(folder / f"images/image-{architecture}.tar", "w") as archive:
            entry = tarfile.TarInfo("index.json")
            entry.size = len(index)
            archive.addfile(entry, io.BytesIO(index))
    for program, answer in (("skopeo", ""), ("docker", f"case $3 in inspect) echo '\"{DIGEST}\"';; esac")):
        (folder / program).write_text(f'#!/bin/sh\necho "{program} $*" >&2\n{answer}\n')
        (folder / program).chmod(0o755)
    script = f"PATH={folder}:$PATH\n" + named("publish", "Push both halves, and put them under it")
    return bash(script, folder, IMAGE="registry/x", TAG="registry/x:1")


def test_both_halves_are_pushed_whole_by_their_digests_and_then_named(tmp_path: Path) -> None:
    code, said, outputs = named_by(tmp_path, "amd64", "arm64")
    assert code == 0, said
    assert said.splitlines()[:3] == [
        "skopeo copy --all --preserve-digests oci-archive:images/image-amd64.tar docker://registry/x@sha256:amd64",
        "skopeo copy --all --preserve-digests oci-archive:images/image-arm64.tar docker://registry/x@sha256:arm64",
        "docker buildx imagetools create --tag registry/x:1 registry/x@sha256:amd64 registry/x@sha256:arm64",
    ]
    assert outputs == {"digest": DIGEST}


def test_half_an_image_is_not_pushed_and_gets_no_name(tmp_path: Path) -> None:
    code, said, outputs = named_by(tmp_path, "amd64")
    assert code == 1
    assert said.splitlines() == ["::error::1 images instead of two."]
    assert outputs == {}


@pytest.mark.slow
def test_what_a_deployment_installs_is_enough_to_send_the_sample(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    shutil.copy(ROOT / "docker/deploy.lock", tmp_path / "docker")
    code, said, _ = bash(named("cd", "Bring what sends the sample, where there is one"), tmp_path)
    assert code == 0, said
    command: list[str | Path] = [tmp_path / ".venv-deploy/bin/python", "-m", "ops", "collect", "nowhere.zip"]
    done = subprocess.run(command, cwd=ROOT, env={}, check=False, capture_output=True, text=True)
    assert "nowhere.zip" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_remote_nothing_is_pulled(tmp_path: Path) -> None:
    script = named("data", "Pull the data, where there is a remote")
    code, said, _ = bash(script, tmp_path, REMOTE="s3://somewhere", AWS_ACCESS_KEY_ID="")
    assert code == 0
    assert "No DVC remote is configured" in said


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As much of a clone as the script of the photographs looks at."""
    folder = tmp_path / "clone"
    (folder / ".github").mkdir(parents=True)
    shutil.copy(GITHUB / "photographs.sh", folder / ".github")
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder that is served over HTTP, and its address."""
    folder = tmp_path / "place"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", folder
        server.shutdown()
        thread.join()


def test_without_photographs_tests_are_skipped_rather_than_failed(clone: Path) -> None:
    code, said, _ = bash(".github/photographs.sh", clone, PHOTOGRAPHS_URL="")
    assert code == 0, said
    assert "::notice::" in said
    assert (clone / "env").read_text() == "NO_PHOTOGRAPHS=1\n"
    assert not (clone.parent / "shared").exists()


def test_photographs_come_from_where_the_secret_says(clone: Path, place: tuple[str, Path]) -> None:
    url, folder = place
    for name in ("petimages-180.zip", "petimages-photos.zip", "not-pets.zip"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("PetImages/Cat/0.jpg", name)
    code, said, _ = bash(".github/photographs.sh", clone, PHOTOGRAPHS_URL=url)
    assert code == 0, said
    assert not (clone / "env").exists()
    with zipfile.ZipFile(clone.parent / "shared/data/not-pets.zip") as archive:
        assert archive.read("PetImages/Cat/0.jpg") == b"not-pets.zip"


def test_photographs_that_do_not_come_are_an_error(clone: Path, place: tuple[str, Path]) -> None:
    url, folder = place
    code, _, _ = bash(".github/photographs.sh", clone, PHOTOGRAPHS_URL=url)
    assert code != 0
    (folder / "petimages-180.zip").write_bytes(b"<html>Please log in</html>")
    code, _, _ = bash(".github/photographs.sh", clone, PHOTOGRAPHS_URL=url)
    assert code != 0
