"""What a queue that costs nothing would show: how far latencies lie apart where photos of all sizes wait in line."""

import heapq
from collections import Counter
from itertools import cycle, islice

from ops.bench.load import quantile

TURNS = 40


def spread(order: list[str], times_ms: dict[str, float], clients: int, lanes: int) -> float:
    """p99 over p50 of a first-come, first-served queue that costs nothing.

    Args:
        order: names of the photos that are sent, again and again.
        times_ms: milliseconds that each takes a lane; photos without are left out.
        clients: each sends as soon as it has its answer.
        lanes: so many are worked on at once.
    """
    sent = [0.0] * clients
    free = [0.0] * lanes
    latencies: Counter[int] = Counter()
    timed = [name for name in order if name in times_ms]
    for name in islice(cycle(timed), TURNS * (clients + len(timed))):
        came = heapq.heappop(sent)
        done = max(came, heapq.heappop(free)) + times_ms[name]
        heapq.heappush(free, done)
        heapq.heappush(sent, done)
        if came:  # not those that all came at once
            latencies[round(1000 * (done - came))] += 1
    return quantile(latencies, 0.99) / quantile(latencies, 0.5)
