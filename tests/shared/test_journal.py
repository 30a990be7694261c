"""The journal's lines, and reading them back whatever became of the files."""

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import journal
from shared.journal import FeedbackLine, JournalError, Line, PredictionLine, Unreadable


def prediction(id_: str = "a", **other: object) -> PredictionLine:
    line = PredictionLine(
        time=datetime(2026, 11, 23, 12, tzinfo=UTC),
        id=id_,
        label="cats",
        verdict="cats",
        unsure_because=None,
        probabilities={"cats": 0.9, "dogs": 0.1},
        familiarity=0.8,
        brightness=0.4,
        model="m",
        bytes=1000,
        queue_ms=0.1,
        decode_ms=2.0,
        infer_ms=8.0,
    )
    return msgspec.structs.replace(line, **other)


def feedback(id_: str = "a", **other: object) -> FeedbackLine:
    return msgspec.structs.replace(
        FeedbackLine(time=datetime(2026, 11, 23, 12, tzinfo=UTC), id=id_, label="cats"), **other
    )


def write(path: Path, *lines: Line) -> Path:
    path.write_bytes(msgspec.json.Encoder().encode_lines(lines))
    return path


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    lines: list[Line] = [prediction("a"), feedback("a"), prediction("b", verdict="unsure", unsure_because="close_call")]
    assert list(journal.read([write(tmp_path / "j", *lines)])) == lines


def test_a_line_says_what_it_is_and_when_in_utc() -> None:
    line = msgspec.json.decode(msgspec.json.encode(feedback()))
    assert line == {"type": "feedback", "time": "2026-11-23T12:00:00Z", "id": "a", "label": "cats"}


def test_a_line_from_before_there_were_second_looks_is_of_a_picture_looked_at_once(tmp_path: Path) -> None:
    line = msgspec.to_builtins(prediction("a"))
    del line["again"]
    (tmp_path / "j").write_bytes(msgspec.json.encode(line) + b"\n")
    assert list(journal.read([tmp_path / "j"])) == [prediction("a", again=False)]


@given(cut=st.integers(0, 10_000))
def test_wherever_a_file_is_cut_off_the_whole_lines_are_read_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    lines = [prediction(str(number)) for number in range(5)]
    path = write(tmp_path_factory.mktemp("j") / "j", *lines)
    data = path.read_bytes()
    path.write_bytes(data[: cut % (len(data) + 1)])
    assert list(journal.read([path])) == lines[: path.read_bytes().count(b"\n")]


def test_fields_that_a_later_version_added_are_passed_over(tmp_path: Path) -> None:
    later = msgspec.json.decode(msgspec.json.encode(prediction())) | {"colour": "red", "nested": {"a": [1]}}
    path = tmp_path / "j"
    path.write_bytes(msgspec.json.encode(later) + b"\n")
    assert list(journal.read([path])) == [prediction()]


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b"null",
        b'{"type": "swap"}',
        b'{"type": "feedback"}',
        b"\xff\xfe",
        b'{"type":"\xff"}',
        b"\0" * 100,
        b"[" * 100_000,
    ],
)
def test_a_broken_line_is_named_and_costs_no_other(tmp_path: Path, broken: bytes) -> None:
    path = write(tmp_path / "j", prediction("a"))
    path.write_bytes(path.read_bytes() + broken + b"\n" + msgspec.json.encode(prediction("b")) + b"\n")
    assert list(journal.read([path])) == [prediction("a"), Unreadable(path, 2), prediction("b")]


def test_rotated_files_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (2, 1_000_000, 1, 10):
        write(tmp_path / journal.name(number), prediction(str(number)))
    (tmp_path / "notes.txt").write_text("no journal")
    (tmp_path / "journal-000001.jsonl.partial").write_text("no journal")
    read = [line.id for line in journal.read(journal.gather([tmp_path])) if isinstance(line, PredictionLine)]
    assert read == ["1", "2", "10", "1000000"]


def test_files_named_twice_are_read_once(tmp_path: Path) -> None:
    path = write(tmp_path / journal.name(1), prediction())
    assert journal.gather([path, tmp_path, path]) == [path]


def test_an_empty_folder_is_an_empty_journal_and_a_missing_one_an_error(tmp_path: Path) -> None:
    assert journal.gather([tmp_path]) == []
    with pytest.raises(JournalError, match="No such file"):
        journal.gather([tmp_path / "missing"])


@pytest.mark.parametrize("lines", [0, 1, 5, 30, 100])
def test_the_last_bytes_hold_the_last_whole_lines_across_files(tmp_path: Path, lines: int) -> None:
    size = len(msgspec.json.encode(prediction("000"))) + 1
    for number in range(4):
        write(tmp_path / journal.name(number + 1), *(prediction(f"{number * 20 + place:03}") for place in range(20)))
    expected = [f"{place:03}" for place in range(max(0, 80 - lines), 80)]
    for extra in (0, 1, size - 1):
        found = [line.id for line in journal.recent(tmp_path, lines * size + extra) if isinstance(line, PredictionLine)]
        assert found == expected


def test_a_file_that_grows_while_it_is_read_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    path = write(tmp_path / "j", prediction("a"))
    lines = journal.read([path])
    assert next(lines) == prediction("a")
    with path.open("ab") as file:
        file.write(msgspec.json.encode(prediction("b")) + b"\n" + b'{"type": "pre')
        os.fsync(file.fileno())
    assert list(lines) in ([], [prediction("b")])
