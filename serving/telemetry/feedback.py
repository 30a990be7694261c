"""Feedback: which prediction it is about, and the accuracy that follows from it.

A prediction's id says what was answered, so no prediction is remembered. If there is a journal, the last feedback is
read back from it at start, so that a restart does not lose the live accuracy.
"""

import asyncio
import codecs
import contextlib
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from serving.engine.wire import Answer
from serving.errors import ProblemError
from serving.ids import Predicted, PredictionIds, recorded
from serving.messages import FeedbackRequest, FeedbackResponse, Prediction
from serving.settings import Settings
from serving.telemetry.journal import Journal
from serving.telemetry.logs import SERVICE
from serving.telemetry.samples import Decode, Samples
from shared import journal
from shared.contract import CLASSES, Actual
from shared.intervals import Interval, wilson
from shared.journal import ChallengerLine, FeedbackLine, PredictionLine

MAX_BYTES: Final = 65_536
# How many of the last feedbacks the live accuracy is computed from.
LIVE: Final = 1_000
# Of the journal, read back at start for that.
READ_BACK_BYTES: Final = 32_000_000


def parse(body: bytes | bytearray) -> FeedbackRequest:
    """Read the body of a request; a label may be in any case.

    Raises:
        ProblemError: ``malformed_request``.
    """
    try:
        said = msgspec.json.decode(body.removeprefix(codecs.BOM_UTF8))
        if isinstance(said, dict) and isinstance(label := said.get("label"), str):
            said["label"] = label.lower()
        return msgspec.convert(said, FeedbackRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError("malformed_request", f"invalid feedback: {error}") from error


class LiveAccuracy:
    """Whether the last ``LIVE`` feedbacks on one animal confirmed what was answered."""

    def __init__(self) -> None:
        """Make it empty."""
        self._right: OrderedDict[str, bool | None] = OrderedDict()

    def tell(self, id_: str, predicted: Predicted, actual: Actual) -> None:
        """Add feedback; a second one on the same prediction replaces the first."""
        counts = actual in CLASSES and not predicted.unsure
        self._put(id_, predicted.label == actual if counts else None)

    def share(self) -> Interval | None:
        """Share of right answers, None before the first feedback."""
        told = self._counted()
        return wilson(sum(told), len(told)) if told else None

    @property
    def feedback(self) -> int:
        """How many answers the share is computed from."""
        return len(self._counted())

    def follow(self, later: "LiveAccuracy") -> None:
        """Add everything in ``later``, as newer."""
        for id_, right in later._right.items():
            self._put(id_, right)

    def _put(self, id_: str, right: bool | None) -> None:
        self._right.pop(id_, None)
        self._right[id_] = right
        if len(self._right) > LIVE:
            self._right.popitem(last=False)

    def _counted(self) -> list[bool]:
        return [right for right in self._right.values() if right is not None]


class FeedbackStore:
    """Records predictions and feedback, from :meth:`start` to :meth:`close`, on one event loop."""

    def __init__(self, settings: Settings, decode: Decode) -> None:
        """Make it; nothing runs yet. ``decode`` is for `Samples`."""
        self.ids = PredictionIds(settings.id_key)
        self._live = LiveAccuracy()
        self.samples = Samples(settings, decode) if settings.samples else None
        self._journal: Journal | None = None
        if settings.journal:
            self._folder = Path(settings.journal).expanduser()
            self._journal = Journal(self._folder, settings.journal_file_bytes, settings.journal_files, self._remember)

    def start(self) -> None:
        """Start the writers; the journal's reads the journal back in its thread."""
        self._loop = asyncio.get_running_loop()
        if self._journal:
            self._journal.start()
        if self.samples:
            self.samples.start()

    async def close(self) -> None:
        """Write to disk what waits."""
        for writer in (self._journal, self.samples):
            if writer:
                await asyncio.to_thread(writer.close)

    def record(self, message: Prediction, answer: Answer, queued: float) -> PredictionLine:
        """Record one prediction; returns its line.

        Args:
            message: the prediction as sent to the client.
            answer: the lane's answer that it was made from.
            queued: seconds in the queue.
        """
        line = PredictionLine(
            time=datetime.now(UTC),
            id=message.id,
            label=message.predicted_label,
            verdict=message.verdict,
            unsure_because=message.unsure_because,
            probabilities={"cats": message.probabilities.cats, "dogs": message.probabilities.dogs},
            familiarity=message.familiarity,
            brightness=round(answer.brightness, 6),
            model=message.model,
            bytes=answer.size,
            queue_ms=round(queued * 1000, 3),
            decode_ms=round(answer.decode * 1000, 3),
            infer_ms=round(answer.infer * 1000, 3),
            again=answer.again,
        )
        if self._journal:
            self._journal.append(line)
        return line

    def challenged(self, line: PredictionLine, answer: Answer, model: str) -> None:
        """Record the challenger's answer to the picture of a prediction."""
        if self._journal:
            self._journal.append(
                ChallengerLine(
                    time=datetime.now(UTC),
                    id=line.id,
                    model=model,
                    label=answer.label,
                    verdict=answer.verdict,
                    probabilities={"cats": answer.cats, "dogs": answer.dogs},
                    again=answer.again,
                )
            )
        if self.samples and answer.verdict != line.verdict:
            self.samples.disagreed(line.id)

    def feedback(self, given: FeedbackRequest) -> FeedbackResponse:
        """Record what a picture showed; a second feedback on one prediction replaces the first in the accuracy.

        Raises:
            ProblemError: ``unknown_prediction``.
        """
        predicted = self.ids.read(given.id)
        if predicted is None:
            raise ProblemError("unknown_prediction", "no prediction of this service has this id")
        self._live.tell(given.id, predicted, given.label)
        if self.samples:
            self.samples.told(given.id, given.label)
        if self._journal:
            self._journal.append(FeedbackLine(time=datetime.now(UTC), id=given.id, label=given.label))
        return FeedbackResponse(
            id=given.id,
            label=given.label,
            predicted_label=predicted.label,
            correct=given.label == predicted.label if given.label in CLASSES else None,
        )

    def readings(self) -> dict[str, float]:
        """Values for the metrics; those without a value are left out."""
        readings: dict[str, float] = {"live_feedback": self._live.feedback}
        if accuracy := self._live.share():
            readings |= {
                "live_accuracy": accuracy.value,
                "live_accuracy_low": accuracy.low,
                "live_accuracy_high": accuracy.high,
            }
        if self._journal:
            readings |= {
                "journal_lines_total": self._journal.lines,
                "journal_dropped_total": self._journal.dropped,
                "journal_failing": float(self._journal.failures > 0),
                "journal_skipped_total": self._journal.skipped,
            }
        if self.samples:
            readings |= {
                "samples_written_total": self.samples.written,
                "samples_dropped_total": self.samples.dropped,
                "samples_failing": float(self.samples.failures > 0),
                "samples_stored": self.samples.stored,
                "samples_stored_bytes": self.samples.stored_bytes,
            }
        return readings

    def _remember(self) -> None:
        """Read the end of the journal back; runs in the writer's thread."""
        live = LiveAccuracy()
        try:
            if self._folder.exists():
                for line in journal.recent(self._folder, READ_BACK_BYTES):
                    if isinstance(line, FeedbackLine) and (predicted := recorded(line.id)):
                        live.tell(line.id, predicted, line.label)
        except OSError as error:
            SERVICE.warning("the journal cannot be read back", extra={"fields": {"reason": error.strerror}})
        # The service may have stopped meanwhile, and closed the loop.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._remembered, live)

    def _remembered(self, live: LiveAccuracy) -> None:
        live.follow(self._live)
        self._live = live
