"""Overload, and batches beside single requests."""

import asyncio
import statistics
from collections import Counter
from typing import Any, Final

import click

from ops.bench.client import Answer, Connection
from ops.bench.errors import BenchError
from ops.bench.processes import ServerProcess
from ops.bench.requests import Photos, batch, form
from ops.bench.servers import Programs, ServerSpec, Variant
from shared.hardware import cores

QUEUE: Final = 64
CROWD: Final = 256
# Long enough to take seconds: Retry-After has whole seconds, so a shorter wait would not test it.
LONG_QUEUE: Final = 640
# Enough that some are refused even if the service finishes a picture for every two that arrive.
BURST: Final = 1_000
# Only the queue may refuse, neither the deadline nor the number of connections.
ROOMY: Final = {"CATSDOGS_DEADLINE_SECONDS": "60", "CATSDOGS_MAX_CONNECTIONS": "4096"}
# A refused client's pause before it tries again: impatient, but no attack.
PAUSE_SECONDS: Final = 0.25
BATCH: Final = 64
BATCHES: Final = 7


def overload(spec: ServerSpec, programs: Programs, photos: Photos, seconds: float) -> dict[str, Any]:
    """Send more than the queue holds; returns the report's part ``overload``."""
    variant = Variant("a short queue", environment=ROOMY | {"CATSDOGS_MAX_QUEUE": str(QUEUE)})
    with spec.start(programs, variant) as server:
        server.wait(form(photos.files["small"][0]))
        steady = asyncio.run(_crowd(server, photos, seconds))
    click.echo(f"overload, {CROWD} clients for a queue of {QUEUE}: {steady['codes']}")
    variant = Variant("a long queue", environment=ROOMY | {"CATSDOGS_MAX_QUEUE": str(LONG_QUEUE)})
    with spec.start(programs, variant) as server:
        server.wait(form(photos.files["small"][0]))
        # The service learns how long a picture takes from those that it answers.
        asyncio.run(_together(server, [form(photos.files["medium"][0])] * 100))
        burst = asyncio.run(_burst(server, photos))
    click.echo(
        f"Retry-After: {burst['promised_s']} s promised to {burst['refused']}, {burst['actual_s']:.2f} s until the "
        f"queue had drained: {burst['factor']:.2f} times"
    )
    return {"steady": steady, "retry_after": burst}


async def _crowd(server: ServerProcess, photos: Photos, seconds: float) -> dict[str, Any]:
    request = form(photos.files["medium"][0])
    end = asyncio.get_running_loop().time() + seconds
    codes: Counter[str] = Counter()
    latencies: list[float] = []
    promised: Counter[int] = Counter()

    async def client() -> None:
        async with Connection(server.port) as connection:
            while asyncio.get_running_loop().time() < end:
                try:
                    answer = await connection.ask(request)
                except (OSError, TimeoutError) as error:
                    codes[type(error).__name__] += 1
                    continue
                codes[answer.code] += 1
                if answer.status == 200:
                    latencies.append(answer.seconds)
                else:
                    promised[int(answer.headers.get("retry-after", "-1"))] += 1
                    await asyncio.sleep(PAUSE_SECONDS)

    await asyncio.gather(*(client() for _ in range(CROWD)))
    return {
        "queue": QUEUE,
        "clients": CROWD,
        "codes": dict(codes),
        "rate": codes["200"] / seconds,
        "p50_ms": 1000 * statistics.median(latencies),
        "p99_ms": 1000 * _quantile(latencies, 0.99),
        "promised_s": {str(value): count for value, count in sorted(promised.items())},
    }


async def _burst(server: ServerProcess, photos: Photos) -> dict[str, Any]:
    """Fill the queue once and let it drain: does that take as long as Retry-After promised to those refused?

    Retry-After promises room after that time whatever other clients do, so when the queue has drained. The time is
    counted from each refusal to the last answer. The header has whole seconds, at least one.
    """
    answers = await _together(server, [form(photos.files["medium"][0])] * BURST)
    refused = [answer for answer in answers if answer.code == "overloaded"]
    if not refused:
        raise BenchError(f"{BURST} requests at once did not fill a queue of {LONG_QUEUE}: none was refused")
    done = max(answer.received for answer in answers if answer.status == 200)
    factors = [
        max(promise / actual, actual / promise)
        for promise, actual in (
            (int(answer.headers["retry-after"]), max(1.0, done - answer.received)) for answer in refused
        )
    ]
    promises = Counter(int(answer.headers["retry-after"]) for answer in refused)
    return {
        "queue": LONG_QUEUE,
        "clients": BURST,
        "codes": dict(Counter(answer.code for answer in answers)),
        "refused": len(refused),
        "promised_s": {str(value): count for value, count in sorted(promises.items())},
        "actual_s": statistics.median(done - answer.received for answer in refused),
        "factor": max(factors),
    }


async def _together(server: ServerProcess, requests: list[bytes]) -> list[Answer]:
    """Send all at once, each on its own open connection."""
    connections = [Connection(server.port) for _ in requests]
    for connection in connections:
        await connection.open()
    answers = await asyncio.gather(*map(Connection.ask, connections, requests))
    for connection in connections:
        await connection.close()
    return answers


def fairness(spec: ServerSpec, programs: Programs, photos: Photos) -> dict[str, Any]:
    """Batches against single requests, and beside them; returns the report's part ``fairness``."""
    with spec.start(programs, spec.variants[0]) as server:
        server.wait(form(photos.files["small"][0]))
        found = asyncio.run(_fairness(server, photos))
    click.echo(
        f"fairness: a picture of a batch costs {found['batch_ms']:.2f} ms, of {BATCH} single requests "
        f"{found['single_ms']:.2f} ms ({found['ratio']:.3f} times); a single request beside batches takes "
        f"{found['beside_p50_ms']:.1f} ms (p99 {found['beside_p99_ms']:.1f}), without them {found['alone_p50_ms']:.1f}"
    )
    return found


async def _fairness(server: ServerProcess, photos: Photos) -> dict[str, Any]:
    files = [photos.files["medium"][number % len(photos.files["medium"])] for number in range(BATCH)]
    whole, singles = batch(files), [form(data) for data in files]
    batches, groups = [], []
    for number in range(BATCHES + 1):
        async with Connection(server.port) as connection:
            answer = await connection.ask(whole)
        answers = await _together(server, singles)
        assert answer.status == 200 and all(single.status == 200 for single in answers), answer.body[:500]
        if number:  # the first of each warms up
            batches.append(answer.seconds)
            groups.append(max(one.received for one in answers) - min(one.sent for one in answers))
    alone = await _singles(server, singles[0], 100)
    stop = asyncio.Event()

    async def keep_sending() -> None:
        async with Connection(server.port) as connection:
            while not stop.is_set():
                await connection.ask(whole)

    sender = asyncio.create_task(keep_sending())
    await asyncio.sleep(0.5)
    beside = await _singles(server, singles[0], 150)
    stop.set()
    await sender
    # A lane's time for one picture while all lanes are busy, as they are beside a batch.
    picture = statistics.median(groups) / BATCH * cores()
    return {
        "batch_ms": 1000 * statistics.median(batches) / BATCH,
        "single_ms": 1000 * statistics.median(groups) / BATCH,
        "ratio": statistics.median(one / other for one, other in zip(batches, groups, strict=True)),
        "picture_ms": 1000 * picture,
        "alone_p50_ms": 1000 * statistics.median(alone),
        "beside_p50_ms": 1000 * statistics.median(beside),
        "beside_p99_ms": 1000 * _quantile(beside, 0.99),
        "waited_pictures_p50": statistics.median(beside) / picture - 1,
        "waited_pictures_p99": _quantile(beside, 0.99) / picture - 1,
    }


async def _singles(server: ServerProcess, request: bytes, count: int) -> list[float]:
    async with Connection(server.port) as connection:
        return [(await connection.ask(request)).seconds for _ in range(count)]


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
