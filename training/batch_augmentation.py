"""The augmentation of :mod:`training.augmentation` for whole batches, on a GPU.

A core augments 300 pictures a second one by one, so several of them are needed for what one GPU learns from. Here the
loader processes only decode, cut out the crop and draw what is to be done, in the same order from the same generator:
0.5 ms a picture rather than 3.3. The rest is done to a batch at once; a core would take 8 ms a picture for that. The
result is the same but for rounding; JPEG is imitated without libjpeg's integers.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import default_collate
from torchvision.transforms import v2

from training.augmentation import (
    GREY,
    YIQ,
    RandomColour,
    RandomDark,
    RandomNoise,
    RandomRescale,
    RandomSharpness,
    augmentation,
)
from training.params import Augmentation

Params = dict[str, Any]
BLOCK: Final = 8


class Augmenter(Protocol):
    """Makes pictures to learn from: some of it in the loader processes, some in the process that learns."""

    def transform(self, picture: Tensor) -> Any:
        """What a loader does to a prepared picture, uint8 [3, h, h]."""

    def collate(self, items: list[Any]) -> Any:
        """Make a batch of pairs of what ``transform`` returned and a label."""

    def finish(self, images: Any) -> Tensor:
        """What is left to do to a batch; returns uint8 [n, 3, side, side] on the device."""


def augmenter(params: Augmentation, side: int, device: torch.device) -> Augmenter:
    """What augments pictures best for a network on this device."""
    return OnDevice(params, side, device) if device.type == "cuda" else InLoaders(params, side, device)


class InLoaders:
    """One picture after the other, in the loader processes."""

    def __init__(self, params: Augmentation, side: int, device: torch.device) -> None:
        """Make the transform."""
        self.transform = augmentation(params, side)
        self.collate = default_collate
        self._device = device

    def finish(self, images: Tensor) -> Tensor:
        """See `Augmenter`."""
        return images.to(self._device)


class Drawn(NamedTuple):
    """A picture's crop, uint8 [3, h, w], and the parameters of each step that follows; None to leave it out."""

    crop: Tensor
    steps: list[Params | None]


class Step(NamedTuple):
    """A step of some pictures of a batch, int64 [m], and its parameters, [m, …] each."""

    some: Tensor
    params: dict[str, Tensor]


class Crops(NamedTuple):
    """Crops, uint8 [n, 3, h, w], each filled up with zeros; their sizes, int64 [n, 2]; steps, None of no picture."""

    crops: Tensor
    sizes: Tensor
    steps: list[Step | None]


class OnDevice:
    """A batch at once, on the device."""

    def __init__(self, params: Augmentation, side: int, device: torch.device) -> None:
        """Take the steps from the transform for single pictures."""
        steps = list(augmentation(params, side).transforms)
        crop = next(index for index, step in enumerate(steps) if isinstance(step, v2.RandomResizedCrop))
        self._before, self._crop, self._after = steps[:crop], steps[crop], steps[crop + 1 :]
        self._side = side
        self._device = device

    def transform(self, picture: Tensor) -> Drawn:
        """Turn, frame and crop a picture, which costs no arithmetic, and draw the rest."""
        for step in self._before:
            if (params := _draw(step, picture)) is not None:
                picture = _kind(step).transform(picture, params)
        at = _draw(self._crop, picture)
        assert at is not None
        crop = picture[:, at["top"] : at["top"] + at["height"], at["left"] : at["left"] + at["width"]]
        square = torch.empty((3, self._side, self._side), dtype=torch.uint8, device="meta")
        return Drawn(crop, [_draw(step, square) for step in self._after])

    def collate(self, items: list[tuple[Drawn, int]]) -> tuple[Crops, Tensor]:
        """See `Augmenter`."""
        sizes = torch.tensor([drawn.crop.shape[1:] for drawn, _ in items])
        height, width = sizes.amax(0).tolist()
        crops = torch.zeros((len(items), 3, height, width), dtype=torch.uint8)
        for place, (drawn, _) in zip(crops, items, strict=True):
            place[:, : drawn.crop.shape[1], : drawn.crop.shape[2]] = drawn.crop
        steps = [_together(drawn) for drawn in zip(*(drawn.steps for drawn, _ in items), strict=True)]
        return Crops(crops, sizes, steps), torch.tensor([label for _, label in items])

    def finish(self, images: Crops) -> Tensor:
        """See `Augmenter`."""
        sizes = images.sizes.to(self._device)
        sides = torch.full_like(sizes, self._side)
        pictures = _resized(images.crops.to(self._device, non_blocking=True).float(), sizes, sides, self._side)
        for step, drawn in zip(self._after, images.steps, strict=True):
            if drawn is not None:
                some = drawn.some.to(self._device)
                params = {name: value.to(self._device, non_blocking=True) for name, value in drawn.params.items()}
                pictures[some] = _STEPS[type(_kind(step))](pictures[some], params)
        return pictures.to(torch.uint8)


def _kind(step: v2.Transform) -> v2.Transform:
    """A step without its chance."""
    (inner,) = step.transforms if isinstance(step, v2.RandomApply) else [step]
    return inner


def _draw(step: v2.Transform, picture: Tensor) -> Params | None:
    """Draw a step's parameters as its ``forward`` would; None if it is to be left out."""
    for chance in (step, *(step.transforms if isinstance(step, v2.RandomApply) else [])):
        if hasattr(chance, "p") and torch.rand(1) >= chance.p:
            return None
    params: Params = _kind(step).make_params([picture])
    if isinstance(_kind(step), v2.RandomErasing) and params.pop("v") is None:  # it found no place for a box
        return None
    return params


def _together(drawn: Sequence[Params | None]) -> Step | None:
    """Put one step of each picture together; as few tensors as can be, for each takes a file between processes."""
    some = [index for index, params in enumerate(drawn) if params is not None]
    given = [params for params in drawn if params is not None]
    if not given:
        return None
    stacked = {}
    for name in given[0]:
        values = [params[name] for params in given]
        if isinstance(values[0], Tensor):
            largest = max(value.shape for value in values)  # noise has one channel or three
            stacked[name] = torch.stack([value.expand(largest) for value in values])
        else:
            stacked[name] = torch.tensor(values)
    return Step(torch.tensor(some), stacked)


def _each(values: Tensor) -> Tensor:
    """A number for each picture, to be broadcast over it: [m, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)


def _resized(pictures: Tensor, sizes: Tensor, to: Tensor, side: int) -> Tensor:
    """Resize the first rows and columns of each picture to as many as ``to`` says; the others are 0.

    A resize is linear, and so a product with a matrix on either side.

    Args:
        pictures: float32 [n, 3, h, w].
        sizes: int64 [n, 2], rows and columns of each picture that count.
        to: int64 [n, 2], likewise.
        side: of the result, [n, 3, side, side].
    """
    rows, columns = (
        _weights(sizes[:, axis], to[:, axis], side, pictures.shape[2 + axis])[:, None] for axis in range(2)
    )
    return (rows @ pictures @ columns.transpose(2, 3)).round_()


def _weights(size: Tensor, to: Tensor, rows: int, columns: int) -> Tensor:
    """Weights of an antialiased bilinear resize, float32 [n, rows, columns]: a triangle about each place's origin."""
    scale = (size / to).view(-1, 1, 1)
    row = torch.arange(rows, device=size.device).view(1, -1, 1)
    column = torch.arange(columns, device=size.device).view(1, 1, -1)
    weights = 1 - (column + 0.5 - scale * (row + 0.5)).abs() / scale.clamp(min=1)
    weights = weights.clamp_(min=0) * (column < size.view(-1, 1, 1)) * (row < to.view(-1, 1, 1))
    return weights / weights.sum(2, keepdim=True).clamp_(min=1e-6)


def _rotated(pictures: Tensor, params: dict[str, Tensor]) -> Tensor:
    angle = torch.deg2rad(params["angle"]).view(-1, 1)
    none = torch.zeros_like(angle)
    turn = torch.cat([angle.cos(), -angle.sin(), none, angle.sin(), angle.cos(), none], 1).view(-1, 2, 3)
    grid = functional.affine_grid(turn, [*pictures.shape], align_corners=False)
    # Less grey, so that what is outside is grey.
    return (functional.grid_sample(pictures - GREY, grid, align_corners=False) + GREY).round_()


def _flipped(pictures: Tensor, _: dict[str, Tensor]) -> Tensor:
    return pictures.flip(3)


def _recoloured(pictures: Tensor, params: dict[str, Tensor]) -> Tensor:
    colours = pictures.flatten(2)
    luma = torch.einsum("c,ncp->n", YIQ[0].to(pictures.device), colours).view(-1, 1, 1) / colours.shape[2]
    brightness, contrast = (params[name].view(-1, 1, 1) for name in ("brightness", "contrast"))
    moved = torch.baddbmm(luma * brightness * (1 - contrast), params["matrix"], colours)
    return moved.round_().clamp_(0, 255).view(pictures.shape)


def _grey(pictures: Tensor, _: dict[str, Tensor]) -> Tensor:
    weights = torch.tensor([0.2989, 0.587, 0.114], device=pictures.device).view(1, 3, 1, 1)  # torchvision's
    return (pictures * weights).sum(1, keepdim=True).floor_().expand_as(pictures)


def _darkened(pictures: Tensor, params: dict[str, Tensor]) -> Tensor:
    return (pictures * _each(params["factor"])).floor_()


def _rescaled(pictures: Tensor, params: dict[str, Tensor]) -> Tensor:
    side, small = pictures.shape[3], params["sides"]
    sides = torch.full_like(small, side)
    return _resized(_resized(pictures, sides, small, side), small, sides, side)


def _sharpened(pictures: Tensor, params: dict[str, Tensor]) -> Tensor:
    kernel = torch.full((3, 1, 3, 3), 1 / 13, device=pictures.device)
    kernel[:, :, 1, 1] = 5 / 13
    blurred = pictures.clone()
    blurred[:, :, 1:-1, 1:-1] = functional.conv2d(pictures, kernel, groups=3).round_()
    return torch.lerp(blurred, pictures, _each(params["factor"])).clamp_(0, 255).floor_()


def _noisy(pictures: Tensor, params: dict[str, Tensor]) -> Tensor:
    return (pictures + params["noise"]).clamp_(0, 255).floor_()


def _covered(pictures: Tensor, params: dict[str, Tensor]) -> Tensor:
    place = torch.arange(pictures.shape[3], device=pictures.device)
    top, height, left, width = (_each(params[name]) for name in "ihjw")
    down, right = place.view(1, 1, -1, 1), place.view(1, 1, 1, -1)
    box = (down >= top) & (down < top + height) & (right >= left) & (right < left + width)
    return pictures.masked_fill(box, GREY)


def _saved(pictures: Tensor, params: dict[str, Tensor]) -> Tensor:
    """JPEG with halved colours, as libjpeg's defaults are: ITU-T T.81, with the colours of JFIF 1.02."""
    side = pictures.shape[3]
    beyond = -side % (2 * BLOCK)
    to_ycc = torch.tensor(_TO_YCC, device=pictures.device)
    ycc = torch.einsum("dc,nchw->ndhw", to_ycc, functional.pad(pictures, (0, beyond, 0, beyond), "replicate")).round_()
    quality = params["quality"].view(-1, 1, 1)
    scale = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = torch.tensor([_LUMA, _CHROMA], device=pictures.device).view(2, 1, BLOCK, BLOCK)
    luma, chroma = ((tables * scale + 50) // 100).clamp_(1, 255)
    light = _coded(ycc[:, :1] - 128, luma)
    colour = functional.interpolate(
        _coded(functional.avg_pool2d(ycc[:, 1:], 2).round_(), chroma), scale_factor=2.0, mode="bilinear"
    )
    back = torch.linalg.inv(to_ycc)
    pictures = torch.einsum("dc,nchw->ndhw", back, torch.cat([light + 128, colour.round_()], 1))
    return pictures[:, :, :side, :side].round_().clamp_(0, 255)


def _coded(planes: Tensor, table: Tensor) -> Tensor:
    """Planes about 0, [n, c, h, w], after quantization of each block's cosine transform by [n, 8, 8]."""
    number = torch.arange(BLOCK, device=planes.device)
    cosines = torch.cos(torch.pi / BLOCK * (number + 0.5) * number[:, None]) * (2 / BLOCK) ** 0.5
    cosines[0] /= 2**0.5
    n, c, h, w = planes.shape
    blocks = planes.view(n, c, h // BLOCK, BLOCK, w // BLOCK, BLOCK).transpose(3, 4)
    table = table.view(n, 1, 1, 1, BLOCK, BLOCK)
    levels = (cosines @ blocks @ cosines.T / table).round_() * table
    decoded: Tensor = (cosines.T @ levels @ cosines).transpose(3, 4).reshape(planes.shape)
    return decoded.round_().clamp_(-128, 127)


_TO_YCC: Final = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
# ITU-T T.81, tables K.1 and K.2.
_LUMA: Final = [
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
]  # fmt: skip
_CHROMA: Final = [
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99,
    *[99] * 36,
]  # fmt: skip
# Each takes and returns whole levels of 0..255 in float32, [n, 3, side, side].
_STEPS: Final[dict[type[v2.Transform], Callable[[Tensor, dict[str, Tensor]], Tensor]]] = {
    v2.RandomRotation: _rotated,
    v2.RandomHorizontalFlip: _flipped,
    RandomColour: _recoloured,
    v2.Grayscale: _grey,
    RandomDark: _darkened,
    RandomRescale: _rescaled,
    RandomSharpness: _sharpened,
    RandomNoise: _noisy,
    v2.RandomErasing: _covered,
    v2.JPEG: _saved,
}
