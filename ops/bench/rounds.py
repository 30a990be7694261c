"""The comparison: everybody's turns, close together, so that what else the machine does hits all alike.

All servers are started afresh in each round and stand still (SIGSTOP) while another is measured; each level of clients
is a turn of a few seconds for everybody, in an order drawn anew for each level of each round. Starting them for each
turn would be as fair and take an hour; letting idle ones run would not be fair, since some are never idle.
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
from ops.bench.processes import ServerProcess, Watch, cores, memory_mb
from ops.bench.servers import Programs, RawLimit, ServerSpec, Variant

# An answer is the same if no probability differs by more: what is left is the order of sums in other threads.
TOLERANCE: Final = 1e-3
TUNING_CLIENTS: Final = 32
# Share of the machine that other programs may take; the kernel's own for the loopback network is in it, 1 to 2 %.
DISTURBED: Final = 0.05


@dataclass(frozen=True)
class Plan:
    """What is measured for how long; seconds."""

    specs: list[ServerSpec]
    clients: list[int]
    rounds: int
    seconds: int
    warm: int
    retakes: int  # how often a turn may be taken again that others on the machine disturbed
    programs: Programs
    mixed: Path  # the folder of requests of all sizes
    large: Path  # and of 12-megapixel photos alone
    first: bytes  # the request that a start is timed with


class Rounds:
    """What each spec showed in its turns."""

    def __init__(self, plan: Plan) -> None:
        """Begin with nothing."""
        self.plan = plan
        self.variants = {spec.name: spec.variants[0] for spec in plan.specs}
        self.tried: dict[str, list[dict[str, Any]]] = {}
        self.starts: dict[str, list[tuple[float, float]]] = {}
        self.segments: dict[str, dict[int, list[dict[str, Any]]]] = {spec.name: {} for spec in plan.specs}

    @property
    def servers(self) -> list[ServerSpec]:
        """Those that are servers."""
        return [spec for spec in self.plan.specs if spec.kind != "raw"]

    def tune(self) -> None:
        """Try each peer's variants for a moment, and keep the one that answers most requests."""
        for spec in self.servers:
            if len(spec.variants) == 1:
                continue
            tried = self.tried.setdefault(spec.name, [])
            for variant in spec.variants:
                tried.append({"variant": variant.what, "rate": self._try(spec, variant)})
                click.echo(f"{spec.name}, {variant.what}: {tried[-1]['rate']:.1f} requests/s")
            rates = [line["rate"] for line in tried]
            self.variants[spec.name] = spec.variants[rates.index(max(rates))]

    def _try(self, spec: ServerSpec, variant: Variant) -> float:
        with spec.start(self.plan.programs, variant) as server:
            server.wait(self.plan.first)
            return load.send(self.plan.mixed, server.port, TUNING_CLIENTS, 3, 1, server.cpu).rate

    def run(self) -> None:
        """Take all turns."""
        for number in range(self.plan.rounds):
            # A round's own seed, so that a rerun takes turns in the same order.
            self._round(number + 1, random.Random(number))  # noqa: S311  # an order, no secret

    def _round(self, number: int, rng: random.Random) -> None:
        with ExitStack() as stack:
            raws = {
                spec.name: stack.enter_context(RawLimit(spec, self.plan.programs, self.plan.mixed))
                for spec in self.plan.specs
                if spec.kind == "raw"
            }
            servers: dict[str, ServerProcess] = {}
            for spec in rng.sample(self.servers, len(self.servers)):
                server = stack.enter_context(spec.start(self.plan.programs, self.variants[spec.name]))
                servers[spec.name] = server
                self.starts.setdefault(spec.name, []).append(server.wait(self.plan.first))
                if number == 1:
                    self._check(spec, server)
                server.settle()
                server.pause()
            for clients in self.plan.clients:
                for spec in rng.sample(self.plan.specs, len(self.plan.specs)):
                    take = (
                        partial(self._raw_turn, raws[spec.name], clients)
                        if spec.kind == "raw"
                        else partial(self._turn, servers[spec.name], clients)
                    )
                    self.segments[spec.name].setdefault(clients, []).append(self._undisturbed(spec, take))
                rates = {spec.name: self.segments[spec.name][clients][-1]["rate"] for spec in self.plan.specs}
                said = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
                click.echo(f"round {number} of {self.plan.rounds}, {clients} clients: {said} requests/s")

    def _undisturbed(self, spec: ServerSpec, take: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Take a turn, and take it again while others disturb it, as often as the plan allows."""
        for _ in range(self.plan.retakes):
            turn = take()
            if turn["others_share"] <= DISTURBED:
                return turn
            click.echo(f"{spec.name} again: other programs took {turn['others_share']:.0%} of the machine")
        return take()

    def _turn(self, server: ServerProcess, clients: int) -> dict[str, Any]:
        server.go_on()
        segment = load.send(self.plan.mixed, server.port, clients, self.plan.seconds, self.plan.warm, server.cpu)
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

    def _raw_turn(self, raw: RawLimit, clients: int) -> dict[str, Any]:
        span = f"{self.plan.seconds} {self.plan.warm}"
        if clients > 1:
            return raw_turn(raw.ask(f"work {min(clients, cores())} 1 {span}"))
        # Whichever answers one picture sooner: a run in one thread, or spread over all.
        alone, spread = (raw_turn(raw.ask(f"work 1 {intra} {span}")) for intra in (1, cores()))
        return {**min(alone, spread, key=lambda turn: turn["p50_ms"]), "one_thread": alone, "all_threads": spread}

    def _check(self, spec: ServerSpec, server: ServerProcess) -> None:
        """Raise unless the server answers each photo as the raw limit does: a wrong server is not a fast one."""
        twin = ServerSpec("raw", "", "raw", spec.precision)
        with RawLimit(twin, self.plan.programs, self.plan.mixed) as raw:
            expected = raw.ask("answers")
        for name, right in expected.items():
            status, body = server.ask((self.plan.mixed / name).read_bytes())
            if status != 200:
                raise BenchError(f"{spec.name} answers {name} with {status}: {body[:200]!r}\n{server.log()}")
            compare(spec.name, name, right, parse(body))

    def memory(self) -> dict[str, dict[str, float]]:
        """Megabytes of each server, alone on the machine: at rest, and at most under 128 clients."""
        found = {}
        for spec in self.servers:
            with spec.start(self.plan.programs, self.variants[spec.name]) as server:
                server.wait(self.plan.first)
                server.settle()
                line = {"idle_mb": memory_mb(server.pids())}
                for name, folder in (("mixed_mb", self.plan.mixed), ("large_mb", self.plan.large)):
                    with Watch(server) as watch:
                        load.send(folder, server.port, 128, self.plan.seconds, self.plan.warm, server.cpu)
                        server.settle()
                    line[name] = watch.peak_mb
            found[spec.name] = line
            click.echo(
                f"memory of {spec.name}: {line['idle_mb']:.0f} MB at rest, {line['mixed_mb']:.0f} with 128 clients, "
                f"{line['large_mb']:.0f} where all send 12 megapixels"
            )
        return found

    def result(self) -> dict[str, Any]:
        """The parts ``tried``, ``variants``, ``starts`` and ``speed`` of the report."""
        return {
            "tried": self.tried,
            "variants": {name: variant.what for name, variant in self.variants.items()},
            "starts": {
                name: {
                    "ready_s": statistics.median(ready for ready, _ in each),
                    "answered_s": statistics.median(answered for _, answered in each),
                    "each": each,
                }
                for name, each in self.starts.items()
            },
            "speed": {
                name: {str(clients): self._median(clients, turns) for clients, turns in levels.items()}
                for name, levels in self.segments.items()
            },
        }

    def _median(self, clients: int, turns: list[dict[str, Any]]) -> dict[str, Any]:
        """Medians over turns, and each turn's figures; for the raw limit, also the spread of a queue before it."""
        found: dict[str, Any] = {
            name: statistics.median(turn[name] for turn in turns)
            for name in ("rate", "p50_ms", "p99_ms", "cpu_ms", "generator_share", "others_share")
            if name in turns[0]
        }
        if "times_ms" in turns[0] and clients > 1:
            order = (self.plan.mixed / "order").read_text().split()
            found["perfect_spread"] = statistics.median(
                queue.spread(order, turn["times_ms"], clients, min(clients, cores())) for turn in turns
            )
        found["statuses"] = dict(sum((Counter(turn.get("statuses", {})) for turn in turns), Counter()))
        found["failures"] = sum(turn.get("failures", 0) for turn in turns)
        return found | {"turns": turns}


def raw_turn(said: dict[str, Any]) -> dict[str, Any]:
    """The figures of a turn of the raw limit."""
    latencies = Counter(dict(said["latencies"]))
    return {
        "rate": said["rate"],
        "p50_ms": load.quantile(latencies, 0.5) / 1000,
        "p99_ms": load.quantile(latencies, 0.99) / 1000,
        "cpu_ms": said["cpu_ms"],
        "others_share": said["others_share"],
        "times_ms": said["times_ms"],
    }


def parse(body: bytes) -> dict[str, Any]:
    """An answer; BentoML wraps a batch's."""
    answer = json.loads(body)
    found: dict[str, Any] = answer[0] if isinstance(answer, list) else answer
    return found


def compare(spec: str, photo: str, right: dict[str, Any], answer: dict[str, Any]) -> None:
    """Raise unless two answers are the same.

    Raises:
        BenchError: they are not.
    """
    apart = max(abs(answer["probabilities"][label] - share) for label, share in right["probabilities"].items())
    if answer["predicted_label"] != right["predicted_label"] or apart > TOLERANCE:
        raise BenchError(f"{spec} answers {photo} otherwise than the model: {answer}, not {right}")
