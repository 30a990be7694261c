"""Samples: which pictures are kept to be learned from, and the thread that writes them.

Nothing of it is on a request's path: what is kept waits in memory until the thread has written it, and is dropped, and
counted, when too much waits.

A small file that may get feedback is held as it was sent, since few are disputed: decoding those again costs less than
a copy of every picture's pixels. Lanes do so one at a time, so that much feedback at once delays clients' pictures by
one.
"""

import asyncio
import contextlib
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import msgspec

from serving import ids
from serving.engine.wire import PLAIN, Body, Flags
from serving.errors import ProblemError
from serving.settings import Settings
from serving.telemetry.logs import SERVICE
from serving.telemetry.writer import LineWriter
from shared import stores
from shared.contract import Actual
from shared.journal import PredictionLine
from shared.samples import PIXEL_BYTES, SUFFIX, TOMBSTONE, Reason, Sample, encode

NAME: Final = re.compile(ids.FORM.pattern + re.escape(SUFFIX))
# Pictures that wait to be decoded again or written, and that wait for feedback: 19 and 30 MB.
MAX_UNWRITTEN: Final = 128
MAX_HELD: Final = 200
HELD_SECONDS: Final = 600.0


Decode = Callable[[Body, Flags], Awaitable[bytes]]


class Seen(NamedTuple):
    """A picture as it was sent, with the flags to decode it, or its pixels."""

    data: Body
    flags: Flags = Flags.PIXELS


class Kept(NamedTuple):
    """A picture and what is known of it; ``at`` is when it was answered, on the monotonic clock."""

    at: float
    seen: Seen
    sample: Sample


class Samples(LineWriter[str]):
    """Keeps samples, from `start` to `close`; all methods but those of the thread are for one event loop.

    The thread gets ids, and writes what is then known of each: where most pictures are kept and all of them get
    feedback, it could not keep up with writing each twice. ``written`` counts samples on disk, one with something added
    again; ``stored`` and ``stored_bytes`` are what the store holds.
    """

    def __init__(self, settings: Settings, decode: Decode) -> None:
        """Make it; nothing runs yet. ``decode`` returns a picture's pixels, or raises `ProblemError`."""
        super().__init__("samples", self._write_group, most=MAX_UNWRITTEN, pause=0)
        self.written = self.stored_bytes = 0
        self._settings = settings
        kinds = dict(kind.partition(":")[::2] for kind in settings.sample.split(","))
        self._unsure, self._disputed, self._disagreed = (kind in kinds for kind in ("unsure", "disputed", "disagreed"))
        self._share = float(kinds.get("random", 0))
        self._holds = self._disputed or self._disagreed
        self._decode = decode
        self._held: OrderedDict[str, Kept] = OrderedDict()
        self._undecoded: dict[str, Kept] = {}
        self._decoder: asyncio.Task[None] | None = None
        self._unwritten: dict[str, Kept] = {}
        self._lock = threading.Lock()  # of those
        self._store = stores.opened(settings.samples)
        self._sizes: OrderedDict[str, int] = OrderedDict()  # of what is stored, oldest first
        self._look = True  # whether what is stored should be looked at

    @property
    def stored(self) -> int:
        """Samples in the store."""
        return len(self._sizes)

    def wish(self, size: int) -> tuple[Flags, bool]:
        """Which pixels the lane should keep of a picture of ``size`` bytes, and whether it was chosen at random."""
        chosen = random.random() < self._share  # noqa: S311 - which ones is no secret
        if chosen or (self._holds and size > PIXEL_BYTES):
            return Flags.KEEP, chosen
        return Flags.KEEP_UNSURE if self._unsure else PLAIN, False

    def predicted(self, line: PredictionLine, seen: Seen, *, chosen: bool = False) -> None:
        """Keep the picture of a prediction, if it is one to keep, and hold it for feedback and challenger."""
        unsure = self._unsure and line.verdict == "unsure"
        why: tuple[Reason, ...] = (*(("unsure",) if unsure else ()), *(("random",) if chosen else ()))
        if not why and not self._holds:
            return
        if isinstance(seen.data, memoryview):  # of a batch, which should not be held as a whole
            seen = seen._replace(data=bytes(seen.data))
        kept = Kept(time.monotonic(), seen, Sample(why=why, prediction=line))
        if self._holds:
            self._held[line.id] = kept
            self._let_go()
        if why:
            self._queue(kept)

    def told(self, id_: str, label: Actual) -> None:
        """Keep the picture that this feedback is about if it disputes the answer; add it to what is kept already."""
        held = self._held.get(id_)
        if held is None or held.sample.feedback == label:
            return
        disputes = self._disputed and held.sample.prediction.label != label
        self._add(msgspec.structs.replace(held.sample, feedback=label), "disputed" if disputes else None)

    def disagreed(self, id_: str) -> None:
        """Keep the picture of a prediction that the challenger gave another verdict."""
        if self._disagreed:
            if held := self._held.get(id_):
                self._add(held.sample, "disagreed")
            else:  # it answered too late
                self.dropped += 1

    def _add(self, sample: Sample, reason: Reason | None) -> None:
        """Put what is now known of a held picture, and another reason to keep it, into its sample."""
        if reason and reason not in sample.why:
            sample = msgspec.structs.replace(sample, why=(*sample.why, reason))
        id_ = sample.prediction.id
        kept = self._held[id_]._replace(sample=sample)
        if not sample.why or self._queue(kept):  # else the same feedback may be given again
            self._held[id_] = kept

    def _queue(self, kept: Kept) -> bool:
        """Have it written, in place of an earlier version that waits; returns False if it is dropped."""
        id_ = kept.sample.prediction.id
        if Flags.PIXELS in kept.seen.flags:
            with self._lock:
                if queued := id_ in self._unwritten or self.append(id_):
                    self._unwritten[id_] = kept
        elif queued := id_ in self._undecoded or len(self._undecoded) + len(self._unwritten) < MAX_UNWRITTEN:
            self._undecoded[id_] = kept
            if self._decoder is None:
                self._decoder = asyncio.get_running_loop().create_task(self._decode_all())
        else:
            self.dropped += 1
        return queued

    async def _decode_all(self) -> None:
        while self._undecoded:
            id_, kept = next(iter(self._undecoded.items()))
            try:
                seen = Seen(await self._decode(*kept.seen))
            except ProblemError:
                self.dropped += 1
                del self._undecoded[id_]
                continue
            kept = self._undecoded.pop(id_)._replace(seen=seen)  # with what was said of it meanwhile
            if id_ in self._held:
                self._held[id_] = kept
            self._queue(kept)
        self._decoder = None

    async def decode_rest(self, seconds: float) -> None:
        """Let lanes decode what still waits, for at most ``seconds``; call before the lanes end."""
        if self._decoder:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._decoder, seconds)

    def tidy(self) -> None:
        """Let go of what has waited for feedback for too long, and have the caps looked at; call now and then."""
        self._let_go()
        self._look = True
        self.wake()

    def close(self) -> int:
        """Write what waits, and stop; returns how many are lost."""
        self.dropped += len(self._undecoded)
        if lost := super().close() + len(self._undecoded):
            SERVICE.error("samples are lost", extra={"fields": {"samples": lost}})
        return lost

    def _let_go(self) -> None:
        expired = time.monotonic() - HELD_SECONDS
        while self._held and (len(self._held) > MAX_HELD or next(iter(self._held.values())).at < expired):
            self._held.popitem(last=False)

    def _write_group(self, group: list[str]) -> None:
        try:
            if self._look:  # other replicas may write there too
                self._look = False
                self._sizes = OrderedDict(sorted(each for each in self._store.sizes() if NAME.fullmatch(each[0])))
                self.stored_bytes = sum(self._sizes.values())
            for id_ in group:
                self._write_newest(id_)
            self._prune()
        except OSError as error:
            if not self.failures:
                SERVICE.error("samples cannot be written", extra={"fields": {"reason": error.strerror or str(error)}})
            raise
        if self.failures:
            SERVICE.info("samples can be written again", extra={"fields": {"dropped_samples": self.dropped}})

    def _write_newest(self, id_: str) -> None:
        with self._lock:
            kept = self._unwritten.pop(id_, None)
        if kept is None:  # written before another of its group failed
            return
        try:
            self._keep(id_, kept)
        except OSError:
            with self._lock:
                self._unwritten.setdefault(id_, kept)
            raise

    def _keep(self, id_: str, kept: Kept) -> None:
        name, data = id_ + SUFFIX, encode(bytes(kept.seen.data), kept.sample)
        self._prune(int(name not in self._sizes), len(data) - self._sizes.get(name, 0))
        self._store.put(name, data)
        # Looked for afterwards, since `forget` puts the tombstone first: whichever comes last, the sample is gone.
        if self._store.exists(id_ + TOMBSTONE):
            self._store.delete(name)
            return
        self.stored_bytes += len(data) - self._sizes.get(name, 0)
        self._sizes[name] = len(data)
        self.written += 1

    def _prune(self, count: int = 0, size: int = 0) -> None:
        """Delete the oldest samples until they and those to come are within the caps."""
        # A name begins with the time, so that names sort by it.
        oldest = f"{max(0, int(time.time() - 86_400 * self._settings.samples_days)):08x}"
        while self._sizes:
            name, bytes_ = next(iter(self._sizes.items()))
            if (
                len(self._sizes) + count <= self._settings.samples_count
                and self.stored_bytes + size <= self._settings.samples_bytes
                and name >= oldest
            ):
                return
            self._store.delete(name)
            del self._sizes[name]
            self.stored_bytes -= bytes_


def forget(address: str, id_: str) -> bool:
    """Delete a prediction's sample for good, and leave a tombstone; returns whether there was one.

    Raises:
        OSError: the store fails.
    """
    store = stores.opened(address)
    store.put(id_ + TOMBSTONE, b"")
    there = store.exists(id_ + SUFFIX)
    store.delete(id_ + SUFFIX)
    return there
