"""Feedback: which answer somebody means who says what a picture showed, and how often the answers were right.

The last predictions are remembered whether or not there is a journal; with one, they are read back from it at start, so
that a restart costs neither feedback nor the live accuracy.
"""

import asyncio
import contextlib
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from serving.engine.wire import Answer
from serving.errors import ProblemError
from serving.messages import FeedbackRequest, FeedbackResponse, Prediction
from serving.settings import Settings
from serving.telemetry.journal import Journal
from serving.telemetry.logs import SERVICE
from shared import journal
from shared.contract import Label
from shared.intervals import Interval, wilson
from shared.journal import FeedbackLine, PredictionLine

MAX_BYTES: Final = 65_536
# Feedback works for at least so many of the last predictions, and at most for twice as many: 12 MB, measured.
REMEMBERED: Final = 50_000
# The live accuracy is that of so many feedbacks.
LIVE: Final = 1_000
# What is read back at start: REMEMBERED lines of predictions, and as much again for feedback.
READ_BACK_BYTES: Final = 32_000_000
READ_BACK_SECONDS: Final = 5.0


def parse(body: bytes) -> FeedbackRequest:
    """Read the body of a request.

    Raises:
        ProblemError: ``malformed_request``.
    """
    try:
        return msgspec.json.decode(body, type=FeedbackRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError("malformed_request", f"invalid feedback: {error}") from error


class Memory:
    """The labels of the last predictions by their key, and whether the last feedbacks said that they were right.

    Two generations, so that forgetting costs nothing: when the young one is full, the old one is dropped whole.
    """

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._young: dict[str, Label] = {}
        self._old: dict[str, Label] = {}
        self._right: OrderedDict[object, bool] = OrderedDict()

    def predicted(self, key: str, label: Label) -> None:
        """Take an answer; of several under one key the last is meant by feedback."""
        if key in self._right:
            # Feedback on the earlier answer still counts, but can no longer be replaced.
            self._right[object()] = self._right.pop(key)
        if len(self._young) >= REMEMBERED:
            self._young, self._old = {}, self._young
        self._young[key] = label

    def label(self, key: str) -> Label | None:
        """What was answered, None if that is not remembered."""
        return self._young.get(key) or self._old.get(key)

    def told(self, key: str, label: Label) -> None:
        """Take feedback; a second one on the same answer replaces the first."""
        predicted = self.label(key)
        if predicted is not None:
            self._tell(key, right=predicted == label)

    def accuracy(self) -> Interval | None:
        """Share right of the last ``LIVE`` feedbacks, None before the first."""
        return wilson(sum(self._right.values()), len(self._right)) if self._right else None

    @property
    def feedback(self) -> int:
        """How many feedbacks that is of."""
        return len(self._right)

    def follow(self, later: "Memory") -> None:
        """Take all that ``later`` remembers, as what came after."""
        for generation in (later._old, later._young):
            for key, label in generation.items():
                self.predicted(key, label)
        for answer, right in later._right.items():
            self._tell(answer, right=right)

    def _tell(self, answer: object, *, right: bool) -> None:
        self._right.pop(answer, None)
        self._right[answer] = right
        if len(self._right) > LIVE:
            self._right.popitem(last=False)


class Ledger:
    """What the service keeps of its answers, from :meth:`start` to :meth:`close`, on one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Make it; nothing runs yet."""
        self._memory = Memory()
        self._read_back = asyncio.Event()
        self._journal: Journal | None = None
        if settings.journal:
            self._folder = Path(settings.journal).expanduser()
            self._journal = Journal(self._folder, settings.journal_file_bytes, settings.journal_files, self._remember)
        else:
            self._read_back.set()

    def start(self) -> None:
        """Start the journal's writer, if there is one; what it reads back comes in beside other work."""
        self._loop = asyncio.get_running_loop()
        if self._journal:
            self._journal.start()

    async def close(self) -> None:
        """Bring to disk what waits."""
        if self._journal:
            await asyncio.to_thread(self._journal.close)

    def record(self, message: Prediction, answer: Answer, queued: float, *, ours: bool) -> None:
        """Note one answer.

        Args:
            message: what is answered.
            answer: what it was made from.
            queued: seconds in the queue.
            ours: the id was made here; if not, it may say something about the client and is noted as a hash.
        """
        key = message.id if ours else journal.key(message.id)
        self._memory.predicted(key, message.predicted_label)
        if self._journal:
            line = PredictionLine(
                time=datetime.now(UTC),
                id=key,
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
            )
            self._journal.append(line)

    async def feedback(self, given: FeedbackRequest) -> FeedbackResponse:
        """Note what a picture showed; a second feedback on one answer replaces the first in the figures.

        Raises:
            ProblemError: ``unknown_prediction``; ``not_ready`` while the journal is read back and that takes long.
        """
        # A client that sends an id of ours with a picture has had it from an answer, so its hash stands for the later.
        keys = (journal.key(given.id), given.id)
        known = self._known(keys)
        if known is None and not self._read_back.is_set():
            await self._be_read_back()
            known = self._known(keys)
        if known is None:
            raise ProblemError("unknown_prediction", "no prediction with this id is remembered")
        key, predicted = known
        self._memory.told(key, given.label)
        if self._journal:
            self._journal.append(FeedbackLine(time=datetime.now(UTC), id=key, label=given.label))
        return FeedbackResponse(
            id=given.id, label=given.label, predicted_label=predicted, correct=given.label == predicted
        )

    def readings(self) -> dict[str, float]:
        """Values of the metrics about it, for a scrape; those that there is nothing to say about are left out."""
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
            }
        return readings

    def _known(self, keys: tuple[str, str]) -> tuple[str, Label] | None:
        return next(((key, label) for key in keys if (label := self._memory.label(key))), None)

    async def _be_read_back(self) -> None:
        try:
            async with asyncio.timeout(READ_BACK_SECONDS):
                await self._read_back.wait()
        except TimeoutError as error:
            raise ProblemError("not_ready", "the journal is still being read back", retry_after=5) from error

    def _remember(self) -> None:
        """Read the end of the journal back; runs in the writer's thread."""
        memory = Memory()
        try:
            if self._folder.exists():
                for line in journal.recent(self._folder, READ_BACK_BYTES):
                    if isinstance(line, PredictionLine):
                        memory.predicted(line.id, line.label)
                    elif isinstance(line, FeedbackLine):
                        memory.told(line.id, line.label)
        except OSError as error:
            SERVICE.warning("the journal cannot be read back", extra={"fields": {"reason": error.strerror}})
        # The loop is closed where this took so long that the service has stopped meanwhile.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._remembered, memory)

    def _remembered(self, memory: Memory) -> None:
        memory.follow(self._memory)
        self._memory = memory
        self._read_back.set()
