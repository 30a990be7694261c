"""The ledger of labels: what stands of its lines, and what becomes of it when a process dies or several write."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared.contract import Actual
from tests.conftest import ROOT
from training.decisions import HEADER, Decision, append, decisions, read, standing
from training.stage import StageError

WHEN = datetime(2026, 11, 29, 12, tzinfo=UTC)


def line(label: Actual, who: str = "Anna", decision: str = "label", id_: str = "a1") -> Decision:
    return Decision(id_, label, decision, who, WHEN, "m")  # type: ignore[arg-type]  # the short way to write a test


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


@pytest.mark.parametrize(
    ("lines", "label", "disputed"),
    [
        ([line("cats")], "cats", False),
        ([line("neither"), line("neither", "Ben")], "neither", False),
        ([line("cats"), line("both")], "both", False),
        ([line("cats"), line("dogs", "Ben")], None, True),
        ([line("cats"), line("dogs", "Ben"), line("dogs")], "dogs", False),
        ([line("cats"), line("dogs", "Ben"), line("dogs", "Cleo", "settle")], "dogs", False),
        ([line("cats"), line("cats", "Cleo", "settle"), line("dogs", "Ben")], "cats", False),
        ([line("cats", "Cleo", "settle"), line("dogs", "Anna", "settle")], "dogs", False),
        ([line("cats"), line("cats", decision="undo")], None, False),
        ([line("cats"), line("dogs"), line("dogs", decision="undo")], "cats", False),
        ([line("cats"), line("dogs", "Ben"), line("dogs", "Ben", "undo")], "cats", False),
        (
            [line("cats"), line("dogs", "Ben"), line("cats", decision="settle"), line("cats", decision="undo")],
            None,
            True,
        ),
        ([line("cats", decision="undo"), line("cats", "Ben")], "cats", False),
    ],
)
def test_what_people_agree_about_or_settled_stands(lines: list[Decision], label: Actual | None, disputed: bool) -> None:
    found = standing(lines)["a1"]
    assert (found.label, found.disputed) == (label, disputed)


def test_lines_come_back_as_they_were_written(ledger: Path) -> None:
    lines = [line("cats", 'Anna "A", of Athens'), line("dogs", "Βασίλης"), line("both", id_="b2")]
    for each in lines:
        append(ledger, [each])
    assert read(ledger) == lines
    assert ledger.read_bytes().splitlines()[0] == HEADER
    assert decisions(ledger) == {"b2": "both"}


def test_a_ledger_that_is_not_there_has_no_decisions(ledger: Path) -> None:
    assert decisions(ledger) == {}


@pytest.mark.parametrize("kept", [3, len(HEADER), len(HEADER) + 20, -10])
def test_a_torn_last_line_is_ignored_and_its_place_taken(ledger: Path, kept: int) -> None:
    append(ledger, [line("cats")])
    append(ledger, [line("dogs", id_="b2")])
    ledger.write_bytes(ledger.read_bytes()[:kept])
    whole = [line("cats")] if kept < 0 else []
    assert read(ledger) == whole
    append(ledger, [line("both", id_="c3")])
    assert read(ledger) == [*whole, line("both", id_="c3")]


def test_a_last_line_that_lacks_only_its_newline_is_kept(ledger: Path) -> None:
    append(ledger, [line("cats")])
    ledger.write_bytes(ledger.read_bytes()[:-1])
    assert read(ledger) == [line("cats")]
    append(ledger, [line("both", id_="c3")])
    assert read(ledger) == [line("cats"), line("both", id_="c3")]


def test_several_who_write_at_once_lose_no_line(ledger: Path) -> None:
    def write(who: str) -> None:
        for number in range(50):
            append(ledger, [line("cats", who, id_=f"{number}")])

    with ThreadPoolExecutor() as pool:  # a lock of flock(2) is of the open file: it parts threads as it does processes
        list(pool.map(write, ("Anna", "Ben")))
    for who in ("Anna", "Ben"):
        assert [each.id for each in read(ledger) if each.who == who] == [str(number) for number in range(50)]


def test_a_line_that_cannot_be_written_leaves_the_others_whole(ledger: Path) -> None:
    append(ledger, [line("cats")])
    code = """
import resource, signal, sys
from pathlib import Path
from training.decisions import append, read
ledger = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (ledger.stat().st_size + 10,) * 2)
try:
    append(ledger, read(ledger))
except OSError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code, ledger], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    assert read(ledger) == [line("cats")]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("a1,cat,label,Anna,2026-11-29T12:00:00Z,m", "line 3: Invalid enum value 'cat'"),
        ("a1,cats,label,Anna,2026-11-29T12:00:00,m", "line 3: .*timezone"),
        ("../a1,cats,label,Anna,2026-11-29T12:00:00Z,m", "line 3: .*`\\$.id`"),
        ("a1,cats,label,,2026-11-29T12:00:00Z,m", "line 3: .*`who`"),
        ("a1,cats,label,Anna,2026-11-29T12:00:00Z,m,more", "line 3: "),
        ("a1,cats", "line 3: "),
        ('a1,"cats', "not a CSV"),
    ],
)
def test_a_line_that_is_no_decision_is_named(ledger: Path, row: str, says: str) -> None:
    append(ledger, [line("cats")])
    with ledger.open("a") as file:
        file.write(row + "\n")
    with pytest.raises(StageError, match=says):
        decisions(ledger)


@pytest.mark.parametrize("other", [b"sha256,label,decision,reason\n", b"{}", b"notes of mine, without an end"])
def test_another_file_is_not_taken_for_a_ledger(ledger: Path, other: bytes) -> None:
    ledger.write_bytes(other)
    with pytest.raises(StageError, match="not a ledger of labels"):
        decisions(ledger)
