"""The figures against their targets."""

import statistics
from dataclasses import dataclass
from typing import Any, Final

CROWDED: Final = ("8", "32", "128")
PEERS: Final = ("fastapi", "litserve", "bentoml")
# Of the bare limit's requests a second with as many lanes, the load generator on cores of its own.
SHARES: Final = {1: 0.93, 4: 0.90, 12: 0.95}
# Megabytes of the process tree, by lanes.
AT_REST: Final = {"1": 150, "2": 200}


@dataclass(frozen=True)
class Target:
    """A figure and its bound."""

    what: str
    figure: float
    bound: float
    at_least: bool = False
    unit: str = ""
    digits: int = 2

    @property
    def met(self) -> bool:
        """Whether the figure keeps its bound, as printed: digits that are not shown do not count."""
        shown = round(self.figure, self.digits)
        return shown >= self.bound if self.at_least else shown <= self.bound

    def row(self) -> list[str]:
        """The cells of a table's row: name, bound, figure and verdict."""
        unit = f" {self.unit}" if self.unit else ""
        bound = f"{'at least' if self.at_least else 'at most'} {self.bound:g}{unit}"
        return [self.what, bound, f"{self.figure:.{self.digits}f}{unit}", "met" if self.met else "**not met**"]


def ratio(speed: dict[str, Any], one: str, other: str, clients: str, figure: str = "rate") -> float:
    """A figure of ``one`` over that of ``other``, turn by turn; the median."""
    turns = [speed[name][clients]["turns"] for name in (one, other)]
    return float(statistics.median(first[figure] / second[figure] for first, second in zip(*turns, strict=True)))


def spread(level: dict[str, Any]) -> float:
    """p99 over p50, turn by turn; the median."""
    return float(statistics.median(turn["p99_ms"] / turn["p50_ms"] for turn in level["turns"]))


def errors(level: dict[str, Any]) -> int:
    """Answers other than 200, and requests without an answer."""
    return int(sum(count for status, count in level["statuses"].items() if status != "200") + level["failures"])


def judge(document: dict[str, Any]) -> list[Target]:
    """The targets for which the report has figures."""
    return [
        *_rates(document),
        *_also(document),
        *_separate(document),
        *_lone(document),
        *_starts(document),
        *_overload(document),
        *_fairness(document),
    ]


def _rates(document: dict[str, Any]) -> list[Target]:
    speed, found = document["speed"], []
    for precision in ("int8", "fp32"):
        ours, raw = f"ours-{precision}", f"raw-{precision}"
        for clients in CROWDED:
            if clients not in speed.get(ours, {}):
                continue
            where = f"{clients} clients, {precision}"
            level = speed[ours][clients]
            if raw in speed:
                share = ratio(speed, ours, raw, clients)
                found.append(Target(f"requests per second, of the bare limit: {where}", share, 0.97, at_least=True))
            perfect = speed.get(raw, {}).get(clients, {}).get("perfect_spread")
            beside = f" (first come, first served, at no cost: {perfect:.2f})" if perfect else ""
            found.append(Target(f"p99, of p50: {where}{beside}", spread(level), 1.3, unit="times"))
            found.append(Target(f"errors: {where}", errors(level), 0, digits=0))
    for clients in CROWDED:
        rates = {name: levels[clients]["rate"] for name, levels in speed.items() if name in PEERS and clients in levels}
        if rates and "ours-int8" in speed:
            best = max(rates, key=rates.__getitem__)
            times = ratio(speed, "ours-int8", best, clients)
            found.append(Target(f"as shipped, of the best peer ({best}): {clients} clients", times, 2, True, "times"))
    return found


def _also(document: dict[str, Any]) -> list[Target]:
    """This checkout's service against those of other checkouts, on shared cores."""
    speed, found = document["speed"], []
    for name in document["settings"].get("also", []):
        for clients in speed.get("ours-int8", {}):
            if clients == "1":
                p50 = ratio(speed, "ours-int8", name, clients, "p50_ms")
                found.append(Target(f"p50 of a lone client, of {name}'s", p50, 1.1, unit="times"))
            else:
                rate = ratio(speed, "ours-int8", name, clients)
                found.append(Target(f"requests per second, of {name}'s: {clients} clients", rate, 0.97, at_least=True))
    return found


def _separate(document: dict[str, Any]) -> list[Target]:
    """The service with the load generator on cores of its own."""
    found, wrong = [], 0
    for part in document.get("separate", {}).get("measured", []):
        lanes, speed = part["lanes"], part["speed"]
        for clients, level in speed.get("ours-int8", {}).items():
            where = f"{lanes} {'lane' if lanes == 1 else 'lanes'}, {part['photos']} photos, {clients} clients"
            if clients != "1" and "raw-int8" in speed:
                share = ratio(speed, "ours-int8", "raw-int8", clients)
                found.append(
                    Target(f"requests per second, of the bare limit: {where}", share, SHARES[lanes], at_least=True)
                )
            if part["photos"] == "uniform" and clients == str(4 * lanes):
                found.append(Target(f"p99, of p50: {where}", spread(level), 1.3, unit="times"))
            wrong += errors(level)
    return [*found, Target("errors: generator on cores of its own", wrong, 0, digits=0)] if found else []


def _lone(document: dict[str, Any]) -> list[Target]:
    latencies = {name: levels["1"]["p50_ms"] for name, levels in document["speed"].items() if "1" in levels}
    peers = {name: value for name, value in latencies.items() if name in PEERS}
    if not peers:
        return []
    best = min(peers, key=peers.__getitem__)
    return [
        Target(f"p50 of a lone client, {name}, of the best peer's ({best})", latencies[name] / peers[best], 0.99)
        for name in ("ours-int8", "ours-fp32")
        if name in latencies
    ]


def _starts(document: dict[str, Any]) -> list[Target]:
    found = []
    if "ours-int8" in document["starts"]:
        found.append(
            Target("process start to ready, exam passed", document["starts"]["ours-int8"]["ready_s"], 0.6, unit="s")
        )
    memory = document.get("memory", {}).get("ours-int8")
    if memory:
        for lanes, megabytes in memory.get("rest_mb", {}).items():
            what = f"memory at rest, {lanes} {'lane' if lanes == '1' else 'lanes'}"
            found.append(Target(what, megabytes, AT_REST[lanes], unit="MB", digits=0))
        found.append(
            Target("memory, 128 clients that send 12 megapixels", memory["large_mb"], 300, unit="MB", digits=0)
        )
    return found


def _overload(document: dict[str, Any]) -> list[Target]:
    if "overload" not in document:
        return []
    parts = document["overload"].values()
    others = sum(count for part in parts for code, count in part["codes"].items() if code not in {"200", "overloaded"})
    return [
        Target("overload: answers that are neither right nor `overloaded`", others, 0, digits=0),
        Target("overload: Retry-After, off by", document["overload"]["retry_after"]["factor"], 2, unit="times"),
    ]


def _fairness(document: dict[str, Any]) -> list[Target]:
    if "fairness" not in document:
        return []
    part = document["fairness"]
    return [
        Target("a picture in a batch of 64, of one in a request of its own", part["ratio"], 1, unit="times"),
        Target("a single request beside batches waits (p99)", part["waited_pictures_p99"], 3, unit="pictures"),
    ]
