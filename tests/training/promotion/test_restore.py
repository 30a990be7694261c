"""Rollback, and any version's files put back."""

import shutil
from pathlib import Path

import msgspec
import pytest

from tests.training.promotion.conftest import Make
from tests.training.promotion.redness import Redness, champion, client, done, refused, served, tags
from training.promotion import registry
from training.promotion.files import read_contract
from training.promotion.served import SERVED


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, bytes]]]:
    """Where the first test leaves its three champions for the others, which takes seconds to make."""
    return tmp_path_factory.mktemp("three") / "made", []


@pytest.fixture
def three(work: Path, make: Make, made: tuple[Path, list[dict[str, bytes]]]) -> list[dict[str, bytes]]:
    """Three champions, the first with an int8 file, and what was served of each."""
    folder, seen = made
    if not seen:
        for wrong, int8 in ((30, Redness(wrong=30)), (15, None), (0, None)):
            make(Redness(wrong=wrong), int8)
            done("promote")
            seen.append(served())
        shutil.copytree(work, folder, ignore=shutil.ignore_patterns("data"))
    else:
        shutil.copytree(folder, work, dirs_exist_ok=True)
    assert champion() == "cats-dogs/3"
    return seen


def test_rollback_restores_the_bytes_and_stops_at_the_first(three: list[dict[str, bytes]]) -> None:
    assert "cats-dogs/2: champion again, in serving/models; cats-dogs/3 is kept" in done("rollback")
    assert (champion(), served()) == ("cats-dogs/2", three[1])
    done("rollback")
    assert (champion(), served()) == ("cats-dogs/1", three[0])
    assert registry.rolled_back(client().get_model_version("cats-dogs", "3"))
    assert "cats-dogs/1 is the first champion" in refused("rollback")
    assert (champion(), served()) == ("cats-dogs/1", three[0])


def test_rollback_without_a_champion_says_so(work: None) -> None:
    assert "no champion to roll back from" in refused("rollback")


def test_any_version_can_be_restored_and_rolled_back_from(three: list[dict[str, bytes]], make: Make) -> None:
    assert done("restore", "1") == "cats-dogs/1: champion, in serving/models\n"
    assert (champion(), served()) == ("cats-dogs/1", three[0])
    assert "cats-dogs/3: champion again" in done("rollback")
    assert served() == three[2]
    make(Redness(wrong=40))
    assert "keep out" in done("promote")
    done("restore", "4")  # a person decides
    assert read_contract((SERVED / "cats-dogs.fp32.onnx").read_bytes()).provenance.registry == "cats-dogs/4"
    done("rollback")
    assert champion() == "cats-dogs/3"


def test_rollback_passes_over_what_was_rolled_back_before(three: list[dict[str, bytes]]) -> None:
    done("restore", "1")
    done("rollback")
    done("rollback")
    assert champion() == "cats-dogs/2"
    assert "there is no earlier one" in refused("rollback")  # 1 was rolled back from


def test_rollback_gets_over_a_version_that_the_registry_has_lost(three: list[dict[str, bytes]]) -> None:
    client().delete_model_version("cats-dogs", "2")
    assert "cats-dogs/1: champion again" in done("rollback")
    assert (champion(), served()) == ("cats-dogs/1", three[0])


def test_restoring_takes_a_rollback_back(three: list[dict[str, bytes]]) -> None:
    done("rollback")
    done("restore", "3")
    assert not registry.rolled_back(client().get_model_version("cats-dogs", "3"))
    assert tags(3)["rolled_back"] < tags(3)["served"]


def test_the_list_has_decision_figures_and_date(three: list[dict[str, bytes]], make: Make) -> None:
    make(Redness(wrong=40))
    done("promote")
    done("rollback")
    head, *rows = (line.split("  ") for line in done("restore", "--list").splitlines())
    assert [cell.strip() for cell in head if cell] == ["version", "decision", "accuracy", "log loss", "registered"]
    assert [row[0].strip() for row in rows] == [f"cats-dogs/{n}" for n in (4, 3, 2, 1)]
    text = done("restore", "--list").splitlines()
    assert "kept out" in text[1]
    assert "0.909091" in text[1]
    assert "rolled back 20" in text[2]
    assert text[3].endswith("champion")


@pytest.mark.parametrize("number", ["9", "x", "0"])
def test_what_is_no_version_is_said(three: list[dict[str, bytes]], number: str) -> None:
    said = refused("restore", number)
    assert "cats-dogs/9: not found; `catsdogs restore --list`" in said or "Invalid value for '[VERSION]'" in said
    assert "give a version's number, or --list" in refused("restore")


def test_a_version_that_fails_its_exam_here_is_not_restored(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (15, 0):
        make(Redness(wrong=wrong))
        done("promote")
    before = served()

    def another_decoder(data: bytes) -> object:
        raise ValueError("no")

    with monkeypatch.context() as here:
        here.setattr("shared.exam.decode", another_decoder)
        assert "cats-dogs/1 must not serve: it does not run (no)" in refused("restore", "1")
        assert "cats-dogs/1 must not serve" in refused("rollback")
    assert (champion(), served()) == ("cats-dogs/2", before)
    assert msgspec.json.decode(served()["cats-dogs.fp32.json"])["registry"] == "cats-dogs/2"
