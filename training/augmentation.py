"""What training does to its pictures, and only training: validation and test see them as they are.

The photos that people upload differ from the training set above all in sharpness, framing and light, so that is what
is varied. Everything is drawn from torch's generator, which the data set seeds for each picture of each epoch.
"""

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
            v2.ColorJitter(params.brightness, params.contrast, params.saturation, params.hue),
            RandomRescale(*params.rescale),
        ]
    )


_GREY = [128, 128, 128]


class RandomRescale(torch.nn.Module):
    """Scale a picture down by a random factor and up again: a photo that was small, or not quite in focus."""

    def __init__(self, low: float, high: float) -> None:
        """Draw the factor from ``low`` to ``high``; a picture at a factor above 0.95 is left alone."""
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
