"""Photos, requests and the load generator: is what was sent and measured what is reported?"""

import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from ops.bench import load, requests
from ops.bench.errors import BenchError
from tests.ops.bench.conftest import WRK
from tests.serving.conftest import Running


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
        for number in range(len(photos.files[size])):
            with Image.open(tmp_path / "again" / f"{size}-{number:02}.jpg") as image:
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
