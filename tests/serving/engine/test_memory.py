import threading
from pathlib import Path

import pytest

from serving.engine.memory import MOST_DECODE_BYTES, fitted, memory_limit, resident_memory, trim, usable_memory
from serving.settings import Settings
from shared.pixels import MAX_PIXELS, Limits
from tests.serving.conftest import Start

MIB = 2**20


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "268435456"}, 268_435_456),
        ({"memory.max": "max"}, None),
        ({"memory/memory.limit_in_bytes": "134217728"}, 134_217_728),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ({}, None),
    ],
)
def test_a_container_s_memory_counts(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert memory_limit(tmp_path) == expected
    whole = usable_memory(tmp_path)
    assert whole is not None and whole > MIB
    assert expected is None or whole <= expected


def test_without_a_limit_everything_stays_as_set() -> None:
    assert fitted(Settings(), 4, None) == (Settings(), Limits(MAX_PIXELS, MOST_DECODE_BYTES))


def test_in_a_small_container_batches_and_pictures_are_smaller_and_fit_together() -> None:
    settings, limits = fitted(Settings(), 1, 256 * MIB)
    assert settings.max_body_bytes <= settings.max_batch_bytes < Settings().max_batch_bytes
    assert limits.max_bytes is not None
    assert 141e6 + 3 * settings.max_batch_bytes + limits.max_bytes <= 256 * MIB
    assert limits.max_bytes > 40e6  # a progressive JPEG of 12 megapixels, a PNG of 10


def test_lanes_share_what_is_left_for_decoding() -> None:
    (_, one), (_, two) = (fitted(Settings(), lanes, 1024 * MIB) for lanes in (1, 2))
    assert one.max_bytes is not None and two.max_bytes is not None
    assert 2 * two.max_bytes <= one.max_bytes


def test_what_is_set_wins_and_a_tiny_container_still_takes_photos() -> None:
    assert fitted(Settings(max_decode_bytes=5), 1, 256 * MIB)[1].max_bytes == 5
    assert fitted(Settings(max_decode_bytes=5), 1, None)[1].max_bytes == 5
    settings, limits = fitted(Settings(), 2, 64 * MIB)
    assert settings.max_batch_bytes == settings.max_body_bytes
    assert limits.max_bytes == 8_000_000


def test_giving_memory_back_is_no_error_where_the_c_library_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    trim()
    monkeypatch.setattr("serving.engine.memory.ctypes.CDLL", lambda _: object())
    trim()
    monkeypatch.setattr("serving.engine.memory.os.sysconf_names", {})
    assert usable_memory(Path("/nowhere")) is None


def test_close_to_its_limit_the_service_gives_back_what_lies_free(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = threading.Event()
    monkeypatch.setattr("serving.service.trim", given.set)
    server = start()
    assert not given.wait(1.5)
    server.service._memory_limit = resident_memory()
    assert given.wait(20)
