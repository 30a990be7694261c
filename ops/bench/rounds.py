"""The comparison: servers take turns, close together, so that what else the machine does affects all of them.

All servers of an arrangement are started anew in each round and stopped (SIGSTOP) while another is measured. Each level
of clients is a turn of a few seconds for each server, in an order drawn for each level of each round. To start them
for each turn would be as fair and take an hour; to let idle ones run would not be fair, since some are never idle.
"""

import json
import random
import statistics
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from ops.bench import load, queue
from ops.bench.errors import BenchError
from ops.bench.limit import RawLimit, RawProcess
from ops.bench.placement import Placement
from ops.bench.processes import ServerProcess, on_cores
from ops.bench.servers import Programs, ServerSpec, Variant
from shared.hardware import cores

# Answers are the same if no probability differs by more: the order of sums differs with the number of threads.
TOLERANCE: Final = 1e-3
TUNING_CLIENTS: Final = 32
# Share of the machine that other programs may take; it includes the kernel's for the loopback network, 1 to 2 %.
DISTURBED: Final = 0.05
FIGURES: Final = ("rate", "p50_ms", "p99_ms", "cpu_ms", "generator_share", "others_share")


@dataclass(frozen=True)
class Plan:
    """How long turns are, in seconds, and with which programs."""

    rounds: int
    seconds: int
    warm: int
    retakes: int  # how often a turn is repeated that other programs disturbed
    programs: Programs
    first: bytes  # the request that a start is timed with


@dataclass(frozen=True)
class Arrangement:
    """Servers that take turns: on which cores, with which photos, from how many clients."""

    title: str
    specs: list[ServerSpec]
    placement: Placement
    folder: Path  # of the requests that are sent
    clients: list[int]


class Rounds:
    """The turns of one arrangement."""

    def __init__(self, plan: Plan, arrangement: Arrangement, variants: dict[str, Variant]) -> None:
        """Begin without any; ``variants`` has the one to measure of each server."""
        self.plan = plan
        self.arrangement = arrangement
        self.variants = variants
        self.starts: dict[str, list[tuple[float, float]]] = {}
        self.turns: dict[str, dict[int, list[dict[str, Any]]]] = {spec.name: {} for spec in arrangement.specs}

    def take(self, number: int) -> None:
        """Take the turns of round ``number``, from 1 on."""
        specs = self.arrangement.specs
        # A seed for each round, so that a rerun takes turns in the same order.
        rng = random.Random(number)  # noqa: S311  # an order, no secret
        with ExitStack() as stack:
            takes = {
                spec.name: self._start_limit(spec, stack)
                if spec.kind == "raw"
                else self._start(spec, stack, check=number == 1)
                for spec in rng.sample(specs, len(specs))
            }
            for clients in self.arrangement.clients:
                for spec in rng.sample(specs, len(specs)):
                    turn = self._undisturbed(spec.name, partial(takes[spec.name], clients))
                    self.turns[spec.name].setdefault(clients, []).append(turn)
                rates = ", ".join(
                    f"{name} {max(figures['rate'] for figures in levels[clients][-1].values()):.1f}"
                    for name, levels in self.turns.items()
                )
                click.echo(
                    f"round {number} of {self.plan.rounds}, {self.arrangement.title}, {clients} clients: "
                    f"{rates} requests/s"
                )

    def _start_limit(self, spec: ServerSpec, stack: ExitStack) -> Callable[[int], dict[str, Any]]:
        where = self.arrangement.placement.server
        limit = stack.enter_context(RawLimit(spec.precision, self.plan.programs, self.arrangement.folder, where))
        return lambda clients: limit.turn(clients, self.plan.seconds, self.plan.warm)

    def _start(self, spec: ServerSpec, stack: ExitStack, *, check: bool) -> Callable[[int], dict[str, Any]]:
        with on_cores(self.arrangement.placement.server):
            server = stack.enter_context(spec.start(self.plan.programs, self.variants[spec.name]))
        self.starts.setdefault(spec.name, []).append(server.wait(self.plan.first))
        if check:
            self._check(spec, server)
        server.settle()
        server.pause()
        return lambda clients: {"server": self._turn(server, clients)}

    def _undisturbed(self, name: str, take: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Take a turn, and repeat it while other programs disturb it, as often as the plan allows."""
        for _ in range(self.plan.retakes):
            turn = take()
            others = max(figures["others_share"] for figures in turn.values())
            if others <= DISTURBED:
                return turn
            click.echo(f"{name} again: other programs took {others:.0%} of the machine")
        return take()

    def _turn(self, server: ServerProcess, clients: int) -> dict[str, Any]:
        plan = self.plan
        server.resume()
        with on_cores(self.arrangement.placement.generator):
            segment = load.send(self.arrangement.folder, server.port, clients, plan.seconds, plan.warm, server.cpu)
        server.settle()
        server.pause()
        return {
            "rate": segment.rate,
            "p50_ms": segment.quantile_ms(0.5),
            "p99_ms": segment.quantile_ms(0.99),
            "cpu_ms": 1000 * segment.cpu / max(1, segment.answers),
            "generator_share": segment.generator_cpu / segment.seconds / cores(),
            "others_share": segment.others_cpu / segment.seconds / cores(),
            "statuses": {str(status): count for status, count in sorted(segment.statuses.items())},
            "failures": segment.failures,
        }

    def _check(self, spec: ServerSpec, server: ServerProcess) -> None:
        """Raise unless the server answers each photo as the model does: a wrong server is not a fast one.

        Another checkout may have another model, so its service only has to answer.
        """
        folder = self.arrangement.folder
        with RawProcess(spec.precision, self.plan.programs, folder, self.arrangement.placement.server) as raw:
            expected = raw.ask("answers")
        for name, right in expected.items():
            status, body = server.ask((folder / name).read_bytes())
            if status != 200:
                raise BenchError(f"{spec.name} answers {name} with {status}: {body[:200]!r}\n{server.log()}")
            if spec.kind != "also":
                compare(spec.name, name, right, parse(body))

    def result(self) -> dict[str, Any]:
        """The parts ``starts`` and ``speed`` of the report."""
        return {
            "starts": {
                name: {
                    "ready_s": statistics.median(ready for ready, _ in each),
                    "answered_s": statistics.median(answered for _, answered in each),
                    "each": each,
                }
                for name, each in self.starts.items()
            },
            "speed": {
                name: {str(clients): self._level(clients, turns) for clients, turns in levels.items()}
                for name, levels in self.turns.items()
            },
        }

    def _level(self, clients: int, turns: list[dict[str, Any]]) -> dict[str, Any]:
        """Medians over turns and each turn's figures, of the fastest way if there are several."""
        rates = {way: statistics.median(turn[way]["rate"] for turn in turns) for way in turns[0]}
        best = max(rates, key=rates.__getitem__)
        each = [turn[best] for turn in turns]
        found: dict[str, Any] = {"ways": rates, "way": best}
        found |= {name: statistics.median(turn[name] for turn in each) for name in FIGURES if name in each[0]}
        if "times_ms" in each[0] and clients > 1:
            order = (self.arrangement.folder / "order").read_text().split()
            lanes = min(clients, len(self.arrangement.placement.server))
            found["perfect_spread"] = statistics.median(
                queue.spread(order, turn["times_ms"], clients, lanes) for turn in each
            )
        found["statuses"] = dict(sum((Counter(turn.get("statuses", {})) for turn in each), Counter()))
        found["failures"] = sum(turn.get("failures", 0) for turn in each)
        return found | {"turns": each}


def tune(plan: Plan, arrangement: Arrangement) -> dict[str, list[dict[str, Any]]]:
    """Try the variants of each server that has several; returns their rates."""
    tried: dict[str, list[dict[str, Any]]] = {}
    for spec in arrangement.specs:
        for variant in spec.variants if len(spec.variants) > 1 else ():
            with spec.start(plan.programs, variant) as server:
                server.wait(plan.first)
                rate = load.send(arrangement.folder, server.port, TUNING_CLIENTS, 3, 1, server.cpu).rate
            tried.setdefault(spec.name, []).append({"variant": variant.what, "rate": rate})
            click.echo(f"{spec.name}, {variant.what}: {rate:.1f} requests/s")
    return tried


def parse(body: bytes) -> dict[str, Any]:
    """An answer; BentoML wraps one of a batch in a list."""
    answer = json.loads(body)
    found: dict[str, Any] = answer[0] if isinstance(answer, list) else answer
    return found


def compare(server: str, photo: str, right: dict[str, Any], answer: dict[str, Any]) -> None:
    """Raise unless two answers are the same.

    Raises:
        BenchError: they are not.
    """
    apart = max(abs(answer["probabilities"][label] - share) for label, share in right["probabilities"].items())
    if answer["predicted_label"] != right["predicted_label"] or apart > TOLERANCE:
        raise BenchError(f"{server} answers {photo} otherwise than the model: {answer}, not {right}")
