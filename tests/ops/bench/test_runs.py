"""The benchmark of the service from end to end, its targets and its tables. No test asserts that anything is fast."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ops.bench import batches, measure, placement, rounds, siege, table, targets
from ops.bench.cli import BATCHES, FRONT, LOOP, PAGE, REPORT, SIEGE, SOAK, main
from ops.bench.errors import BenchError
from ops.bench.processes import on_cores
from ops.bench.targets import Target
from shared.hardware import cores
from tests.conftest import ROOT
from tests.ops.bench.conftest import HERE, LINUX, SERVICE, WRK


def test_a_target_is_judged_by_the_digits_that_are_shown() -> None:
    assert Target("", 1.304, 1.3).met
    assert not Target("", 1.306, 1.3).met
    assert Target("", 0.966, 0.97, at_least=True).met
    assert not Target("", 0.964, 0.97, at_least=True).met
    assert Target("memory", 151.2, 150, unit="MB", digits=0).row() == [
        "memory", "at most 150 MB", "151 MB", "**not met**"
    ]  # fmt: skip


def numbers(part: Any) -> list[float]:
    """Every number in a JSON document."""
    if isinstance(part, dict):
        return [number for value in part.values() for number in numbers(value)]
    if isinstance(part, list):
        return [number for value in part for number in numbers(value)]
    return [part] if isinstance(part, int | float) else []


@WRK
@LINUX
@pytest.mark.slow
def test_it_runs_from_end_to_end_and_leaves_json_and_tables(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    arguments = ["--only", "ours-int8,raw-int8", "--clients", "1,8", "--rounds", "2", "--seconds", "1", "--quick"]
    programs = ["--service", str(SERVICE), "--peers", "/nowhere", "--arrangement", "shared"]
    done = CliRunner().invoke(main, [*arguments, *programs, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    for name in ("ours-int8", "raw-int8"):
        assert list(found["speed"][name]) == ["1", "8"]
        assert all(len(level["turns"]) == 2 and level["rate"] > 0 for level in found["speed"][name].values())
    start = found["starts"]["ours-int8"]
    assert 0 < start["ready_s"] <= start["answered_s"]
    memory = found["memory"]["ours-int8"]
    assert 0 < memory["idle_mb"] <= memory["large_mb"]
    assert list(memory["rest_mb"]) == ["1", "2"][: cores()]
    assert set(found["overload"]["steady"]["codes"]) == {"200", "overloaded"}
    assert found["overload"]["retry_after"]["refused"] > 0
    assert found["fairness"]["ratio"] > 0
    assert "separate" not in found
    assert_fit_to_publish(found, out, done.output, tmp_path)


@WRK
@LINUX
@pytest.mark.skipif(cores() < 2, reason="the load generator needs a core of its own")
@pytest.mark.slow
def test_it_measures_the_service_with_the_load_generator_on_cores_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "CLIENTS_PER_LANE", (4,))
    out = tmp_path / "found.json"
    two = sorted(os.sched_getaffinity(0))[:2]
    arguments = ["--arrangement", "separate", "--only", "ours-int8,raw-int8", "--rounds", "1", "--seconds", "1"]
    with on_cores(set(two)):
        done = CliRunner().invoke(
            main, [*arguments, "--service", str(SERVICE), "--out", str(out)], catch_exceptions=False
        )
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert found["separate"]["left_out"] == [4, 12]
    assert [(part["lanes"], part["photos"]) for part in found["separate"]["measured"]] == [(1, "uniform"), (1, "mixed")]
    for part in found["separate"]["measured"]:
        for name, way in (("ours-int8", "server"), ("raw-int8", "one thread")):
            assert list(part["speed"][name]) == ["1", "4"]
            assert all(level["way"] == way and level["rate"] > 0 for level in part["speed"][name].values())
    assert "| 4 | | left out: needs 5 cores, this machine has 2 |" in table.separate(found)
    judged = [target.what for target in targets.judge(found)]
    assert "requests per second, of the bare limit: 1 lane, uniform photos, 4 clients" in judged
    assert "p99, of p50: 1 lane, uniform photos, 4 clients" in judged
    assert_fit_to_publish(found, out, done.output, tmp_path)


def assert_fit_to_publish(found: dict[str, Any], out: Path, printed: str, folder: Path) -> None:
    """The figures are numbers, the tables are those printed, and neither tells where they were made."""
    assert all(math.isfinite(number) for number in numbers(found))
    assert table.report(found) in printed.replace("\r", "")
    assert out.with_suffix(".md").read_text() == table.report(found)
    text = out.read_text() + out.with_suffix(".md").read_text()
    assert str(ROOT) not in text
    assert str(folder) not in text
    assert os.uname().nodename not in text


def test_the_faster_way_is_the_limit() -> None:
    def turn(threads: float, processes: float) -> dict[str, Any]:
        figures = {"p50_ms": 1, "p99_ms": 2, "cpu_ms": 1, "others_share": 0}
        return {"threads": figures | {"rate": threads}, "processes": figures | {"rate": processes}}

    arrangement = rounds.Arrangement("", [], placement.shared(), Path(), [])
    plan = rounds.Plan(rounds=3, seconds=1, warm=1, retakes=0, programs=HERE, first=b"")
    taken = rounds.Rounds(plan, arrangement, {})
    taken.turns["raw-int8"] = {8: [turn(90, 95), turn(99, 94), turn(91, 96)]}
    level = taken.result()["speed"]["raw-int8"]["8"]
    assert (level["way"], level["rate"], level["ways"]) == ("processes", 95, {"threads": 91, "processes": 95})
    assert [turn["rate"] for turn in level["turns"]] == [95, 94, 96]


def test_two_checkouts_are_compared_turn_by_turn() -> None:
    def level(*turns: tuple[float, float]) -> dict[str, Any]:
        return {"turns": [{"rate": rate, "p50_ms": p50} for rate, p50 in turns]}

    found = {
        "speed": {
            "ours-int8": {"1": level((1, 11), (1, 9)), "8": level((100, 1), (50, 1))},
            "old": {"1": level((1, 10), (1, 10)), "8": level((100, 1), (40, 1))},
        },
        "settings": {"also": ["old"]},
        "starts": {},
    }
    for levels in found["speed"].values():  # type: ignore[attr-defined]
        for each in levels.values():
            each |= {"statuses": {"200": 1}, "failures": 0, "rate": 1, "p50_ms": 1}
            each["turns"] = [turn | {"p99_ms": 1} for turn in each["turns"]]
    rows = [target.row() for target in targets.judge(found)]
    assert ["p50 of a lone client, of old's", "at most 1.1 times", "1.00 times", "met"] in rows
    assert ["requests per second, of old's: 8 clients", "at least 0.97", "1.12", "met"] in rows


@LINUX
@pytest.mark.slow
def test_the_soak_counts_every_answer_and_compares_the_tenths(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    arguments = ["soak", "--requests", "1000", "--service", str(SERVICE), "--out", str(out)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert sum(found["answers"].values()) == found["requests"] >= 1000
    assert found["failures"] == []
    assert {"picture: 200", "truncated: undecodable_image", "wrong address: not_found", "abandoned"} <= set(
        found["answers"]
    )
    assert len(found["tenths"]) == 10
    assert (found["first"], found["last"]) == (found["tenths"][0], found["tenths"][-1])
    assert table.soak(found) in done.output


@LINUX
@pytest.mark.slow
def test_the_siege_compares_what_honest_clients_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siege, "PERIOD_SECONDS", 20)
    out = tmp_path / "siege.json"
    arguments = ["siege", "--minutes", "0.6", "--service", str(SERVICE), "--out", str(out)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert (found["failed"], found["failures"]) == (0, [])
    assert found["with"]["answers"] and found["without"]["answers"]
    assert sum(found["misdeeds"].values()) >= found["misbehaving"]
    assert table.siege(found) in done.output


@WRK
@LINUX
@pytest.mark.slow
def test_the_loop_is_measured_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "loop.json"
    arguments = ["loop", "--share", "0.01", "--rounds", "1", "--seconds", "1", "--service", str(SERVICE)]
    done = CliRunner().invoke(main, [*arguments, "--out", str(out)], catch_exceptions=False)
    found = json.loads(out.read_text())
    assert (found["stream"]["photos"], found["stream"]["kept"]) == (30, 1)
    assert found["stream"]["unsure_or_disputed"] == 4, "one in eleven is unsure, one in ten disputed"
    shadow = found["challenger"]
    assert (shadow["requests"], shadow["answered_otherwise"]) == (100, 0)
    assert shadow["challenger_answers"] + shadow["dropped"] == 100
    assert shadow["challenger_answers"] > 0
    assert {name: list(levels) for name, levels in found["cost"].items()} == {
        "samples": ["1", "8"],
        "challenger": ["1", "8"],
    }
    assert found["caps"]["bytes"]["written"] == found["caps"]["count"]["written"] == 1000
    assert 0 < found["caps"]["bytes"]["most_bytes"] <= found["caps"]["bytes"]["samples_bytes"]
    assert all("rate" in failure for failure in found["failures"]), "that of a busy machine says nothing"
    assert table.loop(found) in done.output


@WRK
@LINUX
@pytest.mark.slow
@pytest.mark.skipif(cores() < 2, reason="the front process needs a core of its own")
def test_the_front_process_is_measured_beside_that_of_another_checkout(tmp_path: Path) -> None:
    out = tmp_path / "front.json"
    arguments = ["front", "--also", f"other={ROOT}", "--rounds", "2", "--seconds", "1", "--service", str(SERVICE)]
    done = CliRunner().invoke(main, [*arguments, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert list(found["speed"]) == ["this", "other"]
    for levels in found["speed"].values():
        assert list(levels) == ["8", "32"]
        assert all(len(level["turns"]) == 2 and level["rate"] > 0 < level["cpu_ms"] for level in levels.values())
    assert table.front(found) in done.output


@LINUX
@pytest.mark.slow
def test_batches_are_sent_as_forms_and_as_base64_over_lines_of_several_speeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "LINES", (None, 400))
    out = tmp_path / "batches.json"
    arguments = ["batches", "--rounds", "2", "--service", str(SERVICE), "--out", str(out)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert list(found["lines"]) == ["", "400"]
    assert found["bytes"]["base64"] > 1.3 * found["bytes"]["form"]
    for name, size in found["bytes"].items():
        assert all(rate < batches.BATCH / (size / 50_000_000) for rate in found["lines"]["400"]["turns"][name])
    assert table.batches(found) in done.output


def test_its_help_has_examples() -> None:
    command = [sys.executable, "-m", "ops.bench", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "python -m ops.bench --quick --only ours,raw" in done.stdout


def test_the_documentation_has_the_figures_of_the_reports_and_no_others() -> None:
    found = json.loads(REPORT.read_text())
    page = PAGE.read_text()
    others = {path.stem: json.loads(path.read_text()) for path in (SOAK, SIEGE, LOOP, FRONT, BATCHES) if path.exists()}
    assert table.into_page(page, found, others) == page
    assert REPORT.with_suffix(".md").read_text() == table.report(found)


def test_a_table_replaces_the_one_below_its_marker() -> None:
    found, soaked = json.loads(REPORT.read_text()), json.loads(SOAK.read_text())
    names = ("speed", "separate", "costs", "targets", "soak", "siege", "loop", "front", "batches")
    page = "".join(f"before\n\n{table.MARKER.format(name)}| old |\n|---|\n\nafter\n" for name in names)
    filled = table.into_page(page, found, {"soak": soaked})
    assert filled.startswith(f"before\n\n{table.MARKER.format('speed')}{table.rows(found)}\nafter\n")
    assert "old" not in filled
    with pytest.raises(BenchError, match="bench-serve: soak"):
        table.into_page(page.replace("soak", "sock"), found, {})
