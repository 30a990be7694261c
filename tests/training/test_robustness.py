"""Cells of the robustness table, with a network that looks at brightness."""

import msgspec
import numpy as np
from PIL import Image

from shared.contract import Unsure
from shared.intervals import Interval, wilson
from shared.pixels import Photo, Pixels
from shared.second_look import Outputs
from tests.training.conftest import NEVER, contract
from training.corruptions import CORRUPTIONS
from training.robustness import CELLS, JUDGED, File, robustness, when_corrupted


class Brightness:
    """Says dogs of bright pictures; the second look says cats of all."""

    def first(self, pictures: Pixels) -> Outputs:
        dogs = np.clip(pictures.mean((1, 2, 3)) / 255, 0.01, 0.99).astype(np.float32)
        n = len(dogs)
        return Outputs(np.stack([1 - dogs, dogs], 1), np.zeros((n, 7, 7), np.float32), np.ones(n, np.float32))

    def closer(self, pictures: Pixels) -> Outputs:
        n = len(pictures)
        cats = np.tile(np.array([[0.99, 0.01]], np.float32), (n, 1))
        return Outputs(cats, np.zeros((n, 7, 7), np.float32), np.full(n, 0.99, np.float32))


PHOTOS = [Photo(Image.new("RGB", (64, 64), (value,) * 3), 1) for value in (180, 190, 200, 210, 20)]
LABELS = np.array([1, 1, 1, 1, 0])
UNSURE = Unsure(close_call=0.6, unfamiliar=0.5)


def test_a_cell_counts_what_is_right_unsure_and_wrong_among_the_answers() -> None:
    found = robustness({"file": File(Brightness(), contract(UNSURE))}, PHOTOS, LABELS, [0, 1, 2, 3])["file"]
    assert list(found) == [f"{kind} {severity}" for kind, severity in CELLS]
    dark, dim = found["dark 5"], found["dark 1"]  # to 6 % and 50 % of the light
    assert (dark.kind, dark.severity, dark.photos) == ("dark", 5, 4)
    assert (dark.accuracy, dark.unsure, dark.wrong_when_answered) == (wilson(0, 4), wilson(0, 4), wilson(4, 4))
    assert dim.unsure == wilson(1, 4)  # 0.59, 0.61, 0.63 and 0.65 for cats
    assert dim.wrong_when_answered == wilson(3, 3)
    assert found["bright 1"].accuracy.value == 1
    assert found["low contrast 5"].wrong_when_answered == Interval(0.0, 0.0, 1.0)  # nothing is answered


def test_every_file_looks_by_its_own_contract() -> None:
    always = contract(UNSURE, msgspec.structs.replace(NEVER, sure=1.0))
    files = {"once": File(Brightness(), contract(UNSURE)), "twice": File(Brightness(), always)}
    found = robustness(files, PHOTOS, LABELS, [0, 4])
    assert found["once"]["small 3"].looked_again.value == 0
    assert found["once"]["small 3"].accuracy.value == 1
    assert found["twice"]["small 3"].looked_again.value == 1
    assert found["twice"]["small 3"].accuracy.value == 0.5


def test_the_same_photos_give_the_same_cells() -> None:
    one, other = (
        robustness({"file": File(Brightness(), contract(UNSURE))}, PHOTOS, LABELS, [1, 4])["file"] for _ in range(2)
    )
    assert one == other


def test_what_a_threshold_is_set_on_is_what_the_cells_of_its_severity_count() -> None:
    again = msgspec.structs.replace(NEVER, sure=0.7)
    chosen = [0, 3, 4]
    confidence, familiarity, wrong = when_corrupted(Brightness(), again, PHOTOS, LABELS, chosen)
    cells = robustness({"file": File(Brightness(), contract(UNSURE, again))}, PHOTOS, LABELS, chosen)["file"]
    for column, kind in enumerate(CORRUPTIONS):
        cell = cells[f"{kind} {JUDGED}"]
        answered = (confidence[:, column] >= UNSURE.close_call) & (familiarity[:, column] >= UNSURE.unfamiliar)
        assert cell.accuracy == wilson(int((~wrong[:, column]).sum()), 3)
        assert cell.unsure == wilson(int((~answered).sum()), 3)
    assert confidence.shape == (3, len(CORRUPTIONS))
