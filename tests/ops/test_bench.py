"""The benchmark of the service: does it measure what it says? No test asserts that anything is fast."""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from ops.bench import load, race, requests, table, targets
from ops.bench.cli import REPORT, SOAK, main
from ops.bench.entrants import ENTRANTS, MODELS, Entrant, Programs, Raw, chosen, versions
from ops.bench.errors import BenchError
from ops.bench.processes import Server, cores, free_port, memory_mb, tree
from ops.bench.targets import Target
from tests.conftest import ROOT
from tests.serving.conftest import Running

SERVICE = Path(sys.executable).with_name("catsdogs")
HERE = Programs(SERVICE, Path(sys.executable))
PAGE = ROOT / "docs/benchmarks.md"
WRK = pytest.mark.skipif(not shutil.which("wrk"), reason="the load generator is not installed")
LINUX = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="read from Linux's /proc")
SPIN = [sys.executable, "-c", "while True: pass"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> requests.Photos:
    return requests.make(tmp_path_factory.mktemp("bench") / "photos", None)


@pytest.fixture(scope="module")
def folder(photos: requests.Photos, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos.write(tmp_path_factory.mktemp("bench") / "mixed", requests.MIX)


def corrected(samples: Counter[int], expected: int) -> Counter[int]:
    """What wrk's stats_correct makes of what it measured."""
    found = Counter(samples)
    for value in range(2 * expected, max(samples) + 1):
        # As in C: the counts it has added itself are corrected in their turn, where they lie above the value.
        for added in range(value - expected, expected, -expected):
            found[added] += found[value]
    return found


@pytest.mark.parametrize("seed", range(20))
def test_the_latencies_are_those_measured_and_not_those_wrk_makes_up(seed: int) -> None:
    rng = random.Random(seed)
    measured = Counter(round(rng.lognormvariate(4, 0.8)) + 1 for _ in range(300))
    expected = rng.randrange(10, 80)
    made_up = corrected(measured, expected)
    assert max(measured) < 2 * expected or made_up != measured
    assert load.as_measured(made_up, expected) == measured


def test_a_quantile_is_one_of_the_values() -> None:
    samples = Counter({10: 50, 20: 49, 1000: 1})
    assert [load.quantile(samples, share) for share in (0.5, 0.99, 1.0)] == [10, 20, 1000]


def test_the_mix_is_spread_evenly() -> None:
    order = [size for size, _ in requests.order(requests.MIX, 3)]
    for start in range(0, len(order), 20):
        assert Counter(order[start : start + 20]) == {"small": 9, "medium": 9, "large": 2}
    names = requests.order(requests.MIX, 3)
    assert set(names) == {(size, number) for size in requests.MIX for number in range(3)}


def test_the_photos_are_of_three_sizes_and_the_same_on_every_run(photos: requests.Photos, tmp_path: Path) -> None:
    again = requests.make(tmp_path / "again", None)
    assert photos == again
    for size, shape in (("small", (200, 150)), ("medium", (500, 375)), ("large", (4000, 3000))):
        for number in range(3):
            with Image.open(tmp_path / "again" / f"{size}-{number}.jpg") as image:
                assert image.size == shape
    assert all(2_000_000 < len(data) < 4_000_000 for data in photos.files["large"])


def test_photos_of_one_s_own_are_sent_instead(cat_or_dog: Path, tmp_path: Path) -> None:
    own = requests.make(tmp_path / "own", cat_or_dog)
    assert {size: len(files) for size, files in own.files.items()} == dict.fromkeys(requests.MIX, 6)
    zipped = shutil.make_archive(str(tmp_path / "zipped"), "zip", cat_or_dog)
    assert requests.make(tmp_path / "from-zip", Path(zipped)) == own
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match="no photos in it"):
        requests.make(tmp_path / "none", tmp_path / "empty")


@WRK
def test_the_load_is_answered_and_counted(server: Running, folder: Path) -> None:
    segment = load.send(folder, server.port, clients=4, seconds=2, warm=1, cpu=time.process_time)
    assert segment.answers > 0
    assert segment.statuses == {200: segment.answers}
    assert segment.failures == 0
    assert segment.rate == pytest.approx(segment.answers / 1.9, rel=0.1)
    # Three seconds of answers, of which two were counted.
    assert segment.latencies.total() >= segment.answers
    assert 0 < segment.quantile_ms(0.5) <= segment.quantile_ms(0.99) < 3000
    assert 0 < segment.generator_cpu < 1


@WRK
def test_errors_are_counted_by_status(server: Running, tmp_path: Path) -> None:
    folder = requests.Photos({"small": [b"no picture"]}).write(tmp_path / "bad", {"small": 1})
    segment = load.send(folder, server.port, clients=2, seconds=1, warm=1, cpu=time.process_time)
    assert segment.answers == 0
    assert set(segment.statuses) == {415}


def test_a_missing_load_generator_is_an_error_in_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchError, match="apt-get install wrk"):
        load.send(folder, 1, 1, 1, 1, time.process_time)


@LINUX
def test_a_server_that_stands_still_uses_nothing_and_is_ended_with_all_it_started() -> None:
    children = f"import subprocess; subprocess.Popen({SPIN}); subprocess.run({SPIN})"
    with Server([sys.executable, "-c", children], {}, free_port()) as server:
        while len(server.pids()) < 3:
            time.sleep(0.01)
        pids = server.pids()
        assert memory_mb(pids) > memory_mb(pids[:1]) > 1
        before = server.cpu()
        time.sleep(0.5)
        assert server.cpu() > before
        server.pause()
        time.sleep(0.1)
        before = server.cpu()
        time.sleep(0.5)
        assert server.cpu() == before
    for pid in pids:
        assert tree(pid) == [pid]
        assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_server_that_does_not_start_is_an_error_that_shows_why(folder: Path) -> None:
    broken = Server([sys.executable, "-c", "raise SystemExit('no model')"], {}, free_port())
    with broken, pytest.raises(BenchError, match="exit code 1:\nno model"):
        broken.wait(b"")
    with pytest.raises(BenchError, match="nowhere cannot be started"):
        Server(["/nowhere"], {}, free_port())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_raw_limit_answers_as_the_model_does(server: Running, folder: Path, precision: str) -> None:
    entrant = Entrant("raw", "", "raw", precision)  # type: ignore[arg-type]
    with Raw(entrant, HERE, folder) as raw:
        answers = raw.ask("answers")
        turn = race.raw_turn(raw.ask(f"work {cores()} 1 1 0.5"))
    assert set(answers) == {f"{size}-{number}" for size in requests.MIX for number in range(3)}
    assert all(math.isfinite(turn[name]) and turn[name] > 0 for name in ("rate", "p50_ms", "p99_ms", "cpu_ms"))
    if precision in server.service.model.path.name:
        answer = server.predict((folder / "medium-0.jpg").read_bytes()).json()
        race.compare("ours", "medium-0", answers["medium-0"], answer)


def test_a_wrong_server_is_not_measured() -> None:
    right = {"predicted_label": "cats", "probabilities": {"cats": 0.6, "dogs": 0.4}}
    race.compare("x", "photo", right, {"predicted_label": "cats", "probabilities": {"cats": 0.6005, "dogs": 0.3995}})
    for label, cats in (("dogs", 0.6), ("cats", 0.602)):
        with pytest.raises(BenchError, match="x answers photo otherwise"):
            race.compare("x", "photo", right, {"predicted_label": label, "probabilities": {"cats": cats, "dogs": 0.4}})


def test_both_measure_the_files_that_ship(shipped: Path) -> None:
    assert MODELS["fp32"] == shipped
    assert all(path.is_file() for path in MODELS.values())


def test_entrants_are_chosen_by_how_their_names_begin() -> None:
    assert [entrant.name for entrant in chosen("ours,raw-fp32")] == ["raw-fp32", "ours-int8", "ours-fp32"]
    assert chosen("") == list(ENTRANTS)
    with pytest.raises(BenchError, match="triton: nobody of that name"):
        chosen("triton")


def test_a_package_that_is_missing_is_an_error_in_a_line() -> None:
    assert set(versions(Path(sys.executable), ("onnxruntime", "numpy"))) == {"onnxruntime", "numpy"}
    with pytest.raises(BenchError, match="no-such-package"):
        versions(Path(sys.executable), ("no-such-package",))
    with pytest.raises(BenchError, match="`make bench-serve` makes it"):
        versions(Path("/nowhere/python"), ("numpy",))


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
def test_it_runs_from_end_to_end_and_leaves_json_and_tables(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    arguments = ["--only", "ours-int8,raw-int8", "--clients", "1,8", "--rounds", "2", "--seconds", "1", "--quick"]
    programs = ["--service", str(SERVICE), "--peers", "/nowhere"]
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
    assert set(found["overload"]["steady"]["codes"]) == {"200", "overloaded"}
    assert found["overload"]["retry_after"]["refused"] > 0
    assert found["fairness"]["ratio"] > 0
    assert all(math.isfinite(number) for number in numbers(found))
    assert table.report(found) in done.output.replace("\r", "")
    assert out.with_suffix(".md").read_text() == table.report(found)
    text = out.read_text() + out.with_suffix(".md").read_text()
    assert str(ROOT) not in text
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text


@LINUX
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


def test_its_help_has_examples() -> None:
    command = [sys.executable, "-m", "ops.bench", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "python -m ops.bench --quick --only ours,raw" in done.stdout


def test_the_benchmarks_page_has_the_figures_of_the_reports_and_no_others() -> None:
    section = PAGE.read_text().partition(table.HEADING)[2].partition("\n## ")[0]
    shown = [found[0] for found in re.finditer(r"(?m)(^\|.*\n)+", section)]
    if not REPORT.exists():
        assert set(shown) == {table.NOT_MEASURED}
        return
    found = json.loads(REPORT.read_text())
    assert shown[:3] == [table.rows(found), table.costs(found), table.targets(found)]
    assert shown[3:] == [table.soak(json.loads(SOAK.read_text())) if SOAK.exists() else table.NOT_MEASURED]
    assert REPORT.with_suffix(".md").read_text() == table.report(found)


def test_every_target_of_the_report_is_judged_on_the_benchmarks_page() -> None:
    if REPORT.exists():
        page = PAGE.read_text()
        for target in targets.judge(json.loads(REPORT.read_text())):
            assert f"| {' | '.join(target.row())} |" in page
