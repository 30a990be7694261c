"""Memory of servers: at rest, and the peak under many clients."""

import os
from pathlib import Path
from typing import Any, Final

import click

from ops.bench import load
from ops.bench.processes import PeakMemory, memory_mb, on_cores
from ops.bench.rounds import Plan
from ops.bench.servers import ServerSpec, Variant
from shared.hardware import cores

CLIENTS: Final = 128
LANES: Final = (1, 2)


def measure(
    plan: Plan, specs: list[ServerSpec], variants: dict[str, Variant], mixed: Path, large: Path
) -> dict[str, dict[str, Any]]:
    """Megabytes (PSS of the process tree) of each server, with no other running.

    Args:
        plan: seconds of load.
        specs: the servers.
        variants: the one to measure of each.
        mixed: the folder of requests with photos of all sizes.
        large: and with photos of 12 megapixels.
    """
    found = {}
    for spec in specs:
        line: dict[str, Any] = {}
        with spec.start(plan.programs, variants[spec.name]) as server:
            server.wait(plan.first)
            server.settle()
            line["idle_mb"] = memory_mb(server.pids())
            for name, folder in (("mixed_mb", mixed), ("large_mb", large)):
                with PeakMemory(server) as peak:
                    load.send(folder, server.port, CLIENTS, plan.seconds, plan.warm, server.cpu)
                    server.settle()
                line[name] = peak.mb
        if spec.kind in {"ours", "also"}:
            line["rest_mb"] = {str(lanes): _at_rest(plan, spec, lanes) for lanes in LANES if lanes <= cores()}
        found[spec.name] = line
        click.echo(
            f"memory of {spec.name}: {line['idle_mb']:.0f} MB at rest, {line['mixed_mb']:.0f} with {CLIENTS} clients, "
            f"{line['large_mb']:.0f} if all send 12 megapixels"
        )
    return found


def _at_rest(plan: Plan, spec: ServerSpec, lanes: int) -> float:
    """Megabytes of a service that may use ``lanes`` cores, and so has ``lanes`` lanes."""
    with on_cores(set(sorted(os.sched_getaffinity(0))[:lanes])), spec.start(plan.programs, spec.variants[0]) as server:
        server.wait(plan.first)
        server.settle()
        return memory_mb(server.pids())
