"""Figures of the report. Each function returns a matplotlib figure and touches no file."""

from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.figure import Figure

from ops.report import ModelShare, Signal
from shared.intervals import wilson
from shared.metrics import ReliabilityBin

DOGS: Final = "#00798c"
GREY: Final = "#8d99ae"


def reliability(bins: Sequence[ReliabilityBin]) -> Figure:
    """How often answers of a confidence are right, with 95 % intervals."""
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
    axes.set(xlabel="mean confidence", ylabel="share right", xlim=(start, 1.005), ylim=(start, 1.005))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def drift(signals: Mapping[str, Signal]) -> Figure:
    """Shares of the pictures in each bin of each signal, next to the validation set's."""
    figure = Figure(figsize=(9.6, 3.1), layout="constrained")
    for axes, (name, signal) in zip(figure.subplots(1, len(signals), squeeze=False)[0], signals.items(), strict=True):
        places = range(len(signal.counts))
        for offset, colour, label, counts in (
            (-0.2, GREY, "validation set", signal.reference.counts),
            (0.2, DOGS, "this journal", signal.counts),
        ):
            shares = [100 * count / sum(counts) for count in counts]
            axes.bar([place + offset for place in places], shares, 0.4, color=colour, label=label)
        axes.set(title=f"{name}: PSI {signal.psi:.3f}", xticks=[place - 0.5 for place in range(len(places) + 1)])
        axes.set_xticklabels([f"{edge:g}" for edge in signal.reference.edges], fontsize=7, rotation=45)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("% of the pictures")
    figure.axes[0].legend(fontsize=8)
    return figure


def models(shares: Mapping[str, ModelShare]) -> Figure:
    """Accuracy of each model that has feedback, one below the other."""
    figure = Figure(figsize=(7.4, 0.9 + 0.4 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    for place, share in enumerate(shares.values()):
        if share.accuracy is not None:
            low, high = share.accuracy.value - share.accuracy.low, share.accuracy.high - share.accuracy.value
            error = ([max(0.0, low) * 100], [max(0.0, high) * 100])
            axes.errorbar(share.accuracy.value * 100, place, xerr=error, fmt="o", color=DOGS, capsize=3)
    axes.set(yticks=range(len(shares)), xlabel="right, % (95 % interval)", ylim=(len(shares) - 0.5, -0.5))
    axes.set_yticklabels(list(shares))
    axes.grid(axis="x", alpha=0.3)
    return figure
