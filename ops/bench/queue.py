"""The spread of latencies of an ideal first-come, first-served queue of photos of all sizes."""

import heapq
from collections import Counter
from itertools import cycle, islice

from ops.bench.load import quantile

TURNS = 40


def spread(order: list[str], times_ms: dict[str, float], clients: int, lanes: int) -> float:
    """p99 over p50 of a simulated first-come, first-served queue without overhead.

    Args:
        order: names of the photos in the order sent, repeated.
        times_ms: milliseconds of a lane for each photo; photos without are skipped.
        clients: each sends its next photo when it has its answer.
        lanes: photos that are processed at the same time.
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
        if came:  # not the first ones, which all arrive at once
            latencies[round(1000 * (done - came))] += 1
    return quantile(latencies, 0.99) / quantile(latencies, 0.5)
