import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from scoring import sort as sorting
from scoring.cli import sort
from tests.scoring.conftest import results, scored


def run(*arguments: object) -> Result:
    return CliRunner().invoke(sort, [str(argument) for argument in arguments])


@pytest.fixture
def result(pictures: Path, tmp_path: Path) -> Path:
    """The scores of the folder of pictures."""
    os.utime(pictures / "a.jpg", (1000, 1000))
    scored(pictures, "--out", tmp_path / "scores")
    return tmp_path / "scores"


def places(result: Path) -> dict[str, str]:
    """Where each key belongs."""
    return {row["key"]: f"{row['verdict'] or 'unreadable'}/{row['key']}" for row in results(result).rows}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() and path.name[0] != "."}


def test_pictures_are_copied_by_their_verdicts_and_that_is_undone(pictures: Path, result: Path, tmp_path: Path) -> None:
    target = tmp_path / "sorted"
    assert run(result, target).exit_code == 0
    assert files(target) == set(places(result).values())
    for key, place in places(result).items():
        assert (target / place).read_bytes() == (pictures / key).read_bytes()
        assert (target / place).stat().st_mtime == (pictures / key).stat().st_mtime
    undone = run("--undo", target)
    assert undone.exit_code == 0
    assert "4  removed" in undone.stdout
    assert not target.exists()


def test_links_lead_to_the_pictures(pictures: Path, result: Path, tmp_path: Path) -> None:
    target = tmp_path / "sorted"
    assert run(result, target, "--link").exit_code == 0
    for key, place in places(result).items():
        assert (target / place).readlink() == pictures / key
    assert run("--undo", target).exit_code == 0
    assert not target.exists()


def test_undoing_leaves_what_it_did_not_make_or_what_has_changed(result: Path, tmp_path: Path) -> None:
    target = tmp_path / "sorted"
    (target / "cats").mkdir(parents=True)
    (target / "cats/mine.jpg").write_bytes(b"mine")
    assert run(result, target).exit_code == 0
    changed = target / places(result)["a.jpg"]
    changed.write_bytes(b"changed")
    undone = run("--undo", target)
    assert f"{changed}: changed" in undone.stderr
    assert files(target) == {"cats/mine.jpg", places(result)["a.jpg"]}
    assert run("--undo", target).exit_code == 1


def test_nothing_is_replaced(result: Path, tmp_path: Path) -> None:
    target = tmp_path / "sorted"
    there = target / places(result)["b.png"]
    there.parent.mkdir(parents=True)
    there.write_bytes(b"mine")
    stopped = run(result, target)
    assert stopped.exit_code == 1
    assert f"{there} is in the way" in stopped.stderr
    assert there.read_bytes() == b"mine"
    there.unlink()
    assert run(result, target).exit_code == 0, "it goes on"
    assert files(target) == set(places(result).values())


def test_a_folder_sorted_by_another_result_is_left(pictures: Path, result: Path, tmp_path: Path) -> None:
    assert run(result, tmp_path / "sorted").exit_code == 0
    scored(pictures, "--out", tmp_path / "other")
    assert "--undo first" in run(tmp_path / "other", tmp_path / "sorted").stderr


def test_no_name_in_an_archive_leads_out_of_the_folder(pictures: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name in ("../../out.txt", "/absolute.txt", "a/./b.txt"):
            archive.writestr(name, b"text")
    scored(tmp_path / "photos.zip", "--out", tmp_path / "scores")
    target = tmp_path / "deep" / "sorted"
    assert run(tmp_path / "scores", target).exit_code == 0
    assert files(tmp_path / "deep") == {
        "sorted/unreadable/%2E%2E/%2E%2E/out.txt", "sorted/unreadable/absolute.txt", "sorted/unreadable/a/b.txt",
    }  # fmt: skip
    assert "without --link" in run(tmp_path / "scores", tmp_path / "linked", "--link").stderr


KILLED = """
import os, signal, sys
from pathlib import Path
from scoring import sort
link = Path.hardlink_to
def linked(path, other):
    link(path, other)
    os.kill(os.getpid(), signal.SIGKILL)
Path.hardlink_to = linked
sort.sort(Path(sys.argv[1]), Path(sys.argv[2]), link=False)
"""


def test_a_run_that_is_killed_leaves_whole_copies_and_another_goes_on(
    pictures: Path, result: Path, tmp_path: Path
) -> None:
    target = tmp_path / "sorted"
    ended = subprocess.run([sys.executable, "-c", KILLED, result, target], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(files(target)) == 1
    assert run(result, target).exit_code == 0
    for key, place in places(result).items():
        assert (target / place).read_bytes() == (pictures / key).read_bytes()
    assert "4  removed" in run("--undo", target).stdout


def test_one_run_sorts_into_a_folder_at_a_time(result: Path, tmp_path: Path) -> None:
    target = tmp_path / "sorted"
    target.mkdir()
    with sorting._locked(target):
        assert "another run is at work" in run(result, target).stderr
        assert "another run is at work" in run("--undo", target).stderr
    assert run(result, target).exit_code == 0


@pytest.mark.parametrize("whole", [0, 1, 3])
def test_a_list_that_a_full_disk_cut_off_is_mended(result: Path, tmp_path: Path, whole: int) -> None:
    target = tmp_path / "sorted"
    assert run(result, target).exit_code == 0
    lines = (target / sorting.LIST).read_bytes().splitlines(keepends=True)
    for line in lines[1 + max(0, whole - 1) :]:
        (target / msgspec.json.decode(line)[0]).unlink()
    (target / sorting.LIST).write_bytes(b"".join(lines[:whole]) + b'["cats/a' * bool(whole))
    assert run(result, target).exit_code == 0
    assert files(target) == set(places(result).values())
    assert "4  removed" in run("--undo", target).stdout


def test_names_that_a_folder_cannot_have_beside_each_other_get_another(pictures: Path, tmp_path: Path) -> None:
    names = ("a", "a/b.jpg", "./a", "c/d", "c", "x" * 300 + ".jpg")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name in names:
            archive.writestr(name, name)
    scored(tmp_path / "photos.zip", "--out", tmp_path / "scores")
    target = tmp_path / "sorted"
    for _ in range(2):
        assert f"{len(names)}  unreadable" in run(tmp_path / "scores", target).stdout
        put = [path for path in target.rglob("*") if path.is_file() and path.name[0] != "."]
        assert sorted(path.read_text() for path in put) == sorted(names)
    assert {"unreadable/a", "unreadable/c/d"} <= files(target)
    assert run("--undo", target).exit_code == 0
    assert not target.exists()


def test_a_name_that_is_no_text_is_kept(pictures: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (pictures / name).write_bytes(b"1")
    scored(pictures, "--out", tmp_path / "scores")
    for options in ((), ("--link",)):
        assert run(tmp_path / "scores", tmp_path / "sorted", *options).exit_code == 0
        assert (tmp_path / "sorted" / "unreadable" / name).read_bytes() == b"1"
        assert "5  removed" in run("--undo", tmp_path / "sorted").stdout


def test_without_a_result_there_is_nothing_to_sort(tmp_path: Path) -> None:
    assert "no complete result" in run(tmp_path, tmp_path / "sorted").stderr
    assert run(tmp_path / "sorted").exit_code == 2
