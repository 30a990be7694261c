"""The figures of README.md and docs/benchmarks.md are those of the reports. Those of `make bench-serve` and
`make bench-train` are compared in tests/ops/test_bench.py and tests/training/test_bench.py."""

import json
import re
from typing import Any

from tests.conftest import ROOT
from tests.serving.conftest import Running

README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs/benchmarks.md").read_text()


def measured(precision: str) -> "dict[str, Any]":
    document: dict[str, Any] = json.loads((ROOT / f"serving/models/cats-dogs.{precision}.json").read_text())
    return document


def test_the_figures_are_the_reports() -> None:
    files = [measured("int8"), measured("fp32")]

    def share(interval: "dict[str, float]") -> str:
        return f"{interval['value']:.2%} ({interval['low']:.2%} to {interval['high']:.2%})"

    rows = {
        f"right, of {files[0]['pictures']:,} photos": [share(file["accuracy"]) for file in files],
        "right, wrong labels corrected": [share(file["audited"]["accuracy"]) for file in files],
        "log loss": [f"{file['log_loss']:.4f}" for file in files],
        "log loss, wrong labels corrected": [f"{file['audited']['log_loss']['value']:.4f}" for file in files],
        "calibration error": [share(file["audited"]["calibration_error"]) for file in files],
        'answered, rather than "unsure"': [share(file["audited"]["answered"]) for file in files],
        "right where answered": [share(file["audited"]["accuracy_when_answered"]) for file in files],
        "other things called unsure": [share(file["strangers"]["strangers_unsure"]) for file in files],
        "milliseconds a photo, one thread": [f"{file['milliseconds']:.1f}" for file in files],
        "megabytes": [f"{file['megabytes']:.1f}" for file in files],
    }
    lines = [f"| {name} | {' | '.join(figures)} |" for name, figures in rows.items()]
    assert "\n".join(lines) in PAGE
    shown = re.search(r"\| what \| int8.*\n\|[-|]+\n((?:\|.*\n)+)", README)
    assert shown is not None
    assert set(shown[1].splitlines()) <= set(lines)


def test_the_report_is_the_shipped_file_s(service: Running) -> None:
    model = service.http.get("/model").json()
    report = measured(model["precision"])
    assert report["version"] == model["version"]
    assert report["accuracy"] == model["test"]["accuracy"]
    assert report["dataset_digest"] == model["provenance"]["dataset_digest"]
    assert model["provenance"]["registry"].startswith("cats-dogs/")


def test_the_image_is_as_small_and_as_soon_ready_as_it_says() -> None:
    image = json.loads((ROOT / "reports/image.json").read_text())
    layers = ", ".join(str(image["layers_mb"][name]) for name in ("packages", "base", "models", "app"))
    for row in (
        f"| unpacked | {image['unpacked_mb']} MB |",
        f"| … of it packages, Python and system libraries, both models, code | {layers} MB |",
        f"| compressed | {image['compressed_mb']} MB |",
        f"| ready with 1 CPU and 256 MB of memory | {image['ready_seconds'][1]} s |",
        f"| resident then | {image['resident_mb']} MB |",
    ):
        assert row in PAGE, row
