"""The journal's writer: real files, real threads, and disks that fill up and go away."""

import fcntl
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.telemetry import writer
from serving.telemetry.journal import Journal
from shared import journal
from shared.journal import Line, Unreadable
from tests.conftest import ROOT
from tests.serving.conftest import PHOTO, Start
from tests.shared.test_journal import feedback, prediction
from tests.waiting import until


@pytest.fixture
def begin() -> Iterator[Callable[..., Journal]]:
    """Start a journal; it is closed afterwards."""
    begun: list[Journal] = []

    def start(folder: Path, max_bytes: int = 1_000_000, max_files: int = 0) -> Journal:
        begun.append(Journal(folder, max_bytes, max_files))
        begun[-1].start()
        return begun[-1]

    yield start
    for each in begun:
        each.close()


def lines(folder: Path) -> list[Line | Unreadable]:
    return list(journal.read(journal.gather([folder])))


def ids(folder: Path) -> list[str]:
    return [line.id for line in lines(folder) if not isinstance(line, Unreadable)]


def test_lines_are_on_disk_soon_and_counted(tmp_path: Path, begin: Callable[..., Journal]) -> None:
    started = begin(tmp_path / "made" / "for it")
    started.append(prediction("a"))
    started.append(feedback("a"))
    until(lambda: started.lines == 2)
    assert lines(tmp_path / "made" / "for it") == [prediction("a"), feedback("a")]
    assert (started.dropped, started.failures) == (0, 0)


def test_closing_writes_what_waits(tmp_path: Path, begin: Callable[..., Journal]) -> None:
    started = begin(tmp_path)
    for number in range(5000):
        started.append(prediction(str(number)))
    started.close()
    assert ids(tmp_path) == [str(number) for number in range(5000)]


def test_a_restart_goes_on_with_the_file(tmp_path: Path, begin: Callable[..., Journal]) -> None:
    for number in range(3):
        started = begin(tmp_path)
        started.append(prediction(str(number)))
        started.close()
    assert [path.name for path in tmp_path.iterdir()] == ["journal-000001.jsonl"]
    assert ids(tmp_path) == ["0", "1", "2"]


@pytest.mark.parametrize("torn", [b'{"type":"pred', b"x" * 200_000, b"\0" * 5000, b"\xff"])
@pytest.mark.parametrize("whole", [0, 3])
def test_half_a_line_that_a_crash_left_is_cut_off_so_that_the_next_ones_are_whole(
    tmp_path: Path, begin: Callable[..., Journal], torn: bytes, whole: int
) -> None:
    started = begin(tmp_path)
    for number in range(whole):
        started.append(prediction(str(number)))
    started.close()
    with (tmp_path / journal.name(1)).open("ab") as file:
        file.write(torn)
    started = begin(tmp_path)
    started.append(prediction("next"))
    started.close()
    assert ids(tmp_path) == [*map(str, range(whole)), "next"]
    assert not any(isinstance(line, Unreadable) for line in lines(tmp_path))


def test_a_file_that_is_full_is_followed_by_the_next_and_none_is_lost(
    tmp_path: Path, begin: Callable[..., Journal]
) -> None:
    started = begin(tmp_path, max_bytes=2000)
    for group in range(4):
        for number in range(10):
            started.append(prediction(str(group * 10 + number)))
        until(lambda group=group: started.lines == (group + 1) * 10)  # type: ignore[misc]
    started.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [journal.name(number) for number in (1, 2, 3, 4)]
    assert ids(tmp_path) == [str(number) for number in range(40)]
    begin(tmp_path, max_bytes=2000).close()
    assert len(list(tmp_path.iterdir())) == 5, "the last file is full, so a restart begins the next"


def test_two_services_on_one_folder_each_write_a_file_of_their_own(
    tmp_path: Path, begin: Callable[..., Journal]
) -> None:
    both = [begin(tmp_path), begin(tmp_path)]
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    for number in range(500):
        for name, started in zip("ab", both, strict=True):
            started.append(prediction(f"{name}{number}"))
    for started in both:
        started.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert not any(isinstance(line, Unreadable) for line in lines(tmp_path))
    for name in "ab":
        assert [id_ for id_ in ids(tmp_path) if id_.startswith(name)] == [f"{name}{number}" for number in range(500)]
    third = begin(tmp_path)
    third.close()
    assert len(list(tmp_path.iterdir())) == 2, "the lock ends with the service, so the last file is free again"


def test_a_second_process_takes_the_next_file_too(tmp_path: Path, begin: Callable[..., Journal]) -> None:
    started = begin(tmp_path)
    started.append(prediction("first"))
    until(lambda: started.lines == 1)
    code = f"""
from pathlib import Path
from serving.telemetry.journal import Journal
from tests.conftest import ROOT
from tests.shared.test_journal import prediction
other = Journal(Path({str(tmp_path)!r}), 1_000_000)
other.start()
other.append(prediction("second"))
other.close()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert ids(tmp_path) == ["first", "second"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_said_once_loses_only_what_does_not_fit_in_memory_and_mends_itself(
    tmp_path: Path,
    begin: Callable[..., Journal],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "catsdogs")
    monkeypatch.setattr(writer, "MAX_LINES", 300)
    started = begin(tmp_path)
    for number in range(20):
        started.append(prediction(str(number)))
    until(lambda: started.lines == 20)
    size = (tmp_path / journal.name(1)).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for some lines and a half: the write is cut short in the middle of a line, as on a disk that fills up.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, before[1]))
    try:
        for number in range(20, 500):
            started.append(prediction(str(number)))
        until(lambda: started.failures >= 3)
        assert started.lines == 20
        assert (tmp_path / journal.name(1)).stat().st_size == size, "no half of a group stays"
        assert len(lines(tmp_path)) == 20
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    until(lambda: started.failures == 0)
    assert started.dropped == 180
    assert ids(tmp_path) == [str(number) for number in range(320)]
    started.append(prediction("after"))
    started.close()
    assert ids(tmp_path)[-1] == "after"
    said = [record.message for record in caplog.records]
    assert said == ["the journal cannot be written", "the journal can be written again"]


def test_a_file_system_without_room_is_no_different(tmp_path: Path, begin: Callable[..., Journal]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        filler = disk / "filler"
        started = begin(disk)
        until((disk / journal.name(1)).exists)
        with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        for number in range(100):
            started.append(prediction(str(number)))
        until(lambda: started.failures > 0)
        filler.unlink()
        until(lambda: started.lines == 100)
        started.close()
        assert ids(disk) == [str(number) for number in range(100)]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_made_is_waited_for(
    tmp_path: Path, begin: Callable[..., Journal], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder").write_text("a file where the folder should be")
    started = begin(tmp_path / "folder")
    started.append(prediction("a"))
    until(lambda: started.failures > 0)
    assert [record.message for record in caplog.records] == ["the journal cannot be written"]
    (tmp_path / "folder").unlink()
    until(lambda: started.lines == 1)
    assert ids(tmp_path / "folder") == ["a"]


def test_a_folder_that_is_taken_away_is_made_again(tmp_path: Path, begin: Callable[..., Journal]) -> None:
    started = begin(tmp_path / "folder")
    started.append(prediction("a"))
    until(lambda: started.lines == 1)
    (tmp_path / "folder").rename(tmp_path / "elsewhere")
    started.append(prediction("b"))
    until(lambda: started.lines == 2)
    assert ids(tmp_path / "elsewhere") == ["a"]
    assert ids(tmp_path / "folder") == ["b"]


def test_lines_that_never_reach_the_disk_are_counted_and_said(
    tmp_path: Path, begin: Callable[..., Journal], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder").write_text("a file where the folder should be")
    started = begin(tmp_path / "folder")
    started.append(prediction("a"))
    started.close()
    assert started.dropped == 1
    assert "lines of the journal are lost" in caplog.messages


OBSTACLES: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "folder": Path.mkdir,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path),
}


@pytest.fixture(params=OBSTACLES)
def obstacle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The journal's first two files, the last of which cannot be written."""
    (tmp_path / journal.name(1)).touch()
    path = tmp_path / journal.name(2)
    OBSTACLES[request.param](path)
    return path


def test_a_last_entry_that_is_not_a_file_is_said_and_the_next_file_gets_the_lines(
    obstacle: Path, begin: Callable[..., Journal], caplog: pytest.LogCaptureFixture
) -> None:
    started = begin(obstacle.parent)
    for number in range(100):
        started.append(prediction(str(number)))
    started.close()
    assert list(journal.read([obstacle.with_name(journal.name(3))])) == [prediction(str(n)) for n in range(100)]
    assert (started.lines, started.dropped, started.failures, started.skipped) == (100, 0, 0, 1)
    (said,) = caplog.records
    assert said.message == "the journal's last entry is not a regular file and is skipped"
    assert said.fields == {"entry": obstacle.name}  # type: ignore[attr-defined]


def test_an_entry_that_takes_the_file_s_place_while_it_is_written_is_got_round_too(
    tmp_path: Path, begin: Callable[..., Journal]
) -> None:
    started = begin(tmp_path)
    started.append(prediction("a"))
    until(lambda: started.lines == 1)
    (tmp_path / journal.name(1)).rename(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / journal.name(1))
    started.append(prediction("b"))
    until(lambda: started.lines == 2)
    assert ids(tmp_path) == ["b"]
    assert started.skipped == 1


def test_entries_that_are_not_files_are_neither_deleted_nor_counted_where_so_many_are_kept(
    obstacle: Path, begin: Callable[..., Journal]
) -> None:
    started = begin(obstacle.parent, max_bytes=1, max_files=2)
    for count, name in enumerate("abc", 1):
        started.append(prediction(name))
        until(lambda count=count: started.lines == count)  # type: ignore[misc]
    assert [number for number, _ in journal.entries(obstacle.parent)] == [2, 4, 5]
    assert ids(obstacle.parent) == ["b", "c"]


def test_a_service_starts_answers_and_stops_although_its_journal_s_last_entry_is_not_a_file(
    obstacle: Path, start: Start
) -> None:
    server = start(journal=str(obstacle.parent))
    answered = server.predict(PHOTO).json()["id"]
    until(lambda: server.metric("catsdogs_journal_lines_total") == 1)
    assert ids(obstacle.parent) == [answered]
    assert server.metric("catsdogs_journal_skipped_total") == 1
    told = server.http.post("/feedback", json={"id": answered, "label": "cats"})
    assert told.status_code == 200, "the journal was read back"


def test_lines_keep_their_order_whatever_the_clock_does(tmp_path: Path, begin: Callable[..., Journal]) -> None:
    started = begin(tmp_path)
    for number in range(10):
        started.append(prediction(str(number), time=prediction().time.replace(year=2026 - number)))
    started.close()
    assert ids(tmp_path) == [str(number) for number in range(10)]


def test_who_appends_does_not_wait_for_the_disk(
    tmp_path: Path, begin: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    syncing, synced, fsync = threading.Event(), threading.Event(), os.fsync

    def slow_disk(fd: int) -> None:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            syncing.set()
            synced.wait()
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow_disk)
    started = begin(tmp_path)
    started.append(prediction("0"))
    syncing.wait()
    for number in range(1, 10_000):
        started.append(prediction(str(number)))
    assert started.lines == 0  # the first is still on its way to the disk
    synced.set()
    started.close()
    assert ids(tmp_path) == [str(number) for number in range(10_000)]


def test_nobody_else_gets_the_lock_while_it_writes(tmp_path: Path, begin: Callable[..., Journal]) -> None:
    started = begin(tmp_path)
    until((tmp_path / journal.name(1)).exists)
    started.append(prediction())
    until(lambda: started.lines == 1)
    with (tmp_path / journal.name(1)).open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_the_oldest_files_go_where_so_many_are_kept(tmp_path: Path, begin: Callable[..., Journal]) -> None:
    with (tmp_path / journal.name(1)).open("w") as file:  # another service's, which is still at it
        fcntl.flock(file, fcntl.LOCK_EX)
        started = begin(tmp_path, max_bytes=1, max_files=2)
        for count, name in enumerate("abcd", 1):
            started.append(prediction(name))
            until(lambda count=count: started.lines == count)  # type: ignore[misc]
        assert [number for number, _ in journal.files(tmp_path)] == [1, 4, 5]
    assert ids(tmp_path) == ["c", "d"]
