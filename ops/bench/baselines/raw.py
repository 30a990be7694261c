"""The bare limit: decoder and networks in threads, on photos in memory, without HTTP.

    python -m ops.bench.baselines.raw model.onnx FOLDER [FIRST]

It reads commands from stdin and answers each with a line of JSON. ``work THREADS INTRA SECONDS WARM`` works through
the folder's photos in order, again and again, from number FIRST on, in THREADS threads with INTRA threads for each run
of the network. ``answers`` answers each photo once.
"""

import json
import statistics
import sys
import threading
import time
from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import Any

from ops.bench.baselines.network import Network
from ops.bench.processes import busy


class Raw:
    """The photos in memory, and sessions."""

    def __init__(self, model: str, folder: Path, first: int) -> None:
        """Read everything."""
        self.model = model
        names = (folder / "order").read_text().split()
        self.files = {name: (folder / f"{name}.jpg").read_bytes() for name in dict.fromkeys(names)}
        self.order = names[first:] + names[:first]
        self.networks: dict[int, Network] = {}

    def network(self, intra: int) -> Network:
        """A session with ``intra`` threads for a run, made once."""
        if intra not in self.networks:
            self.networks[intra] = Network(self.model, intra)
        return self.networks[intra]

    def work(self, threads: int, intra: int, seconds: float, warm: float) -> dict[str, Any]:
        """Work for ``warm`` and then ``seconds`` seconds; what is finished in the latter counts."""
        network, names = self.network(intra), cycle(self.order)
        begin = time.perf_counter() + warm
        end = begin + seconds
        rates: list[float] = []
        times: dict[str, list[float]] = {name: [] for name in self.files}
        starts: list[tuple[float, float, float]] = []

        def run() -> None:
            since, done, now = 0.0, 0, time.perf_counter()
            while now < end:
                # next() on one iterator from many threads is safe while the interpreter has its lock.
                name = next(names)
                network.answer(self.files[name])
                before, now = now, time.perf_counter()
                if since:
                    done += 1
                    times[name].append(now - before)
                elif now >= begin:
                    since = now
                    starts.append((now, time.process_time(), busy()))
            # Whole pictures over their time, so that neither the first nor the last is counted in part.
            rates.append(done / (now - since))

        workers = [threading.Thread(target=run) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        began, cpu, machine = min(starts)
        lasted, cpu, machine = time.perf_counter() - began, time.process_time() - cpu, busy() - machine
        latencies = Counter(round(1e6 * seconds) for each in times.values() for seconds in each)
        return {
            "rate": sum(rates),
            "latencies": sorted(latencies.items()),
            "times_ms": {name: 1000 * statistics.median(each) for name, each in times.items() if each},
            "cpu_cores": cpu / lasted,
            "busy_cores": machine / lasted,
        }

    def answers(self) -> dict[str, Any]:
        """Answer each photo once."""
        return {name: self.network(1).answer(data) for name, data in self.files.items()}


def main() -> None:
    """Answer the commands on stdin."""
    # As the service does; it makes no difference here, where threads hold the lock for microseconds.
    sys.setswitchinterval(0.001)
    raw = Raw(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else 0)
    raw.network(1)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command, *numbers = line.split()
        answer = raw.answers() if command == "answers" else _work(raw, *map(float, numbers))
        print(json.dumps(answer), flush=True)


def _work(raw: Raw, threads: float, intra: float, seconds: float, warm: float) -> dict[str, Any]:
    return raw.work(int(threads), int(intra), seconds, warm)


if __name__ == "__main__":
    main()
