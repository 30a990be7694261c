"""How training reads its pictures: decoded once, the same for whoever reads them, and few at a time."""

import os
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch

from shared.pixels import pixels
from tests.conftest import blobs
from training import pictures
from training.augmentation import augmentation
from training.labels import Decision
from training.params import Train
from training.pictures import BYTES, Pictures, decoded
from training.stage import StageError


@pytest.fixture
def side(prepared: Path, tmp_path: Path) -> Path:
    """One side, to change."""
    shutil.copytree(prepared / "val", tmp_path / "data/processed_split/val")
    return tmp_path / "data/processed_split/val"


def caches(side: Path) -> list[Path]:
    return sorted((side.parent.parent / "decoded").iterdir())


def test_pictures_are_the_service_s_pixels(side: Path) -> None:
    data = Pictures(side)
    assert len(data) == len(data.paths) == len(list(side.glob("*/*.png")))
    for index, path in enumerate(data.paths):
        picture, label = data[index]
        assert (picture.permute(1, 2, 0).numpy() == pixels(path.read_bytes())).all()
        assert ("cats", "dogs")[label] == path.parent.name


def test_nothing_is_decoded_twice(side: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Pictures(side)[0][0]
    monkeypatch.setattr("shared.pixels.pixels", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(Pictures(side)[0][0], first)


def test_a_changed_picture_is_decoded_anew_and_the_old_pixels_go(side: Path) -> None:
    old = Pictures(side)
    before, picture = caches(side), old[2][0]
    path = old.paths[2]
    blobs(99, (224, 224)).save(path)
    new = Pictures(side)
    assert (new[2][0].permute(1, 2, 0).numpy() == pixels(path.read_bytes())).all()
    assert not torch.equal(new[2][0], picture)
    assert len(caches(side)) == 1
    assert caches(side) != before


@pytest.mark.parametrize("change", ["added", "removed", "touched", "filed under the other animal"])
def test_whatever_changes_in_the_folder_makes_new_pixels(side: Path, change: str) -> None:
    path = Pictures(side).paths[0]
    before = caches(side)
    if change == "added":
        blobs(5, (224, 224)).save(path.with_name("added.png"))
    elif change == "removed":
        path.unlink()
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    else:
        path.rename(side / "dogs" / path.name)
    Pictures(side)
    assert len(caches(side)) == 1
    assert caches(side) != before


def test_another_pixel_procedure_makes_new_pixels(side: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Pictures(side)
    before = caches(side)
    monkeypatch.setattr("shared.pixels.DIGEST", "another procedure")
    Pictures(side)
    assert caches(side) != before


def test_a_broken_picture_is_named_and_leaves_no_pixels(side: Path) -> None:
    path = sorted(side.glob("*/*.png"))[5]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(StageError, match=rf"{path.name}.*run `catsdogs prepare` again"):
        Pictures(side)
    assert caches(side) == []


def test_neither_decoding_nor_reading_holds_the_whole_set_in_memory(tmp_path: Path) -> None:
    folder = tmp_path / "data/processed_split/train"
    for number in range(320):
        path = folder / ("cats", "dogs")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        blobs(0, (224, 224)).save(path) if number < 2 else shutil.copy(
            folder / path.parent.name / f"{number % 2}.png", path
        )
    tracemalloc.start()
    try:
        data = Pictures(folder)
        for index in range(len(data)):
            data[index]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert decoded(folder, data.paths).stat().st_size == 320 * BYTES
    assert peak < 160 * BYTES


def test_decisions_about_labels_are_followed(side: Path) -> None:
    plain = Pictures(side)
    cat = next(path for path in plain.paths if path.parent.name == "cats")
    dog = next(path for path in plain.paths if path.parent.name == "dogs")
    decided = {
        cat.stem: Decision("0" * 64, "cats", "exclude", "both"),
        dog.stem: Decision("1" * 64, "dogs", "relabel", "a cat"),
    }
    followed = Pictures(side, decided=decided)
    assert cat not in followed.paths
    assert len(followed) == len(plain) - 1
    row = followed.paths.index(dog)
    assert followed[row][1] == 0
    # The rows of the pixels still fit: leaving one out moves none of the others.
    assert torch.equal(followed[row][0], plain[plain.paths.index(dog)][0])


def test_augmentation_is_for_training_only_and_the_same_whoever_draws_it(prepared: Path, section: Train) -> None:
    plain = Pictures(prepared / "train")
    augmented = Pictures(prepared / "train", augmentation(section.augmentation), seed=5)
    again = Pictures(prepared / "train", augmentation(section.augmentation), seed=5)
    later = Pictures(prepared / "train", augmentation(section.augmentation), seed=6)
    assert torch.equal(plain[3][0], plain[3][0])
    torch.manual_seed(1)
    drawn = augmented[3][0]
    torch.manual_seed(2)
    assert torch.equal(drawn, again[3][0])
    assert not torch.equal(drawn, plain[3][0])
    assert not torch.equal(drawn, later[3][0])
    assert drawn.shape == (3, 224, 224)
    assert drawn.dtype == torch.uint8


def test_loader_processes_bring_the_same_batches(prepared: Path, section: Train) -> None:
    data = Pictures(prepared / "train", augmentation(section.augmentation), seed=5)
    batches = pictures.shuffled(len(data), 16, seed=1, epoch=0)[:3]
    here, there = (list(pictures.loader(data, batches, workers)) for workers in (0, 1))
    for (one, labels), (other, same) in zip(here, there, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(labels, same)


def test_every_epoch_has_every_picture_once_in_another_order() -> None:
    first, again, second = (pictures.shuffled(100, 32, seed=1, epoch=epoch) for epoch in (0, 0, 1))
    assert first == again != second
    assert sorted(index for batch in first for index in batch) == list(range(100))
    assert [len(batch) for batch in second] == [32, 32, 32, 4]


def test_one_class_alone_is_refused(side: Path) -> None:
    shutil.rmtree(side / "dogs")
    with pytest.raises(StageError, match="expected pictures of both classes"):
        Pictures(side)
