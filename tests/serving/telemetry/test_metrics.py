"""The page of metrics: what is counted is there from the start, so that the first event is an increase."""

import re

import msgspec

from serving.errors import CODES
from serving.http import pages
from serving.http.endpoints import ENDPOINTS
from serving.model.session import load
from serving.settings import SHIPPED_INT8
from serving.telemetry.metrics import RESTART_REASONS, Metrics
from shared.contract import CLASSES
from shared.intervals import Interval


def values(page: str, name: str) -> dict[str, float]:
    """The samples of one metric by their labels."""
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", page, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def page(metrics: Metrics) -> str:
    return metrics.page([])[0].decode()


def test_every_known_code_route_and_answer_is_there_from_the_start_at_0() -> None:
    metrics = Metrics(dict)
    metrics.expect([*(endpoint.route for endpoint in ENDPOINTS), *pages.ROUTES])
    first = page(metrics)
    assert values(first, "catsdogs_rejected_total") == {f'code="{code}"': 0 for code in CODES}
    assert values(first, "catsdogs_lane_restarts_total") == {f'reason="{reason}"': 0 for reason in RESTART_REASONS}
    assert values(first, "catsdogs_predictions_total") == {
        f'label="{label}",verdict="{verdict}"': 0 for label in ("cats", "dogs") for verdict in (label, "unsure")
    }
    assert values(first, "catsdogs_second_looks_total") == {"": 0}
    requests = values(first, "http_requests_total")
    assert len(requests) == len([*(endpoint.route for endpoint in ENDPOINTS), *pages.ROUTES])
    assert requests['method="POST",route="/predict",status="200"'] == 0
    assert requests['method="GET",route="/metrics",status="200"'] == 0


def test_feedback_is_there_for_each_answer_and_each_label_that_it_may_have() -> None:
    told = values(page(Metrics(dict)), "catsdogs_feedback_total")
    assert {f'actual="{actual}",predicted="{predicted}"' for actual in CLASSES for predicted in CLASSES} <= told.keys()
    assert set(told.values()) == {0}


def test_restarts_of_lanes_are_counted_by_reason_and_their_processor_time_is_spread() -> None:
    metrics = Metrics(dict)
    metrics.restarted("cpu")
    metrics.restarted("cpu")
    metrics.observe_lane(0.02)
    metrics.observe_lane(3.0)
    later = page(metrics)
    assert values(later, "catsdogs_lane_restarts_total")['reason="cpu"'] == 2
    assert values(later, "catsdogs_lane_cpu_seconds_bucket")['le="0.025"'] == 1
    assert (values(later, "catsdogs_lane_cpu_seconds_sum"), values(later, "catsdogs_lane_cpu_seconds_count")) == (
        {"": 3.02},
        {"": 2},
    )


def test_readings_get_the_prefix_and_the_standard_process_metrics_do_not() -> None:
    told = page(Metrics(lambda: {"ready": 1.0, "queue_depth": 3}))
    assert (values(told, "catsdogs_ready"), values(told, "catsdogs_queue_depth")) == ({"": 1}, {"": 3})
    assert values(told, "process_start_time_seconds").keys() == {""}
    names = set(re.findall(r"^# TYPE (\S+)", told, re.MULTILINE))
    assert {name for name in names if not name.startswith(("catsdogs_", "http_", "process_"))} == set()


def test_the_test_photos_accuracy_is_told_of_all_and_of_those_answered_if_the_contract_has_it() -> None:
    shipped = load(SHIPPED_INT8).contract
    assert shipped.test
    metrics, answered = Metrics(dict), Interval(0.998, 0.995, 0.999)
    for measured, expected in ((answered, {"": 0.995}), (None, {})):
        test = msgspec.structs.replace(shipped.test, when_answered=measured)
        metrics.set_model(msgspec.structs.replace(shipped, test=test))
        assert values(page(metrics), "catsdogs_test_answered_accuracy_low") == expected
        assert values(page(metrics), "catsdogs_test_accuracy_low") == {"": test.accuracy.low}
