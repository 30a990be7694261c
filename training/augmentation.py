"""Augmentation of the training pictures; validation and test pictures are not augmented.

The photos that people upload differ from the training set above all in sharpness, framing and light, so these
are varied. Everything is drawn from torch's generator, which the data set seeds for each picture of each epoch.
"""

import math
from typing import Final

import torch
from torch import Tensor
from torchvision.transforms import v2

from shared.pixels import SIZE
from training.params import Augmentation


def augmentation(params: Augmentation) -> v2.Transform:
    """Make the random transform of uint8 [3, 224, 224] pictures that ``params`` describe."""
    return v2.Compose(
        [
            v2.RandomRotation([-params.rotation, params.rotation], v2.InterpolationMode.BILINEAR, fill=_GREY),
            v2.RandomResizedCrop(SIZE, scale=params.crop_scale, ratio=params.crop_ratio, antialias=True),
            v2.RandomHorizontalFlip(params.flip),
            RandomColour(params.brightness, params.contrast, params.saturation, params.hue),
            RandomRescale(*params.rescale),
            RandomSharpness(*params.sharpness),
            *([v2.JPEG(params.jpeg)] if params.jpeg[0] < BEST_QUALITY else []),
        ]
    )


_GREY = [128, 128, 128]
BEST_QUALITY: Final = 100


class RandomColour(torch.nn.Module):
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

    def forward(self, picture: Tensor) -> Tensor:
        """Take and return uint8 [3, height, width]."""
        brightness, contrast, saturation = (1 + self.ranges * (2 * torch.rand(3) - 1)).tolist()
        angle = 2 * math.pi * self.hue * (2 * float(torch.rand(())) - 1)
        turn = torch.tensor(
            [
                [1, 0, 0],
                [0, saturation * math.cos(angle), -saturation * math.sin(angle)],
                [0, saturation * math.sin(angle), saturation * math.cos(angle)],
            ]
        )
        matrix = brightness * contrast * (torch.linalg.inv(_YIQ) @ turn @ _YIQ)
        colours = picture.flatten(1).float()
        middle = float(_YIQ[0] @ colours.mean(1)) * brightness
        moved = torch.addmm(torch.full((3, 1), middle * (1 - contrast)), matrix, colours)
        return moved.round_().clamp_(0, 255).to(torch.uint8).view(picture.shape)


# National Television System Committee, 1953: luma, and the two axes of colour.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


class RandomRescale(torch.nn.Module):
    """Scale a picture down by a random factor and up again: a photo that was small, or not quite in focus."""

    def __init__(self, low: float, high: float) -> None:
        """Draw the factor from ``low`` to ``high``; above 0.95 the picture is left as it is."""
        super().__init__()
        self.low, self.high = low, high

    def forward(self, picture: Tensor) -> Tensor:
        """Take and return uint8 [3, height, width]."""
        factor = self.low + (self.high - self.low) * float(torch.rand(()))
        if factor > 0.95:
            return picture
        height, width = picture.shape[-2:]
        small = v2.functional.resize(picture, [round(height * factor), round(width * factor)], antialias=True)
        result: Tensor = v2.functional.resize(small, [height, width], antialias=True)
        return result


class RandomSharpness(torch.nn.Module):
    """Blur a picture (factor below 1) or sharpen it (above 1), as cameras and image programs do."""

    def __init__(self, low: float, high: float) -> None:
        """Draw the factor from ``low`` to ``high``; with both at 1 nothing is done."""
        super().__init__()
        self.low, self.high = low, high

    def forward(self, picture: Tensor) -> Tensor:
        """Take and return uint8 [3, height, width]."""
        if self.low == self.high == 1:
            return picture
        factor = self.low + (self.high - self.low) * float(torch.rand(()))
        result: Tensor = v2.functional.adjust_sharpness(picture, factor)
        return result


def degrade(picture: Tensor) -> Tensor:
    """Make a small, badly compressed photo of a picture: 80 pixels a side, JPEG quality 30; uint8 [3, 224, 224]."""
    small = v2.functional.jpeg(v2.functional.resize(picture, [80, 80], antialias=True), 30)
    result: Tensor = v2.functional.resize(small, [SIZE, SIZE], antialias=True)
    return result
