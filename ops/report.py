"""The report on a model in production: a service's journal in, figures out, as text, JSON or one HTML page.

    catsdogs report journal/ --url http://localhost:8000 --html report.html

Feedback belongs to the last prediction before it with its id, or if there is none to the one after it, which another
replica wrote; of several for one prediction the last counts.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from ops.served import Served
from shared import drift, journal
from shared.contract import CLASSES, Actual, Histogram
from shared.intervals import Interval, wilson
from shared.journal import ChallengerLine, FeedbackLine, PredictionLine, Unreadable
from shared.metrics import (
    ConfusionMatrix,
    ReliabilityBin,
    calibration_error,
    confusion_counts,
    log_losses,
    reliability_bins,
)

STAGES: Final = ("queue", "decode", "infer", "total")


class LiveQuality(msgspec.Struct, frozen=True, kw_only=True):
    """Quality by the feedback on pictures of one animal; ``confusion[true][predicted]``.

    ``accuracy`` is of the ``answered`` ones, as in the metric ``catsdogs_live_accuracy``; all else counts the predicted
    label, whatever the verdict, and so does ``with_unsure``.
    """

    feedback: int
    answered: int
    accuracy: Interval | None
    with_unsure: Interval
    log_loss: float
    calibration_error: float
    confusion: ConfusionMatrix
    reliability: tuple[ReliabilityBin, ...]


class OtherPictures(msgspec.Struct, frozen=True, kw_only=True):
    """Pictures that show neither animal, or both, by the feedback; ``answered`` had another verdict than "unsure"."""

    feedback: int
    answered: int


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds in a stage."""

    p50: float
    p90: float
    p99: float
    largest: float


class ModelShare(msgspec.Struct, frozen=True, kw_only=True):
    """One model's part of the journal; ``feedback`` is on its answers to pictures of one animal, as ``accuracy`` is."""

    predictions: int
    unsure: Interval
    feedback: int
    accuracy: Interval | None


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """The drift of one signal: its index, and the index that chance stays below in 95 of 100 cases."""

    psi: float
    by_chance: float
    says: Literal["as validated", "shifted a little", "shifted"]
    reference: Histogram
    counts: tuple[int, ...]


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """Pictures that one model answered against those it was validated on."""

    model: str
    predictions: int
    signals: dict[str, Signal]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report. ``orphans`` is feedback whose prediction is not in the files."""

    files: int
    predictions: int
    feedback_lines: int
    orphans: int
    unreadable: int
    first: datetime | None
    last: datetime | None
    verdicts: dict[str, int]
    unsure: Interval | None
    unsure_because: dict[str, int]
    looked_again: Interval | None
    quality: LiveQuality | None
    others: dict[str, OtherPictures]
    models: dict[str, ModelShare]
    latency: dict[str, Latency]
    drift: Drift | None


@dataclass
class JournalContent:
    """Content of a journal: its predictions, and by their index what the pictures show."""

    predictions: list[PredictionLine] = field(default_factory=list)
    truth: dict[int, Actual] = field(default_factory=dict)
    feedback_lines: int = 0
    orphans: int = 0
    unreadable: int = 0


def read(files: Iterable[Path]) -> JournalContent:
    """Read a journal's files and match each feedback with its prediction.

    Raises:
        OSError: a file cannot be read.
    """
    content = JournalContent()
    latest: dict[str, int] = {}
    early: dict[str, list[Actual]] = {}
    for line in journal.read(files):
        match line:
            case PredictionLine():
                latest[line.id] = len(content.predictions)
                content.predictions.append(line)
            case FeedbackLine():
                content.feedback_lines += 1
                if line.id in latest:
                    content.truth[latest[line.id]] = line.label
                else:
                    early.setdefault(line.id, []).append(line.label)
            case Unreadable():
                content.unreadable += 1
            case ChallengerLine():
                pass  # `promote --shadow` has the comparison
    for id_, labels in early.items():
        if id_ in latest:
            content.truth.setdefault(latest[id_], labels[-1])
        else:
            content.orphans += len(labels)
    return content


def make_report(paths: Iterable[Path], served: Served | None) -> Report:
    """Make the report.

    Args:
        paths: files and folders of a journal.
        served: the model that drift is measured for; None leaves drift out.

    Raises:
        JournalError: a path does not exist.
        OSError: a file cannot be read.
    """
    files = journal.gather(paths)
    content = read(files)
    predictions = content.predictions
    # Smallest and largest rather than first and last: a clock may have been set back.
    times = [line.time for line in predictions]
    unsure = sum(line.verdict == "unsure" for line in predictions)
    again = sum(line.again for line in predictions)
    return Report(
        files=len(files),
        predictions=len(predictions),
        feedback_lines=content.feedback_lines,
        orphans=content.orphans,
        unreadable=content.unreadable,
        first=min(times, default=None),
        last=max(times, default=None),
        verdicts={verdict: sum(line.verdict == verdict for line in predictions) for verdict in (*CLASSES, "unsure")},
        unsure=wilson(unsure, len(predictions)) if predictions else None,
        unsure_because=dict(Counter(line.unsure_because for line in predictions if line.unsure_because)),
        looked_again=wilson(again, len(predictions)) if predictions else None,
        quality=live_quality(content),
        others={label: others for label in ("neither", "both") if (others := _others(content, label)).feedback},
        models=_models(content),
        latency=_latency(predictions) if predictions else {},
        drift=_drift(predictions, served) if served else None,
    )


def live_quality(content: JournalContent) -> LiveQuality | None:
    """Measure the predictions that have feedback on pictures of one animal; None if there are none."""
    pairs = [(content.predictions[place], label) for place, label in content.truth.items() if label in CLASSES]
    if not pairs:
        return None
    right = np.array([line.label == label for line, label in pairs])
    answered = np.array([line.verdict != "unsure" for line, _ in pairs])
    confidence = np.array([max(line.probabilities.values()) for line, _ in pairs])
    probabilities = np.array([[line.probabilities[label] for label in CLASSES] for line, _ in pairs])
    labels = np.array([CLASSES.index(label) for _, label in pairs])
    predicted = np.array([CLASSES.index(line.label) for line, _ in pairs])
    bins = reliability_bins(confidence, right)
    return LiveQuality(
        feedback=len(pairs),
        answered=int(answered.sum()),
        accuracy=wilson(int((right & answered).sum()), int(answered.sum())) if answered.any() else None,
        with_unsure=wilson(int(right.sum()), len(pairs)),
        log_loss=float(log_losses(probabilities, labels).mean()),
        calibration_error=calibration_error(bins),
        confusion=confusion_counts(labels, predicted),
        reliability=bins,
    )


def _others(content: JournalContent, label: Actual) -> OtherPictures:
    verdicts = [content.predictions[place].verdict for place, actual in content.truth.items() if actual == label]
    return OtherPictures(feedback=len(verdicts), answered=sum(verdict != "unsure" for verdict in verdicts))


def _models(content: JournalContent) -> dict[str, ModelShare]:
    """Each model's part, in order of appearance."""
    shares: dict[str, ModelShare] = {}
    for model in dict.fromkeys(line.model for line in content.predictions):
        places = [place for place, line in enumerate(content.predictions) if line.model == model]
        right = [
            content.predictions[place].verdict == content.truth[place]
            for place in places
            if content.truth.get(place) in CLASSES and content.predictions[place].verdict != "unsure"
        ]
        unsure = sum(content.predictions[place].verdict == "unsure" for place in places)
        shares[model] = ModelShare(
            predictions=len(places),
            unsure=wilson(unsure, len(places)),
            feedback=len(right),
            accuracy=wilson(sum(right), len(right)) if right else None,
        )
    return shares


def _latency(predictions: list[PredictionLine]) -> dict[str, Latency]:
    stages = np.array([(line.queue_ms, line.decode_ms, line.infer_ms) for line in predictions])
    values = np.column_stack([stages, stages.sum(1)])
    found = np.quantile(values, [0.5, 0.9, 0.99, 1], axis=0).round(3)
    return {stage: Latency(*map(float, column)) for stage, column in zip(STAGES, found.T, strict=True)}


def _drift(predictions: list[PredictionLine], served: Served) -> Drift:
    """Compare the pictures that this model answered with its reference; no signal where it answered none."""
    lines = [line for line in predictions if line.model == served.version]
    values = {
        "confidence": [max(line.probabilities.values()) for line in lines],
        "brightness": [line.brightness for line in lines],
        "familiarity": [line.familiarity for line in lines],
    }
    signals: dict[str, Signal] = {}
    for name in drift.SIGNALS if lines else ():
        reference = drift.merged(getattr(served.reference, name))
        places = Counter(drift.place(reference.edges, value) for value in values[name])
        counts = tuple(places[bin_] for bin_ in range(len(reference.counts)))
        index = drift.psi(reference.counts, counts)
        chance = drift.by_chance(len(counts), sum(reference.counts), len(lines))
        signals[name] = Signal(
            psi=index, by_chance=chance, says=_says(index, chance), reference=reference, counts=counts
        )
    return Drift(model=served.version, predictions=len(lines), signals=signals)


def _says(index: float, chance: float) -> Literal["as validated", "shifted a little", "shifted"]:
    if index < max(0.1, chance):
        return "as validated"
    return "shifted a little" if index < 0.25 else "shifted"
