"""Versions of data and models: what docs/pipeline.md says, run in real repositories with a real remote folder."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT, draw_photos
from tests.e2e.test_pipeline import checkout, run

pytestmark = pytest.mark.slow

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/pipeline.md").read_text(), re.DOTALL)
UP_TO_DATE = "Data and pipelines are up to date."


def documented(folder: Path, command: str) -> str:
    """Run the page's one block that has the command in it; returns what it printed."""
    (block,) = [block for block in BLOCKS if f"/bin/{command}" in block]
    block = block.replace(".venv-dev/bin", shlex.quote(str(Path(sys.executable).parent)))
    return succeeded(run(folder, "bash", "-euo", "pipefail", "-c", block))


def succeeded(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    return succeeded(run(folder, "git", *identity, *arguments))


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose pipeline has run, committed, and pushed to the remote folder beside it."""
    folder = tmp_path_factory.mktemp("versions")
    draw_photos(folder / "photos", 60)
    work = checkout(
        folder / "work", ["../photos"], model="simple_cnn", epochs=2, head_lr=3e-3, weight_average=0.9, lr=6e-5
    )
    for name in (".dvc/config", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, work / name)
    git(work, "init", "--quiet")
    succeeded(run(work, "dvc", "repro"))
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message", "Made on generated photos")
    assert not (folder / "cats-dogs-store").exists()
    documented(work, "dvc push")
    return work


@pytest.fixture(scope="module")
def clone(pushed: Path) -> Path:
    """A fresh clone beside it, with the files pulled."""
    git(pushed.parent, "clone", "--quiet", "work", "clone")
    folder = pushed.parent / "clone"
    assert not (folder / "data").exists()
    documented(folder, "dvc pull")
    return folder


def outputs(folder: Path) -> list[str]:
    lock = YAML(typ="safe").load((folder / "dvc.lock").read_text())
    return [out["path"] for stage in lock["stages"].values() for out in stage["outs"]]


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


def test_a_fresh_clone_pulls_every_output_back_byte_for_byte(pushed: Path, clone: Path) -> None:
    paths = outputs(pushed)
    assert {"data/raw", "data/processed_split", "models/model.onnx", "reports/metrics.json"} <= set(paths)
    for path in paths:
        pulled = content(clone / path)
        assert pulled or path in ("models/closer", "data/gathered"), path  # there is none
        assert pulled == content(pushed / path), path
    assert len(content(clone / "data/raw")) == 120


def test_nothing_in_the_clone_is_out_of_date(clone: Path) -> None:
    assert UP_TO_DATE in succeeded(run(clone, "dvc", "status"))
    repro = succeeded(run(clone, "dvc", "repro"))
    assert UP_TO_DATE in repro
    assert "Running stage" not in repro
    assert git(clone, "status", "--porcelain") == ""


def test_git_has_no_photograph_and_no_model(pushed: Path) -> None:
    pictures = {name for name in git(pushed, "ls-files").splitlines() if name.endswith((".jpg", ".png", ".onnx"))}
    assert pictures <= {"reports/confusion.png"}


def test_an_experiment_is_compared_with_the_last_commit(clone: Path) -> None:
    ran = documented(clone, "dvc exp run")
    assert "Stage 'prepare' didn't change, skipping" in ran
    assert "Running stage 'evaluate'" in ran
    compared = documented(clone, "dvc metrics diff")
    assert re.search(r"train\.lr +6e-05 +0\.0001", compared)
    assert re.search(r"train\.epochs +2 +3", compared)
    assert re.search(r"trained\.json +val_loss +0\.\d+ +0\.\d+ +-?0\.\d+", compared)
    assert "metrics.json" in compared
    page = (clone / "data/plots/index.html").read_text()
    assert '"rev": "HEAD"' in page
    assert '"rev": "workspace"' in page
    assert {path.name for path in (clone / "data/plots/static").iterdir()} >= {
        "HEAD_reports_confusion.png",
        "workspace_reports_confusion.png",
    }
    changed = git(clone, "status", "--porcelain", "--untracked-files=all")
    assert "plots" not in changed
    assert "params.yaml" in changed
    git(clone, "checkout", "--quiet", ".")
    succeeded(run(clone, "dvc", "checkout"))
    assert UP_TO_DATE in succeeded(run(clone, "dvc", "status"))


def test_another_remote_takes_two_commands_and_its_secrets_stay_out_of_git(pushed: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(pushed), "other")
    other = tmp_path / "other"
    documented(other, "dvc remote modify")
    assert "url = s3://my-bucket/cats-dogs" in (other / ".dvc/config").read_text()
    assert "my-profile" in (other / ".dvc/config.local").read_text()
    assert git(other, "status", "--porcelain").split() == ["M", ".dvc/config"]
