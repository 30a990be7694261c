"""Figures for reports, MLflow and DVC. Each function returns a matplotlib figure and touches no file."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from shared import metrics
from shared.contract import CLASSES
from shared.intervals import Interval, wilson
from shared.metrics import Floats

CATS: Final = "#d1495b"
DOGS: Final = "#00798c"
GREY: Final = "#8d99ae"
COLOURS: Final = (GREY, DOGS, CATS, "#edae49", "#5f4b8b", "#3f7d20")


class HistoryLine(Protocol):
    """What a line of the training history must have."""

    @property
    def epoch(self) -> int: ...  # noqa: D102  # the names say it
    @property
    def train_loss(self) -> float: ...  # noqa: D102
    @property
    def val_loss(self) -> float: ...  # noqa: D102
    @property
    def val_accuracy(self) -> float: ...  # noqa: D102


def learning_curves(histories: Mapping[str, Sequence[HistoryLine]]) -> Figure:
    """Losses and validation accuracies by epoch, a colour for each network."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    losses, accuracies = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for colour, (name, history) in zip(itertools.cycle(COLOURS), histories.items(), strict=False):
        epochs = [line.epoch for line in history]
        losses.plot(epochs, [line.val_loss for line in history], "o-", color=colour, label=name)
        losses.plot(epochs, [line.train_loss for line in history], ":", color=colour)
        accuracies.plot(epochs, [line.val_accuracy for line in history], "o-", color=colour)
    longest = max(len(history) for history in histories.values())
    losses.set(title="log loss (dotted: training, augmented)")
    accuracies.set(title="accuracy on the validation set")
    for axes in (losses, accuracies):
        axes.set(xlabel="epoch", xticks=range(1, longest + 1))
        axes.grid(alpha=0.3)
    losses.legend(fontsize=8)
    return figure


def confusion_matrix(truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> Figure:
    """Counts by true and predicted class.

    Args:
        truth: int [n], class indices.
        predicted: int [n], class indices.
    """
    figure = Figure(figsize=(4.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    counts = np.array(metrics.confusion_counts(truth, predicted))
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


def contact_sheet(
    pictures: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str], title: str, columns: int = 6
) -> Figure:
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


def reliability(bins: Sequence[metrics.ReliabilityBin], title: str) -> Figure:
    """How often answers of a confidence are right.

    Args:
        bins: as :func:`shared.metrics.reliability_bins` makes them.
        title: over the figure.
    """
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    shares = [wilson(round(each.right * each.count), each.count) for each in bins]
    sure = [each.confidence for each in bins]
    low = [max(0.0, share.value - share.low) for share in shares]  # rounding can leave -1e-17
    high = [max(0.0, share.high - share.value) for share in shares]
    start = min(0.9, *sure, *(share.low for share in shares)) - 0.02
    axes.plot([start, 1], [start, 1], color=GREY, linestyle="--", label="as sure as right")
    axes.errorbar(
        sure, [share.value for share in shares], (low, high), fmt="o", color=DOGS, capsize=3, label="95 % interval"
    )
    axes.set(xlabel="mean confidence", ylabel="share right", title=title, xlim=(start, 1.005), ylim=(start, 1.005))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def risk_coverage(curves: Mapping[str, tuple[Floats, Floats]], chosen: Mapping[str, tuple[float, float]]) -> Figure:
    """Share wrong among the answered against the share answered; a point where each file's threshold lies.

    Args:
        curves: coverage and risk by name, [n] each.
        chosen: coverage and risk at the threshold, by name.
    """
    figure = Figure(figsize=(4.8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for colour, (name, (coverage, risk)) in zip(COLOURS[1:], curves.items(), strict=False):
        axes.plot(coverage, np.asarray(risk) * 100, color=colour, label=name)
        if name in chosen:
            axes.plot(chosen[name][0], chosen[name][1] * 100, "o", color=colour)
    axes.set(
        xlabel="share answered", ylabel="wrong among the answered, %", title="Risk and coverage", xlim=(0.5, 1.005)
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def familiarity(groups: Mapping[str, Floats], threshold: float) -> Figure:
    """Histograms of familiarity, one row for each group of photos, and the threshold below which none is answered."""
    figure = Figure(figsize=(7.4, 0.9 + 0.85 * len(groups)), layout="constrained")
    rows = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
    for axes, colour, (name, values) in zip(rows, itertools.cycle(COLOURS[1:]), groups.items(), strict=False):
        axes.hist(values, bins=np.linspace(0, 1, 41), color=colour)
        axes.axvline(threshold, color="black", linestyle=":")
        axes.set(yticks=())
        axes.set_ylabel(f"{name}\n({len(values):,})", rotation=0, ha="right", va="center")
        axes.spines[["top", "right", "left"]].set_visible(False)
    rows[-1].set_xlabel("familiarity (dotted: what lies left is not answered)")
    return figure


def intervals(rows: Mapping[str, Interval], title: str, baseline: str | None = None) -> Figure:
    """Shares with their intervals, one below the other, and a line through the baseline's value."""
    figure = Figure(figsize=(7.4, 0.9 + 0.36 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, share) in enumerate(rows.items()):
        low, high = max(0.0, share.value - share.low), max(0.0, share.high - share.value)
        colour = GREY if name == baseline else DOGS
        axes.errorbar(share.value * 100, place, xerr=([low * 100], [high * 100]), fmt="o", color=colour, capsize=3)
    if baseline is not None:
        axes.axvline(rows[baseline].value * 100, color=GREY, linestyle=":")
    axes.set(yticks=range(len(rows)), xlabel=title)
    axes.set_yticklabels(list(rows))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    return figure


def bars(groups: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Counts side by side: one cluster for each group, one bar for each name."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    names = list(next(iter(groups.values())))
    width = 0.8 / len(names)
    for offset, (name, colour) in enumerate(zip(names, (CATS, DOGS, GREY, *COLOURS), strict=False)):
        places = np.arange(len(groups)) + (offset - (len(names) - 1) / 2) * width
        heights = [group[name] for group in groups.values()]
        drawn = axes.bar(places, heights, width, color=colour, label=name)
        axes.bar_label(
            drawn, [f"{height:,.4g}" if height < 100 else f"{height:,.0f}" for height in heights], fontsize=8
        )
    axes.set(xticks=range(len(groups)), title=title)
    axes.set_xticklabels(list(groups))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    return figure


def file_costs(files: Mapping[str, tuple[float, float]]) -> Figure:
    """Milliseconds for a photo, and megabytes, of each file."""
    figure = Figure(figsize=(6.4, 0.9 + 0.45 * len(files)), layout="constrained")
    for place, (title, unit) in enumerate((("a photo on one thread", "ms"), ("size", "MB"))):
        axes = figure.add_subplot(1, 2, place + 1)
        values = [both[place] for both in files.values()]
        drawn = axes.barh(range(len(files)), values, color=[DOGS, CATS][: len(files)], height=0.6)
        axes.bar_label(drawn, [f"{value:.1f} {unit}" for value in values], padding=4)
        axes.set(title=title, yticks=range(len(files)), xticks=(), xlim=(0, max(values) * 1.35))
        axes.set_yticklabels(list(files))
        axes.invert_yaxis()
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure
