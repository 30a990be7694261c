"""The Makefile: what `make help` lists, which tests each target runs, the version that an image is given."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from serving import __version__
from tests.conftest import ROOT


def make(*arguments: str, folder: Path = ROOT) -> str:
    done = subprocess.run(["make", "--silent", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


def test_without_a_target_it_lists_every_target_in_a_line_each() -> None:
    listed = make()
    assert listed == make("help")
    phony = re.search(r"\.PHONY: ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text())
    assert phony is not None
    targets = set(phony[1].replace("\\", "").split()) - {"image-labels"}  # what `image` asks for
    assert {line.split()[1] for line in listed.splitlines()} == targets
    assert all(re.fullmatch(r"make [a-z-]+ +\S.*", line) and len(line) <= 120 for line in listed.splitlines())


def test_every_test_is_run_by_one_of_two_targets_and_ci_runs_both() -> None:
    quick, slow = (make("--dry-run", target) for target in ("test", "test-slow"))
    assert re.search(r'-m pytest .*-m "not slow"', quick)
    assert re.search(r"-m pytest .* tests/containers\n.*-m pytest .*-m slow --ignore=tests/containers$", slow)
    assert (ROOT / ".ci/run").read_text().endswith("make test\nmake test-slow\n")


def test_ci_refuses_untested_branches_and_a_developer_need_not_wait_for_their_measurement() -> None:
    alone, ci = (make("--dry-run", "test", f"CI={ci}") for ci in ("", "true"))
    assert "--cov" not in alone and " --cov " in ci
    assert "export CI=true\n" in (ROOT / ".ci/run").read_text()


def test_the_pipeline_says_how_to_serve_and_ship_what_it_made() -> None:
    whole, own = make("--dry-run", "pipeline"), make("--dry-run", "pipeline", "SOURCE=my photos.zip")
    assert 'CATSDOGS_MODEL=models/model.int8.onnx make serve"' in whole and 'make ship"' in whole
    assert 'CATSDOGS_MODEL=own/models/model.int8.onnx make serve"' in own
    assert "make ship SOURCE='my photos.zip'\"" in own


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "tests/containers").glob("test_*.py")))
def test_what_needs_containers_is_slow(name: str) -> None:
    assert "\npytestmark = pytest.mark.slow\n" in (ROOT / "tests/containers" / name).read_text()


def test_an_image_of_a_tagged_commit_carries_the_version_without_the_tags_letter(tmp_path: Path) -> None:
    (tmp_path / "serving/models").mkdir(parents=True)
    for name in ("Makefile", "serving/models/cats-dogs.int8.json"):
        shutil.copy(ROOT / name, tmp_path / name)
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "One"), ("tag", f"v{__version__}")):
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True)
    assert f"--build-arg=VERSION={__version__} " in make("image-labels", folder=tmp_path)


def test_the_changelog_has_a_section_for_the_version_or_says_that_it_will() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    sections = re.findall(r"^## (?:\[(Unreleased)\]|(\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d|(0\.1\.0))$", text, re.MULTILINE)
    assert len(sections) == text.count("\n## ")
    assert f"It will be {__version__}." in text or f"\n## {__version__} - " in text


def test_the_service_is_locked_with_hashes_and_without_uvloop() -> None:
    lock = (ROOT / "docker/requirements.lock").read_text()
    pinned = re.findall(r"^([\w-]+)==\S+ .*\\\n    --hash=sha256:", lock, re.MULTILINE)
    assert {"starlette", "onnxruntime", "uvicorn"} <= set(pinned)
    assert "uvloop" not in pinned
    assert "--require-hashes --no-deps" in make("--dry-run", "--always-make", "serve")


def test_training_is_locked_with_hashes() -> None:
    lock = (ROOT / "docker/train.lock").read_text()
    pinned = set(re.findall(r"^([\w-]+)==\S+ .*\\\n    --hash=sha256:", lock, re.MULTILINE))
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    assert {re.split(r"[>=]", name)[0].replace(".", "-") for name in wanted} <= {n.replace(".", "-") for n in pinned}
    assert lock.count("==") >= len(pinned)
