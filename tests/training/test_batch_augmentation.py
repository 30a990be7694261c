"""Augmenting a batch at once against one picture after the other, on a CPU."""

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.conftest import ROOT
from training import pictures
from training.augmentation import augmentation
from training.batch_augmentation import InLoaders, OnDevice, augmenter
from training.params import Augmentation, Train

CPU = torch.device("cpu")
NOTHING: dict[str, Any] = {
    "flip": 0.0, "turn": 0.0, "frame": 0.0, "rotation": 0.0, "crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0),
    "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "grey": 0.0, "dark": 0.0, "rescaled": 0.0,
    "rescale": (0.12, 0.8), "sharpness": (1.0, 1.0), "noise": 0.0, "covered": 0.0, "jpeg": (100, 100),
}  # fmt: skip
# One step each, and by how many levels a picture may differ in the mean: by rounding, and by the JPEG encoder's.
STEPS: dict[str, tuple[dict[str, Any], float]] = {
    "none": ({}, 0.2),
    "flip": ({"flip": 0.5}, 0.2),
    "turn": ({"turn": 1.0}, 0.2),
    "frame": ({"frame": 1.0}, 0.2),
    "crop": ({"crop_scale": (0.2, 1.0), "crop_ratio": (0.67, 1.5)}, 0.25),
    "rotation": ({"rotation": 15.0}, 0.4),
    "colour": ({"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.02}, 0.4),
    "grey": ({"grey": 1.0}, 0.2),
    "dark": ({"dark": 1.0}, 0.2),
    "rescaled": ({"rescaled": 1.0}, 0.35),
    "sharpness": ({"sharpness": (0.0, 2.5)}, 0.4),
    "noise": ({"noise": 1.0}, 0.2),
    "covered": ({"covered": 1.0}, 0.2),
    "bad JPEG": ({"jpeg": (20, 20)}, 0.8),
    "good JPEG": ({"jpeg": (90, 90)}, 1.0),
}


@pytest.fixture(scope="module")
def photos() -> list[Tensor]:
    """Of the sides of prepared pictures."""
    with Image.open(ROOT / "tests/cat.jpg") as cat:
        made = [np.array(cat.resize((side, side))) for side in (180, 224, 260, 320)]
    return [torch.from_numpy(photo).permute(2, 0, 1).contiguous() for photo in made]


def apart(params: Augmentation, photos: list[Tensor], side: int = 224) -> Tensor:
    """Mean difference of each of 24 pictures, in levels of 0..255; both ways draw the same."""
    one, batch = augmentation(params, side), OnDevice(params, side, CPU)
    singles, items = [], []
    for number in range(24):
        torch.manual_seed(number)
        singles.append(one(photos[number % len(photos)]))
        state = torch.get_rng_state()
        torch.manual_seed(number)
        items.append((batch.transform(photos[number % len(photos)]), number % 2))
        assert torch.equal(torch.get_rng_state(), state)
    loaded, labels = batch.collate(items)
    made = batch.finish(loaded)
    assert (made.dtype, made.shape, labels.tolist()) == (torch.uint8, (24, 3, side, side), [0, 1] * 12)
    return (made.float() - torch.stack(singles).float()).abs().mean((1, 2, 3))


@pytest.mark.parametrize("step", STEPS)
def test_a_step_gives_the_same_picture_in_a_batch(step: str, photos: list[Tensor]) -> None:
    change, most = STEPS[step]
    differences = apart(msgspec.convert(NOTHING | change, Augmentation), photos)
    assert float(differences.max()) <= most


@pytest.mark.parametrize("side", [224, 260])
def test_all_steps_together_do(side: int, photos: list[Tensor], section: Train) -> None:
    params = msgspec.structs.replace(section.augmentation, sharpness=(0.0, 2.5))
    differences = apart(params, photos, side)
    assert float(differences.mean()) < 1.5
    # One level before sharpening or saving may be several after it.
    assert float(differences.max()) < 4


def test_different_draws_give_pictures_far_apart(photos: list[Tensor], section: Train) -> None:
    batch = OnDevice(section.augmentation, 224, CPU)
    torch.manual_seed(1)
    one, other = batch.finish(batch.collate([(batch.transform(photos[1]), 0) for _ in range(2)])[0])
    assert float((one.float() - other.float()).abs().mean()) > 10


def test_a_gpu_takes_batches_and_a_cpu_does_not(section: Train) -> None:
    assert isinstance(augmenter(section.augmentation, 224, torch.device("cuda")), OnDevice)
    assert isinstance(augmenter(section.augmentation, 224, CPU), InLoaders)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_come_through_loader_processes(photos: list[Tensor], section: Train, workers: int) -> None:
    class Some(torch.utils.data.Dataset[tuple[Any, int]]):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            torch.manual_seed(index)
            return batch.transform(photos[index]), index

    batch = OnDevice(section.augmentation, 224, CPU)
    loader = pictures.loader(Some(), [[0, 1], [2, 3]], workers, batch.collate)
    made = torch.cat([batch.finish(loaded) for loaded, _ in loader])
    torch.manual_seed(3)
    alone = batch.finish(batch.collate([(batch.transform(photos[3]), 3)])[0])[0]
    assert float((made[3].float() - alone.float()).abs().mean()) < 0.1
