"""The dashboards' queries, for tests that send them to a Prometheus."""

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import promql_parser

from tests.conftest import ROOT

DASHBOARDS: Final = ROOT / "ops/grafana/dashboards"
# What must have happened before a metric, by the beginning of its name, has any sample. Rates want it to go on while
# Prometheus scrapes, since a series that appears with its first request has not grown yet.
NEEDS: Final = {
    "ALERTS": "a firing alert",
    "catsdogs_drift_psi": "200 predictions",
    "haproxy_": "the edge",
    "http_request": "predictions",
    "job:http_request": "predictions",
    "job:catsdogs_predictions": "predictions",
    "catsdogs_journal_": "a journal",
    "catsdogs_lane_cpu": "predictions",
    "catsdogs_live_accuracy": "feedback",
    "catsdogs_prediction": "predictions",
    "route:": "predictions",
    "stage:": "predictions",
}


class Query(NamedTuple):
    """One query of a panel, with Grafana's variables filled in, and what it needs to have data."""

    dashboard: str
    panel: str
    expr: str
    needs: frozenset[str]


def boards() -> dict[str, dict[str, Any]]:
    """Every dashboard by the name of its file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Its panels, but for the rows' headings."""
    return (panel for panel in board["panels"] if panel["type"] != "row")


def queries(interval: str = "1m", instance: str = ".*") -> list[Query]:
    """Every query of every panel.

    Args:
        interval: what stands for ``$__rate_interval`` and ``$__range``; at least two scrapes.
        instance: a regular expression for the replicas chosen.
    """
    return [
        Query(name, panel["title"], expr, needs(expr))
        for name, board in boards().items()
        for panel in panels(board)
        for target in panel["targets"]
        for expr in [filled(target["expr"], interval, instance)]
    ]


def filled(expr: str, interval: str = "1m", instance: str = ".*") -> str:
    """The query as Grafana sends it."""
    for variable, value in (("$__rate_interval", interval), ("$__range", interval), ("$instance", instance)):
        expr = expr.replace(variable, value)
    return expr


def needs(expr: str) -> frozenset[str]:
    """What the query needs; nothing if it has an answer for when there is none."""
    if expr.endswith("or vector(0)"):
        return frozenset()
    return frozenset(need for name in metrics(expr) for beginning, need in NEEDS.items() if name.startswith(beginning))


def metrics(expr: str) -> set[str]:
    """Names of the metrics that a query reads."""
    names: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name, f"a selector without a name: {node}"
            names.add(node.name)

    promql_parser.walk(promql_parser.parse(expr), visit)
    return names
