"""What keeping samples and a challenger cost, and whether they do what they promise.

Of a stream of photos the share of unsure or disputed ones that is kept; what requests take with samples, and with a
challenger, beside those without, in turns; whether any client gets an answer of the challenger's; and whether the store
stays within its caps.
"""

import asyncio
import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from ops.bench import placement
from ops.bench.client import Connection
from ops.bench.errors import BenchError
from ops.bench.processes import ROOT, ServerProcess
from ops.bench.requests import Photos, form, post
from ops.bench.rounds import Arrangement, Plan, Rounds
from ops.bench.servers import MODELS, Programs, ServerSpec, Variant, chosen
from shared import hardware

CLIENTS: Final = 8
LEVELS: Final = (1, CLIENTS)
SIZE: Final = "medium"
UNSURE: Final = 10  # the number of the photo of clouds, of which the model is unsure
ONE_IN: Final = 50  # photos is unsure, as in the model's test, where what samples cost is measured
DISPUTED_ONE_IN: Final = 10
CAPS: Final = {"count": {"samples_count": 10_000}, "bytes": {"samples_bytes": 2_000_000}}
# Asked for.
LEAST_KEPT: Final = 0.99
MOST_COST: Final = 0.02
WAIT_SECONDS: Final = 120
AGREED, DISAGREED = (f'catsdogs_challenger_answers_total{{agreed="{agreed}"}}' for agreed in ("true", "false"))
DROPPED: Final = "catsdogs_challenger_dropped_total"

# Run by the service's Python: this room imports nothing of the service. Arguments: folder, samples, settings.
FILL: Final = """
import json, os, sys, time
import msgspec
from serving.ids import PredictionIds
from serving.settings import Settings
from serving.telemetry.samples import MAX_UNWRITTEN, Samples, Seen
from shared.journal import PredictionLine
from shared.samples import PIXEL_BYTES
folder, number, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
ids, most_count, most_bytes, began = PredictionIds(""), 0, 0, time.monotonic()
samples = Samples(Settings(samples=folder, sample="unsure", **settings), None)
samples.start()
line = {"time": "2026-11-23T12:00:00Z", "label": "cats", "verdict": "unsure", "unsure_because": "close_call",
        "probabilities": {"cats": 0.5, "dogs": 0.5}, "familiarity": 0.5, "brightness": 0.5, "model": "m", "bytes": 1,
        "queue_ms": 0, "decode_ms": 0, "infer_ms": 0}
for index in range(number):
    made = msgspec.convert(line | {"id": ids.new("cats", "unsure", "m")}, PredictionLine)
    while index - samples.written >= MAX_UNWRITTEN:
        time.sleep(0.001)
    samples.predicted(made, Seen(bytes([index % 256]) * PIXEL_BYTES))
    if index % 1000 == 999 or index == number - 1:
        while samples.written <= index:  # a folder that changes cannot be counted
            time.sleep(0.001)
        sizes = [entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith(".png")]
        most_count, most_bytes = max(most_count, len(sizes)), max(most_bytes, sum(sizes))
samples.close()
print(json.dumps({"written": samples.written, "dropped": samples.dropped, "most_count": most_count,
                  "most_bytes": most_bytes, "seconds": time.monotonic() - began}))
"""


@dataclass(frozen=True)
class Amount:
    """How much of each is measured.

    Attributes:
        streamed: photos whose samples are counted.
        asked: requests to a service with a challenger.
        kept: samples that the store is given, for each cap.
        rounds: turns of each service at each level of load.
        seconds: of a turn.
    """

    streamed: int
    asked: int
    kept: int
    rounds: int
    seconds: int


def loop(photos: Photos, folder: Path, programs: Programs, amount: Amount) -> dict[str, Any]:
    """Measure; returns the report.

    Args:
        photos: what is sent.
        folder: for requests and samples.
        programs: the service.
        amount: how much is measured.

    Raises:
        BenchError: a program is missing, or the service does not start.
    """
    document: dict[str, Any] = {
        "machine": hardware.describe(),
        "stream": asyncio.run(_stream(photos, folder / "stream", programs, amount.streamed)),
        "challenger": asyncio.run(_challenged(photos, programs, amount.asked)),
        "cost": _cost(photos, folder, programs, amount),
        "caps": {name: _fill(folder / name, programs, amount.kept, settings) for name, settings in CAPS.items()},
    }
    return document | {"failures": list(_failures(document))}


async def _stream(photos: Photos, folder: Path, programs: Programs, count: int) -> dict[str, Any]:
    """Send photos, dispute some answers, and see which of the unsure and disputed ones are kept."""
    wanted: set[str] = set()
    with _start(programs, CATSDOGS_SAMPLES=str(folder), CATSDOGS_SAMPLE="unsure,disputed") as server:
        server.wait(form(photos.files[SIZE][0]))

        async def ask(connection: Connection, number: int) -> None:
            answer = json.loads((await connection.ask(_photo(photos, number))).body)
            if disputed := number % DISPUTED_ONE_IN == 0:
                label = {"cats": "dogs", "dogs": "cats"}[answer["predicted_label"]]
                told = json.dumps({"id": answer["id"], "label": label}).encode()
                await connection.ask(post("/feedback", "application/json", told))
            if disputed or answer["verdict"] == "unsure":
                wanted.add(answer["id"])

        taken = await _crowd(server, count, ask)
        await asyncio.to_thread(server.settle)
        lost = wanted - {entry.name.removesuffix(".png") for entry in os.scandir(folder)}
        dropped = await _metric(server, "catsdogs_samples_dropped_total")
    return {
        "photos": count,
        "rate": count / taken,
        "unsure_or_disputed": len(wanted),
        "kept": 1 - len(lost) / len(wanted),
        "dropped": dropped,
    }


async def _challenged(photos: Photos, programs: Programs, count: int) -> dict[str, Any]:
    """Ask a service with a challenger, and compare each answer with that of a service without one."""
    with _start(programs) as server:
        server.wait(form(photos.files[SIZE][0]))
        async with Connection(server.port) as connection:
            expected = [_said((await connection.ask(form(data))).body) for data in photos.files[SIZE]]
    others = 0
    with _start(programs, CATSDOGS_CHALLENGER=str(MODELS["fp32"])) as server:
        server.wait(form(photos.files[SIZE][0]))
        await _until(server, 1, "catsdogs_challenger_ready")

        async def ask(connection: Connection, number: int) -> None:
            nonlocal others
            others += _said((await connection.ask(_photo(photos, number))).body) != expected[number % len(expected)]

        taken = await _crowd(server, count, ask)
        # Those that wait get their turn while the service is idle.
        await _until(server, count, AGREED, DISAGREED, DROPPED)
        agreed, disagreed, dropped = [await _metric(server, name) for name in (AGREED, DISAGREED, DROPPED)]
        return {
            "requests": count,
            "rate": count / taken,
            "answered_otherwise": others,
            "challenger_answers": agreed + disagreed,
            "agreed": agreed,
            "dropped": dropped,
        }


def _cost(photos: Photos, folder: Path, programs: Programs, amount: Amount) -> dict[str, Any]:
    """Rates and p99 with each beside those without, in alternating turns."""
    sent = photos.write(folder / "requests", {SIZE: 1})
    (sent / "order").write_text("".join(f"{SIZE}-{UNSURE if n == 0 else n % UNSURE}\n" for n in range(ONE_IN)))
    environments = {
        "plain": {},
        "samples": {"CATSDOGS_SAMPLES": str(folder / "samples")},
        "challenger": {"CATSDOGS_CHALLENGER": str(MODELS["fp32"])},
    }
    specs = [ServerSpec(name, name, "ours", "int8") for name in environments]
    variants = {name: Variant(name, environment=environment) for name, environment in environments.items()}
    arrangement = Arrangement("shared cores", specs, placement.shared(), sent, list(LEVELS))
    plan = Plan(amount.rounds, amount.seconds, 1, retakes=2, programs=programs, first=form(photos.files[SIZE][0]))
    turns = Rounds(plan, arrangement, variants)
    for number in range(amount.rounds):
        turns.take(number + 1)
    speed = turns.result()["speed"]
    plain = speed.pop("plain")
    return {
        name: {
            clients: {
                figure: statistics.median(
                    mine[figure] / other[figure] - 1
                    for mine, other in zip(level["turns"], plain[clients]["turns"], strict=True)
                )
                for figure in ("rate", "p99_ms")
            }
            | {"turns": level["turns"], "plain_turns": plain[clients]["turns"]}
            for clients, level in levels.items()
        }
        for name, levels in speed.items()
    }


def _fill(folder: Path, programs: Programs, number: int, caps: dict[str, int]) -> dict[str, Any]:
    """Give the store many samples, and see how many it has at most."""
    folder.mkdir()
    command = [str(programs.python), "-c", FILL, str(folder), str(number), json.dumps(caps)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(done.stderr.strip())
    found: dict[str, Any] = json.loads(done.stdout)
    click.echo(f"{number:,} samples under {caps}: at most {found['most_count']:,}, {found['most_bytes']:,} bytes")
    return caps | found


def _failures(document: dict[str, Any]) -> Iterator[str]:
    stream, shadow = document["stream"], document["challenger"]
    if stream["kept"] < LEAST_KEPT:
        yield f"{stream['kept']:.2%} of the unsure and disputed photos were kept"
    if shadow["answered_otherwise"]:
        yield f"{shadow['answered_otherwise']} answers differ from the model's"
    for name, levels in document["cost"].items():
        for clients, found in levels.items():
            if found["rate"] < -MOST_COST or found["p99_ms"] > MOST_COST:
                yield f"{name}, clients {clients}: rate {found['rate']:+.1%}, p99 {found['p99_ms']:+.1%}"
    for kind, found in document["caps"].items():
        if found[f"most_{kind}"] > found[f"samples_{kind}"] or found["dropped"]:
            yield f"cap of {kind}: at most {found[f'most_{kind}']:,}, {found['dropped']} dropped"


def _start(programs: Programs, **environment: str) -> ServerProcess:
    return chosen("ours-int8")[0].start(programs, Variant("", environment=environment))


def _photo(photos: Photos, number: int) -> bytes:
    files = photos.files[SIZE]
    return form(files[number % len(files)])


def _said(body: bytes) -> dict[str, Any]:
    """An answer without what is different each time."""
    answer: dict[str, Any] = json.loads(body)
    del answer["id"]
    return answer


async def _crowd(server: ServerProcess, count: int, ask: Callable[[Connection, int], Any]) -> float:
    """Call ``ask`` with each number, from several clients; returns the seconds that it took."""
    numbers, began = iter(range(count)), time.monotonic()

    async def client() -> None:
        async with Connection(server.port) as connection:
            for number in numbers:
                await ask(connection, number)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return time.monotonic() - began


async def _metric(server: ServerProcess, name: str) -> float:
    async with Connection(server.port) as connection:
        page = (await connection.ask(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")).body.decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def _until(server: ServerProcess, value: float, *names: str) -> None:
    """Wait until these metrics add up to the value.

    Raises:
        BenchError: they do not in time.
    """
    for _ in range(WAIT_SECONDS * 10):
        if sum([await _metric(server, name) for name in names]) >= value:
            return
        await asyncio.sleep(0.1)
    raise BenchError(f"{' + '.join(names)} is not {value:g} after {WAIT_SECONDS} s:\n{server.log()}")
