"""Layers that see the whole batch, of which each process has a part: the same whatever the number of processes."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from training import group


def spread(network: nn.Module) -> None:
    """Put these layers in the place of torch's own, wherever the network has them."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _batch_norm(child))
            elif isinstance(child, nn.Dropout | StochasticDepth):
                setattr(module, name, Drop(child.p, rows=isinstance(child, StochasticDepth)))


class Drop(nn.Module):
    """Dropout, or stochastic depth, drawn for the whole batch, of which this process takes the rows of its pictures.

    Args:
        p: the chance to be dropped.
        rows: whether a picture's row is dropped as one, and not value by value.
    """

    def __init__(self, p: float, *, rows: bool) -> None:
        """Keep them; ``batch_size`` is set before training."""
        super().__init__()
        self.p, self.rows = p, rows
        self.batch_size: int | None = None

    def forward(self, inner: Tensor) -> Tensor:
        """Take and return float [n, ...]."""
        if not self.training or not self.p:
            return inner
        shape = [1] * (inner.ndim - 1) if self.rows else inner.shape[1:]
        # As many draws for the last batch of an epoch as for a full one, so that no process needs to know its size.
        drawn = torch.rand(self.batch_size or len(inner), *shape, device=inner.device)
        kept = drawn[group.rank() :: group.size()][: len(inner)] >= self.p
        return inner * (kept / (1 - self.p)).to(inner.dtype)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the whole batch; torch's SyncBatchNorm is for GPUs only."""

    def forward(self, image: Tensor) -> Tensor:
        """Take and return float [n, channels, h, w]."""
        if not self.training or group.size() == 1:
            return super().forward(image)
        count = group.total(torch.tensor(image[:, 0].numel(), device=image.device)).item()
        values = image.to(self.weight.dtype)
        mean = _Total.apply(values.sum((0, 2, 3))) / count
        centred = values - mean.view(1, -1, 1, 1)
        variance = _Total.apply(centred.square().sum((0, 2, 3))) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        result: Tensor = centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return result.to(image.dtype)


def _batch_norm(given: nn.BatchNorm2d) -> BatchNorm:
    norm = BatchNorm(given.num_features, given.eps, given.momentum)
    norm.load_state_dict(given.state_dict())
    return norm


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, part: Tensor) -> Tensor:
        return group.total(part.clone())

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return group.total(gradients[0].clone())
