"""A hundred thousand requests, good and bad, to one service: does the last tenth differ from the first?

In a random but seeded order: pictures, batches, files that are no pictures, truncated forms, unknown paths, and uploads
that the client abandons. Each has its correct statuses; any other is a failure, and so is a picture that is answered
otherwise than at the start.
"""

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from ops.bench.client import Answer, Connection
from ops.bench.processes import ServerProcess, memory_mb
from ops.bench.requests import batch, form, make, post
from ops.bench.servers import Programs, Variant, chosen
from shared import hardware

CLIENTS: Final = 8
TENTHS: Final = 10
KEPT_FAILURES: Final = 20
SIZE: Final = "small"


@dataclass(frozen=True)
class Kind:
    """A kind of request: its share in per cent, the requests, and the correct statuses."""

    share: int
    requests: list[bytes]
    right: frozenset[int] = frozenset({200})


@dataclass
class Tenth:
    """Samples from a tenth of the requests."""

    latencies: list[float] = field(default_factory=list)  # of single pictures, seconds
    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Medians and quantiles."""
        ordered = sorted(self.latencies)
        return {
            "memory_mb": statistics.median(self.memory),
            "memory_most_mb": max(self.memory),
            "p50_ms": 1000 * statistics.median(ordered),
            "p99_ms": 1000 * ordered[int(0.99 * len(ordered))],
            "files": statistics.median(self.files),
            "threads": statistics.median(self.threads),
        }


def kinds(files: list[bytes]) -> dict[str, Kind]:
    """The kinds of requests, made from ``files``."""
    cat = files[0]
    get = "GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n".format
    return {
        "picture": Kind(74, [form(data) for data in files]),
        "truncated": Kind(4, [form(data[: len(data) // 2]) for data in files], frozenset({422})),
        "no picture": Kind(3, [form(b"%PDF-1.7 " + cat), form(b"hello")], frozenset({415})),
        "empty": Kind(1, [form(b"")], frozenset({422})),
        "no file": Kind(2, [form(cat, field="photo")], frozenset({400})),
        "no form": Kind(2, [post("/predict", "application/json", b"[]")], frozenset({400, 415})),
        "wrong address": Kind(3, [form(cat, "/nowhere"), get("/../etc/passwd").encode()], frozenset({404})),
        "wrong method": Kind(1, [get("/predict").encode()], frozenset({405})),
        "batch": Kind(2, [batch([cat, b"no picture", *files])]),
        "broken batch": Kind(1, [post("/predict/batch", "application/json", b"[")], frozenset({400})),
        "explain": Kind(1, [form(cat, "/explain")]),
        "abandoned": Kind(4, [form(data) for data in files]),
        "looked at": Kind(2, [get(path).encode() for path in ("/health/ready", "/metrics", "/model", "/")]),
    }  # fmt: skip


def soak(count: int, programs: Programs, seed: int) -> dict[str, Any]:
    """Send ``count`` requests to the service as it ships; returns the report.

    Raises:
        BenchError: the service does not start.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        files = make(Path(name) / "photos", None).files[SIZE]
    with chosen("ours-int8")[0].start(programs, Variant("as it ships")) as server:
        server.wait(form(files[0]))
        return asyncio.run(_Soak(server, files, count, seed).run())


class _Soak:
    def __init__(self, server: ServerProcess, files: list[bytes], count: int, seed: int) -> None:
        self.server = server
        self.files = files
        self.count = count
        self.kinds = kinds(files)
        self.rng = random.Random(seed)  # noqa: S311  # an order, no secret
        self.sent = 0
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self.tenths = [Tenth() for _ in range(TENTHS)]
        self.right: dict[bytes, dict[str, Any]] = {}

    @property
    def tenth(self) -> Tenth:
        return self.tenths[min(TENTHS - 1, self.sent * TENTHS // self.count)]

    async def run(self) -> dict[str, Any]:
        async with Connection(self.server.port) as connection:
            for request in self.kinds["picture"].requests:
                self.right[request] = json.loads((await connection.ask(request)).body)
        began = time.monotonic()
        watcher = asyncio.create_task(self._watch())
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)))
        watcher.cancel()
        figures = [tenth.figures() for tenth in self.tenths]
        return {
            "machine": hardware.describe(),
            "requests": self.sent,
            "seconds": time.monotonic() - began,
            "answers": dict(sorted(self.answers.items())),
            "failures": self.failures,
            "first": figures[0],
            "last": figures[-1],
            "tenths": figures,
        }

    async def _client(self) -> None:
        names, shares = list(self.kinds), [kind.share for kind in self.kinds.values()]
        async with Connection(self.server.port) as connection:
            while self.sent < self.count:
                name = self.rng.choices(names, shares)[0]
                request = self.rng.choice(self.kinds[name].requests)
                self.sent += 1
                try:
                    if name == "abandoned":
                        await connection.abort(request)
                        self.answers["abandoned"] += 1
                    else:
                        self._note(name, request, await connection.ask(request))
                except (OSError, TimeoutError) as error:
                    self._fail(name, f"{type(error).__name__}: {error}")

    def _note(self, name: str, request: bytes, answer: Answer) -> None:
        self.answers[f"{name}: {answer.code}"] += 1
        if answer.status not in self.kinds[name].right:
            self._fail(name, f"{answer.status} {answer.body[:200]!r}")
        elif name == "picture":
            self.tenth.latencies.append(answer.seconds)
            if json.loads(answer.body)["probabilities"] != self.right[request]["probabilities"]:
                self._fail(name, "answered otherwise than at the start")

    def _fail(self, name: str, what: str) -> None:
        self.answers["failures"] += 1
        if len(self.failures) < KEPT_FAILURES:
            self.failures.append(f"request {self.sent:,}, {name}: {what}")

    async def _watch(self) -> None:
        """Sample the server's memory, files and threads about 200 times, and print the progress."""
        told, looked = 0, -1
        while True:
            if (look := self.sent * 20 * TENTHS // self.count) > looked:
                looked = look
                self._look()
            if (done := self.sent * 20 // self.count) > told:
                told = done
                tenth = self.tenth
                click.echo(f"{self.sent:,} of {self.count:,} requests, {tenth.memory[-1]:.0f} MB, "
                           f"{tenth.files[-1]} files, {self.answers['failures']} failures")  # fmt: skip
            await asyncio.sleep(0.05)

    def _look(self) -> None:
        pids, tenth = self.server.pids(), self.tenth
        tenth.memory.append(memory_mb(pids))
        tenth.files.append(sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids))
        tenth.threads.append(sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids))
