"""The report as text for a terminal, and as one self-contained HTML page."""

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import shared
from ops.report import Drift, LiveQuality, Report
from shared.contract import CLASSES
from shared.intervals import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_PREDICTIONS: Final = "The journal has no predictions."
NO_FEEDBACK: Final = (
    "There is no feedback on pictures of one animal, so the share of right answers is unknown: see POST /feedback, or "
    "`catsdogs collect`."
)
NO_REFERENCE: Final = "Drift is measured against the model's validation set: pass --url or --contract."


def text(report: Report) -> str:
    """The report for a terminal."""
    return "\n".join(_lines(report))


def page(report: Report) -> str:
    """The report as HTML.

    Raises:
        ModuleNotFoundError: jinja2 or matplotlib is not installed.
    """
    import jinja2  # noqa: PLC0415  # text and JSON need no extra

    from ops import plots  # noqa: PLC0415  # text and JSON need no extra

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).with_name("templates"), Path(shared.__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures: dict[str, Figure] = {}
    if report.quality:
        figures["reliability"] = plots.reliability(report.quality.reliability)
        figures["models"] = plots.models(report.models)
    if report.drift and report.drift.signals:
        figures["drift"] = plots.drift(report.drift.signals)
    words: dict[str, Any] = {
        "classes": CLASSES,
        "percent": percent,
        "span": _span(report),
        "no_predictions": NO_PREDICTIONS,
        "no_feedback": NO_FEEDBACK,
        "no_reference": NO_REFERENCE,
        "made": f"{datetime.now(UTC):%d %B %Y}",
    }
    drawn = {name: _svg(figure) for name, figure in figures.items()}
    return templates.get_template("report.html").render(report=report, figures=drawn, **words)


def _lines(report: Report) -> Iterator[str]:
    files = "1 file" if report.files == 1 else f"{report.files:,} files"
    yield f"{report.predictions:,} predictions and {report.feedback_lines:,} feedback in {files}{_span(report)}"
    if report.unreadable:
        yield f"unreadable lines, left out: {report.unreadable:,}"
    if report.orphans:
        yield f"feedback without its prediction in these files: {report.orphans:,}"
    if not report.predictions:
        yield NO_PREDICTIONS
        return
    assert report.unsure is not None
    assert report.looked_again is not None
    because = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in report.unsure_because.items())
    yield f"unsure            {report.unsure.text()}{f': {because}' if because else ''}"
    yield f"looked at again   {report.looked_again.text()}"
    yield ""
    yield from _quality(report.quality) if report.quality else [NO_FEEDBACK]
    for label, others in report.others.items():
        yield f"{'shown ' + label:<17} {others.feedback:,}, of which {others.answered:,} were answered"
    yield ""
    yield f"{'model':<32} {'predictions':>11} {'unsure':>8} {'feedback':>8}  right"
    for model, share in report.models.items():
        right = share.accuracy.text() if share.accuracy else "–"
        yield f"{model:<32} {share.predictions:>11,} {share.unsure.value:>8.2%} {share.feedback:>8,}  {right}"
    yield ""
    yield f"{'milliseconds':<12} {'50 %':>9} {'90 %':>9} {'99 %':>9} {'largest':>9}"
    for stage, took in report.latency.items():
        yield f"{stage:<12} {took.p50:>9.2f} {took.p90:>9.2f} {took.p99:>9.2f} {took.largest:>9.2f}"
    yield ""
    yield from _drift(report.drift) if report.drift else [NO_REFERENCE]


def _quality(quality: LiveQuality) -> Iterator[str]:
    if quality.accuracy:
        yield f"right             {quality.accuracy.text()} of {quality.answered:,} answers with feedback on one animal"
    yield f"  with the unsure {quality.with_unsure.text()} of {quality.feedback:,}"
    yield f"log loss          {quality.log_loss:.4f}"
    yield f"calibration error {quality.calibration_error:.2%}"
    yield f"{'':<17} " + " ".join(f"{'said ' + label:>10}" for label in CLASSES)
    for label, row in zip(CLASSES, quality.confusion, strict=True):
        yield f"{'was ' + label:<17} " + " ".join(f"{count:>10,}" for count in row)


def _drift(drift: Drift) -> Iterator[str]:
    if not drift.signals:
        yield f"drift: the journal has no predictions by {drift.model}"
        return
    yield f"drift of {drift.predictions:,} pictures from what {drift.model} was validated on"
    yield f"{'':<12} {'PSI':>7} {'by chance':>10}"
    for name, signal in drift.signals.items():
        yield f"{name:<12} {signal.psi:>7.3f} {'< ' + format(signal.by_chance, '.3f'):>10}  {signal.says}"


def _span(report: Report) -> str:
    if report.first is None or report.last is None:
        return ""
    return f", {report.first:%Y-%m-%d %H:%M} to {report.last:%Y-%m-%d %H:%M} UTC"


def _svg(figure: "Figure") -> str:
    """The figure as an SVG element, whose text stays searchable and accessible."""
    import matplotlib  # noqa: PLC0415  # text and JSON need no extra

    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cats-dogs", "font.family": "sans-serif"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
    content = drawn.getvalue()
    return content[content.index("<svg") :]
