"""Figures for reports, MLflow and DVC. Each function returns a matplotlib figure and touches no file."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from shared.contract import CLASSES

CATS, DOGS = "#d1495b", "#00798c"


class HistoryLine(Protocol):
    """What a line of the training history must have."""

    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def train_loss(self) -> float: ...  # noqa: D102
    @property
    def train_accuracy(self) -> float: ...  # noqa: D102
    @property
    def val_loss(self) -> float: ...  # noqa: D102
    @property
    def val_accuracy(self) -> float: ...  # noqa: D102


def curves(history: Sequence[HistoryLine]) -> Figure:
    """Losses and accuracies by epoch, the best epoch marked."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [line.epoch for line in history]
    best = min(history, key=lambda line: line.val_loss).epoch
    for axes, title, train, val in (
        (
            figure.add_subplot(1, 2, 1),
            "log loss",
            [line.train_loss for line in history],
            [line.val_loss for line in history],
        ),
        (
            figure.add_subplot(1, 2, 2),
            "accuracy",
            [line.train_accuracy for line in history],
            [line.val_accuracy for line in history],
        ),
    ):
        axes.plot(epochs, train, "o-", color="#8d99ae", label="training (augmented)")
        axes.plot(epochs, val, "o-", color=DOGS, label="validation")
        axes.axvline(best, color=CATS, linestyle=":", label="kept")
        axes.set(title=title, xlabel="epoch", xticks=epochs)
        axes.grid(alpha=0.3)
    axes.legend()
    return figure


def confusion_matrix(truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> Figure:
    """Counts by true and predicted class.

    Args:
        truth: int [n], class indices.
        predicted: int [n], class indices.
    """
    figure = Figure(figsize=(4.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    counts = np.zeros((2, 2), int)
    np.add.at(counts, (truth, predicted), 1)
    axes.imshow(counts / counts.sum(1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(2, 2):
        axes.text(
            column,
            row,
            f"{counts[row, column]:,}",
            ha="center",
            va="center",
            fontsize=14,
            color="white" if row == column else "black",
        )
    axes.set(xticks=(0, 1), yticks=(0, 1), xlabel="predicted", ylabel="true")
    axes.set_xticklabels(CLASSES)
    axes.set_yticklabels(CLASSES)
    return figure


def sheet(pictures: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str], title: str, columns: int = 6) -> Figure:
    """Pictures in a grid, each with its caption.

    Args:
        pictures: uint8 [224, 224, 3] each.
        captions: one line for each.
        title: over the whole sheet.
        columns: pictures in a row.
    """
    rows = max(1, -(-len(pictures) // columns))
    figure = Figure(figsize=(columns * 2, rows * 2.3 + 0.5), layout="constrained")
    figure.suptitle(title)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True), 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(picture)
        axes.set_title(caption, fontsize=8)
        axes.axis("off")
    return figure
