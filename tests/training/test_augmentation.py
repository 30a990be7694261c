"""What augmentation does to colours, sharpness and framing, against torchvision's own functions."""

import colorsys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from tests.conftest import blobs
from training.augmentation import RandomColour, RandomRescale, RandomSharpness, augmentation
from training.params import Train

COLOURS = {"grey": (128, 128, 128), "red": (160, 80, 80), "green": (80, 160, 80), "blue": (80, 80, 160)}


@pytest.fixture
def photo() -> Tensor:
    return torch.from_numpy(np.array(blobs(3, (224, 224)))).permute(2, 0, 1).contiguous()


def plain(colour: tuple[int, int, int]) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8).contiguous()


@contextmanager
def highest_draws() -> Iterator[None]:
    """Every draw from 0..1 comes out as 1: each factor is the largest of its range."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", torch.ones)
        yield


def apart(one: Tensor, other: Tensor) -> int:
    """Largest difference, in levels of 0..255."""
    return int((one.int() - other.int()).abs().max())


def hue(picture: Tensor) -> float:
    return colorsys.rgb_to_hsv(*(picture[:, 0, 0].double() / 255).tolist())[0]


def test_no_range_is_no_change(photo: Tensor) -> None:
    assert apart(RandomColour(0, 0, 0, 0)(photo), photo) <= 1
    assert torch.equal(RandomSharpness(1, 1)(photo), photo)
    assert torch.equal(RandomRescale(1, 1)(photo), photo)


@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS)
def test_brightness_contrast_and_saturation_are_torchvision_s(colour: tuple[int, int, int]) -> None:
    picture = plain(colour)
    with highest_draws():
        brighter, starker, stronger = (RandomColour(*ranges)(picture) for ranges in np.diag([0.3] * 4)[:3])
    assert apart(brighter, functional.adjust_brightness(picture, 1.3)) <= 1
    assert apart(starker, functional.adjust_contrast(picture, 1.3)) <= 1
    assert apart(stronger, functional.adjust_saturation(picture, 1.3)) <= 1


def test_contrast_turns_about_the_whole_picture_s_mean(photo: Tensor) -> None:
    with highest_draws():
        assert apart(RandomColour(0, 0.3, 0, 0)(photo), functional.adjust_contrast(photo, 1.3)) <= 2


def test_hue_leaves_grey_alone_and_turns_every_colour_the_same_way_at_the_same_luma() -> None:
    turned = {}
    with highest_draws():
        for name, colour in COLOURS.items():
            turned[name] = RandomColour(0, 0, 0, 0.05)(plain(colour))
    assert apart(turned.pop("grey"), plain(COLOURS["grey"])) <= 1
    for name, picture in turned.items():
        before = plain(COLOURS[name])
        # A turn in YIQ is not the same angle in HSV for every colour, but it is of the size asked for.
        assert 0.03 < (hue(before) - hue(picture)) % 1 < 0.08
        assert apart(functional.rgb_to_grayscale(picture), functional.rgb_to_grayscale(before)) <= 1


def test_a_picture_cannot_leave_its_range(photo: Tensor) -> None:
    with highest_draws():
        moved = RandomColour(1, 1, 1, 0.5)(photo)
    assert moved.dtype == torch.uint8
    assert (int(moved.min()), int(moved.max())) == (0, 255)


def test_blurring_takes_detail_away_and_sharpening_adds_it(photo: Tensor) -> None:
    def detail(picture: Tensor) -> float:
        return float((picture[:, :, 1:].float() - picture[:, :, :-1].float()).abs().mean())

    assert detail(RandomSharpness(0, 0)(photo)) < detail(photo) < detail(RandomSharpness(2.5, 2.5)(photo))
    assert detail(RandomRescale(0.25, 0.25)(photo)) < detail(photo)
    assert RandomRescale(0.25, 0.25)(photo).shape == photo.shape


def test_the_whole_of_it_follows_from_the_seed_and_nothing_else(photo: Tensor, section: Train) -> None:
    params = msgspec.structs.replace(section.augmentation, sharpness=(0.0, 2.5), jpeg=(30, 95))
    transform, again = augmentation(params), augmentation(params)
    torch.manual_seed(1)
    one = transform(photo)
    torch.manual_seed(1)
    assert torch.equal(one, again(photo))
    torch.manual_seed(2)
    assert not torch.equal(one, transform(photo))
    assert (one.shape, one.dtype) == ((3, 224, 224), torch.uint8)


def test_the_best_quality_means_no_jpeg_at_all(section: Train) -> None:
    none, some = (msgspec.structs.replace(section.augmentation, jpeg=jpeg) for jpeg in ((100, 100), (30, 95)))
    steps = [type(step).__name__ for step in augmentation(none).transforms]
    assert "JPEG" not in steps
    assert [type(step).__name__ for step in augmentation(some).transforms] == [*steps, "JPEG"]
