"""Augmentation of the training pictures; validation and test pictures are not augmented.

The photos that people upload differ from the training set above all in sharpness, framing and light, so these
are varied. Everything is drawn from torch's generator, which the data set seeds for each picture of each epoch.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Final

import torch
from torch import Tensor
from torchvision.transforms import v2

from shared.pixels import SIZE
from training.params import Augmentation


def augmentation(params: Augmentation, side: int = SIZE) -> v2.Transform:
    """Make the random transform that ``params`` describe: uint8 [3, h, h] to uint8 [3, side, side]."""
    return v2.Compose(
        [
            *_sometimes(params.turn, RandomTurn()),
            *_sometimes(params.frame, RandomFrame()),
            v2.RandomResizedCrop(side, scale=params.crop_scale, ratio=params.crop_ratio, antialias=True),
            v2.RandomRotation([-params.rotation, params.rotation], v2.InterpolationMode.BILINEAR, fill=_GREY),
            v2.RandomHorizontalFlip(params.flip),
            RandomColour(params.brightness, params.contrast, params.saturation, params.hue),
            *_sometimes(params.grey, v2.Grayscale(3)),
            *_sometimes(params.dark, RandomDark()),
            *_sometimes(params.rescaled, RandomRescale(*params.rescale)),
            *([RandomSharpness(*params.sharpness)] if params.sharpness != (1, 1) else []),
            *_sometimes(params.noise, RandomNoise()),
            *_sometimes(params.covered, v2.RandomErasing(1.0, COVERED, COVERED_RATIO, value=_GREY)),
            *([v2.JPEG(params.jpeg)] if params.jpeg[0] < BEST_QUALITY else []),
        ]
    )


def _sometimes(chance: float, transform: torch.nn.Module) -> list[torch.nn.Module]:
    return [v2.RandomApply([transform], chance)] if chance else []


GREY: Final = 128
_GREY = [GREY] * 3
BEST_QUALITY: Final = 100
FRAME: Final = 0.5  # of the picture's side, at most, on each side of it
DARKEST: Final = 0.12
NOISE: Final = (4.0, 40.0)  # standard deviation, in levels of 0..255
COVERED: Final = (0.03, 0.45)  # share of the area
COVERED_RATIO: Final = (0.4, 2.5)


def _between(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


class Step(ABC, torch.nn.Module):
    """A step whose parameters are drawn apart, by the same methods as torchvision's."""

    @abstractmethod
    def make_params(self, pictures: list[Tensor]) -> dict[str, Any]:
        """Draw the parameters for a picture."""

    @abstractmethod
    def transform(self, picture: Tensor, params: dict[str, Any]) -> Tensor:
        """Do it to the picture."""

    def forward(self, picture: Tensor) -> Tensor:
        """Draw, and do it."""
        return self.transform(picture, self.make_params([picture]))


class RandomTurn(Step):
    """Turn a picture by 90, 180 or 270 degrees: cameras lie flat, and programs drop what EXIF says."""

    def make_params(self, _: list[Tensor]) -> dict[str, Any]:
        """Draw the number of quarters."""
        return {"quarters": int(torch.randint(1, 4, ()))}

    def transform(self, picture: Tensor, params: dict[str, Any]) -> Tensor:
        """Take and return uint8 [3, side, side]."""
        quarters: int = params["quarters"]
        return torch.rot90(picture, quarters, (1, 2))


class RandomFrame(Step):
    """Put one plain colour around a picture: bars at two sides, as of films, or at all four, as around a screenshot."""

    def make_params(self, pictures: list[Tensor]) -> dict[str, Any]:
        """Draw the padding, in pixels, and the colour."""
        height, width = pictures[0].shape[-2:]
        left, right, top, bottom = (torch.rand(4) * FRAME).tolist()
        bars = float(torch.rand(()))
        if bars < 1 / 3:
            left = right = 0.0
        elif bars < 2 / 3:
            top = bottom = 0.0
        padding = [round(left * width), round(top * height), round(right * width), round(bottom * height)]
        return {"padding": padding, "colour": [0, 255, int(torch.randint(0, 256, ()))][int(torch.randint(0, 3, ()))]}

    def transform(self, picture: Tensor, params: dict[str, Any]) -> Tensor:
        """Take uint8 [3, h, w]; return a larger one."""
        result: Tensor = v2.functional.pad(picture, params["padding"], [params["colour"]])
        return result


class RandomDark(Step):
    """Darken a picture as a photo without enough light: down to ``DARKEST``."""

    def make_params(self, _: list[Tensor]) -> dict[str, Any]:
        """Draw the factor."""
        return {"factor": _between(DARKEST, 0.6)}

    def transform(self, picture: Tensor, params: dict[str, Any]) -> Tensor:
        """Take and return uint8 [3, height, width]."""
        factor: float = params["factor"]
        return (picture * factor).to(torch.uint8)


class RandomNoise(Step):
    """Add normal noise, the same for all colours or of each its own."""

    def make_params(self, pictures: list[Tensor]) -> dict[str, Any]:
        """Draw the noise, float32 [1 or 3, height, width]."""
        channels = 3 if float(torch.rand(())) < 0.5 else 1
        return {"noise": torch.randn(channels, *pictures[0].shape[-2:]) * _between(*NOISE)}

    def transform(self, picture: Tensor, params: dict[str, Any]) -> Tensor:
        """Take and return uint8 [3, height, width]."""
        noise: Tensor = params["noise"]
        return (picture + noise).clamp_(0, 255).to(torch.uint8)


class RandomColour(Step):
    """Vary brightness, contrast, saturation and hue by one linear map of the colours, different for each picture.

    torchvision's ColorJitter goes through HSV for the hue: 8.3 ms a picture on one core where this takes 0.4. Here the
    hue is turned as the phase of the YIQ chrominance, which is linear.

    Args:
        brightness: the factor is drawn from 1 - brightness to 1 + brightness.
        contrast: the same, about the picture's mean luma.
        saturation: the same, about each pixel's luma.
        hue: largest turn either way, in parts of a full one.
    """

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        """Keep the ranges."""
        super().__init__()
        self.ranges = torch.tensor([brightness, contrast, saturation])
        self.hue = hue

    def make_params(self, _: list[Tensor]) -> dict[str, Any]:
        """Draw the map, float32 [3, 3], and what the mean luma is multiplied by and added."""
        brightness, contrast, saturation = (1 + self.ranges * (2 * torch.rand(3) - 1)).tolist()
        angle = 2 * math.pi * self.hue * (2 * float(torch.rand(())) - 1)
        turn = torch.tensor(
            [
                [1, 0, 0],
                [0, saturation * math.cos(angle), -saturation * math.sin(angle)],
                [0, saturation * math.sin(angle), saturation * math.cos(angle)],
            ]
        )
        matrix = brightness * contrast * (torch.linalg.inv(YIQ) @ turn @ YIQ)
        return {"matrix": matrix, "brightness": brightness, "contrast": contrast}

    def transform(self, picture: Tensor, params: dict[str, Any]) -> Tensor:
        """Take and return uint8 [3, height, width]."""
        colours = picture.flatten(1).float()
        middle = float(YIQ[0] @ colours.mean(1)) * params["brightness"]
        moved = torch.addmm(torch.full((3, 1), middle * (1 - params["contrast"])), params["matrix"], colours)
        return moved.round_().clamp_(0, 255).to(torch.uint8).view(picture.shape)


# National Television System Committee, 1953: luma, and the two axes of colour.
YIQ: Final = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


class RandomRescale(Step):
    """Scale a picture down and up again: a photo that was small, out of focus, or moved along one of its sides."""

    def __init__(self, low: float, high: float) -> None:
        """Draw the factors of height and width, each its own, from ``low`` to ``high``."""
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, pictures: list[Tensor]) -> dict[str, Any]:
        """Draw height and width in between, in pixels."""
        return {"sides": [max(1, round(side * _between(self.low, self.high))) for side in pictures[0].shape[-2:]]}

    def transform(self, picture: Tensor, params: dict[str, Any]) -> Tensor:
        """Take and return uint8 [3, height, width]."""
        small = v2.functional.resize(picture, params["sides"], antialias=True)
        result: Tensor = v2.functional.resize(small, [*picture.shape[-2:]], antialias=True)
        return result


class RandomSharpness(Step):
    """Blur a picture (factor below 1) or sharpen it (above 1), as cameras and image programs do."""

    def __init__(self, low: float, high: float) -> None:
        """Draw the factor from ``low`` to ``high``."""
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, _: list[Tensor]) -> dict[str, Any]:
        """Draw the factor."""
        return {"factor": _between(self.low, self.high)}

    def transform(self, picture: Tensor, params: dict[str, Any]) -> Tensor:
        """Take and return uint8 [3, height, width]."""
        result: Tensor = v2.functional.adjust_sharpness(picture, params["factor"])
        return result
