"""The report: one self-contained HTML page and a model card, both from the same figures.

The page loads nothing: figures are inline SVG, and photos (only in the page that stays on this machine) are embedded.
"""

import base64
import csv
import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import jinja2
import markupsafe
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import shared
from shared.contract import CLASSES, Contract
from shared.intervals import Interval, percent
from shared.metrics import reliability_bins
from shared.second_look import Outputs
from training import ablation, measure, plots, robustness, stage
from training.comparison import Comparison
from training.corruptions import CORRUPTIONS, SEVERITIES
from training.split import SIDES

TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader([Path(__file__).with_name("templates"), Path(shared.__file__).parent]),
    autoescape=jinja2.select_autoescape(("html",)),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Content:
    """What both documents are made of.

    Figures, outputs and contracts are by precision, fp32 first; ``labels`` are those that the photos came with.
    """

    metrics: dict[str, dict[str, Any]]
    outputs: dict[str, Outputs]
    contracts: dict[str, Contract]
    ood_outputs: dict[str, Outputs]
    labels: npt.NDArray[np.int64]
    ablation: list[dict[str, Any]]
    precisions: Comparison | None


def page(content: Content, mistakes: Figure | None) -> str:
    """The report as HTML; ``mistakes`` is a sheet of photos, or None for a page that may be published."""
    return TEMPLATES.get_template("report.html").render(
        **_common(content), figures=_figures(content), mistakes=_png(mistakes) if mistakes else None
    )


def card(content: Content) -> str:
    """The model card as Markdown (Mitchell et al. 2019, https://arxiv.org/abs/1810.03993)."""
    return TEMPLATES.get_template("model-card.md").render(**_common(content))


def _common(content: Content) -> dict[str, Any]:
    return {
        "metrics": content.metrics,
        "fp32": content.metrics["fp32"],
        "int8": content.metrics.get("int8"),
        "contract": content.contracts["fp32"],
        "contracts": content.contracts,
        "ablation": content.ablation,
        "precisions": content.precisions.describe("the fp32 file", "the int8 file") if content.precisions else None,
        "audit": _read("audit.json"),
        "split": _split(),
        "collections": collections(),
        "suspects": _read("suspects.json"),
        "export": _read("export.json"),
        "quantize": _read("quantize.json"),
        "calibrations": (fitted := _calibrations(content)),
        "promised": {name: found["promised_wrong"] for name, found in fitted.items()},
        "kinds": list(CORRUPTIONS),
        "severities": range(1, SEVERITIES + 1),
        "judged": robustness.JUDGED,
        "most_wrong": robustness.MOST_WRONG,
        "worst_cells": {name: _worst_cells(metrics) for name, metrics in content.metrics.items()},
        "heat": _heat,
        "made": f"{datetime.now(UTC):%d %B %Y}",
        "percent": percent,
        "bounds": lambda interval, digits=2: Interval(**interval).bounds(digits),
        "share": lambda interval, digits=2: Interval(**interval).text(digits),
    }


def _calibrations(content: Content) -> dict[str, dict[str, Any]]:
    """What was fitted on the validation photos, by file; without those whose stage left no report."""
    reports = {"fp32": _read("export.json"), "int8": _read("quantize.json")}
    return {name: found for name in content.metrics if (found := reports[name])}


def _worst_cells(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of the severity that is judged, those with most wrong answers first."""
    cells = [cell for cell in metrics["robustness"].values() if cell["severity"] == robustness.JUDGED]
    return sorted(cells, key=lambda cell: -cell["wrong_when_answered"]["value"])


def _heat(share: float) -> str:
    """Background of a cell with this share of wrong answers: from clear to red at ten times what is asked for."""
    return f"rgb(200 60 40 / {min(1.0, share / (10 * robustness.MOST_WRONG)):.2f})"


def _read(name: str) -> dict[str, Any] | None:
    """Another stage's figures, None where that stage has not run."""
    try:
        document: dict[str, Any] = json.loads((stage.REPORTS / name).read_text())
    except OSError:
        return None
    return document


def _split() -> dict[str, Any] | None:
    """Photos by side and class."""
    found = _read("split.json")
    return {side: count for side, count in found.items() if side != "collections"} if found else None


def collections() -> list[dict[str, Any]]:
    """A row for each collection: name, licence, origin, and its photos fetched, kept by the audit, and on each side."""
    fetched, split = _read("fetch.json") or {}, _read("split.json") or {}
    none = dict.fromkeys(_split() or SIDES, dict.fromkeys(CLASSES, 0))
    rows = []
    for name, found in fetched.get("collections", {}).items():
        sides = split.get("collections", {}).get(name, none)
        kept = {label: sum(count[label] for count in sides.values()) for label in CLASSES}
        counts = {"fetched": {label: found[label] for label in CLASSES}, "kept": kept, **sides}
        rows.append({"name": name, "licence": found["licence"], "origin": found["origin"], "photos": counts})
    return rows


def _figures(content: Content) -> dict[str, str]:
    fp32, labels = content.outputs["fp32"], content.labels
    confidence = {name: outputs.probabilities.max(1) for name, outputs in content.outputs.items()}
    right = {name: outputs.probabilities.argmax(1) == labels for name, outputs in content.outputs.items()}
    answered = {
        name: measure.reasons(outputs, content.contracts[name]) == "" for name, outputs in content.outputs.items()
    }
    chosen = {
        name: (float(given.mean()), float((given & ~right[name]).sum() / max(1, given.sum())))
        for name, given in answered.items()
    }
    rows = {row["name"]: row for row in content.ablation}
    drawn = {
        "confusion": plots.confusion_matrix(labels, fp32.probabilities.argmax(1)),
        "reliability": plots.reliability(reliability_bins(confidence["fp32"], right["fp32"]), "Reliability"),
        "risk": plots.risk_coverage(
            {name: measure.risk_coverage_curve(confidence[name], right[name]) for name in confidence}, chosen
        ),
        "familiarity": plots.familiarity(
            {"cats and dogs": fp32.familiarity}
            | {name: outputs.familiarity for name, outputs in content.ood_outputs.items()},
            content.contracts["fp32"].unsure.unfamiliar,
        ),
        "ablation": plots.intervals(
            {name: Interval(**row["accuracy"]) for name, row in rows.items()},
            "right on the test photos, % (audited labels, 95 % intervals)",
            baseline=ablation.FIRST,
        ),
        "cost": plots.file_costs(
            {name: (figures["milliseconds_mean"], figures["megabytes"]) for name, figures in content.metrics.items()}
        ),
    }
    if (split := _split()) is not None:
        drawn["split"] = plots.bars(split, "Photos by side")
    if histories := _histories():
        drawn["curves"] = plots.learning_curves(histories)
    return {name: _svg(figure) for name, figure in drawn.items()}


def _histories() -> dict[str, list[SimpleNamespace]]:
    histories = {}
    for name, folder in (("first look", stage.TRAINED), ("second look", stage.CLOSER)):
        if (folder / "history.csv").exists():
            with (folder / "history.csv").open(newline="") as file:
                histories[name] = [
                    SimpleNamespace(
                        **{column: float(value) for column, value in row.items()} | {"epoch": int(row["epoch"])}
                    )
                    for row in csv.DictReader(file)
                ]
    return histories


def _svg(figure: Figure) -> markupsafe.Markup:
    """The figure as an SVG element, whose text stays searchable and accessible."""
    import matplotlib  # noqa: PLC0415  # only for this setting

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cats-dogs", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    content = text.getvalue()
    return markupsafe.Markup(content[content.index("<svg") :])  # noqa: S704  # drawn here, from numbers


def _png(figure: Figure) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
