import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.contract import Unsure
from shared.second_look import Outputs
from tests.conftest import blobs, encoded
from tests.training.conftest import contract
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
        found = ood.read([str(tmp_path / source)])
        assert {Path(photo.name).name for photo in found} == {"n02128385_leopard.jpg", "car.png"}
    both = ood.read([str(tmp_path / "some.zip"), str(tmp_path / "folder")])
    assert len(both) == 2  # a photo that is in both counts once


def test_a_source_that_is_not_there_is_said_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ood.read([str(tmp_path / "others.zip")]) == []
    assert "others.zip: not found" in capsys.readouterr().out


def test_what_familiarity_learns_from_is_not_measured(tmp_path: Path) -> None:
    for number in range(40):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"n02128385_{number}.png")
    photos = ood.read([str(tmp_path)])
    learned, measured = ood.to_learn_from(photos), ood.to_measure(photos)
    assert list(measured) == ["big cats"]
    assert len(learned) + len(measured["big cats"]) == 40
    assert 0 < len(measured["big cats"]) < 20
    reds = {int(photo.photo().square()[0, 0, 0]) for photo in learned}
    assert reds.isdisjoint(
        int(measured["big cats"][index].square()[0, 0, 0]) for index in range(len(measured["big cats"]))
    )


@pytest.mark.parametrize("content", [b"", b"no zip"])
def test_what_holds_no_photo_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "not-pets.zip").write_bytes(content)
    with pytest.raises(StageError, match=r"not-pets\.zip"):
        ood.read([str(tmp_path / "not-pets.zip")])


def test_pets_and_other_things_are_counted_separately() -> None:
    document = contract(Unsure(close_call=0.9, unfamiliar=0.3))

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
