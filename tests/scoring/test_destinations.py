from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scoring import destinations


def test_of_those_who_create_one_file_at_a_time_the_first_succeeds(tmp_path: Path) -> None:
    folder = destinations.opened(str(tmp_path))
    with ThreadPoolExecutor(16) as racers:
        won = list(racers.map(lambda racer: folder.create("job/a", str(racer).encode()), range(64)))
    assert won.count(True) == 1
    assert folder.read("job/a") == str(won.index(True)).encode()
    assert folder.names("job") == {"a"}


def test_a_file_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    folder = destinations.opened(str(tmp_path / "to"))
    assert not folder.exists("b")
    assert folder.create("b", tmp_path / "a")
    assert not folder.create("b", tmp_path / "a")
    assert folder.read("b") == b"content"


def test_what_a_killed_worker_left_is_swept(tmp_path: Path) -> None:
    folder = destinations.opened(str(tmp_path))
    folder.create("job/a", b"1")
    (tmp_path / "job/.a.parquet.00.partial").write_bytes(b"half")
    folder.sweep("job")
    assert folder.names("job") == {"a"}
