"""Familiarity: how much a picture's features look like those of the training set, computed inside the graph.

The distance is Mahalanobis' to the nearer class mean, in the leading principal components of the pooled features (Lee
et al. 2018, https://arxiv.org/abs/1807.03888, there with all components). A logistic curve in the distance's logarithm
brings it to 0..1: the median validation picture gets 0.9, and the one at the 99th percentile 0.5.
"""

import numpy as np
import torch
from torch import Tensor, nn


class Familiarity(nn.Module):
    """Pooled features float [n, channels] to familiarity float [n] in 0..1.

    Args:
        features: of training pictures, float [n, channels].
        labels: int [n], their class indices.
        validation: features of validation pictures, for the scale.
        dimensions: principal components to keep, at most.
    """

    projection: Tensor  # [channels, dimensions], whitening
    means: Tensor  # [2, dimensions], of the classes, projected
    scale: Tensor  # [2]: steepness and the logarithm of the squared distance at which familiarity is 0.5

    def __init__(self, features: Tensor, labels: Tensor, validation: Tensor, dimensions: int) -> None:
        """Fit the components, the class means and the scale."""
        super().__init__()
        rows = features.double()
        means = torch.stack([rows[labels == label].mean(0) for label in (0, 1)])
        within = rows - means[labels]
        covariance = within.T @ within / len(within)
        # A little of the mean variance on the diagonal: with fewer pictures than channels some directions have none.
        covariance += torch.eye(len(covariance)) * covariance.diagonal().mean() * 1e-3
        variances, directions = torch.linalg.eigh(covariance)
        kept = min(dimensions, len(variances))
        projection = directions[:, -kept:] / variances[-kept:].sqrt()
        self.register_buffer("projection", projection.float())
        self.register_buffer("means", (means @ projection).float())
        self.register_buffer("scale", torch.tensor([1.0, 0.0]))
        distances = np.log(self.distance(validation).numpy())
        middle, far = np.quantile(distances, [0.5, 0.99])
        self.scale = torch.tensor([np.log(9) / max(far - middle, 1e-3), far], dtype=torch.float32)

    def distance(self, pooled: Tensor) -> Tensor:
        """Squared distance to the nearer class mean, float [n]."""
        offsets = (pooled @ self.projection).unsqueeze(1) - self.means
        result: Tensor = offsets.square().sum(2).amin(1)
        return result

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled features to familiarity."""
        steepness, far = self.scale
        return torch.sigmoid(steepness * (far - self.distance(pooled).clamp_min(1e-12).log()))
