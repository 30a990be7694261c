"""Data that cannot be learned from, through the commands: refused where it is first known, in one plain line."""

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.conftest import blobs, draw_photos
from tests.training.conftest import write_params
from training import cli, labels
from training.labels import Decision

FETCHED = {"data/names.csv", "reports/fetch.json"}
STAGES: dict[str, click.Command] = {
    stage.name: stage for stage in (cli.fetch, cli.audit, cli.split, cli.prepare, cli.suspects, cli.train) if stage.name
}


def call(stage: str) -> Result:
    return CliRunner().invoke(STAGES[stage], [])


def pipeline(folder: Path, photos: Path, last: str, **sections: Mapping[str, object]) -> Result:
    """Run the stages up to the last, which may fail; the ones before it must not."""
    write_params(folder, fetch={"source": [str(photos)]}, **sections)
    for stage in STAGES:
        result = call(stage)
        if stage == last:
            return result
        assert result.exit_code == 0, result.output
    raise AssertionError(f"no stage {last}")


def refusal(result: Result) -> str:
    """The one line that the command said, besides its bars."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    (line,) = lines
    assert line.startswith("Error: ")
    return line


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"params.yaml"}


def put(folder: Path, label: str, images: list[Image.Image], quality: int = 75) -> Path:
    (folder / label).mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        image.save(folder / label / f"{number}.jpg", quality=quality)
    return folder


def swap(photos: Path, numbers: range) -> None:
    """File the cats of these numbers under the dogs, and the dogs under the cats."""
    cats, dogs = photos / "PetImages/Cat", photos / "PetImages/Dog"
    for number in numbers:
        (cats / f"{number}.jpg").rename(photos / "aside.jpg")
        (dogs / f"{number}.jpg").rename(cats / f"{number}.jpg")
        (photos / "aside.jpg").rename(dogs / f"{number}.jpg")


def test_a_data_set_with_one_class(in_folder: Path, tmp_path: Path) -> None:
    photos = put(tmp_path / "photos", "Cat", [blobs(number) for number in range(5)])
    (photos / "Dog").mkdir()
    assert "no files of dogs in" in refusal(pipeline(in_folder, photos, "fetch"))
    assert files(in_folder) == set()


def test_a_class_of_files_that_are_no_photos(in_folder: Path, tmp_path: Path) -> None:
    photos = put(tmp_path / "photos", "Cat", [blobs(number) for number in range(5)])
    (photos / "Dog").mkdir()
    for number in range(4):
        (photos / f"Dog/{number}.jpg").write_bytes(b"no photo")
    said = refusal(pipeline(in_folder, photos, "audit"))
    assert "5 cats and 0 dogs are usable of 9 files (left out: 4 corrupt)" in said
    assert {name for name in files(in_folder) if not name.startswith("data/raw/")} == FETCHED


def test_three_photos(in_folder: Path, tmp_path: Path) -> None:
    photos = put(tmp_path / "photos", "Cat", [blobs(1), blobs(2)])
    put(photos, "Dog", [blobs(3)])
    said = refusal(pipeline(in_folder, photos, "audit"))
    assert "2 cats and 1 dogs are usable of 3 files (left out: none)" in said
    assert said.endswith("training, validation and test need at least 3 of each")
    assert {name for name in files(in_folder) if not name.startswith("data/raw/")} == FETCHED


def test_photos_that_are_all_the_same(in_folder: Path, tmp_path: Path) -> None:
    photos = put(tmp_path / "photos", "Cat", [blobs(1)] * 10)
    put(photos, "Dog", [blobs(1)] * 10)
    said = refusal(pipeline(in_folder, photos, "audit"))
    assert "0 cats and 0 dogs are usable of 20 files (left out: 20 cross_class)" in said
    assert not (in_folder / "data/audit.csv").exists()


def test_one_photo_of_each_class_saved_again_and_again(in_folder: Path, tmp_path: Path) -> None:
    photos = put(tmp_path / "photos", "Cat", [blobs(1)] * 10)
    for number in range(10):
        put(photos, f"{number}/Dog", [blobs(2)], quality=95 - number)
    said = refusal(pipeline(in_folder, photos, "audit"))
    assert "1 cats and 1 dogs are usable of 20 files (left out: 9 duplicate, 9 near_duplicate)" in said
    assert not (in_folder / "data/audit.csv").exists()


def test_a_few_photos_that_one_side_would_have_none_of(in_folder: Path, tmp_path: Path) -> None:
    photos = put(tmp_path / "photos", "Cat", [blobs(number) for number in range(4)])
    put(photos, "Dog", [blobs(100 + number) for number in range(4)])
    assert "8 photos are too few to split: none left for " in refusal(pipeline(in_folder, photos, "split"))
    assert not (in_folder / "data/split.csv").exists()
    assert not (in_folder / "reports/split.json").exists()


@pytest.fixture
def half_swapped(in_folder: Path, tmp_path: Path) -> Path:
    """The stages up to prepare have run on photos of which every second pair has its labels swapped."""
    photos = draw_photos(tmp_path / "photos", 60)
    swap(photos, range(0, 60, 2))
    sides = {"train": 0.6, "val": 0.2}
    assert pipeline(in_folder, photos, "prepare", split=sides).exit_code == 0
    return in_folder


def test_half_of_the_labels_swapped(half_swapped: Path) -> None:
    before = files(half_swapped)
    said = refusal(call("suspects"))
    assert "labels look swapped in " in said
    assert "suspects.swapped allows 20%" in said
    assert {name for name in files(half_swapped) - before if "/decoded/" not in name} == set()


def test_half_of_the_labels_swapped_and_suspects_never_asked(half_swapped: Path) -> None:
    write_params(half_swapped, train={"model": "efficientnet_lite0", "pretrained": True, "probe_pictures": 60})
    said = refusal(call("train"))
    assert "the labels look swapped or mixed up: a probe fitted on the other pictures is right on " in said
    assert not (half_swapped / "models").exists()
    assert not list((half_swapped / "data").glob("checkpoints/*"))


def test_half_of_the_labels_swapped_and_a_network_that_knows_nothing_yet(half_swapped: Path) -> None:
    write_params(half_swapped, train={"epochs": 2})
    result = call("train")
    assert result.exit_code == 0
    assert "is no better than guessing: it learned too little, or the labels are mixed up" in result.stdout


def test_a_few_wrong_labels_are_named_and_what_was_decided_stands_beside_them(
    in_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = draw_photos(tmp_path / "photos", 40)
    swap(photos, range(2))
    assert pipeline(in_folder, photos, "prepare", split={"train": 0.6, "val": 0.2}).exit_code == 0
    moved = [row["sha256"] for row in read(in_folder / "data/split.csv") if row["path"].endswith(("/0.jpg", "/1.jpg"))]
    looked_at = next(row for row in read(in_folder / "data/split.csv") if row["sha256"] == moved[0])
    decision = Decision(moved[0], looked_at["label"], "relabel", "the other animal")  # type: ignore[arg-type]
    monkeypatch.setattr(labels, "decisions", lambda: {moved[0][:20]: decision})

    result = call("suspects")
    assert result.exit_code == 0
    assert "3 suspects not reviewed: see reports/suspects.png, decide in " in result.stdout
    rows = read(in_folder / "data/suspects.csv")
    assert {row["photo"] for row in rows} == {sha256[:20] for sha256 in moved}
    assert [row["probability"] for row in rows] == sorted(row["probability"] for row in rows)
    for row in rows:
        assert (in_folder / f"data/processed_split/{row['side']}/{row['label']}/{row['photo']}.webp").exists()
        known = ("relabel", "the other animal") if row["photo"] == moved[0][:20] else ("", "")
        assert (row["decision"], row["reason"]) == known
    assert json.loads((in_folder / "reports/suspects.json").read_text()) == {
        "photos": 80,
        "suspects": 4,
        "decided": {"keep": 0, "relabel": 1, "exclude": 0},
        "undecided": 3,
    }
    with Image.open(in_folder / "reports/suspects.png") as sheet:
        assert sheet.width > 1000


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_without_pretrained_features_no_label_is_judged_and_that_is_said(work: Path) -> None:
    write_params(work, suspects={"pretrained": False})
    result = call("suspects")
    assert result.exit_code == 0
    assert "labels not checked: efficientnet_lite0 has no pretrained features to check them with" in result.stdout
    assert read(work / "data/suspects.csv") == []
    assert json.loads((work / "reports/suspects.json").read_text())["photos"] == 0
    assert (work / "reports/suspects.png").exists()


def test_suspects_before_prepare_says_what_to_run(in_folder: Path) -> None:
    write_params(in_folder)
    assert refusal(call("suspects")).endswith("run `catsdogs prepare` first")
    assert files(in_folder) == set()


def test_pictures_of_one_side_gone(work: Path, prepared: Path) -> None:
    (work / "data/processed_split").unlink()
    shutil.copytree(prepared, work / "data/processed_split")
    shutil.rmtree(work / "data/processed_split/val/dogs")
    assert "processed_split/val: expected pictures of both classes" in refusal(call("train"))
    assert not (work / "models").exists()
