"""A match: two model files on the same photos, their accuracy, size and speed, and which one wins."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import onnxruntime

from shared import exam
from shared.contract import CLASSES
from shared.intervals import Interval
from shared.metrics import log_losses
from shared.pixels import pixels
from training.comparison import Comparison, Difference, compare, compare_means
from training.graph import runner
from training.stage import StageError, progress

MARGIN: Final = 0.01
SMALLER: Final = 0.99  # of the champion's bytes, or less
# Largest share of the champion's time for a photo that counts as faster. Measured four times, one file against itself,
# 1,306 photos on two busy cores: 0.995 to 1.000.
FASTER: Final = 0.95


@dataclass(frozen=True)
class Match:
    """Champion and candidate on the same photos: first and second of the comparison, in this order everywhere."""

    right: Comparison
    log_loss: Difference
    log_losses: tuple[float, float]
    sizes: tuple[int, int]  # bytes
    milliseconds: tuple[float, float]  # median of a photo on one thread, decoding not counted
    speed: float  # median over the photos of the candidate's time by the champion's

    def figures(self) -> dict[str, str]:
        """The comparison as a version's tags."""
        right = self.right
        figures: dict[str, Any] = {
            "test_photos": right.n,
            "only_champion_right": right.only_first_right,
            "only_candidate_right": right.only_second_right,
            "p_value": right.p_value,
            "accuracy_difference": _interval(right.difference),
            "champion_accuracy": _interval(right.first),
            "candidate_accuracy": _interval(right.second),
            "log_loss_difference": _interval(self.log_loss),
            "champion_log_loss": self.log_losses[0],
            "candidate_log_loss": self.log_losses[1],
            "champion_bytes": self.sizes[0],
            "candidate_bytes": self.sizes[1],
            "champion_milliseconds": self.milliseconds[0],
            "candidate_milliseconds": self.milliseconds[1],
            "time_ratio": self.speed,
        }
        return {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in figures.items()}

    def table(self, rival: str) -> str:
        """The comparison for a person; ``rival`` is what the champion is called."""

        def row(what: str, champion: str, candidate: str, difference: str = "") -> str:
            return f"{what:<10}{champion:>26}{candidate:>26}   {difference}".rstrip()

        right, loss = self.right, self.log_loss
        difference = right.difference
        return "\n".join(
            (
                row(f"{right.n:,} photos", rival, "candidate", "candidate less champion, 95 % interval"),
                row(
                    "right",
                    right.first.text(),
                    right.second.text(),
                    f"{difference.value:+.2%} ({difference.low:+.2%} to {difference.high:+.2%})",
                ),
                row(
                    "log loss",
                    f"{self.log_losses[0]:.4f}",
                    f"{self.log_losses[1]:.4f}",
                    f"{loss.value:+.4f} ({loss.low:+.4f} to {loss.high:+.4f})",
                ),
                row("file", *(f"{size / 1e6:.2f} MB" for size in self.sizes)),
                row("one photo", *(f"{time:.2f} ms" for time in self.milliseconds)),
            )
        )


@dataclass(frozen=True)
class PromotionDecision:
    """Whether the candidate serves from now on, and why, in words."""

    promote: bool
    reason: str


def decide(match: Match, margin: float = MARGIN) -> PromotionDecision:
    """Promote a candidate that is significantly better, or not worse and smaller or faster.

    - Significantly better: more photos right, and McNemar's p below 0.05.
    - Not worse: it is not significantly worse, and the 95 % interval of the difference in accuracy ends above
      ``-margin``. The second part is needed because on few photos nothing is significant, so a worse model
      would pass for lack of evidence.
    - Smaller: at least 1 % fewer bytes. Faster: at least 5 % less time, the median over the photos of the two times'
      ratio, both measured in turns on one thread.

    The difference in log loss is shown and recorded, but does not decide.
    """
    verdict = match.right.describe("the champion", "the candidate")
    if match.right.significant:
        return PromotionDecision(match.right.difference.value > 0, verdict)
    low = match.right.difference.low
    if not low > -margin:
        return PromotionDecision(
            False, f"{verdict}, but it may be worse by {-low:.2%} of the photos, more than {margin:.2%}"
        )
    gains = []
    if match.sizes[1] <= SMALLER * match.sizes[0]:
        gains.append(f"{1 - match.sizes[1] / match.sizes[0]:.0%} smaller")
    if match.speed <= FASTER:
        gains.append(f"{1 - match.speed:.0%} faster")
    return PromotionDecision(bool(gains), f"{verdict}, and it is {' and '.join(gains) or 'neither smaller nor faster'}")


def play(champion: bytes, candidate: bytes, folder: Path) -> Match:
    """Run both models on every photo of ``folder/{cats,dogs}``, in turns.

    Raises:
        StageError: there are no photos.
    """
    paths = sorted(folder.glob("*/*.png"))
    if not paths:
        raise StageError(f"{folder}: no pictures found; run `catsdogs prepare` first")
    labels = np.array([CLASSES.index(path.parent.name) for path in paths])
    runs = (single_threaded(champion), single_threaded(candidate))
    probabilities = np.empty((2, len(paths), 2), np.float32)
    seconds = np.empty((2, len(paths)))
    for photo, path in enumerate(progress(paths, "comparing")):
        batch = pixels(path.read_bytes())[np.newaxis]
        # They take turns to go first: the second finds the picture in the CPU cache.
        for side in (0, 1) if photo % 2 else (1, 0):
            began = perf_counter()
            probabilities[side, photo] = runs[side](batch).probabilities[0]
            seconds[side, photo] = perf_counter() - began
    right = probabilities.argmax(2) == labels
    losses = [log_losses(probabilities[side], labels) for side in (0, 1)]
    medians = np.median(seconds, axis=1) * 1000
    return Match(
        right=compare(right[0], right[1]),
        log_loss=compare_means(losses[0], losses[1]),
        log_losses=(float(losses[0].mean()), float(losses[1].mean())),
        sizes=(len(champion), len(candidate)),
        milliseconds=(float(medians[0]), float(medians[1])),
        speed=float(np.median(seconds[1] / seconds[0])),
    )


def single_threaded(model: bytes) -> exam.Run:
    """Run the file as a lane of the service does, on one thread, which depends least on what the other cores do."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return runner(model, options)


def _interval(interval: Interval | Difference) -> str:
    return f"{interval.value:.6g} (95 % {interval.low:.6g} to {interval.high:.6g})"
