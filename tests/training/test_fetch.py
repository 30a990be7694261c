import zipfile
from pathlib import Path

import pytest

from training.fetch import fetch
from training.stage import StageError


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


GOOD = {"PetImages/Cat/0.jpg": b"cat", "PetImages/Dog/0.jpg": b"dog"}


def test_zip_files_keep_to_themselves_though_their_names_collide(tmp_path: Path) -> None:
    one = archive(tmp_path / "one.zip", GOOD | {"PetImages/Dog/Thumbs.db": b"x", "readme.txt": b"x"})
    two = archive(tmp_path / "two.zip", {"cats/0.jpg": b"another cat", "__MACOSX/Cat/._0.jpg": b"x"})
    counts = fetch([str(one), str(two)], tmp_path / "raw")
    assert counts == {"cats": 2, "dogs": 2}
    assert files_below(tmp_path / "raw") == {
        "one/cats/0.jpg",
        "one/dogs/0.jpg",
        "one/dogs/Thumbs.db",  # the audit, not fetch, decides what is a picture
        "two/cats/0.jpg",
    }
    assert (tmp_path / "raw/two/cats/0.jpg").read_bytes() == b"another cat"


def test_a_folder(tmp_path: Path) -> None:
    for name in ("deep/down/Cat/1.jpg", "deep/down/Dog/1.jpg", "deep/down/Dog/.hidden", "deep/elsewhere/2.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    assert fetch([str(tmp_path / "in")], tmp_path / "raw") == {"cats": 1, "dogs": 1}
    assert files_below(tmp_path / "raw") == {"in/cats/1.jpg", "in/dogs/1.jpg"}


def test_kaggle_is_asked_for_the_documented_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(handle: str) -> str:
        asked.append(handle)
        for name in ("Cat", "Dog"):
            (tmp_path / "cache/PetImages" / name).mkdir(parents=True)
            (tmp_path / "cache/PetImages" / name / "0.jpg").write_bytes(b"x")
        return str(tmp_path / "cache")

    monkeypatch.setattr("kagglehub.dataset_download", download)
    assert fetch(["kaggle"], tmp_path / "raw") == {"cats": 1, "dogs": 1}
    assert asked == ["bhavikjikadara/dog-and-cat-classification-dataset"]


def test_kaggle_out_of_reach_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(_: str) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("kagglehub.dataset_download", download)
    with pytest.raises(StageError, match=r"no route to host.*make pipeline SOURCE="):
        fetch(["kaggle"], tmp_path / "raw")


def test_a_member_cannot_leave_the_folder(tmp_path: Path) -> None:
    source = archive(tmp_path / "evil.zip", GOOD | {"../../../Cat/escaped.jpg": b"x", "/Dog/absolute.jpg": b"x"})
    fetch([str(source)], tmp_path / "deep/down/raw")
    assert files_below(tmp_path / "deep/down/raw") == {
        "evil/cats/0.jpg",
        "evil/cats/escaped.jpg",
        "evil/dogs/0.jpg",
        "evil/dogs/absolute.jpg",
    }
    assert not list(tmp_path.glob("**/Cat"))


def test_equal_names_in_one_source_are_all_kept(tmp_path: Path) -> None:
    source = archive(tmp_path / "s.zip", GOOD | {"train/Cat/0.jpg": b"second", "test/Cat/0.jpg": b"third"})
    assert fetch([str(source)], tmp_path / "raw")["cats"] == 3
    assert {p.read_bytes() for p in (tmp_path / "raw/s/cats").iterdir()} == {b"cat", b"second", b"third"}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"PetImages/Cat/0.jpg": b"x"}, "no files of dogs"),
        ({"PetImages/Cat/0.jpg": b"x", "PetImages/Dog/": b""}, "no files of dogs"),
        ({"pictures/0.jpg": b"x"}, "no files of cats or dogs"),
        ({}, "no files of cats or dogs"),
    ],
)
def test_a_class_that_is_missing_or_empty(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    source = archive(tmp_path / "half.zip", members)
    with pytest.raises(StageError, match=reason):
        fetch([str(source)], tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="nowhere: no such file or folder"):
        fetch([str(tmp_path / "nowhere")], tmp_path / "raw")


def test_what_is_no_zip(tmp_path: Path) -> None:
    (tmp_path / "fake.zip").write_bytes(b"I am a zip file, honestly")
    with pytest.raises(StageError, match=r"fake\.zip: not a readable zip file"):
        fetch([str(tmp_path / "fake.zip")], tmp_path / "raw")


def test_a_damaged_zip_leaves_nothing_behind(tmp_path: Path) -> None:
    source = archive(tmp_path / "s.zip", {f"Cat/{i}.jpg": bytes(500) for i in range(50)} | {"Dog/0.jpg": b"dog"})
    data = bytearray(source.read_bytes())
    data[3000:3010] = b"overwritten"[:10]
    source.write_bytes(data)
    with pytest.raises(StageError, match="not a readable zip"):
        fetch([str(source)], tmp_path / "raw")
    assert [path.name for path in tmp_path.iterdir()] == ["s.zip"]


def test_a_failure_keeps_what_was_there_before(tmp_path: Path) -> None:
    fetch([str(archive(tmp_path / "good.zip", GOOD))], tmp_path / "raw")
    with pytest.raises(StageError):
        fetch([str(tmp_path / "nowhere")], tmp_path / "raw")
    assert files_below(tmp_path / "raw") == {"good/cats/0.jpg", "good/dogs/0.jpg"}
