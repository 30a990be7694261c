"""The service's Prometheus metrics. Use them on the event loop only: aioprometheus does not lock."""

import os
import resource
import time
from collections.abc import Callable, Iterable
from typing import Final, get_args

from aioprometheus.collectors import Counter, Gauge, Registry
from aioprometheus.renderer import render
from starlette.routing import Route

from serving.engine.memory import resident_memory, usable_memory
from serving.engine.wire import Answer
from serving.errors import CODES
from serving.telemetry.series import Bins, Counts
from shared import drift
from shared.contract import CLASSES, Actual, Contract, Label

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, float("inf"))
CONFIDENCE: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, float("inf"))
SHARE: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, float("inf"))
# The picture exceeded its processor time or memory, crashed the lane or took too long; or the model failed.
RESTART_REASONS: Final = ("cpu", "memory", "crash", "hang", "model")
# The challenger was refused, gave no answer in time, ended, or the model failed.
CHALLENGER_FAILURES: Final = ("refused", "hang", "crash", "model")
# Drift is measured over the last DRIFT_WINDOW pictures of the model in service, once there are DRIFT_LEAST.
DRIFT_WINDOW: Final = 1_000
DRIFT_LEAST: Final = 200

# Metrics without labels, by their name in `readings`; :func:`_exposed` gives the name on the page.
READINGS: Final = (
    (
        "live_accuracy",
        "Share right of the last 1,000 answers with feedback; not of the unsure, nor pictures of neither or both.",
    ),
    ("live_accuracy_low", "Lower end of its 95 % Wilson interval."),
    ("live_accuracy_high", "Upper end of its 95 % Wilson interval."),
    ("journal_lines_total", "Lines of the journal that are on disk."),
    ("journal_dropped_total", "Lines of the journal that were lost because they could not be written."),
    ("journal_failing", "1 while the journal cannot be written."),
    ("journal_skipped_total", "Entries with the name of a journal's file that were skipped: not regular files."),
    ("samples_written_total", "Samples that are in the store."),
    ("samples_dropped_total", "Samples that were lost because too many waited to be written."),
    ("samples_failing", "1 while samples cannot be written."),
    ("samples_stored", "Samples that the store holds."),
    ("samples_stored_bytes", "Their bytes."),
    ("challenger_ready", "1 while the challenger answers."),
    ("challenger_dropped_total", "Pictures that the challenger was not asked about, because too many waited."),
    ("live_feedback", "Number of answers that live_accuracy is computed from, at most 1,000."),
    ("test_accuracy", "Accuracy on the test photos, from the contract of the model in service."),
    ("test_accuracy_low", "Lower end of its 95 % Wilson interval."),
    ("test_accuracy_high", "Upper end of its 95 % Wilson interval."),
    ("test_answered_accuracy", "The same of the test photos whose verdict is not unsure, as in live_accuracy."),
    ("test_answered_accuracy_low", "Lower end of its 95 % Wilson interval."),
    ("test_answered_accuracy_high", "Upper end of its 95 % Wilson interval."),
    ("ready", "1 while /health/ready answers 200."),
    ("descriptors_exhausted", "1 while no file descriptor is left for another connection; not ready then."),
    ("model_refused", "1 while the model file that was loaded last is refused; an earlier one may serve."),
    ("model_fallback", "1 while the fp32 file serves because the int8 file failed its exam."),
    ("lanes", "Worker processes, each for one picture at a time."),
    ("lanes_busy", "Lanes at work."),
    ("queue_depth", "Pictures that wait for a lane."),
    ("queue_limit", "Pictures that may wait; more are refused as overloaded."),
    ("body_bytes", "Bytes of request bodies that are in memory or may still be sent."),
    ("process_start_time_seconds", "Start of the process, in seconds since 1970."),
    ("process_cpu_seconds_total", "User and system time used by the front process."),
    ("process_resident_memory_bytes", "Resident memory of the front process."),
    ("memory_bytes", "Memory of all processes of the service, with shared memory counted once (PSS)."),
    ("memory_limit_bytes", "Memory the service may use: the container's limit or, if less, the machine's memory."),
    ("process_open_fds", "Open file descriptors."),
    ("process_max_fds", "Maximum number of open file descriptors."),
)


class Metrics:
    """All metrics of one application, in a registry of its own."""

    def __init__(self, readings: Callable[[], dict[str, float]]) -> None:
        """Make them; ``readings`` is called for the values of metrics without labels at each scrape."""
        self._readings = readings
        self._started = time.time()
        self._registry = Registry()

        self.requests = Counts(
            "http_requests_total", "HTTP requests answered.", self._registry, ("method", "route", "status")
        )
        self.duration = Bins(
            "http_request_duration_seconds",
            "Time from the request's head to the end of its answer.",
            self._registry,
            SECONDS,
            ("route",),
        )
        self.stages = Bins(
            "catsdogs_prediction_stage_seconds",
            "Time a picture spent in the queue, in decoding, in one or two looks and, if asked for, in drawing.",
            self._registry,
            SECONDS,
            ("stage",),
        )
        self.predictions = Counts(
            "catsdogs_predictions_total", "Pictures answered.", self._registry, ("label", "verdict")
        )
        self.second_looks = Counts(
            "catsdogs_second_looks_total", "Pictures answered that were looked at again.", self._registry
        )
        self.confidence = Bins("catsdogs_prediction_confidence", "The larger probability.", self._registry, CONFIDENCE)
        self.familiarity = Bins(
            "catsdogs_prediction_familiarity",
            "How similar pictures are to those in training.",
            self._registry,
            SHARE,
        )
        self.rejected = Counts("catsdogs_rejected_total", "Requests and pictures refused.", self._registry, ("code",))
        self.feedback = Counts(
            "catsdogs_feedback_total",
            "Feedback, by predicted and actual label.",
            self._registry,
            ("predicted", "actual"),
        )
        self.drift = Gauge(
            "catsdogs_drift_psi",
            f"Population stability index of the last {DRIFT_WINDOW:,} pictures against the validation set.",
            registry=self._registry,
        )
        self._drift: drift.Window | None = None
        self.model_info = Gauge("catsdogs_model_info", "The model in service; always 1.", registry=self._registry)
        self.lane_restarts = Counts(
            "catsdogs_lane_restarts_total",
            "Lanes that ended and were started again, by reason.",
            self._registry,
            ("reason",),
        )
        self.lane_cpu = Bins(
            "catsdogs_lane_cpu_seconds",
            "Processor time that a lane spent on one picture.",
            self._registry,
            SECONDS,
        )
        self.challenger_answers = Counts(
            "catsdogs_challenger_answers_total",
            "The challenger's answers, by whether their verdict is that of the model in service.",
            self._registry,
            ("agreed",),
        )
        self.challenger_seconds = Bins(
            "catsdogs_challenger_seconds",
            "Time of the challenger's looks at a picture.",
            self._registry,
            SECONDS,
        )
        self.challenger_failures = Counts(
            "catsdogs_challenger_failures_total", "Failures of the challenger, by reason.", self._registry, ("reason",)
        )
        self._gauges = {
            name: (Counter if name.endswith("_total") else Gauge)(_exposed(name), doc, registry=self._registry)
            for name, doc in READINGS
        }
        self._gauges["process_start_time_seconds"].set({}, self._started)
        if limit := usable_memory():
            self._gauges["memory_limit_bytes"].set({}, limit)

        self.second_looks.expect()
        for code in CODES:
            self.rejected.expect(code)
        for reason in RESTART_REASONS:
            self.lane_restarts.expect(reason)
        for agreed in ("true", "false"):
            self.challenger_answers.expect(agreed)
        for reason in CHALLENGER_FAILURES:
            self.challenger_failures.expect(reason)
        for label in CLASSES:
            for verdict in (label, "unsure"):
                self.predictions.expect(label, verdict)
            for actual in get_args(Actual):
                self.feedback.expect(label, actual)

    def expect(self, routes: Iterable[Route]) -> None:
        """Count requests to these routes from 0."""
        for route in routes:
            for method in (route.methods or set()) - {"HEAD"}:
                self.requests.expect(method, route.path, "200")

    def set_model(self, contract: Contract) -> None:
        """Set the model in service, and start drift anew."""
        self.model_info.values.clear()
        self.model_info.set(
            {"version": contract.version, "precision": contract.precision, "architecture": contract.architecture}, 1
        )

        for name, measured in (
            ("test_accuracy", contract.test and contract.test.accuracy),
            ("test_answered_accuracy", contract.test and contract.test.when_answered),
        ):
            for end in ("value", "low", "high"):
                gauge = self._gauges[name if end == "value" else f"{name}_{end}"]
                gauge.values.clear()
                if measured:
                    gauge.set({}, getattr(measured, end))

        self._drift = drift.Window(contract.reference, DRIFT_WINDOW, DRIFT_LEAST)
        self.drift.values.clear()

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request, and its time."""
        self.requests.count(method, route, str(status))
        self.duration.record(seconds, route)

    def time_stages(self, **seconds: float) -> None:
        """Record how long one picture spent in each stage."""
        for stage, value in seconds.items():
            self.stages.record(value, stage)

    def observe_lane(self, seconds: float) -> None:
        """Record the processor time that a lane spent on one picture."""
        self.lane_cpu.record(seconds)

    def restarted(self, reason: str) -> None:
        """Count a restart of a lane, for one of ``RESTART_REASONS``."""
        self.lane_restarts.count(reason)

    def count_prediction(self, answer: Answer) -> None:
        """Count one prediction."""
        if self._drift:
            self._drift.add(answer.confidence, answer.brightness, answer.familiarity)
        self.predictions.count(answer.label, answer.verdict)
        if answer.again:
            self.second_looks.count()
        self.confidence.record(answer.confidence)
        self.familiarity.record(answer.familiarity)

    def count_challenger(self, *, agreed: bool, seconds: float) -> None:
        """Count one answer of the challenger."""
        self.challenger_answers.count(str(agreed).lower())
        self.challenger_seconds.record(seconds)

    def count_challenger_failure(self, reason: str) -> None:
        """Count a failure of the challenger, for one of ``CHALLENGER_FAILURES``."""
        self.challenger_failures.count(reason)

    def count_feedback(self, predicted: Label, actual: Actual) -> None:
        """Count one feedback."""
        self.feedback.count(predicted, actual)

    def page(self, accept: list[str]) -> tuple[bytes, dict[str, str]]:
        """Render all metrics for a scrape; returns the body and its headers."""
        for name, value in (self._readings() | _process()).items():
            self._gauges[name].set({}, value)
        for signal, psi in (self._drift.psi() if self._drift else {}).items():
            self.drift.set({"signal": signal}, psi)
        return render(self._registry, accept)


def _exposed(name: str) -> str:
    """The metric's name on the page; the standard ``process_`` metrics have no prefix."""
    return name if name.startswith("process_") else f"catsdogs_{name}"


def _process() -> dict[str, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    readings: dict[str, float] = {
        "process_cpu_seconds_total": usage.ru_utime + usage.ru_stime,
        "process_max_fds": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }
    if resident := resident_memory():
        readings["process_resident_memory_bytes"] = resident
        readings["process_open_fds"] = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # a virtual folder
    return readings
