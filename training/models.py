"""Networks by name, all of the same form: normalise, trunk, mean over places, linear head.

That form is what makes the evidence map free. With global average pooling and a linear head, the difference of the two
logits is the mean over places of the difference of their class-activation maps (Zhou et al. 2016,
https://arxiv.org/abs/1512.04150, equation 2); so each place's share in the answer is known exactly.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Final

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import feature_extraction, get_model, get_model_weights, list_models

from shared.pixels import SIZE
from training import whole_batch
from training.efficientnet_lite import VARIANTS, efficientnet_lite
from training.stage import StageError

DROPOUT: Final = 0.2
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
HALF: Final = (0.5, 0.5, 0.5)
LARGEST: Final = 2**31 - 2**24  # bytes of weights: an ONNX file holds 2 GB, and the graph and the exam need some


class Classifier(nn.Module):
    """A trunk with the head that the contract's outputs need.

    Args:
        trunk: float [n, 3, side, side], normalised, to a feature map [n, channels, h, w].
        stages: the trunk's parts from input to output, for freezing the first few.
        mean: of each colour, in 0..1.
        std: of each colour, in 0..1.
        pretrained: whether the trunk has pretrained weights (batch statistics are then frozen too).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        stages: list[nn.Module],
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        *,
        pretrained: bool,
    ) -> None:
        """Find the trunk's channels with one blank picture, and add a linear head."""
        super().__init__()
        self.trunk = trunk
        self.pretrained = pretrained
        self.stages = stages
        with torch.no_grad():
            channels = copy.deepcopy(trunk).eval()(torch.zeros(1, 3, SIZE, SIZE)).shape[1]
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(channels, 2)
        self.frozen = 0
        whole_batch.spread(self)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def feature_map(self, image: Tensor) -> Tensor:
        """Take uint8 [n, 3, side, side] and return float [n, channels, h, w]."""
        result: Tensor = self.trunk((image.to(self.mean.dtype) - self.mean) / self.std)
        return result

    def forward(self, image: Tensor) -> Tensor:
        """Take uint8 [n, 3, side, side] and return logits float [n, 2]."""
        logits: Tensor = self.head(self.dropout(self.feature_map(image).mean((2, 3))))
        return logits

    def freeze(self, stages: int) -> str:
        """Freeze the first ``stages`` stages; returns what was done, for the log."""
        if not self.pretrained:
            return "nothing: there are no pretrained weights to keep"
        self.frozen = min(stages, len(self.stages))
        for stage in self.stages[: self.frozen]:
            stage.requires_grad_(False)
        return (
            f"the first {self.frozen} of {len(self.stages)} stages and all batch statistics keep their ImageNet values"
        )

    def train(self, mode: bool = True) -> "Classifier":
        """Switch to training mode, except for what is frozen.

        Batch statistics of a pretrained trunk stay frozen: updating them from small batches cost more accuracy than
        fine-tuning gained.
        """
        super().train(mode)
        if mode and self.pretrained:
            for module in self.trunk.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
            for stage in self.stages[: self.frozen]:
                stage.eval()
        return self


def depthwise_in_float32(network: nn.Module) -> None:
    """Have depthwise convolutions learn in float32 where a processor's autocast has the rest in bfloat16.

    In bfloat16 their backward pass takes up to five times as long (training/NOTES.md). Without gradients they stay in
    bfloat16, since forward it is faster.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.forward = partial(_in_float32, module.forward)  # type: ignore[method-assign]


def _in_float32(forward: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
        return forward(image)
    with torch.autocast("cpu", enabled=False):
        return forward(image.float()).to(image.dtype)


def build(name: str, *, pretrained: bool) -> Classifier:
    """Make the network called ``name``.

    Raises:
        StageError: there is no such network, or its weights cannot be downloaded.
    """
    if name == "simple_cnn":
        return _simple_cnn()
    if name in VARIANTS:
        return _efficientnet_lite(name, pretrained)
    if name in list_models(module=torchvision.models):
        return _from_torchvision(name, pretrained)
    raise StageError(
        f"no model called {name!r}; use {', '.join(VARIANTS)}, simple_cnn or one of torchvision's classifiers"
    )


def _simple_cnn() -> Classifier:
    """The two convolutions that tutorials start from, pooled rather than flattened: 0.2 MB instead of 95."""
    stages: list[nn.Module] = [
        nn.Sequential(_convolution(3, 32, stride=2), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(4)),
        nn.Sequential(_convolution(32, 64), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(4)),
    ]
    return Classifier(nn.Sequential(*stages), stages, pretrained=False)


def _convolution(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    # Normalisation takes a bias away again. Its gradient is 0 but for rounding, and Adam takes whole steps along that.
    return nn.Conv2d(before, after, 5, stride=stride, padding=2, bias=False)


def _efficientnet_lite(name: str, pretrained: bool) -> Classifier:
    network = efficientnet_lite(name, pretrained=pretrained)
    return Classifier(network, network.stages, HALF, HALF, pretrained=pretrained)


def _from_torchvision(name: str, pretrained: bool) -> Classifier:
    """Cut any torchvision classifier after its last spatial feature map, found by tracing one picture."""
    try:
        weights = get_model_weights(name).DEFAULT if pretrained else None
        network = get_model(name, weights=weights)
    except OSError as error:
        raise StageError(f"the ImageNet weights of {name} could not be downloaded: {error}") from error
    size = sum(parameter.nbytes for parameter in network.parameters())
    if size > LARGEST:
        raise StageError(
            f"{name} has {size / 1e9:.1f} GB of weights, and an ONNX file holds 2 GB: choose a smaller one"
        )
    # GoogLeNet and Inception expect values normalised by HALF. Their ImageNet weights come with a conversion to it that
    # a network built without them, as for the export, lacks; so Classifier does it.
    converts = hasattr(network, "transform_input")
    if converts:
        network.transform_input = False
    node, shape = _last_map(network)
    extractor = feature_extraction.create_feature_extractor(network, {node: "map"})
    trunk = _TorchvisionTrunk(extractor, tokens=len(shape) == 3)
    features = getattr(extractor, "features", extractor)
    stages = [child for child in features.children() if any(True for _ in child.parameters())]
    norm = (HALF, HALF) if converts else (IMAGENET_MEAN, IMAGENET_STD)
    return Classifier(trunk, stages, *norm, pretrained=pretrained)


class _TorchvisionTrunk(nn.Module):
    def __init__(self, extractor: nn.Module, *, tokens: bool) -> None:
        super().__init__()
        self.extractor = extractor
        self.tokens = tokens

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.extractor(image)["map"]
        if not self.tokens:
            return result
        # A vision transformer: [n, 1 + h*w, channels] with the class token in front.
        side = round((result.shape[1] - 1) ** 0.5)
        return torch.unflatten(result[:, 1:].transpose(1, 2), 2, (side, side))


def _last_map(network: nn.Module) -> tuple[str, torch.Size]:
    """Name and shape of the last node whose output has spatial positions: [1, c, h>1, w>1], or [1, tokens, c]."""
    _, nodes = feature_extraction.get_graph_node_names(network)
    probe = feature_extraction.create_feature_extractor(copy.deepcopy(network), nodes[1:]).eval()
    with torch.no_grad():
        outputs = probe(torch.zeros(1, 3, SIZE, SIZE))
    maps = [(node, out.shape) for node, out in outputs.items() if isinstance(out, Tensor) and out.ndim == 4]
    spread = [(node, shape) for node, shape in maps if min(shape[2:]) > 1]
    tokens = [
        (node, out.shape)
        for node, out in outputs.items()
        if isinstance(out, Tensor) and out.ndim == 3 and (out.shape[1] - 1) ** 0.5 % 1 == 0 and out.shape[1] > 2
    ]
    found = tokens if tokens and spread and "class_token" in dict(network.named_parameters()) else spread
    return found[-1]
