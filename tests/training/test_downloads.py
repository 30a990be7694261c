"""Collections that are downloaded, from a server of the test's own in place of theirs."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from torchvision.datasets import OxfordIIITPet

from tests.conftest import blobs, encoded
from tests.training.test_fetch import photo, taped
from training.fetch import fetch
from training.stage import StageError

# Of the last, no breed is known, and the first is listed as what its name does not say.
OXFORD = {"Boxer_1": 1, "Maine_Coon_2": 1, "pug_1": 2, "saint_bernard_2": 2, "Xoloitzcuintle_7": 2}
LIST = "#Image CLASS-ID SPECIES BREED ID\n" + "".join(f"{name} 1 {species} 1\n" for name, species in OXFORD.items())
ARCHIVES = {
    "images.tar.gz": {
        **{f"images/{name}.jpg": photo(number) for number, name in enumerate(OXFORD)},
        "images/Unlisted_3.jpg": photo(50),
        "images/Boxer_1.mat": b"x",
    },
    "annotations.tar.gz": {
        "annotations/list.txt": LIST.encode(),
        "annotations/trainval.txt": b"Boxer_1 1 1 1\n",
        "annotations/test.txt": b"pug_1 1 2 1\n",
        **{f"annotations/trimaps/{name}.png": encoded(blobs(60), "PNG") for name in OXFORD},
    },
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a server shows, with the archives of a small copy of Oxford-IIIT Pet; the cache is empty."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name, members in ARCHIVES.items():
        (folder / name).write_bytes(taped(members))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        resources = [
            (
                f"http://127.0.0.1:{server.server_port}/{name}",
                hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest(),
            )
            for name in ARCHIVES
        ]
        monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", resources)
        monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache/kagglehub"))
        yield folder
        server.shutdown()


def test_oxford_s_photos_are_labelled_by_its_list_and_its_masks_passed_over(site: Path, tmp_path: Path) -> None:
    found = fetch(["oxford-iiit-pet"], tmp_path / "raw")
    assert (found.photos, found.passed_over) == ({"cats": 2, "dogs": 3}, {})
    assert {path.name for path in (tmp_path / "raw/oxford-iiit-pet/dogs").iterdir()} == {
        f"{name}.jpg" for name, species in OXFORD.items() if species == 2
    }
    assert found.report()["collections"]["oxford-iiit-pet"]["licence"] == "CC BY-SA 4.0"


def test_a_download_that_is_there_is_not_repeated(site: Path, tmp_path: Path) -> None:
    before = fetch(["oxford-iiit-pet"], tmp_path / "raw").report()
    for name in ARCHIVES:
        (site / name).unlink()
    assert fetch(["oxford-iiit-pet"], tmp_path / "again").report() == before


@pytest.mark.parametrize("content", [None, b"not what the digest says"])
def test_a_download_that_fails_is_one_clear_line_and_leaves_nothing_that_passes_for_whole(
    site: Path, tmp_path: Path, content: bytes | None
) -> None:
    whole = (site / "annotations.tar.gz").read_bytes()
    (site / "annotations.tar.gz").unlink()
    if content:
        (site / "annotations.tar.gz").write_bytes(content)
    with pytest.raises(StageError, match=r"^oxford-iiit-pet could not be downloaded \(.*make pipeline SOURCE=images"):
        fetch(["oxford-iiit-pet"], tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    (site / "annotations.tar.gz").write_bytes(whole)
    assert fetch(["oxford-iiit-pet"], tmp_path / "raw").photos == {"cats": 2, "dogs": 3}


def test_kaggle_is_asked_for_the_documented_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(handle: str) -> str:
        asked.append(handle)
        for name in ("Cat", "Dog"):
            (tmp_path / "cache/PetImages" / name).mkdir(parents=True)
            (tmp_path / "cache/PetImages" / name / "0.jpg").write_bytes(b"x")
        return str(tmp_path / "cache")

    monkeypatch.setattr("kagglehub.dataset_download", download)
    found = fetch(["kaggle"], tmp_path / "raw")
    assert found.photos == {"cats": 1, "dogs": 1}
    assert asked == ["bhavikjikadara/dog-and-cat-classification-dataset"]
    assert found.report()["collections"]["petimages"]["licence"] == "research use, no re-publication"


def test_kaggle_out_of_reach_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(_: str) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("kagglehub.dataset_download", download)
    with pytest.raises(StageError, match=r"^kaggle could not .*no route to host.*make pipeline SOURCE=archive\.zip$"):
        fetch(["kaggle"], tmp_path / "raw")
