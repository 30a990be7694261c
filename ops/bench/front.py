"""What the front process takes for a request, and how many it can answer, with lanes that answer at once.

It has a core of its own; lanes and load generator have the others. So the rate is the most that one service answers
with any number of lanes. Other checkouts take turns with this one.
"""

import os
import statistics
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from ops.bench import load
from ops.bench.errors import BenchError
from ops.bench.processes import ROOT, ServerProcess, cpu_of, free_port, on_cores
from ops.bench.requests import Photos, form
from ops.bench.servers import Programs, ServerSpec
from shared import hardware

INSTANT: Final = Path(__file__).parent / "baselines" / "instant.py"
LEVELS: Final = (8, 32)
LANES: Final = 2
SIZE: Final = "medium"


@dataclass(frozen=True)
class Amount:
    """Turns of each checkout at each level of clients, and the seconds of a turn."""

    rounds: int
    seconds: int


def front(
    photos: Photos, folder: Path, programs: Programs, others: Sequence[ServerSpec], amount: Amount
) -> dict[str, Any]:
    """Measure; returns the report.

    Args:
        photos: what is sent; only those of one size.
        folder: for requests.
        programs: the service.
        others: services of other checkouts.
        amount: how much is measured.

    Raises:
        BenchError: there is only one core, or the service does not start.
    """
    core, *rest = sorted(os.sched_getaffinity(0))
    if not rest:
        raise BenchError("the front process needs a core of its own, and lanes and load generator another")
    sent = photos.write(folder / "requests", {SIZE: 1})
    turns: dict[str, dict[str, list[dict[str, float]]]] = {}
    with ExitStack() as stack:
        stack.enter_context(on_cores(set(rest)))
        servers: dict[str, ServerProcess] = {}
        for spec in (None, *others):
            server = stack.enter_context(_start(programs, spec))
            server.wait(form(photos.files[SIZE][0]))
            for thread in Path(f"/proc/{server.pid}/task").iterdir():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), {core})
            server.pause()
            servers[spec.name if spec else "this"] = server
        for number in range(amount.rounds):
            for level in LEVELS:
                for name, server in servers.items():
                    server.resume()
                    segment = load.send(sent, server.port, level, amount.seconds, 1, partial(cpu_of, server.pid))
                    server.settle()
                    server.pause()
                    if segment.statuses.keys() != {200} or segment.failures:
                        raise BenchError(f"{name}: {segment.statuses}, {segment.failures} failures")
                    turn = {"rate": segment.rate, "cpu_ms": 1000 * segment.cpu / segment.answers}
                    turns.setdefault(name, {}).setdefault(str(level), []).append(turn)
            click.echo(f"round {number + 1} of {amount.rounds}")
    return {
        "machine": hardware.describe(),
        "lanes": LANES,
        "speed": {
            name: {
                level: {figure: statistics.median(turn[figure] for turn in taken) for figure in ("rate", "cpu_ms")}
                | {"turns": taken}
                for level, taken in levels.items()
            }
            for name, levels in turns.items()
        },
        "failures": [],
    }


def _start(programs: Programs, other: ServerSpec | None) -> ServerProcess:
    port = free_port()
    checkout = other.checkout if other else ROOT
    python = other.python(programs) if other else programs.python
    environment = {
        "PYTHONPATH": f"{checkout}{os.pathsep}{INSTANT.parent}",
        "CATSDOGS_PORT": str(port),
        "CATSDOGS_LANES": str(LANES),
    }
    return ServerProcess([str(python), str(INSTANT)], environment, port, "/health/ready", checkout)
