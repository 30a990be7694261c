"""The service's Prometheus metrics. Touch them on the event loop only: aioprometheus does not lock."""

import os
import resource
import time
from collections.abc import Callable
from typing import Final

from aioprometheus.collectors import Counter, Gauge, Histogram, Registry
from aioprometheus.renderer import render

from shared.contract import Contract, Verdict

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, float("inf"))
CONFIDENCE: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, float("inf"))
SHARE: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, float("inf"))


class Metrics:
    """All metrics of one application, in a registry of its own."""

    def __init__(self, readings: Callable[[], dict[str, float]]) -> None:
        """Make them; ``readings`` gives ``lanes_busy`` and ``queue_depth`` when asked."""
        self._readings = readings
        self._started = time.time()
        self._registry = Registry()

        self.requests = Counter("http_requests_total", "HTTP requests answered.", registry=self._registry)
        self.duration = Histogram(
            "http_request_duration_seconds",
            "Time from the request's head to the end of its answer.",
            registry=self._registry,
            buckets=SECONDS,
        )
        self.stages = Histogram(
            "prediction_stage_seconds",
            "Time a picture spent in the queue, in decoding, in the network and, if asked for, in drawing.",
            registry=self._registry,
            buckets=SECONDS,
        )
        self.predictions = Counter("predictions_total", "Pictures answered.", registry=self._registry)
        self.confidence = Histogram(
            "prediction_confidence", "The larger probability.", registry=self._registry, buckets=CONFIDENCE
        )
        self.familiarity = Histogram(
            "prediction_familiarity",
            "How much pictures look like training's.",
            registry=self._registry,
            buckets=SHARE,
        )
        self.rejected = Counter("rejected_total", "Requests and pictures refused.", registry=self._registry)
        self.model_info = Gauge("model_info", "The model in service; always 1.", registry=self._registry)
        self._gauges = {
            name: Gauge(name, doc, registry=self._registry)
            for name, doc in (
                ("lanes_busy", "Lanes at work."),
                ("queue_depth", "Pictures that wait for a lane."),
                ("process_start_time_seconds", "Start of the process, in seconds since 1970."),
                ("process_cpu_seconds_total", "User and system time used."),
                ("process_resident_memory_bytes", "Resident memory."),
                ("process_open_fds", "Open file descriptors."),
            )
        }
        self._gauges["process_start_time_seconds"].set({}, self._started)

    def set_model(self, contract: Contract) -> None:
        """Say which model answers from now on."""
        self.model_info.set(
            {"version": contract.version, "precision": contract.precision, "architecture": contract.architecture}, 1
        )

    def time_stages(self, **seconds: float) -> None:
        """Record how long one picture spent in each stage."""
        for stage, value in seconds.items():
            self.stages.observe({"stage": stage}, value)

    def count_prediction(self, verdict: Verdict, confidence: float, familiarity: float) -> None:
        """Count one answer."""
        self.predictions.inc({"label": verdict.label, "verdict": verdict.verdict})
        self.confidence.observe({}, confidence)
        self.familiarity.observe({}, familiarity)

    def page(self, accept: list[str]) -> tuple[bytes, dict[str, str]]:
        """Render everything for a scrape: the body and its headers."""
        for name, value in (self._readings() | _process()).items():
            self._gauges[name].set({}, value)
        return render(self._registry, accept)


def _process() -> dict[str, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    readings: dict[str, float] = {"process_cpu_seconds_total": usage.ru_utime + usage.ru_stime}
    # /proc is Linux's; elsewhere these two are left out.
    try:
        with open("/proc/self/statm") as statm:  # noqa: PTH123 - on the event loop, where a virtual file does not wait
            readings["process_resident_memory_bytes"] = int(statm.read().split()[1]) * resource.getpagesize()
        readings["process_open_fds"] = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # likewise
    except OSError:
        pass
    return readings
