"""A batch as a form and as base64 in JSON: on this machine, and over lines as slow as those that people have.

Base64 is a third longer. A machine decodes it in a hundredth of the time that the pictures take, so on one machine the
two hardly differ; over a line the third counts.
"""

import asyncio
import statistics
from typing import Any, Final

import click

from ops.bench.client import Connection
from ops.bench.errors import BenchError
from ops.bench.requests import Photos, batch, batch_form, form
from ops.bench.servers import SERVERS, Programs
from shared import hardware

BATCH: Final = 64
# Megabits a second; none is what the loopback network gives.
LINES: Final = (None, 100, 20, 5)
SERVICE: Final = next(spec for spec in SERVERS if spec.name == "ours-int8")


def batches(photos: Photos, programs: Programs, rounds: int) -> dict[str, Any]:
    """Send `BATCH` photos of 500×375 in turn as a form and as base64; returns the report.

    Raises:
        BenchError: the service does not start, or a batch is not answered.
    """
    files = [photos.files["medium"][number % len(photos.files["medium"])] for number in range(BATCH)]
    bodies = {"form": batch_form(files), "base64": batch(files)}
    with SERVICE.start(programs, SERVICE.variants[0]) as server:
        server.wait(form(files[0]))
        asyncio.run(_seconds(server.port, bodies, None, 1))  # it warms up
        lines = {}
        for line in LINES:
            turns = asyncio.run(_seconds(server.port, bodies, line, rounds))
            rates = {name: [BATCH / seconds for seconds in taken] for name, taken in turns.items()}
            ratio = statistics.median(form / base64 for form, base64 in zip(*rates.values(), strict=True))
            lines[str(line or "")] = {name: statistics.median(taken) for name, taken in rates.items()} | {
                "ratio": ratio,
                "turns": rates,
            }
            click.echo(f"{f'{line} Mbit/s' if line else 'this machine'}: {ratio:.2f} times")
    return {
        "machine": hardware.describe(),
        "bytes": {name: len(body) for name, body in bodies.items()},
        "lines": lines,
        "failures": [],
    }


async def _seconds(port: int, bodies: dict[str, bytes], line: int | None, rounds: int) -> dict[str, list[float]]:
    """Send each body in turn over a line of ``line`` Mbit/s; returns the seconds that each took."""
    found: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(rounds):
        for name, body in bodies.items():
            async with Connection(port, line * 125_000 if line else None) as connection:
                answer = await connection.ask(body)
            if answer.status != 200:
                raise BenchError(f"the batch as {name} was answered with {answer.code}")
            found[name].append(answer.seconds)
    return found
