"""The evidence must lie on what decides: the animal. On real photographs, with the file that ships."""

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from serving.settings import SHIPPED_INT8, SHIPPED_MODEL
from shared.pixels import SIZE, Pixels, pixels
from shared.second_look import Outputs
from tests.conftest import PHOTOS
from training.graph import Runner
from training.occlusion import STEP, occluded, occlusion, strongest_corner
from training.split import side


@pytest.fixture(scope="module")
def test_photos() -> list[Pixels]:
    """200 full-size photographs of the test side, half of them cats."""
    if not PHOTOS.exists():
        if os.environ.get("CI") and not os.environ.get("NO_PHOTOGRAPHS"):
            pytest.fail(f"{PHOTOS} is missing, and CI must not pass without real photographs")
        pytest.skip("no real photographs beside this checkout")
    found: dict[str, list[Pixels]] = {"Cat": [], "Dog": []}
    with zipfile.ZipFile(PHOTOS) as archive:
        for name in archive.namelist():
            label = name.split("/")[1]
            if not name.endswith(".jpg") or len(found[label]) == 100:
                continue
            data = archive.read(name)
            if side(hashlib.sha256(data).hexdigest(), 0.8, 0.1) == "test":
                found[label].append(pixels(data))
    assert [len(pictures) for pictures in found.values()] == [100, 100]
    return found["Cat"] + found["Dog"]


@pytest.mark.parametrize(
    "path", [path for path in (SHIPPED_MODEL, SHIPPED_INT8) if path.exists()], ids=lambda p: p.name
)
def test_occluding_the_strongest_evidence_costs_more_than_occluding_another_place(
    path: Path, test_photos: list[Pixels]
) -> None:
    found = occlusion(Runner(path.read_bytes()), test_photos)
    assert found.pictures == 200
    assert found.strongest.low > found.elsewhere.high  # the 95 % intervals do not even touch
    assert found.strongest_matters_more.low > 0.5


def test_a_map_that_points_elsewhere_is_found_out(test_photos: list[Pixels]) -> None:
    class Liar(Runner):
        def first(self, pictures: Pixels) -> Outputs:
            outputs = super().first(pictures)
            return outputs._replace(evidence=-outputs.evidence)

    assert occlusion(Liar(SHIPPED_MODEL.read_bytes()), test_photos[60:140]).strongest_matters_more.high < 0.5


def test_the_strongest_region_is_where_the_sum_is_largest() -> None:
    evidence = np.full((7, 7), -1.0, np.float32)
    evidence[3:6, 2:5] = 2
    assert strongest_corner(evidence) == (3, 2)


def test_occlusion_paints_one_region_and_nothing_else() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    result = occluded(picture, (4, 0))
    changed = (result != picture).any(2)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4 * STEP, 7 * STEP - 1, 0, 3 * STEP - 1)
    assert np.unique(result[4 * STEP :, : 3 * STEP].reshape(-1, 3), axis=0).shape == (1, 3)
