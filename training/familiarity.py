"""Familiarity: how much a picture looks like a cat or a dog at all, computed inside the graph from pooled features.

Where photos of other things are at hand (``export.others``), a logistic regression tells their features from those of
the training pictures (outlier exposure, Hendrycks et al. 2019, https://arxiv.org/abs/1812.04606, on features that are
there anyway). Photos of kinds that it never saw, leaving out a tenth of the others at a time: 98 % of animals and
people and 99 % of things lie below the 3rd percentile of pets, where the residual below gives 76 and 99 %.

Without such photos the measure is the share of a picture's deviation from the mean of the training pictures that lies
outside their first principal components: the residual of ViM (Wang et al. 2022, https://arxiv.org/abs/2203.10807,
section 4.1) relative to the deviation's length. A logistic curve maps it to 0..1: the median validation picture gets
0.9, the one at the 99th percentile 0.5. To a network that learned from few photos a blank picture may look like the
mean of them; so a regression tells pictures that show nothing from photos, and the lesser of both counts.
"""

from typing import Final

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

MOST_EXPLAINED: Final = 0.95
REGULARISED: Final = 1e-3  # the regression's C: there are more features than photos of other things


class Residual(nn.Module):
    """Pooled features float [n, channels] to the log-odds of being familiar, float [n].

    Args:
        features: of training pictures, float [n, channels].
        validation: features of validation pictures, for the scale.
        dimensions: principal components to leave out of the residual, at most.
    """

    mean: Tensor  # [channels]
    components: Tensor  # [channels, dimensions], orthonormal
    scale: Tensor  # [2]: steepness, and the residual share at which familiarity is 0.5

    def __init__(self, features: Tensor, validation: Tensor, dimensions: int) -> None:
        """Fit the components and the scale."""
        super().__init__()
        rows = features.double()
        mean = rows.mean(0)
        _, lengths, directions = torch.linalg.svd(rows - mean, full_matrices=False)
        # A small network puts nearly everything into a few components, and float32 cannot represent the rest.
        explained = lengths.square().cumsum(0) / lengths.square().sum()
        kept = max(1, min(dimensions, int((explained < MOST_EXPLAINED).sum())))
        self.register_buffer("mean", mean.float())
        self.register_buffer("components", directions[:kept].T.float().contiguous())
        middle, far = np.quantile(self.residual(validation).numpy(), [0.5, 0.99])
        steepness = np.log(9) / max(far - middle, 1e-3)
        self.register_buffer("scale", torch.tensor([steepness, far], dtype=torch.float32))

    def residual(self, pooled: Tensor) -> Tensor:
        """Share of the squared deviation from the mean that the components leave over, float [n] in 0..1."""
        deviation = pooled - self.mean
        explained = (deviation @ self.components).square().sum(1)
        return 1 - explained / deviation.square().sum(1).clamp_min(1e-12)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled features to log-odds."""
        steepness, far = self.scale
        odds: Tensor = steepness * (far - self.residual(pooled))
        return odds


class Learned(nn.Module):
    """Pooled features float [n, channels] to the log-odds of being familiar, float [n].

    Args:
        features: of training pictures, float [n, channels].
        others: features of photos of other things, likewise.
    """

    def __init__(self, features: Tensor, others: Tensor) -> None:
        """Fit the regression, both sides weighted alike."""
        super().__init__()
        rows = torch.cat([features, others])
        mean, std = rows.mean(0), rows.std(0).clamp_min(1e-6)
        pets = torch.cat([torch.ones(len(features)), torch.zeros(len(others))])
        found = LogisticRegression(C=REGULARISED, max_iter=1000, class_weight="balanced").fit(
            ((rows - mean) / std).numpy(), pets.numpy()
        )
        weight = torch.tensor(found.coef_, dtype=torch.float32) / std
        bias = torch.tensor(found.intercept_, dtype=torch.float32) - weight @ mean
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    weight: Tensor  # [1, channels]
    bias: Tensor  # [1]

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled features to log-odds."""
        return nn.functional.linear(pooled, self.weight, self.bias).squeeze(1)


class Lesser(nn.Module):
    """The smaller of two log-odds of being familiar, float [n]: what either finds strange is strange."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        """Of pooled features float [n, channels]."""
        super().__init__()
        self.one, self.other = one, other

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled features to log-odds."""
        return torch.minimum(self.one(pooled), self.other(pooled))
