"""A tenth of the clients misbehave: are the others served as well as without them?

Honest clients send photos at a steady rate that the service can keep up with; one has a slow uplink, one scrapes the
metrics' port. Periods with misbehaving clients alternate with periods without, so both see the same machine. For a
misbehaving client any answer is right but a 500; for an honest one only 200.
"""

import asyncio
import contextlib
import functools
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from ops.bench.client import Connection
from ops.bench.load import quantile
from ops.bench.processes import PeakMemory, ServerProcess, free_port
from ops.bench.requests import batch, form, make, post
from ops.bench.servers import Programs, Variant, chosen
from shared import hardware

HONEST: Final = 45
HOSTILE: Final = 5
# Between the requests of an honest client: together about a third of what two lanes can do.
PAUSE_SECONDS: Final = 0.5
PERIOD_SECONDS: Final = 30
# The longest that one misdeed lasts.
DEED_SECONDS: Final = 12
SLOW_BYTES_PER_SECOND: Final = 250_000  # 2 Mbit/s
APART_SECONDS: Final = 0.005  # between connections of a crowd: what is left open matters here, not the rate
KEPT_FAILURES: Final = 20
GET: Final = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"

Deed = Callable[["Attacker"], Awaitable[object]]


@dataclass
class Period:
    """What honest clients got during all periods of one kind."""

    latencies: Counter[int] = field(default_factory=Counter)  # microseconds → answers

    def figures(self) -> dict[str, float]:
        """Answers and quantiles."""
        return {
            "answers": sum(self.latencies.values()),
            "p50_ms": quantile(self.latencies, 0.5) / 1000,
            "p99_ms": quantile(self.latencies, 0.99) / 1000,
        }


class Attacker:
    """A misbehaving client: each deed opens connections of its own and leaves them when it is cancelled."""

    def __init__(self, port: int, metrics_port: int, photo: bytes, rng: random.Random) -> None:
        """Attack the service on ``port``."""
        self.port = port
        self.metrics_port = metrics_port
        self.photo = photo
        self.rng = rng
        self.answers: Counter[str] = Counter()

    async def raw(self, data: bytes, *, half_close: bool = False, port: int | None = None) -> None:
        """Send bytes, and note the status line of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.port)
        with contextlib.closing(writer):
            writer.write(data)
            if half_close:
                writer.write_eof()
            line = (await reader.readline()).split()
            self.answers[line[1].decode("latin-1") if len(line) > 1 else "closed"] += 1

    async def drip(self) -> None:
        """A large body, a byte at a time."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with contextlib.closing(writer):
            writer.write(post("/predict", "multipart/form-data; boundary=x", b" " * 10_000_000)[:200_000])
            while not reader.at_eof():
                writer.write(b" ")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.readline(), 1.5)

    async def crowd(self, port: int, count: int, first: bytes) -> None:
        """Many connections that say ``first`` and then nothing."""
        opened = []
        try:
            for _ in range(count):
                opened.append((await asyncio.open_connection("127.0.0.1", port))[1])
                opened[-1].write(first)
                await asyncio.sleep(APART_SECONDS)
            await asyncio.sleep(DEED_SECONDS)
        finally:
            for writer in opened:
                writer.close()


@functools.cache
def _empty_items() -> bytes:
    """A batch of five million empty items, 60 MB."""
    return post("/predict/batch", "application/json", b'{"images":[' + b",".join([b'{"data":""}'] * 5_000_000) + b"]}")


PHOTO_HEAD: Final = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
CHUNKS: Final = b"".join(b"1;x=%d\r\na\r\n" % number for number in range(100_000))
DEEDS: Final[dict[str, Deed]] = {
    "dripped bodies": lambda self: self.drip(),
    "zeros": lambda self: self.raw(PHOTO_HEAD + b"Content-Length: " + b"0" * 4300 + b"5\r\n\r\nhello"),
    "two Content-Lengths": lambda self: self.raw(PHOTO_HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    "tiny chunks": lambda self: self.raw(PHOTO_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS),
    "half-closed": lambda self: self.raw(form(self.photo), half_close=True),
    "no Host": lambda self: self.raw(b"GET /health HTTP/1.1\r\n\r\n"),
    "two Hosts": lambda self: self.raw(b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    "endless head": lambda self: self.raw(GET[:-2] + b"X: y\r\n" * 100_000),
    "idle connections": lambda self: self.crowd(self.port, 1000, GET),
    "silent connections": lambda self: self.crowd(self.port, 1000, b""),
    "silent on the metrics' port": lambda self: self.crowd(self.metrics_port, 64, b""),
    "a foreign page's POST": lambda self: self.raw(
        form(self.photo).replace(b"\r\n", b"\r\nOrigin: https://foreign.example\r\nSec-Fetch-Site: cross-site\r\n", 1)
    ),
    "forged ids": lambda self: self.raw(
        post("/feedback", "application/json", b'{"id": "%032x", "label": "cats"}' % self.rng.getrandbits(128))
    ),
    "five million items": lambda self: self.raw(_empty_items()),
    "no pictures": lambda self: self.raw(batch([b"no picture"] * 64)),
    "abandoned": lambda self: Connection(self.port).abort(form(self.photo)),
}  # fmt: skip


def misbehave(
    port: int, metrics_port: int, photo: bytes, seed: float, seconds: float, names: list[str]
) -> tuple[Counter[str], Counter[str]]:
    """Be `HOSTILE` clients that do what ``names`` say, for some seconds; returns the misdeeds, and the answers."""
    # They would have machines of their own; here their own work must not take the cores from the others.
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    attacker = Attacker(port, metrics_port, photo, random.Random(seed))  # noqa: S311  # an order, no secret
    deeds: Counter[str] = Counter()

    async def one() -> None:
        while True:
            name = attacker.rng.choice(names)
            deeds[name] += 1
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(DEED_SECONDS):
                    await DEEDS[name](attacker)
            await asyncio.sleep(PAUSE_SECONDS)

    async def all_of_them() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(one() for _ in range(HOSTILE)))

    asyncio.run(all_of_them())
    return deeds, attacker.answers


def siege(minutes: float, programs: Programs, seed: int) -> dict[str, Any]:
    """Serve honest and misbehaving clients for some minutes; returns the report.

    Raises:
        BenchError: the service does not start.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        photos = make(Path(name) / "photos", None).files
    metrics_port = free_port()
    variant = Variant("with a metrics port", environment={"CATSDOGS_METRICS_PORT": str(metrics_port)})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with chosen("ours-int8")[0].start(programs, variant) as server, PeakMemory(server) as peak:
        server.wait(form(photos["medium"][0]))
        found = asyncio.run(_Siege(server, metrics_port, photos, seed).run(60 * minutes))
    return {"machine": hardware.describe(), **found, "memory_peak_mb": peak.mb}


class _Siege:
    def __init__(self, server: ServerProcess, metrics_port: int, photos: dict[str, list[bytes]], seed: int) -> None:
        self.server = server
        self.metrics_port = metrics_port
        self.photos = photos
        self.rng = random.Random(seed)  # noqa: S311  # an order, no secret
        self.hostile = asyncio.Event()
        self.periods = {True: Period(), False: Period()}
        self.deeds: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self.failed = 0

    async def run(self, seconds: float) -> dict[str, Any]:
        """Run for ``seconds``; returns the report, without machine and memory."""
        tasks = [asyncio.create_task(self._honest()) for _ in range(HONEST)]
        tasks += [asyncio.create_task(self._slow()), asyncio.create_task(self._scrape())]
        periods = max(1, round(seconds / PERIOD_SECONDS / 2))
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            for number in range(1, periods + 1):
                await asyncio.sleep(PERIOD_SECONDS)
                await self._attack(pool)
                with_, without = (self.periods[kind].figures() for kind in (True, False))
                click.echo(
                    f"{number} of {periods} periods: p99 {with_['p99_ms']:.1f} ms, without misbehaving clients "
                    f"{without['p99_ms']:.1f}; {sum(self.deeds.values())} misdeeds, {self.failed} failures"
                )
        finally:
            pool.shutdown(cancel_futures=True)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
        return {
            "seconds": 2 * periods * PERIOD_SECONDS,
            "clients": HONEST + HOSTILE,
            "misbehaving": HOSTILE,
            "with": self.periods[True].figures(),
            "without": self.periods[False].figures(),
            "misdeeds": dict(sorted(self.deeds.items())),
            "answers": dict(sorted(self.answers.items())),
            "failed": self.failed,
            "failures": self.failures,
        }

    async def _attack(self, pool: Executor) -> None:
        """Let the misbehaving clients loose for a period, in a process of their own."""
        self.hostile.set()
        deeds, answers = await asyncio.get_running_loop().run_in_executor(
            pool,
            misbehave,
            *(self.server.port, self.metrics_port, self.photos["medium"][0], self.rng.random(), PERIOD_SECONDS),
            list(DEEDS),
        )
        self.hostile.clear()
        self.deeds += deeds
        self.answers += answers
        if answers["500"]:
            self._fail(f"{answers['500']} misdeeds: 500")

    async def _honest(self) -> None:
        await asyncio.sleep(PAUSE_SECONDS * self.rng.random())
        async with Connection(self.server.port) as connection:
            while True:
                hostile = self.hostile.is_set()
                await self._ask(connection, form(self.rng.choice(self.photos["medium"])), self.periods[hostile])
                await asyncio.sleep(PAUSE_SECONDS * (0.5 + self.rng.random()))

    async def _slow(self) -> None:
        """A phone's photo over a slow uplink, again and again."""
        request = form(max(self.photos["large"], key=len))
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
            try:
                for start in range(0, len(request), SLOW_BYTES_PER_SECOND // 10):
                    writer.write(request[start : start + SLOW_BYTES_PER_SECOND // 10])
                    await asyncio.sleep(0.1)
                line = await reader.readline()
            except OSError as error:
                line = str(error).encode()
            finally:
                writer.close()
            if b" 200 " not in line:
                self._fail(f"a slow uplink: {line!r}")

    async def _scrape(self) -> None:
        while True:
            async with Connection(self.metrics_port) as connection:
                for path in (b"/metrics", b"/health", b"/health/ready"):
                    await self._ask(connection, GET.replace(b"/health", path, 1))
            await asyncio.sleep(1)

    async def _ask(self, connection: Connection, request: bytes, period: Period | None = None) -> None:
        began = time.monotonic()
        try:
            answer = await connection.ask(request)
        except (OSError, TimeoutError) as error:
            self._fail(f"{request[:40]!r}: {type(error).__name__}: {error}")
            return
        if answer.status != 200:
            self._fail(f"{request[:40]!r}: {answer.code}")
        elif period is not None:
            period.latencies[round(1e6 * (time.monotonic() - began))] += 1

    def _fail(self, what: str) -> None:
        self.failed += 1
        if len(self.failures) < KEPT_FAILURES:
            self.failures.append(what)
