"""The page of ``catsdogs label`` in a real browser, by keyboard."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from subprocess import PIPE

import pytest
from playwright.sync_api import Page, expect

from shared.samples import TOMBSTONE
from tests.conftest import ROOT, measured
from tests.training.labelling.conftest import keep
from training.decisions import Decision, append, decisions, read

COMMAND = [sys.executable, "-c", "from training.cli import label; label()", "samples", "--port", "0", "--as"]
Start = Callable[..., subprocess.Popen[str]]
KEYS = {"c": "cats", "d": "dogs", "b": "both", "n": "neither"}
SAMPLES = 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(SAMPLES):
        keep(tmp_path / "samples", f"{number:02}", "unsure", sure=0.5 + number / 100, feedback="dogs", seed=number)
    return tmp_path


@pytest.fixture
def start(folder: Path, empty: Page) -> Iterator[Start]:
    """Run the command, and open its page."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, **measured(), "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([*COMMAND, *arguments], cwd=folder, env=environment, stdout=PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        empty.goto(next(line.split()[0] for line in process.stdout if line.startswith("http")))
        return process

    yield run
    for process in started:
        process.kill()
        with process:  # closes its pipe
            pass


def shown(page: Page, id_: str) -> None:
    expect(page.locator(f"figure[data-sample='{id_}'] img")).to_be_visible()


def saved(page: Page) -> None:
    expect(page.locator("body[data-unsaved='0']")).to_be_attached()


def test_samples_are_labelled_by_keyboard(start: Start, folder: Path, empty: Page) -> None:
    process = start("Anna")
    for number in range(SAMPLES):
        shown(empty, f"{number:02}")
        empty.keyboard.press("cdbn"[number % 4])
    expect(empty.get_by_role("status")).to_have_text("Nothing is left to label.")
    saved(empty)
    lines = read(folder / "labels.csv")
    assert [(line.id, line.label) for line in lines] == [
        (f"{number:02}", KEYS["cdbn"[number % 4]]) for number in range(SAMPLES)
    ]
    assert {line.who for line in lines} == {"Anna"}
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert (process.returncode, said) == (0, "\nlabels.csv: 24 new lines\n")


def test_undo_skip_evidence_and_the_models_answer_have_keys(start: Start, folder: Path, empty: Page) -> None:
    start("Anna")
    answer, canvas = empty.locator("#answer"), empty.locator("figure canvas")
    shown(empty, "00")
    assert "shipped-1" not in empty.content()
    empty.keyboard.press("m")
    expect(answer).to_have_text(
        "The model said a cat (50.0 %). A client said: a dog. Kept as: unsure. Version shipped-1."
    )
    empty.keyboard.press("e")
    expect(canvas).to_be_visible()
    empty.keyboard.press("s")
    shown(empty, "01")
    expect(answer).to_be_hidden()
    expect(canvas).to_have_count(0)
    empty.keyboard.press("c")
    shown(empty, "02")
    empty.keyboard.press("u")
    shown(empty, "01")
    empty.keyboard.press("D")
    shown(empty, "02")
    empty.keyboard.press("u")
    empty.keyboard.press("u")
    shown(empty, "00")
    empty.keyboard.press("Control+c")  # copies: no label
    empty.get_by_role("button", name="Neither").click()
    shown(empty, "01")
    saved(empty)
    lines = [(line.id, line.label, line.decision) for line in read(folder / "labels.csv")]
    assert lines == [
        ("01", "cats", "label"), ("01", "cats", "undo"), ("01", "dogs", "label"), ("01", "dogs", "undo"),
        ("00", "neither", "label"),
    ]  # fmt: skip


def test_what_cannot_be_saved_is_said_and_comes_back(start: Start, folder: Path, empty: Page) -> None:
    start("Anna")
    shown(empty, "00")
    (folder / "labels.csv").mkdir()
    empty.keyboard.press("c")
    expect(empty.get_by_role("alert")).to_have_text("Not saved: Is a directory. The picture comes again.")
    shown(empty, "01")
    (folder / "labels.csv").rmdir()
    empty.keyboard.press("d")
    saved(empty)
    shown(empty, "00")
    expect(empty.get_by_role("alert")).to_be_visible()  # it is about this picture
    empty.keyboard.press("c")
    expect(empty.get_by_role("alert")).to_be_hidden()
    assert decisions(folder / "labels.csv") == {"01": "dogs", "00": "cats"}


def test_a_double_click_and_a_key_that_bounces_are_about_one_picture(start: Start, folder: Path, empty: Page) -> None:
    start("Anna")
    shown(empty, "00")
    empty.get_by_role("button", name="Cat").dblclick()
    shown(empty, "01")
    empty.keyboard.press("d")
    empty.keyboard.press("d")
    shown(empty, "02")
    saved(empty)
    assert [line.id for line in read(folder / "labels.csv")] == ["00", "01"]


def test_what_was_decided_on_an_earlier_visit_can_be_taken_back(start: Start, folder: Path, empty: Page) -> None:
    start("Anna")
    for number in range(3):
        shown(empty, f"{number:02}")
        empty.keyboard.press("c")
    saved(empty)
    empty.reload()
    shown(empty, "03")
    empty.keyboard.press("u")
    shown(empty, "02")
    empty.keyboard.press("u")
    shown(empty, "01")
    saved(empty)
    assert decisions(folder / "labels.csv") == {"00": "cats"}


def test_a_sample_that_is_forgotten_meanwhile_is_passed_over(start: Start, folder: Path, empty: Page) -> None:
    start("Anna")
    shown(empty, "00")
    (folder / f"samples/00{TOMBSTONE}").touch()
    (folder / f"samples/20{TOMBSTONE}").touch()  # not loaded yet
    empty.keyboard.press("c")
    expect(empty.get_by_role("alert")).to_have_text("Not saved: this sample was forgotten, or is gone")
    for number in range(1, 20):
        shown(empty, f"{number:02}")
        empty.keyboard.press("d")
    shown(empty, "21")
    saved(empty)
    assert set(decisions(folder / "labels.csv")) == {f"{number:02}" for number in range(1, 20)}


def test_a_picture_that_cannot_be_shown_is_in_nobodys_way(start: Start, folder: Path, empty: Page) -> None:
    path = folder / "samples/00.png"
    path.write_bytes(b"no PNG: " + path.read_bytes()[8:])
    start("Anna")
    expect(empty.get_by_role("alert")).to_contain_text("Not shown")
    empty.keyboard.press("c")
    empty.keyboard.press("s")
    shown(empty, "01")
    expect(empty.get_by_role("alert")).to_be_hidden()
    assert not (folder / "labels.csv").exists()


def test_who_settles_sees_what_each_person_said(start: Start, folder: Path, empty: Page) -> None:
    ledger = folder / "labels.csv"
    when = datetime(2026, 11, 29, 12, tzinfo=UTC)
    append(
        ledger, [Decision("00", "cats", "label", "Anna", when, "m"), Decision("00", "dogs", "label", "Ben", when, "m")]
    )
    start("Cleo", "--settle")
    shown(empty, "00")
    expect(empty.locator("#said")).to_have_text("Anna: a cat · Ben: a dog")
    empty.keyboard.press("b")
    expect(empty.get_by_role("status")).to_have_text("Nothing is left to settle.")
    saved(empty)
    assert decisions(ledger) == {"00": "both"}
