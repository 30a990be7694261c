"""Feedback: which prediction it is about, and the accuracy that follows from it.

The last predictions are remembered in memory. If there is a journal, they are read back from it at start, so that a
restart loses neither them nor the live accuracy.
"""

import asyncio
import codecs
import contextlib
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from serving.engine.wire import Answer, Verdict
from serving.errors import ProblemError
from serving.messages import FeedbackRequest, FeedbackResponse, Prediction
from serving.settings import Settings
from serving.telemetry.journal import Journal
from serving.telemetry.logs import SERVICE
from shared import journal
from shared.contract import CLASSES, Actual, Label
from shared.intervals import Interval, wilson
from shared.journal import FeedbackLine, PredictionLine

MAX_BYTES: Final = 65_536
# Between this number and twice this number of the last predictions can get feedback: 12 MB, measured.
REMEMBERED: Final = 50_000
# How many of the last feedbacks the live accuracy is computed from.
LIVE: Final = 1_000
# Read back at start: about REMEMBERED lines of predictions, and as many bytes again for feedback.
READ_BACK_BYTES: Final = 32_000_000
READ_BACK_SECONDS: Final = 5.0


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


class Said(NamedTuple):
    """What a prediction said: the likelier animal, and whether it was the answer or only the likelier one."""

    label: Label
    answered: bool


# All predictions share these four, which saves megabytes.
_SAID: Final = {said: said for said in [Said(label, answered) for label in CLASSES for answered in (True, False)]}


class RecentPredictions:
    """What the last predictions said by id, and whether the last feedbacks confirmed those that answered.

    There are two generations: when the young one is full, the old one is dropped as a whole, which costs nothing.
    """

    def __init__(self) -> None:
        """Make it empty."""
        self._young: dict[str, Said] = {}
        self._old: dict[str, Said] = {}
        self._right: OrderedDict[str, bool] = OrderedDict()

    def predicted(self, key: str, label: Label, verdict: Verdict) -> None:
        """Add a prediction."""
        self._add(key, _SAID[Said(label, verdict != "unsure")])

    def label(self, key: str) -> Label | None:
        """The predicted label, None if it is not remembered."""
        said = self._said(key)
        return said.label if said else None

    def told(self, key: str, label: Actual) -> None:
        """Add feedback; a second one on the same prediction replaces the first."""
        said = self._said(key)
        self._right.pop(key, None)
        if said and said.answered and label in CLASSES:
            self._tell(key, right=said.label == label)

    def accuracy(self) -> Interval | None:
        """Share right of the last ``LIVE`` answers with feedback on one animal, None before the first."""
        return wilson(sum(self._right.values()), len(self._right)) if self._right else None

    @property
    def feedback(self) -> int:
        """How many answers the accuracy is computed from."""
        return len(self._right)

    def follow(self, later: "RecentPredictions") -> None:
        """Add everything in ``later``, as newer."""
        for generation in (later._old, later._young):
            for key, said in generation.items():
                self._right.pop(key, None)
                self._add(key, said)
        for key, right in later._right.items():
            self._tell(key, right=right)

    def _said(self, key: str) -> Said | None:
        return self._young.get(key) or self._old.get(key)

    def _add(self, key: str, said: Said) -> None:
        if len(self._young) >= REMEMBERED:
            self._young, self._old = {}, self._young
        self._young[key] = said

    def _tell(self, key: str, *, right: bool) -> None:
        self._right[key] = right
        if len(self._right) > LIVE:
            self._right.popitem(last=False)


class FeedbackStore:
    """Records predictions and feedback, from :meth:`start` to :meth:`close`, on one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Make it; nothing runs yet."""
        self._memory = RecentPredictions()
        self._read_back = asyncio.Event()
        self._journal: Journal | None = None
        if settings.journal:
            self._folder = Path(settings.journal).expanduser()
            self._journal = Journal(self._folder, settings.journal_file_bytes, settings.journal_files, self._remember)
        else:
            self._read_back.set()

    def start(self) -> None:
        """Start the journal's writer, if there is one; it reads the journal back in its thread."""
        self._loop = asyncio.get_running_loop()
        if self._journal:
            self._journal.start()

    async def close(self) -> None:
        """Write the waiting lines to disk."""
        if self._journal:
            await asyncio.to_thread(self._journal.close)

    def record(self, message: Prediction, answer: Answer, queued: float) -> None:
        """Record one prediction.

        Args:
            message: the prediction as sent to the client.
            answer: the lane's answer that it was made from.
            queued: seconds in the queue.
        """
        self._memory.predicted(message.id, message.predicted_label, message.verdict)
        if self._journal:
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
            self._journal.append(line)

    async def feedback(self, given: FeedbackRequest) -> FeedbackResponse:
        """Record what a picture showed; a second feedback on one prediction replaces the first in the accuracy.

        Raises:
            ProblemError: ``unknown_prediction``; ``not_ready`` if reading the journal back takes too long.
        """
        predicted = self._memory.label(given.id)
        if predicted is None and not self._read_back.is_set():
            await self._be_read_back()
            predicted = self._memory.label(given.id)
        if predicted is None:
            raise ProblemError("unknown_prediction", "no prediction with this id is remembered")
        self._memory.told(given.id, given.label)
        if self._journal:
            self._journal.append(FeedbackLine(time=datetime.now(UTC), id=given.id, label=given.label))
        correct = given.label == predicted if given.label in CLASSES else None
        return FeedbackResponse(id=given.id, label=given.label, predicted_label=predicted, correct=correct)

    def readings(self) -> dict[str, float]:
        """Values for the metrics; those without a value are left out."""
        readings: dict[str, float] = {"live_feedback": self._memory.feedback}
        if accuracy := self._memory.accuracy():
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
        return readings

    async def _be_read_back(self) -> None:
        try:
            async with asyncio.timeout(READ_BACK_SECONDS):
                await self._read_back.wait()
        except TimeoutError as error:
            raise ProblemError("not_ready", "the journal is still being read back", retry_after=5) from error

    def _remember(self) -> None:
        """Read the end of the journal back; runs in the writer's thread."""
        memory = RecentPredictions()
        try:
            if self._folder.exists():
                for line in journal.recent(self._folder, READ_BACK_BYTES):
                    if isinstance(line, PredictionLine):
                        memory.predicted(line.id, line.label, line.verdict)
                    elif isinstance(line, FeedbackLine):
                        memory.told(line.id, line.label)
        except OSError as error:
            SERVICE.warning("the journal cannot be read back", extra={"fields": {"reason": error.strerror}})
        # The service may have stopped meanwhile, and closed the loop.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._remembered, memory)

    def _remembered(self, memory: RecentPredictions) -> None:
        memory.follow(self._memory)
        self._memory = memory
        self._read_back.set()
