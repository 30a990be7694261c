"""Processes and cores of servers and of the bare limit."""

import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ops.bench import placement, requests, rounds
from ops.bench.errors import BenchError
from ops.bench.limit import RawLimit, RawProcess
from ops.bench.processes import ServerProcess, free_port, memory_mb, on_cores, tree
from ops.bench.requests import Photos
from ops.bench.servers import MODELS, SERVERS, Precision, also, chosen, versions
from serving.model.session import load
from shared.hardware import cores
from shared.pixels import decode
from tests.conftest import ROOT
from tests.ops.bench.conftest import HERE, LINUX, SPIN
from tests.serving.conftest import Running

LAST = set(range(12, 16))


@LINUX
def test_a_server_that_stands_still_uses_nothing_and_is_ended_with_all_it_started() -> None:
    children = f"import subprocess; subprocess.Popen({SPIN}); subprocess.run({SPIN})"
    with ServerProcess([sys.executable, "-c", children], {}, free_port()) as server:
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


@LINUX
def test_memory_that_the_processes_of_a_server_share_is_counted_once() -> None:
    forking = "import os, signal; block = b'x' * 50_000_000; os.fork(); os.fork(); signal.pause()"
    with ServerProcess([sys.executable, "-c", forking], {}, free_port()) as server:
        while len(server.pids()) < 4:
            time.sleep(0.01)
        assert 50 < memory_mb(server.pids()) < 100


def test_a_server_that_does_not_start_is_an_error_that_shows_why(folder: Path) -> None:
    broken = ServerProcess([sys.executable, "-c", "raise SystemExit('no model')"], {}, free_port())
    with broken, pytest.raises(BenchError, match="exited with code 1:\nno model"):
        broken.wait(b"")
    with pytest.raises(BenchError, match="nowhere cannot be started"):
        ServerProcess(["/nowhere"], {}, free_port())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_bare_limit_answers_as_the_model_does(
    server: Running, photos: Photos, folder: Path, precision: Precision
) -> None:
    with RawProcess(precision, HERE, folder, os.sched_getaffinity(0)) as raw:
        answers = raw.ask("answers")
    assert set(answers) == {f"{size}-{number}" for size in requests.MIX for number in range(len(photos.files[size]))}
    if precision in server.service.model.file:
        answer = server.predict((folder / "medium-0.jpg").read_bytes()).json()
        rounds.compare("ours", "medium-0", answers["medium-0"], answer)


def test_one_photo_in_eleven_is_looked_at_again_in_each_size(photos: Photos) -> None:
    model = load(ROOT / "serving" / "models" / "cats-dogs.int8.onnx")
    for files in photos.files.values():
        assert [model.look(decode(data)).again for data in files] == [False] * 10 + [True]


@pytest.mark.skipif(cores() < 2, reason="one core has one way")
def test_the_bare_limit_is_measured_in_threads_and_in_processes(folder: Path) -> None:
    two = sorted(os.sched_getaffinity(0))[:2]
    with RawLimit("int8", HERE, folder, set(two)) as limit:
        assert list(limit.turn(1, 1, 0)) == ["one thread", "all threads"]
        found = limit.turn(8, 1, 0)
    with RawLimit("int8", HERE, folder, {two[0]}) as limit:
        found |= limit.turn(8, 1, 0)
    assert list(found) == ["threads", "processes", "one thread"]
    for way in found.values():
        assert all(math.isfinite(way[name]) and way[name] > 0 for name in ("rate", "p50_ms", "p99_ms", "cpu_ms"))
        assert way["p50_ms"] <= way["p99_ms"]


def test_processes_stay_on_the_cores_that_they_were_started_on(folder: Path) -> None:
    usable = os.sched_getaffinity(0)
    spin = f"import subprocess; subprocess.run({SPIN})"
    with on_cores({min(usable)}), ServerProcess([sys.executable, "-c", spin], {}, free_port()) as server:
        while len(server.pids()) < 2:
            time.sleep(0.01)
        assert [os.sched_getaffinity(pid) for pid in server.pids()] == [{min(usable)}] * 2
    assert os.sched_getaffinity(0) == usable


@pytest.mark.parametrize(
    ("usable", "lanes", "generator"),
    [
        (range(2), {1: {0}}, {1: {1}}),
        (range(16), {1: {0}, 4: set(range(4)), 12: set(range(12))}, {1: LAST, 4: LAST, 12: LAST}),
        ({1, 2, 5, 6, 7, 9}, {1: {1}, 4: {1, 2, 5, 6}}, {1: {5, 6, 7, 9}, 4: {7, 9}}),
    ],
)
def test_the_load_generator_has_cores_of_its_own(
    usable: Any, lanes: Any, generator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(usable))
    found = {count: where for count in placement.LANES if (where := placement.separate(count))}
    assert {count: where.server for count, where in found.items()} == lanes
    assert {count: where.generator for count, where in found.items()} == generator


def test_a_wrong_server_is_not_measured() -> None:
    right = {"predicted_label": "cats", "probabilities": {"cats": 0.6, "dogs": 0.4}}
    rounds.compare("x", "photo", right, {"predicted_label": "cats", "probabilities": {"cats": 0.6005, "dogs": 0.3995}})
    for label, cats in (("dogs", 0.6), ("cats", 0.602)):
        with pytest.raises(BenchError, match="x answers photo otherwise"):
            rounds.compare(
                "x", "photo", right, {"predicted_label": label, "probabilities": {"cats": cats, "dogs": 0.4}}
            )


def test_both_measure_the_files_that_ship(shipped: Path) -> None:
    assert MODELS["fp32"] == shipped
    assert all(path.is_file() for path in MODELS.values())


def test_servers_are_chosen_by_how_their_names_begin() -> None:
    assert [spec.name for spec in chosen("ours,raw-fp32")] == ["raw-fp32", "ours-int8", "ours-fp32"]
    assert chosen("") == list(SERVERS)
    with pytest.raises(BenchError, match="triton: no such server"):
        chosen("triton")


def test_the_service_of_another_checkout_takes_part_under_a_name_of_its_own(tmp_path: Path) -> None:
    for room in ("serving", "shared"):
        shutil.copytree(ROOT / room, tmp_path / room)
    with (tmp_path / "serving" / "__init__.py").open("a") as package:
        package.write('print("the other checkout", flush=True)\n')
    other = also(f"old={tmp_path}")
    with other.start(HERE, other.variants[0]) as server:
        ready, answered = server.wait(requests.form((ROOT / "tests" / "cat.jpg").read_bytes()))
        assert server.log().startswith("the other checkout\n")
    assert 0 < ready <= answered
    for wrong in ("old=/nowhere", f"ours-int8={tmp_path}", str(tmp_path)):
        with pytest.raises(BenchError):
            also(wrong)


def test_a_package_that_is_missing_is_an_error_in_a_line() -> None:
    assert set(versions(Path(sys.executable), ("onnxruntime", "numpy"))) == {"onnxruntime", "numpy"}
    with pytest.raises(BenchError, match="no-such-package"):
        versions(Path(sys.executable), ("no-such-package",))
    with pytest.raises(BenchError, match="`make bench-serve` makes it"):
        versions(Path("/nowhere/python"), ("numpy",))
