"""SIGKILL before every step of promote, rollback and restore: the next command puts everything right."""

from itertools import count
from pathlib import Path

import pytest

from tests.training.promotion.conftest import Make
from tests.training.promotion.dying import killed
from tests.training.promotion.redness import Redness, champion, client, done, place, refused, served, tags
from training.promotion import registry
from training.promotion.files import read
from training.promotion.served import SERVED

pytestmark = pytest.mark.slow

BAD, GOOD = Redness(wrong=16), Redness()


def agree() -> str:
    """The champion's name, after checking that the files are its own, all of them and nothing else."""
    name = champion()
    files = read(SERVED)
    version = client().get_model_version("cats-dogs", name.partition("/")[2])
    assert registry.holds(version, files.named(None))
    assert served() == files.named(name).by_name()
    assert registry.has_served(version)
    assert not registry.rolled_back(version)
    return name


def settle() -> None:
    """A command that does nothing by itself."""
    assert "cats-dogs/99: not found" in refused("restore", "99")


@pytest.fixture
def two(make: Make) -> None:
    """Two versions that have served: the first in both precisions, the second, champion, in one."""
    make(BAD, BAD)
    done("promote")
    make(GOOD)
    done("promote")
    assert agree() == "cats-dogs/2"


def test_restore_killed_at_any_moment(two: None) -> None:
    ends = set()
    for moment in count():
        if not killed(moment, "restore", "1"):
            break
        settle()
        ends.add(agree())
        done("restore", "2")
        assert agree() == "cats-dogs/2"
    assert moment > 10
    assert ends == {"cats-dogs/1", "cats-dogs/2"}
    assert agree() == "cats-dogs/1"


def test_rollback_killed_at_any_moment(two: None) -> None:
    ends = set()
    for moment in count():
        if not killed(moment, "rollback"):
            break
        settle()
        ends.add(agree())
        assert registry.rolled_back(client().get_model_version("cats-dogs", "2")) == (agree() == "cats-dogs/1")
        done("restore", "2")
        assert agree() == "cats-dogs/2"
    assert moment > 10
    assert ends == {"cats-dogs/1", "cats-dogs/2"}


def test_promote_killed_at_any_moment(two: None) -> None:
    done("restore", "1")
    for moment in count():
        if not killed(moment, "promote"):
            break
        done("promote")
        assert agree() == "cats-dogs/2"
        assert tags(2)["decision"] == "promoted"
        done("restore", "1")
    assert moment > 10
    assert agree() == "cats-dogs/2"
    assert len(registry.versions(client())) == 2


def test_promote_killed_while_it_registers_a_candidate(two: None, make: Make) -> None:
    for moment in count():
        make(Redness(wrong=20 + moment))
        if not killed(moment, "promote"):
            break
        assert "keep out" in done("promote")
        assert agree() == "cats-dogs/2"
        assert len(registry.versions(client())) == 3 + moment  # each once
    assert moment == 2


def test_any_command_killed_while_it_registers_what_serves(work: Path) -> None:
    for moment in count():
        place(Redness(padding=4000 + 400 * moment))
        if not killed(moment, "restore", "99"):
            break
        settle()
        version = registry.champion(client())
        assert version
        assert registry.holds(version, read(SERVED))
        assert registry.has_served(version)
    assert moment > 4
    assert len(registry.versions(client())) == moment + 1
