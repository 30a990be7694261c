"""The bare limit of some cores: decoder and network without HTTP, in threads or in one process for each core."""

import json
import os
import statistics
import subprocess
from collections import Counter
from collections.abc import Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ops.bench import load
from ops.bench.errors import BenchError
from ops.bench.processes import ROOT, on_cores
from ops.bench.servers import BASELINES, MODELS, NO_CALLS, Precision, Programs
from shared.hardware import cores


class RawProcess:
    """A process of ``ops.bench.baselines.raw``; it waits for commands."""

    def __init__(self, precision: Precision, programs: Programs, folder: Path, where: Set[int], first: int = 0) -> None:
        """Start it on the cores ``where``, with the photos of ``folder``, from number ``first`` on."""
        command = [str(programs.python), "-m", f"{BASELINES}.raw", str(MODELS[precision]), str(folder), str(first)]
        with on_cores(where):
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | NO_CALLS
            )
        self.read()

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and wait for the answer."""
        self.send(command)
        return self.read()

    def send(self, command: str) -> None:
        """Send a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """Wait for the next answer.

        Raises:
            BenchError: the process ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"the bare limit ended with exit code {self._process.wait()}; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> "RawProcess":
        """Use it in a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it: it stops at the end of its input."""
        self._process.communicate()


class RawLimit(ExitStack):
    """The bare limit, measured both ways: threads share the interpreter's lock, processes share nothing."""

    def __init__(self, precision: Precision, programs: Programs, folder: Path, where: Set[int]) -> None:
        """Start the processes on the cores ``where``: one on all of them, and one on each if there are several."""
        super().__init__()
        self._cores = sorted(where)
        self._all = self.enter_context(RawProcess(precision, programs, folder, where))
        order = len((folder / "order").read_text().split())
        self._each = [
            # Each begins elsewhere in the order, or all would be at their large photos together.
            self.enter_context(RawProcess(precision, programs, folder, {core}, number * order // len(self._cores)))
            for number, core in enumerate(self._cores if len(self._cores) > 1 else ())
        ]

    def turn(self, clients: int, seconds: int, warm: int) -> dict[str, dict[str, Any]]:
        """Figures of each way to work on at most ``clients`` pictures at a time."""
        span = f"{seconds} {warm}"
        count = min(clients, len(self._cores))
        if count == 1:
            ways = {"one thread": figures([self._all.ask(f"work 1 1 {span}")])}
            if self._each:  # a lone picture can also be spread over all cores
                ways["all threads"] = figures([self._all.ask(f"work 1 {len(self._cores)} {span}")])
            return ways
        threads = figures([self._all.ask(f"work {count} 1 {span}")])
        for process in self._each[:count]:
            process.send(f"work 1 1 {span}")
        return {"threads": threads, "processes": figures([process.read() for process in self._each[:count]])}


def figures(said: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of processes that worked at the same time."""
    latencies = sum((Counter(dict(one["latencies"])) for one in said), Counter[int]())
    rate, used = (sum(one[name] for one in said) for name in ("rate", "cpu_cores"))
    photos = {name for one in said for name in one["times_ms"]}
    return {
        "rate": rate,
        "p50_ms": load.quantile(latencies, 0.5) / 1000,
        "p99_ms": load.quantile(latencies, 0.99) / 1000,
        "cpu_ms": 1000 * used / rate,
        "others_share": max(0.0, statistics.mean(one["busy_cores"] for one in said) - used) / cores(),
        "times_ms": {
            name: statistics.median(one["times_ms"][name] for one in said if name in one["times_ms"])
            for name in sorted(photos)
        },
    }
