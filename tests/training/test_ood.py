import zipfile
from pathlib import Path

import numpy as np
import pytest

from serving.model.session import load
from shared.exam import Outputs
from shared.pixels import Pixels
from tests.conftest import blobs, encoded
from training import ood
from training.stage import StageError


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("NotPets/n02115641_dingo.jpg", "wolves, foxes and other wild dogs"),
        ("n02119789_kit_fox.jpg", "wolves, foxes and other wild dogs"),
        ("n02117135_hyena.jpg", "wolves, foxes and other wild dogs"),
        ("n02128385_leopard.jpg", "big cats"),
        ("n02130308_cheetah.jpg", "big cats"),
        ("n02132136_brown_bear.jpg", "other animals"),
        ("n01443537_goldfish.jpg", "other animals"),
        ("n02701002_ambulance.jpg", "things"),
        ("n07753592_banana.jpg", "things"),
        ("holiday.jpg", "anything else"),
    ],
)
def test_the_wordnet_number_says_what_a_photo_shows(name: str, group: str) -> None:
    assert ood.group(name) == group


def test_a_zip_and_a_folder_are_read_alike_and_what_is_no_photo_is_passed_over(tmp_path: Path) -> None:
    files = {
        "n02128385_leopard.jpg": encoded(blobs(1), "JPEG"),
        "car.png": encoded(blobs(2), "PNG"),
        "README": b"hello",
    }
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"inside/{name}", data)
            (tmp_path / "folder" / name).write_bytes(data)
    for source in ("some.zip", "folder"):
        found = ood.read(tmp_path / source)
        assert {name: len(photos) for name, photos in found.items()} == {"big cats": 1, "anything else": 1}


@pytest.mark.parametrize("content", [b"", b"no zip"])
def test_what_holds_no_photo_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "not-pets.zip").write_bytes(content)
    with pytest.raises(StageError, match=r"not-pets\.zip"):
        ood.read(tmp_path / "not-pets.zip")


def test_pets_and_other_things_are_counted_separately(shipped: Path) -> None:
    document = load(shipped).contract

    def outputs(familiarity: list[float]) -> Outputs:
        count = len(familiarity)
        sure = np.tile(np.array([[0.0, 1.0]], np.float32), (count, 1))
        return Outputs(sure, np.zeros((count, 7, 7), np.float32), np.array(familiarity, np.float32))

    found = ood.ood_detection(
        outputs([0.9, 0.8, 0.95, 0.01]), {"big cats": outputs([0.85, 0.0]), "things": outputs([0.0] * 6)}, document
    )
    assert found.strangers_unsure.value == 7 / 8
    assert found.pets_unsure.value == found.pets_unfamiliar.value == 1 / 4
    assert found.groups["big cats"].unsure.value == 0.5
    assert found.groups["things"].unfamiliar == 6
    assert 0.7 < found.auroc < 1


def test_a_file_is_asked_about_every_photo() -> None:
    def run(batch: Pixels) -> Outputs:
        return Outputs(
            np.array([[0.5, 0.5]], "f"),
            np.zeros((1, 7, 7), "f"),
            batch[:, 0, 0, 0].astype(np.float32) / np.float32(255),
        )

    photos = [np.full((224, 224, 3), value, np.uint8) for value in (0, 255)]
    assert ood.grouped_answers(run, {"things": photos}, "asking")["things"].familiarity.tolist() == [0.0, 1.0]
