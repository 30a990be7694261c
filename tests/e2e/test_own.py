"""`make pipeline SOURCE=…` as a newcomer runs it: in a fresh clone, on photographs of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.conftest import ROOT, draw_photos
from training import own, params
from training.stage import StageError

SMALL = (
    "fetch.keep_sides=true suspects.pretrained=false "
    "train.model=simple_cnn train.epochs=2 train.head_lr=3e-3 closer=null evaluate.corrupted=2"
)


def run(folder: Path, *command: str) -> str:
    identity = {
        f"GIT_{who}_{what}": "tester@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    left_out = ("CATSDOGS_", "MLFLOW_", "MAKE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)} | identity
    environment |= {"PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh clone with the changes of the working tree committed, and the packages that training needs."""
    folder = tmp_path / "clone"
    run(ROOT, "git", "clone", "--quiet", str(ROOT), str(folder))
    for name in run(ROOT, "git", "ls-files", "--modified", "--others", "--exclude-standard").splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--allow-empty", "--message", "The working tree")
    environment = folder / ".venv-dev"
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        (environment / entry.name).symlink_to(entry)
    (environment / ".training").touch()  # otherwise make would install them
    return folder


@pytest.mark.slow
def test_a_fresh_clone_stays_clean_and_the_second_run_sees_new_photos_under_the_old_name(clone: Path) -> None:
    photos = clone.parent / "my photos"
    draw_photos(photos, 60)
    for side, numbers in (("validation", range(10)), ("test", range(10, 20))):
        for name, renamed in (("Cat", "kitten"), ("Dog", "Dog")):
            (photos / side / renamed).mkdir(parents=True)
            for number in numbers:
                (photos / f"PetImages/{name}/{number}.jpg").rename(photos / f"{side}/{renamed}/{number}.jpg")
    arguments = (f"SOURCE={photos}", "CLASSES=cats=cat,kitten dogs=dog", f"SET={SMALL}")

    said = run(clone, "make", "pipeline", *arguments)
    assert "CATSDOGS_MODEL=own/models/model.int8.onnx make serve" in said
    assert (clone / "own/models/model.int8.onnx").is_file()
    assert json.loads((clone / "own/reports/split.json").read_text())["test"] == {"cats": 10, "dogs": 10}
    assert run(clone, "git", "status", "--porcelain") == ""
    assert (clone / "mlflow.db").is_file()

    assert "Running stage" not in run(clone, "make", "pipeline", *arguments)
    (photos / "PetImages/Cat/new.jpg").write_bytes((photos / "PetImages/Cat/30.jpg").read_bytes())
    assert "Running stage 'audit'" in run(clone, "make", "pipeline", *arguments)
    assert run(clone, "git", "status", "--porcelain") == ""


def test_training_installs_no_program_as_root_and_says_what_it_downloads() -> None:
    said = run(ROOT, "make", "--dry-run", "--always-make", "pipeline", "SOURCE=photos")
    assert "--editable '.[train]'" in said
    assert "3 GB to download" in said
    assert not any(word in said for word in ("apt-get", "chromium", "haproxy", ".[dev]"))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    draw_photos(tmp_path / "photos", 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_parameters_are_those_of_the_checkout_but_for_what_was_asked(checkout: Path) -> None:
    before = (checkout / "params.yaml").read_bytes()
    arguments = [
        "own",
        "--source",
        "photos kaggle oxford-iiit-pet",
        "--classes",
        "cats=a,b dogs=c",
        "--set",
        "train.epochs=2",
    ]
    result = CliRunner().invoke(own.main, arguments)
    assert result.exit_code == 0, result.output
    mine = params.load(checkout / "own/params.yaml")
    assert mine.fetch.source == [str(checkout / "photos"), "kaggle", "oxford-iiit-pet"]
    assert mine.fetch.classes == {"cats": ["a", "b"], "dogs": ["c"]}
    assert mine.train.epochs == 2
    assert mine.split == params.load(checkout / "params.yaml").split
    assert (checkout / "params.yaml").read_bytes() == before


def test_a_source_that_is_not_there_or_a_wrong_parameter_is_said_before_anything_is_installed_or_run(
    checkout: Path,
) -> None:
    with pytest.raises(StageError, match="nowhere: no such file or folder"):
        own.prepare(Path("own"), "nowhere", {})
    for name in ("train.epoch", "train.epochs.more", "training.epochs"):
        with pytest.raises(StageError, match=r"epoch"):
            own.prepare(Path("own"), "photos", {name: 2})


def test_a_name_with_spaces_is_one_source(checkout: Path) -> None:
    (checkout / "photos").rename(checkout / "my photos")
    own.prepare(Path("own"), "my photos", {})
    assert params.load(Path("own/params.yaml")).fetch.source == [str(checkout / "my photos")]
