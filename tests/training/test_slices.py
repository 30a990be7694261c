"""Slices of a test side that is drawn, and breeds of real animals."""

from pathlib import Path

import numpy as np
import pytest

from shared.intervals import wilson
from shared.pixels import decode
from tests.conftest import ROOT
from training import slices
from training.photographs import Photographs


def test_photos_are_parted_by_what_can_be_measured_and_by_collection(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "LEAST", 2)
    photos = Photographs("train")
    found = slices.groups(photos)
    assert {by for by, _ in found} == {
        "shorter side in pixels",
        "brightness",
        "sharpness",
        "width to height",
        "collection",
        "breed",
    }
    assert list(found["collection", "photos"]) == [True] * len(photos)
    assert found["shorter side in pixels", "150 to 150"].all()  # all have the same size: one slice, not four
    parts = [inside for (by, _), inside in found.items() if by == "brightness"]
    assert len(parts) == 4
    assert (np.sum(parts, 0) == 1).all()
    values = [np.mean([photos[i].square().mean() for i in np.flatnonzero(part).tolist()]) for part in parts]
    assert values == sorted(values)


def test_the_worst_slice_comes_first_and_small_ones_are_left_out(work: Path) -> None:
    photos = Photographs("test")
    assert all(inside.sum() >= slices.LEAST for inside in slices.groups(photos).values())
    right = np.array([True, True, False, True, False, False])
    answered = np.array([True, True, True, False, False, True])
    groups = {("size", "small"): np.arange(6) < 3, ("size", "large"): np.arange(6) >= 3}
    worst, best = slices.slices(groups, right, answered)
    assert (worst.by, worst.name, worst.photos, worst.accuracy) == ("size", "large", 3, wilson(1, 3))
    assert (worst.unsure, worst.wrong_when_answered) == (wilson(2, 3), wilson(1, 1))
    assert (best.accuracy, best.unsure, best.wrong_when_answered) == (wilson(2, 3), wilson(0, 3), wilson(1, 3))


def test_a_breed_is_one_of_the_animal_s_own() -> None:
    cat = decode((ROOT / "tests/cat.jpg").read_bytes()).square()
    tabby, dog = slices.breeds([cat, cat], np.array([0, 1]))
    assert tabby in {"tabby (cats)", "tiger cat (cats)", "Egyptian cat (cats)"}
    assert dog.endswith(" (dogs)")
