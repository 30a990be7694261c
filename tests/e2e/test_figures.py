"""The figures of README.md and docs/benchmarks.md are those of the reports. Those of `make bench-serve` and
`make bench-train` are compared in tests/ops/test_bench.py and tests/training/test_bench.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.serving.conftest import Running
from training import scoreboard

PAGE = (ROOT / "docs/benchmarks.md").read_text()


def measured(precision: str) -> "dict[str, Any]":
    document: dict[str, Any] = json.loads((ROOT / f"serving/models/cats-dogs.{precision}.json").read_text())
    return document


@pytest.mark.parametrize("page", scoreboard.MODEL_HEADINGS)
def test_the_figures_are_the_reports(page: Path) -> None:
    text = (ROOT / page).read_text()
    made = scoreboard.model_table(page, measured("int8"), measured("fp32"))
    assert scoreboard.into_page(text, scoreboard.MODEL_HEADINGS[page], made) == text
    assert made in text


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


def test_the_figures_of_scoring_are_those_of_its_report() -> None:
    report = json.loads((ROOT / "reports/bench-score.json").read_text())
    page = (ROOT / "docs/scale.md").read_text()
    for name in ("rate_from_folder", "rate_from_store"):
        found = report[name]
        assert f"| {found['share_of_bare']:.2f} ({found['shares'][0]:.2f} to {found['shares'][-1]:.2f}) |" in page
    crash = report["crash"]
    assert crash["rows"] == crash["keys"] == crash["objects"]
    assert (crash["missing"], crash["twice"], crash["written_by_a_second_run"]) == (0, 0, 0)
    assert f"| {crash['objects']:,} rows, none twice, none missing |" in page
    assert f"| {crash['puts_per_second']:,} puts, {crash['listed_per_second']:,} keys listed a second |" in page
