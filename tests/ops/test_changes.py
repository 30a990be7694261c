"""What a pull request changes in the model, and whether its lock is up to date: told in a real repository with DVC."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ops import changes, stale
from tests.conftest import ROOT
from tests.ops.test_workflows import BIN, JOBS

STAGES = """
stages:
  fetch:
    cmd: mkdir -p data && cp origin.txt data/raw
    params: [fetch]
    deps: [fetch.py]
    outs: [data/raw]
  evaluate:
    cmd: python evaluate.py
    params: [train]
    deps: [evaluate.py, data/raw]
    outs: [model.bin]
    metrics:
      - reports/metrics.json: { cache: false }
plots:
  - reports/confusion.png
"""
EVALUATE = """
import json, pathlib
lr = float(pathlib.Path("params.yaml").read_text().split("lr: ")[1])
right = 0.99 + lr
pathlib.Path("reports").mkdir(exist_ok=True)
pathlib.Path("model.bin").write_text(str(lr))
pathlib.Path("reports/metrics.json").write_text(json.dumps({
    "version": f"model-{lr}", "accuracy": {"value": right, "low": right - 0.005, "high": right + 0.003},
    "log_loss": 0.02, "confusion": {"cats": 7}}))
"""
PARAMS = "fetch:\n  source: [{source}]\ntrain:\n  lr: {lr}\n"


def ran(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    # Our own modules are run as a user runs them, without an activated environment.
    others = [place for place in os.environ["PATH"].split(":") if place != str(BIN)]
    path = ":".join(others if command[0] == sys.executable else [str(BIN), *others])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)


def succeeded(folder: Path, *command: str) -> str:
    done = ran(folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commit(folder: Path, message: str) -> str:
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    succeeded(folder, "git", "add", "--all")
    succeeded(folder, "git", *identity, "commit", "--quiet", "--message", message)
    return succeeded(folder, "git", "rev-parse", "HEAD").strip()


def trained(folder: Path, lr: float, losses: tuple[float, ...]) -> None:
    (folder / "params.yaml").write_text(PARAMS.format(source="mine.zip", lr=lr))
    succeeded(folder, "dvc", "repro")
    (folder / changes.HISTORY).parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{epoch},{loss}" for epoch, loss in enumerate(losses, 1)]
    (folder / changes.HISTORY).write_text("\n".join(["epoch,val_loss", *lines]) + "\n")
    (folder / "params.yaml").write_text(PARAMS.format(source="kaggle", lr=lr))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A repository in which a second training is committed, and the commit of the first."""
    folder = tmp_path_factory.mktemp("changes")
    succeeded(folder, "git", "init", "--quiet")
    succeeded(folder, "dvc", "init", "--quiet")
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "evaluate.py").write_text(EVALUATE)
    (folder / "fetch.py").write_text("")
    (folder / "origin.txt").write_text("photographs")
    (folder / "reports").mkdir()
    trained(folder, 0.001, (0.5, 0.4))
    (folder / "reports/confusion.png").write_bytes(b"one")
    first = commit(folder, "First")
    trained(folder, 0.006, (0.5, 0.3, 0.2))
    (folder / "reports/confusion.png").write_bytes(b"two")
    commit(folder, "Second")
    return folder, first


@pytest.fixture
def clone(repository: tuple[Path, str], tmp_path: Path) -> Path:
    """A clone as GitHub has it: no data, no cache, no remote."""
    folder = tmp_path / "clone"
    succeeded(tmp_path, "git", "clone", "--quiet", str(repository[0]), str(folder))
    assert not (folder / "data/raw").exists()
    return folder


def told(folder: Path, *arguments: str) -> str:
    return succeeded(folder, sys.executable, "-m", "ops.changes", *arguments)


def test_a_trained_models_figures_stand_beside_the_old_ones(repository: tuple[Path, str], clone: Path) -> None:
    said = told(clone, repository[1])
    assert "| right | 0.991 (0.986 to 0.994) | 0.996 (0.991 to 0.999) | +0.005, **outside** the old interval |" in said
    assert "| `train.lr` | 0.001 | 0.006 |" in said
    assert "| `reports/metrics.json` | `version` | `model-0.001` | `model-0.006` |" in said
    assert "log loss" not in said
    assert "confusion.cats" not in said


def test_learning_curves_are_drawn_before_and_after(repository: tuple[Path, str], clone: Path) -> None:
    said = told(clone, repository[1])
    assert '"epoch" 1 --> 3' in said
    assert "    line [0.50000, 0.40000]\n    line [0.50000, 0.30000, 0.20000]\n```" in said


def test_pictures_stand_side_by_side_by_commit(repository: tuple[Path, str], clone: Path) -> None:
    said = told(clone, repository[1], "--url", "https://github.com/owner/repo")
    head = succeeded(clone, "git", "rev-parse", "HEAD").strip()
    for revision in (repository[1], head):
        assert f"(https://github.com/owner/repo/blob/{revision}/reports/confusion.png?raw=true)" in said


def test_a_change_that_leaves_the_model_alone_says_so(clone: Path) -> None:
    assert "No metric, parameter or plot changed." in told(clone, "HEAD")


def test_a_commit_that_is_none_is_an_error(clone: Path) -> None:
    assert ran(clone, sys.executable, "-m", "ops.changes", "--", "--output=x").returncode != 0


def metric(old: object, new: object) -> dict[str, dict[str, Any]]:
    return {"accuracy": {"old": old, "new": new}}


@pytest.mark.parametrize(
    "hostile",
    ["`x` @everyone <img src=x onerror=alert(1)>", "a | b\n| c | d |", "![x](https://example.org/x.png)\n\n# Approved"],
)
def test_nothing_that_an_author_wrote_leaves_its_cell(hostile: str) -> None:
    said = changes.markdown({}, {"params.yaml": {"train.model": {"old": "cnn", "new": hostile}}}, base="abc")
    (row,) = [line for line in said.splitlines() if "train.model" in line]
    cells = row.replace("\\|", "").split("|")
    assert len(cells) == 5
    assert cells[3].strip().startswith("`")
    assert cells[3].strip().endswith("`")
    assert cells[3].count("`") == 2


def test_a_new_metric_has_no_old_value_and_no_change() -> None:
    said = changes.markdown({"reports/metrics.json": metric(None, 0.99)}, {}, base="abc")
    assert "| right | – | 0.99 |  |" in said


def test_a_change_inside_the_old_interval_is_called_that() -> None:
    values = {"accuracy.value": {"old": 0.99, "new": 0.992}} | {
        f"accuracy.{end}": {"old": value, "new": value} for end, value in (("low", 0.98), ("high", 0.995))
    }
    (row,) = changes.rows(values)
    assert row.change == "+0.002, inside the old interval"


def test_a_comment_is_never_longer_than_github_takes() -> None:
    many = {f"reports/{n}.json": {f"m{k}": {"old": 1, "new": 2} for k in range(200)} for n in range(40)}
    said = changes.markdown(many | {"reports/metrics.json": metric(0.98, 0.99)}, {}, base="abc")
    assert len(said) < 65_536
    assert "| right | 0.98 | 0.99 |" in said
    assert "too many further changes" in said


def is_stale(folder: Path) -> tuple[int, str]:
    done = ran(folder, sys.executable, "-m", "ops.stale")
    return done.returncode, done.stdout + done.stderr


def test_a_clone_without_data_is_not_stale_for_that(clone: Path) -> None:
    assert is_stale(clone) == (0, "Nothing is stale.\n")


def test_data_that_was_pulled_is_compared_itself(repository: tuple[Path, str], clone: Path) -> None:
    succeeded(clone, "dvc", "remote", "add", "--local", "--default", "origin", str(repository[0] / ".dvc/cache"))
    shutil.copytree(repository[0] / ".dvc/cache", clone / ".dvc/cache")
    succeeded(clone, "dvc", "checkout")
    assert is_stale(clone)[0] == 0
    (clone / "data/raw").chmod(0o644)
    (clone / "data/raw").unlink()
    (clone / "data/raw").write_text("other photographs")
    code, said = is_stale(clone)
    assert code == 1
    assert "fetch" in said


@pytest.mark.parametrize(
    ("name", "text", "stage"),
    [
        ("evaluate.py", EVALUATE + "# changed\n", "evaluate"),
        ("params.yaml", PARAMS.format(source="kaggle", lr=0.1), "evaluate"),
        ("reports/metrics.json", json.dumps({"accuracy": {"value": 1.0}}), "evaluate"),
        ("fetch.py", "print('changed')\n", "fetch"),
        ("dvc.yaml", STAGES.replace("cp origin.txt", "cp -p origin.txt"), "fetch"),
    ],
)
def test_what_was_not_made_again_is_stale(clone: Path, name: str, text: str, stage: str) -> None:
    (clone / name).write_text(text)
    code, said = is_stale(clone)
    assert code == 1
    assert f"Out of date: {stage}." in said


def test_a_lock_whose_stages_read_what_none_made_is_stale(clone: Path) -> None:
    lock = (clone / "dvc.lock").read_text()
    md5 = lock.split("path: data/raw\n      hash: md5\n      md5: ")[1].split("\n")[0]
    (clone / "dvc.lock").write_text(lock.replace(md5, "0" * 32, 1))
    assert is_stale(clone)[0] == 1


def test_a_broken_pipeline_is_an_error(clone: Path) -> None:
    (clone / "dvc.yaml").write_text("stages: [")
    code, said = is_stale(clone)
    assert code == 1
    assert "dvc repro --dry failed" in said


def test_this_repositorys_own_lock_is_up_to_date(tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    succeeded(tmp_path, "git", "clone", "--quiet", str(ROOT), str(folder))
    for name in succeeded(
        ROOT, "git", "ls-files", "--modified", "--", "training", "shared", "dvc.*", "params.yaml"
    ).split():
        shutil.copy(ROOT / name, folder / name)
    code, said = is_stale(folder)
    assert code == 0, said


def test_only_the_place_of_the_photographs_may_differ() -> None:
    place = {"changed deps": {"params.yaml": {"fetch": "modified"}}}
    absent = {"changed outs": {"data/raw": "not in cache"}}
    ungathered = {"changed deps": {"data/gathered": "deleted", **place["changed deps"]}}
    assert stale.only_the_place([ungathered, absent])
    assert stale.only_the_place([place])
    assert stale.only_the_place([place, absent])
    assert not stale.only_the_place([absent])
    assert not stale.only_the_place([{"changed deps": {"params.yaml": {"fetch": "modified"}, "fetch.py": "modified"}}])
    assert not stale.only_the_place([place, {"changed outs": {"data/raw": "modified"}}])
    assert not stale.only_the_place(["changed command", place])  # type: ignore[list-item]


def test_the_workflows_step_tells_a_merged_pull_requests_change(repository: tuple[Path, str], clone: Path) -> None:
    (job,) = [job for name, key, job in JOBS if (name, key) == ("data", "compare")]
    (script,) = [step["run"] for step in job["steps"] if step.get("name") == "Say what this changes in the model"]
    head = succeeded(clone, "git", "rev-parse", "HEAD").strip()
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    succeeded(clone, "git", "checkout", "--quiet", "--detach", repository[1])
    succeeded(clone, "git", *identity, "merge", "--quiet", "--no-ff", "--message", "Merge", head)
    github = {
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "owner/repo",
        "GITHUB_RUN_ID": "7",
        "GITHUB_STEP_SUMMARY": str(clone / "summary"),
        "HEAD": head,
    }
    succeeded(
        clone, "env", *(f"{name}={value}" for name, value in github.items()), "bash", "-eo", "pipefail", "-c", script
    )
    said = (clone / "changes.md").read_text()
    assert "| right | 0.991 (0.986 to 0.994) | 0.996 (0.991 to 0.999) |" in said
    assert f"https://github.com/owner/repo/blob/{head}/reports/confusion.png" in said
    assert "https://github.com/owner/repo/actions/runs/7#artifacts" in said
    assert (clone / "summary").read_text() == said
    assert (clone / "plots/index.html").exists()
