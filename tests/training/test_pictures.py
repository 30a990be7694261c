"""How training reads its pictures: the same for every reader."""

import shutil
from pathlib import Path

import pytest
import torch

from shared.pixels import decode
from training import pictures
from training.augmentation import augmentation
from training.labels import Decision
from training.params import Train
from training.pictures import Pictures
from training.stage import StageError


@pytest.fixture
def side(prepared: Path, tmp_path: Path) -> Path:
    """One side, to change."""
    shutil.copytree(prepared / "val", tmp_path / "data/processed_split/val")
    return tmp_path / "data/processed_split/val"


@pytest.mark.parametrize("size", [224, 96])
def test_pictures_are_the_prepared_ones_as_the_service_would_resize_them(side: Path, size: int) -> None:
    data = Pictures(side, side=size)
    assert len(data) == len(data.paths) == len(list(side.glob("*/*.webp")))
    for index, path in enumerate(data.paths):
        picture, label = data[index]
        assert (picture.permute(1, 2, 0).numpy() == decode(path.read_bytes()).square(size)).all()
        assert (data.array(index) == picture.permute(1, 2, 0).numpy()).all()
        assert ("cats", "dogs")[label] == path.parent.name


def test_a_broken_picture_is_named(side: Path) -> None:
    data = Pictures(side)
    path = data.paths[5]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(StageError, match=rf"{path.name}.*run `catsdogs prepare` again"):
        data[5]


def test_a_set_can_be_drawn_from_with_repeats(side: Path) -> None:
    data, drawn = Pictures(side), Pictures(side)
    drawn.take([3, 3, 0])
    assert [len(drawn), drawn.labels] == [3, [data.labels[index] for index in (3, 3, 0)]]
    assert torch.equal(drawn[1][0], data[3][0])


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
    assert torch.equal(followed[row][0], plain[plain.paths.index(dog)][0])


def test_augmentation_is_for_training_only_and_the_same_in_any_process(prepared: Path, section: Train) -> None:
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
