"""The benchmark of training, on generated pictures with the small network: does it run and say what it promises?

No test asserts that anything is fast.
"""

import json
import math
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from tests.conftest import ROOT, draw_photos
from training import params, scoreboard
from training import split as splits
from training.audit import audit
from training.bench import cli as bench
from training.bench import loops
from training.bench.loops import Ours, Part, Task
from training.fetch import fetch
from training.params import Train
from training.prepare import prepare
from training.split import split

LINUX = pytest.mark.skipif(not loops.STATUS.exists(), reason="memory is read from Linux's /proc")


@pytest.fixture
def ready(in_folder: Path) -> Path:
    """A folder in which `catsdogs prepare` has run, and params.yaml asks for the small network."""
    fetch([str(draw_photos(in_folder / "drawn", 60))], Path("data/raw"))
    photos = split(audit(Path("data/raw"), Path("data/audit.csv"), 0.97), Path("data/split.csv"), 0.7, 0.15)
    prepare(photos, Path("data/raw"), Path("data/processed_split"))
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    params.assign(Path("params.yaml"), "train.model", "simple_cnn")
    params.assign(Path("params.yaml"), "train.batch_size", 8)
    return in_folder


@pytest.fixture
def recipe(ready: Path) -> Train:
    return msgspec.structs.replace(params.load(Path("params.yaml")).train, epochs=1)


def numbers(part: Any) -> list[float]:
    """Every number in a JSON document."""
    if isinstance(part, dict):
        return [number for value in part.values() for number in numbers(value)]
    if isinstance(part, list):
        return [number for value in part for number in numbers(value)]
    return [part] if isinstance(part, int | float) else []


@LINUX
@pytest.mark.slow
def test_it_runs_from_end_to_end_and_leaves_json_and_tables(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "INSTEAD", {"decoded_once": "photos decoded in every epoch"})
    monkeypatch.setattr(bench, "ABLATION_BATCHES", 2)
    monkeypatch.setattr(bench, "ABLATION_ROUNDS", 1)
    before = sorted(Path("data").iterdir())
    done = CliRunner().invoke(
        bench.main, ["--rounds", "2", "--batches", "3", "--sizes", "40", "80", "--ablate"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    found = json.loads(Path("reports/bench-train.json").read_text())
    assert found["settings"] == {"model": "simple_cnn", "batch_size": 8, "rounds": 2, "batches": 3}
    for name in ("plain", "ours"):
        assert len(found["speed"][name]["segments"]) == 2
        assert found["speed"][name]["pictures_per_second"] > 0
        assert found["speed"][name]["whole_seconds"] > 0
        assert 0 <= found["accuracy"][name]["low"] <= found["accuracy"][name]["value"] <= 1
    ratio = found["speed"]["ratio"]
    assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert [line["pictures"] for line in found["memory"]] == [40, 80]
    assert all(0 < line["anonymous_mb"] <= line["peak_mb"] for line in found["memory"])
    assert [line["what"] for line in found["ablation"]] == [
        "as it is",
        "photos decoded in every epoch",
        bench.THREADS_SPIN,
    ]
    assert all(line["pictures_per_second"] > 0 for line in found["ablation"])
    assert any(choice.startswith("loader processes: ") for choice in found["choices"])
    assert all(math.isfinite(number) for number in numbers(found))
    assert scoreboard.table(found) in Path("reports/bench-train.md").read_text()
    # Nothing is left behind, and nothing says whose machine it was.
    assert sorted(Path("data").iterdir()) == before
    text = Path("reports/bench-train.json").read_text() + Path("reports/bench-train.md").read_text()
    assert str(ready) not in text
    assert os.uname().nodename not in text


def test_too_few_photos_are_an_error_in_a_line(ready: Path) -> None:
    done = CliRunner().invoke(bench.main, ["--rounds", "50", "--batches", "10", "--no-memory"])
    assert done.exit_code == 2
    assert "4,000 photos are needed" in done.output
    assert not Path("reports/bench-train.json").exists()


def test_both_see_the_same_photos_in_the_same_order(ready: Path) -> None:
    bench.link_sets(ready / "sets", splits.read(Path("data/split.csv")), 24, [50])
    for side in ("train", "val", "50"):
        photos, prepared = (
            [(path.parent.name, path.stem) for path in sorted((ready / "sets" / kind / side).glob("*/*"))]
            for kind in ("photos", "prepared")
        )
        assert photos == prepared
        assert {label for label, _ in photos} == {"cats", "dogs"}
    assert len(list((ready / "sets/prepared/train").glob("*/*"))) == 24
    assert len(list((ready / "sets/prepared/50").glob("*/*"))) == 50


@pytest.mark.parametrize(
    "without", ["", "channels_last", "freezing", "decoded_once", "linear_colours", "bfloat16", "batches"]
)
def test_it_learns_with_any_one_thing_taken_away(ready: Path, recipe: Train, without: Part) -> None:
    bench.link_sets(ready / "sets", splits.read(Path("data/split.csv")), 32, [])
    ours = Ours(Task("ours", str(ready / "sets"), recipe, 4, without=without))
    assert ours.learn(2)["pictures"] == 8  # of 16, the first batch not timed
    assert ours.learn(2)["seconds"] > 0
    assert ours.fit.seen == 32


@LINUX
def test_the_memory_read_is_that_of_this_process() -> None:
    before = loops.process_memory("RssAnon")
    # Straight from the kernel: malloc may have enough that was freed before.
    with mmap.mmap(-1, 200_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for place in range(0, len(block), mmap.PAGESIZE):
            block[place] = 1
        during = loops.process_memory("RssAnon")
    assert during - before == pytest.approx(200, abs=10)
    assert loops.process_memory("VmHWM") >= during


def test_its_help_has_examples() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training.bench", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "python -m training.bench --ablate" in done.stdout


def test_the_benchmarks_page_has_the_figures_of_the_report_and_no_others() -> None:
    page, report = (ROOT / scoreboard.PAGE).read_text(), ROOT / "reports/bench-train.json"
    assert (scoreboard.HEADING in page) == report.exists()
    if report.exists():
        found = json.loads(report.read_text())
        assert scoreboard.table(found) in page
        assert scoreboard.into_page(page, scoreboard.HEADING, scoreboard.table(found)) == page
        assert report.with_suffix(".md").read_text() == scoreboard.report(found)


def test_the_page_s_table_is_replaced_and_nothing_else() -> None:
    one = {"median": 6.0, "low": 5.0, "high": 7.0, "pairs": [5.0, 6.0, 7.0]}
    found = {"speed": {"plain": {"pictures_per_second": 4.0}, "ours": {"pictures_per_second": 24.0}, "ratio": one}}
    page = f"| a | b |\n\n{scoreboard.HEADING}\nText.\n\n| old |\n|---|\n| 1 |\n\nMore.\n\n| c | d |\n"
    new = scoreboard.into_page(page, scoreboard.HEADING, scoreboard.table(found))
    assert "| 4.0 | 24.0 | **6.0 times** (5.0 to 7.0) |" in new
    assert new == page.replace("| old |\n|---|\n| 1 |\n", scoreboard.table(found))
