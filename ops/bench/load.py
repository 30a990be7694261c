"""The load: ``wrk`` with a script, and its latencies, corrected.

wrk adds answers to its latencies that there never were ("coordinated omission": it assumes that a client wants to send
at a constant rate). Here every client waits for its answer before it sends again, so :func:`as_measured` removes them.
"""

import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ops.bench.errors import BenchError
from ops.bench.processes import busy, cpu_of

SCRIPT: Final = Path(__file__).with_name("load.lua")
TIMEOUT_SECONDS: Final = 60


@dataclass(frozen=True)
class Segment:
    """Some seconds under load; those of warming up, in which queues fill, count only for latencies."""

    seconds: float
    answers: int  # with status 200
    statuses: dict[int, int]
    failures: int  # broken connections and missing answers
    latencies: Counter[int] = field(repr=False)  # microseconds → answers
    cpu: float  # CPU seconds of the server's process tree
    generator_cpu: float  # of wrk
    others_cpu: float  # of all other processes of this machine

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds

    def quantile_ms(self, share: float) -> float:
        """The latency below which ``share`` of the answers lie, in milliseconds."""
        return quantile(self.latencies, share) / 1000


def send(folder: Path, port: int, clients: int, seconds: int, warm: int, cpu: Callable[[], float]) -> Segment:
    """Send the requests of ``folder`` from ``clients`` connections, for ``warm`` and then ``seconds`` seconds.

    Args:
        folder: raw requests and their order; see :meth:`ops.bench.requests.Photos.write`.
        port: where the server listens.
        clients: connections, each with one request at a time.
        seconds: measured time.
        warm: time before that.
        cpu: returns the CPU seconds that the server has used so far.

    Raises:
        BenchError: wrk is not installed, or failed.
    """
    program = shutil.which("wrk")
    if program is None:
        raise BenchError("wrk, the load generator, is not installed: apt-get install wrk")
    command = [program, "-t1", f"-c{clients}", f"-d{warm + seconds}s", f"--timeout={TIMEOUT_SECONDS}s"]
    command += ["-s", str(SCRIPT), f"http://127.0.0.1:{port}/predict", "--", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        time.sleep(warm)
        begin, before = time.monotonic(), (cpu(), cpu_of(process.pid), busy())
        # wrk runs some milliseconds longer than it was told; answers in these are not counted.
        time.sleep(seconds - 0.1)
        end, after = time.monotonic(), (cpu(), cpu_of(process.pid), busy())
        said, _ = process.communicate()
    if process.returncode or "== latencies" not in said:
        raise BenchError(f"wrk failed: {said[-500:]}")
    summary, answers, latencies = (part.splitlines()[1:] for part in said.split("\n== ")[1:])
    (duration, requests), failures = (list(map(int, line.split())) for line in summary[:2])
    arrived = [(float(moment), int(code)) for moment, code in (line.split() for line in answers if line)]
    statuses = Counter(code for moment, code in arrived if begin <= moment < end)
    samples = Counter({int(value): int(count) for value, count in (line.split() for line in latencies if line)})
    server, generator, machine = (late - early for late, early in zip(after, before, strict=True))
    return Segment(
        seconds=end - begin,
        answers=statuses.get(200, 0),
        statuses=dict(statuses),
        failures=sum(failures),
        latencies=as_measured(samples, duration // (requests // clients)) if requests >= clients else samples,
        cpu=server,
        generator_cpu=generator,
        others_cpu=max(0.0, machine - server - generator),
    )


def as_measured(samples: Counter[int], expected: int) -> Counter[int]:
    """Remove what wrk's ``stats_correct`` added.

    For each answer that took n > 2 × ``expected``, it adds one of n - ``expected``, one of n - 2 × ``expected``, and so
    on, down to ``expected``. The longest was not added, so from there downwards the additions can be undone.

    Source: https://github.com/wg/wrk/blob/4.1.0/src/stats.c
    """
    left = Counter(samples)
    for value in sorted(samples, reverse=True):
        count = left[value]
        if value < 2 * expected or count <= 0:
            continue
        for added in range(value - expected, expected, -expected):
            left[added] -= count
    return +left


def quantile(samples: Counter[int], share: float) -> int:
    """The value below or at which ``share`` of the samples lie; 0 without any."""
    wanted, seen = share * samples.total(), 0
    for value in sorted(samples):
        seen += samples[value]
        if seen >= wanted:
            return value
    return 0
